package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

func TestCancelInTheMiddle(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(stallAt(diskSize / 2))
	runner := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	r.until(spec, "the middle", func(i *tasks.Task) bool { return i.DoneBytes > diskSize/3 })
	began := time.Now()
	if _, err := r.store.Cancel(t.Context(), scopeOf(spec), spec.ID); err != nil {
		t.Fatal(err)
	}
	runner.Cancel(spec.ID)
	if got := <-ended; got != "canceled" {
		t.Errorf("outcome %q", got)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the cancel took %s", took)
	}
	r.wantNothing(spec, tasks.Canceled, "")
	if runner.Running() != 0 {
		t.Errorf("%d attempts running", runner.Running())
	}
}

func TestPoison(t *testing.T) {
	r := newRig(t)
	r.opt.MaxCrashes = 2
	spec := r.accept(disk(1, diskSize))
	for range 2 {
		if _, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease); err != nil {
			t.Fatal(err)
		}
		r.expire(spec)
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "worker_crashed")
}

func TestPanic(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(func(o storage.Object) storage.Object { panic("boom") })
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	if task := r.get(spec); task.Attempts[0].Cause.Code != "internal_error" || strings.Contains(fmt.Sprint(task.Attempts[0].Cause), "boom") {
		t.Errorf("the customer is told %+v", task.Attempts[0].Cause)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestFencedWorkerStops(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(stallAt(diskSize - chunk))
	old := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := old.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	r.until(spec, "most of the disk", func(i *tasks.Task) bool { return i.DoneBytes > diskSize/2 })
	r.expire(spec) // while the old worker is alive and well
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	if got := <-ended; got != tasks.OutcomeLost {
		t.Errorf("the old worker ended with %q", got)
	}
	r.wantImage(spec, b)
}

func TestCancelJustBeforePublishing(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.claims = &meddling{Claims: r.store, beginPublish: func() {
		if _, err := r.store.Cancel(t.Context(), scopeOf(spec), spec.ID); err != nil {
			t.Error(err)
		}
	}}
	r.handle(spec)
	r.wantNothing(spec, tasks.Canceled, "")
}

func TestDeathBetweenPublishingAndFinishing(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	died := errors.New("died")
	r.claims = &meddling{Claims: r.store, succeed: func() error { return died }}
	if _, err := r.runner().Handle(t.Context(), spec.Ref()); !errors.Is(err, died) {
		t.Fatalf("Handle: %v", err)
	}
	if _, err := r.store.Cancel(t.Context(), scopeOf(spec), spec.ID); !errors.Is(err, tasks.ErrFinished) {
		t.Errorf("a cancel after publishing: %v", err)
	}
	r.expire(spec)
	r.claims = r.store
	r.objects.with(func(o storage.Object) storage.Object {
		t.Error("the object was read again")
		return o
	})
	r.handle(spec)
	r.wantImage(spec, b)
}

// A failover of the store may lose that an image was published. The image stays, and is not kept
// for a retry either if it cannot be told what is in it.
func TestPublishingThatTheStoreHasLost(t *testing.T) {
	for name, down := range map[string]bool{"read again": false, "unreadable": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.opt.Keep, r.opt.MaxSetbacks = time.Hour, 1
			b := disk(1, diskSize)
			spec := r.accept(b)
			r.claims = forgetful{r.store}
			if _, err := r.runner().Handle(t.Context(), spec.Ref()); !errors.Is(err, errForgotten) {
				t.Fatalf("Handle: %v", err)
			}
			r.expire(spec)
			r.claims = r.store
			if !down {
				r.handle(spec)
				r.wantImage(spec, b)
				return
			}
			r.breakAt(0)
			r.handle(spec)
			r.wantNothing(spec, tasks.Failed, "source_unreadable")
			if kept := r.get(spec).KeptUntil; !kept.IsZero() {
				t.Errorf("kept until %s", kept)
			}
		})
	}
}

// forgetful is a store that does not remember an end.
type forgetful struct{ tasks.Claims }

var errForgotten = errors.New("it is not being published")

func (forgetful) BeginPublish(context.Context, tasks.Held, *tasks.Result) error { return nil }

func (forgetful) Succeed(context.Context, tasks.Held, tasks.Attempt) error { return errForgotten }

// TestPublishedImageOutlivesCrashes: an image that was published is never taken
// back, however many workers died over it.
func TestPublishedImageOutlivesCrashes(t *testing.T) {
	r := newRig(t)
	r.opt.MaxCrashes = 1
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.claims = &meddling{Claims: r.store, succeed: func() error { return errors.New("died") }}
	if _, err := r.runner().Handle(t.Context(), spec.Ref()); err == nil {
		t.Fatal("no error")
	}
	r.expire(spec)
	r.claims = r.store
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestCleanUpIsRepeatedUntilItIsDone(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 2
	r.images = &stuck{r.images, 3}
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	for range 3 {
		if got := r.handle(spec); got != tasks.OutcomeLeftovers {
			t.Errorf("outcome %q", got)
		}
		r.objects.with(func(storage.Object) storage.Object { panic("a verdict is not tried again") })
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
}

func TestCanceledCleanUpIsRepeated(t *testing.T) {
	r := newRig(t)
	r.images = &stuck{r.images, 2}
	spec := r.accept(disk(1, diskSize))
	r.claims = &meddling{Claims: r.store, beginPublish: func() { r.cancel(spec) }}
	for range 2 {
		if got := r.handle(spec); got != tasks.OutcomeLeftovers {
			t.Errorf("outcome %q", got)
		}
	}
	if got := r.get(spec).State; got != tasks.Cancelling {
		t.Errorf("state %s", got)
	}
	r.handle(spec)
	r.wantNothing(spec, tasks.Canceled, "")
}

// TestCancelBehindAFailure cancels an import whose worker is about to give it
// back: the cancel does not wait for the next attempt.
func TestCancelBehindAFailure(t *testing.T) {
	r := newRig(t)
	r.opt.Backoff = func(int) time.Duration { return time.Hour }
	spec := r.accept(disk(1, diskSize))
	r.opt.BeatEvery = time.Hour
	r.objects.with(func(o storage.Object) storage.Object {
		broken := storagetest.Break(o, storagetest.FailOpen, diskSize/2+chunk, -1, errors.New("connection refused"))
		return replacing{broken, func(context.Context) { r.cancelOnce(spec) }}
	})
	if got := r.handle(spec); got != "canceled" {
		t.Errorf("outcome %q", got)
	}
	r.wantNothing(spec, tasks.Canceled, "")
}

// TestShutOutAttemptStopsReading lets another take the image over, while the
// record still says that the attempt holds the claim.
func TestShutOutAttemptStopsReading(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object {
		return replacing{o, func(ctx context.Context) {
			if err := r.images.Remove(t.Context(), string(spec.ID), spec.ImageID); err != nil {
				t.Error(err)
			}
			<-ctx.Done() // no more bytes: only the checkpoint can end it
		}}
	})
	r.opt.Fetch.MarkEvery = chunk
	outcome, err := r.runner().Handle(t.Context(), spec.Ref())
	if outcome != tasks.OutcomeLost || err != nil {
		t.Errorf("outcome %q, %v", outcome, err)
	}
}

// TestAWorkerGivenUpRemovesNothing: a worker lives on without knowing that another
// has finished the import, and then finds a reason to fail it.
func TestAWorkerGivenUpRemovesNothing(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	claims := &deaf{Claims: r.store}
	r.claims = claims
	r.opt.Fetch.MarkEvery = 2 * diskSize
	reached, proceed := make(chan struct{}), make(chan struct{})
	reach := sync.OnceFunc(func() { close(reached) })
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			reach()
			<-proceed
			return storage.ErrChanged
		}}
	})
	old, ended := r.runner(), make(chan string, 1)
	go func() {
		outcome, err := old.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	<-reached
	claims.cut.Store(true)
	r.expire(spec)
	r.claims = r.store
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	close(proceed)
	if got := <-ended; got != tasks.OutcomeLost {
		t.Errorf("the old worker ended with %q", got)
	}
	r.wantImage(spec, b)
}

// TestVerdictOutlivesItsWorker: the worker that found it dies while it cleans up.
func TestVerdictOutlivesItsWorker(t *testing.T) {
	r := newRig(t)
	r.images = &stuck{r.images, 1}
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	r.handle(spec)
	r.objects.with(func(storage.Object) storage.Object { panic("a verdict is not tried again") })
	if _, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease); err != nil {
		t.Fatal(err)
	}
	r.expire(spec)
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
}
