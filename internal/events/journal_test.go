package events_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"vmimport/tasks"
)

// journal is a tasks.Journal in memory, of any number of tenants.
type journal struct {
	mu      sync.Mutex
	changes map[tasks.Tenant][]tasks.Change
	dropped map[tasks.Tenant]int // changes before these
	running map[tasks.Tenant][]*tasks.Task
	hints   []func(tasks.Tenant)
	deaf    bool // no hints are given
	fails   error
	calls   map[string]int
}

func newJournal() *journal {
	return &journal{
		changes: map[tasks.Tenant][]tasks.Change{}, dropped: map[tasks.Tenant]int{},
		running: map[tasks.Tenant][]*tasks.Task{}, calls: map[string]int{},
	}
}

// enter locks the journal, and returns what the call is to fail with.
func (j *journal) enter(call string) error {
	j.mu.Lock()
	j.calls[call]++
	return j.fails
}

func (j *journal) Changes(_ context.Context, tenant tasks.Tenant, after string, limit int) ([]tasks.Change, error) {
	defer j.mu.Unlock()
	if err := j.enter("changes"); err != nil {
		return nil, err
	}
	all := j.changes[tenant]
	from := 0
	if after != "" {
		at := slices.IndexFunc(all, func(c tasks.Change) bool { return c.Mark == after })
		if at < 0 && after != j.lastDropped(tenant) {
			return nil, tasks.ErrMarkGone
		}
		from = at + 1
	}
	return slices.Clone(all[from:min(len(all), from+limit)]), nil
}

// lastDropped is a mark from which nothing is missing yet.
func (j *journal) lastDropped(tenant tasks.Tenant) string { return mark(tenant, j.dropped[tenant]) }

func (j *journal) Latest(_ context.Context, tenant tasks.Tenant) (string, error) {
	defer j.mu.Unlock()
	if err := j.enter("latest"); err != nil {
		return "", err
	}
	if all := j.changes[tenant]; len(all) > 0 {
		return all[len(all)-1].Mark, nil
	}
	return "", nil
}

func (j *journal) Running(_ context.Context, tenant tasks.Tenant, limit int) ([]*tasks.Task, error) {
	defer j.mu.Unlock()
	if err := j.enter("running"); err != nil {
		return nil, err
	}
	var list []*tasks.Task
	for _, t := range j.running[tenant][:min(limit, len(j.running[tenant]))] {
		list = append(list, new(*t))
	}
	return list, nil
}

func (j *journal) Follow(ctx context.Context, onChange func(tasks.Tenant)) error {
	j.mu.Lock()
	j.hints = append(j.hints, onChange)
	j.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func mark(tenant tasks.Tenant, n int) string { return fmt.Sprintf("%s-%d", tenant, n) }

// add writes a change of a task.
func (j *journal) add(tenant tasks.Tenant, c tasks.Change) tasks.Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.Mark = mark(tenant, j.dropped[tenant]+len(j.changes[tenant])+1)
	c.Kind, c.State = cmp.Or(c.Kind, tasks.KindImport), cmp.Or(c.State, tasks.Processing)
	j.changes[tenant] = append(j.changes[tenant], c)
	if !j.deaf {
		for _, hint := range j.hints {
			hint(tenant)
		}
	}
	return c
}

// trim drops the oldest changes.
func (j *journal) trim(tenant tasks.Tenant, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.changes[tenant] = j.changes[tenant][n:]
	j.dropped[tenant] += n
}

func (j *journal) run(tenant tasks.Tenant, list ...*tasks.Task) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.running[tenant] = list
}

func (j *journal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fails = err
}

func (j *journal) count(call string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.calls[call]
}
