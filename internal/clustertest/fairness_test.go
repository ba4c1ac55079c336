package clustertest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"vmimport/tasks"
)

// A tenant with a thousand imports delays another's single one by a few, not by all. The
// thousand need not end for that, and go down with their cluster.
func TestFairness(t *testing.T) {
	const (
		many   = 1000
		slots  = 4 // of 2 workers
		askers = 16
		// Two tickets are ahead of the free slots, and each of these may be given to an
		// import that was asked for earlier.
		few = slots + 2
	)
	// An import takes a second, since four share the link.
	c := startCluster(t, settings{apis: 2, workers: 2, concurrency: slots / 2, bytesPerSecond: 16 << 20})
	busy, other := c.tenants[0], c.tenants[1]
	object := c.store.putSparse(busy.bucket(), "many.raw", 4<<20)
	single := c.store.putSparse(other.bucket(), "single.raw", 4<<20)
	ids := make([]tasks.ID, many)
	var wg sync.WaitGroup
	for first := range askers {
		wg.Go(func() {
			for n := first; n < many; n += askers {
				id, err := busy.api().Register(t.Context(), busy.request(fmt.Sprintf("one of many, %d", n), object))
				if err != nil {
					t.Error(err)
					return
				}
				ids[n] = id
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	// By then all slots are taken.
	busy.await(ids[0], time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })

	asked := time.Now()
	id := other.register("single", single)
	end := other.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	if end.State != tasks.Succeeded {
		t.Errorf("the single import is %s: %+v", end.State, end.Failure)
	}
	before, passed, left := 0, 0, 0
	for _, id := range ids {
		imp, err := c.records.Get(t.Context(), busy.scope(), id)
		switch {
		case err != nil:
			t.Fatal(err)
		case imp.StartedAt.IsZero() || imp.StartedAt.After(end.StartedAt):
			left++
		case imp.StartedAt.Before(asked):
			before++
		default:
			passed++
		}
	}
	waited := end.StartedAt.Sub(asked)
	t.Logf("the single import waited %s; of the other tenant's %d, %d had started before, %d did meanwhile, and %d had not",
		waited.Round(time.Millisecond), many, before, passed, left)
	if left < many/2 {
		t.Errorf("only %d of %d were still waiting, so little was tested", left, many)
	}
	if passed > few {
		t.Errorf("%d imports of the other tenant started before the single one, want at most %d", passed, few)
	}
}
