package queue

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"vmimport/tasks"
)

// foretold is a store that shows what was predicted.
type foretold struct {
	tasks.Backlog
	all  []tasks.Outlook
	last tasks.Outlook
	down bool
}

func (f *foretold) Predict(_ context.Context, o tasks.Outlook) error {
	if f.down {
		return errors.New("connection refused")
	}
	f.all = append(f.all, o)
	f.last = o
	return nil
}

func (f *foretold) Outlook(context.Context) (tasks.Outlook, error) {
	if f.down {
		return tasks.Outlook{}, errors.New("connection refused")
	}
	return f.last, nil
}

func newForetold(t *testing.T) (*fixture, *foretold) {
	t.Helper()
	f := newFixture(t)
	seen := &foretold{Backlog: f.store}
	f.backlog = seen
	return f, seen
}

// work has one import of those that run end and the next be taken, so that there are
// always as many under claims as there are slots.
type work struct {
	*fixture
	held  []tasks.Held
	taken int
}

func (w *work) take() {
	for ; len(w.held) < w.belt.slots && w.taken < len(w.belt.tickets); w.taken++ {
		w.held = append(w.held, w.claim(w.belt.tickets[w.taken].Ref))
	}
}

func (w *work) end(n int) {
	w.t.Helper()
	for ; n > 0; n-- {
		if err := w.store.Fail(w.t.Context(), w.held[0], tasks.Failure{Code: "x"}, tasks.Attempt{}, 0); err != nil {
			w.t.Fatal(err)
		}
		w.held = w.held[1:]
	}
}

// pass lets time pass, with an import ending and another beginning every now and then.
func (w *work) pass(d, every time.Duration) {
	w.t.Helper()
	for ; d >= every; d -= every {
		for range int(every / roundEvery) {
			for _, h := range w.held {
				if _, err := w.store.Beat(w.t.Context(), h, tasks.Progress{}, lease); err != nil {
					w.t.Fatal(err)
				}
			}
			w.rounds(roundEvery)
		}
		w.end(1)
		w.take()
	}
}

func near(got, want float64) bool { return math.Abs(got-want) <= want/5 }

func TestOutlook(t *testing.T) {
	f, seen := newForetold(t)
	f.opt.Policy.Tenants = map[tasks.Tenant]tasks.Allowance{"narrow": {Running: 1}}
	w := &work{fixture: f}
	f.rounds(roundEvery)
	if want := (tasks.Outlook{At: f.clock, Slots: 4}); len(seen.all) != 1 || seen.last != want {
		t.Fatalf("after the first round %+v, want %+v", seen.all, want)
	}
	for range 100 {
		f.create("wide")
	}
	for range 3 {
		f.create("narrow")
	}
	f.rounds(roundEvery)
	w.take()
	// One starts every 2 s.
	w.pass(2*time.Minute, 2*time.Second)
	o := seen.last
	if o.Slots != 4 || o.Running != 4 || o.Waiting == 0 || !near(o.StartsPerMinute, 30) {
		t.Errorf("outlook %+v", o)
	}
	if age := f.clock.Sub(o.At); age >= predictEvery || age < 0 {
		t.Errorf("the outlook is %s old", age)
	}
	if n := len(seen.all); n < 20 || n > 30 {
		t.Errorf("%d outlooks in 2 minutes", n)
	}
}

// TestContenders: a tenant at its limit takes no turns, whatever it has waiting.
func TestContenders(t *testing.T) {
	f, seen := newForetold(t)
	f.opt.Policy = tasks.Policy{Tenants: map[tasks.Tenant]tasks.Allowance{"narrow": {Running: 1}}}
	for range 20 {
		f.create("narrow")
		f.create("a")
		f.create("b")
	}
	f.rounds(roundEvery)
	// The window holds one of the narrow tenant, whose others wait for that and not for a slot.
	if o := seen.last; o.Contenders != 2 || o.Waiting != 40-(4+ahead-1) || o.StartsPerMinute != 0 {
		t.Errorf("outlook %+v", o)
	}
}

// TestTheNextLeaderKnowsThePace: it takes it over, and is quickly right about another.
func TestTheNextLeaderKnowsThePace(t *testing.T) {
	f, seen := newForetold(t)
	seen.last = tasks.Outlook{At: f.clock, Slots: 9, StartsPerMinute: 12}
	f.rounds(roundEvery)
	if o := seen.last; o.Slots != 4 || o.StartsPerMinute != 12 {
		t.Errorf("outlook %+v", o)
	}
	other := f.dispatcher("d2")
	other.backlog = seen
	f.round(t.Context())
	if err := f.backlog.Resign(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	seen.down = true
	for range 2 { // it leads without knowing anything
		f.clock = f.clock.Add(roundEvery)
		other.round(t.Context())
	}
	f.create("a")
	f.clock = f.clock.Add(roundEvery)
	other.round(t.Context())
	if !other.Leading() || len(f.belt.tickets) != 1 {
		t.Errorf("leads %v, and has handed out %d tickets", other.Leading(), len(f.belt.tickets))
	}
	seen.down = false
	f.clock = f.clock.Add(roundEvery)
	other.round(t.Context())
	if o := seen.last; o.At != f.clock || o.StartsPerMinute != 12 {
		t.Errorf("outlook %+v", o)
	}
	// The first one leads no more, and forgets what it knew.
	f.round(t.Context())
	if f.forecast != (forecast{}) {
		t.Errorf("a follower forecasts %+v", f.forecast)
	}
}

// TestNewWorkersAreSoonKnown: without slots there is an outlook with every round.
func TestNewWorkersAreSoonKnown(t *testing.T) {
	f, seen := newForetold(t)
	f.belt.slots = 0
	f.rounds(time.Second)
	f.belt.slots = 3
	f.rounds(roundEvery)
	if seen.last.Slots != 3 {
		t.Errorf("outlook %+v", seen.last)
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	const round = time.Second
	for _, tt := range []struct {
		name   string
		from   float64 // per minute
		run    func(*pace, func(n int, d, every time.Duration, waiting bool))
		lo, hi float64
	}{
		{"unknown", 0, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {}, 0, 0},
		{"too early to say", 0, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(1, 3*time.Second, round, true)
		}, 0, 0},
		{"soon known", 0, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(1, 10*time.Second, round, true)
		}, 50, 70},
		{"one in ten minutes", 0, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(1, 5*time.Hour, 10*time.Minute, true)
		}, 0.09, 0.11},
		{"between two of these", 0.1, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(0, 9*time.Minute, round, true)
		}, 0.09, 0.1},
		{"idle", 60, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(0, time.Hour, round, false)
			pass(3, 10*time.Second, round, false)
		}, 60, 60},
		{"faster", 6, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(1, 5*time.Minute, round, true)
		}, 57, 60},
		{"slower", 600, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(1, 10*time.Minute, 10*time.Second, true)
		}, 6, 7},
		{"stuck", 60, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(0, 9*time.Minute, round, true)
		}, 2, 3},
		{"after a night without workers", 60, func(_ *pace, pass func(int, time.Duration, time.Duration, bool)) {
			pass(0, 10*time.Hour, round, true)
			pass(1, 4*time.Minute, round, true)
		}, 50, 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := paceOf(tt.from)
			now := start
			p.observe(now, 0, true)
			tt.run(&p, func(n int, d, every time.Duration, waiting bool) {
				p.waiting = waiting
				for passed := round; passed <= d; passed += round {
					now = now.Add(round)
					handed := 0
					if passed%every == 0 {
						handed = n
					}
					p.observe(now, handed, waiting)
				}
			})
			if got := p.perMinute(); got < tt.lo || got > tt.hi || math.IsNaN(got) {
				t.Errorf("%.3f per minute, want %g to %g", got, tt.lo, tt.hi)
			}
		})
	}
}

// TestAGapIsNotCounted: another may have led in it.
func TestAGapIsNotCounted(t *testing.T) {
	t.Parallel()
	p := paceOf(60)
	p.observe(start, 0, true)
	p.observe(start.Add(time.Hour), 0, true)
	p.observe(start, 0, true) // the clock was set back
	if got := p.perMinute(); got != 60 {
		t.Errorf("%g per minute", got)
	}
}
