package redisstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

func attemptOf(held tasks.Held, outcome string) tasks.Attempt {
	return tasks.Attempt{Epoch: held.Epoch, Worker: "w1", StartedAt: start, EndedAt: start.Add(time.Second), Outcome: outcome}
}

// TestEveryPairOfStates tries, from every state, what leads to every other one,
// and compares what happened with the table.
func TestEveryPairOfStates(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := context.WithoutCancel(t.Context())
		try := map[tasks.State]func(spec *tasks.Spec, held tasks.Held) error{
			tasks.Queued: func(spec *tasks.Spec, h tasks.Held) error {
				// No worker brings back what has failed.
				err := s.Release(ctx, h, 0, attemptOf(h, tasks.OutcomeDrained))
				if was := state(t, s, spec); was == tasks.Failed {
					return s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{})
				}
				return err
			},
			tasks.Processing: func(spec *tasks.Spec, _ tasks.Held) error {
				_, err := s.Claim(ctx, spec.Ref(), "w2", lease)
				return err
			},
			tasks.Succeeded: func(_ *tasks.Spec, h tasks.Held) error {
				if err := s.BeginPublish(ctx, h, &tasks.Result{}); err != nil {
					return err
				}
				return s.Succeed(ctx, h, attemptOf(h, "succeeded"))
			},
			tasks.Failed: func(_ *tasks.Spec, h tasks.Held) error {
				return s.Fail(ctx, h, tasks.Failure{Code: "x"}, attemptOf(h, "failed"), 0)
			},
			tasks.Cancelling: func(spec *tasks.Spec, _ tasks.Held) error {
				_, err := s.Cancel(ctx, scopeOf(spec), spec.ID)
				return err
			},
			tasks.Canceled: func(_ *tasks.Spec, h tasks.Held) error {
				return s.Canceled(ctx, h, attemptOf(h, "canceled"))
			},
		}
		for _, from := range tasks.States {
			for _, to := range tasks.States {
				if from == to {
					continue
				}
				t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
					spec := newSpec("pairs")
					held := reach(t, s, spec, from)
					err := try[to](spec, held)
					got := state(t, s, spec)
					switch {
					case from == tasks.Queued && to == tasks.Cancelling:
						// No worker ever had it, so there is nothing to wait for.
						if got != tasks.Canceled || err != nil {
							t.Errorf("now %s, %v", got, err)
						}
					case from == tasks.Queued && to == tasks.Canceled:
						// Only a cancel does that; a worker without a claim cannot.
						if got != tasks.Queued || err == nil {
							t.Errorf("now %s, %v", got, err)
						}
					case from.CanBecome(to):
						if got != to || err != nil {
							t.Errorf("the table allows it: now %s, %v", got, err)
						}
					default:
						// A cancelled import that is given back stays cancelled.
						given := from == tasks.Cancelling && to == tasks.Queued
						if got != from || (err == nil && !given && !from.Final()) {
							t.Errorf("the table forbids it: now %s, %v", got, err)
						}
					}
				})
			}
		}
	})
}

func TestQueuedAgainIsCancelledThroughAWorker(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		held := reach(t, s, spec, tasks.Processing)
		if err := s.Release(ctx, held, time.Hour, attemptOf(held, tasks.OutcomeRetry)); err != nil {
			t.Fatal(err)
		}
		now := clock.set(time.Minute)
		if _, err := s.Claim(ctx, spec.Ref(), "w2", lease); !errors.Is(err, tasks.ErrNotClaimable) {
			t.Errorf("an old ticket cut a pause short: %v", err)
		}
		if got, err := s.Cancel(ctx, scopeOf(spec), spec.ID); got != tasks.Cancelling || err != nil {
			t.Fatalf("Cancel: %s, %v", got, err)
		}
		tickets, err := s.Dispatch(ctx, "d1", true, 10, now)
		if err != nil || len(tickets) != 1 || !tickets[0].Cleanup {
			t.Fatalf("a canceled import is due at once, for clean-up: %+v, %v", tickets, err)
		}
		c := claim(t, s, spec.Ref())
		if c.Task.State != tasks.Cancelling || c.Task.Setbacks != 1 || len(c.Task.Attempts) != 1 {
			t.Errorf("claimed %+v", c.Task)
		}
		if _, err := s.Claim(ctx, spec.Ref(), "w2", lease); !errors.Is(err, tasks.ErrNotClaimable) {
			t.Errorf("a second clean-up: %v", err)
		}
		if err := s.Canceled(ctx, c.Held, attemptOf(c.Held, "canceled")); err != nil {
			t.Error(err)
		}
	})
}

// TestReleaseUnderACancel is a worker that gives an import back and does not
// know yet that it was canceled.
func TestReleaseUnderACancel(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("d1")
		held := reach(t, s, spec, tasks.Cancelling)
		wantErr(t, "Release", s.Release(t.Context(), held, time.Hour, attemptOf(held, tasks.OutcomeRetry)), tasks.ErrCancelCameFirst)
		if err := s.Canceled(t.Context(), held, attemptOf(held, "canceled")); err != nil {
			t.Errorf("the claim was lost: %v", err)
		}
	})
}

func TestManyWorkersRaceForOneImport(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("d1")
		create(t, s, spec)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				_, err := s.Claim(t.Context(), spec.Ref(), fmt.Sprint("w", i), lease)
				switch {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, tasks.ErrNotClaimable):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d workers claimed one import", won.Load())
		}
	})
}

// TestPublishAndCancelExcludeEachOther races the two steps; whoever comes first
// decides how the import ends.
func TestPublishAndCancelExcludeEachOther(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := context.WithoutCancel(t.Context())
		for range 50 {
			spec := newSpec("d1")
			held := reach(t, s, spec, tasks.Processing)
			var canceled, published error
			var wg sync.WaitGroup
			wg.Go(func() { _, canceled = s.Cancel(ctx, scopeOf(spec), spec.ID) })
			wg.Go(func() { published = s.BeginPublish(ctx, held, &tasks.Result{}) })
			wg.Wait()
			switch {
			case canceled == nil && errors.Is(published, tasks.ErrCancelCameFirst):
				wantErr(t, "Succeed", s.Succeed(ctx, held, attemptOf(held, "succeeded")), tasks.ErrCancelCameFirst)
				if err := s.Canceled(ctx, held, attemptOf(held, "canceled")); err != nil {
					t.Error(err)
				}
			case errors.Is(canceled, tasks.ErrFinished) && published == nil:
				if err := s.Succeed(ctx, held, attemptOf(held, "succeeded")); err != nil {
					t.Error(err)
				}
			default:
				t.Fatalf("cancel: %v, publish: %v", canceled, published)
			}
		}
	})
}

func TestStaleEpochChangesNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		old := reach(t, s, spec, tasks.Processing)
		if err := s.Expire(ctx, old, attemptOf(old, tasks.OutcomeLost), 0, clock.set(lease)); err != nil {
			t.Fatal(err)
		}
		stale := func(when string) {
			t.Helper()
			before, err := s.Get(ctx, scopeOf(spec), spec.ID)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Beat(ctx, old, tasks.Progress{Percent: 77}, lease)
			wantErr(t, when+" Beat", err, tasks.ErrFenced)
			wantErr(t, when+" SaveCheckpoint", s.SaveCheckpoint(ctx, old, []byte("x"), 1), tasks.ErrFenced)
			wantErr(t, when+" Reassign", s.Reassign(ctx, old, "other"), tasks.ErrFenced)
			wantErr(t, when+" BeginPublish", s.BeginPublish(ctx, old, &tasks.Result{}), tasks.ErrFenced)
			wantErr(t, when+" Condemn", s.Condemn(ctx, old, tasks.Failure{Code: "x"}), tasks.ErrFenced)
			wantErr(t, when+" Succeed", s.Succeed(ctx, old, attemptOf(old, "succeeded")), tasks.ErrFenced)
			wantErr(t, when+" Fail", s.Fail(ctx, old, tasks.Failure{}, attemptOf(old, "failed"), 0), tasks.ErrFenced)
			wantErr(t, when+" Canceled", s.Canceled(ctx, old, attemptOf(old, "canceled")), tasks.ErrFenced)
			wantErr(t, when+" Expire", s.Expire(ctx, old, attemptOf(old, tasks.OutcomeLost), 0, start.Add(time.Hour)), tasks.ErrFenced)
			after, err := s.Get(ctx, scopeOf(spec), spec.ID)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%+v", before) != fmt.Sprintf("%+v", after) {
				t.Errorf("%s, a stale write changed the record:\n%+v\n%+v", when, before, after)
			}
		}
		stale("after the claim ran out")
		held := claim(t, s, spec.Ref()).Held
		if held.Epoch != old.Epoch+1 {
			t.Errorf("epoch %d after %d", held.Epoch, old.Epoch)
		}
		wantErr(t, "Release", s.Release(ctx, old, 0, attemptOf(old, "x")), tasks.ErrFenced)
		stale("under the next claim")
		if got := state(t, s, spec); got != tasks.Processing {
			t.Errorf("state %s", got)
		}
	})
}

// TestReassign: the old id is free at once, the new one is taken, and everything that
// reads the record sees it.
func TestReassign(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec, other := newSpec("d1"), newSpec("d1")
		held := reach(t, s, spec, tasks.Processing)
		create(t, s, other)
		if err := s.SaveCheckpoint(ctx, held, []byte("of the old image"), 1); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "an id in use", s.Reassign(ctx, held, other.ImageID), tasks.ErrImageIDInUse)
		const id = "0d9c7b5a-7777-4888-9999-aaaabbbbcccc"
		for range 2 { // the second time as after an answer that was lost
			if err := s.Reassign(ctx, held, id); err != nil {
				t.Fatal(err)
			}
		}
		task, err := s.Get(ctx, scopeOf(spec), spec.ID)
		if err != nil || task.ImageID != id || task.State != tasks.Processing {
			t.Errorf("Get: %+v, %v", task, err)
		}
		if list, err := s.List(ctx, scopeOf(spec), 1, 1); err != nil || len(list) != 1 || list[0].ImageID != id {
			t.Errorf("List: %v, %v", list, err)
		}
		heir := newSpec("d1")
		heir.ImageID = spec.ImageID
		create(t, s, heir)
		late := newSpec("d1")
		late.ImageID = id
		_, _, err = s.Create(ctx, late, tasks.Limits{})
		wantErr(t, "the new id", err, tasks.ErrImageIDInUse)

		if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeDrained)); err != nil {
			t.Fatal(err)
		}
		again := claim(t, s, spec.Ref())
		if again.Task.ImageID != id || again.Checkpoint != nil {
			t.Errorf("claimed with image %s and checkpoint %q", again.Task.ImageID, again.Checkpoint)
		}
		if err := s.Fail(ctx, again.Held, tasks.Failure{Code: "x"}, attemptOf(again.Held, "failed"), 0); err != nil {
			t.Fatal(err)
		}
		create(t, s, late) // the failure has freed it

		canceled := newSpec("d1")
		held = reach(t, s, canceled, tasks.Cancelling)
		wantErr(t, "while cancelling", s.Reassign(ctx, held, "other"), tasks.ErrCancelCameFirst)
	})
}

func TestBeat(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		held := reach(t, s, spec, tasks.Processing)
		clock.set(time.Second)
		for _, percent := range []int{10, 42, 7, 100, -3} {
			if p, err := s.Beat(ctx, held, tasks.Progress{Percent: percent, Stage: tasks.StageCopying, Counters: tasks.Counters{Disk: 1, DoneBytes: 5}}, lease); p != (tasks.Pulse{State: tasks.Processing, Running: 1}) || err != nil {
				t.Fatalf("Beat: %+v, %v", p, err)
			}
		}
		task, err := s.Get(ctx, scopeOf(spec), spec.ID)
		if err != nil || task.Progress != 99 || task.Stage != tasks.StageCopying || task.DoneBytes != 5 {
			t.Errorf("%+v, %v", task, err)
		}
		if late, err := s.Expired(ctx, "d1", start.Add(lease+500*time.Millisecond)); len(late) != 0 || err != nil {
			t.Errorf("a beat extends the claim: %v, %v", late, err)
		}
		if late, err := s.Expired(ctx, "d1", start.Add(lease+time.Second)); len(late) != 1 || err != nil {
			t.Errorf("without beats it runs out: %v, %v", late, err)
		}
		wantErr(t, "Expire too early", s.Expire(ctx, held, attemptOf(held, tasks.OutcomeLost), 0, start.Add(lease)), tasks.ErrFenced)
		if _, err := s.Cancel(ctx, scopeOf(spec), spec.ID); err != nil {
			t.Fatal(err)
		}
		if p, err := s.Beat(ctx, held, tasks.Progress{}, lease); p.State != tasks.Cancelling || err != nil {
			t.Errorf("a beat brings back the cancel: %+v, %v", p, err)
		}
	})
}

func TestGettingFurtherForgives(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		create(t, s, spec)
		now := time.Duration(0)
		// turn is an attempt that saves a checkpoint and ends.
		turn := func(reached int64, end func(tasks.Held)) *tasks.Task {
			t.Helper()
			c := claim(t, s, spec.Ref())
			if err := s.SaveCheckpoint(ctx, c.Held, []byte("half\x00way"), reached); err != nil {
				t.Fatal(err)
			}
			end(c.Held)
			task, err := s.Get(ctx, scopeOf(spec), spec.ID)
			if err != nil {
				t.Fatal(err)
			}
			return task
		}
		crash := func(h tasks.Held) {
			now += lease
			if err := s.Expire(ctx, h, attemptOf(h, tasks.OutcomeLost), 0, clock.set(now)); err != nil {
				t.Fatal(err)
			}
		}
		fail := func(h tasks.Held) {
			if err := s.Release(ctx, h, 0, attemptOf(h, tasks.OutcomeRetry)); err != nil {
				t.Fatal(err)
			}
		}
		for i, step := range []struct {
			reached           int64
			end               func(tasks.Held)
			crashes, setbacks int
		}{
			{100, crash, 1, 0},
			{50, crash, 2, 0}, // behind the furthest
			{100, fail, 2, 1}, // no further
			{101, fail, 0, 1},
			{0, crash, 1, 1},
		} {
			task := turn(step.reached, step.end)
			if task.Crashes != step.crashes || task.Setbacks != step.setbacks {
				t.Errorf("step %d: %d crashes, %d setbacks", i, task.Crashes, task.Setbacks)
			}
		}
		c := claim(t, s, spec.Ref())
		if string(c.Checkpoint) != "half\x00way" || len(c.Task.Attempts) != 5 {
			t.Errorf("checkpoint %q, %d attempts", c.Checkpoint, len(c.Task.Attempts))
		}
		if err := s.SaveCheckpoint(ctx, c.Held, nil, 0); err != nil {
			t.Fatal(err)
		}
		fail(c.Held)
		if c := claim(t, s, spec.Ref()); c.Checkpoint != nil || c.Task.Crashes != 1 {
			t.Errorf("checkpoint %q, %d crashes", c.Checkpoint, c.Task.Crashes)
		}
	})
}

// TestClaimsFollowTheClockOfRedis gives the store no clock of its own.
func TestClaimsFollowTheClockOfRedis(t *testing.T) {
	t.Parallel()
	s := New(testenv.StartRedis(t).Client(), Options{Retention: keep})
	spec := newSpec("d1")
	spec.RequestedAt = time.Now().Add(-24 * time.Hour) // by an API whose clock is wrong
	held := reach(t, s, spec, tasks.Processing)
	now, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Beat(t.Context(), held, tasks.Progress{}, lease); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[time.Time]int{now.Add(lease - time.Second): 0, now.Add(lease + 5*time.Second): 1} {
		if late, err := s.Expired(t.Context(), "d1", at); len(late) != want || err != nil {
			t.Errorf("%s later: %d expired, %v", at.Sub(now), len(late), err)
		}
	}
	if task, err := s.Get(t.Context(), scopeOf(spec), spec.ID); err != nil || task.ClaimedAt.Before(now.Add(-time.Minute)) || task.NotBefore.Before(now.Add(-time.Minute)) {
		t.Errorf("%+v, %v", task, err)
	}
}
