package decode

import (
	"context"
	"errors"
	"io"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/gz"
	"vmimport/internal/fault"
)

// contentBytes is how much of what is in gzip is handed on at a time.
const contentBytes = 1 << 20

// gunzip unpacks a disk's file and hands it to whoever can read it as it comes. It
// runs beside take, in a goroutine of its own: a decompressor wants to read, and
// take is called.
type gunzip struct {
	ctx   context.Context
	part  *formats.Disk
	limit int64 // of the content
	inner content

	chunks chan []byte   // from take, one at a time
	taken  chan struct{} // back to take
	quit   chan struct{}
	ended  chan struct{} // closed after err was set
	err    error
}

// content takes what was in gzip.
type content interface {
	begin(out io.WriterAt) error
	take(off int64, p []byte) error
	finish() (int64, error)
	inOrder() bool
	close()
}

func newGunzip(ctx context.Context, part *formats.Disk, limit int64, opt Options, bufs *buffers) *gunzip {
	g := &gunzip{ctx: ctx, part: part, limit: limit}
	switch {
	case part.Format == diskimage.Raw:
		g.inner = &rawContent{part: part, limits: opt.Limits}
	case part.Parser != nil:
		f, _ := newForward(ctx, part.Disk, nil, opt.Hashed, bufs) // without a file it looks at nothing
		g.inner = &forwardContent{f}
	default:
		g.inner = &spooled{ctx: ctx, part: part, limit: limit, opt: opt}
	}
	return g
}

func (g *gunzip) inOrder() bool { return g.inner.inOrder() }

func (g *gunzip) dataBytes(int64) int64 {
	if g.part.Size > 0 {
		return g.part.Size
	}
	return g.limit
}

func (g *gunzip) position() diskimage.Position { return diskimage.Position{} }

func (g *gunzip) begin(out io.WriterAt, _ diskimage.Position, _ int64) error {
	if err := g.inner.begin(out); err != nil {
		return err
	}
	g.chunks, g.taken = make(chan []byte), make(chan struct{})
	g.quit, g.ended = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(g.ended)
		defer func() {
			if p := recover(); p != nil {
				g.err = fault.Panicked(p)
			}
		}()
		g.err = g.unpack()
	}()
	return nil
}

func (g *gunzip) unpack() error {
	r := gz.NewReader(&chunkReader{g: g}, g.limit)
	buf := make([]byte, contentBytes)
	for at := int64(0); ; {
		if err := context.Cause(g.ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := g.inner.take(at, buf[:n]); err != nil {
				return err
			}
			at += int64(n)
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// chunkReader reads what take was called with.
type chunkReader struct {
	g    *gunzip
	rest []byte
	busy bool // rest is of a call of take that waits
}

var errClosed = errors.New("decoder was closed")

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.busy {
			r.busy = false
			select {
			case r.g.taken <- struct{}{}:
			case <-r.g.quit:
				return 0, errClosed
			}
		}
		select {
		case chunk, ok := <-r.g.chunks:
			if !ok {
				return 0, io.EOF
			}
			r.rest, r.busy = chunk, true
		case <-r.g.quit:
			return 0, errClosed
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// take waits until p has been used up. That ends soon after the context does: unpack
// asks it, and p must not be read after take has returned.
func (g *gunzip) take(_ int64, p []byte) error {
	select {
	case g.chunks <- p:
	case <-g.ended:
		return g.early()
	}
	select {
	case <-g.taken:
		return nil
	case <-g.ended:
		return g.early()
	}
}

// early is why unpacking ended while the object goes on.
func (g *gunzip) early() error {
	if g.err != nil {
		return g.err
	}
	return diskimage.ErrTrailing
}

func (g *gunzip) finish() (int64, error) {
	close(g.chunks)
	<-g.ended
	if g.err != nil {
		return 0, g.err
	}
	return g.inner.finish()
}

func (g *gunzip) close() {
	if g.quit != nil {
		close(g.quit)
		<-g.ended
		g.quit = nil
	}
	g.inner.close()
}

// forwardContent is an image that is read as it comes.
type forwardContent struct{ *forward }

func (f forwardContent) begin(out io.WriterAt) error {
	return f.forward.begin(out, diskimage.Position{}, 0)
}

// heldBack is what only the end of a raw disk tells from the disk itself: the footer of
// a fixed VHD, and the sector before it, which may be another.
const heldBack = 2 * diskimage.SectorBytes

// rawContent is a raw disk, whose size its end tells. It holds back the last sectors.
type rawContent struct {
	part   *formats.Disk
	limits formats.Limits
	out    io.WriterAt
	at     int64 // what was written
	last   []byte
}

func (r *rawContent) inOrder() bool { return true }

func (r *rawContent) close() {}

func (r *rawContent) begin(out io.WriterAt) error {
	r.out = out
	return nil
}

func (r *rawContent) take(_ int64, p []byte) error {
	if over := len(p) - heldBack; over >= 0 {
		if err := r.write(r.last); err != nil {
			return err
		}
		r.last = append(r.last[:0], p[over:]...)
		return r.write(p[:over])
	}
	r.last = append(r.last, p...)
	over := max(0, len(r.last)-heldBack)
	if err := r.write(r.last[:over]); err != nil {
		return err
	}
	r.last = append(r.last[:0], r.last[over:]...)
	return nil
}

func (r *rawContent) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.out.WriteAt(p, r.at)
	r.at += int64(n)
	return err
}

func (r *rawContent) finish() (int64, error) {
	body := max(0, len(r.last)-diskimage.SectorBytes)
	found, trailer := diskimage.DetectTail(r.last[body:])
	if !trailer {
		found = diskimage.Raw
	}
	if err := diskimage.Check(r.part.Declared(), found); err != nil {
		return 0, err
	}
	switch {
	case !trailer:
	case diskimage.IsVHDFooter(r.last[body:]):
		r.part.Format, r.part.Variant = diskimage.VHD, "fixed"
		r.last = r.last[:body]
		if err := diskimage.CheckGuest(nil, r.last); err != nil {
			return 0, err
		}
	case found == diskimage.VHD:
		return 0, diskimage.ErrUnsupported.Saw("a footer of 511 bytes")
	default:
		return 0, diskimage.Refuse(found)
	}
	size := diskimage.VirtualSize(r.at + int64(len(r.last)))
	if err := diskimage.CheckSize(size); err != nil {
		return 0, err
	}
	if err := r.limits.Check(size); err != nil {
		return 0, err
	}
	return size, r.write(r.last)
}

// spooled is an image whose tables have to be known before anything can be written.
// It is unpacked into a file, and decoded from there.
type spooled struct {
	ctx   context.Context
	part  *formats.Disk
	limit int64
	opt   Options

	file Spool
	size int64
	out  io.WriterAt
}

func (s *spooled) inOrder() bool { return false }

func (s *spooled) begin(out io.WriterAt) (err error) {
	s.out = out
	s.file, err = s.opt.Spool(s.limit)
	return err
}

func (s *spooled) take(off int64, p []byte) error {
	s.size = off + int64(len(p))
	_, err := s.file.WriteAt(p, off)
	return err
}

func (s *spooled) finish() (int64, error) {
	if s.opt.Converting != nil {
		s.opt.Converting()
	}
	f := diskimage.NewFile(interruptible{s.ctx, s.file}, s.size)
	// What it is was found at its front; its end may say otherwise.
	src, err := formats.Open(f, diskimage.Declared{Format: s.part.Format}, s.opt.Limits)
	if err != nil {
		return 0, err
	}
	d, err := New(s.ctx, src, Options{Limits: s.opt.Limits, Hashed: s.opt.Hashed})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	if err := d.Begin([]io.WriterAt{s.out}, 0, nil); err != nil {
		return 0, err
	}
	buf := make([]byte, contentBytes)
	for off := int64(0); off < s.size; off += contentBytes {
		p := buf[:min(contentBytes, s.size-off)]
		if err := f.ReadInto("the unpacked image", off, p); err != nil {
			return 0, err
		}
		if err := d.Take(off, p); err != nil {
			return 0, err
		}
	}
	sizes, err := d.Finish()
	if err != nil {
		return 0, err
	}
	s.part.Variant = src.Disks[0].Variant
	return sizes[0], nil
}

// interruptible is a file that cannot be read any more when ctx is over.
type interruptible struct {
	ctx context.Context
	io.ReaderAt
}

func (r interruptible) ReadAt(p []byte, off int64) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(p, off)
}

func (s *spooled) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}
