package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// checkpoint is the point from which the next attempt can go on: the disks that
// were finished, and how far the next one got.
type checkpoint struct {
	Done []tasks.DiskResult `json:"done"`
	Mark *storage.Mark      `json:"mark"`
}

// loadCheckpoint reads what an earlier attempt saved. What it cannot read, such as
// the words of another version, is removed from the record as well: it must not
// outlive what this attempt is about to write, for an attempt that can read it
// would take the one for the other.
func (a *attempt) loadCheckpoint(ctx context.Context, saved []byte) (cp checkpoint, err error) {
	if len(saved) == 0 {
		return cp, nil
	}
	dec := json.NewDecoder(bytes.NewReader(saved))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cp); err != nil || cp.Mark == nil || len(cp.Done) >= len(a.imp.Disks) {
		a.log.Warn().Err(err).Msg("checkpoint of another version is dropped")
		return checkpoint{}, a.r.claims.SaveCheckpoint(ctx, a.held, nil, 0)
	}
	return cp, nil
}

// copyDisks copies all disks, from where the checkpoint stands.
func (a *attempt) copyDisks(ctx context.Context, upload imageapi.Upload, cp checkpoint) ([]tasks.DiskResult, error) {
	var done []tasks.DiskResult
	for i, disk := range a.imp.Disks {
		a.heart.disk.Store(int64(i) + 1)
		c := &diskCopy{attempt: a, upload: upload, n: i + 1, disk: disk, finished: done}
		switch {
		case i < len(cp.Done):
			c.done = &cp.Done[i]
		case i == len(cp.Done):
			c.mark = cp.Mark
		}
		res, resumed, err := c.run(ctx)
		if err != nil {
			return nil, err
		}
		if !resumed {
			cp = checkpoint{} // what came after this disk stands on nothing
		}
		done = append(done, *res)
	}
	return done, nil
}

// diskCopy brings one disk from its object into the image.
type diskCopy struct {
	*attempt
	upload   imageapi.Upload
	n        int // from 1
	disk     tasks.Disk
	finished []tasks.DiskResult // disks before this one

	// What an earlier attempt got to: all of the disk, or as far as the mark.
	done *tasks.DiskResult
	mark *storage.Mark
}

// errMismatch is the failure that the customer's own hash is for.
var errMismatch = fault.New(fault.Invalid, "checksum_mismatch", "Checksum of the image file does not match.").
	Try("Compute the SHA-1 of the file again, check that the upload is complete, and ask for the import again.")

// run returns what the disk is once it is verified and durable, and whether it
// could go on from where an earlier attempt stood.
func (c *diskCopy) run(ctx context.Context) (res *tasks.DiskResult, resumed bool, err error) {
	c.heart.enter(tasks.StageInspecting)
	obj, err := c.region.Objects.Open(ctx, storage.Location(c.disk.Object))
	if err != nil {
		return nil, false, err
	}
	if obj.Version() != c.disk.Version || obj.Size() != c.disk.Bytes {
		return nil, false, storage.ErrChanged
	}
	format, size, err := inspect(ctx, obj, c.disk.Format)
	if err != nil {
		return nil, false, err
	}
	w, resumed, err := c.open(ctx, size)
	if err != nil {
		return nil, false, err
	}
	if resumed && c.done != nil {
		return c.done, true, w.Close()
	}
	// On an error w is left open: the upload's Close lets go of it, without
	// making durable what is about to be removed.
	digests, err := c.transfer(ctx, obj, w, resumed)
	if err != nil {
		return nil, false, err
	}
	c.heart.enter(tasks.StageVerifying)
	if c.disk.SHA1 != "" && c.disk.SHA1 != digests["sha1"] {
		return nil, false, errMismatch.Saw("expected %s, the object has %s", c.disk.SHA1, digests["sha1"])
	}
	res = &tasks.DiskResult{Format: string(format), ObjectBytes: obj.Size(), VirtualSize: size, Digests: digests}
	return res, resumed, w.Close()
}

// open opens the disk in the image service, for going on if it still has what
// an earlier attempt wrote.
func (c *diskCopy) open(ctx context.Context, size int64) (w imageapi.DiskWriter, resumed bool, err error) {
	resume, read := int64(0), int64(0)
	switch {
	case c.done != nil:
		resume, read = size, c.disk.Bytes
	case c.mark != nil:
		resume, read = c.mark.Offset, c.mark.Offset
	}
	w, ok, err := c.upload.Disk(ctx, c.n, size, resume)
	switch {
	case err != nil || resume == 0:
		return w, false, err
	case ok:
		c.from += read
		c.heart.base.Add(read)
		c.log.Info().Int("disk", c.n).Int64("offset", read).Msg("going on from a checkpoint")
		return w, true, nil
	}
	// The checkpoint is of no use. It must be gone before this attempt's first
	// Sync: after that an image service cannot tell any more that the checkpoint
	// is about bytes which an earlier attempt wrote.
	return w, false, c.r.claims.SaveCheckpoint(ctx, c.held, nil, 0)
}

// transfer moves the bytes and returns the object's digests.
func (c *diskCopy) transfer(ctx context.Context, obj storage.Object, w imageapi.DiskWriter, resumed bool) (map[string]string, error) {
	opt := c.r.opt.Fetch
	opt.Stats = &c.heart.stats
	if resumed {
		opt.Resume = c.mark
	}
	saver := startSaver(ctx, c, w)
	defer saver.stop()
	opt.OnMark = saver.offer
	c.heart.enter(tasks.StageCopying)
	digests, err := storage.Fetch(ctx, obj, opt, func(off int64, p []byte) error {
		_, err := w.WriteAt(p, off)
		return err
	})
	if errors.Is(err, storage.ErrBadMark) {
		// A worker with other digests made it. The next attempt starts over.
		err = errors.Join(err, c.r.claims.SaveCheckpoint(ctx, c.held, nil, 0))
	}
	return digests, err
}

// saver makes marks durable and then records them, beside the transfer and
// never in its way: while it is busy, a newer mark takes the place of an older.
type saver struct {
	copy  *diskCopy
	w     imageapi.DiskWriter
	marks chan storage.Mark
	ended chan struct{}
}

func startSaver(ctx context.Context, c *diskCopy, w imageapi.DiskWriter) *saver {
	s := &saver{copy: c, w: w, marks: make(chan storage.Mark, 1), ended: make(chan struct{})}
	go s.run(ctx)
	return s
}

// offer does not block. Its calls do not overlap, so that nobody else can take
// the place that it has made.
func (s *saver) offer(m storage.Mark) {
	select {
	case <-s.marks:
	default:
	}
	s.marks <- m
}

func (s *saver) stop() {
	close(s.marks)
	<-s.ended
}

func (s *saver) run(ctx context.Context) {
	defer close(s.ended)
	for m := range s.marks {
		if !s.worthSaving(ctx) {
			continue
		}
		err := s.save(context.WithoutCancel(ctx), m)
		switch {
		case fault.KindOf(err) == fault.Fenced:
			s.copy.heart.stop(tasks.ErrClaimLost)
		case err != nil:
			// It only makes a later attempt start further back; a disk that
			// cannot be synced is found by its Close.
			s.copy.log.Warn().Err(err).Msg("checkpoint not saved")
		}
	}
}

// worthSaving is false when no attempt will go on from here.
func (s *saver) worthSaving(ctx context.Context) bool {
	cause := context.Cause(ctx)
	return cause == nil || errors.Is(cause, tasks.ErrDraining) || errors.Is(cause, tasks.ErrTaskLost)
}

func (s *saver) save(ctx context.Context, m storage.Mark) error {
	if err := s.w.Sync(); err != nil {
		return err
	}
	b, err := json.Marshal(checkpoint{Done: s.copy.finished, Mark: &m})
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	reached := m.Offset
	for _, d := range s.copy.finished {
		reached += d.ObjectBytes
	}
	ctx, cancel := context.WithTimeout(ctx, s.copy.r.opt.Lease)
	defer cancel()
	if err := s.copy.r.claims.SaveCheckpoint(ctx, s.copy.held, b, reached); err != nil {
		return err
	}
	// As in the record: what follows is judged by it, once the saver has ended.
	if imp := s.copy.imp; reached > imp.Furthest {
		imp.Furthest, imp.Setbacks, imp.Crashes = reached, 0, 0
	}
	return nil
}

// inspect finds out what an object is, and the size of the disk it holds.
func inspect(ctx context.Context, obj storage.Object, declared string) (diskimage.Format, int64, error) {
	format, err := diskimage.Inspect(&objectReader{ctx, obj}, obj.Size(), diskimage.Format(declared))
	if err != nil {
		return "", 0, err
	}
	return format, diskimage.VirtualSize(obj.Size()), nil
}

// objectReader is an object as an io.ReaderAt, for the few small reads of an
// inspection, in one call of which ctx lives.
type objectReader struct {
	ctx context.Context
	obj storage.Object
}

func (r *objectReader) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), r.obj.Size()-off)
	if n <= 0 {
		return 0, io.EOF
	}
	body, err := r.obj.ReadRange(r.ctx, off, n)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	got, err := io.ReadFull(body, p[:n])
	if err == nil && n < int64(len(p)) {
		err = io.EOF
	}
	return got, err
}

func factsOf(disks []tasks.DiskResult) []imageapi.DiskFacts {
	facts := make([]imageapi.DiskFacts, len(disks))
	for i, d := range disks {
		props := map[string]string{"source_format": d.Format, "source_size": fmt.Sprint(d.ObjectBytes)}
		for name, sum := range d.Digests {
			props["source_"+name] = sum
		}
		facts[i] = imageapi.DiskFacts{VirtualSize: d.VirtualSize, Properties: props}
	}
	return facts
}
