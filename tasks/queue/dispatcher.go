package queue

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"vmimport/tasks"
)

// Tuning of the Dispatcher. A worker that dies is missed after its lease (see
// pipeline.Lease) plus at most two rounds.
const (
	roundEvery = 500 * time.Millisecond
	leadFor    = 3 * time.Second  // a dead leader is replaced after this
	checkEvery = 5 * time.Second  // look for tickets whose task is gone
	unclaimed  = 10 * time.Second // a ticket younger than this is left alone
	purgeEvery = 30 * time.Second
	purgeBatch = 100
	minWindow  = 2 // tickets in the queue, however few slots are known
)

// transport is the part of Queue that the Dispatcher needs.
type transport interface {
	Enqueue(ctx context.Context, t tasks.Ticket) error
	Standing(t tasks.Ticket) (Standing, error)
	Slots() (int, error)
}

// Dispatcher moves due imports from their records to the queue, and brings back
// those whose worker or ticket was lost.
//
// It keeps only as many tickets in the queue as there are slots, and gives each
// next one to the tenant with the fewest imports in service. So a tenant with a
// thousand imports delays another's single one by no more than a few.
type Dispatcher struct {
	backlog tasks.Backlog
	signals tasks.Signals
	queue   transport
	who     string
	lease   time.Duration
	log     zerolog.Logger
	now     func() time.Time

	// OnCancel is called for each cancel that the Dispatcher hears of, whether
	// it leads or not. Set it before Run.
	OnCancel func(tasks.ID)

	// Below is for Run's goroutine alone.
	healthySince time.Time // since when every round has reached the store
	lastRound    time.Time
	lastCheck    time.Time
	lastPurge    time.Time
	served       map[tasks.Tenant]int64 // order in which tenants got their last ticket
	servings     int64
	suspects     map[string]bool // tasks seen taken but unclaimed at the last check

	leading atomic.Bool
	expired atomic.Int64
}

// NewDispatcher returns a Dispatcher that calls itself who, which no other one
// may do. lease is how long a claim lasts without a beat.
func NewDispatcher(backlog tasks.Backlog, signals tasks.Signals, queue transport, who string, lease time.Duration, log zerolog.Logger) *Dispatcher {
	return &Dispatcher{
		backlog: backlog, signals: signals, queue: queue, who: who, lease: lease, log: log, now: time.Now,
		OnCancel: func(tasks.ID) {},
		served:   map[tasks.Tenant]int64{},
		suspects: map[string]bool{},
	}
}

// Leading reports whether this Dispatcher led in its last round.
func (d *Dispatcher) Leading() bool { return d.leading.Load() }

// Expired counts the claims that this Dispatcher took from dead workers.
func (d *Dispatcher) Expired() int64 { return d.expired.Load() }

// Run dispatches until ctx ends, then gives the lead back.
func (d *Dispatcher) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		d.listen(ctx, wake)
	}()
	tick := time.NewTicker(roundEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			d.round(ctx)
		case <-wake:
			d.round(ctx)
		}
	}
	<-listening
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return d.backlog.Resign(ctx, d.who)
}

// listen turns signals into wake-ups. While it is deaf, the ticker does.
func (d *Dispatcher) listen(ctx context.Context, wake chan<- struct{}) {
	onWork := func() {
		select {
		case wake <- struct{}{}:
		default: // a round is due already
		}
	}
	for ctx.Err() == nil {
		err := d.signals.Listen(ctx, onWork, func(id tasks.ID) { d.OnCancel(id) })
		if ctx.Err() == nil {
			d.log.Warn().Err(err).Msg("dispatcher lost its signals")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// round does all there is to do now, if this Dispatcher leads.
func (d *Dispatcher) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leadFor)
	defer cancel()
	now := d.now()
	// A process that was stopped for a while saw nothing in between.
	if now.Sub(d.lastRound) > d.lease/2 {
		d.healthySince = now
	}
	d.lastRound = now
	leads, err := d.backlog.Lead(ctx, d.who, leadFor)
	d.leading.Store(leads && err == nil)
	if err == nil && leads {
		err = d.lead(ctx, now)
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn().Err(err).Msg("dispatcher round failed")
	}
	if err != nil {
		d.healthySince = d.now()
	}
}

func (d *Dispatcher) lead(ctx context.Context, now time.Time) error {
	tenants, err := d.backlog.Tenants(ctx, now)
	if err != nil {
		return err
	}
	due := func(last *time.Time, every time.Duration) bool {
		if now.Sub(*last) < every {
			return false
		}
		*last = now
		return true
	}
	check, purge := due(&d.lastCheck, checkEvery), due(&d.lastPurge, purgeEvery)
	suspects := map[string]bool{}
	loads := make(map[tasks.Tenant]tasks.Load, len(tenants))
	for _, tenant := range tenants {
		// Workers cannot beat while the store is away, so claims that ran out
		// then say nothing: each worker first gets a whole lease to beat again.
		if now.Sub(d.healthySince) >= d.lease {
			if err := d.expire(ctx, tenant, now); err != nil {
				return err
			}
		}
		if check {
			if err := d.check(ctx, tenant, now, suspects); err != nil {
				return err
			}
		}
		if purge {
			if _, err := d.backlog.Purge(ctx, tenant, purgeBatch, now); err != nil {
				return err
			}
		}
		if loads[tenant], err = d.backlog.Load(ctx, tenant, now); err != nil {
			return err
		}
	}
	if check {
		d.suspects = suspects
	}
	maps.DeleteFunc(d.served, func(t tasks.Tenant, _ int64) bool { return loads[t] == tasks.Load{} })
	return d.dispatch(ctx, loads, now)
}

// expire takes back the claims of workers whose beats have stopped.
func (d *Dispatcher) expire(ctx context.Context, tenant tasks.Tenant, now time.Time) error {
	lost, err := d.backlog.Expired(ctx, tenant, now)
	if err != nil {
		return err
	}
	for _, imp := range lost {
		attempt := tasks.Attempt{
			Epoch: imp.Epoch, Worker: imp.Worker, StartedAt: imp.ClaimedAt, EndedAt: now.UTC(),
			Outcome: tasks.OutcomeLost, DoneBytes: imp.DoneBytes,
			Cause: &tasks.Failure{Code: "worker_lost", Message: "The worker that ran the import stopped answering."},
		}
		held := tasks.Held{Ref: imp.Ref(), Epoch: imp.Epoch}
		switch err := d.backlog.Expire(ctx, held, attempt, now); {
		case err == nil:
			d.expired.Add(1)
			d.log.Warn().Str("import_id", string(imp.ID)).Int64("epoch", int64(imp.Epoch)).Str("worker", imp.Worker).
				Msg("claim ran out; the import is queued again")
		case !isFenced(err): // fenced: it beat in the last moment
			return err
		}
	}
	return nil
}

// check recalls tickets that will never be claimed: their task is gone, or has
// been with a worker for two checks without a claim.
func (d *Dispatcher) check(ctx context.Context, tenant tasks.Tenant, now time.Time, suspects map[string]bool) error {
	tickets, err := d.backlog.Unclaimed(ctx, tenant, now.Add(-unclaimed))
	if err != nil {
		return err
	}
	for _, t := range tickets {
		standing, err := d.queue.Standing(t)
		if err != nil {
			return err
		}
		name := TaskID(t)
		switch {
		case standing == Pending:
			continue
		case standing == Taken && !d.suspects[name]:
			suspects[name] = true
			continue
		}
		d.log.Warn().Str("import_id", string(t.ID)).Int64("ticket", t.Number).Str("task", string(standing)).Msg("ticket recalled")
		if err := d.backlog.Recall(ctx, t, now); err != nil {
			return err
		}
	}
	return nil
}

// dispatch fills the window, tenant by tenant.
func (d *Dispatcher) dispatch(ctx context.Context, loads map[tasks.Tenant]tasks.Load, now time.Time) error {
	for tenant, load := range loads {
		// Clean-ups have slots of their own, and so no part in the window.
		if load.Urgent > 0 {
			if err := d.hand(ctx, tenant, load.Urgent, now); err != nil {
				return err
			}
			load.Due -= load.Urgent
			load.Waiting -= load.Urgent
			loads[tenant] = load
		}
	}
	free, err := d.free(loads)
	if err != nil {
		return err
	}
	for ; free > 0; free-- {
		tenant, ok := d.next(loads)
		if !ok {
			return nil
		}
		if err := d.hand(ctx, tenant, 1, now); err != nil {
			return err
		}
		load := loads[tenant]
		load.Due--
		load.Dispatched++
		loads[tenant] = load
		d.servings++
		d.served[tenant] = d.servings
	}
	return nil
}

// free counts how many tickets may be added to the queue.
func (d *Dispatcher) free(loads map[tasks.Tenant]tasks.Load) (int, error) {
	due, dispatched := 0, 0
	for _, load := range loads {
		due += load.Due
		dispatched += load.Dispatched
	}
	if due == 0 {
		return 0, nil
	}
	slots, err := d.queue.Slots()
	if err != nil {
		return 0, err
	}
	return max(slots, minWindow) - dispatched, nil
}

// next picks the tenant with the fewest imports in service, and among equals
// the one that has waited longest since its last turn.
func (d *Dispatcher) next(loads map[tasks.Tenant]tasks.Load) (tasks.Tenant, bool) {
	var waiting []tasks.Tenant
	for tenant, load := range loads {
		if load.Due > 0 {
			waiting = append(waiting, tenant)
		}
	}
	if len(waiting) == 0 {
		return "", false
	}
	inService := func(t tasks.Tenant) int { return loads[t].Dispatched + loads[t].Running }
	return slices.MinFunc(waiting, func(a, b tasks.Tenant) int {
		return cmp.Or(cmp.Compare(inService(a), inService(b)), cmp.Compare(d.served[a], d.served[b]), cmp.Compare(a, b))
	}), true
}

// hand gives n of a tenant's imports to the queue.
func (d *Dispatcher) hand(ctx context.Context, tenant tasks.Tenant, n int, now time.Time) error {
	tickets, err := d.backlog.Dispatch(ctx, tenant, n, now)
	if err != nil {
		return err
	}
	for _, t := range tickets {
		if err := d.queue.Enqueue(ctx, t); err != nil {
			// Without a task, check would recall it in a while; this is sooner.
			_ = d.backlog.Recall(ctx, t, now)
			return err
		}
	}
	return nil
}
