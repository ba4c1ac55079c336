package pipeline

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/imageapi/dirimages"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

var errDown = errors.New("connection refused")

// breakAt makes the objects fail from an offset on, and the next failure the last.
func (r *rig) breakAt(at int64) {
	r.opt.MaxSetbacks = 1
	r.objects.with(func(o storage.Object) storage.Object {
		return storagetest.Break(o, storagetest.FailOpen, at, -1, errDown)
	})
}

// breakSaved makes them fail in the middle, when that much has been saved.
func (r *rig) breakSaved(spec *tasks.Spec) {
	r.opt.MaxSetbacks = 1
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			r.untilFurther(spec)
			return errDown
		}}
	})
}

func (r *rig) untilFurther(spec *tasks.Spec) {
	r.until(spec, "a checkpoint", func(i *tasks.Task) bool { return i.Furthest > 0 })
}

func (r *rig) mend() { r.objects.with(func(o storage.Object) storage.Object { return o }) }

// fail has an import fail for a passing reason when half of it was read.
func (r *rig) fail(content []byte) *tasks.Spec {
	r.t.Helper()
	r.opt.Keep = time.Hour
	spec := r.accept(content)
	r.breakSaved(spec)
	if outcome := r.handle(spec); outcome != string(tasks.Failed) {
		r.t.Fatalf("outcome %q", outcome)
	}
	r.mend()
	return spec
}

func (r *rig) retry(spec *tasks.Spec) {
	r.t.Helper()
	if err := r.store.Retry(r.t.Context(), scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
		r.t.Fatal(err)
	}
}

// wantKept checks that the import failed, and that what it has staged is there.
func (r *rig) wantKept(spec *tasks.Spec) {
	r.t.Helper()
	task := r.get(spec)
	if task.State != tasks.Failed || task.Failure == nil || task.Verdict != nil || task.Result != nil || task.KeptUntil.IsZero() {
		r.t.Errorf("import is %s, kept until %s, %+v", task.State, task.KeptUntil, task.Failure)
	}
	if kept, err := r.store.Unfinished(r.t.Context(), spec.ID); err != nil || !kept {
		r.t.Errorf("a sweep would remove it: %v", err)
	}
	if staged, err := filepath.Glob(filepath.Join(r.dir, ".staging", string(spec.ID), "*", "disk-1.raw")); err != nil || len(staged) != 1 {
		r.t.Errorf("staged is %q, %v", staged, err)
	}
}

// A retry goes on where the failed attempts have got to.
func TestRetryGoesOn(t *testing.T) {
	r := newRig(t)
	content := disk(1, diskSize)
	spec := r.fail(content)
	r.wantKept(spec)
	if code := r.get(spec).Failure.Code; code != "source_unreadable" {
		t.Errorf("failed as %s", code)
	}
	images, ok := r.images.(*dirimages.Images)
	if !ok {
		t.Fatal("no directory of images")
	}
	if n, err := images.Sweep(t.Context(), func(id string) (bool, error) { return r.store.Unfinished(t.Context(), tasks.ID(id)) }); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	furthest := r.get(spec).Furthest
	r.retry(spec)
	counted := &counter{}
	r.opt.Observe = counted
	r.handle(spec)
	r.wantImage(spec, content)
	if got, most := counted.received.Load(), diskSize-furthest; got > most {
		t.Errorf("read %d bytes, %d were left", got, most)
	}
	if last := r.get(spec).Attempts; last[len(last)-1].FromBytes != furthest {
		t.Errorf("went on from %d, not %d", last[len(last)-1].FromBytes, furthest)
	}
}

// A second failure keeps what is there by then, and the object's hash is made of all of it.
func TestRetryFailsAgain(t *testing.T) {
	r := newRig(t)
	content := disk(1, diskSize)
	spec := r.fail(content)
	for range 2 {
		r.retry(spec)
		r.breakAt(diskSize - chunk)
		if outcome := r.handle(spec); outcome != string(tasks.Failed) {
			t.Errorf("outcome %q", outcome)
		}
		r.wantKept(spec)
	}
	r.mend()
	r.retry(spec)
	r.handle(spec)
	r.wantImage(spec, content)
}

// The object is another one when the retry begins, or other bytes come: nothing is kept then.
func TestRetryKeepsNothingThatIsWrong(t *testing.T) {
	for code, spoil := range map[string]func(r *rig, spec *tasks.Spec){
		"object_changed": func(r *rig, spec *tasks.Spec) {
			r.memory.Put(storage.Location(spec.Disks[0].Object), disk(2, diskSize))
		},
		"checksum_mismatch": func(r *rig, spec *tasks.Spec) {
			r.objects.with(func(o storage.Object) storage.Object { return flippedAt{o, diskSize - 7} })
		},
	} {
		t.Run(code, func(t *testing.T) {
			r := newRig(t)
			spec := r.fail(disk(1, diskSize))
			r.retry(spec)
			spoil(r, spec)
			r.handle(spec)
			r.wantNothing(spec, tasks.Failed, code)
			if kept := r.get(spec).KeptUntil; !kept.IsZero() {
				t.Errorf("kept until %s", kept)
			}
		})
	}
}

// When the time is over a worker removes what was kept, however often that takes.
func TestKeepingEnds(t *testing.T) {
	r := newRig(t)
	spec := r.fail(disk(1, diskSize))
	if outcome := r.handle(spec); outcome != "" {
		t.Errorf("claimed before its time: %q", outcome)
	}
	r.wantKept(spec)
	later := redisstore.New(r.redis.Client(), redisstore.Options{
		Retention: 24 * time.Hour, Now: func() time.Time { return time.Now().Add(2 * time.Hour) },
	})
	r.claims = later
	r.objects.with(func(storage.Object) storage.Object { panic("nothing is read for a removal") })
	r.images = &stuck{r.images, 1}
	if outcome := r.handle(spec); outcome != tasks.OutcomeLeftovers {
		t.Errorf("outcome %q", outcome)
	}
	if err := r.store.Retry(t.Context(), scopeOf(spec), spec.ID, tasks.Limits{}); !errors.Is(err, tasks.ErrCleaning) {
		t.Errorf("a retry of what is being removed: %v", err)
	}
	if outcome := r.handle(spec); outcome != tasks.OutcomeRemoved {
		t.Errorf("outcome %q", outcome)
	}
	r.wantNothing(spec, tasks.Failed, "source_unreadable")
	if kept, err := r.store.Unfinished(t.Context(), spec.ID); kept || err != nil {
		t.Errorf("still kept: %v", err)
	}
	// It can be tried again, from the front.
	r.claims = r.store
	r.mend()
	r.retry(spec)
	r.handle(spec)
	r.wantImage(spec, disk(1, diskSize))
}

// Workers died over it, so that nobody has said why.
func TestPoisonIsKept(t *testing.T) {
	r := newRig(t)
	content := disk(1, diskSize)
	spec := r.accept(content)
	r.objects.with(stallAt(diskSize - chunk))
	ctx, kill := context.WithCancelCause(t.Context())
	defer kill(nil)
	go func() {
		r.until(spec, "a checkpoint", func(i *tasks.Task) bool { return i.Furthest > diskSize/2 })
		kill(tasks.ErrClaimLost)
	}()
	if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeLost || err != nil {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	r.expire(spec)
	r.opt.MaxCrashes, r.opt.Keep = 1, time.Hour
	r.handle(spec)
	r.wantKept(spec)
	if code := r.get(spec).Failure.Code; code != "worker_crashed" {
		t.Errorf("failed as %s", code)
	}
	r.mend()
	r.retry(spec)
	r.handle(spec)
	r.wantImage(spec, content)
}

// What must not be kept is removed, as if there was no keeping.
func TestNothingIsKept(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(r *rig, spec *tasks.Spec)
		code    string
	}{
		"without a checkpoint": {func(r *rig, _ *tasks.Spec) {
			r.opt.Fetch.MarkEvery = 2 * diskSize
			r.breakAt(diskSize - chunk)
		}, "source_unreadable"},
		"of a store that cannot go on": {func(r *rig, _ *tasks.Spec) {
			r.images = changed{r.images, upload{streams: true}}
			r.breakAt(diskSize - chunk)
		}, "source_unreadable"},
		"of a store that is full": {func(r *rig, spec *tasks.Spec) {
			r.opt.MaxSetbacks = 1
			r.images = changed{r.images, upload{write: func(off int64) error {
				if off < diskSize/2 {
					return nil
				}
				r.untilFurther(spec)
				return imageapi.ErrFull
			}}}
		}, "image_store_full"},
		"that another attempt has begun to publish": {func(r *rig, spec *tasks.Spec) {
			r.images = changed{r.images, upload{publish: errUnpublished}}
			if outcome := r.handle(spec); outcome != tasks.OutcomeRetry || r.get(spec).Result == nil {
				r.t.Fatalf("outcome %q: it has not begun to publish", outcome)
			}
			r.breakAt(diskSize - 1)
		}, "source_unreadable"},
		"that this attempt has begun to publish": {func(r *rig, _ *tasks.Spec) {
			r.opt.MaxSetbacks = 1
			r.images = changed{r.images, upload{publish: errUnpublished}}
		}, "image_store_failed"},
		"if the operator keeps nothing": {func(r *rig, spec *tasks.Spec) {
			r.opt.Keep = 0
			r.breakSaved(spec)
		}, "source_unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.opt.Keep = time.Hour
			spec := r.accept(disk(1, diskSize))
			tt.prepare(r, spec)
			r.handle(spec)
			r.wantNothing(spec, tasks.Failed, tt.code)
			if task := r.get(spec); !task.KeptUntil.IsZero() {
				t.Errorf("kept until %s", task.KeptUntil)
			}
		})
	}
}

// The API whose records stand for images has no retry.
func TestNothingIsKeptWithoutARetry(t *testing.T) {
	r := newRig(t)
	r.opt.Keep = time.Hour
	r.edit = func(s *tasks.Spec) { s.ListsImage = true }
	spec := r.accept(disk(1, diskSize))
	r.breakSaved(spec)
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "source_unreadable")
	if kept := r.get(spec).KeptUntil; !kept.IsZero() {
		t.Errorf("kept until %s", kept)
	}
}

var errUnpublished = fault.New(fault.Unavailable, "image_store_failed", "The image store failed.")

// changed is an image service whose uploads differ.
type changed struct {
	imageapi.Images
	upload upload
}

func (c changed) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	u := c.upload
	var err error
	u.Upload, err = c.Images.Begin(ctx, spec)
	return u, err
}

type upload struct {
	imageapi.Upload
	streams bool
	publish error
	write   func(off int64) error
}

func (u upload) Streams() bool { return u.streams }

func (u upload) Publish(ctx context.Context, disks []imageapi.DiskFacts) error {
	if u.publish != nil {
		return u.publish
	}
	return u.Upload.Publish(ctx, disks)
}

func (u upload) Disk(ctx context.Context, d imageapi.DiskSpec) (imageapi.DiskWriter, bool, error) {
	w, ok, err := u.Upload.Disk(ctx, d)
	return writer{w, u.write}, ok, err
}

type writer struct {
	imageapi.DiskWriter
	write func(off int64) error
}

func (w writer) WriteAt(p []byte, off int64) (int, error) {
	if w.write != nil {
		if err := w.write(off); err != nil {
			return 0, err
		}
	}
	return w.DiskWriter.WriteAt(p, off)
}

// Exports begin anew, and so leave nothing.
func TestExportsAreNotKept(t *testing.T) {
	r := newExportRig(t)
	r.opt.Keep, r.opt.MaxSetbacks = time.Hour, 1
	spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormCloud)
	r.target.putPart = func(_ context.Context, p storage.Part) error {
		if p.Number < 3 {
			return nil
		}
		r.untilFurther(spec)
		return storage.ErrUnavailable
	}
	r.handle(spec)
	r.wantNoFiles(spec, tasks.Failed, "object_store_unavailable")
	if kept := r.get(spec).KeptUntil; !kept.IsZero() {
		t.Errorf("kept until %s", kept)
	}
	r.target.putPart = nil
	r.retry(spec)
	r.handle(spec)
	r.wantExport(spec, disk(1, exportSize))
}

// A cancel that comes with the failure wins, and leaves nothing.
func TestCanceledInsteadOfKept(t *testing.T) {
	r := newRig(t)
	r.opt.Keep, r.opt.BeatEvery, r.opt.MaxSetbacks = time.Hour, time.Hour, 1
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			r.untilFurther(spec)
			r.cancelOnce(spec)
			return errDown
		}}
	})
	if outcome := r.handle(spec); outcome != string(tasks.Canceled) {
		t.Errorf("outcome %q", outcome)
	}
	r.wantNothing(spec, tasks.Canceled, "")
}

// flippedAt is an object with one wrong bit at an offset.
type flippedAt struct {
	storage.Object
	at int64
}

func (f flippedAt) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := f.Object.ReadRange(ctx, off, n)
	if err != nil || off > f.at || off+n <= f.at {
		return body, err
	}
	return &flippedBody{body, f.at - off}, nil
}
