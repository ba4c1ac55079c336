package clustertest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// disturber is what a service has to bear.
type disturber struct {
	*cluster
	rng    *rand.Rand
	counts counts
}

type counts map[string]int

func (c counts) log(t testing.TB) {
	t.Helper()
	var text []string
	for _, what := range slices.SortedFunc(maps.Keys(c), func(a, b string) int { return cmp.Compare(c[b], c[a]) }) {
		text = append(text, fmt.Sprintf("%s %d times", what, c[what]))
	}
	t.Log("disturbed: " + strings.Join(text, ", "))
}

// run disturbs until the imports have ended or the time is over, but at least
// one round. It works on the test's own goroutine.
func (d *disturber) run(ctx context.Context, s scenario, done <-chan struct{}) {
	d.counts = counts{}
	round := []struct {
		what string
		do   func(context.Context)
	}{
		{"worker killed", d.killWorker},
		{"Redis killed", d.killRedis},
		{"worker killed", d.killWorker},
		{"API killed", d.killAPI},
		{"worker killed", d.killWorker},
		{"worker stopped", d.stopWorker},
		{"object store cut off", d.cutLink},
		{"worker killed", d.killWorker},
		{"worker killed", d.killWorker},
		{"worker stopped", d.stopWorker},
		{"worker killed", d.killWorker},
	}
	began := time.Now()
	for step := 0; step < len(round) || time.Since(began) < s.disturbed; step++ {
		select {
		case <-ctx.Done():
			return
		case <-done:
			if step >= len(round) {
				return
			}
		default:
		}
		// Not in step with anything.
		pause(ctx, s.killEvery/2+time.Duration(d.rng.Int64N(int64(s.killEvery))))
		r := round[step%len(round)]
		r.do(ctx)
		d.counts[r.what]++
	}
}

func (d *disturber) killWorker(context.Context) {
	place := &d.workers[d.rng.IntN(len(d.workers))]
	(*place).Kill()
	d.replace(place, "worker")
}

func (d *disturber) stopWorker(context.Context) {
	place := &d.workers[d.rng.IntN(len(d.workers))]
	code, took := (*place).Stop(2 * drainTimeout)
	if code != 0 || took > drainTimeout {
		d.t.Errorf("%s ended with exit code %d, %s after SIGTERM:\n%s", (*place).Name, code, took, (*place).Tail(20))
	}
	d.replace(place, "worker")
}

// outage is how long the API, Redis and the object store are away: too long for
// a request to wait it out.
const outage = 3 * time.Second

func (d *disturber) killRedis(ctx context.Context) {
	d.redis.Kill()
	pause(ctx, outage)
	d.redis.Start()
}

func (d *disturber) killAPI(ctx context.Context) {
	place := &d.apis[d.rng.IntN(len(d.apis))]
	(*place).Kill()
	pause(ctx, outage)
	d.replace(place, "api")
}

func (d *disturber) cutLink(ctx context.Context) {
	d.link.Cut()
	pause(ctx, outage)
	d.link.Mend()
}
