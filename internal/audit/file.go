package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// File is a Sink that adds lines to a file, one JSON object each.
//
// Before each line it looks whether the file is still at its path, and makes a new one there
// if it is not: so logrotate can move the file away without a word to anybody. Each line is
// written at once and at the end of the file, so that several processes of one machine can
// share it. Lines are not synced to the disk one by one.
type File struct {
	path string

	mu   sync.Mutex
	file *os.File // nil: none could be opened
	info os.FileInfo
	torn bool // the last line was not written to its end
}

// fileMode lets nobody read what customers did but the service's user.
const fileMode = 0o600

// OpenFile returns the File at path, and makes it if there is none. Its directory must be there.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// open opens the file at path in place of the one before.
func (f *File) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NONBLOCK, fileMode) // a pipe must not make it wait
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open audit log %s: %w", f.path, err), file.Close())
	}
	if f.file != nil {
		_ = f.file.Close() // every line of it was written
	}
	f.file, f.info, f.torn = file, info, false
	return nil
}

// Add implements Sink.
func (f *File) Add(r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode audit record: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, err := os.Stat(f.path); f.file == nil || err != nil || !os.SameFile(now, f.info) {
		if err := f.open(); err != nil {
			return err
		}
	}
	if f.torn {
		line = append([]byte("\n"), line...)
	}
	if _, err := f.file.Write(append(line, '\n')); err != nil {
		f.torn = true
		return fmt.Errorf("write audit log: %w", err)
	}
	f.torn = false
	return nil
}

// Close closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}

// CheckFile fails if no File could be opened at path, and makes none.
func CheckFile(path string) error {
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		dir := filepath.Dir(path)
		if info, err := os.Stat(dir); err != nil {
			return fmt.Errorf("look for the directory of the audit log: %w", err)
		} else if !info.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		const write, search = 2, 1 // access(2)
		if err := syscall.Access(dir, write|search); err != nil {
			return fmt.Errorf("make a file in %s: %w", dir, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("look for the audit log: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	return file.Close()
}
