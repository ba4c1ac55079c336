package redisstore

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

const (
	region = "jp-east-3"
	lease  = 10 * time.Second
	keep   = 30 * 24 * time.Hour
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// everywhere runs a test against a real Redis, and against the in-process one
// that standalone falls back to.
func everywhere(t *testing.T, test func(t *testing.T, s *Store, clock *clock)) {
	t.Parallel()
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		clock := newClock()
		test(t, New(testenv.StartRedis(t).Client(), Options{Retention: keep, Now: clock.now}), clock)
	})
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		rdb := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
		t.Cleanup(func() { _ = rdb.Close() })
		clock := newClock()
		test(t, New(rdb, Options{Retention: keep, Now: clock.now}), clock)
	})
}

// clock is the time in a test.
type clock struct{ atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	c.Store(&start)
	return c
}

func (c *clock) now() time.Time { return *c.Load() }

// set moves the clock to so long after the start.
func (c *clock) set(after time.Duration) time.Time {
	t := start.Add(after)
	c.Store(&t)
	return t
}

// advance moves it on, whoever else does.
func (c *clock) advance(by time.Duration) {
	for {
		was := c.Load()
		if c.CompareAndSwap(was, new(was.Add(by))) {
			return
		}
	}
}

func newSpec(tenant tasks.Tenant) *tasks.Spec {
	return &tasks.Spec{
		ID:      tasks.ID(uuid.NewString()),
		Owner:   tasks.Owner{Tenant: tenant, Project: "alpha", User: "alice"},
		Dialect: "fjcloud", Region: region, Name: "web01", ImageID: uuid.NewString(), TargetFormat: "raw",
		Disks:       []tasks.Disk{{Object: tasks.Object{API: "swift", Project: "alpha", Container: "images", Name: "web01.raw"}, Bytes: 1 << 20, Version: "v1"}},
		RequestedAt: start,
	}
}

func scopeOf(spec *tasks.Spec) tasks.Scope {
	return tasks.Scope{Region: spec.Region, Tenant: spec.Owner.Tenant, Project: spec.Owner.Project, Dialect: spec.Dialect}
}

func create(t *testing.T, s *Store, spec *tasks.Spec) *tasks.Task {
	t.Helper()
	task, fresh, err := s.Create(t.Context(), spec, tasks.Limits{})
	if err != nil || !fresh {
		t.Fatalf("Create: fresh %v, %v", fresh, err)
	}
	return task
}

func claim(t *testing.T, s *Store, ref tasks.Ref) *tasks.Claimed {
	t.Helper()
	c, err := s.Claim(t.Context(), ref, "w1", lease)
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return c
}

func state(t *testing.T, s *Store, spec *tasks.Spec) tasks.State {
	t.Helper()
	task, err := s.Get(t.Context(), scopeOf(spec), spec.ID)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return task.State
}

func wantErr(t *testing.T, op string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", op, err, want)
	}
}

// reach brings a new import into a state, and returns the last claim on it.
func reach(t *testing.T, s *Store, spec *tasks.Spec, to tasks.State) tasks.Held {
	t.Helper()
	ctx := t.Context()
	create(t, s, spec)
	if to == tasks.Queued {
		return tasks.Held{Ref: spec.Ref()}
	}
	held := claim(t, s, spec.Ref()).Held
	var err error
	switch to {
	case tasks.Succeeded:
		if err = s.BeginPublish(ctx, held, &tasks.Result{}); err == nil {
			err = s.Succeed(ctx, held, attemptOf(held, "succeeded"))
		}
	case tasks.Failed:
		err = s.Fail(ctx, held, tasks.Failure{Code: "x", Message: "X."}, attemptOf(held, "failed"), 0)
	case tasks.Cancelling, tasks.Canceled:
		if _, err = s.Cancel(ctx, scopeOf(spec), spec.ID); err == nil && to == tasks.Canceled {
			err = s.Canceled(ctx, held, attemptOf(held, "canceled"))
		}
	}
	if err != nil {
		t.Fatalf("reach %s: %v", to, err)
	}
	return held
}

// survey counts one tenant's work; tickets count as unclaimed at once.
func survey(t *testing.T, s *Store, tenant tasks.Tenant, now time.Time) tasks.Load {
	t.Helper()
	loads, err := s.Survey(t.Context(), []tasks.Tenant{"other", tenant}, now, now)
	if err != nil {
		t.Fatal(err)
	}
	return loads[tenant]
}
