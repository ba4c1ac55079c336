package clustertest

import (
	"testing"
	"time"

	"vmimport/tasks"
)

// A worker that is killed is missed, and one that is stopped says so; either
// way another goes on soon, from the last checkpoint.
func TestTakeover(t *testing.T) {
	t.Parallel()
	const (
		chunk      = 4 << 20 // all as by default
		parallel   = 16
		checkpoint = 64 << 20
		// Ranges in flight are lost with their worker, and so is what came
		// after the last checkpoint, while the next one was being written.
		mostAgain = (parallel+2)*chunk + 2*checkpoint
	)
	size, pace := int64(512<<20), int64(48<<20)
	if *soak {
		size, pace = 4<<30, 256<<20
	}
	c := startCluster(t, settings{apis: 1, workers: 3, bytesPerSecond: pace})
	tn := c.tenants[0]
	o := c.store.putSparse(tn.bucket(), "large.raw", size)
	c.store.sum(tn.bucket(), o)
	id := tn.register("taken over", o)
	reached := func(percent int) *tasks.Task {
		t.Helper()
		return tn.await(id, time.Minute, func(imp *tasks.Task) bool {
			return imp.State == tasks.Processing && imp.Progress >= percent && imp.DoneBytes >= size*int64(percent)/100
		})
	}
	claimed := func(epoch tasks.Epoch) *tasks.Task {
		t.Helper()
		return tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.Epoch == epoch })
	}

	first := reached(40)
	killed := time.Now()
	(*c.place(first.Worker)).Kill()
	second := claimed(2)
	took := time.Since(killed)
	t.Logf("claimed by another worker %s after its worker was killed", took.Round(10*time.Millisecond))
	if took > 20*time.Second {
		t.Errorf("takeover took %s", took)
	}

	reached(70)
	stopped := time.Now()
	if code, took := (*c.place(second.Worker)).Stop(2 * drainTimeout); code != 0 || took > drainTimeout {
		t.Errorf("the worker ended with exit code %d, %s after SIGTERM", code, took)
	}
	third := claimed(3)
	took = third.ClaimedAt.Sub(stopped)
	t.Logf("claimed by another worker %s after its worker was told to stop", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("takeover took %s", took)
	}
	if third.Worker == second.Worker || second.Worker == first.Worker {
		t.Errorf("attempts ran in %s, %s, %s", first.Worker, second.Worker, third.Worker)
	}

	last := tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	if last.State != tasks.Succeeded || len(last.Attempts) != 3 {
		t.Fatalf("import %s: %+v\n%s", last.State, last.Attempts, c.explain(id))
	}
	for i, a := range last.Attempts {
		t.Logf("attempt %d, %s, read from %d MiB to %d MiB", i+1, a.Outcome, a.FromBytes>>20, a.DoneBytes>>20)
		if i > 0 && a.FromBytes == 0 {
			t.Errorf("attempt %d began at the start", i+1)
		}
	}
	again := c.link.Received.Load() - size
	t.Logf("%d MiB of %d MiB were read again, for two takeovers", again>>20, size>>20)
	if again > 2*mostAgain {
		t.Errorf("%d bytes were read again, want at most %d", again, 2*mostAgain)
	}
	if _, err := checkImage(c.images+"/"+last.ImageID, o); err != nil {
		t.Error(err)
	}
	c.checkNothingLeft()
	c.checkLogs()
}
