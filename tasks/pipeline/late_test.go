package pipeline

import (
	"context"
	"sync"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/storage"
	"vmimport/tasks"
)

// A worker that was only taken for dead wakes up when its import has failed, and is kept, or was
// tried again and has succeeded. It takes nothing away.
func TestLateWorkerLeavesWhatIsKept(t *testing.T) {
	for name, tt := range map[string]struct {
		written bool // whether the late one had begun to write
		retried bool // before it wakes up
	}{
		"before it has written, kept":       {},
		"after it has written, kept":        {written: true},
		"after it has written, and retried": {written: true, retried: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := disk(1, diskSize)
			spec := r.accept(content)
			claims := &deaf{Claims: r.store}
			r.claims = claims
			reached, proceed := make(chan struct{}), make(chan struct{})
			pause := sync.OnceFunc(func() {
				close(reached)
				<-proceed
			})
			images := r.images
			if tt.written {
				r.objects.with(func(o storage.Object) storage.Object { return replacing{o, func(context.Context) { pause() }} })
			} else {
				r.images = &canceling{images, pause}
			}
			late, ended := r.runner(), make(chan string, 1)
			go func() {
				outcome, err := late.Handle(t.Context(), spec.Ref())
				if err != nil {
					t.Error(err)
				}
				ended <- outcome
			}()
			<-reached
			claims.cut.Store(true)
			r.expire(spec)
			r.claims, r.images, r.opt.Keep = r.store, images, time.Hour
			r.breakSaved(spec)
			r.handle(spec)
			r.wantKept(spec)
			r.mend()
			if tt.retried {
				r.retry(spec)
				r.handle(spec)
			}
			claims.cut.Store(false)
			close(proceed)
			if outcome := <-ended; outcome != tasks.OutcomeLost {
				t.Errorf("the late worker ended with %q", outcome)
			}
			if !tt.retried {
				r.wantKept(spec)
				r.retry(spec)
				r.handle(spec)
			}
			r.wantImage(spec, content)
		})
	}
}

// A worker that was only taken for dead wakes up when its import has failed, and was cleaned up
// after. What it has stored since is for a clean-up that shuts out a retry: by itself it might
// remove what the retry has made.
func TestLateWorkerHasItCleanedUp(t *testing.T) {
	for name, retried := range map[string]bool{"cleaned up": false, "retried": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := disk(1, diskSize)
			spec := r.accept(content)
			claims, images := &deaf{Claims: r.store}, r.images
			r.claims, r.images = claims, keeper{images, t}
			reached, proceed := make(chan struct{}), make(chan struct{})
			pause := sync.OnceFunc(func() {
				close(reached)
				<-proceed
			})
			r.objects.with(func(o storage.Object) storage.Object { return replacing{o, func(context.Context) { pause() }} })
			late, ended := r.runner(), make(chan string, 1)
			go func() {
				outcome, err := late.Handle(t.Context(), spec.Ref())
				if err != nil {
					t.Error(err)
				}
				ended <- outcome
			}()
			<-reached
			claims.cut.Store(true)
			r.expire(spec)
			r.claims, r.images = r.store, images
			r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
			if outcome := r.handle(spec); outcome != string(tasks.Failed) {
				t.Errorf("the next worker ended with %q", outcome)
			}
			claims.cut.Store(false)
			close(proceed)
			if outcome := <-ended; outcome != tasks.OutcomeLost {
				t.Errorf("the late worker ended with %q", outcome)
			}
			if !retried {
				if outcome := r.handle(spec); outcome != tasks.OutcomeRemoved {
					t.Errorf("the clean-up ended with %q", outcome)
				}
				r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
			}
			r.mend()
			r.retry(spec)
			r.handle(spec)
			r.wantImage(spec, content)
		})
	}
}

// keeper is an image service of which nothing may be removed.
type keeper struct {
	imageapi.Images
	t *testing.T
}

func (k keeper) Remove(context.Context, string, string) error {
	k.t.Error("it was removed")
	return nil
}

// A worker is slow to remove, and loses its claim over that. It breaks off: what it would remove next
// may be a retry's.
func TestCleanUpEndsWithTheClaim(t *testing.T) {
	r := newRig(t)
	content := disk(1, diskSize)
	spec := r.accept(content)
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	images := r.images
	late := &slow{Images: images, reached: make(chan struct{}), broken: make(chan struct{})}
	r.images = late
	runner, ended := r.runner(), make(chan string, 1)
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	<-late.reached
	r.images = images
	r.expire(spec)
	<-late.broken
	if outcome := <-ended; outcome != tasks.OutcomeLeftovers {
		t.Errorf("the late worker ended with %q", outcome)
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
	r.mend()
	r.retry(spec)
	r.handle(spec)
	r.wantImage(spec, content)
}

// slow is an image service whose first removal takes as long as it may.
type slow struct {
	imageapi.Images
	once            sync.Once
	reached, broken chan struct{}
}

func (s *slow) Remove(ctx context.Context, importID, imageID string) (err error) {
	s.once.Do(func() {
		close(s.reached)
		<-ctx.Done()
		close(s.broken)
		err = ctx.Err()
	})
	if err != nil {
		return err
	}
	return s.Images.Remove(ctx, importID, imageID)
}
