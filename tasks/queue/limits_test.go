package queue

import (
	"context"
	"testing"
	"time"

	"vmimport/tasks"
)

// TestRunningLimit: of a tenant no more are in service than it may have, however they
// come and go, and the others have all the rest.
func TestRunningLimit(t *testing.T) {
	f := newFixture(t)
	f.opt.Policy = tasks.Policy{
		Default: tasks.Allowance{Running: 3},
		Tenants: map[tasks.Tenant]tasks.Allowance{"narrow": {Running: 1}, "free": {}},
	}
	f.belt.slots = 8
	for range 30 {
		f.create("narrow")
	}
	for range 12 {
		f.create("usual")
		f.create("free")
	}
	w := &work{fixture: f}
	served := map[tasks.Tenant]int{}
	for range 40 {
		f.rounds(roundEvery)
		w.take()
		loads, err := f.store.Survey(t.Context(), []tasks.Tenant{"narrow", "usual", "free"}, f.clock, f.clock)
		if err != nil {
			t.Fatal(err)
		}
		if narrow, usual := inService(loads["narrow"]), inService(loads["usual"]); narrow > 1 || usual > 3 {
			t.Fatalf("in service: %d of one, %d of three", narrow, usual)
		}
		if loads["free"].Due > 0 && len(w.held) < f.belt.slots {
			t.Fatalf("%d of %d slots are used, and %d imports of a tenant without a limit wait", len(w.held), f.belt.slots, loads["free"].Due)
		}
		if len(w.held) > 0 {
			served[w.held[0].Tenant]++
			w.end(1)
		}
	}
	if served["free"] != 12 || served["usual"] != 12 || served["narrow"] < 10 {
		t.Errorf("served %v", served)
	}
}

// asked counts what a leader asks of store and queue.
type asked struct {
	tasks.Backlog
	transport
	dispatches, slots int
}

func (a *asked) Dispatch(ctx context.Context, tenant tasks.Tenant, cleanup bool, n int, now time.Time) ([]tasks.Ticket, error) {
	a.dispatches++
	return a.Backlog.Dispatch(ctx, tenant, cleanup, n, now)
}

func (a *asked) Slots() (int, error) {
	a.slots++
	return a.transport.Slots()
}

// TestATenantAtItsLimitCostsNothing: its queue is not looked at again and again, and
// the next one has its place at once.
func TestATenantAtItsLimitCostsNothing(t *testing.T) {
	f := newFixture(t)
	f.opt.Policy = tasks.Policy{Tenants: map[tasks.Tenant]tasks.Allowance{"narrow": {Running: 1}}}
	a := &asked{Backlog: f.store, transport: f.belt}
	f.backlog, f.queue = a, a
	for range 100 {
		f.create("narrow")
	}
	const time = 2 * predictEvery
	f.rounds(time)
	if len(f.belt.tickets) != 1 || a.dispatches != 1 || a.slots > 4 {
		t.Errorf("%d tickets; asked %d times for one, and %d times for slots", len(f.belt.tickets), a.dispatches, a.slots)
	}
	f.create("other")
	f.rounds(roundEvery)
	if n := len(f.belt.tickets); n != 2 || f.belt.tickets[1].Tenant != "other" {
		t.Errorf("tickets %+v", f.belt.tickets)
	}
}

// TestCleanUpsAreNotLimited: a tenant at its limit still gets rid of what it cancels.
func TestCleanUpsAreNotLimited(t *testing.T) {
	f := newFixture(t)
	f.opt.Policy.Default.Running = 1
	var specs []*tasks.Spec
	for range 3 {
		spec := f.create("a")
		if err := f.store.Release(t.Context(), f.claim(spec.Ref()), time.Hour, tasks.Attempt{Outcome: tasks.OutcomeRetry}); err != nil {
			t.Fatal(err)
		}
		specs = append(specs, spec)
	}
	f.create("a")
	f.rounds(roundEvery)
	f.claim(f.belt.tickets[0].Ref)
	for _, spec := range specs {
		if _, err := f.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "a"}, spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	f.rounds(roundEvery)
	if n := len(f.belt.tickets); n != 4 || !f.belt.tickets[3].Cleanup {
		t.Errorf("%d tickets, the last %+v", n, f.belt.tickets[n-1])
	}
}
