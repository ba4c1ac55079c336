package diskimage

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// File is the bytes of one image, wherever they are, for reading small parts of
// it. It is safe for concurrent use.
type File struct {
	r    io.ReaderAt
	size int64
	left *atomic.Int64 // reads that are still allowed; nil: any number
}

// NewFile returns the File of size bytes behind r.
func NewFile(r io.ReaderAt, size int64) *File { return &File{r: r, size: size} }

// Size is the length of the file in bytes.
func (f *File) Size() int64 { return f.size }

// Section returns the n bytes at off, which lie in f, as a File.
func (f *File) Section(off, n int64) *File {
	return &File{r: io.NewSectionReader(f.r, off, n), size: n, left: f.left}
}

// AtMost returns f for no more than that many reads: each may be a request to a store
// far away, and tables can be spread so that it takes any number of them. What is
// above fails with ErrFragmented.
func (f *File) AtMost(reads int64) *File {
	limited := *f
	limited.left = new(atomic.Int64)
	limited.left.Store(reads)
	return &limited
}

// allow counts a read.
func (f *File) allow() error {
	if f.left != nil && f.left.Add(-1) < 0 {
		return ErrFragmented.Saw("its tables are spread over too many places")
	}
	return nil
}

// Has reports whether the n bytes at off lie in the file. Neither has to make
// sense.
func (f *File) Has(off, n int64) bool {
	return off >= 0 && n >= 0 && off <= f.size && n <= f.size-off
}

// Read returns the n bytes at off, which the image calls what, such as "the L1
// table". If they do not lie in the file it fails with ErrTruncated, and if they
// are more than MaxTableBytes with ErrCorrupt, before anything is allocated. An
// error of the reader behind f is returned wrapped.
func (f *File) Read(what string, off, n int64) ([]byte, error) {
	if !f.Has(off, n) {
		return nil, ErrTruncated.Saw("%s has %d bytes at %d, the file ends at %d", what, n, off, f.size)
	}
	if n > MaxTableBytes {
		return nil, ErrCorrupt.Saw("%s has %d bytes", what, n)
	}
	b := make([]byte, n)
	return b, f.ReadInto(what, off, b)
}

// ReadInto is Read into b.
func (f *File) ReadInto(what string, off int64, b []byte) error {
	if !f.Has(off, int64(len(b))) {
		return ErrTruncated.Saw("%s has %d bytes at %d, the file ends at %d", what, len(b), off, f.size)
	}
	if len(b) == 0 {
		return nil
	}
	if err := f.allow(); err != nil {
		return err
	}
	n, err := f.r.ReadAt(b, off)
	switch {
	case n == len(b): // io.EOF may come with the last bytes
		return nil
	case err == nil || err == io.EOF: // and no error of a connection that has it inside
		err = io.ErrUnexpectedEOF // the size promised them
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// readAhead is how many reads ReadEach has under way: an object store is far away.
const readAhead = 16

// ReadEach is Read of n bytes at each offset, several at a time. All together are
// bound by MaxTableBytes. A negative offset stands for n zeros, which are nil.
func (f *File) ReadEach(what string, offs []int64, n int64) ([][]byte, error) {
	if n > MaxTableBytes/int64(max(1, len(offs))) {
		return nil, ErrCorrupt.Saw("%s has %d parts of %d bytes", what, len(offs), n)
	}
	parts := make([][]byte, len(offs))
	errs := make([]error, len(offs))
	free := make(chan struct{}, readAhead)
	var wg sync.WaitGroup
	for i, off := range offs {
		if off < 0 {
			continue
		}
		free <- struct{}{}
		wg.Go(func() {
			parts[i], errs[i] = f.Read(what, off, n)
			<-free
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err // the first, so that the same image always gets the same answer
		}
	}
	return parts, nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= f.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > f.size-off
	if short {
		p = p[:f.size-off]
	}
	if err := f.allow(); err != nil {
		return 0, err
	}
	n, err := f.r.ReadAt(p, off)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}
