package clustertest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"vmimport/tasks"
)

// A tenant with many imports delays another's single one by a few, not by all.
func TestFairness(t *testing.T) {
	const many = 60
	c := startCluster(t, settings{apis: 2, workers: 3, concurrency: 2, bytesPerSecond: 64 << 20})
	busy, other := c.tenants[0], c.tenants[1]
	large := c.store.putSparse(busy.bucket(), "many.raw", 32<<20)
	single := c.store.putSparse(other.bucket(), "single.raw", 32<<20)
	var wg sync.WaitGroup
	for n := range many {
		wg.Go(func() {
			if _, err := busy.api().Register(t.Context(), busy.request(fmt.Sprintf("one of many, %d", n), large)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	before := busy.succeeded()
	asked := time.Now()
	id := other.register("single", single)
	end := other.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
	passed := busy.succeeded() - before
	t.Logf("the single import waited %s and ended after %s; meanwhile %d of the other tenant's %d ended",
		end.StartedAt.Sub(asked).Round(time.Millisecond), end.FinishedAt.Sub(asked).Round(time.Millisecond), passed, many)
	if end.State != tasks.Succeeded {
		t.Errorf("the single import is %s", end.State)
	}
	if before > many/2 {
		t.Errorf("%d of %d had ended before the single import was asked for, so little was tested", before, many)
	}
	// There are 6 slots: 6 imports ran, 6 were on their way to a worker, and 6 may
	// have run beside it.
	if passed >= 20 {
		t.Errorf("%d imports of the other tenant ended before the single one", passed)
	}
}

// succeeded counts the tenant's successful imports.
func (t *tenant) succeeded() int {
	t.cluster.t.Helper()
	n := 0
	for entry, err := range t.api().List(t.cluster.t.Context()) {
		if err != nil {
			t.cluster.t.Fatal(err)
		}
		if entry.State == tasks.Succeeded {
			n++
		}
	}
	return n
}
