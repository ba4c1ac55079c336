package queue

import (
	"context"
	"time"

	"vmimport/tasks"
)

// predictEvery is the time between two outlooks. Whoever reads one takes it for the
// present while it is younger than 30 s.
const predictEvery = 5 * time.Second

// forecast is what a leader knows of the queue beyond the present.
type forecast struct {
	begun     bool // the last leader's pace was taken over
	pace      pace
	predicted time.Time // zero: not yet
}

// predict follows the pace of the queue, and stores an outlook every now and then.
func (d *Dispatcher) predict(ctx context.Context, loads map[tasks.Tenant]tasks.Load, handed int, now time.Time) error {
	f := &d.forecast
	if !f.begun {
		last, err := d.backlog.Outlook(ctx)
		if err != nil {
			return err
		}
		f.begun, f.pace = true, paceOf(last.StartsPerMinute)
	}
	o := tasks.Outlook{At: now}
	for tenant, load := range loads {
		o.Running += load.Running
		if d.ready(tenant, load) {
			o.Contenders++
			o.Waiting += min(load.Due, d.room(tenant, load))
		}
	}
	f.pace.observe(now, handed, o.Waiting > 0)
	if age := now.Sub(f.predicted); age >= 0 && age < predictEvery {
		return nil
	}
	var err error
	if o.Slots, err = d.queue.Slots(); err != nil {
		return err
	}
	o.StartsPerMinute = f.pace.perMinute()
	if err := d.backlog.Predict(ctx, o); err != nil {
		return err
	}
	// Without any slot there is soon news: a worker that has just begun is not listed yet.
	if o.Slots > 0 {
		f.predicted = now
	}
	return nil
}

// pace is the rate at which imports were handed out of late, while others waited: starts
// and the time that they took, of which the older fade. When nothing is started though
// work waits, the rate falls as time grows.
type pace struct {
	starts, minutes float64

	at      time.Time // of the last round
	waiting bool      // whether work was left waiting then
}

// What counts as of late: a minute, or twenty starts if these took longer, since imports
// may take hours.
const (
	recentMinutes = 1
	recentStarts  = 20
	// fewMinutes is how long a pace is followed before anything is said about it.
	fewMinutes = 5. / 60
)

// paceOf returns a pace that has been steady.
func paceOf(perMinute float64) pace {
	if perMinute <= 0 {
		return pace{}
	}
	minutes := max(recentMinutes, recentStarts/perMinute)
	return pace{starts: perMinute * minutes, minutes: minutes}
}

// observe takes account of a round that handed out so many imports. The time before it
// counts if work was waiting; of longer than a lead lasts nobody knows who led in it.
func (p *pace) observe(now time.Time, handed int, waiting bool) {
	if since := now.Sub(p.at); p.waiting && since >= 0 && since <= leadFor {
		p.starts += float64(handed)
		p.minutes += since.Minutes()
		keep := min(1, max(recentMinutes/p.minutes, recentStarts/p.starts))
		p.starts *= keep
		p.minutes *= keep
	}
	p.at, p.waiting = now, waiting
}

// perMinute is the rate, 0 if it is not known.
func (p *pace) perMinute() float64 {
	if p.minutes < fewMinutes {
		return 0
	}
	return p.starts / p.minutes
}
