// Package scratch lends files for what has to wait on disk: an image inside gzip
// whose tables must be known first, or one that is written out of order for a
// service that needs order.
//
// Space is reserved before a file is written, so that an import which has no room is
// told so at its start and tries again later, and does not take the room of others
// that are under way. Files have no name: they end with their last user, also if
// that is killed.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"vmimport/internal/fault"
)

// ErrFull means that there is no room now; there may be later.
var ErrFull = fault.New(fault.Unavailable, "scratch_full", "The service has no scratch space at present.").
	Try("Nothing about the request is wrong, and it is tried again. An import of a raw, QCOW2 or stream-optimised VMDK image without gzip around it needs no scratch space.")

// Dir lends files in one directory. Reservations are among the users of one Dir: two
// processes that share a file system may promise the same space, and then one of
// them gets ErrFull later. It is safe for concurrent use.
type Dir struct {
	path      string
	available func(path string) (int64, error) // bytes

	mu    sync.Mutex
	files map[*File]struct{}
}

// Open makes the directory at path if there is none.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	return &Dir{path: path, available: available, files: map[*File]struct{}{}}, nil
}

// enough is what a small image inside gzip needs.
const enough = 1 << 30

// Check tells how much is free for a Dir at path, without making one. It fails if that
// is hardly anything, or if nothing could be written there.
func Check(path string) (free string, err error) {
	dir, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		dir = filepath.Dir(dir) // where it would be made
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return "", fmt.Errorf("%s cannot be written to: %w", dir, err)
	}
	bytes, err := available(dir)
	if err != nil {
		return "", err
	}
	if bytes < enough {
		return "", ErrFull.Saw("%d bytes are free", bytes)
	}
	return fmt.Sprintf("%d GiB free", bytes>>30), nil
}

// File is a file with reserved space. Methods of os.File may be used beside each
// other; what was never written reads as zeros up to the end of what was.
type File struct {
	dir   *Dir
	file  *os.File
	bytes int64
}

// Reserve returns an empty file that may take that many bytes on disk. It fails with
// ErrFull if less is free, when that is counted as used which other files of the
// directory have reserved.
func (d *Dir) Reserve(bytes int64) (*File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free, err := d.free()
	if err != nil {
		return nil, err
	}
	if bytes > free {
		return nil, ErrFull.Saw("%d bytes are needed, %d are free", bytes, max(0, free))
	}
	f, err := unnamed(d.path)
	if err != nil {
		return nil, failure("make scratch file", err)
	}
	file := &File{dir: d, file: f, bytes: bytes}
	d.files[file] = struct{}{}
	return file, nil
}

// free is what is free on disk, less what was promised and is not used yet.
func (d *Dir) free() (int64, error) {
	free, err := d.available(d.path)
	if err != nil {
		return 0, err
	}
	for f := range d.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.file.Fd()), &st); err != nil {
			return 0, fmt.Errorf("look at scratch file: %w", err)
		}
		free -= max(0, f.bytes-st.Blocks*512)
	}
	return free, nil
}

func available(path string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("look at scratch space: %w", err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// unnamed makes a file without a name. Where the file system cannot, it is made with
// one that is removed at once.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "scratch"), nil
	}
	f, err := os.CreateTemp(dir, "vmimport-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// WriteAt implements io.WriterAt. If the disk is full in spite of the reservation, the
// error is ErrFull too.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.file.WriteAt(p, off)
	if err != nil {
		return n, failure("write scratch file", err)
	}
	return n, nil
}

// Data returns the first run of data at or behind off, and false if there is none.
// What lies between runs was never written.
func (f *File) Data(off int64) (from, to int64, ok bool, err error) {
	fd := int(f.file.Fd())
	from, err = unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, false, nil
	}
	if err == nil {
		to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("look for data in scratch file: %w", err)
	}
	return from, to, true, nil
}

// Close gives back the file and its space.
func (f *File) Close() error {
	f.dir.mu.Lock()
	delete(f.dir.files, f)
	f.dir.mu.Unlock()
	return f.file.Close()
}

func failure(op string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return ErrFull.Because(fmt.Errorf("%s: %w", op, err))
	}
	return fmt.Errorf("%s: %w", op, err)
}
