package pipeline

import (
	"context"
	"errors"
	"strings"
	"testing"

	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

// TestDrainAndResume stops a worker in the middle in both ways, and counts what
// the next one reads.
func TestDrainAndResume(t *testing.T) {
	for _, cause := range []error{tasks.ErrDraining, tasks.ErrClaimLost} {
		t.Run(cause.Error(), func(t *testing.T) {
			r := newRig(t)
			a, b := disk(1, diskSize), disk(2, diskSize)
			spec := r.accept(a, b)
			second := spec.Disks[1].Object
			r.objects.with(func(o storage.Object) storage.Object {
				if want, err := r.memory.Open(t.Context(), storage.Location(second)); err == nil && want.Version() == o.Version() {
					return stallAt(diskSize - chunk)(o)
				}
				return o
			})
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			ended := make(chan string, 1)
			runner := r.runner()
			go func() {
				outcome, err := runner.Handle(ctx, spec.Ref())
				if err != nil {
					t.Error(err)
				}
				ended <- outcome
			}()
			r.until(spec, "most of disk 2", func(i *tasks.Task) bool { return i.DoneBytes >= 2*diskSize-2*chunk })
			r.untilSaved(spec, diskSize-markEvery-chunk)
			before := r.get(spec)
			stop(cause)
			outcome := <-ended
			after := r.get(spec)
			if errors.Is(cause, tasks.ErrDraining) {
				if outcome != tasks.OutcomeDrained || after.State != tasks.Queued || after.Setbacks != 0 {
					t.Errorf("outcome %q, state %s, %d setbacks", outcome, after.State, after.Setbacks)
				}
			} else {
				if outcome != tasks.OutcomeLost || after.State != tasks.Processing {
					t.Errorf("outcome %q, state %s", outcome, after.State)
				}
				r.expire(spec)
			}
			r.objects.with(func(o storage.Object) storage.Object { return o })
			counted := &counter{}
			r.opt.Observe = counted
			r.handle(spec)
			r.wantImage(spec, a, b)
			// At most one interval, its rounding, and what was in flight.
			if got := counted.received.Load(); got > chunk+markEvery+8*chunk {
				t.Errorf("the second attempt read %d bytes again", got)
			}
			end := r.get(spec)
			last := end.Attempts[len(end.Attempts)-1]
			if last.FromBytes < diskSize || end.Progress < before.Progress {
				t.Errorf("last attempt %+v; progress %d after %d", last, end.Progress, before.Progress)
			}
		})
	}
}

// TestCheckpointWithoutItsData takes away what a checkpoint is about.
func TestCheckpointWithoutItsData(t *testing.T) {
	r := newRig(t)
	a, b := disk(1, diskSize), disk(2, diskSize)
	mark := `"mark":{"offset":65536,"states":{}},"positions":[{"offset":0,"state":0}],"decoder":1`
	disk1 := `{"format":"raw","object_bytes":2097664,"virtual_sizes":[2097664],"digests":{"sha1":"x"}}`
	for name, cp := range map[string]string{
		"first disk":      `{"done":null,` + mark + `}`,
		"second disk":     `{"done":[` + disk1 + `],` + mark + `}`,
		"too many disks":  `{"done":[` + disk1 + `,` + disk1 + `],` + mark + `}`,
		"another version": `{"finished":[` + disk1 + `],` + mark + `}`,
		"no mark":         `{"done":[` + disk1 + `]}`,
		"another decoder": `{"done":null,` + strings.Replace(mark, `"decoder":1`, `"decoder":2`, 1) + `}`,
		"not JSON":        `half`,
	} {
		spec := r.accept(a, b)
		c, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.store.SaveCheckpoint(t.Context(), c.Held, []byte(cp), 65536); err != nil {
			t.Fatal(err)
		}
		r.expire(spec)
		t.Log(name)
		r.handle(spec)
		r.wantImage(spec, a, b)
	}
}

// TestCheckpointOfAnotherVersion has an attempt in the middle that cannot read
// the checkpoint of the first, and dies before it has one of its own. The third
// can read it, and must not take the second's file for the first's.
func TestCheckpointOfAnotherVersion(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	drain := func(stall int64, ready func()) {
		t.Helper()
		r.objects.with(stallAt(stall))
		ctx, stop := context.WithCancelCause(t.Context())
		defer stop(nil)
		go func() {
			ready()
			stop(tasks.ErrDraining)
		}()
		if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
			t.Fatalf("outcome %q, %v", outcome, err)
		}
	}
	rdb, key := r.redis.Client(), "vmimport:{d1}:import:"+string(spec.ID)
	saved := func() string { return rdb.HGet(t.Context(), key, "checkpoint").Val() }
	drain(diskSize-chunk, func() { r.until(spec, "a checkpoint", func(*tasks.Task) bool { return saved() != "" }) })
	first := saved()
	if err := rdb.HSet(t.Context(), key, "checkpoint", `{"version":7}`).Err(); err != nil {
		t.Fatal(err)
	}
	drain(chunk, func() { r.until(spec, "some bytes", func(i *tasks.Task) bool { return i.DoneBytes > 0 }) })
	if got := saved(); got != "" {
		t.Errorf("the record still has the checkpoint %s; the first was %s", got, first)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestDigestsChangeBetweenAttempts resumes under a configuration for which the
// checkpoint lacks a hash.
func TestDigestsChangeBetweenAttempts(t *testing.T) {
	r := newRig(t)
	a, b := disk(1, diskSize), disk(2, diskSize)
	spec := r.accept(a, b)
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	r.objects.with(func(o storage.Object) storage.Object {
		if second, err := r.memory.Open(t.Context(), storage.Location(spec.Disks[1].Object)); err == nil && second.Version() == o.Version() {
			return stallAt(diskSize - chunk)(o)
		}
		return o
	})
	go func() {
		r.untilSaved(spec, markEvery)
		stop(tasks.ErrDraining)
	}()
	if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.opt.Fetch.Digests = []string{"sha256"}
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	r.handle(spec)
	r.wantImage(spec, a, b)
	if d := r.get(spec).Result.Disks[1].Digests; d["sha256"] == "" {
		t.Errorf("digests %v", d)
	}
}

func TestPassingFailures(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 3
	r.opt.Fetch.MarkEvery = 2 * diskSize // no checkpoint, so nothing forgives
	b := disk(1, diskSize)
	spec, hopeless := r.accept(b), r.accept(b)
	down := errors.New("connection refused")
	r.objects.with(func(o storage.Object) storage.Object {
		return storagetest.Break(o, storagetest.FailOpen, diskSize/2, -1, down)
	})
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	task := r.get(spec)
	if task.State != tasks.Queued || task.Setbacks != 1 || task.Attempts[0].Cause.Code != "source_unreadable" {
		t.Errorf("%+v", task)
	}
	// It may get further by a checkpoint or two before it fails for good.
	for tries := 1; r.handle(hopeless) != "failed"; tries++ {
		if tries == r.opt.MaxSetbacks*diskSize/markEvery {
			t.Fatal("it is tried for ever")
		}
	}
	if f := r.get(hopeless).Failure; f == nil || f.Code != "source_unreadable" {
		t.Errorf("failure %+v", f)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestRedisAwayInTheMiddle takes Redis down while an import runs: it goes on,
// and finishes when Redis is back.
func TestRedisAwayInTheMiddle(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	reached, proceed := make(chan struct{}), make(chan struct{})
	r.claims = &meddling{Claims: r.store, beginPublish: func() {
		close(reached)
		<-proceed
	}}
	runner := r.runner()
	ended := make(chan string, 1)
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	<-reached
	r.redis.Kill()
	close(proceed)
	r.redis.Start()
	switch got := <-ended; got {
	case "succeeded":
	case tasks.OutcomeRetry: // BeginPublish met the gap
		r.claims = r.store
		r.handle(spec)
	default:
		t.Errorf("outcome %q", got)
	}
	r.wantImage(spec, b)
}

func TestQueueGivesTheTaskUp(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.objects.with(stallAt(diskSize / 2))
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	go func() {
		r.until(spec, "the middle", func(i *tasks.Task) bool { return i.DoneBytes > diskSize/3 })
		stop(tasks.ErrTaskLost)
	}()
	outcome, err := r.runner().Handle(ctx, spec.Ref())
	if task := r.get(spec); outcome != tasks.OutcomeDrained || err != nil || task.State != tasks.Queued || task.Crashes+task.Setbacks != 0 {
		t.Errorf("outcome %q, %v: %+v", outcome, err, task)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}

// TestAnOldHiccupDoesNotCount: setbacks that an import has left behind do not make
// the next one its last.
func TestAnOldHiccupDoesNotCount(t *testing.T) {
	r := newRig(t)
	r.opt.MaxSetbacks = 3
	b := disk(1, diskSize)
	spec := r.accept(b)
	down := errors.New("connection refused")
	r.objects.with(func(o storage.Object) storage.Object { return storagetest.Break(o, storagetest.FailOpen, 0, -1, down) })
	for range 2 {
		r.handle(spec)
	}
	r.objects.with(func(o storage.Object) storage.Object {
		return gate{o, func() error {
			r.until(spec, "forgiveness", func(i *tasks.Task) bool { return i.Setbacks == 0 })
			return down
		}}
	})
	if got := r.handle(spec); got != tasks.OutcomeRetry {
		t.Errorf("outcome %q", got)
	}
	if task := r.get(spec); task.Setbacks != 1 {
		t.Errorf("%d setbacks", task.Setbacks)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	r.wantImage(spec, b)
}
