package redisstore

import (
	"testing"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

// forgetting returns what brings a tenant's keys back to what they are now, as a failover to a
// replica does that had not got the rest.
func forgetting(t *testing.T, s *Store, tenant tasks.Tenant) (failover func()) {
	t.Helper()
	ctx, pattern := t.Context(), keysOf(tenant).prefix+"*"
	keys, err := s.rdb.Keys(ctx, pattern).Result()
	if err != nil {
		t.Fatal(err)
	}
	was := map[string]string{}
	for _, key := range keys {
		if was[key], err = s.rdb.Dump(ctx, key).Result(); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		now, err := s.rdb.Keys(ctx, pattern).Result()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.rdb.Del(ctx, now...).Err(); err != nil {
			t.Fatal(err)
		}
		for key, value := range was {
			if err := s.rdb.Restore(ctx, key, 0, value).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A failover may lose a claim that a worker holds, and the next one then gets the same epoch.
func TestEpochOfALostClaim(t *testing.T) {
	t.Parallel()
	ctx, clock := t.Context(), newClock()
	s := New(testenv.StartRedis(t).Client(), Options{Retention: keep, Now: clock.now})
	spec := newSpec("a")
	create(t, s, spec)
	failover := forgetting(t, s, "a")
	late := claim(t, s, spec.Ref()).Held
	failover()
	held := claim(t, s, spec.Ref()).Held
	if late.Epoch != held.Epoch {
		t.Fatalf("epochs %d and %d", late.Epoch, held.Epoch)
	}
	_, beat := s.Beat(ctx, late, tasks.Progress{}, lease)
	for op, err := range map[string]error{
		"Beat":           beat,
		"SaveCheckpoint": s.SaveCheckpoint(ctx, late, []byte("late"), 1),
		"Reassign":       s.Reassign(ctx, late, "other"),
		"BeginPublish":   s.BeginPublish(ctx, late, &tasks.Result{}),
		"Condemn":        s.Condemn(ctx, late, failure),
		"Fail":           s.Fail(ctx, late, failure, attemptOf(late, "failed"), 0),
		"Removed":        s.Removed(ctx, late, attemptOf(late, tasks.OutcomeRemoved)),
		"Release":        s.Release(ctx, late, 0, attemptOf(late, tasks.OutcomeDrained)),
	} {
		wantErr(t, "a late "+op, err, tasks.ErrFenced)
	}
	succeed(t, s, held)
}
