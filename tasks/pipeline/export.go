package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmimport/imageapi"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/encode"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/guestorder"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// exporting is the job of writing an image as objects.
type exporting struct{ *attempt }

// errDamaged is worth another attempt, from the front: the bytes may have been changed on
// their way.
var errDamaged = fault.New(fault.Unavailable, "image_damaged",
	"What was read of the image is not what the image service has a hash of.")

func (a exporting) do(ctx context.Context, saved []byte) error {
	if a.region.Target == nil {
		return errNotServed.Saw("exports of region %s", a.task.Region)
	}
	if err := a.endure(); err != nil {
		return err
	}
	cp, err := a.loadCheckpoint(ctx, saved)
	if err != nil {
		return err
	}
	if cp.Whole == nil {
		if cp.Parts, cp.Whole, err = a.transfer(ctx, cp); err != nil {
			return err
		}
		if err := a.savePoint(ctx, cp, a.task.TotalBytes()); err != nil {
			return err
		}
	} else {
		a.goOn(a.task.TotalBytes(), cp)
	}
	files, err := besideOf(&a.task.Spec, cp.Whole)
	if err != nil {
		return err
	}
	a.heart.enter(tasks.StagePublishing)
	a.heart.beat(ctx) // the last figures, for the record of a success
	result := &tasks.Result{Objects: []tasks.ObjectResult{*cp.Whole}}
	for _, f := range files {
		result.Objects = append(result.Objects, tasks.ObjectResult{Name: f.name, Bytes: int64(len(f.content))})
	}
	for _, f := range files {
		if err := a.publish(ctx, result, func(ctx context.Context) error {
			return a.region.Target.PutNew(ctx, a.upload(), f.name, f.content)
		}); err != nil {
			return fmt.Errorf("store %s: %w", f.what, err)
		}
	}
	err = a.publish(ctx, result, func(ctx context.Context) error {
		return a.region.Target.Join(ctx, a.upload(), cp.Whole.Name, cp.Parts)
	})
	if errors.Is(err, storage.ErrPart) {
		// Parts have vanished. The next attempt starts over.
		return errors.Join(err, a.dropCheckpoint(ctx))
	}
	return err
}

// publish makes an object appear; that of the image is the last: who sees it finds the others.
// An earlier attempt may have done so already. The claim is looked at before each, for a store
// knows no epochs; and what is left is ended when it is lost, but not when the worker drains, which
// does not throw away an export at its last step.
func (a exporting) publish(ctx context.Context, result *tasks.Result, put func(context.Context) error) error {
	step, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := context.AfterFunc(ctx, func() {
		if cause := context.Cause(ctx); errors.Is(cause, tasks.ErrClaimLost) {
			end(cause)
		}
	})
	defer stop()
	if err := a.r.claims.BeginPublish(step, a.held, result); err != nil {
		return err
	}
	return put(step)
}

// goOn counts what need not be read again.
func (a exporting) goOn(at int64, cp exportCheckpoint) {
	a.from = at
	a.heart.base.Store(at)
	a.log.Info().Int64("offset", at).Int("parts", len(cp.Parts)).Msg("going on from a checkpoint")
}

// remove removes the objects and their parts.
func (a exporting) remove(ctx context.Context) error {
	if a.region.Target == nil {
		return errNotServed.Saw("exports of region %s", a.task.Region)
	}
	return a.region.Target.Discard(ctx, a.upload(), a.names()...)
}

func (a exporting) settle(ctx context.Context) error {
	return a.region.Target.Settle(ctx, a.upload(), a.names()...)
}

func (a exporting) upload() storage.Upload { return uploadOf(&a.task.Spec) }

func (a exporting) names() []string {
	image, beside := objectsOf(a.task.Name, a.task.Export)
	return append(beside, image)
}

// exportSource is what is read of an image.
type exportSource struct {
	storage.Object
	pad            int64 // zeros behind it, up to the end of the disk
	hashName, hash string
	sequential     *storage.SequentialObject // the Object, if it has to be read from its front
	metered        bool                      // what is read of a range is not its length
}

// close lets go of the image.
func (s *exportSource) close() {
	if s.sequential != nil {
		_ = s.sequential.Close() // only read
	}
}

// openImage opens the image in the order in which the encoder takes it.
func (a exporting) openImage(ctx context.Context) (*exportSource, error) {
	f, err := a.region.Images.Open(ctx, a.task.ImageID)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return nil, imageapi.ErrGone.Because(err)
	case err != nil:
		return nil, err
	case f.Version() != a.task.Export.Version || f.Size() != a.task.Export.Bytes:
		return nil, imageapi.ErrGone.Saw("another image of that id is there now")
	}
	facts := f.Facts()
	if !a.task.Export.Unpacks() {
		pad := max(0, encodingOf(a.task.Export).Size-f.Size())
		src := &exportSource{Object: f, pad: pad, hashName: facts.HashName, hash: facts.Hash}
		if facts.Streams {
			src.sequential = storage.Sequential(f, a.r.opt.Fetch.StallAfter)
			src.sequential.Throttle = &a.heart.throttle
			src.Object = src.sequential
		}
		return src, nil
	}
	if facts.Streams {
		return nil, errNoRanges
	}
	disk, err := openDisk(ctx, f, a.task.Export.Format, a.reading(&storage.Stats{})) // tables are read again
	if err != nil {
		return nil, err
	}
	ordered, err := guestorder.New(storage.Metered(f, &a.heart.throttle), disk)
	if err != nil {
		return nil, err
	}
	return &exportSource{Object: ordered, metered: true}, nil
}

// openDisk reads the header of an image's file, which is at its front.
func openDisk(ctx context.Context, f imageapi.File, format string, opt storage.Options) (*diskimage.Disk, error) {
	file := diskimage.NewFile(storage.NewReaderAt(ctx, f, opt), f.Size())
	if format == targetRaw {
		return diskimage.OpenRaw(file)
	}
	return formats.OpenDisk(file, diskimage.Format(format))
}

// transfer reads the image and stores all parts of its object.
func (a exporting) transfer(ctx context.Context, cp exportCheckpoint) ([]storage.Part, *tasks.ObjectResult, error) {
	a.heart.enter(tasks.StageInspecting)
	if err := a.region.Target.Vacant(ctx, a.upload(), a.names()...); err != nil {
		return nil, nil, err
	}
	src, err := a.openImage(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer src.close()
	t, digests, err := a.read(ctx, src, cp)
	// What follows may drop the checkpoint, and nothing saves one any more.
	switch {
	case errors.Is(err, storage.ErrBadMark): // a worker with other digests made it
		return nil, nil, errors.Join(err, a.dropCheckpoint(ctx))
	case err != nil:
		return nil, nil, err
	case src.hash != "" && digests[src.hashName] != src.hash:
		err := errDamaged.Saw("%s is %s, should be %s", src.hashName, digests[src.hashName], src.hash)
		return nil, nil, errors.Join(err, a.dropCheckpoint(ctx))
	}
	whole := &tasks.ObjectResult{Name: t.parts.name, Bytes: t.parts.offset, Digests: t.parts.digests()}
	if encodingOf(a.task.Export).Form == encode.Copy {
		whole.Digests = map[string]string{"sha1": digests["sha1"]}
	}
	return t.parts.all(), whole, nil
}

// read reads the image from where cp stands, and returns when all parts are stored and all that
// it began has ended.
func (a exporting) read(ctx context.Context, src *exportSource, cp exportCheckpoint) (t *transfer, digests map[string]string, err error) {
	t, work, err := a.begin(ctx, cp)
	if err != nil {
		return nil, nil, err
	}
	defer t.stop()
	a.heart.enter(tasks.StageCopying)
	if digests, err = storage.Fetch(work, src, t.fetchOptions(src), t.take); err != nil {
		return nil, nil, err
	}
	a.heart.enter(tasks.StageVerifying)
	return t, digests, t.finish(src.pad)
}

// transfer is one reading of an image, from a checkpoint to its end.
type transfer struct {
	exporting
	parts  *partWriter
	marks  *exportSaver
	enc    encode.Encoder
	resume *storage.Mark
	span   int64
	at     int64 // bytes of the image that the encoder has taken
}

// begin readies all that takes the image's bytes. It returns the context of the work, which
// also ends when a part cannot be stored.
func (a exporting) begin(ctx context.Context, cp exportCheckpoint) (*transfer, context.Context, error) {
	work, fail := context.WithCancelCause(ctx)
	opt := encodingOf(a.task.Export)
	t := &transfer{exporting: a, span: spanOf(a.task.Export, a.r.opt.Fetch), resume: cp.Mark}
	name, _ := objectsOf(a.task.Name, a.task.Export)
	t.parts = newPartWriter(work, fail, a, name, cp)
	t.parts.room = encode.Bound(opt.Form, opt.Size, t.span)
	if cp.Mark == nil {
		t.parts.leave(encode.HeadBytes(opt.Form, opt.Size))
	}
	if cp.Mark != nil {
		t.at = cp.Mark.Offset
		opt.State, opt.At, opt.Offset = cp.State, t.at, cp.Offset
		a.goOn(t.at, cp)
	}
	var err error
	if t.enc, err = encode.New(work, t.parts, opt); err != nil {
		fail(nil)
		return nil, nil, errors.Join(err, a.dropCheckpoint(ctx))
	}
	t.marks = startExportSaver(ctx, a, t.parts)
	return t, work, nil
}

// stop ends all that begin began.
func (t *transfer) stop() {
	t.enc.Close()
	t.parts.stop()
	t.marks.stop()
}

// endless is longer than any image takes.
const endless = 30 * 24 * time.Hour

func (t *transfer) fetchOptions(src *exportSource) storage.Options {
	opt := t.reading(&t.heart.stats)
	opt.Resume, opt.Metered = t.resume, src.metered
	opt.MarkEvery, opt.OnMark = t.span, t.marks.mark
	opt.Digests = nil
	if src.hash != "" {
		opt.Digests = []string{src.hashName}
	}
	if src.sequential != nil { // which has a watch of its own, and may pass over all of the image
		opt.Parallel, opt.StallAfter = 1, endless
	}
	return opt
}

// take is a storage.Consumer. A part ends at each multiple of the span.
func (t *transfer) take(off int64, p []byte) error {
	for len(p) > 0 {
		n := min(int64(len(p)), t.span-t.at%t.span)
		if _, err := t.enc.Write(p[:n]); err != nil {
			return err
		}
		t.at += n
		p = p[n:]
		if t.at%t.span == 0 {
			if err := t.cut(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cut ends a part.
func (t *transfer) cut() error {
	state, ok, err := t.enc.Cut()
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("encoder cannot be cut at %d", t.at)
	}
	if err := t.parts.seal(); err != nil {
		return err
	}
	return t.marks.cut(t.at, state)
}

// zeros fill a disk up to its last sector.
var zeros [diskimage.SectorBytes]byte

// finish stores what is left, and waits until the store has all.
func (t *transfer) finish(pad int64) error {
	for pad > 0 {
		n := min(pad, int64(len(zeros)))
		if _, err := t.enc.Write(zeros[:n]); err != nil {
			return err
		}
		pad -= n
	}
	head, err := t.enc.Finish()
	if err != nil {
		return err
	}
	if err := t.parts.seal(); err != nil {
		return err
	}
	if len(head) > 0 {
		if err := t.parts.front(head); err != nil {
			return err
		}
	}
	return t.parts.wait()
}
