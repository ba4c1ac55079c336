package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"vmimport/tasks"
)

const (
	pageOfFeed = 256 // changes that are read at once
	tail       = 128 // changes that a feed remembers, of some hundred bytes each
	mostTasks  = 500 // running ones of a tenant whose progress is told
)

// feed is what all streams of a tenant share: the tail of its journal, and the progress of
// what runs.
type feed struct {
	hub    *Hub
	tenant tasks.Tenant
	ctx    context.Context
	stop   context.CancelFunc
	hint   chan struct{}

	streams int // guarded by the Hub

	mu      sync.Mutex
	begun   bool
	base    string         // mark before the first of recent
	recent  []tasks.Change // its elements are never changed, so that streams may keep parts of it
	running map[tasks.ID]progress
	round   uint64        // number of the last look at what runs
	news    chan struct{} // closed at the next that happens
}

// progress is how a task was when it last changed.
type progress struct {
	Progress
	subject
	round uint64
}

func newFeed(h *Hub, tenant tasks.Tenant) *feed {
	f := &feed{hub: h, tenant: tenant, hint: make(chan struct{}, 1), news: make(chan struct{})}
	f.ctx, f.stop = context.WithCancel(h.ctx)
	return f
}

// wake has the feed look at once.
func (f *feed) wake() {
	select {
	case f.hint <- struct{}{}:
	default:
	}
}

func (f *feed) run() {
	defer f.stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	f.look(true)
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
			f.look(true)
		case <-f.hint:
			select {
			case <-f.ctx.Done():
				return
			case <-time.After(settle):
			}
			f.look(false)
		}
	}
}

// look reads what is new. What runs is read after the changes: so no progress is told of a
// task whose end was told.
func (f *feed) look(all bool) {
	changed, err := f.readChanges()
	if err == nil && all && f.begun {
		var moved bool
		moved, err = f.readRunning()
		changed = changed || moved
	}
	if changed {
		f.mu.Lock()
		close(f.news)
		f.news = make(chan struct{})
		f.mu.Unlock()
	}
	if err != nil && f.ctx.Err() == nil {
		f.hub.opts.Trouble(fmt.Errorf("events of a tenant: %w", err))
	}
}

// readChanges takes the changes since the last time into the tail.
func (f *feed) readChanges() (grown bool, err error) {
	if !f.begun {
		mark, err := f.hub.journal.Latest(f.ctx, f.tenant)
		if err != nil {
			return false, err
		}
		f.begin(mark)
		grown = true // for streams that are behind the mark
	}
	for {
		page, err := f.hub.journal.Changes(f.ctx, f.tenant, f.end(), pageOfFeed)
		if errors.Is(err, tasks.ErrMarkGone) {
			f.lose()
			return true, nil // streams find that out by themselves, and the next look begins anew
		}
		if err != nil {
			return grown, err
		}
		f.take(page)
		grown = grown || len(page) > 0
		if len(page) < pageOfFeed {
			return grown, nil
		}
	}
}

// begin has the tail begin after mark.
func (f *feed) begin(mark string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun, f.base = true, mark
}

// lose forgets the tail.
func (f *feed) lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun, f.recent, f.running = false, nil, nil
}

// end returns the mark of the last change in the tail.
func (f *feed) end() string {
	if n := len(f.recent); n > 0 {
		return f.recent[n-1].Mark
	}
	return f.base
}

func (f *feed) take(page []tasks.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recent = append(f.recent, page...)
	if over := len(f.recent) - tail; over > 0 {
		f.base = f.recent[over-1].Mark
		f.recent = f.recent[over:]
	}
	for _, c := range page {
		delete(f.running, c.ID) // it was read before the change
	}
}

// readRunning reads how the tasks that run stand.
func (f *feed) readRunning() (moved bool, err error) {
	list, err := f.hub.journal.Running(f.ctx, f.tenant, mostTasks)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.round++
	running := make(map[tasks.ID]progress, len(list))
	for _, t := range list {
		p := progress{progressOf(t), subject{t.Region, t.Dialect, t.Owner.Project, t.Kind(), t.ID}, f.round}
		if old, known := f.running[t.ID]; known && old.Progress == p.Progress {
			p.round = old.round
		} else {
			moved = true
		}
		running[t.ID] = p
	}
	f.running = running
	return moved, nil
}

// after returns what the tail has behind a mark, and whether it reaches back to it.
func (f *feed) after(mark string) (changes []tasks.Change, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, c := range slices.Backward(f.recent) {
		if c.Mark == mark {
			return f.recent[i+1:], true
		}
	}
	return f.recent, f.begun && mark == f.base
}

// movedSince returns the progress of tasks that a filter selects, as far as it is newer than a
// round, and the present round. A stream that is not at the end of the tail gets none.
func (f *feed) movedSince(round uint64, filter Filter, mark string) ([]Progress, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.begun || mark != f.end() || round == f.round {
		return nil, round
	}
	var moved []Progress
	for _, p := range f.running {
		if p.round > round && filter.selects(p.subject) {
			moved = append(moved, p.Progress)
		}
	}
	slices.SortFunc(moved, func(a, b Progress) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return moved, f.round
}

// next returns what is closed when something has happened.
func (f *feed) next() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.news
}
