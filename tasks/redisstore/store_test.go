package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	return tasks.Scope{Region: spec.Region, Tenant: spec.Owner.Tenant, Project: spec.Owner.Project}
}

func create(t *testing.T, s *Store, spec *tasks.Spec) *tasks.Import {
	t.Helper()
	imp, fresh, err := s.Create(t.Context(), spec, tasks.Limits{})
	if err != nil || !fresh {
		t.Fatalf("Create: fresh %v, %v", fresh, err)
	}
	return imp
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
	imp, err := s.Get(t.Context(), scopeOf(spec), spec.ID)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return imp.State
}

func attemptOf(held tasks.Held, outcome string) tasks.Attempt {
	return tasks.Attempt{Epoch: held.Epoch, Worker: "w1", StartedAt: start, EndedAt: start.Add(time.Second), Outcome: outcome}
}

func wantErr(t *testing.T, op string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", op, err, want)
	}
}

func TestCreateKeepsWhatWasAsked(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("d1")
		spec.MinRAMMiB, spec.MinDiskGiB, spec.OSType = 2048, 40, "rocky"
		spec.Details = []byte(`{"image_from":"kvm"}`)
		got := create(t, s, spec)
		if got.State != tasks.Queued || got.Progress != 0 || got.Epoch != 0 || !got.NotBefore.Equal(start) {
			t.Errorf("new import is %+v", got)
		}
		if fmt.Sprintf("%+v", got.Spec) != fmt.Sprintf("%+v", *spec) {
			t.Errorf("spec\n got %+v\nwant %+v", got.Spec, *spec)
		}
		again, fresh, err := s.Create(t.Context(), spec, tasks.Limits{})
		if err != nil || !fresh || again.ID != spec.ID {
			t.Errorf("the same command again: fresh %v, %v", fresh, err)
		}
		list, err := s.List(t.Context(), scopeOf(spec), 0, 10)
		if err != nil || len(list) != 1 {
			t.Errorf("after two runs of one command the list has %d entries, %v", len(list), err)
		}
	})
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
		err = s.Fail(ctx, held, tasks.Failure{Code: "x", Message: "X."}, attemptOf(held, "failed"))
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

// TestEveryPairOfStates tries, from every state, what leads to every other one,
// and compares what happened with the table.
func TestEveryPairOfStates(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := context.WithoutCancel(t.Context())
		try := map[tasks.State]func(spec *tasks.Spec, held tasks.Held) error{
			tasks.Queued: func(_ *tasks.Spec, h tasks.Held) error {
				return s.Release(ctx, h, 0, attemptOf(h, tasks.OutcomeDrained))
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
				return s.Fail(ctx, h, tasks.Failure{Code: "x"}, attemptOf(h, "failed"))
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
		if c.Import.State != tasks.Cancelling || c.Import.Setbacks != 1 || len(c.Import.Attempts) != 1 {
			t.Errorf("claimed %+v", c.Import)
		}
		if _, err := s.Claim(ctx, spec.Ref(), "w2", lease); !errors.Is(err, tasks.ErrNotClaimable) {
			t.Errorf("a second clean-up: %v", err)
		}
		if err := s.Canceled(ctx, c.Held, attemptOf(c.Held, "canceled")); err != nil {
			t.Error(err)
		}
	})
}

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

// survey counts one tenant's work; tickets count as unclaimed at once.
func survey(t *testing.T, s *Store, tenant tasks.Tenant, now time.Time) tasks.Load {
	t.Helper()
	loads, err := s.Survey(t.Context(), []tasks.Tenant{"other", tenant}, now, now)
	if err != nil {
		t.Fatal(err)
	}
	return loads[tenant]
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

func TestTwentyCancelsAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		for _, from := range []tasks.State{tasks.Queued, tasks.Processing} {
			spec := newSpec("d1")
			reach(t, s, spec, from)
			var accepted, refused atomic.Int32
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					_, err := s.Cancel(t.Context(), scopeOf(spec), spec.ID)
					switch {
					case err == nil:
						accepted.Add(1)
					case errors.Is(err, tasks.ErrCancelRequested):
						refused.Add(1)
					default:
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if accepted.Load() != 1 || refused.Load() != 19 {
				t.Errorf("from %s: %d accepted, %d refused", from, accepted.Load(), refused.Load())
			}
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
			wantErr(t, when+" BeginPublish", s.BeginPublish(ctx, old, &tasks.Result{}), tasks.ErrFenced)
			wantErr(t, when+" Condemn", s.Condemn(ctx, old, tasks.Failure{Code: "x"}), tasks.ErrFenced)
			wantErr(t, when+" Succeed", s.Succeed(ctx, old, attemptOf(old, "succeeded")), tasks.ErrFenced)
			wantErr(t, when+" Fail", s.Fail(ctx, old, tasks.Failure{}, attemptOf(old, "failed")), tasks.ErrFenced)
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

func TestBeat(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("d1")
		held := reach(t, s, spec, tasks.Processing)
		clock.set(time.Second)
		for _, percent := range []int{10, 42, 7, 100, -3} {
			if st, err := s.Beat(ctx, held, tasks.Progress{Percent: percent, Stage: tasks.StageCopying, Counters: tasks.Counters{Disk: 1, DoneBytes: 5}}, lease); st != tasks.Processing || err != nil {
				t.Fatalf("Beat: %s, %v", st, err)
			}
		}
		imp, err := s.Get(ctx, scopeOf(spec), spec.ID)
		if err != nil || imp.Progress != 99 || imp.Stage != tasks.StageCopying || imp.DoneBytes != 5 {
			t.Errorf("%+v, %v", imp, err)
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
		if st, err := s.Beat(ctx, held, tasks.Progress{}, lease); st != tasks.Cancelling || err != nil {
			t.Errorf("a beat brings back the cancel: %s, %v", st, err)
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
		turn := func(reached int64, end func(tasks.Held)) *tasks.Import {
			t.Helper()
			c := claim(t, s, spec.Ref())
			if err := s.SaveCheckpoint(ctx, c.Held, []byte("half\x00way"), reached); err != nil {
				t.Fatal(err)
			}
			end(c.Held)
			imp, err := s.Get(ctx, scopeOf(spec), spec.ID)
			if err != nil {
				t.Fatal(err)
			}
			return imp
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
			imp := turn(step.reached, step.end)
			if imp.Crashes != step.crashes || imp.Setbacks != step.setbacks {
				t.Errorf("step %d: %d crashes, %d setbacks", i, imp.Crashes, imp.Setbacks)
			}
		}
		c := claim(t, s, spec.Ref())
		if string(c.Checkpoint) != "half\x00way" || len(c.Import.Attempts) != 5 {
			t.Errorf("checkpoint %q, %d attempts", c.Checkpoint, len(c.Import.Attempts))
		}
		if err := s.SaveCheckpoint(ctx, c.Held, nil, 0); err != nil {
			t.Fatal(err)
		}
		fail(c.Held)
		if c := claim(t, s, spec.Ref()); c.Checkpoint != nil || c.Import.Crashes != 1 {
			t.Errorf("checkpoint %q, %d crashes", c.Checkpoint, c.Import.Crashes)
		}
	})
}

func TestNamesImageIDsAndQuota(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		first := newSpec("d1")
		first.UniqueName = true
		held := reach(t, s, first, tasks.Processing)

		other := newSpec("d1")
		other.UniqueName = true
		_, _, err := s.Create(ctx, other, tasks.Limits{})
		wantErr(t, "same name", err, tasks.ErrNameInUse)
		other.UniqueName = false
		other.ImageID = first.ImageID
		_, _, err = s.Create(ctx, other, tasks.Limits{})
		wantErr(t, "same image id", err, tasks.ErrImageIDInUse)
		_, _, err = s.Create(ctx, newSpec("d1"), tasks.Limits{Unfinished: 1})
		wantErr(t, "quota", err, tasks.ErrTooManyImports)
		if list, err := s.List(ctx, scopeOf(first), 0, 10); len(list) != 1 || err != nil {
			t.Errorf("a refused import left something: %d, %v", len(list), err)
		}
		create(t, s, newSpec("d2")) // another tenant is free to use the name

		if err := s.Fail(ctx, held, tasks.Failure{Code: "x"}, attemptOf(held, "failed")); err != nil {
			t.Fatal(err)
		}
		other.UniqueName = true
		if _, _, err = s.Create(ctx, other, tasks.Limits{Unfinished: 1}); err != nil {
			t.Errorf("after the failure name, image id and quota are free: %v", err)
		}
	})
}

func TestClientTokens(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		var ids [6]tasks.ID
		var fresh atomic.Int32
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				spec := newSpec("d1")
				spec.ClientToken, spec.Fingerprint, spec.UniqueName = "t1", "f1", true
				imp, made, err := s.Create(ctx, spec, tasks.Limits{})
				if err != nil {
					t.Error(err)
					return
				}
				if ids[i] = imp.ID; made {
					fresh.Add(1)
				}
			})
		}
		wg.Wait()
		if fresh.Load() != 1 || len(slices.Compact(ids[:])) != 1 {
			t.Errorf("%d imports made for one token: %v", fresh.Load(), ids)
		}
		spec := newSpec("d1")
		spec.ClientToken, spec.Fingerprint = "t1", "f1"
		if imp, err := s.Repeated(ctx, spec); err != nil || imp == nil || imp.ID != ids[0] {
			t.Errorf("Repeated: %+v, %v", imp, err)
		}
		spec.Fingerprint = "f2"
		_, _, err := s.Create(ctx, spec, tasks.Limits{})
		wantErr(t, "another request", err, tasks.ErrTokenMismatch)
		_, err = s.Repeated(ctx, spec)
		wantErr(t, "another request in advance", err, tasks.ErrTokenMismatch)
		spec.ClientToken = "t2"
		if imp, err := s.Repeated(ctx, spec); imp != nil || err != nil {
			t.Errorf("a new token: %+v, %v", imp, err)
		}
		spec.Region = "elsewhere"
		if _, made, err := s.Create(ctx, spec, tasks.Limits{}); !made || err != nil {
			t.Errorf("another region: %v, %v", made, err)
		}
	})
}

func TestListIsNewestFirstAndScoped(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		var want []tasks.ID
		for i := range 25 {
			spec := newSpec("d1")
			if i%5 == 0 {
				spec.Owner.Project = "beta"
			}
			create(t, s, spec)
			want = append([]tasks.ID{spec.ID}, want...)
		}
		create(t, s, newSpec("d2"))
		all := tasks.Scope{Region: region, Tenant: "d1"}
		var got []tasks.ID
		for at := 0; at < 30; at += 7 {
			page, err := s.List(ctx, all, at, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, imp := range page {
				got = append(got, imp.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages\n%v\nwant\n%v", got, want)
		}
		for scope, n := range map[tasks.Scope]int{
			{Region: region, Tenant: "d1", Project: "beta"}:  5,
			{Region: region, Tenant: "d1", Project: "gamma"}: 0,
			{Region: "elsewhere", Tenant: "d1"}:              0,
			{Region: region, Tenant: "d2"}:                   1,
		} {
			if page, err := s.List(ctx, scope, 0, 100); len(page) != n || err != nil {
				t.Errorf("%+v: %d entries, want %d, %v", scope, len(page), n, err)
			}
		}
	})
}

func TestOthersSeeNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("d1")
		create(t, s, spec)
		for _, scope := range []tasks.Scope{
			{Region: region, Tenant: "d2"},
			{Region: region, Tenant: "d1", Project: "beta"},
			{Region: "elsewhere", Tenant: "d1"},
			{Region: region},
			{Region: region, Tenant: "{d1}"},
		} {
			_, err := s.Get(t.Context(), scope, spec.ID)
			wantErr(t, fmt.Sprintf("Get in %+v", scope), err, tasks.ErrUnknown)
			_, err = s.Cancel(t.Context(), scope, spec.ID)
			wantErr(t, fmt.Sprintf("Cancel in %+v", scope), err, tasks.ErrUnknown)
		}
		for _, id := range []tasks.ID{"", "x", "*", "}:x", tasks.ID(strings.Repeat("x", 4096)), spec.ID + "\x00"} {
			_, err := s.Get(t.Context(), scopeOf(spec), id)
			wantErr(t, "Get "+string(id), err, tasks.ErrUnknown)
			_, err = s.Cancel(t.Context(), scopeOf(spec), id)
			wantErr(t, "Cancel "+string(id), err, tasks.ErrUnknown)
		}
		if got := state(t, s, spec); got != tasks.Queued {
			t.Errorf("state %s", got)
		}
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
		want("at first", tasks.Load{Due: 2, Waiting: 3, Open: 3})
		tickets, err := s.Dispatch(ctx, "d1", false, 5, now)
		if err != nil || len(tickets) != 2 || tickets[0].ID != specs[0].ID || tickets[1].ID != specs[1].ID {
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
	if imp, err := s.Get(t.Context(), scopeOf(spec), spec.ID); err != nil || imp.ClaimedAt.Before(now.Add(-time.Minute)) || imp.NotBefore.Before(now.Add(-time.Minute)) {
		t.Errorf("%+v, %v", imp, err)
	}
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

// TestRecordsSurviveACrashOfRedis is the durability that acceptance promises.
func TestRecordsSurviveACrashOfRedis(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t)
	s := New(server.Client(), Options{Retention: keep})
	spec := newSpec("d1")
	held := reach(t, s, spec, tasks.Processing)
	server.Kill()
	_, err := s.Get(t.Context(), scopeOf(spec), spec.ID)
	if err == nil {
		t.Error("a dead Redis answered")
	}
	server.Start()
	if _, err := s.Beat(t.Context(), held, tasks.Progress{Percent: 5}, lease); err != nil {
		t.Errorf("the claim outlives the restart: %v", err)
	}
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
