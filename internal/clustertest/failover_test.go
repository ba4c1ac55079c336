package clustertest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/internal/app"
	"vmimport/internal/config"
	"vmimport/internal/testenv"
	"vmimport/tasks"
)

// failover is what happens in the tests in which servers of Redis are all that dies.
type failover struct {
	*ledger
	done chan struct{} // closed when all imports have ended
}

// startFailover starts a cluster over a group of Redis servers, and asks for imports.
func startFailover(ctx context.Context, t *testing.T, redis *redisGroup, tenants ...string) *failover {
	t.Helper()
	s := ordinary()
	s.apis, s.workers, s.bytesPerSecond, s.redis, s.tenants = 1, 2, 30<<20, redis, tenants
	s.imports, s.submit = 30, 12*time.Second
	c := startCluster(t, s.settings)
	rng := rand.New(rand.NewPCG(4, 5))
	objects := map[*tenant][]*object{}
	for _, tn := range c.tenants {
		for i, size := range s.sizes {
			objects[tn] = append(objects[tn], c.store.put(tn.bucket(), fmt.Sprintf("disk %d.raw", i), random(rng, size)))
		}
	}
	f := &failover{&ledger{cluster: c, accepted: map[tasks.ID]*job{}, unclear: map[string]*job{}}, make(chan struct{})}
	var wg sync.WaitGroup
	for _, j := range jobs(s, c.tenants, objects, rng) {
		wg.Go(func() {
			if pause(ctx, j.after) {
				f.run(ctx, j)
			}
		})
	}
	go func() {
		defer close(f.done)
		wg.Wait()
	}()
	return f
}

// count returns how many imports were accepted of a tenant, or (nil) of all.
func (f *failover) count(of *tenant) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.accepted {
		if of == nil || j.tenant == of {
			n++
		}
	}
	return n
}

// kill kills a master while imports are copied and others are accepted, and waits until
// another has taken its place.
func (f *failover) kill(master *testenv.Redis, of *tenant, replaced func() bool) {
	f.t.Helper()
	await(f.t, "imports are copied", func() bool {
		running, err := f.records.Running(f.t.Context(), f.tenants[0].name, 10)
		return err == nil && f.count(nil) >= 6 && len(running) > 0 && running[0].Stage == tasks.StageCopying
	})
	master.Kill()
	killed := time.Now()
	before := f.count(of)
	await(f.t, "another master", replaced)
	f.t.Logf("another master %s after the first was killed", time.Since(killed).Round(time.Millisecond))
	master.Start() // and becomes a replica
	await(f.t, "an import is accepted", func() bool { return f.count(of) > before })
	f.t.Logf("the next import was accepted %s after the kill", time.Since(killed).Round(time.Millisecond))
}

// check waits for the ends of all imports and looks at them. What was refused since it could
// not be replicated was canceled, so of an import that nobody was promised only the end counts.
func (f *failover) check(ctx context.Context) {
	f.t.Helper()
	select {
	case <-f.done:
	case <-ctx.Done():
		f.t.Fatal("imports have not ended")
	}
	ends := f.settle(ctx)
	f.checkImages(ends)
	maps.DeleteFunc(ends, func(id tasks.ID, _ end) bool { return f.accepted[id] == nil })
	f.checkEnds(ends)
	f.checkNothingLeft()
	f.checkLogs()
}

// checkOperators looks at what operators see.
func (c *cluster) checkOperators() {
	t := c.t
	t.Helper()
	for path, want := range map[string]string{
		"/readyz":                    "",
		"/monitoring/":               "<html",
		"/monitoring/api/queues":     `"queues":[{`,
		"/monitoring/api/servers":    `"servers":[{`,
		"/monitoring/api/redis_info": `"address"`,
		"/metrics":                   "vmimport_imports{",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.apis[0].Listen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("operator", operatorToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // read to its end
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s answered %s, %v: %.300s", path, resp.Status, err, body)
		}
	}
	cfg, err := config.Load(c.config, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range app.Diagnose(t.Context(), cfg) {
		if !f.OK {
			t.Errorf("the doctor found: %+v", f)
		}
	}
}

// await polls until something is so, but not for long.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	awaitFor(t, time.Minute, what, so)
}

func awaitFor(t testing.TB, most time.Duration, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %s in vain until %s", most, what)
		case <-tick.C:
		}
	}
}
