package tasks

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestPolicyFor(t *testing.T) {
	t.Parallel()
	all := Allowance{Unfinished: 100, Running: 4, BytesPerSecond: 1 << 20}
	p := Policy{Default: all, Tenants: map[Tenant]Allowance{"big": {Running: 50}, "free": {}}}
	for tenant, want := range map[Tenant]Allowance{
		"anybody": all,
		"":        all,
		"big":     {Running: 50}, // whole: nothing of Default
		"free":    {},
	} {
		if got := p.For(tenant); got != want {
			t.Errorf("%q: %+v, want %+v", tenant, got, want)
		}
	}
	if got := (Policy{}).For("anybody"); got != (Allowance{}) {
		t.Errorf("the zero value bounds: %+v", got)
	}
}

func TestPosition(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	in := func(d time.Duration) time.Time { return now.Add(d) }
	busy := Outlook{At: now, Slots: 4, Running: 4, Waiting: 10, Contenders: 1, StartsPerMinute: 2}
	with := func(change func(*Outlook)) Outlook {
		o := busy
		change(&o)
		return o
	}
	for _, tt := range []struct {
		name      string
		place     Place
		notBefore time.Time
		want      Position
	}{
		{"nobody leads, or no worker runs", Place{Ahead: 2}, now, Position{Number: 3}},
		{"no worker runs", Place{Outlook: with(func(o *Outlook) { o.Slots = 0 })}, now, Position{Number: 1}},
		{"the last leader died", Place{Outlook: with(func(o *Outlook) { o.At = in(-outlookLife - 1) })}, now, Position{Number: 1}},
		{"the leader is late", Place{Outlook: with(func(o *Outlook) { o.At = in(-outlookLife) })}, now, Position{1, in(30 * time.Second)}},
		{"the first of one tenant", Place{Outlook: busy}, now, Position{1, in(30 * time.Second)}},
		{"behind others of the tenant", Place{Ahead: 3, Outlook: busy}, now, Position{4, in(2 * time.Minute)}},
		{"turns are dealt out among tenants", Place{Ahead: 3, Outlook: with(func(o *Outlook) { o.Contenders = 3 })}, now, Position{4, in(6 * time.Minute)}},
		{"it contends alone", Place{Outlook: with(func(o *Outlook) { o.Contenders = 0 })}, now, Position{1, in(30 * time.Second)}},
		{"further than can be foretold", Place{Ahead: 1, Outlook: with(func(o *Outlook) { o.StartsPerMinute = 1e-12 })}, now, Position{Number: 2}},
		{"no start was seen", Place{Ahead: 1, Outlook: with(func(o *Outlook) { o.StartsPerMinute = 0 })}, now, Position{Number: 2}},
		{"slots for all that wait", Place{Ahead: 1, Outlook: with(func(o *Outlook) { o.Slots = 40 })}, now, Position{2, now}},
		{"it was handed out", Place{Dispatched: true, Outlook: busy}, now, Position{1, now}},
		{"a pause that ended", Place{Dispatched: true, Outlook: busy}, in(-time.Hour), Position{1, now}},
		{"a pause beyond its turn", Place{Outlook: busy}, in(time.Hour), Position{1, in(time.Hour)}},
		{"a pause within its turn", Place{Ahead: 3, Outlook: busy}, in(time.Minute), Position{4, in(2 * time.Minute)}},
		{"a pause, and slots for all", Place{Outlook: with(func(o *Outlook) { o.Slots = 40 })}, in(time.Hour), Position{1, in(time.Hour)}},
		{"a pause, and no start was seen", Place{Outlook: with(func(o *Outlook) { o.StartsPerMinute = 0 })}, in(time.Hour), Position{Number: 1}},
	} {
		if got := tt.place.position(&Task{NotBefore: tt.notBefore}, now); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// places answers with one place, or fails.
type places struct {
	Records
	place  Place
	err    error
	asked  Ref
	limits Limits
}

func (p *places) Place(_ context.Context, ref Ref) (Place, error) {
	p.asked = ref
	return p.place, p.err
}

func (p *places) Retry(_ context.Context, _ Scope, _ ID, limits Limits) error {
	p.limits = limits
	return p.err
}

func TestServicePosition(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	records := &places{place: Place{Ahead: 4}}
	s := NewService(records, nil, Policy{}, func() time.Time { return now })
	for _, state := range States {
		task := &Task{Spec: Spec{ID: "i", Owner: Owner{Tenant: "t"}}, State: state}
		got, err := s.Position(t.Context(), task)
		switch {
		case err != nil, (got != nil) != (state == Queued):
			t.Errorf("%s: %+v, %v", state, got, err)
		case got != nil && (*got != Position{Number: 5} || records.asked != task.Ref()):
			t.Errorf("%+v of %+v", got, records.asked)
		}
	}
	records.err = errors.New("away")
	if got, err := s.Position(t.Context(), &Task{State: Queued}); got != nil || !errors.Is(err, records.err) {
		t.Errorf("%+v, %v", got, err)
	}
}

// A tenant with as many tasks in service as it may have waits for one of them, however many
// workers are idle.
func TestServicePositionAtALimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	idle := Outlook{At: now, Slots: 40, Running: 1, Waiting: 3}
	policy := Policy{Default: Allowance{Running: 2}, Tenants: map[Tenant]Allowance{"free": {}}}
	for _, tt := range []struct {
		tenant Tenant
		place  Place
		told   bool
	}{
		{"t", Place{Running: 1}, true},
		{"t", Place{Ahead: 1}, true},
		{"t", Place{Running: 2}, false},
		{"t", Place{Ahead: 2}, false},
		{"t", Place{Ahead: 1, Running: 1}, false},
		{"t", Place{Dispatched: true}, true},
		{"free", Place{Ahead: 5, Running: 5}, true},
	} {
		tt.place.Outlook = idle
		s := NewService(&places{place: tt.place}, nil, policy, func() time.Time { return now })
		got, err := s.Position(t.Context(), &Task{Spec: Spec{Owner: Owner{Tenant: tt.tenant}}, State: Queued})
		if err != nil || got.Number != tt.place.Ahead+1 || got.Start.IsZero() == tt.told {
			t.Errorf("%s, %+v: %+v, %v", tt.tenant, tt.place, got, err)
		}
	}
}

// A retry is held to the limits of its tenant.
func TestServiceRetry(t *testing.T) {
	t.Parallel()
	records := &places{}
	policy := Policy{Default: Allowance{Unfinished: 7}, Tenants: map[Tenant]Allowance{"big": {Unfinished: 70}}}
	s := NewService(records, nil, policy, time.Now)
	for tenant, want := range map[Tenant]int{"big": 70, "small": 7} {
		if err := s.Retry(t.Context(), Scope{Tenant: tenant}, "i"); err != nil || records.limits != (Limits{Unfinished: want}) {
			t.Errorf("%s: %+v, %v", tenant, records.limits, err)
		}
	}
	records.err = ErrCleaning
	if err := s.Retry(t.Context(), Scope{Tenant: "small"}, "i"); !errors.Is(err, ErrCleaning) {
		t.Errorf("error %v", err)
	}
}
