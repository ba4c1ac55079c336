package clustertest

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"vmimport/tasks"
)

// startLimited starts a cluster with limits, as the configuration has them.
func startLimited(t *testing.T, s settings, limits map[string]any) *cluster {
	t.Helper()
	apis, workers := s.apis, s.workers
	s.apis, s.workers = 0, 0
	c := startCluster(t, s)
	b, err := os.ReadFile(c.config)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	config["limits"] = limits
	if err := writeYAML(c.config, config); err != nil {
		t.Fatal(err)
	}
	for range apis {
		c.apis = append(c.apis, c.start("api"))
	}
	for range workers {
		c.workers = append(c.workers, c.start("worker"))
	}
	return c
}

// all waits until imports have succeeded, and returns them.
func (t *tenant) all(ids []tasks.ID) []*tasks.Task {
	t.cluster.t.Helper()
	var ends []*tasks.Task
	for _, id := range ids {
		end := t.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State.Final() })
		if end.State != tasks.Succeeded {
			t.cluster.t.Fatalf("import is %s: %+v\n%s", end.State, end.Failure, t.cluster.explain(id))
		}
		ends = append(ends, end)
	}
	return ends
}

// overlap counts the pairs of imports of which one was running while the other was.
func overlap(some, others []*tasks.Task) int {
	n := 0
	for _, a := range some {
		for _, b := range others {
			if a.ID != b.ID && a.StartedAt.Before(b.FinishedAt) && b.StartedAt.Before(a.FinishedAt) {
				n++
			}
		}
	}
	return n
}

// A tenant that may have one import running has one running, also with slots to spare,
// and another tenant goes on beside it.
func TestRunningLimit(t *testing.T) {
	t.Parallel()
	const each = 5
	c := startLimited(t, settings{apis: 1, workers: 2, concurrency: 2, bytesPerSecond: 32 << 20},
		map[string]any{"tenants": map[string]any{"domain-blue": map[string]any{"running": 1}}})
	var ids [2][]tasks.ID
	for i, tn := range c.tenants[:2] {
		o := c.store.putSparse(tn.bucket(), "disk.raw", 8<<20)
		for n := range each {
			ids[i] = append(ids[i], tn.register(fmt.Sprint("import ", n), o))
		}
	}
	limited, other := c.tenants[0].all(ids[0]), c.tenants[1].all(ids[1])
	if n := overlap(limited, limited); n > 0 {
		t.Errorf("%d times two imports of the tenant ran at a time", n/2)
	}
	if overlap(other, other) == 0 || overlap(limited, other) == 0 {
		t.Errorf("nothing ran beside anything else, so little was tested")
	}
	c.checkNothingLeft()
	c.checkLogs()
}

// Imports of a tenant share its bandwidth, also when they run in different processes.
func TestBandwidthLimit(t *testing.T) {
	t.Parallel()
	const (
		limit = 20e6
		size  = 80 << 20
	)
	c := startLimited(t, settings{apis: 1, workers: 2, concurrency: 1, chunk: "1MiB", parallel: 4},
		map[string]any{"tenants": map[string]any{"domain-blue": map[string]any{"bandwidth": "20MB"}}})
	tn := c.tenants[0]
	o := c.store.putSparse(tn.bucket(), "disk.raw", size)
	began := time.Now()
	ends := tn.all([]tasks.ID{tn.register("first", o), tn.register("second", o)})
	if overlap(ends, ends) == 0 {
		t.Error("the imports ran one after the other, so little was tested")
	}
	took := max(ends[0].FinishedAt.Sub(began), ends[1].FinishedAt.Sub(began)).Seconds()
	want := 2 * size / limit
	t.Logf("two imports took %.2f s, at the limit it would be %.2f s", took, want)
	if took < 0.85*want || took > 1.15*want {
		t.Errorf("two imports took %.2f s, want %.2f s", took, want)
	}
	// A tenant without a limit is not held up.
	free := c.tenants[1]
	began = time.Now()
	end := free.all([]tasks.ID{free.register("free", c.store.putSparse(free.bucket(), "disk.raw", size))})[0]
	if took := end.FinishedAt.Sub(began).Seconds(); took > size/limit/2 {
		t.Errorf("an import of the same size without a limit took %.2f s", took)
	}
}
