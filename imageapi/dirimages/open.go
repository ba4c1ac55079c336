package dirimages

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"vmimport/imageapi"
	"vmimport/internal/fault"
)

const (
	opOpen = "open image"
	opRead = "read image"
)

// Open implements imageapi.Images. The file is told from others by its inode, length and
// time of change, so whatever takes its place is ErrGone. No hash of it is known, unless
// somebody has put one into the record.
func (s *Images) Open(ctx context.Context, imageID string) (imageapi.File, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", opOpen, context.Cause(ctx))
	}
	if !validID(imageID) {
		return nil, imageapi.ErrNoImage
	}
	dir, err := s.root.OpenRoot(imageID)
	if err != nil {
		return nil, notOpened(err)
	}
	defer dir.Close()
	facts, err := readFacts(dir)
	if err != nil {
		return nil, err
	}
	if _, err := dir.Lstat(diskName(2, facts.Format)); err == nil {
		return nil, imageapi.ErrSeveralDisks
	}
	name := diskName(1, facts.Format)
	disk, seen, err := openDisk(dir, name)
	if err != nil {
		return nil, notOpened(err)
	}
	_ = disk.Close() // nothing was written
	return &file{root: s.root, name: path.Join(imageID, name), facts: facts, pinned: seen}, nil
}

// readFacts reads the record of an image.
func readFacts(dir *os.Root) (imageapi.Facts, error) {
	shown, err := readRecordFile(dir, recordFile)
	if err != nil {
		return imageapi.Facts{}, notOpened(err)
	}
	facts, err := imageapi.FactsOf(shown)
	if fault.KindOf(err) == fault.Internal {
		return imageapi.Facts{}, failure(opOpen, err)
	}
	return facts, err
}

// notOpened is failure, but for something that is not there, or has just been removed.
func notOpened(err error) error {
	if missing(err) {
		return imageapi.ErrNoImage
	}
	return failure(opOpen, err)
}

// file is the disk file of an image, in one state.
type file struct {
	root   *os.Root
	name   string // below root
	facts  imageapi.Facts
	pinned state
}

func (f *file) Facts() imageapi.Facts { return f.facts }
func (f *file) Size() int64           { return f.pinned.size }

// Version implements imageapi.File. It is the same on all hosts that share the directory.
func (f *file) Version() string {
	return fmt.Sprintf("%x-%x-%x", f.pinned.inode, f.pinned.size, f.pinned.mtime)
}

// ReadRange implements imageapi.File.
func (f *file) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n <= 0 || off > f.pinned.size-n {
		return nil, fmt.Errorf("%s: range %d+%d is not within its %d bytes", opRead, off, n, f.pinned.size)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", opRead, context.Cause(ctx))
	}
	disk, now, err := openDisk(f.root, f.name)
	switch {
	case missing(err):
		return nil, imageapi.ErrGone.Because(err)
	case err != nil:
		return nil, failure(opRead, err)
	case now != f.pinned:
		_ = disk.Close()
		return nil, imageapi.ErrGone
	}
	return &body{ctx: ctx, disk: disk, pinned: f.pinned, off: off, left: n}, nil
}

// state is what tells one content of a disk file from another. A published one is never
// written to by the service. A second link to it, or other rights, change nothing here.
type state struct {
	inode   uint64
	size    int64
	mtime   int64 // ns since 1970
	deleted bool  // it has lost its last name
}

// openDisk opens a disk file.
func openDisk(root *os.Root, name string) (*os.File, state, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, state{}, err
	}
	now, err := stateOf(f)
	if err != nil {
		_ = f.Close()
		return nil, state{}, err
	}
	return f, now, nil
}

func stateOf(f *os.File) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return state{}, err
	}
	return state{st.Ino, st.Size, st.Mtim.Nano(), st.Nlink == 0}, nil
}

// body reads a range of a disk file for as long as that stays as it was.
type body struct {
	ctx    context.Context // of the range, which the body belongs to
	disk   *os.File
	pinned state
	off    int64
	left   int64
	err    error // ended every later Read
}

// Read looks at the file after each read and before the bytes are given out, since the
// kernel sets a file's time before it changes the bytes.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.err != nil:
	case b.ctx.Err() != nil:
		b.err = fmt.Errorf("%s: %w", opRead, context.Cause(b.ctx))
	case b.left == 0:
		b.err = io.EOF
	}
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.disk.ReadAt(p[:min(int64(len(p)), b.left)], b.off)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the range lies within the size
	}
	now, statErr := stateOf(b.disk)
	switch {
	case statErr != nil:
		b.err = failure(opRead, statErr)
	case now != b.pinned:
		b.err = imageapi.ErrGone
	case err != nil:
		b.err = failure(opRead, err)
	}
	if b.err != nil {
		return 0, b.err
	}
	b.off += int64(n)
	b.left -= int64(n)
	return n, nil
}

func (b *body) Close() error { return b.disk.Close() }
