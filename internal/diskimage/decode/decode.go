// Package decode turns the bytes of an object, which come once and in its own order,
// into the disks that it holds.
//
// Tables are read first, by small ranges, and sorted into the object's order. Then
// every chunk of the object is written as soon as it has come: what is plain from
// the chunk itself, what is compressed by all cores. Nothing is stored in between,
// with one exception: an image inside gzip whose tables have to be known first.
package decode

import (
	"context"
	"fmt"
	"io"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
)

// Version changes when decoders write other bytes than before, or the same in another
// order. A disk that one version began is not for another to go on with.
const Version = 1

// Spool is a file for what has to wait. It costs nothing where it was not written.
type Spool interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// Options set up a Decoder.
type Options struct {
	Limits formats.Limits
	// Hashed says that the object's hash is compared before its disks are used, so
	// that the checksums inside of it need not be.
	Hashed bool
	// Spool returns a file with room for that many bytes. It must be set to decode an
	// object that is gzip.
	Spool func(bytes int64) (Spool, error)
	// Converting is called when all of the object has been taken and work is left
	// that takes long. It may be nil.
	Converting func()
}

// disk writes one disk.
type disk interface {
	// inOrder tells whether the disk is written from its front to its end.
	inOrder() bool
	// dataBytes bounds how much a file takes that the disk is written to, if it can
	// leave out whole units.
	dataBytes(unit int64) int64
	// begin is called once, before all that follows. An earlier one had taken
	// everything up to at, and had that position then.
	begin(out io.WriterAt, from diskimage.Position, at int64) error
	// take takes the next bytes of the disk's file.
	take(off int64, p []byte) error
	position() diskimage.Position
	// finish is called when the file has been taken. It returns the disk's size.
	finish() (int64, error)
	// close ends all that is under way. It may be called at any time, also twice.
	close()
}

// Decoder writes the disks of an object. One goroutine uses it.
type Decoder struct {
	src   *formats.Source
	disks []disk
}

// New returns a decoder of src. It reads the tables of all disks, and looks whether the
// disks pass for images themselves. When ctx ends, what is under way in any method fails
// soon with its cause.
func New(ctx context.Context, src *formats.Source, opt Options) (*Decoder, error) {
	d := &Decoder{src: src}
	bufs := newBuffers()
	for i := range src.Disks {
		one, err := newDisk(ctx, src, i, opt, bufs)
		if err != nil {
			return nil, err
		}
		d.disks = append(d.disks, one)
	}
	return d, nil
}

func newDisk(ctx context.Context, src *formats.Source, i int, opt Options, bufs *buffers) (disk, error) {
	part := &src.Disks[i]
	switch {
	case part.Gzip:
		return newGunzip(ctx, part, src.Content(i, opt.Limits), opt, bufs), nil
	case part.Parser != nil:
		return newForward(ctx, part.Disk, src.File(i), opt.Hashed, bufs)
	}
	reader := func(f *diskimage.File) (*diskimage.Disk, error) { return formats.OpenDisk(f, part.Format) }
	return newMapped(ctx, src.File(i), reader, len(src.Disks) == 1, bufs)
}

// InOrder tells whether disk i is written from its front to its end, for sinks that
// need that.
func (d *Decoder) InOrder(i int) bool { return d.disks[i].inOrder() }

// DataBytes bounds what a file takes that disk i is written to, if it leaves out units
// of zeros. unit is a power of two from 4 KiB to 2 MiB.
func (d *Decoder) DataBytes(i int, unit int64) int64 { return d.disks[i].dataBytes(unit) }

// Resumable tells whether Mark returns something to go on from.
func (d *Decoder) Resumable() bool { return d.src.Format != diskimage.Gzip }

// Begin is called once. outs are where the disks go; each is written by one
// goroutine at a time, and no byte twice. With at > 0 it goes on where an earlier
// decoder of the same object had taken everything up to at, and Mark was marks then:
// bytes behind that may be written again, with the same contents.
func (d *Decoder) Begin(outs []io.WriterAt, at int64, marks []diskimage.Position) error {
	if at > 0 && len(marks) != len(d.disks) {
		return fmt.Errorf("decode: go on at %d with %d marks for %d disks", at, len(marks), len(d.disks))
	}
	for i, disk := range d.disks {
		offset, length := d.src.Disks[i].Place()
		var from diskimage.Position
		within := min(max(0, at-offset), length)
		if within > 0 {
			from = marks[i]
		}
		if err := disk.begin(outs[i], from, within); err != nil {
			return err
		}
	}
	return nil
}

// Take takes the bytes p of the object at off, which follow those of the last call.
// When it returns, all that they complete has been written, and p is not used any
// more.
func (d *Decoder) Take(off int64, p []byte) error {
	end := off + int64(len(p))
	for i, disk := range d.disks {
		offset, length := d.src.Disks[i].Place()
		from, to := max(off, offset), min(end, offset+length)
		if from >= to {
			continue
		}
		if err := disk.take(from-offset, p[from-off:to-off]); err != nil {
			return err
		}
	}
	return nil
}

// Mark is what a later decoder needs to go on after the last Take.
func (d *Decoder) Mark() []diskimage.Position {
	marks := make([]diskimage.Position, len(d.disks))
	for i, disk := range d.disks {
		marks[i] = disk.position()
	}
	return marks
}

// Finish is called when all of the object was taken. It writes what is left, fails if
// an image is not complete, and returns the sizes of the disks.
func (d *Decoder) Finish() ([]int64, error) {
	sizes := make([]int64, len(d.disks))
	for i, disk := range d.disks {
		var err error
		if sizes[i], err = disk.finish(); err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

// Close lets go of everything. It must be called, whatever came before, and may be
// called more than once.
func (d *Decoder) Close() {
	for _, disk := range d.disks {
		disk.close()
	}
}
