package redisstore

import (
	"testing"
	"time"

	"vmimport/tasks"
)

func TestOutlook(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		if got, err := s.Outlook(ctx); got != (tasks.Outlook{}) || err != nil {
			t.Errorf("before any: %+v, %v", got, err)
		}
		for slots := range 3 {
			want := tasks.Outlook{At: start, Slots: slots, Running: 1, Waiting: 2, Contenders: 3, StartsPerMinute: 0.25}
			if err := s.Predict(ctx, want); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Outlook(ctx); got != want || err != nil {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		}
		if err := s.rdb.Set(ctx, outlookKey, "{", 0).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Outlook(ctx); err == nil {
			t.Errorf("of no JSON: %+v", got)
		}
	})
}

func TestPlace(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		outlook := tasks.Outlook{At: start, Slots: 1}
		if err := s.Predict(ctx, outlook); err != nil {
			t.Fatal(err)
		}
		var specs []*tasks.Spec
		for i := range 4 {
			clock.set(time.Duration(i) * time.Second)
			spec := newSpec("a")
			create(t, s, spec)
			create(t, s, newSpec("b"))
			specs = append(specs, spec)
		}
		want := func(when string, i int, place tasks.Place) {
			t.Helper()
			place.Outlook = outlook
			if got, err := s.Place(ctx, specs[i].Ref()); got != place || err != nil {
				t.Errorf("%s, %d: %+v, %v, want %+v", when, i, got, err, place)
			}
		}
		for i := range specs {
			want("all wait", i, tasks.Place{Ahead: i})
		}
		if _, err := s.Dispatch(ctx, "a", false, 2, clock.now()); err != nil {
			t.Fatal(err)
		}
		for i, place := range []tasks.Place{{Dispatched: true}, {Dispatched: true}, {Ahead: 2}, {Ahead: 3}} {
			want("two are dispatched", i, place)
		}
		held := claim(t, s, specs[0].Ref()).Held
		want("one is claimed", 0, tasks.Place{Dispatched: true})
		want("one is claimed", 1, tasks.Place{Dispatched: true})
		want("one is claimed", 2, tasks.Place{Ahead: 1, Running: 1})
		if err := s.Release(ctx, held, time.Minute, attemptOf(held, tasks.OutcomeRetry)); err != nil {
			t.Fatal(err)
		}
		want("it waits for its next attempt, behind all", 0, tasks.Place{Ahead: 3})
		want("it waits for its next attempt, behind all", 3, tasks.Place{Ahead: 2})
	})
}
