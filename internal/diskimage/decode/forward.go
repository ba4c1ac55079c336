package decode

import (
	"bytes"
	"context"
	"io"

	"vmimport/internal/diskimage"
)

// forward writes a disk that a parser takes apart as it comes.
type forward struct {
	ctx    context.Context
	disk   *diskimage.Disk
	file   *diskimage.File // nil if there is nothing to go back to
	hashed bool
	bufs   *buffers
	parser diskimage.Parser
	out    *writer

	ahead []byte // bytes that came and were not consumed
	need  int    // how many the parser wants to see
	skip  int64  // how many to come are none of its business
	parts []part
	high  int64 // where the last piece ended
}

// newForward looks at the front of the disk in f. Without f there is nothing to look
// at yet.
func newForward(ctx context.Context, d *diskimage.Disk, f *diskimage.File, hashed bool, bufs *buffers) (*forward, error) {
	w := &forward{ctx: ctx, disk: d, file: f, hashed: hashed, bufs: bufs}
	if f == nil {
		return w, nil
	}
	head := make([]byte, min(headBytes, d.Size))
	if n, err := d.Guest(f).ReadAt(head, 0); n < len(head) {
		return nil, err
	}
	return w, diskimage.CheckGuest(head, nil)
}

func (f *forward) inOrder() bool { return true }

func (f *forward) dataBytes(int64) int64 { return f.disk.Size }

// begin goes on at a parser's position when the object has been taken up to at: what
// lies between them is read again, or skipped.
func (f *forward) begin(out io.WriterAt, from diskimage.Position, at int64) (err error) {
	f.parser = f.disk.Parser(from)
	unpack := f.parser.Unpack
	if p, ok := f.parser.(diskimage.Checked); ok && f.hashed {
		unpack = p.UnpackUnchecked
	}
	f.out = f.bufs.writer(f.ctx, out, f.disk.Size, unpack)
	f.out.watch()
	if f.skip = max(0, from.Offset-at); from.Offset < at {
		f.ahead, err = f.file.Read("the image", from.Offset, at-from.Offset)
	}
	return err
}

func (f *forward) position() diskimage.Position { return f.parser.Position() }

func (f *forward) take(_ int64, p []byte) error {
	f.parts = f.parts[:0]
	b := f.ahead
	for {
		skipped := min(f.skip, int64(len(p)))
		f.skip, p = f.skip-skipped, p[skipped:]
		if len(b) > 0 {
			// Joined with no more than the parser asks for: the rest needs no copy.
			// Parts point into b, also when it grows: nothing of it is written over.
			n := min(max(f.need-len(b), 1), len(p))
			b, p = append(b, p[:n]...), p[n:]
		} else {
			b, p = p, nil
		}
		var err error
		if b, err = f.parse(b); err != nil {
			return err
		}
		if len(p) == 0 {
			break
		}
	}
	if err := f.out.write(f.parts); err != nil {
		return err
	}
	f.ahead = bytes.Clone(b)
	return nil
}

// parse takes b apart and returns what is left of it.
func (f *forward) parse(b []byte) (rest []byte, err error) {
	for len(b) > 0 {
		step, err := f.parser.Next(b)
		if err != nil {
			return nil, err
		}
		if f.need = step.Need; step.Need > 0 {
			if step.Need <= len(b) || step.Need > diskimage.MaxPackedBytes {
				return nil, diskimage.ErrCorrupt.Saw("an item of %d bytes", step.Need)
			}
			return b, nil
		}
		if err := f.add(step.Piece); err != nil {
			return nil, err
		}
		used := min(step.Used, int64(len(b)))
		f.skip = step.Used - used
		b = b[used:]
	}
	return nil, nil
}

// add notes a piece to be written. It holds the parser to what it owes: what
// follows trusts it with memory.
func (f *forward) add(p diskimage.Piece) error {
	if p.Length == 0 {
		return nil
	}
	sound := p.Guest >= f.high && p.Guest < f.disk.Size && p.Length > 0
	if p.Packed {
		sound = sound && p.Length <= diskimage.MaxUnitBytes
	} else {
		sound = sound && p.Length == int64(len(p.Data))
	}
	if !sound {
		return diskimage.ErrCorrupt.Saw("%d bytes of the disk at %d", p.Length, p.Guest)
	}
	f.high = p.Guest + p.Length
	f.parts = append(f.parts, part{guest: p.Guest, length: int(p.Length), data: p.Data, packed: p.Packed})
	return nil
}

func (f *forward) finish() (int64, error) {
	if f.skip > 0 {
		return 0, diskimage.ErrTruncated.Saw("%d bytes are missing at the end", f.skip)
	}
	if err := f.parser.End(f.ahead); err != nil {
		return 0, err
	}
	return f.disk.Size, diskimage.CheckGuest(f.out.head, f.out.tail)
}

func (f *forward) close() {}
