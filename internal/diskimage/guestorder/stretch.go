package guestorder

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmimport/internal/diskimage"
)

const (
	// maxGapBytes is what is read in vain between two extents if that saves a request:
	// one takes about as long as that many bytes more of another.
	maxGapBytes = 64 << 10
	// maxBufferBytes is the longest stretch that is kept in memory: it has room for any
	// packed extent, and for what one range of 4 MiB has of a compressed image.
	maxBufferBytes = diskimage.MaxPackedBytes
)

// stretch is a part of the file that one request reads, for one or more extents that come one
// behind the other on the disk.
//
// If all are plain and come in the file's order, too, their bytes pass through, and it can
// be as long as the range. Else it is kept: packed extents are needed whole, and share bytes of
// the sectors that they end in; and plain ones are put between them where there is room.
type stretch struct {
	ctx   context.Context
	body  io.ReadCloser // nil if it could not be opened
	from  int64         // of the file
	at    int64         // where body goes on
	to    int64         // where it ends
	until int64         // of the disk: where extents of another stretch begin
	room  *room         // has the file from from on in its buf; nil if nothing is kept
	late  error         // of the body, behind its last byte
}

// part is what a body has to read of an extent.
func (b *body) part(e diskimage.Extent) (from, to int64) {
	if e.Packed {
		return e.File, e.End()
	}
	first, last := max(b.at, e.Guest), min(b.end, e.Guest+e.Length)
	return e.File + first - e.Guest, e.File + last - e.Guest
}

// open begins the stretch that the first of the extents is in, and as many behind it as
// possible. If it keeps bytes it may have to wait for a room. What a failed one holds is for
// release.
func (b *body) open() error {
	s := &stretch{ctx: b.ctx}
	kept := false
	for i, e := range b.extents {
		if e.Guest >= b.end {
			break
		}
		from, to := b.part(e)
		if i == 0 {
			s.from, s.to, kept = from, to, e.Packed
		} else {
			first, last := min(s.from, from), max(s.to, to)
			gap := (last - first) - (s.to - s.from) - (to - from)
			keep := kept || e.Packed || from < s.to
			if gap > maxGapBytes || keep && last-first > maxBufferBytes {
				break
			}
			s.from, s.to, kept = first, last, keep
		}
		s.until = min(b.end, e.Guest+e.Length)
	}
	s.at = s.from
	b.read = s
	if kept {
		select {
		case s.room = <-b.obj.rooms:
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		}
		resized(&s.room.buf, s.to-s.from)
	}
	body, err := b.obj.src.ReadRange(b.ctx, s.from, s.to-s.from)
	if err != nil {
		return s.failed(s.from, err)
	}
	s.body = body
	return nil
}

func (s *stretch) close() {
	if s.body != nil {
		_ = s.body.Close()
	}
}

func (s *stretch) failed(off int64, err error) error {
	return fmt.Errorf("read the image's file at byte %d: %w", off, err)
}

// errLong means that a range had more bytes than were asked for: it is not that range.
var errLong = errors.New("the range is longer than asked for")

// Read gives the next bytes of the file, at least one. It never returns io.EOF, and must not
// be called at the end of the stretch.
//
// With the last bytes it reads on to the end of the body: only then can a connection be used
// again, and a body that is too long be told. Another failure there says nothing against
// the bytes, and waits in late.
func (s *stretch) Read(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), s.to-s.at)]
	if n, err = s.some(p); n == 0 {
		if err == io.EOF { // and no error of a connection that has it inside
			err = io.ErrUnexpectedEOF
		}
		return 0, s.failed(s.at, err)
	}
	s.at += int64(n)
	if s.at < s.to {
		return n, nil // an error comes again with the next bytes
	}
	if err == nil {
		var extra [1]byte
		k, end := s.some(extra[:])
		if k > 0 {
			return 0, s.failed(s.to, errLong)
		}
		err = end
	}
	if err != io.EOF {
		s.late = s.failed(s.to, err)
	}
	return n, nil
}

// some reads at least one byte, or fails. A body may read nothing, without error, for ever.
func (s *stretch) some(p []byte) (n int, err error) {
	for n == 0 && err == nil {
		if err := context.Cause(s.ctx); err != nil {
			return 0, err
		}
		n, err = s.body.Read(p)
	}
	return n, err
}

// skip goes on at an offset of the file.
func (s *stretch) skip(off int64) error {
	_, err := io.CopyN(io.Discard, s, off-s.at)
	return err
}

// fill has all bytes up to an offset of the file in the buffer.
func (s *stretch) fill(off int64) error {
	for s.at < off {
		if _, err := s.Read(s.room.buf[s.at-s.from:]); err != nil {
			return err
		}
	}
	return nil
}

// have returns bytes of the file that are in the buffer.
func (s *stretch) have(from, to int64) []byte { return s.room.buf[from-s.from : to-s.from] }
