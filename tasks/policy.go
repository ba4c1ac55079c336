package tasks

import "time"

// Allowance is what a tenant may have. Zero means no bound.
type Allowance struct {
	Unfinished     int   // tasks in a state that is not final, and images being removed
	Running        int   // tasks in the hands of workers at a time
	BytesPerSecond int64 // read by all tasks of the tenant together
}

// Policy says what each tenant may have. The zero value bounds nobody.
type Policy struct {
	Default Allowance
	Tenants map[Tenant]Allowance // whole allowances, in place of Default
}

// For returns a tenant's allowance.
func (p Policy) For(tenant Tenant) Allowance {
	if a, ok := p.Tenants[tenant]; ok {
		return a
	}
	return p.Default
}

// Outlook is what the leading dispatcher makes of the whole queue.
type Outlook struct {
	At         time.Time `json:"at"` // by the store's clock
	Slots      int       `json:"slots"`
	Running    int       `json:"running"`
	Waiting    int       `json:"waiting"`    // due, and within the limits of their tenants
	Contenders int       `json:"contenders"` // tenants that have tasks which are due
	// StartsPerMinute is at what rate tasks were started of late, while others waited.
	// 0: not known.
	StartsPerMinute float64 `json:"starts_per_minute"`
}

// Place is where a Queued task stands in the queue of its tenant.
type Place struct {
	Ahead      int  // tasks of the tenant that are started before it
	Running    int  // tasks of the tenant in the hands of workers; not known if Dispatched
	Dispatched bool // it was handed out, and waits only for a worker to take it
	Outlook    Outlook
}

// outlookLife is how old an Outlook may be: after that nobody leads.
const outlookLife = 30 * time.Second

// farthest is how far ahead a start is foretold. What is beyond is a guess.
const farthest = 7 * 24 * time.Hour

// Position is a Place for people.
type Position struct {
	Number int // in the queue of the tenant, from 1
	// Start is about when a worker will take it; zero if nothing tells, such as when no
	// worker runs, or another task of the tenant has to end first.
	Start time.Time
}

// position estimates a task's start from its place. Turns are dealt out evenly, so that a
// tenant gets one start in as many as there are contenders.
func (p Place) position(t *Task, now time.Time) Position {
	pos := Position{Number: p.Ahead + 1}
	o := p.Outlook
	if o.Slots == 0 || now.Sub(o.At) > outlookLife {
		return pos
	}
	due := now
	if t.NotBefore.After(now) {
		due = t.NotBefore
	}
	switch free := o.Slots - o.Running; {
	case p.Dispatched || free > o.Waiting:
		pos.Start = due
	case o.StartsPerMinute > 0:
		minutes := float64(pos.Number*max(o.Contenders, 1)) / o.StartsPerMinute
		if minutes > farthest.Minutes() {
			break
		}
		pos.Start = now.Add(time.Duration(minutes * float64(time.Minute)))
		if pos.Start.Before(due) {
			pos.Start = due
		}
	}
	return pos
}
