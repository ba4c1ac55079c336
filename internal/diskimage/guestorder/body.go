package guestorder

import (
	"context"
	"io"
	"io/fs"
	"sync"

	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
)

// body is one range of the disk. It works in the goroutine that reads it, and has none of
// its own.
type body struct {
	obj    *Object
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	at, end int64              // what is left of the range
	known   int64              // up to where extents tells all of the disk
	extents []diskimage.Extent // those that end behind at
	read    *stretch           // of the file, under way; nil if there is none
	unitAt  int64              // Guest of the extent that is unpacked in the stretch's room, -1 if none is
	err     error              // that Read has returned
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	n, err := b.next(p)
	b.at += int64(n)
	if err != nil {
		b.err = err
		b.release()
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.cancel(fs.ErrClosed)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = fs.ErrClosed
	}
	b.release()
	return nil
}

// release lets go of all that a body holds.
func (b *body) release() {
	b.leave()
	b.extents = nil
}

// leave ends the stretch, if there is one.
func (b *body) leave() {
	if b.read == nil {
		return
	}
	b.read.close()
	if b.read.room != nil {
		b.obj.rooms <- b.read.room // has room for all
	}
	b.read, b.unitAt = nil, -1
}

// next reads what comes next of the range, as much as lies in one extent or hole.
func (b *body) next(p []byte) (n int, err error) {
	defer func() { // whoever reads an object does not expect it of a body
		if p := recover(); p != nil {
			n, err = 0, fault.Panicked(p)
		}
	}()
	if err := context.Cause(b.ctx); err != nil {
		return 0, err
	}
	if b.read != nil && b.at == b.read.until {
		err := b.read.late
		if b.leave(); err != nil {
			return 0, err
		}
	}
	if b.at == b.end {
		return 0, io.EOF
	}
	if err := b.look(); err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), b.end-b.at)]
	if hole := b.hole(); hole > 0 {
		p = p[:min(int64(len(p)), hole)]
		clear(p)
		return len(p), nil
	}
	if b.read == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	if e := b.extents[0]; e.Packed {
		return b.packed(p, e)
	}
	return b.plain(p, b.extents[0])
}

// look makes extents[0] the one that at lies in, or the next one behind it.
func (b *body) look() error {
	if b.at == b.known {
		s, err := b.obj.span(b.ctx, b.at)
		if err != nil {
			return err
		}
		b.known, b.extents = s.to, s.behind(b.at)
	}
	for len(b.extents) > 0 && b.extents[0].Guest+b.extents[0].Length <= b.at {
		b.extents = b.extents[1:]
	}
	return nil
}

// hole is how many zeros are known to come next.
func (b *body) hole() int64 {
	if len(b.extents) > 0 {
		return b.extents[0].Guest - b.at
	}
	return b.known - b.at
}

// plain reads what p has room for of an extent.
func (b *body) plain(p []byte, e diskimage.Extent) (int, error) {
	p = p[:min(int64(len(p)), e.Guest+e.Length-b.at)]
	off := e.File + b.at - e.Guest
	if b.read.room == nil {
		if err := b.read.skip(off); err != nil {
			return 0, err
		}
		return b.read.Read(p)
	}
	if err := b.read.fill(off + 1); err != nil {
		return 0, err
	}
	return copy(p, b.read.have(off, b.read.at)), nil
}

// packed unpacks an extent, into p itself if it has room for all of it.
func (b *body) packed(p []byte, e diskimage.Extent) (int, error) {
	if b.unitAt != e.Guest {
		if err := b.read.fill(e.End()); err != nil {
			return 0, err
		}
		whole := b.at == e.Guest && int64(len(p)) >= e.Length
		unit := p
		if !whole {
			unit = resized(&b.read.room.unit, e.Length)
		}
		if err := b.obj.disk.Map.Unpack(unit[:e.Length:e.Length], b.read.have(e.File, e.End())); err != nil {
			return 0, err
		}
		if whole {
			return int(e.Length), nil
		}
		b.unitAt = e.Guest
	}
	return copy(p, b.read.room.unit[b.at-e.Guest:]), nil
}

// resized makes n bytes of a buffer, of any content. One without room for them is replaced.
func resized(buf *[]byte, n int64) []byte {
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	return *buf
}
