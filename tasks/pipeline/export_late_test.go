package pipeline

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/internal/scratch"
	"vmimport/storage"
	"vmimport/storage/dirstore"
	"vmimport/tasks"
)

// What a worker does that was only taken for dead comes to nothing, also if the export has ended
// meanwhile.
func TestExportLateWorker(t *testing.T) {
	for name, pause := range map[string]func(r *exportRig, meanwhile func()){
		"within a part": func(r *exportRig, meanwhile func()) {
			var paused atomic.Bool
			r.target.putPart = func(_ context.Context, p storage.Part) error {
				if p.Number == 2 && !paused.Swap(true) {
					meanwhile()
				}
				return nil
			}
		},
		"within a small object": func(r *exportRig, meanwhile func()) {
			var paused atomic.Bool
			r.target.putNew = func(string) error {
				if !paused.Swap(true) { // the next worker comes here, too
					meanwhile()
				}
				return nil
			}
		},
		"within the last step": func(r *exportRig, meanwhile func()) {
			var paused atomic.Bool
			r.target.join = func() error {
				if !paused.Swap(true) { // the next worker comes here, too
					meanwhile()
				}
				return nil
			}
		},
	} {
		t.Run(name+", canceled meanwhile", func(t *testing.T) {
			r := newExportRig(t)
			spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormVMDK)
			pause(r, func() {
				r.expire(spec)
				r.cancel(spec)
				if outcome := r.handle(spec); outcome != string(tasks.Canceled) {
					t.Errorf("the next worker: %s", outcome)
				}
			})
			if outcome := r.handle(spec); outcome != tasks.OutcomeLost {
				t.Errorf("the late worker: %s", outcome)
			}
			r.wantNoFiles(spec, tasks.Canceled, "")
		})
		t.Run(name+", finished meanwhile", func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			spec := r.ask(r.image("raw", content), tasks.FormVMDK)
			pause(r, func() {
				r.expire(spec)
				if outcome := r.handle(spec); outcome != string(tasks.Succeeded) {
					t.Errorf("the next worker: %s", outcome)
				}
			})
			if outcome := r.handle(spec); outcome != tasks.OutcomeLost {
				t.Errorf("the late worker: %s", outcome)
			}
			if _, err := r.target.Target.(*dirstore.Store).Sweep(t.Context(), func(string) (bool, error) { return false, nil }); err != nil {
				t.Error(err)
			}
			r.wantExport(spec, content)
		})
	}
}

// What is dropped since its bytes are wrong does not come back, however slow the store is.
func TestExportDropsItsCheckpoint(t *testing.T) {
	r := newExportRig(t)
	spec := r.ask(r.image("raw", disk(1, exportSize)), tasks.FormCloud)
	r.source.wrap = withFacts(func(f *imageapi.Facts) { f.HashName, f.Hash = "md5", md5Hex(nil) })
	r.claims = &lateSaves{Claims: r.store}
	if outcome := r.handle(spec); outcome != tasks.OutcomeRetry {
		t.Errorf("outcome %s", outcome)
	}
	if cp, ok := r.checkpointOf(spec); ok {
		t.Errorf("left is %+v", cp)
	}
}

// lateSaves lets each checkpoint but the empty one wait for one that comes after it, or for the
// end of its patience.
type lateSaves struct{ tasks.Claims }

func (s *lateSaves) SaveCheckpoint(ctx context.Context, h tasks.Held, checkpoint []byte, reached int64) error {
	if checkpoint != nil {
		late := time.NewTimer(30 * time.Millisecond)
		defer late.Stop()
		<-late.C
	}
	return s.Claims.SaveCheckpoint(ctx, h, checkpoint, reached)
}

// All parts are stored, and a worker whose encoder writes something else comes to publish them.
func TestExportIsPublishedAsItWasWritten(t *testing.T) {
	for _, form := range []tasks.Form{tasks.FormCloud, tasks.FormVMDK} {
		t.Run(string(form), func(t *testing.T) {
			r := newExportRig(t)
			content := disk(1, exportSize)
			spec := r.ask(r.image("raw", content), form)
			r.claims = &meddling{Claims: r.store, succeed: func() error { r.expire(spec); return tasks.ErrFenced }}
			r.handle(spec)
			r.claims = r.store
			cp, ok := r.checkpointOf(spec)
			if !ok || cp.Whole == nil {
				t.Fatalf("the checkpoint is %+v", cp)
			}
			cp.Encoder--
			b, err := json.Marshal(cp)
			if err != nil {
				t.Fatal(err)
			}
			r.redis.Client().HSet(t.Context(), "vmimport:{d1}:import:"+string(spec.ID), "checkpoint", b)
			r.opt.Fetch.MarkEvery = 3 * chunk
			r.handle(spec)
			r.wantExport(spec, content)
			last := r.get(spec).Attempts[1]
			if last.FromBytes != exportSize || last.DoneBytes != exportSize {
				t.Errorf("last attempt %+v", last)
			}
		})
	}
}

// The next worker has chunks of another length. It saves checkpoints as well.
func TestExportGoesOnWithOtherChunks(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, exportSize)
	spec := r.ask(r.image("raw", content), tasks.FormVMDK)
	r.target.putPart = func(_ context.Context, p storage.Part) error {
		if p.Number == 3 {
			return storage.ErrFull
		}
		return nil
	}
	r.handle(spec)
	r.pool = storage.NewPool(8*3*chunk, 3*chunk)
	r.opt.Fetch.Pool = r.pool
	r.opt.Fetch.MarkEvery = chunk
	r.target.putPart = nil
	saves := &countedSaves{Claims: r.store}
	r.claims = saves
	r.handle(spec)
	r.wantExport(spec, content)
	if saves.n.Load() < 2 {
		t.Errorf("%d checkpoints", saves.n.Load())
	}
}

type countedSaves struct {
	tasks.Claims
	n atomic.Int64
}

func (s *countedSaves) SaveCheckpoint(ctx context.Context, h tasks.Held, checkpoint []byte, reached int64) error {
	s.n.Add(1)
	return s.Claims.SaveCheckpoint(ctx, h, checkpoint, reached)
}

// An image may say anything of itself.
func TestExportOfAStrangeImage(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, diskSize)
	imageID := r.image("raw", content)
	r.source.wrap = withFacts(func(f *imageapi.Facts) {
		f.Record, f.MinRAM, f.OSType = json.RawMessage(`{"hw_firmware_type": "<UEFI>"}`), -1, "\u202e"
	})
	spec := r.ask(imageID, tasks.FormVMDK)
	r.handle(spec)
	r.wantExport(spec, content)
}

// There is room for one part at a time. The export waits for its own.
func TestExportInLittleRoom(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, exportSize)
	spec := r.ask(r.image("raw", content), tasks.FormCloud)
	var out atomic.Int64
	reserve := r.opt.Spool
	r.opt.Spool = func(n int64) (Spool, error) {
		if out.Load() > 0 {
			return nil, scratch.ErrFull
		}
		s, err := reserve(n)
		if err == nil {
			out.Add(1)
			s = lent{s, func() { out.Add(-1) }}
		}
		return s, err
	}
	if outcome := r.handle(spec); outcome != string(tasks.Succeeded) {
		t.Errorf("outcome %s", outcome)
	}
	r.wantExport(spec, content)
}

// lent is a spool that says when it is given back.
type lent struct {
	Spool
	back func()
}

func (l lent) Close() error {
	defer l.back()
	return l.Spool.Close()
}
