package redisstore

import (
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"vmimport/tasks"
)

// keepFor makes an import that has failed, and keeps what it has for that long.
func keepFor(t *testing.T, s *Store, spec *tasks.Spec, kept time.Duration) {
	t.Helper()
	create(t, s, spec)
	failOn(t, s, spec, kept)
}

// takeKept claims the clean-up of what was kept.
func takeKept(t *testing.T, s *Store, spec *tasks.Spec, now time.Time) tasks.Held {
	t.Helper()
	tickets, err := s.Dispatch(t.Context(), spec.Owner.Tenant, true, 5, now)
	if err != nil || len(tickets) != 1 || tickets[0].ID != spec.ID || !tickets[0].Cleanup {
		t.Fatalf("tickets %+v, %v", tickets, err)
	}
	return claim(t, s, spec.Ref()).Held
}

// What is kept waits for its time, is handed out, lost, given back and removed.
func TestKept(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("a")
		keepFor(t, s, spec, time.Hour)
		open := func(want bool, load tasks.Load) {
			t.Helper()
			if got := survey(t, s, "a", clock.now()); got != load {
				t.Errorf("%+v, want %+v", got, load)
			}
			if got, err := s.Unfinished(ctx, spec.ID); got != want || err != nil {
				t.Errorf("unfinished: %v, %v", got, err)
			}
		}
		open(true, tasks.Load{Open: 1})
		_, err := s.Cancel(ctx, scopeOf(spec), spec.ID)
		wantErr(t, "Cancel", err, tasks.ErrFinished)
		other := newSpec("a")
		if _, _, err := s.Create(ctx, other, tasks.Limits{Unfinished: 1}); err != nil {
			t.Errorf("what is kept counts as unfinished: %v", err)
		}
		if _, err := s.Cancel(ctx, scopeOf(other), other.ID); err != nil {
			t.Fatal(err)
		}

		soon := clock.set(time.Hour - time.Millisecond)
		if tickets, err := s.Dispatch(ctx, "a", true, 5, soon); len(tickets) != 0 || err != nil {
			t.Errorf("handed out before its time: %v, %v", tickets, err)
		}
		_, err = s.Claim(ctx, spec.Ref(), "w2", lease)
		wantErr(t, "a ticket of an earlier turn", err, tasks.ErrNotClaimable)

		now := clock.set(time.Hour)
		open(true, tasks.Load{Open: 1, Cleanups: 1})
		tickets, err := s.Dispatch(ctx, "a", true, 5, now)
		if err != nil || len(tickets) != 1 {
			t.Fatal(tickets, err)
		}
		wantErr(t, "a retry while the clean-up has a ticket", s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), tasks.ErrCleaning)
		if err := s.Recall(ctx, tickets[0], now); err != nil {
			t.Fatal(err)
		}
		open(true, tasks.Load{Open: 1, Cleanups: 1})

		held := takeKept(t, s, spec, now)
		open(true, tasks.Load{Open: 1, Running: 1})
		if task := get(t, s, spec); task.State != tasks.Failed || task.Stage != tasks.StageCleaning || !task.KeptUntil.IsZero() || task.Failure == nil {
			t.Errorf("claimed: %+v", task)
		}
		_, err = s.Claim(ctx, spec.Ref(), "w2", lease)
		wantErr(t, "a second claim", err, tasks.ErrNotClaimable)
		if p, err := s.Beat(ctx, held, tasks.Progress{Stage: tasks.StageCleaning}, lease); p != (tasks.Pulse{State: tasks.Failed, Running: 1}) || err != nil {
			t.Errorf("Beat: %+v, %v", p, err)
		}
		for op, err := range map[string]error{
			"BeginPublish": s.BeginPublish(ctx, held, &tasks.Result{}),
			"Condemn":      s.Condemn(ctx, held, failure),
			"Reassign":     s.Reassign(ctx, held, "other"),
			"Release":      s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeDrained)),
		} {
			wantErr(t, op, err, tasks.ErrCancelCameFirst)
		}
		wantErr(t, "a retry while it is removed", s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), tasks.ErrCleaning)

		// Its worker dies, and the next one cannot remove everything.
		now = clock.set(time.Hour + lease)
		if err := s.Expire(ctx, held, attemptOf(held, tasks.OutcomeLost), time.Minute, now); err != nil {
			t.Fatal(err)
		}
		open(true, tasks.Load{Open: 1, Cleanups: 1}) // without a pause
		wantErr(t, "a retry of what may be half removed", s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), tasks.ErrCleaning)
		second := takeKept(t, s, spec, now)
		wantErr(t, "the first worker", s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)), tasks.ErrFenced)
		if err := s.Release(ctx, second, time.Minute, attemptOf(second, tasks.OutcomeLeftovers)); err != nil {
			t.Fatal(err)
		}
		open(true, tasks.Load{Open: 1})
		now = clock.set(2 * time.Hour)
		third := takeKept(t, s, spec, now)
		for range 2 {
			if err := s.Removed(ctx, third, attemptOf(third, tasks.OutcomeRemoved)); err != nil {
				t.Fatal(err)
			}
		}
		open(false, tasks.Load{})
		task := get(t, s, spec)
		if task.State != tasks.Failed || task.Stage != tasks.StageDone || task.Removed || len(task.Attempts) != 5 || !task.FinishedAt.Equal(start) {
			t.Errorf("removed: %+v", task)
		}
		if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
			t.Fatal(err)
		}
		if c := claim(t, s, spec.Ref()); c.Checkpoint != nil || c.Task.Furthest != 0 || c.Task.Crashes != 0 {
			t.Errorf("it does not begin at the front: %q, %+v", c.Checkpoint, c.Task)
		}
		if got := path(changes(t, s, "a"), spec.ID); len(got) != 7 { // two attempts to the failure, the retry, and the next
			t.Errorf("journal %v", got)
		}
	})
}

// A retry may come when its time is over, as long as no clean-up has a ticket.
func TestLateRetry(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("a")
		keepFor(t, s, spec, time.Hour)
		clock.set(2 * time.Hour)
		if err := s.Retry(t.Context(), scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
			t.Fatal(err)
		}
		if c := claim(t, s, spec.Ref()); string(c.Checkpoint) != "half" || c.Task.State != tasks.Processing {
			t.Errorf("claimed with %q: %+v", c.Checkpoint, c.Task)
		}
		if tickets, err := s.Dispatch(t.Context(), "a", true, 5, clock.now()); len(tickets) != 0 || err != nil {
			t.Errorf("its clean-up is handed out: %v, %v", tickets, err)
		}
	})
}

// Nobody goes on from what somebody else removes.
func TestRetryAndCleanUpExcludeEachOther(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for range 50 {
			spec := newSpec("a")
			keepFor(t, s, spec, time.Minute)
			clock.advance(time.Hour)
			var retried error
			var c *tasks.Claimed
			var wg sync.WaitGroup
			wg.Go(func() { retried = s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}) })
			wg.Go(func() { c, _ = s.Claim(ctx, spec.Ref(), "w2", lease) })
			wg.Wait()
			switch {
			case c == nil:
				t.Errorf("nobody could claim it; retry: %v", retried)
			case retried == nil && c.Task.State == tasks.Processing && string(c.Checkpoint) == "half":
			case errors.Is(retried, tasks.ErrCleaning) && c.Task.State == tasks.Failed && c.Checkpoint == nil:
			default:
				t.Errorf("retry: %v, claimed %+v with %q", retried, c.Task, c.Checkpoint)
			}
		}
	})
}

// A record outlives what is kept, whatever its retention, and others are purged meanwhile.
func TestKeptIsNotPurged(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec, other := newSpec("a"), newSpec("a")
		keepFor(t, s, spec, 2*keep)
		clock.advance(time.Second)
		reach(t, s, other, tasks.Failed)
		now := clock.set(keep + time.Minute)
		for want := range 2 { // the first round finds only what is kept
			if n, err := s.Purge(ctx, "a", 1, now); n != want || err != nil {
				t.Errorf("purged %d, want %d, %v", n, want, err)
			}
		}
		if tenants, err := s.Tenants(ctx, now); len(tenants) != 1 || err != nil {
			t.Errorf("a tenant of whom something is kept was forgotten: %v, %v", tenants, err)
		}
		if task := get(t, s, spec); task.KeptUntil.IsZero() {
			t.Errorf("%+v", task)
		}
		now = clock.set(2*keep + time.Minute)
		if n, err := s.Purge(ctx, "a", 10, now); n != 0 || err != nil {
			t.Errorf("purged %d, %v", n, err)
		}
		held := takeKept(t, s, spec, now)
		if n, err := s.Purge(ctx, "a", 10, now.Add(time.Hour)); n != 0 || err != nil {
			t.Errorf("purged %d while it is removed, %v", n, err)
		}
		if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
			t.Fatal(err)
		}
		now = clock.set(2*keep + 2*time.Hour)
		if n, err := s.Purge(ctx, "a", 10, now); n != 1 || err != nil {
			t.Errorf("purged %d, %v", n, err)
		}
		if keys, err := s.rdb.Keys(ctx, "vmimport:{a}:*").Result(); err != nil || len(keys) != 1 { // seq
			t.Errorf("left: %q, %v", keys, err)
		}
	})
}

// With the image that a failed import stands for goes what was kept of it, at once.
func TestDeletedImageIsNotKept(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for _, begun := range []bool{false, true} {
			spec := newImage("a", "web")
			keepFor(t, s, spec, time.Hour)
			var held tasks.Held
			if begun {
				clock.advance(time.Hour)
				held = takeKept(t, s, spec, clock.now())
			}
			if err := s.DeleteImage(ctx, scopeOf(spec), spec.ID); err != nil {
				t.Fatal(err)
			}
			wantErr(t, "a second deletion", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrImageRemoving)
			wantErr(t, "a retry", s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), tasks.ErrUnknown)
			if !begun {
				held = takeKept(t, s, spec, clock.now())
			}
			if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
				t.Fatal(err)
			}
			if task := get(t, s, spec); !task.Removed || task.State != tasks.Failed {
				t.Errorf("%+v", task)
			}
			wantErr(t, "a deletion afterwards", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrUnknown)
			if load := survey(t, s, "a", clock.now()); load.Open != 0 {
				t.Errorf("left: %+v", load)
			}
		}
		if n, err := s.Purge(ctx, "a", 10, clock.set(3*keep)); n != 2 || err != nil {
			t.Errorf("purged %d, %v", n, err)
		}
	})
}

// No worker brings back what has failed, whatever it does with a claim on it.
func TestNoWorkerBringsBackWhatHasFailed(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for _, outcome := range []string{tasks.OutcomeDrained, tasks.OutcomeRetry, tasks.OutcomeLeftovers, tasks.OutcomeLost} {
			spec := newSpec("a")
			keepFor(t, s, spec, time.Minute)
			clock.advance(time.Hour)
			held := takeKept(t, s, spec, clock.now())
			if outcome == tasks.OutcomeLost {
				clock.advance(lease)
				_ = s.Expire(ctx, held, attemptOf(held, outcome), 0, clock.now())
			} else {
				_ = s.Release(ctx, held, 0, attemptOf(held, outcome))
			}
			if got := state(t, s, spec); got != tasks.Failed {
				t.Errorf("%s: now %s", outcome, got)
			}
			if tickets, err := s.Dispatch(ctx, "a", false, 5, clock.now()); len(tickets) != 0 || err != nil {
				t.Errorf("%s: dispatched %v, %v", outcome, tickets, err)
			}
			clock.advance(lease)
			late := tasks.Held{Ref: held.Ref, Epoch: get(t, s, spec).Epoch}
			if outcome == tasks.OutcomeDrained || outcome == tasks.OutcomeRetry { // which gave nothing back
				if err := s.Expire(ctx, late, attemptOf(late, tasks.OutcomeLost), 0, clock.now()); err != nil {
					t.Fatal(err)
				}
			}
			last := takeKept(t, s, spec, clock.now())
			if err := s.Removed(ctx, last, attemptOf(last, tasks.OutcomeRemoved)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// What a late worker has stored of a failed import is removed under a claim, or is a retry's to
// shut out. An import in any other state is left alone.
func TestCleanAgain(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		again := func(spec *tasks.Spec) {
			t.Helper()
			for range 2 {
				if err := s.CleanAgain(ctx, spec.Ref()); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, to := range tasks.States {
			if to == tasks.Failed {
				continue
			}
			spec := newSpec("other")
			reach(t, s, spec, to)
			before, load := get(t, s, spec), survey(t, s, "other", clock.now())
			again(spec)
			if after := get(t, s, spec); !reflect.DeepEqual(before, after) || survey(t, s, "other", clock.now()) != load {
				t.Errorf("%s: changed to %+v", to, after)
			}
		}
		again(newSpec("a"))

		spec, deleted, retried, kept := newSpec("a"), newImage("a", "web"), newSpec("a"), newSpec("a")
		reach(t, s, spec, tasks.Failed)
		reach(t, s, deleted, tasks.Failed)
		if err := s.DeleteImage(ctx, scopeOf(deleted), deleted.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Purge(ctx, "a", 1, clock.set(time.Hour)); err != nil { // it is forgotten
			t.Fatal(err)
		}
		for _, spec := range []*tasks.Spec{spec, deleted} {
			again(spec)
			if tenants, err := s.Tenants(ctx, clock.now()); !slices.Contains(tenants, "a") || err != nil {
				t.Errorf("tenants %v, %v", tenants, err)
			}
			held := takeKept(t, s, spec, clock.now())
			refused := tasks.ErrCleaning
			if spec == deleted {
				refused = tasks.ErrUnknown
			}
			wantErr(t, "a retry meanwhile", s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), refused)
			if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
				t.Fatal(err)
			}
			if task := get(t, s, spec); task.Removed != (spec == deleted) || !task.KeptUntil.IsZero() {
				t.Errorf("%+v", task)
			}
		}
		reach(t, s, retried, tasks.Failed)
		again(retried)
		if err := s.Retry(ctx, scopeOf(retried), retried.ID, tasks.Limits{}); err != nil {
			t.Fatal(err)
		}
		succeed(t, s, claim(t, s, retried.Ref()).Held)
		keepFor(t, s, kept, time.Hour)
		again(kept)
		if until := get(t, s, kept).KeptUntil; !until.Equal(clock.now().Add(time.Hour)) {
			t.Errorf("kept until %s", until)
		}
		if load := survey(t, s, "a", clock.now()); load != (tasks.Load{Open: 1}) {
			t.Errorf("left: %+v", load)
		}
		if n, err := s.Purge(ctx, "a", 10, clock.set(3*keep)); n != 3 || err != nil { // all but the kept one
			t.Errorf("purged %d, %v", n, err)
		}
	})
}
