package queue

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

// Tuning of the Dispatcher. A worker that dies is missed after its lease (see
// pipeline.Lease) plus at most two rounds.
const (
	roundEvery = 500 * time.Millisecond
	roundLimit = time.Minute      // a round that takes longer is given up
	leadFor    = 5 * time.Second  // a dead leader is replaced after this
	renewEvery = time.Second      // within a round
	unclaimed  = 10 * time.Second // a ticket younger than this is left alone
	tidyEvery  = 5 * time.Second  // look after lost tickets and old records
	purgeBatch = 50               // records of a tenant at a time
	ahead      = 2                // tickets beyond the free slots, so that none idles
	cleanBatch = 100              // clean-ups of a tenant in a round
	maxErrors  = 5                // after which a round is given up
)

// crashPauses is how long an import waits after its n-th crash without progress.
// The first costs nothing, since most often the worker is to blame.
var crashPauses = []time.Duration{0, 30 * time.Second, 2 * time.Minute, 8 * time.Minute, 30 * time.Minute}

// transport is the part of Queue that the Dispatcher needs.
type transport interface {
	Enqueue(ctx context.Context, t tasks.Ticket) error
	Standing(t tasks.Ticket) (Standing, error)
	Slots() (int, error)
}

// Dispatcher moves due imports from their records to the queue, and brings back
// those whose worker or ticket was lost.
//
// It keeps only as many tickets in the queue as there are free slots and a few
// more, and gives each next one to the tenant with the fewest imports in
// service. So a tenant with a thousand imports delays another's single one by
// no more than a few. A tenant with as many in service as it may have is passed
// over, and takes none of that room.
type Dispatcher struct {
	backlog tasks.Backlog
	signals tasks.Signals
	queue   transport
	opt     DispatcherOptions

	// OnCancel is called for each cancel that the Dispatcher hears of, whether
	// it leads or not. Set it before Run.
	OnCancel func(tasks.ID)

	// Below is for Run's goroutine alone. Times are those of the store's clock.
	healthySince time.Time // since when every round has reached the store
	lastRound    time.Time
	lastTidy     time.Time
	renewed      time.Time              // the lead, by this process's clock
	served       map[tasks.Tenant]int64 // order in which tenants got their last ticket
	servings     int64
	suspects     map[string]bool // tasks seen taken but unclaimed at the last look
	forecast     forecast

	leading atomic.Bool
	expired atomic.Int64
}

// DispatcherOptions set up a Dispatcher.
type DispatcherOptions struct {
	// Who is its name, which no other one may have.
	Who string
	// Lease is how long a claim lasts without a beat.
	Lease time.Duration
	// Policy bounds how many imports of a tenant are in service at a time:
	// Allowance.Running. Clean-ups are handed out in any case.
	Policy tasks.Policy
	Log    zerolog.Logger
}

// NewDispatcher returns a Dispatcher, which does nothing before Run.
func NewDispatcher(backlog tasks.Backlog, signals tasks.Signals, queue transport, opt DispatcherOptions) *Dispatcher {
	return &Dispatcher{
		backlog: backlog, signals: signals, queue: queue, opt: opt,
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
	if err := d.backlog.Resign(ctx, d.opt.Who); err != nil {
		// Another takes the lead when it runs out.
		d.opt.Log.Warn().Err(err).Msg("dispatcher did not resign")
	}
	return nil
}

// listen turns signals into wake-ups. While it is deaf, the ticker does.
func (d *Dispatcher) listen(ctx context.Context, wake chan<- struct{}) {
	onWork := func() {
		select {
		case wake <- struct{}{}:
		default: // a round is due already
		}
	}
	if err := d.signals.Listen(ctx, onWork, func(id tasks.ID) { d.OnCancel(id) }); ctx.Err() == nil {
		d.opt.Log.Error().Err(err).Msg("dispatcher lost its signals")
	}
}

// errNotLeading ends a round of a Dispatcher that lost the lead meanwhile.
var errNotLeading = errors.New("another dispatcher leads")

// round does all there is to do now, if this Dispatcher leads.
func (d *Dispatcher) round(parent context.Context) {
	ctx, cancel := context.WithTimeout(parent, roundLimit)
	defer cancel()
	now, err := d.backlog.Now(ctx)
	if err != nil {
		d.leading.Store(false)
		d.lastRound = time.Time{}
		if parent.Err() == nil {
			d.opt.Log.Warn().Err(err).Msg("dispatcher does not reach the store")
		}
		return
	}
	// After a gap, whether the store was away or this process stood still, other
	// workers first get a lease's time to beat. A clock that was set ahead is a
	// gap. One that was set back only makes claims last longer: that nodes of a
	// Cluster differ by some milliseconds protects nobody.
	if now.Sub(d.lastRound) > d.opt.Lease/2 || now.Before(d.healthySince) {
		d.healthySince = now
	}
	d.lastRound = now
	d.renewed = time.Time{}
	err = d.keepLead(ctx)
	d.leading.Store(err == nil)
	if err == nil {
		err = d.lead(ctx, now)
	} else {
		d.forecast = forecast{}
	}
	if err != nil && !errors.Is(err, errNotLeading) && parent.Err() == nil {
		d.opt.Log.Warn().Err(err).Msg("dispatcher round failed")
	}
}

// keepLead takes the lead, or renews it when it is time.
func (d *Dispatcher) keepLead(ctx context.Context) error {
	if time.Since(d.renewed) < renewEvery {
		return nil
	}
	switch leads, err := d.backlog.Lead(ctx, d.opt.Who, leadFor); {
	case err != nil:
		return err
	case !leads:
		return errNotLeading
	}
	d.renewed = time.Now()
	return nil
}

// lead is one round of the leader: see what there is, hand out what is due, take
// back what was lost, and tidy up. What customers wait for comes first.
func (d *Dispatcher) lead(ctx context.Context, now time.Time) error {
	tenants, err := d.backlog.Tenants(ctx, now)
	if err != nil {
		return err
	}
	loads, err := d.backlog.Survey(ctx, tenants, now, now.Add(-unclaimed))
	if err != nil {
		return err
	}
	maps.DeleteFunc(d.served, func(t tasks.Tenant, _ int64) bool { return loads[t].Open == 0 })
	handed, err := d.dispatch(ctx, loads, now)
	err = errors.Join(err, d.reclaim(ctx, loads, now), d.predict(ctx, loads, handed, now))
	if now.Sub(d.lastTidy) >= tidyEvery || now.Before(d.lastTidy) {
		d.lastTidy = now
		err = errors.Join(err, d.tidy(ctx, loads, now))
	}
	return err
}

// each does something for every tenant whose load says so. One tenant's error is
// no obstacle for the others, unless there are too many.
func (d *Dispatcher) each(ctx context.Context, loads map[tasks.Tenant]tasks.Load, which func(tasks.Load) bool, do func(tasks.Tenant) error) error {
	var errs []error
	for tenant, load := range loads {
		if !which(load) {
			continue
		}
		if err := d.keepLead(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := do(tenant); err != nil {
			if errs = append(errs, err); len(errs) == maxErrors {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// dispatch hands out clean-ups, and imports as far as there is room. It brings loads
// up to date and returns how many imports it handed out.
func (d *Dispatcher) dispatch(ctx context.Context, loads map[tasks.Tenant]tasks.Load, now time.Time) (handed int, err error) {
	// Clean-ups have slots of their own, and so no part in the window.
	err = d.each(ctx, loads, func(l tasks.Load) bool { return l.Cleanups > 0 }, func(tenant tasks.Tenant) error {
		_, err := d.hand(ctx, tenant, true, min(loads[tenant].Cleanups, cleanBatch), now)
		return err
	})
	free, ferr := d.free(loads)
	if ferr != nil {
		return 0, errors.Join(err, ferr)
	}
	passed := map[tasks.Tenant]bool{} // over until the next round, after an error
	for ; free > 0 && len(passed) < maxErrors; free-- {
		tenant, ok := d.next(loads, passed)
		if !ok {
			break
		}
		if lerr := d.keepLead(ctx); lerr != nil {
			return handed, errors.Join(err, lerr)
		}
		n, herr := d.hand(ctx, tenant, false, 1, now)
		if herr != nil {
			err = errors.Join(err, herr)
			passed[tenant] = true
			continue
		}
		load := loads[tenant]
		load.Due-- // also if it was canceled meanwhile
		load.Dispatched += n
		loads[tenant] = load
		handed += n
		d.servings++
		d.served[tenant] = d.servings
	}
	return handed, err
}

// free counts how many tickets may be added to the queue.
func (d *Dispatcher) free(loads map[tasks.Tenant]tasks.Load) (int, error) {
	ready, dispatched, running := false, 0, 0
	for tenant, load := range loads {
		ready = ready || d.ready(tenant, load)
		dispatched += load.Dispatched
		running += load.Running
	}
	if !ready {
		return 0, nil
	}
	slots, err := d.queue.Slots()
	if err != nil {
		return 0, err
	}
	return max(slots-running, 0) + ahead - dispatched, nil
}

// ready reports whether a tenant has an import that is due and may be handed out.
func (d *Dispatcher) ready(tenant tasks.Tenant, load tasks.Load) bool {
	return load.Due > 0 && d.room(tenant, load) > 0
}

// room is how many more imports of a tenant may be in service.
func (d *Dispatcher) room(tenant tasks.Tenant, load tasks.Load) int {
	if most := d.opt.Policy.For(tenant).Running; most > 0 {
		return most - inService(load)
	}
	return math.MaxInt
}

func inService(load tasks.Load) int { return load.Dispatched + load.Running }

// next picks the tenant with the fewest imports in service, and among equals
// the one that has waited longest since its last turn.
func (d *Dispatcher) next(loads map[tasks.Tenant]tasks.Load, passed map[tasks.Tenant]bool) (tasks.Tenant, bool) {
	var best tasks.Tenant
	found := false
	for t, load := range loads {
		if d.ready(t, load) && !passed[t] && (!found || cmp.Or(
			cmp.Compare(inService(load), inService(loads[best])), cmp.Compare(d.served[t], d.served[best]), cmp.Compare(t, best)) < 0) {
			best, found = t, true
		}
	}
	return best, found
}

// hand gives n of a tenant's imports to the queue, and returns how many it got.
func (d *Dispatcher) hand(ctx context.Context, tenant tasks.Tenant, cleanup bool, n int, now time.Time) (handed int, err error) {
	tickets, err := d.backlog.Dispatch(ctx, tenant, cleanup, n, now)
	for _, t := range tickets {
		qerr := d.queue.Enqueue(ctx, t)
		if qerr == nil {
			handed++
			continue
		}
		// Without a task the ticket would be found in a while; this is sooner.
		err = errors.Join(err, qerr, d.backlog.Recall(ctx, t, now))
	}
	return handed, err
}

// reclaim takes back the claims of workers whose beats have stopped.
func (d *Dispatcher) reclaim(ctx context.Context, loads map[tasks.Tenant]tasks.Load, now time.Time) error {
	if now.Sub(d.healthySince) < d.opt.Lease {
		return nil
	}
	return d.each(ctx, loads, func(l tasks.Load) bool { return l.Expired > 0 }, func(tenant tasks.Tenant) error {
		lost, err := d.backlog.Expired(ctx, tenant, now)
		if err != nil {
			return err
		}
		for _, task := range lost {
			if err := d.expire(ctx, task, now); err != nil {
				return err
			}
		}
		return nil
	})
}

func (d *Dispatcher) expire(ctx context.Context, task *tasks.Task, now time.Time) error {
	attempt := tasks.Attempt{
		Epoch: task.Epoch, Worker: task.Worker, StartedAt: task.ClaimedAt, EndedAt: now.UTC(),
		Outcome: tasks.OutcomeLost, DoneBytes: task.DoneBytes,
		Cause: &tasks.Failure{Code: "worker_lost", Message: "The worker that ran the import stopped answering."},
	}
	pause := crashPauses[min(task.Crashes, len(crashPauses)-1)]
	err := d.backlog.Expire(ctx, tasks.Held{Ref: task.Ref(), Epoch: task.Epoch}, attempt, pause, now)
	switch {
	case fault.KindOf(err) == fault.Fenced:
		return nil // it beat in the last moment
	case err != nil:
		return err
	}
	d.expired.Add(1)
	d.opt.Log.Warn().Str("import_id", string(task.ID)).Int64("epoch", int64(task.Epoch)).Str("lost_worker", task.Worker).Dur("pause", pause).
		Msg("claim ran out; the import is queued again")
	return nil
}

// tidy recalls tickets that will never be claimed, and removes old records.
func (d *Dispatcher) tidy(ctx context.Context, loads map[tasks.Tenant]tasks.Load, now time.Time) error {
	suspects := map[string]bool{}
	err := d.each(ctx, loads, func(l tasks.Load) bool { return l.Unclaimed > 0 }, func(tenant tasks.Tenant) error {
		return d.recall(ctx, tenant, now, suspects)
	})
	d.suspects = suspects
	return errors.Join(err, d.each(ctx, loads, func(l tasks.Load) bool { return l.Ended > 0 || l.Open == 0 }, func(tenant tasks.Tenant) error {
		_, err := d.backlog.Purge(ctx, tenant, purgeBatch, now)
		return err
	}))
}

// recall recalls a tenant's tickets whose task is gone, or has been with a worker
// for two looks without a claim.
func (d *Dispatcher) recall(ctx context.Context, tenant tasks.Tenant, now time.Time, suspects map[string]bool) error {
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
		d.opt.Log.Warn().Str("import_id", string(t.ID)).Int64("ticket", t.Number).Str("task", string(standing)).Msg("ticket recalled")
		if err := d.backlog.Recall(ctx, t, now); err != nil {
			return err
		}
	}
	return nil
}
