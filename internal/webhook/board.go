package webhook

import (
	"time"

	"vmimport/tasks"
)

// board is which tenants a courier has to visit, and when. It is for one goroutine.
type board struct {
	entries map[tasks.Tenant]*entry
	busy    int // tenants that are being visited
}

type entry struct {
	due   time.Time
	since time.Time // when its oldest event happened that was not delivered, as far as is known
	busy  bool
	again bool // there may be more than the present visit sees
}

// outcome is what came of a visit.
type outcome struct {
	tenant tasks.Tenant
	wait   time.Duration // until the next visit, if more is set
	more   bool
	since  time.Time // when the oldest event happened that was not delivered; zero: as before
}

func newBoard() *board { return &board{entries: map[tasks.Tenant]*entry{}} }

// add notes that there may be something for a tenant. One that waits goes on waiting.
func (b *board) add(t tasks.Tenant, now time.Time) {
	switch e := b.entries[t]; {
	case e == nil:
		b.entries[t] = &entry{due: now, since: now}
	case e.busy:
		e.again = true
	}
}

// take returns the tenant that is due for longest, to be visited now.
func (b *board) take(now time.Time) (tasks.Tenant, bool) {
	t, e := b.first()
	if e == nil || e.due.After(now) {
		return "", false
	}
	e.busy, e.again = true, false
	b.busy++
	return t, true
}

// done ends the visit that take began.
func (b *board) done(o outcome, now time.Time) {
	e := b.entries[o.tenant]
	e.busy = false
	b.busy--
	switch {
	case o.more:
		e.due = now.Add(o.wait)
		if !o.since.IsZero() {
			e.since = o.since
		}
	case e.again:
		e.due, e.since = now, now
	default:
		delete(b.entries, o.tenant)
	}
}

// first returns the tenant that is next to be visited; its entry is nil if there is none.
func (b *board) first() (tenant tasks.Tenant, first *entry) {
	for t, e := range b.entries {
		if !e.busy && (first == nil || e.due.Before(first.due)) {
			tenant, first = t, e
		}
	}
	return tenant, first
}

// oldest returns since when the oldest event waits; zero if none does.
func (b *board) oldest() (oldest time.Time) {
	for _, e := range b.entries {
		if oldest.IsZero() || e.since.Before(oldest) {
			oldest = e.since
		}
	}
	return oldest
}
