package redisstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"vmimport/tasks"
)

// TestCleanUpsStayUrgent loses a canceled import's worker and ticket, and fails
// its clean-up: it never waits among the imports.
func TestCleanUpsStayUrgent(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		held := reach(t, s, spec, tasks.Cancelling)
		want := func(when string, load tasks.Load) {
			t.Helper()
			if got := survey(t, s, "d1", clock.now()); got != load {
				t.Errorf("%s: %+v, want %+v", when, got, load)
			}
		}
		now := clock.set(lease)
		if err := s.Expire(ctx, held, attemptOf(held, tasks.OutcomeLost), time.Hour, now); err != nil {
			t.Fatal(err)
		}
		want("worker lost", tasks.Load{Cleanups: 1, Open: 1})
		tickets, err := s.Dispatch(ctx, "d1", true, 1, now)
		if err != nil || len(tickets) != 1 {
			t.Fatal(tickets, err)
		}
		want("dispatched", tasks.Load{Open: 1, Unclaimed: 1})
		if err := s.Recall(ctx, tickets[0], now); err != nil {
			t.Fatal(err)
		}
		want("recalled", tasks.Load{Cleanups: 1, Open: 1})
		held = claim(t, s, spec.Ref()).Held
		if err := s.Release(ctx, held, time.Minute, attemptOf(held, tasks.OutcomeLeftovers)); err != nil {
			t.Fatal(err)
		}
		want("clean-up failed", tasks.Load{Open: 1})
		clock.set(lease + time.Minute)
		want("after its pause", tasks.Load{Cleanups: 1, Open: 1})
	})
}

// TestNothingIsLeftAfterPurge ends imports in every way and looks at all keys.
func TestNothingIsLeftAfterPurge(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for _, to := range []tasks.State{tasks.Succeeded, tasks.Failed, tasks.Canceled} {
			spec := newSpec("d1")
			spec.UniqueName, spec.Name = true, string(to)
			reach(t, s, spec, to)
		}
		soon := start.Add(keep - time.Second)
		if n, err := s.Purge(ctx, "d1", 10, soon); n != 0 || err != nil {
			t.Errorf("purged %d before their time, %v", n, err)
		}
		late := start.Add(keep + time.Minute)
		if n, err := s.Purge(ctx, "d1", 2, late); n != 2 || err != nil {
			t.Errorf("purged %d of 2, %v", n, err)
		}
		if n, err := s.Purge(ctx, "d1", 2, late); n != 1 || err != nil {
			t.Errorf("purged %d of 1, %v", n, err)
		}
		if n, err := s.Purge(ctx, "d1", 2, late.Add(2*forgetAfter)); n != 0 || err != nil {
			t.Errorf("purged %d of 0, %v", n, err)
		}
		keys, err := s.rdb.Keys(ctx, "*").Result()
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{keysOf("d1").seq()}; !slices.Equal(keys, want) {
			t.Errorf("left: %v", keys)
		}
	})
}

func TestBacklog(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		specs := []*tasks.Spec{newSpec("d1"), newSpec("d1"), newSpec("d1")}
		specs[1].Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		for i, spec := range specs {
			clock.set(time.Duration(i) * time.Second)
			create(t, s, spec)
		}
		now := start.Add(time.Second)
		if tenants, err := s.Tenants(ctx, now); err != nil || !slices.Equal(tenants, []tasks.Tenant{"d1"}) {
			t.Errorf("tenants %v, %v", tenants, err)
		}
		want := func(when string, load tasks.Load) {
			t.Helper()
			if got := survey(t, s, "d1", now); got != load {
				t.Errorf("%s: %+v, want %+v", when, got, load)
			}
		}
		want("at first", tasks.Load{Due: 2, Waiting: 3, Open: 3, Oldest: start})
		tickets, err := s.Dispatch(ctx, "d1", false, 5, now)
		if err != nil || len(tickets) != 2 || tickets[0].Trace != "" || tickets[1].Trace != specs[1].Trace || tickets[0].ID != specs[0].ID || tickets[1].ID != specs[1].ID {
			t.Fatalf("tickets %+v, %v", tickets, err)
		}
		claim(t, s, tickets[0].Ref)
		want("one claimed", tasks.Load{Waiting: 1, Dispatched: 1, Unclaimed: 1, Running: 1, Open: 3})
		lost, err := s.Unclaimed(ctx, "d1", now)
		if err != nil || len(lost) != 1 || lost[0] != tickets[1] {
			t.Fatalf("unclaimed %+v, %v", lost, err)
		}
		old := lost[0]
		old.Number--
		for _, tk := range []tasks.Ticket{tickets[0], old} {
			if err := s.Recall(ctx, tk, now); err != nil {
				t.Fatal(err)
			}
		}
		want("a claimed import and an old ticket cannot be recalled", tasks.Load{Waiting: 1, Dispatched: 1, Unclaimed: 1, Running: 1, Open: 3})
		if err := s.Recall(ctx, lost[0], now); err != nil {
			t.Fatal(err)
		}
		again, err := s.Dispatch(ctx, "d1", false, 1, now)
		if err != nil || len(again) != 1 || again[0].ID != specs[1].ID || again[0].Number != 2 {
			t.Errorf("dispatched again: %+v, %v", again, err)
		}
		for id, want := range map[tasks.ID]bool{specs[0].ID: true, specs[2].ID: true, "x": false} {
			if got, err := s.Unfinished(ctx, id); got != want || err != nil {
				t.Errorf("unfinished %s: %v, %v", id, got, err)
			}
		}
	})
}

// TestSlowCreate stops an API between announcing the tenant and making the
// record, for longer than the dispatcher remembers a tenant without imports.
func TestSlowCreate(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		if err := s.announce(ctx, "d1"); err != nil {
			t.Fatal(err)
		}
		now := clock.set(2 * forgetAfter)
		if _, err := s.Purge(ctx, "d1", 10, now); err != nil {
			t.Fatal(err)
		}
		if tenants, err := s.Tenants(ctx, now); len(tenants) != 0 || err != nil {
			t.Errorf("a tenant without imports is not forgotten: %v, %v", tenants, err)
		}
		create(t, s, newSpec("d1"))
		if tenants, err := s.Tenants(ctx, now); len(tenants) != 1 || err != nil {
			t.Errorf("tenants %v, %v", tenants, err)
		}
		if _, err := s.Purge(ctx, "d1", 10, now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if tenants, err := s.Tenants(ctx, now.Add(time.Hour)); len(tenants) != 1 || err != nil {
			t.Errorf("a tenant with an import was forgotten: %v, %v", tenants, err)
		}
	})
}

func TestOnlyOneLeads(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		lead := func(who string, want bool) {
			t.Helper()
			if got, err := s.Lead(ctx, who, time.Minute); got != want || err != nil {
				t.Errorf("%s leads: %v, %v", who, got, err)
			}
		}
		lead("a", true)
		lead("b", false)
		lead("a", true)
		if err := s.Resign(ctx, "b"); err != nil {
			t.Fatal(err)
		}
		lead("b", false)
		if err := s.Resign(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		lead("b", true)
	})
}

func TestSignals(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx, cancel := context.WithCancelCause(t.Context())
		work, canceled := make(chan struct{}, 100), make(chan tasks.ID, 100)
		ended := make(chan error, 1)
		go func() {
			ended <- s.Listen(ctx, func() { work <- struct{}{} }, func(id tasks.ID) { canceled <- id })
		}()
		spec := newSpec("d1")
		create(t, s, spec)
		for heard := false; !heard; { // until the subscription stands
			select {
			case <-work:
				heard = true
			default:
				s.hint(ctx, workChannel, "")
			}
		}
		if _, err := s.Cancel(ctx, scopeOf(spec), spec.ID); err != nil {
			t.Fatal(err)
		}
		if id := <-canceled; id != spec.ID {
			t.Errorf("heard of %s", id)
		}
		stop := errors.New("stop")
		cancel(stop)
		wantErr(t, "Listen", <-ended, stop)
	})
}

// TestAnAnswerThatIsMissingIsNoAnswer: one tenant does not have the import, and
// of the other nobody knows.
func TestAnAnswerThatIsMissingIsNoAnswer(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		create(t, s, newSpec("a"))
		unknown := newSpec("b")
		create(t, s, unknown)
		if err := s.rdb.Set(t.Context(), keysOf("b").record(unknown.ID), "not a record", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if live, err := s.Unfinished(t.Context(), unknown.ID); err == nil {
			t.Errorf("unfinished: %v", live)
		}
	})
}
