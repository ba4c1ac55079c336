package pipeline

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"vmimport/imageapi"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

// lane is a tenant's tasks under claims, and all that they need, in a bubble: a store
// without a server, and images that nobody looks at.
type lane struct {
	tasks.Claims
	object storage.Object
	pool   *storage.Pool
	opt    Options

	mu       sync.Mutex
	claimed  int
	canceled bool
	last     tasks.Progress
}

func newLane(object storage.Object, bytesPerSecond int64) *lane {
	pool := storage.NewPool(64<<20, 1<<20)
	return &lane{object: object, pool: pool, opt: Options{
		Fetch: storage.Options{Pool: pool},
		Policy: tasks.Policy{
			Default: tasks.Allowance{BytesPerSecond: 1},
			Tenants: map[tasks.Tenant]tasks.Allowance{"d1": {BytesPerSecond: bytesPerSecond}},
		},
		Log: zerolog.Nop(),
	}}
}

func (l *lane) runner() *Runner {
	return New(l, map[string]Region{region: {Objects: l, Images: nowhere{}}}, l.opt)
}

func (l *lane) spec() *tasks.Spec {
	return &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: "d1"}, Region: region, ImageID: "i", TargetFormat: "raw",
		Disks: []tasks.Disk{{Format: "raw", Bytes: l.object.Size(), Version: l.object.Version()}},
	}
}

func (l *lane) Claim(_ context.Context, ref tasks.Ref, _ string, _ time.Duration) (*tasks.Claimed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claimed++
	spec := l.spec()
	spec.ID = ref.ID
	return &tasks.Claimed{Task: &tasks.Task{Spec: *spec, State: tasks.Processing, Epoch: 1}, Held: tasks.Held{Ref: ref, Epoch: 1}}, nil
}

func (l *lane) Beat(_ context.Context, _ tasks.Held, p tasks.Progress, _ time.Duration) (tasks.Pulse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = p
	if l.canceled {
		return tasks.Pulse{State: tasks.Cancelling}, nil
	}
	return tasks.Pulse{State: tasks.Processing, Running: l.claimed}, nil
}

func (l *lane) progress() tasks.Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func (l *lane) end() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claimed--
	return nil
}

func (l *lane) SaveCheckpoint(context.Context, tasks.Held, []byte, int64) error { return nil }

func (l *lane) BeginPublish(context.Context, tasks.Held, *tasks.Result) error { return nil }

func (l *lane) Succeed(context.Context, tasks.Held, tasks.Attempt) error { return l.end() }

func (l *lane) Canceled(context.Context, tasks.Held, tasks.Attempt) error { return l.end() }

func (l *lane) Release(context.Context, tasks.Held, time.Duration, tasks.Attempt) error {
	return l.end()
}

func (l *lane) Open(context.Context, storage.Location) (storage.Object, error) { return l.object, nil }

// nowhere is an image service that keeps nothing.
type nowhere struct{ imageapi.Images }

func (nowhere) Get(context.Context, string) (*imageapi.Image, error) { return nil, imageapi.ErrNoImage }

func (nowhere) Begin(context.Context, imageapi.Spec) (imageapi.Upload, error) { return discard{}, nil }

func (nowhere) Remove(context.Context, string, string) error { return nil }

// discard is an upload, and its disks.
type discard struct {
	imageapi.Upload
	imageapi.DiskWriter
}

func (d discard) Disk(context.Context, imageapi.DiskSpec) (imageapi.DiskWriter, bool, error) {
	return d, false, nil
}

func (discard) Streams() bool { return false }

func (discard) Publish(context.Context, []imageapi.DiskFacts) error { return nil }

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func (discard) Resize(int64) error { return nil }

func (discard) Sync() error { return nil }

func (discard) Close() error { return nil }

// A tenant's tasks share what it is allowed, as many as there are.
func TestBandwidthIsShared(t *testing.T) {
	t.Parallel()
	const rate, size = 1e6, 10e6
	for _, n := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLane(storagetest.Paced(size, 20*time.Millisecond, 0), rate)
				r := l.runner()
				began := time.Now()
				var wg sync.WaitGroup
				for range n {
					wg.Go(func() {
						if outcome, err := r.Handle(t.Context(), l.spec().Ref()); outcome != string(tasks.Succeeded) || err != nil {
							t.Errorf("outcome %q, %v", outcome, err)
						}
						want := time.Duration(n) * 10 * time.Second
						if took := time.Since(began); took < want*9/10 || took > want*11/10 {
							t.Errorf("took %s, want %s", took, want)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// When one of two has ended, the other has all.
func TestBandwidthIsGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(storagetest.Paced(10e6, 0, 0), 1e6)
		r := l.runner()
		l.claimed = 1 // elsewhere
		go func() {
			time.Sleep(10 * time.Second) // of the bubble
			_ = l.end()
		}()
		began := time.Now()
		if _, err := r.Handle(t.Context(), l.spec().Ref()); err != nil {
			t.Error(err)
		}
		// Half of it in 10 s, and the rest in 5.
		if took := time.Since(began); took < 14*time.Second || took > 16500*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

// Who waits for bandwidth hears of a cancel as anybody else, holds no buffer, and is not taken
// for one that stalls.
func TestCancelWhileThrottled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(storagetest.Paced(10e6, 0, 0), 1)
		r, spec := l.runner(), l.spec()
		ended := make(chan string, 1)
		go func() {
			outcome, err := r.Handle(t.Context(), spec.Ref())
			if err != nil {
				t.Error(err)
			}
			ended <- outcome
		}()
		time.Sleep(time.Minute) // of the bubble
		if n := l.pool.InUse(); n != 0 {
			t.Errorf("holds %d buffers", n)
		}
		if p := l.progress(); p.Stalls+p.Retries != 0 || p.Stage != tasks.StageCopying {
			t.Errorf("progress is %+v", p)
		}
		l.mu.Lock()
		l.canceled = true
		l.mu.Unlock()
		began := time.Now()
		if outcome := <-ended; outcome != string(tasks.Canceled) {
			t.Errorf("outcome %q", outcome)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the cancel took %s", took)
		}
	})
}

// Whoever looks at a stall sees it while it lasts: that nothing comes, and that it is tried again.
func TestStallIsSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLane(storagetest.Break(storagetest.Paced(80e6, 0, 1e6), storagetest.StallBody, 20e6, -1, nil), 0)
		ctx, stop := context.WithCancelCause(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if outcome, err := l.runner().Handle(ctx, l.spec().Ref()); outcome != tasks.OutcomeDrained || err != nil {
				t.Errorf("outcome %q, %v", outcome, err)
			}
		}()
		fast := int64(0)
		var stalled, still time.Duration // since the start, when each was first seen
		for at := time.Duration(0); at < 40*time.Second; at += time.Second {
			time.Sleep(time.Second) // of the bubble
			p := l.progress()
			fast = max(fast, p.BytesPerSecond)
			if stalled == 0 && p.Stalls > 0 {
				stalled = at
			}
			if fast > 0 && still == 0 && p.BytesPerSecond == 0 {
				still = at
			}
		}
		if fast < 1e6 || still == 0 || stalled < still {
			t.Errorf("read at %d bytes a second; nothing came since %s, and stalls were counted since %s", fast, still, stalled)
		}
		before := l.progress().Stalls
		time.Sleep(20 * time.Second) // of the bubble
		if now := l.progress().Stalls; now <= before {
			t.Errorf("%d stalls, and %d later", before, now)
		}
		stop(tasks.ErrDraining)
		<-ended
	})
}

// An export pays for what it reads of a disk, and not for its holes.
func TestExportIsThrottled(t *testing.T) {
	r := newExportRig(t)
	content := disk(1, exportSize)
	imageID := r.image("qcow2", content)
	r.opt.Policy = tasks.Policy{Default: tasks.Allowance{BytesPerSecond: 1e6}}
	spec := r.ask(imageID, tasks.FormVMDK)
	began := time.Now()
	r.handle(spec)
	r.wantExport(spec, content)
	// A sixth of it is holes, and a quarter of a second is in advance.
	const least = exportSize*8/10*time.Microsecond - 250*time.Millisecond
	if took := time.Since(began); took < least {
		t.Errorf("took %s, less than %s", took, least)
	}
}
