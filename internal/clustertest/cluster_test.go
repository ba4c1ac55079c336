package clustertest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/tasks"
)

// scenario is how much happens in TestCluster.
type scenario struct {
	settings
	imports    int
	sizes      []int64       // of the objects that each tenant has, ascending
	submit     time.Duration // over which the imports are asked for
	disturbed  time.Duration // how long something is killed every now and then
	killEvery  time.Duration
	longestEnd time.Duration // after that, for what is left
}

// The ordinary scenario has small chunks and checkpoints, so that imports of
// this size are resumed, and a link that makes them last until somebody comes
// and kills their worker.
func ordinary() scenario {
	return scenario{
		settings: settings{
			apis: 2, workers: 3, bytesPerSecond: 20 << 20,
			concurrency: 2, chunk: "1MiB", parallel: 4, checkpointEvery: "1MiB",
		},
		imports:    40,
		sizes:      []int64{512, 1<<20 + 777, 3 << 20, 8 << 20, 16 << 20, 24 << 20, 33 << 20, 48 << 20},
		submit:     20 * time.Second,
		disturbed:  45 * time.Second,
		killEvery:  3 * time.Second,
		longestEnd: 2 * time.Minute,
	}
}

// The long scenario is like production: larger chunks and objects, faster link.
func long() scenario {
	s := ordinary()
	s.bytesPerSecond, s.chunk, s.checkpointEvery, s.parallel = 80<<20, "4MiB", "8MiB", 8
	s.imports, s.disturbed = *soakImports, *soakDuration
	s.submit, s.longestEnd = s.disturbed*2/3, 5*time.Minute
	s.sizes = []int64{512, 1<<20 + 777, 16 << 20, 48 << 20, 96 << 20, 128 << 20, 192 << 20, 256 << 20}
	return s
}

// TestCluster holds the promises against a service in which something dies all
// the time: no accepted import is lost, each has the one right end, and of all
// that was done exactly the images of the successful ones remain.
func TestCluster(t *testing.T) {
	t.Parallel()
	s := ordinary()
	if *soak {
		s = long()
	}
	c := startCluster(t, s.settings)
	rng := rand.New(rand.NewPCG(2, 3))
	objects := map[*tenant][]*object{}
	for _, tn := range c.tenants {
		for i, size := range s.sizes {
			content := make([]byte, size)
			if i != 4 { // which is one hole
				content = random(rng, size)
			}
			if i%2 == 1 {
				content = withHoles(rng, content)
			}
			objects[tn] = append(objects[tn], c.store.put(tn.bucket(), fmt.Sprintf("disk %d.raw", i), content))
		}
	}
	before := c.store.files()

	ctx, cancel := context.WithTimeout(t.Context(), s.submit+s.disturbed+s.longestEnd)
	defer cancel()
	l := &ledger{cluster: c, accepted: map[tasks.ID]*job{}, unclear: map[string]*job{}}
	var wg sync.WaitGroup
	for _, j := range jobs(s, c.tenants, objects, rng) {
		wg.Go(func() {
			if pause(ctx, j.after) {
				l.run(ctx, j)
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	began := time.Now()
	d := &disturber{cluster: c, rng: rng}
	d.run(ctx, s, done)
	d.counts.log(t)
	<-done
	t.Logf("all imports ended %s after the first was asked for", time.Since(began).Round(time.Second))

	ends := l.settle(ctx)
	l.checkEnds(ends)
	l.checkImages(ends)
	l.logAttempts(ends)
	c.checkNothingLeft()
	c.checkLogs()
	if after := c.store.files(); !maps.Equal(before, after) {
		t.Errorf("the object store was changed:\n%v\nbefore, now\n%v", before, after)
	}
}

// job is the wish for one import, and how it is to end.
type job struct {
	n      int
	after  time.Duration
	tenant *tenant
	object *object
	sha1   string // as declared
	want   tasks.State

	// Of a job that is to be canceled: whether a cancel was accepted, and how
	// long after that the end was seen.
	canceled   bool
	acceptedAt time.Time
	endedAfter time.Duration
}

func jobs(s scenario, tenants []*tenant, objects map[*tenant][]*object, rng *rand.Rand) []*job {
	var all []*job
	for n := range s.imports {
		tn := tenants[n%len(tenants)]
		large := len(s.sizes) / 2
		o := objects[tn][n/len(tenants)%len(s.sizes)]
		j := &job{n: n, after: s.submit * time.Duration(n) / time.Duration(s.imports), tenant: tn, object: o, sha1: o.sha1, want: tasks.Succeeded}
		switch n % 10 {
		case 3, 6:
			j.want, j.sha1 = tasks.Failed, strings.Repeat("0", 39)+"1"
		case 7, 8:
			// Only what takes a while can be caught in the middle.
			j.want = tasks.Canceled
			j.object = objects[tn][large+rng.IntN(len(s.sizes)-large)]
			j.sha1 = j.object.sha1
		}
		all = append(all, j)
	}
	return all
}
