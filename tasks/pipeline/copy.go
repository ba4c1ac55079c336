package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/decode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// copyDisks copies all disks, from where the checkpoint stands.
func (a importing) copyDisks(ctx context.Context, upload imageapi.Upload, cp checkpoint) ([]tasks.DiskResult, error) {
	var done []tasks.DiskResult
	disks, solid := 0, true
	for i, disk := range a.task.Disks {
		a.heart.disk.Store(int64(i) + 1)
		c := &objectCopy{attempt: a.attempt, upload: upload, first: disks + 1, disk: disk, finished: done, solid: solid}
		switch {
		case i < len(cp.Done):
			c.done = &cp.Done[i]
		case i == len(cp.Done):
			c.mark, c.positions = cp.Mark, cp.Positions
		}
		res, resumed, err := c.run(ctx)
		if err != nil {
			return nil, &tasks.DiskError{Number: i + 1, Err: err}
		}
		if !resumed {
			cp = checkpoint{} // what came after this object stands on nothing
		}
		done = append(done, *res)
		disks += len(res.VirtualSizes)
		solid = c.solid
	}
	return done, nil
}

// objectCopy brings the disks of one object into the image.
type objectCopy struct {
	*attempt
	upload   imageapi.Upload
	first    int // number of the first of its disks in the image, from 1
	disk     tasks.Disk
	finished []tasks.DiskResult // of the objects before this one
	// solid is whether a later attempt can go on from what was written: of the objects
	// before this one, and of this one when it has ended.
	solid bool

	// What an earlier attempt got to: all of the object, or as far as the mark,
	// where its decoder had the positions.
	done      *tasks.DiskResult
	mark      *storage.Mark
	positions []diskimage.Position

	targets []*target
}

// errMismatch is the failure that the customer's own hash is for.
var errMismatch = fault.New(fault.Invalid, "checksum_mismatch", "Checksum of the image file does not match.").
	Try("Compute the SHA-1 of the file again, check that the upload is complete, and ask for the import again.")

// run returns what the object is once its disks are verified and durable, and whether
// it could go on from where an earlier attempt stood.
func (c *objectCopy) run(ctx context.Context) (res *tasks.DiskResult, resumed bool, err error) {
	c.heart.enter(tasks.StageInspecting)
	obj, err := c.region.Objects.Open(ctx, storage.Location(c.disk.Object))
	if err != nil {
		return nil, false, err
	}
	if obj.Version() != c.disk.Version || obj.Size() != c.disk.Bytes {
		return nil, false, storage.ErrChanged
	}
	if c.done != nil {
		if kept, err := c.keepDone(ctx); kept || err != nil {
			return c.done, kept, err
		}
	}
	// What is read of tables is read again, and does not count as moved.
	src, err := openSource(ctx, obj, c.disk.Format, c.limits(), c.reading(&storage.Stats{}))
	if err != nil {
		return nil, false, err
	}
	dec, err := decode.New(ctx, src, decode.Options{
		Limits:     c.limits(),
		Hashed:     c.disk.SHA1 != "",
		Spool:      func(n int64) (decode.Spool, error) { return c.r.opt.Spool(n) },
		Converting: func() { c.heart.enter(tasks.StageConverting) },
	})
	if err != nil {
		return nil, false, err
	}
	// On an error the disks are left open: the upload's Close lets go of them,
	// without making durable what is about to be removed.
	defer c.letGo(dec)
	if resumed, err = c.open(ctx, src, dec); err != nil {
		return nil, false, err
	}
	digests, err := c.transfer(ctx, obj, dec, resumed)
	if err != nil {
		return nil, false, err
	}
	sizes, err := dec.Finish()
	if err != nil {
		return nil, false, err
	}
	if c.disk.SHA1 != "" && c.disk.SHA1 != digests["sha1"] {
		return nil, false, errMismatch.Saw("expected %s, the object has %s", c.disk.SHA1, digests["sha1"])
	}
	for i, t := range c.targets {
		if t.spool != nil {
			c.heart.enter(tasks.StageConverting)
		}
		if err := t.finish(ctx, sizes[i]); err != nil {
			return nil, false, err
		}
	}
	c.heart.enter(tasks.StageVerifying)
	res = &tasks.DiskResult{Format: src.String(), ObjectBytes: obj.Size(), VirtualSizes: sizes, Digests: digests}
	return res, resumed, c.closeDisks()
}

func (c *objectCopy) letGo(dec *decode.Decoder) {
	dec.Close()
	for _, t := range c.targets {
		t.close()
	}
}

func (c *objectCopy) closeDisks() error {
	for _, t := range c.targets {
		if err := t.w.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (c *objectCopy) limits() formats.Limits {
	return limitsOf(c.region, c.task.TargetFormat, c.disk.MaxBytes)
}

// keepDone takes over the disks that an earlier attempt finished, if the image service
// still has them. If not they are open, and empty.
func (c *objectCopy) keepDone(ctx context.Context) (kept bool, err error) {
	exact := func(int) bool { return false }
	if err := c.openTargets(ctx, c.done.VirtualSizes, exact, c.disk.Bytes); err != nil {
		return false, err
	}
	for _, t := range c.targets {
		if !t.kept {
			return false, c.dropCheckpoint(ctx)
		}
	}
	c.goOn(c.disk.Bytes)
	return true, c.closeDisks()
}

// goOn counts what need not be read again.
func (c *objectCopy) goOn(at int64) {
	c.from += at
	c.heart.base.Add(at)
	c.log.Info().Int("disk", c.first).Int64("offset", at).Msg("going on from a checkpoint")
}

// open opens the disks in the image service, for going on if it still has what an
// earlier attempt wrote, and readies the decoder.
func (c *objectCopy) open(ctx context.Context, src *formats.Source, dec *decode.Decoder) (resumed bool, err error) {
	var at int64
	if c.mark != nil {
		at = c.mark.Offset
	}
	if len(c.targets) == 0 {
		sizes := make([]int64, len(src.Disks))
		for i := range src.Disks {
			sizes[i] = src.Bound(i, c.limits())
		}
		atMost := func(i int) bool { return src.Disks[i].Size == 0 || src.Disks[i].Gzip }
		if err := c.openTargets(ctx, sizes, atMost, at); err != nil {
			return false, err
		}
	}
	if err := c.prepare(dec); err != nil {
		return false, err
	}
	c.solid = c.solid && c.resumable(dec)
	resumed = at > 0 && c.resumable(dec) && len(c.positions) == len(c.targets)
	for _, t := range c.targets {
		resumed = resumed && t.kept
	}
	switch {
	case resumed:
		c.goOn(at)
	case at > 0:
		if err := c.dropCheckpoint(ctx); err != nil {
			return false, err
		}
		at, c.positions = 0, nil
	}
	outs := make([]io.WriterAt, len(c.targets))
	for i, t := range c.targets {
		outs[i] = t.out()
	}
	return resumed, dec.Begin(outs, at, c.positions)
}

// transfer moves the bytes and returns the object's digests.
func (c *objectCopy) transfer(ctx context.Context, obj storage.Object, dec *decode.Decoder, resumed bool) (map[string]string, error) {
	opt := c.reading(&c.heart.stats)
	if resumed {
		opt.Resume = c.mark
	}
	consume := dec.Take
	if c.solid {
		saver := startSaver(ctx, c)
		defer saver.stop()
		opt.OnMark = saver.offer
		consume = func(off int64, p []byte) error {
			if err := dec.Take(off, p); err != nil {
				return err
			}
			saver.note(off+int64(len(p)), dec.Mark())
			return nil
		}
	}
	c.heart.enter(tasks.StageCopying)
	digests, err := storage.Fetch(ctx, obj, opt, consume)
	if errors.Is(err, storage.ErrBadMark) {
		// A worker with other digests made it. The next attempt starts over.
		err = errors.Join(err, c.dropCheckpoint(ctx))
	}
	return digests, err
}

// resumable tells whether a later attempt can go on from a mark of this one.
func (c *objectCopy) resumable(dec *decode.Decoder) bool {
	for _, t := range c.targets {
		if !t.resumable() {
			return false
		}
	}
	return dec.Resumable() && !c.upload.Streams()
}

// limitsOf are those of a region, of the format that disks are stored in, and of the
// request, which may set none (0).
func limitsOf(region Region, format string, asked int64) formats.Limits {
	most := min(cmp.Or(region.MaxDisk, diskimage.MaxDiskBytes), cmp.Or(asked, diskimage.MaxDiskBytes))
	if format == targetQCOW2 {
		most = min(most, qcow2.MaxWriteBytes)
	}
	return formats.Limits{MaxDisk: most}
}

// openSource finds out what an object is, without reading its tables.
func openSource(ctx context.Context, obj storage.Object, declared string, limits formats.Limits, opt storage.Options) (*formats.Source, error) {
	f := diskimage.NewFile(storage.NewReaderAt(ctx, obj, opt), obj.Size())
	return formats.Open(f, diskimage.ParseDeclared(declared), limits)
}

// factsOf lists the disks of the image with what they were made of.
func factsOf(objects []tasks.DiskResult) []imageapi.DiskFacts {
	var facts []imageapi.DiskFacts
	for _, o := range objects {
		for _, size := range o.VirtualSizes {
			props := map[string]string{"source_format": o.Format, "source_size": fmt.Sprint(o.ObjectBytes)}
			for name, sum := range o.Digests {
				props["source_"+name] = sum
			}
			facts = append(facts, imageapi.DiskFacts{VirtualSize: size, Properties: props})
		}
	}
	return facts
}
