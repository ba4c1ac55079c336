package events_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/events"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const tenant = tasks.Tenant("contract01")

// simulate runs test in simulated time, with a hub that is closed at its end.
func simulate(t *testing.T, opts events.Options, test func(t *testing.T, j *journal, h *events.Hub)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		j := newJournal()
		h := events.New(j, opts)
		defer h.Close()
		test(t, j, h)
	})
}

func subscribe(t *testing.T, h *events.Hub, f events.Filter, after string) *events.Stream {
	t.Helper()
	s, err := h.Subscribe(t.Context(), tenant, f, after)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// read returns what comes within a time.
func read(t *testing.T, s *events.Stream, within time.Duration) []events.Event {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), within)
	defer stop()
	var all []events.Event
	for {
		list, err := s.Next(ctx)
		all = append(all, list...)
		if errors.Is(err, context.DeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// told returns the marks of changes, with what else was told in between.
func told(list []events.Event) []string {
	var out []string
	for _, e := range list {
		switch {
		case e.Reset:
			out = append(out, "reset")
		case e.Progress != nil:
			out = append(out, fmt.Sprintf("%s at %d", e.Progress.ID, e.Progress.DoneBytes))
		default:
			out = append(out, e.Mark)
		}
	}
	return out
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestLive(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
		j.add(tenant, tasks.Change{ID: "before"})
		s := subscribe(t, h, events.Filter{}, "")
		defer s.Close()
		same(t, told(read(t, s, 10*time.Second)))
		if s.Mark() != mark(tenant, 1) {
			t.Errorf("begins at %s", s.Mark())
		}

		j.add(tenant, tasks.Change{ID: "a"})
		j.add("another", tasks.Change{ID: "b"})
		start := time.Now()
		list, err := s.Next(t.Context())
		if err != nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		same(t, told(list), mark(tenant, 2))

		j.deaf = true
		j.add(tenant, tasks.Change{ID: "a", State: tasks.Succeeded})
		if list, err = s.Next(t.Context()); err != nil || time.Since(start) > 1100*time.Millisecond {
			t.Errorf("without a hint: %v after %v", err, time.Since(start))
		}
		same(t, told(list), mark(tenant, 3))
	})
}

func TestFilter(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
		first := subscribe(t, h, events.Filter{}, "")
		defer first.Close()
		for _, c := range []tasks.Change{
			{ID: "1", Region: "r", Dialect: "d", Project: "p", Kind: tasks.KindImport},
			{ID: "2", Region: "other", Dialect: "d", Project: "p", Kind: tasks.KindImport},
			{ID: "3", Region: "r", Dialect: "other", Project: "p", Kind: tasks.KindImport},
			{ID: "4", Region: "r", Dialect: "d", Project: "other", Kind: tasks.KindImport},
			{ID: "5", Region: "r", Dialect: "d", Project: "p", Kind: tasks.KindExport},
		} {
			j.add(tenant, c)
		}
		for _, tt := range []struct {
			f    events.Filter
			want string
		}{
			{events.Filter{}, "1 2 3 4 5"},
			{events.Filter{Region: "r"}, "1 3 4 5"},
			{events.Filter{Dialect: "d"}, "1 2 4 5"},
			{events.Filter{Project: "p"}, "1 2 3 5"},
			{events.Filter{Kind: tasks.KindExport}, "5"},
			{events.Filter{Region: "r", Dialect: "d", Project: "p", Kind: tasks.KindImport}, "1"},
			{events.Filter{ID: "4"}, "4"},
			{events.Filter{ID: "9"}, ""},
		} {
			s := subscribe(t, h, tt.f, first.Mark())
			var ids []string
			for _, e := range read(t, s, time.Second) {
				ids = append(ids, string(e.Change.ID))
			}
			if got := strings.Join(ids, " "); got != tt.want {
				t.Errorf("%+v: %q, want %q", tt.f, got, tt.want)
			}
			if s.Mark() != mark(tenant, 5) {
				t.Errorf("%+v: stands at %s", tt.f, s.Mark())
			}
			s.Close()
		}
	})
}

// A stream is cut wherever it may be, and taken up by one of several processes, while the
// journal grows. Whatever the order of all this, it tells each change once, and in order.
func TestCutAndResumed(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			j := newJournal()
			j.deaf = seed%3 == 0
			hubs := []*events.Hub{events.New(j, events.Options{}), events.New(j, events.Options{})}
			for range random.IntN(400) {
				j.add(tenant, tasks.Change{ID: "early"})
			}
			filter := events.Filter{Project: []string{"", "0", "1"}[seed%3]}
			choose := rand.New(rand.NewPCG(seed, 8))
			s := subscribe(t, hubs[0], filter, "")
			began, last := s.Mark(), s.Mark()
			const changes = 600
			go func() {
				for i := range changes {
					j.add(tenant, tasks.Change{ID: tasks.ID(fmt.Sprint(i % 3)), Project: fmt.Sprint(i % 2)})
					time.Sleep(time.Duration(random.IntN(60)) * time.Millisecond) // simulated
				}
			}()
			var got []string
			for idle := 0; idle < 2; {
				if choose.IntN(4) == 0 {
					s.Close()
					s = subscribe(t, hubs[choose.IntN(2)], filter, last)
				}
				list := read(t, s, time.Duration(choose.IntN(1500))*time.Millisecond)
				if cut := choose.IntN(3) == 0 && len(list) > 0; cut { // before all of it was sent
					list = list[:choose.IntN(len(list))]
					s.Close()
					s = subscribe(t, hubs[choose.IntN(2)], filter, last)
					if len(list) > 0 {
						last = list[len(list)-1].Mark
						s.Close()
						s = subscribe(t, hubs[choose.IntN(2)], filter, last)
					}
				} else {
					last = s.Mark()
				}
				got = append(got, told(list)...)
				if idle++; len(list) > 0 || len(j.all(began, events.Filter{})) < changes {
					idle = 0
				}
			}
			got = append(got, told(read(t, s, 3*time.Second))...)
			s.Close()
			for _, h := range hubs {
				h.Close()
			}
			same(t, got, j.all(began, filter)...)
		})
	}
}

// all returns the marks of the changes after one that a filter's project selects.
func (j *journal) all(after string, f events.Filter) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var marks []string
	begun := after == events.Origin
	for _, c := range j.changes[tenant] {
		if begun && (f.Project == "" || c.Project == f.Project) {
			marks = append(marks, c.Mark)
		}
		begun = begun || c.Mark == after
	}
	return marks
}

func TestReset(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]string{
		"dropped":  mark(tenant, 3),
		"another":  mark("another", 3),
		"made up":  "'; DROP TABLE",
		"too long": strings.Repeat("9", 1<<16),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
				for range 300 {
					j.add(tenant, tasks.Change{ID: "a"})
				}
				j.trim(tenant, 10)
				s := subscribe(t, h, events.Filter{}, after)
				defer s.Close()
				list := read(t, s, 3*time.Second)
				same(t, told(list), "reset")
				if list[0].Mark != mark(tenant, 300) {
					t.Errorf("goes on at %s", list[0].Mark)
				}
				j.add(tenant, tasks.Change{ID: "a"})
				same(t, told(read(t, s, 3*time.Second)), mark(tenant, 301))
			})
		})
	}
}

// A journal can run away from a feed that had no answer for long.
func TestFeedLosesItsPlace(t *testing.T) {
	t.Parallel()
	var troubles atomic.Int64
	simulate(t, events.Options{Trouble: func(error) { troubles.Add(1) }}, func(t *testing.T, j *journal, h *events.Hub) {
		s := subscribe(t, h, events.Filter{}, "")
		defer s.Close()
		j.add(tenant, tasks.Change{ID: "a"})
		same(t, told(read(t, s, 3*time.Second)), mark(tenant, 1))
		j.fail(errors.New("away"))
		same(t, told(read(t, s, 10*time.Second)))
		if n := troubles.Load(); n < 9 || n > 11 {
			t.Errorf("%d troubles in 10 s", n)
		}
		j.fail(nil)
		j.deaf = true
		for range 20 {
			j.add(tenant, tasks.Change{ID: "a"})
		}
		j.trim(tenant, 10)
		same(t, told(read(t, s, 3*time.Second)), "reset")
		j.add(tenant, tasks.Change{ID: "a"})
		same(t, told(read(t, s, 3*time.Second)), mark(tenant, 22))
	})
}

func TestEmptyJournal(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
		s := subscribe(t, h, events.Filter{}, "")
		at := s.Mark()
		s.Close()
		j.add(tenant, tasks.Change{ID: "a"})
		s = subscribe(t, h, events.Filter{}, at)
		defer s.Close()
		same(t, told(read(t, s, 3*time.Second)), mark(tenant, 1))
	})
}

func TestProgress(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
		at := func(id tasks.ID, done int64) *tasks.Task {
			return &tasks.Task{Spec: tasks.Spec{ID: id, Region: "r", Owner: tasks.Owner{Project: "p"}}, State: tasks.Processing, Counters: tasks.Counters{DoneBytes: done}}
		}
		j.run(tenant, at("a", 1), at("b", 1))
		s, one := subscribe(t, h, events.Filter{Region: "r", Project: "p"}, ""), subscribe(t, h, events.Filter{ID: "b"}, "")
		defer s.Close()
		defer one.Close()
		same(t, told(read(t, s, 500*time.Millisecond)), "a at 1", "b at 1")
		same(t, told(read(t, s, 5*time.Second)))
		j.run(tenant, at("a", 2), at("b", 1))
		same(t, told(read(t, s, 5*time.Second)), "a at 2")
		same(t, told(read(t, one, 5*time.Second)), "b at 1")

		// No progress follows the end, whatever the records said before it.
		j.run(tenant, at("a", 3), at("b", 2))
		time.Sleep(time.Second) // simulated: the feed has seen these
		j.add(tenant, tasks.Change{ID: "b", Region: "r", Project: "p", State: tasks.Succeeded})
		j.run(tenant, at("a", 3))
		time.Sleep(100 * time.Millisecond)
		same(t, told(read(t, s, 5*time.Second)), mark(tenant, 1), "a at 3")
		same(t, told(read(t, one, 5*time.Second)), mark(tenant, 1))

		for i := range 50 { // a reader that is slow gets the newest alone
			j.run(tenant, at("a", int64(100+i)))
			time.Sleep(time.Second)
		}
		same(t, told(read(t, s, 100*time.Millisecond)), "a at 149")
		if n := j.count("running"); n > 85 {
			t.Errorf("running tasks were read %d times", n)
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{PerTenant: 2, Total: 3}, func(t *testing.T, j *journal, h *events.Hub) {
		a, b := subscribe(t, h, events.Filter{}, ""), subscribe(t, h, events.Filter{}, "")
		refused := func(tenant tasks.Tenant) {
			t.Helper()
			if _, err := h.Subscribe(t.Context(), tenant, events.Filter{}, ""); !errors.Is(err, events.ErrTooManyStreams) || fault.KindOf(err) != fault.Exhausted {
				t.Errorf("one more of %s: %v", tenant, err)
			}
		}
		refused(tenant)
		c, err := h.Subscribe(t.Context(), "another", events.Filter{}, "")
		if err != nil {
			t.Fatal(err)
		}
		refused("a third")
		a.Close()
		a.Close()
		if h.Open() != 2 {
			t.Errorf("%d are open", h.Open())
		}
		a = subscribe(t, h, events.Filter{}, "")
		for _, s := range []*events.Stream{a, b, c} {
			s.Close()
		}
		j.fail(errors.New("away"))
		if _, err := h.Subscribe(t.Context(), tenant, events.Filter{}, ""); err == nil || h.Open() != 0 {
			t.Errorf("%v, %d are open", err, h.Open())
		}
		j.fail(nil)

		// Nobody watches, and so nothing is read.
		synctest.Wait()
		before := j.count("changes")
		time.Sleep(time.Minute)
		if n := j.count("changes"); n != before {
			t.Errorf("the journal was read %d times for nobody", n-before)
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	simulate(t, events.Options{}, func(t *testing.T, j *journal, h *events.Hub) {
		s := subscribe(t, h, events.Filter{}, "")
		defer s.Close()
		ended := make(chan error, 1)
		go func() { _, err := s.Next(t.Context()); ended <- err }()
		synctest.Wait()
		h.Close()
		if err := <-ended; !errors.Is(err, events.ErrClosed) {
			t.Error(err)
		}
		if _, err := h.Subscribe(t.Context(), tenant, events.Filter{}, ""); !errors.Is(err, events.ErrClosed) {
			t.Error(err)
		}
	})
}
