package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"vmimport/tasks"
)

// ledger is a store in memory.
type ledger struct {
	mu       sync.Mutex
	journals map[tasks.Tenant][]tasks.Change
	marks    int
	cursors  map[string]tasks.Cursor // by receiver and tenant
	known    map[string]time.Time    // receivers, and since when
	leaders  map[string]lease
	follows  map[int]func(tasks.Tenant)

	deaf  bool                        // hints are lost
	away  func(who string) bool       // whether the store is, for who leads
	mute  func(who string) bool       // whether it gives no answer to who leads
	moved func(to tasks.Cursor) error // asked before a cursor is moved
}

type lease struct {
	who   string
	until time.Time
}

var errAway = errors.New("the store is away")

func newLedger() *ledger {
	return &ledger{
		journals: map[tasks.Tenant][]tasks.Change{}, cursors: map[string]tasks.Cursor{},
		known: map[string]time.Time{}, leaders: map[string]lease{}, follows: map[int]func(tasks.Tenant){},
		moved: func(tasks.Cursor) error { return nil },
		away:  func(string) bool { return false },
		mute:  func(string) bool { return false },
	}
}

// add writes a change into a journal and returns its mark.
func (l *ledger) add(t tasks.Tenant, c tasks.Change) string {
	l.mu.Lock()
	l.marks++
	c.Mark, c.At = strconv.Itoa(l.marks), time.Now()
	l.journals[t] = append(l.journals[t], c)
	follows := make([]func(tasks.Tenant), 0, len(l.follows))
	for _, f := range l.follows {
		follows = append(follows, f)
	}
	deaf := l.deaf
	l.mu.Unlock()
	if !deaf {
		for _, f := range follows {
			f(t)
		}
	}
	return c.Mark
}

// trim drops all but the last n changes.
func (l *ledger) trim(t tasks.Tenant, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.journals[t] = slices.Clone(l.journals[t][len(l.journals[t])-n:])
}

func (l *ledger) Changes(_ context.Context, t tasks.Tenant, after string, limit int) ([]tasks.Change, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changes := l.journals[t]
	if after != "" {
		i := slices.IndexFunc(changes, func(c tasks.Change) bool { return c.Mark == after })
		if i < 0 {
			return nil, tasks.ErrMarkGone
		}
		changes = changes[i+1:]
	}
	return slices.Clone(changes[:min(limit, len(changes))]), nil
}

func (l *ledger) Latest(_ context.Context, t tasks.Tenant) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latest(t), nil
}

func (l *ledger) latest(t tasks.Tenant) string {
	if n := len(l.journals[t]); n > 0 {
		return l.journals[t][n-1].Mark
	}
	return ""
}

func (l *ledger) Running(context.Context, tasks.Tenant, int) ([]*tasks.Task, error) {
	return nil, errors.New("not needed here")
}

func (l *ledger) Follow(ctx context.Context, onChange func(tasks.Tenant)) error {
	l.mu.Lock()
	n := len(l.follows)
	l.follows[n] = onChange
	l.mu.Unlock()
	<-ctx.Done()
	return context.Cause(ctx)
}

func (l *ledger) Now(context.Context) (time.Time, error) { return time.Now(), nil }

func (l *ledger) LeadReceiver(ctx context.Context, receiver, who string, ttl time.Duration) (bool, error) {
	if l.mute(who) {
		<-ctx.Done()
		return false, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away(who) {
		return false, errAway
	}
	now := time.Now()
	if has := l.leaders[receiver]; has.who != "" && has.who != who && now.Before(has.until) {
		return false, nil
	}
	l.leaders[receiver] = lease{who, now.Add(ttl)}
	if _, ok := l.known[receiver]; !ok {
		l.known[receiver] = now
	}
	return true, nil
}

func (l *ledger) ResignReceiver(_ context.Context, receiver, who string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.away(who) {
		return errAway
	}
	if l.leaders[receiver].who == who {
		delete(l.leaders, receiver)
	}
	return nil
}

func (l *ledger) leader(receiver string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaders[receiver].who
}

func (l *ledger) Behind(_ context.Context, receiver string) ([]tasks.Tenant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var behind []tasks.Tenant
	for t := range l.journals {
		if l.cursor(receiver, t).Mark != l.latest(t) {
			behind = append(behind, t)
		}
	}
	return behind, nil
}

func (l *ledger) Cursor(_ context.Context, receiver string, t tasks.Tenant) (tasks.Cursor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cursor(receiver, t), nil
}

// at returns where the receiver "portal" is, and the last mark of the tenant.
func (l *ledger) at(t tasks.Tenant) (at tasks.Cursor, latest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cursor("portal", t), l.latest(t)
}

func (l *ledger) cursor(receiver string, t tasks.Tenant) tasks.Cursor {
	if c, ok := l.cursors[receiver+" "+string(t)]; ok {
		return c
	}
	var begin tasks.Cursor
	for _, c := range l.journals[t] {
		if c.At.Before(l.known[receiver]) {
			begin.Mark = c.Mark
		}
	}
	return begin
}

func (l *ledger) MoveCursor(_ context.Context, receiver string, t tasks.Tenant, from, to tasks.Cursor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.moved(to); err != nil {
		return err
	}
	if at := l.cursor(receiver, t); at != from {
		return fmt.Errorf("%w: it is at %s", tasks.ErrCursorMoved, at.Mark)
	}
	l.cursors[receiver+" "+string(t)] = to
	return nil
}
