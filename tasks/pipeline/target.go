package pipeline

import (
	"context"
	"io"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/diskimage/qcow2"
)

// Spool is a file for what has to wait. It costs nothing where it was not written.
type Spool interface {
	decode.Spool
	// Data returns the first run of data at or behind off, and false if there is
	// none.
	Data(off int64) (from, to int64, ok bool, err error)
}

// Formats of the disks that are stored, as tasks.Spec.TargetFormat.
const (
	targetRaw   = "raw"
	targetQCOW2 = "qcow2"
)

// target is where a disk goes, and how it gets there from the decoder.
type target struct {
	w     imageapi.DiskWriter
	size  int64         // of the disk, or a bound of it
	sized bool          // w knows how long its file gets
	qcow2 *qcow2.Writer // packs what is written; nil for a raw target
	spool Spool         // holds it until it can be written in order; nil if it is in order

	kept bool // w still has what an earlier attempt wrote
}

// out is what the decoder writes to.
func (t *target) out() io.WriterAt {
	switch {
	case t.qcow2 != nil:
		return t.qcow2
	case t.spool != nil:
		return t.spool
	}
	return t.w
}

// fileBytes is how long the file gets for a disk of that size at most.
func fileBytes(format string, size int64) int64 {
	if format == targetQCOW2 {
		return qcow2.MaxFileBytes(size)
	}
	return size
}

// openTargets opens disks of those sizes in the image service. atMost and resume are as
// for imageapi.DiskSpec.
func (c *objectCopy) openTargets(ctx context.Context, sizes []int64, atMost func(i int) bool, resume int64) error {
	for i, size := range sizes {
		t := &target{size: size, sized: c.task.TargetFormat != targetQCOW2 && !atMost(i)}
		c.targets = append(c.targets, t)
		spec := imageapi.DiskSpec{Number: c.first + i, Size: fileBytes(c.task.TargetFormat, size), AtMost: !t.sized, Resume: resume}
		var err error
		if t.w, t.kept, err = c.upload.Disk(ctx, spec); err != nil {
			return err
		}
	}
	return nil
}

// prepare puts between the decoder and its disks what has to be there.
func (c *objectCopy) prepare(dec *decode.Decoder) (err error) {
	asQCOW2 := c.task.TargetFormat == targetQCOW2
	for i, t := range c.targets {
		file := io.WriterAt(t.w)
		// The header of a QCOW2 comes last and is at its front.
		if c.upload.Streams() && (asQCOW2 || !dec.InOrder(i)) {
			if t.spool, err = c.r.opt.Spool(c.spoolNeeds(t, dec, i)); err != nil {
				return err
			}
			file = t.spool
		}
		if asQCOW2 {
			if t.qcow2, err = qcow2.NewWriter(file, t.size); err != nil {
				return err
			}
		}
	}
	return nil
}

// spoolUnit is the block of the usual file systems, of which a byte takes all.
const spoolUnit = 4 << 10

// spoolNeeds bounds what a spool of the disk's file takes. In a QCOW2 each cluster may
// be alone in its L2 table, which is a cluster too; the rest of its tables is eight
// clusters at most.
func (c *objectCopy) spoolNeeds(t *target, dec *decode.Decoder, i int) int64 {
	if c.task.TargetFormat == targetQCOW2 {
		cluster := qcow2.ClusterBytes(t.size)
		return min(2*dec.DataBytes(i, cluster)+8*cluster, qcow2.MaxFileBytes(t.size))
	}
	return min(dec.DataBytes(i, spoolUnit), t.size)
}

// resumable tells whether what t has of a disk is of use to a later attempt. What a
// QCOW2 has where is known to its writer alone, and a spool ends with the attempt.
func (t *target) resumable() bool { return t.qcow2 == nil && t.spool == nil }

// finish brings a disk of that size to its end, but for making it durable.
func (t *target) finish(ctx context.Context, size int64) error {
	if size > t.size { // its header said less, of which another part knows better
		return diskimage.ErrCorrupt.Saw("a disk of %d bytes, which said that it has %d", size, t.size)
	}
	length := size
	if t.qcow2 != nil {
		var err error
		if length, err = t.qcow2.Finish(size); err != nil {
			return err
		}
	}
	if !t.sized || length < t.size {
		if err := t.w.Resize(length); err != nil {
			return err
		}
	}
	if t.spool != nil {
		return t.unspool(ctx)
	}
	return nil
}

// spoolBytes is how much is read of a spool at a time.
const spoolBytes = 1 << 20

// unspool writes what the spool has, from its front to its end.
func (t *target) unspool(ctx context.Context) error {
	buf := make([]byte, spoolBytes)
	for off := int64(0); ; {
		from, to, ok, err := t.spool.Data(off)
		if err != nil || !ok {
			return err
		}
		for off = from; off < to; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			p := buf[:min(spoolBytes, to-off)]
			if n, err := t.spool.ReadAt(p, off); n < len(p) {
				return err
			}
			if _, err := t.w.WriteAt(p, off); err != nil {
				return err
			}
			off += int64(len(p))
		}
	}
}

// close lets go of the spool. The disk is the upload's to close.
func (t *target) close() {
	if t.spool != nil {
		t.spool.Close()
		t.spool = nil
	}
}
