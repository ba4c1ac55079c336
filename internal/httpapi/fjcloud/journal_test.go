package fjcloud_test

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"vmimport/tasks"
)

// fakeJournal keeps what happened to the tasks of a fakeService.
type fakeJournal struct {
	mu      sync.Mutex
	changes map[tasks.Tenant][]tasks.Change
	serial  int
	running []*tasks.Task
	hint    func(tasks.Tenant)
	fails   error
}

func newFakeJournal() *fakeJournal { return &fakeJournal{changes: map[tasks.Tenant][]tasks.Change{}} }

// note writes down the state of a task.
func (j *fakeJournal) note(t *tasks.Task) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.serial++
	c := tasks.Change{
		Mark: fmt.Sprintf("m-%d", j.serial), ID: t.ID, Kind: t.Kind(), Region: t.Region, Project: t.Owner.Project, Dialect: t.Dialect,
		Name: t.Name, State: t.State, Progress: t.Progress, Epoch: t.Epoch, At: t.RequestedAt, Failure: t.Failure,
	}
	j.changes[t.Owner.Tenant] = append(j.changes[t.Owner.Tenant], c)
	if j.hint != nil {
		j.hint(t.Owner.Tenant)
	}
}

// forget drops all but the last change of a tenant.
func (j *fakeJournal) forget(tenant tasks.Tenant) {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := j.changes[tenant]
	j.changes[tenant] = all[len(all)-1:]
}

func (j *fakeJournal) run(list ...*tasks.Task) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.running = list
}

func (j *fakeJournal) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fails = err
}

func (j *fakeJournal) Changes(_ context.Context, tenant tasks.Tenant, after string, limit int) ([]tasks.Change, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := j.changes[tenant]
	at := slices.IndexFunc(all, func(c tasks.Change) bool { return c.Mark == after })
	switch {
	case j.fails != nil:
		return nil, j.fails
	case at < 0 && after != "":
		return nil, tasks.ErrMarkGone
	}
	return slices.Clone(all[at+1 : min(len(all), at+1+limit)]), nil
}

func (j *fakeJournal) Latest(_ context.Context, tenant tasks.Tenant) (string, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if all := j.changes[tenant]; len(all) > 0 && j.fails == nil {
		return all[len(all)-1].Mark, nil
	}
	return "", j.fails
}

func (j *fakeJournal) Running(_ context.Context, tenant tasks.Tenant, _ int) ([]*tasks.Task, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var list []*tasks.Task
	for _, t := range j.running {
		if t.Owner.Tenant == tenant {
			list = append(list, clone(t))
		}
	}
	return list, j.fails
}

func (j *fakeJournal) Follow(ctx context.Context, onChange func(tasks.Tenant)) error {
	j.mu.Lock()
	j.hint = onChange
	j.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}
