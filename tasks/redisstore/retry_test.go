package redisstore

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmimport/tasks"
)

var failure = tasks.Failure{Code: "store_unavailable", Message: "X."}

// failOn claims an import, lets it get on, and fails it.
func failOn(t *testing.T, s *Store, spec *tasks.Spec, kept time.Duration) tasks.Held {
	t.Helper()
	ctx := t.Context()
	held := claim(t, s, spec.Ref()).Held
	if _, err := s.Beat(ctx, held, tasks.Progress{Percent: 40, Stage: tasks.StageCopying}, lease); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.SaveCheckpoint(ctx, held, []byte("half"), 500); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeRetry)); err != nil {
		t.Fatal(err)
	}
	held = claim(t, s, spec.Ref()).Held
	if err := s.Condemn(ctx, held, failure); err != nil {
		t.Fatal(err)
	}
	if err := s.Fail(ctx, held, failure, attemptOf(held, "failed"), kept); err != nil {
		t.Fatal(err)
	}
	return held
}

func get(t *testing.T, s *Store, spec *tasks.Spec) *tasks.Task {
	t.Helper()
	scope := scopeOf(spec)
	scope.Kind = spec.Kind()
	task, err := s.Get(t.Context(), scope, spec.ID)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return task
}

func TestRetry(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for kept, want := range map[time.Duration]struct {
			checkpoint string
			furthest   int64
		}{0: {}, time.Hour: {"half", 500}} {
			spec := newImage("a", fmt.Sprint("web", kept))
			create(t, s, spec)
			old := failOn(t, s, spec, kept)
			failed := get(t, s, spec)
			if until := failed.KeptUntil; until.IsZero() != (kept == 0) || kept > 0 && !until.Equal(clock.now().Add(kept)) {
				t.Errorf("kept until %s", until)
			}
			if failed.Setbacks != 1 || failed.Verdict == nil || failed.Failure == nil || failed.FinishedAt.IsZero() || failed.Stage != tasks.StageDone {
				t.Errorf("failed: %+v", failed)
			}
			clock.advance(time.Second)
			if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
				t.Fatal(err)
			}
			got := get(t, s, spec)
			if got.State != tasks.Queued || got.Stage != tasks.StageWaiting || got.Setbacks != 0 || got.Crashes != 0 || got.Retried != 1 ||
				got.Verdict != nil || got.Failure != nil || !got.FinishedAt.IsZero() || !got.KeptUntil.IsZero() ||
				got.Progress != 40 || got.Furthest != want.furthest || len(got.Attempts) != 2 || got.Epoch != old.Epoch ||
				!got.NotBefore.Equal(clock.now()) || !got.StartedAt.Equal(failed.StartedAt) {
				t.Errorf("kept for %s, retried: %+v", kept, got)
			}
			if load := survey(t, s, "a", clock.now().Add(2*keep)); load.Ended != 0 || load.Open != 1 || load.Waiting != 1 {
				t.Errorf("load %+v", load)
			}
			for op, err := range map[string]error{
				"SaveCheckpoint": s.SaveCheckpoint(ctx, old, []byte("late"), 900),
				"Fail":           s.Fail(ctx, old, failure, attemptOf(old, "failed"), 0),
				"Removed":        s.Removed(ctx, old, attemptOf(old, tasks.OutcomeRemoved)),
			} {
				wantErr(t, "a late "+op, err, tasks.ErrFenced)
			}
			again := claim(t, s, spec.Ref())
			if string(again.Checkpoint) != want.checkpoint || again.Held.Epoch != old.Epoch+1 || again.Task.State != tasks.Processing {
				t.Errorf("claimed with %q under %d: %+v", again.Checkpoint, again.Held.Epoch, again.Task)
			}
			if err := s.Fail(ctx, again.Held, failure, attemptOf(again.Held, "failed"), 0); err != nil {
				t.Fatal(err)
			}
			if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
				t.Fatal(err)
			}
			succeed(t, s, claim(t, s, spec.Ref()).Held)
			if got := get(t, s, spec); got.State != tasks.Succeeded || got.Retried != 2 || len(got.Attempts) != 4 {
				t.Errorf("at last: %+v", got)
			}
			if used, err := s.rdb.SCard(ctx, keysOf("a").kept()).Result(); used != 0 || err != nil {
				t.Errorf("%d kept, %v", used, err)
			}
		}
	})
}

// Only what has failed can be tried again, and only by those who may see it.
func TestRetryIsForFailedOnes(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for _, to := range tasks.States {
			if to == tasks.Failed {
				continue
			}
			spec := newSpec("a")
			reach(t, s, spec, to)
			before := get(t, s, spec)
			wantErr(t, string(to), s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}), tasks.ErrNotFailed)
			if after := get(t, s, spec); !reflect.DeepEqual(before, after) {
				t.Errorf("%s: a retry that was refused changed\n%+v\n%+v", to, before, after)
			}
		}
		imp, exp := newSpec("a"), newExport("a")
		reach(t, s, imp, tasks.Failed)
		create(t, s, exp)
		held := claim(t, s, exp.Ref()).Held
		if err := s.Fail(ctx, held, failure, attemptOf(held, "failed"), 0); err != nil {
			t.Fatal(err)
		}
		for _, scope := range []tasks.Scope{
			{Region: region, Tenant: "b"}, {Region: region}, {Region: "elsewhere", Tenant: "a"}, {Region: region, Tenant: "a", Project: "beta"},
			{Region: region, Tenant: "a", Dialect: "aliyun"}, {Region: region, Tenant: "a", Kind: tasks.KindExport},
			{Region: region, Tenant: "a", Dialect: "fjcloud", Kind: tasks.KindExport},
		} {
			wantErr(t, fmt.Sprintf("in %+v", scope), s.Retry(ctx, scope, imp.ID, tasks.Limits{}), tasks.ErrUnknown)
		}
		for _, id := range []tasks.ID{"", "x", "*", imp.ID + "\x00", tasks.ID(slices.Repeat([]byte("x"), 4096))} {
			wantErr(t, "of "+string(id), s.Retry(ctx, scopeOf(imp), id, tasks.Limits{}), tasks.ErrUnknown)
		}
		wantErr(t, "an export as an import", s.Retry(ctx, scopeOf(exp), exp.ID, tasks.Limits{}), tasks.ErrUnknown)
		for _, scope := range []tasks.Scope{scopeOfExport(exp), {Region: region, Tenant: "a"}} {
			id := exp.ID
			if scope.Kind == "" {
				id = imp.ID
			}
			if err := s.Retry(ctx, scope, id, tasks.Limits{}); err != nil {
				t.Errorf("in %+v: %v", scope, err)
			}
		}
	})
}

// A retry is held to the rules of a new import, and changes nothing if it breaks one.
func TestRetryTakesAllOrNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		unique := func(tenant tasks.Tenant) *tasks.Spec {
			spec := newSpec(tenant)
			spec.UniqueName = true
			return spec
		}
		export := func(spec *tasks.Spec, change func(*tasks.Spec)) *tasks.Spec {
			rival := newExport(spec.Owner.Tenant)
			change(rival)
			return rival
		}
		for i, tt := range []struct {
			name   string
			spec   func(tasks.Tenant) *tasks.Spec
			rival  func(*tasks.Spec) *tasks.Spec
			limits tasks.Limits
			want   error
		}{
			{"name", unique, func(spec *tasks.Spec) *tasks.Spec { return unique(spec.Owner.Tenant) }, tasks.Limits{}, tasks.ErrNameInUse},
			{"image id", newSpec, func(spec *tasks.Spec) *tasks.Spec {
				rival := newSpec(spec.Owner.Tenant)
				rival.ImageID = spec.ImageID
				return rival
			}, tasks.Limits{}, tasks.ErrImageIDInUse},
			{"unfinished", newSpec, func(spec *tasks.Spec) *tasks.Spec { return newSpec(spec.Owner.Tenant) }, tasks.Limits{Unfinished: 1}, tasks.ErrTooManyImports},
			{"images", func(tenant tasks.Tenant) *tasks.Spec { return newImage(tenant, "a") },
				func(spec *tasks.Spec) *tasks.Spec { return newImage(spec.Owner.Tenant, "b") }, tasks.Limits{Quota: tasks.Quota{Images: 1}}, tasks.ErrTooManyImages},
			{"disks", func(tenant tasks.Tenant) *tasks.Spec { return newImage(tenant, "a") },
				func(spec *tasks.Spec) *tasks.Spec { return newImage(spec.Owner.Tenant, "b") }, tasks.Limits{Quota: tasks.Quota{Disks: 1}}, tasks.ErrTooManyDisks},
			{"name of an export", newExport, func(spec *tasks.Spec) *tasks.Spec { return export(spec, func(*tasks.Spec) {}) }, tasks.Limits{}, tasks.ErrNameExporting},
			{"image of an export", newExport, func(spec *tasks.Spec) *tasks.Spec {
				return export(spec, func(rival *tasks.Spec) { rival.ImageID, rival.Name = spec.ImageID, "other" })
			}, tasks.Limits{}, tasks.ErrImageExporting},
		} {
			tenant := tasks.Tenant(fmt.Sprint("t", i))
			spec := tt.spec(tenant)
			create(t, s, spec)
			failOn(t, s, spec, time.Hour)
			rival := tt.rival(spec)
			create(t, s, rival)
			scope := scopeOf(spec)
			scope.Kind = spec.Kind()
			before, load := get(t, s, spec), survey(t, s, tenant, clock.now())
			wantErr(t, tt.name, s.Retry(ctx, scope, spec.ID, tt.limits), tt.want)
			if after := get(t, s, spec); !reflect.DeepEqual(before, after) || survey(t, s, tenant, clock.now()) != load {
				t.Errorf("%s: a retry that was refused changed\n%+v\n%+v", tt.name, before, after)
			}
			if _, err := s.Cancel(ctx, scope, rival.ID); err != nil {
				t.Fatal(err)
			}
			if err := s.Retry(ctx, scope, spec.ID, tt.limits); err != nil {
				t.Errorf("%s: without the rival: %v", tt.name, err)
			}
			late := tt.rival(spec)
			_, _, err := s.Create(ctx, late, tt.limits)
			wantErr(t, tt.name+" after the retry", err, tt.want)
		}
	})
}

// The lists by phase, and the rules about images, see a retry as an import at work.
func TestRetryOfAnImage(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec, gone := newImage("a", "web"), newImage("a", "gone")
		reach(t, s, spec, tasks.Failed)
		reach(t, s, gone, tasks.Failed)
		if err := s.DeleteImage(ctx, scopeOf(gone), gone.ID); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "a deleted one", s.Retry(ctx, scopeOf(gone), gone.ID, tasks.Limits{}), tasks.ErrUnknown)
		if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{Unfinished: 1, Quota: tasks.Quota{Images: 1, Disks: 1}}); err != nil {
			t.Fatal(err)
		}
		scope := scopeOf(spec)
		scope.Project = ""
		for _, phase := range []tasks.Phase{tasks.PhaseWaiting, tasks.PhaseWorking, tasks.PhaseSucceeded, tasks.PhaseFailed, tasks.PhaseCanceled} {
			want := 0
			if phase == tasks.PhaseWorking {
				want = 1
			}
			for _, name := range []string{"", "web"} {
				found, n, err := s.Find(ctx, scope, tasks.Query{Images: true, Phases: []tasks.Phase{phase}, Name: name, Limit: 10})
				if n != want || len(found) != want || err != nil {
					t.Errorf("%s, %q: %d, %v, %v", phase, name, n, found, err)
				}
			}
		}
		wantErr(t, "DeleteImage", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrImageImporting)
		if st, err := s.Cancel(ctx, scopeOf(spec), spec.ID); st != tasks.Cancelling || err != nil {
			t.Errorf("Cancel: %s, %v", st, err) // an earlier attempt may have left something
		}
	})
}

// A tenant that was forgotten is looked after again.
func TestRetryIsDispatched(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newSpec("a")
		reach(t, s, spec, tasks.Failed)
		now := clock.set(time.Hour)
		if _, err := s.Purge(ctx, "a", 1, now); err != nil {
			t.Fatal(err)
		}
		if tenants, err := s.Tenants(ctx, now); len(tenants) != 0 || err != nil {
			t.Errorf("tenants %v, %v", tenants, err)
		}
		if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
			t.Fatal(err)
		}
		if tenants, err := s.Tenants(ctx, now); len(tenants) != 1 || err != nil {
			t.Errorf("tenants %v, %v", tenants, err)
		}
		if tickets, err := s.Dispatch(ctx, "a", false, 10, now); len(tickets) != 1 || tickets[0].Number != 1 || err != nil {
			t.Errorf("tickets %v, %v", tickets, err)
		}
	})
}

func TestManyRetriesAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newSpec("a")
		reach(t, s, spec, tasks.Failed)
		var accepted atomic.Int32
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				switch err := s.Retry(t.Context(), scopeOf(spec), spec.ID, tasks.Limits{}); {
				case err == nil:
					accepted.Add(1)
				case !errors.Is(err, tasks.ErrNotFailed):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := get(t, s, spec); accepted.Load() != 1 || got.Retried != 1 {
			t.Errorf("%d accepted, %+v", accepted.Load(), got)
		}
	})
}

// A record is either purged or retried.
func TestRetryAndPurge(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for range 50 {
			spec := newSpec("a")
			reach(t, s, spec, tasks.Failed)
			clock.advance(keep)
			var retried, purging error
			var purged int
			var wg sync.WaitGroup
			wg.Go(func() { retried = s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}) })
			wg.Go(func() { purged, purging = s.Purge(ctx, "a", 10, clock.now()) })
			wg.Wait()
			_, err := s.Get(ctx, scopeOf(spec), spec.ID)
			switch {
			case purging != nil:
				t.Fatal(purging)
			case retried == nil && purged == 0 && err == nil:
			case errors.Is(retried, tasks.ErrUnknown) && purged == 1 && errors.Is(err, tasks.ErrUnknown):
			default:
				t.Errorf("retried: %v, purged %d, Get: %v", retried, purged, err)
			}
		}
	})
}
