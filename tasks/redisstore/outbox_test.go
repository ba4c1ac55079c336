package redisstore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

const portal = "portal"

func lead(t *testing.T, s *Store, receiver, who string, ttl time.Duration) bool {
	t.Helper()
	leads, err := s.LeadReceiver(t.Context(), receiver, who, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return leads
}

func cursor(t *testing.T, s *Store, receiver string, tenant tasks.Tenant) tasks.Cursor {
	t.Helper()
	c, err := s.Cursor(t.Context(), receiver, tenant)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func latest(t *testing.T, s *Store, tenant tasks.Tenant) string {
	t.Helper()
	mark, err := s.Latest(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

func wantBehind(t *testing.T, s *Store, receiver string, want ...tasks.Tenant) {
	t.Helper()
	got, err := s.Behind(t.Context(), receiver)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%s is behind with %v, %v; want %v", receiver, got, err, want)
	}
}

// nextMillisecond waits until the server's clock has moved on, for marks are in milliseconds.
func nextMillisecond(t *testing.T, s *Store) {
	t.Helper()
	first, err := s.rdb.Time(t.Context()).Result()
	for now := first; now.UnixMilli() <= first.UnixMilli() && err == nil; {
		now, err = s.rdb.Time(t.Context()).Result()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLeadForAReceiver(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		for i, who := range []string{"a", "a", "b"} {
			if got := lead(t, s, portal, who, time.Minute); got != (who == "a") {
				t.Errorf("call %d: %s leads: %v", i, who, got)
			}
		}
		if !lead(t, s, "billing", "b", time.Minute) {
			t.Error("the lead for one is that for another")
		}
		for _, who := range []string{"b", "a"} {
			if err := s.ResignReceiver(t.Context(), portal, who); err != nil {
				t.Fatal(err)
			}
			if got := lead(t, s, portal, "b", time.Minute); got != (who == "a") {
				t.Errorf("after %s resigned, b leads: %v", who, got)
			}
		}
		if life := s.rdb.PTTL(t.Context(), receiverLeader(portal)).Val(); life <= 0 || life > time.Minute {
			t.Errorf("the lead lasts %v", life)
		}
	})
}

func TestWhereAReceiverBegins(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		reach(t, s, newSpec("known"), tasks.Processing)
		before := latest(t, s, "known")
		nextMillisecond(t, s)
		lead(t, s, portal, "a", time.Minute)
		if c := cursor(t, s, portal, "known"); c != (tasks.Cursor{Mark: before}) {
			t.Errorf("it begins at %+v, not at %s", c, before)
		}
		wantBehind(t, s, portal)

		create(t, s, newSpec("known"))
		create(t, s, newSpec("new"))
		nextMillisecond(t, s)
		lead(t, s, portal, "a", time.Minute) // where it begins stays
		wantBehind(t, s, portal, "known", "new")
		for tenant, begin := range map[tasks.Tenant]string{"known": before, "new": ""} {
			if c := cursor(t, s, portal, tenant); c != (tasks.Cursor{Mark: begin}) {
				t.Errorf("in the journal of %s it begins at %+v, not at %s", tenant, c, begin)
			}
			changes, err := s.Changes(t.Context(), tenant, begin, 10)
			if err != nil || len(changes) != 1 {
				t.Errorf("%s has %d changes for it, %v", tenant, len(changes), err)
			}
		}
		lead(t, s, "later", "a", time.Minute)
		wantBehind(t, s, "later")
	})
}

func TestNobodyHasLed(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		create(t, s, newSpec("d1"))
		if _, err := s.Cursor(t.Context(), portal, "d1"); err == nil {
			t.Error("a receiver that was never seen has a cursor")
		}
		if _, err := s.Behind(t.Context(), portal); err == nil {
			t.Error("a receiver that was never seen is behind")
		}
	})
}

func TestMoveCursor(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		ctx := t.Context()
		lead(t, s, portal, "a", time.Minute)
		lead(t, s, "billing", "a", time.Minute)
		create(t, s, newSpec("d1"))
		begin := cursor(t, s, portal, "d1")
		first := tasks.Cursor{Mark: latest(t, s, "d1")}
		failing := tasks.Cursor{Mark: first.Mark, Tries: 3, Refusals: 2, Since: start.Add(time.Millisecond), NotBefore: start.Add(time.Hour)}
		for _, step := range []struct {
			name     string
			from, to tasks.Cursor
			want     error
		}{
			{"the first", begin, first, nil},
			{"the same command again", begin, first, nil},
			{"another, from where it was", begin, failing, tasks.ErrCursorMoved},
			{"a failure", first, failing, nil},
			{"who did not see the failure", first, tasks.Cursor{Mark: "9-9"}, tasks.ErrCursorMoved},
			{"back", failing, first, nil},
			{"before all that is kept", first, tasks.Cursor{}, nil},
			{"on from there", tasks.Cursor{}, failing, nil},
		} {
			err := s.MoveCursor(ctx, portal, "d1", step.from, step.to)
			if !errors.Is(err, step.want) {
				t.Errorf("%s: %v, want %v", step.name, err, step.want)
			}
			if got := cursor(t, s, portal, "d1"); err == nil && got != step.to {
				t.Errorf("%s: it is at %+v", step.name, got)
			}
		}
		wantBehind(t, s, portal)
		wantBehind(t, s, "billing", "d1")
	})
}

func TestCursorMovesOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		const rivals = 8
		ctx := t.Context()
		lead(t, s, portal, "a", time.Minute)
		create(t, s, newSpec("d1"))
		from := tasks.Cursor{Mark: "0-1"}
		if err := s.MoveCursor(ctx, portal, "d1", tasks.Cursor{}, from); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var moved atomic.Int64
		for i := range rivals {
			wg.Go(func() {
				switch err := s.MoveCursor(ctx, portal, "d1", from, tasks.Cursor{Mark: fmt.Sprintf("1-%d", i)}); {
				case err == nil:
					moved.Add(1)
				case !errors.Is(err, tasks.ErrCursorMoved):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := moved.Load(); n != 1 {
			t.Errorf("%d moved it", n)
		}
	})
}

// TestRemovedReceiver: what nobody leads for goes, and begins anew if it comes back.
func TestRemovedReceiver(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		ctx := t.Context()
		lead(t, s, portal, "a", time.Minute)
		lead(t, s, "gone", "a", time.Minute)
		create(t, s, newSpec("d1"))
		at := tasks.Cursor{Mark: latest(t, s, "d1")}
		for _, r := range []string{portal, "gone"} {
			if err := s.MoveCursor(ctx, r, "d1", tasks.Cursor{}, at); err != nil {
				t.Fatal(err)
			}
		}
		wantBehind(t, s, portal)
		if n := s.rdb.HLen(ctx, keysOf("d1").cursors()).Val(); n != 2 {
			t.Errorf("%d cursors", n)
		}
		now, err := s.rdb.Time(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		long := redis.Z{Member: "gone", Score: float64(now.Add(-receiverLife).UnixMilli())}
		if err := s.rdb.ZAdd(ctx, receiversSeenKey, long).Err(); err != nil {
			t.Fatal(err)
		}
		lead(t, s, portal, "a", time.Minute)
		wantBehind(t, s, portal)
		if left := s.rdb.HKeys(ctx, keysOf("d1").cursors()).Val(); !slices.Equal(left, []string{portal}) {
			t.Errorf("cursors of %v", left)
		}
		if left := s.rdb.HKeys(ctx, receiversKey).Val(); !slices.Equal(left, []string{portal}) {
			t.Errorf("known are %v", left)
		}
		nextMillisecond(t, s)
		lead(t, s, "gone", "a", time.Minute)
		wantBehind(t, s, "gone")
	})
}

func TestManyTenantsBehind(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, _ *clock) {
		lead(t, s, portal, "a", time.Minute)
		var tenants []tasks.Tenant
		for i := range surveyBatch + 3 {
			tenant := tasks.Tenant(fmt.Sprintf("d{%03d}", i))
			create(t, s, newSpec(tenant))
			tenants = append(tenants, tenant)
		}
		wantBehind(t, s, portal, tenants...)
		done := tenants[surveyBatch]
		if err := s.MoveCursor(t.Context(), portal, done, tasks.Cursor{}, tasks.Cursor{Mark: latest(t, s, done)}); err != nil {
			t.Fatal(err)
		}
		wantBehind(t, s, portal, slices.DeleteFunc(tenants, func(t tasks.Tenant) bool { return t == done })...)
	})
}

func TestBrokenCursors(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "1-1", "1-1 1 1 1", "1-1 1 1 1 x", "1-1 1 1 1 1 1"} {
		if c, err := decodeCursor(s); err == nil {
			t.Errorf("%q is %+v", s, c)
		}
	}
}

// TestTenantWithImagesOnly: a receiver that was away hears of the success of an import that
// nothing is left of but its image.
func TestTenantWithImagesOnly(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		lead(t, s, portal, "a", time.Minute)
		spec := newSpec("d1")
		spec.ListsImage = true
		reach(t, s, spec, tasks.Succeeded)
		for range 3 {
			if _, err := s.Purge(t.Context(), "d1", 10, clock.set(2*forgetAfter)); err != nil {
				t.Fatal(err)
			}
		}
		wantBehind(t, s, portal, "d1")
		if due, err := s.Tenants(t.Context(), clock.now()); err != nil || len(due) != 0 {
			t.Errorf("the dispatcher looks after %v, %v", due, err)
		}
	})
}

// TestForgottenTenant: what is forgotten takes the cursors along.
func TestForgottenTenant(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		lead(t, s, portal, "a", time.Minute)
		reach(t, s, newSpec("d1"), tasks.Succeeded)
		if err := s.MoveCursor(t.Context(), portal, "d1", tasks.Cursor{}, tasks.Cursor{Mark: latest(t, s, "d1")}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.Purge(t.Context(), "d1", 10, clock.set(keep+2*forgetAfter)); err != nil {
				t.Fatal(err)
			}
		}
		create(t, s, newSpec("d1"))
		if c := cursor(t, s, portal, "d1"); c != (tasks.Cursor{}) {
			t.Errorf("it goes on at %+v", c)
		}
	})
}
