package clustertest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"vmimport/internal/client"
	"vmimport/tasks"
)

// watcher follows all imports of a tenant, as somebody's dashboard does.
type watcher struct {
	mu     sync.Mutex
	ready  bool
	states map[tasks.ID][]tasks.State
}

func (w *watcher) watch(ctx context.Context, api *client.Client) error {
	for e, err := range api.Events(ctx, client.EventsOptions{Kind: tasks.KindImport}) {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		w.mu.Lock()
		w.ready = true
		if e.Type == client.EventState {
			w.states[e.ID] = append(w.states[e.ID], e.State)
		}
		w.mu.Unlock()
	}
	return nil
}

func (w *watcher) saw(id tasks.ID) []tasks.State {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.states[id])
}

// Five hundred streams are open while imports run. They take little memory, slow nothing
// down, and when the API is killed and another comes, each goes on without missing a state.
func TestFiveHundredStreams(t *testing.T) {
	const (
		streams   = 500
		most      = 100 << 20 // memory of the API
		objectMiB = 64
	)
	c := startLimited(t, settings{apis: 1, workers: 1, bytesPerSecond: 16 << 20}, map[string]any{"event_streams": streams})
	tn := c.tenants[0]
	o := c.store.putSparse(tn.bucket(), "disk.raw", objectMiB<<20)
	took := func(imp *tasks.Task) time.Duration { return imp.FinishedAt.Sub(imp.StartedAt) }
	alone := took(tn.all([]tasks.ID{tn.register("alone", o)})[0])

	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	api := c.client(0, tn.token)
	watchers := make([]*watcher, streams)
	for i := range watchers {
		watchers[i] = &watcher{states: map[tasks.ID][]tasks.State{}}
		work.Go(func() {
			if err := watchers[i].watch(ctx, api); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	all := func(so func(*watcher) bool) func() bool {
		return func() bool { return !slices.ContainsFunc(watchers, func(w *watcher) bool { return !so(w) }) }
	}
	awaitFor(t, time.Minute, "all streams are open", all(func(w *watcher) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.ready
	}))
	watched := took(tn.all([]tasks.ID{tn.register("watched", o)})[0])
	if watched > alone+alone/10+time.Second {
		t.Errorf("the import took %s, and %s without anybody watching", watched, alone)
	}
	if peak, err := c.apis[0].PeakMemory(); err != nil || peak > most {
		t.Errorf("the API used up to %d MiB, want at most %d: %v", peak>>20, most>>20, err)
	} else {
		t.Logf("%s alone, %s watched; the API used up to %d MiB", alone, watched, peak>>20)
	}

	cut := tn.register("cut", o)
	tn.await(cut, time.Minute, func(imp *tasks.Task) bool { return imp.Progress > 20 })
	c.apis[0].Kill()
	c.replace(&c.apis[0], "api")
	tn.all([]tasks.ID{cut})
	want := []tasks.State{tasks.Queued, tasks.Processing, tasks.Succeeded}
	awaitFor(t, time.Minute, "all streams have heard of the end", all(func(w *watcher) bool { return slices.Contains(w.saw(cut), tasks.Succeeded) }))
	for i, w := range watchers {
		if got := w.saw(cut); !slices.Equal(got, want) {
			t.Errorf("stream %d saw %v, want %v", i, got, want)
		}
	}
}
