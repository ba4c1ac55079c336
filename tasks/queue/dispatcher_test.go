package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"vmimport/internal/testenv"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	lease  = 8 * time.Second
	region = "jp-east-3"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// belt is a transport that keeps what it is handed.
type belt struct {
	tickets  []tasks.Ticket
	standing map[string]Standing
	slots    int
	err      error
}

func (b *belt) Enqueue(_ context.Context, t tasks.Ticket) error {
	if b.err != nil {
		return b.err
	}
	b.tickets = append(b.tickets, t)
	return nil
}

func (b *belt) Standing(t tasks.Ticket) (Standing, error) {
	if s, ok := b.standing[TaskID(t)]; ok {
		return s, nil
	}
	return Pending, nil
}

func (b *belt) Slots() (int, error) { return b.slots, nil }

// fixture is a Dispatcher on a real store, with a clock and a belt of its own.
type fixture struct {
	*Dispatcher
	t     *testing.T
	store *redisstore.Store
	belt  *belt
	clock time.Time
}

func newStore(rdb redis.UniversalClient, now func() time.Time) *redisstore.Store {
	return redisstore.New(rdb, redisstore.Options{Retention: 24 * time.Hour, Now: now})
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	f := &fixture{t: t, belt: &belt{slots: 4, standing: map[string]Standing{}}, clock: start}
	f.store = newStore(testenv.StartRedis(t).Client(), func() time.Time { return f.clock })
	f.Dispatcher = f.dispatcher("d1")
	return f
}

// dispatcher returns another Dispatcher on the same store and belt.
func (f *fixture) dispatcher(who string) *Dispatcher {
	return NewDispatcher(f.store, f.store, f.belt, DispatcherOptions{Who: who, Lease: lease, Log: zerolog.Nop()})
}

// rounds lets time pass, round by round.
func (f *fixture) rounds(d time.Duration) {
	for end := f.clock.Add(d); f.clock.Before(end); {
		f.clock = f.clock.Add(roundEvery)
		f.round(f.t.Context())
	}
}

func (f *fixture) create(tenant tasks.Tenant) *tasks.Spec {
	f.t.Helper()
	spec := &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: tenant, Project: "alpha"}, Region: region,
		ImageID: uuid.NewString(), RequestedAt: f.clock,
	}
	if _, _, err := f.store.Create(f.t.Context(), spec, tasks.Limits{}); err != nil {
		f.t.Fatal(err)
	}
	return spec
}

func (f *fixture) claim(ref tasks.Ref) tasks.Held {
	f.t.Helper()
	c, err := f.store.Claim(f.t.Context(), ref, "w1", lease)
	if err != nil {
		f.t.Fatal(err)
	}
	return c.Held
}

func (f *fixture) get(spec *tasks.Spec) *tasks.Task {
	f.t.Helper()
	task, err := f.store.Get(f.t.Context(), tasks.Scope{Region: region, Tenant: spec.Owner.Tenant}, spec.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	return task
}

func TestOneTenantDoesNotStarveAnother(t *testing.T) {
	f := newFixture(t)
	for range 40 {
		f.create("many")
	}
	f.belt.slots = 20
	f.rounds(time.Second)
	if n := len(f.belt.tickets); n != f.belt.slots+ahead {
		t.Fatalf("%d tickets for %d slots", n, f.belt.slots)
	}
	var held []tasks.Held
	for _, tk := range f.belt.tickets[:f.belt.slots] {
		held = append(held, f.claim(tk.Ref))
	}
	single := f.create("one")
	// Import by import ends, and the next ticket is taken: only those that were
	// out already come before the single one.
	for i, h := range held[:ahead+1] {
		if err := f.store.Fail(t.Context(), h, tasks.Failure{Code: "x"}, tasks.Attempt{}, 0); err != nil {
			t.Fatal(err)
		}
		f.claim(f.belt.tickets[f.belt.slots+i].Ref)
		f.rounds(roundEvery)
	}
	if got := f.get(single).State; got != tasks.Processing {
		t.Errorf("after %d imports of the other tenant have ended it is %s", ahead+1, got)
	}
}

func TestEqualTenantsTakeTurns(t *testing.T) {
	f := newFixture(t)
	f.belt.slots = 9 - ahead
	for range 9 {
		for _, tenant := range []tasks.Tenant{"a", "b", "c"} {
			f.create(tenant)
		}
	}
	f.rounds(roundEvery)
	count := map[tasks.Tenant]int{}
	for _, tk := range f.belt.tickets {
		count[tk.Tenant]++
	}
	if count["a"] != 3 || count["b"] != 3 || count["c"] != 3 {
		t.Errorf("tickets by tenant: %v", count)
	}
}

func TestCleanUpsDoNotWaitForSlots(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	held := f.claim(spec.Ref())
	if err := f.store.Release(t.Context(), held, time.Hour, tasks.Attempt{Outcome: tasks.OutcomeRetry}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		f.create("a")
	}
	f.rounds(roundEvery) // fills the window
	if _, err := f.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "a"}, spec.ID); err != nil {
		t.Fatal(err)
	}
	f.rounds(roundEvery)
	last := f.belt.tickets[len(f.belt.tickets)-1]
	if last.ID != spec.ID || queueOf(last) != CleanupQueue || len(f.belt.tickets) != f.belt.slots+ahead+1 {
		t.Errorf("last of %d tickets: %+v", len(f.belt.tickets), last)
	}
}

func TestDeadWorkersImportIsQueuedAgain(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	f.rounds(roundEvery)
	f.claim(spec.Ref())
	f.rounds(lease - time.Second)
	if got := f.get(spec).State; got != tasks.Processing {
		t.Errorf("%s before the lease is over", got)
	}
	f.rounds(2 * time.Second)
	task := f.get(spec)
	if task.State != tasks.Queued || task.Crashes != 1 || task.Attempts[0].Outcome != tasks.OutcomeLost || f.Expired() != 1 {
		t.Errorf("%+v", task)
	}
	if last := f.belt.tickets[len(f.belt.tickets)-1]; last.ID != spec.ID || last.Number != 2 {
		t.Errorf("last ticket %+v", last)
	}
}

// flaky fails while it is down.
type flaky struct {
	tasks.Backlog
	down bool
}

func (f *flaky) Now(ctx context.Context) (time.Time, error) {
	if f.down {
		return time.Time{}, errors.New("connection refused")
	}
	return f.Backlog.Now(ctx)
}

// TestAnOutageOfTheStoreIsNotTheDeathOfWorkers: nobody could beat, so everybody
// gets a lease's time to do so before claims are taken.
func TestAnOutageOfTheStoreIsNotTheDeathOfWorkers(t *testing.T) {
	f := newFixture(t)
	store := &flaky{Backlog: f.store}
	f.backlog = store
	spec := f.create("a")
	f.rounds(roundEvery)
	held := f.claim(spec.Ref())
	f.rounds(time.Second)
	store.down = true
	f.rounds(3 * lease)
	store.down = false
	f.rounds(lease / 2)
	if _, err := f.store.Beat(t.Context(), held, tasks.Progress{}, lease); err != nil {
		t.Fatalf("the worker was given up in an outage: %v", err)
	}
	// A process that was stopped itself is no judge either.
	f.rounds(lease / 2)
	f.clock = f.clock.Add(3 * lease)
	f.round(t.Context())
	if got := f.get(spec).State; got != tasks.Processing {
		t.Errorf("%s after a pause of the dispatcher", got)
	}
}

// TestCrashesAreFollowedByPauses keeps a fleet that crashes from failing its
// imports within a minute.
func TestCrashesAreFollowedByPauses(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	for i, pause := range crashPauses {
		f.rounds(roundEvery)
		f.claim(spec.Ref())
		f.rounds(lease + 2*roundEvery)
		task := f.get(spec)
		if got := task.NotBefore.Sub(task.Attempts[i].EndedAt); got != pause || task.Crashes != i+1 {
			t.Errorf("crash %d: pause of %s, want %s", task.Crashes, got, pause)
		}
		f.clock = f.clock.Add(pause)
		f.rounds(lease)
	}
}

// far makes every call to the store take as long as a far network would.
type far struct {
	tasks.Backlog
	calls *int
}

func (f far) Survey(ctx context.Context, tenants []tasks.Tenant, now, before time.Time) (map[tasks.Tenant]tasks.Load, error) {
	*f.calls += len(tenants)/200 + 1
	return f.Backlog.Survey(ctx, tenants, now, before)
}

func (f far) Expired(ctx context.Context, tenant tasks.Tenant, now time.Time) ([]*tasks.Task, error) {
	*f.calls++
	return f.Backlog.Expired(ctx, tenant, now)
}

func (f far) Unclaimed(ctx context.Context, tenant tasks.Tenant, before time.Time) ([]tasks.Ticket, error) {
	*f.calls++
	return f.Backlog.Unclaimed(ctx, tenant, before)
}

func (f far) Purge(ctx context.Context, tenant tasks.Tenant, n int, now time.Time) (int, error) {
	*f.calls++
	return f.Backlog.Purge(ctx, tenant, n, now)
}

// TestRoundsDoNotGrowWithTenants counts what a round asks of the store for many
// tenants that have nothing to be done.
func TestRoundsDoNotGrowWithTenants(t *testing.T) {
	f := newFixture(t)
	calls := 0
	f.backlog = far{f.store, &calls}
	f.belt.slots = 1
	for i := range 1000 {
		f.create(tasks.Tenant(fmt.Sprint("t", i)))
	}
	f.rounds(2 * tidyEvery)
	rounds := int(2 * tidyEvery / roundEvery)
	if most := rounds * 10; calls > most {
		t.Errorf("%d calls in %d rounds", calls, rounds)
	}
	if len(f.belt.tickets) != 1+ahead {
		t.Errorf("%d tickets", len(f.belt.tickets))
	}
}

func TestLostTicketsAreRecalled(t *testing.T) {
	f := newFixture(t)
	f.belt.slots = 10
	pending, gone, taken := f.create("a"), f.create("a"), f.create("a")
	f.rounds(roundEvery)
	name := func(s *tasks.Spec, n int64) string { return TaskID(tasks.Ticket{Ref: s.Ref(), Number: n}) }
	f.belt.standing[name(gone, 1)] = Gone
	f.belt.standing[name(taken, 1)] = Taken
	f.rounds(unclaimed + 3*tidyEvery)
	var again []tasks.ID
	for _, tk := range f.belt.tickets[3:] {
		if tk.Number != 2 {
			t.Errorf("ticket %+v", tk)
		}
		again = append(again, tk.ID)
	}
	if len(again) != 2 || !slices.Contains(again, gone.ID) || !slices.Contains(again, taken.ID) || slices.Contains(again, pending.ID) {
		t.Errorf("handed out again: %v", again)
	}
}

func TestNothingIsLostWhenTheQueueIsAway(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	f.belt.err = errors.New("connection refused")
	f.rounds(2 * time.Second)
	f.belt.err = nil
	f.rounds(roundEvery)
	if len(f.belt.tickets) != 1 || f.belt.tickets[0].ID != spec.ID {
		t.Errorf("tickets %+v", f.belt.tickets)
	}
}

func TestOnlyTheLeaderDispatches(t *testing.T) {
	f := newFixture(t)
	other := f.dispatcher("d2")
	f.round(t.Context())
	other.round(t.Context())
	if !f.Leading() || other.Leading() {
		t.Errorf("first leads %v, second %v", f.Leading(), other.Leading())
	}
	f.create("a")
	other.round(t.Context())
	if len(f.belt.tickets) != 0 {
		t.Error("a follower dispatched")
	}
	if err := f.backlog.Resign(t.Context(), "d1"); err != nil {
		t.Fatal(err)
	}
	other.round(t.Context())
	if !other.Leading() || len(f.belt.tickets) != 1 {
		t.Errorf("after the resignation: leads %v, %d tickets", other.Leading(), len(f.belt.tickets))
	}
}

func TestOldRecordsArePurged(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	if _, err := f.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: "a"}, spec.ID); err != nil {
		t.Fatal(err)
	}
	f.rounds(tidyEvery)
	f.get(spec)
	f.clock = f.clock.Add(25 * time.Hour)
	f.rounds(tidyEvery + time.Second)
	if _, err := f.store.Get(t.Context(), tasks.Scope{Region: region, Tenant: "a"}, spec.ID); !errors.Is(err, tasks.ErrUnknown) {
		t.Errorf("after its retention: %v", err)
	}
}

func TestQueueNames(t *testing.T) {
	t.Parallel()
	a := tasks.Ticket{Ref: tasks.Ref{Tenant: "t", ID: "x"}, Number: 1}
	b := a
	b.Number = 2
	if TaskID(a) == TaskID(b) || TaskID(a) != "x.1" {
		t.Errorf("%s, %s", TaskID(a), TaskID(b))
	}
	if queueOf(a) != ImportQueue || queueOf(tasks.Ticket{Cleanup: true}) != CleanupQueue {
		t.Errorf("queues %s, %s", queueOf(a), queueOf(tasks.Ticket{Cleanup: true}))
	}
}

// TestALostLeadStaysLost: that another leads is not forgotten by the next step of
// the same round.
func TestALostLeadStaysLost(t *testing.T) {
	f := newFixture(t)
	if ok, err := f.store.Lead(t.Context(), "d2", leadFor); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for range 2 {
		if err := f.keepLead(t.Context()); !errors.Is(err, errNotLeading) {
			t.Errorf("keepLead: %v", err)
		}
	}
}

// jittery is a Cluster whose nodes' clocks differ a little.
type jittery struct {
	tasks.Backlog
	asked int
}

func (j *jittery) Now(ctx context.Context) (time.Time, error) {
	now, err := j.Backlog.Now(ctx)
	if j.asked++; j.asked%2 == 0 {
		now = now.Add(-roundEvery - 5*time.Millisecond)
	}
	return now, err
}

func TestClocksThatDifferDoNotProtectTheDead(t *testing.T) {
	f := newFixture(t)
	spec := f.create("a")
	f.rounds(roundEvery)
	f.claim(spec.Ref())
	f.backlog = &jittery{Backlog: f.store}
	f.rounds(3 * lease)
	if got := f.get(spec); got.Crashes != 1 {
		t.Errorf("%s after three leases without a beat", got.State)
	}
}
