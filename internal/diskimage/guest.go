package diskimage

import (
	"errors"
	"io"
)

// Guest returns the disk that d and its file f hold, as the guest sees it, for
// looking at some places of it. It is safe for concurrent use, and slow: each call
// reads tables, and of a forward-only image everything up to the place.
func (d *Disk) Guest(f *File) io.ReaderAt { return &guest{d, f} }

type guest struct {
	disk *Disk
	file *File
}

// ReadAt implements io.ReaderAt.
func (g *guest) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= g.disk.Size {
		return 0, io.EOF
	}
	short := int64(len(p)) > g.disk.Size-off
	if short {
		p = p[:g.disk.Size-off]
	}
	clear(p)
	read := g.readMap
	if g.disk.Map == nil {
		read = g.readForward
	}
	if err := read(p, off); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

func (g *guest) readMap(p []byte, off int64) error {
	end := off + int64(len(p))
	for e, err := range g.disk.Map.Extents(off) {
		if err != nil {
			return err
		}
		from, to := max(off, e.Guest), min(end, e.Guest+e.Length)
		if e.Guest >= end {
			break
		}
		if from >= to {
			continue
		}
		into := p[from-off : to-off]
		if !e.Packed {
			if err := g.file.ReadInto("data", e.File+from-e.Guest, into); err != nil {
				return err
			}
			continue
		}
		unit, err := g.unpack(e)
		if err != nil {
			return err
		}
		copy(into, unit[from-e.Guest:])
	}
	return nil
}

func (g *guest) unpack(e Extent) ([]byte, error) {
	src, err := g.file.Read("compressed data", e.File, e.Stored)
	if err != nil {
		return nil, err
	}
	unit := make([]byte, e.Length)
	return unit, g.disk.Map.Unpack(unit, src)
}

var errEnough = errors.New("enough")

func (g *guest) readForward(p []byte, off int64) error {
	end := off + int64(len(p))
	parser := g.disk.Parser(Position{})
	err := Walk(g.file, parser, func(piece Piece) error {
		if piece.Guest >= end {
			return errEnough
		}
		from, to := max(off, piece.Guest), min(end, piece.Guest+piece.Length)
		if from >= to {
			return nil
		}
		unit := piece.Data
		if piece.Packed {
			unit = make([]byte, piece.Length)
			if err := parser.Unpack(unit, piece.Data); err != nil {
				return err
			}
		}
		copy(p[from-off:to-off], unit[from-piece.Guest:])
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// walkBytes is how much Walk reads at a time, unless a parser needs more.
const walkBytes = 256 << 10

// Walk drives a parser over the file, from the parser's position on, and calls
// visit for each piece. It ends with the end of the file, or with the first error.
func Walk(f *File, parser Parser, visit func(Piece) error) error {
	at := parser.Position().Offset
	var ahead []byte // the file from at on, as far as it was read
	for {
		step, err := parser.Next(ahead)
		switch {
		case err != nil:
			return err
		case step.Need > 0 && at+int64(len(ahead)) >= f.Size():
			return parser.End(ahead)
		case step.Need > 0:
			n := min(int64(max(step.Need, walkBytes)), f.Size()-at)
			if ahead, err = f.Read("the image", at, n); err != nil {
				return err
			}
			continue
		}
		if step.Piece.Length > 0 {
			if err := visit(step.Piece); err != nil {
				return err
			}
		}
		at += step.Used
		if at > f.Size() {
			return ErrTruncated.Saw("data up to %d, the file ends at %d", at, f.Size())
		}
		ahead = ahead[min(step.Used, int64(len(ahead))):]
	}
}
