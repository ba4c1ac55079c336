package ramfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// maxBytes is the longest file: some thousands of accounts.
const maxBytes = 4 << 20

// files reads files and remembers how each looked before it was read, so that
// what changes while it is read has changed since.
type files struct{ marks []mark }

// A mark is how a file looked. Info is nil if there was none.
type mark struct {
	path string
	info fs.FileInfo
}

func (m mark) changed() bool {
	info, err := os.Stat(m.path)
	if err != nil || m.info == nil {
		return (err == nil) != (m.info != nil)
	}
	return !os.SameFile(info, m.info) || info.Size() != m.info.Size() || info.Mode() != m.info.Mode() ||
		!info.ModTime().Equal(m.info.ModTime())
}

func (f *files) changedSince(t time.Time) bool {
	return slices.ContainsFunc(f.marks, func(m mark) bool { return m.info != nil && m.info.ModTime().After(t) })
}

// read returns what is in a file that only its owner can read. Errors do not
// name the file.
func (f *files) read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	f.marks = append(f.marks, mark{path, info})
	switch {
	case err != nil:
		return nil, withoutPath(err)
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	case info.Mode()&0o077 != 0:
		return nil, fmt.Errorf("others than its owner have access to it (mode %04o); chmod 600 it", info.Mode().Perm())
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err == nil && len(b) > maxBytes {
		err = fmt.Errorf("it is longer than %d bytes", maxBytes)
	}
	return b, withoutPath(err)
}

func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}
