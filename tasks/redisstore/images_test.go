package redisstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

// newImage is an import whose record stands for the image too.
func newImage(tenant tasks.Tenant, name string) *tasks.Spec {
	spec := newSpec(tenant)
	spec.Dialect, spec.Name, spec.UniqueName, spec.ListsImage = "aliyun", name, true, true
	return spec
}

// succeed ends a claimed import.
func succeed(t *testing.T, s *Store, held tasks.Held) {
	t.Helper()
	if err := s.BeginPublish(t.Context(), held, &tasks.Result{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Succeed(t.Context(), held, attemptOf(held, "succeeded")); err != nil {
		t.Fatal(err)
	}
}

func TestQuotaOfImages(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		quota := tasks.Limits{Quota: tasks.Quota{Images: 2, Disks: 5}}
		admit := func(spec *tasks.Spec) error {
			t.Helper()
			_, dry := s.Admit(ctx, spec, quota)
			_, _, err := s.Create(ctx, spec, quota)
			if !errors.Is(err, dry) && !(err == nil && dry == nil) {
				t.Errorf("Admit says %v, Create %v", dry, err)
			}
			return err
		}
		one, two := newImage("a", "one"), newImage("a", "two")
		two.Disks = append(two.Disks, two.Disks[0], two.Disks[0])
		held := reach(t, s, one, tasks.Processing)
		if err := admit(two); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "a third image", admit(newImage("a", "three")), tasks.ErrTooManyImages)
		wantErr(t, "a name", admit(newImage("a", "two")), tasks.ErrNameInUse)
		elsewhere := newImage("a", "two")
		elsewhere.Region = "elsewhere"
		if err := admit(elsewhere); err != nil {
			t.Errorf("in another region: %v", err)
		}
		if err := s.Fail(ctx, held, tasks.Failure{Code: "x"}, attemptOf(held, "failed"), 0); err != nil {
			t.Fatal(err)
		}
		three := newImage("a", "one")
		three.Disks = append(three.Disks, three.Disks[0], three.Disks[0])
		wantErr(t, "six disks", admit(three), tasks.ErrTooManyDisks)
		three.Disks = three.Disks[:2]
		if err := admit(three); err != nil {
			t.Errorf("after a failure: %v", err)
		}
		if _, err := s.Cancel(ctx, scopeOf(two), two.ID); err != nil {
			t.Fatal(err)
		}
		four := newImage("a", "two")
		if err := admit(four); err != nil {
			t.Errorf("after a cancel: %v", err)
		}
		succeed(t, s, claim(t, s, four.Ref()).Held)
		wantErr(t, "with an image that exists", admit(newImage("a", "five")), tasks.ErrTooManyImages)
		if err := s.DeleteImage(ctx, scopeOf(four), four.ID); err != nil {
			t.Fatal(err)
		}
		if err := admit(newImage("a", "two")); err != nil {
			t.Errorf("after a deletion: %v", err)
		}
	})
}

func TestDeleteImage(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for to, want := range map[tasks.State]error{
			tasks.Queued: tasks.ErrImageImporting, tasks.Processing: tasks.ErrImageImporting, tasks.Cancelling: tasks.ErrImageImporting,
			tasks.Failed: nil, tasks.Canceled: nil,
		} {
			spec := newImage("a", string(to))
			reach(t, s, spec, to)
			wantErr(t, string(to), s.DeleteImage(ctx, scopeOf(spec), spec.ID), want)
			if want == nil {
				wantErr(t, string(to)+" again", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrUnknown)
			}
		}
		plain := newSpec("a")
		reach(t, s, plain, tasks.Succeeded)
		wantErr(t, "an import that lists no image", s.DeleteImage(ctx, scopeOf(plain), plain.ID), tasks.ErrUnknown)

		spec := newImage("b", "web")
		reach(t, s, spec, tasks.Succeeded)
		for _, scope := range []tasks.Scope{
			{Region: region, Tenant: "a"}, {Region: "elsewhere", Tenant: "b"}, {Region: region, Tenant: "b", Dialect: "fjcloud"}, {Region: region},
		} {
			wantErr(t, fmt.Sprintf("in %+v", scope), s.DeleteImage(ctx, scope, spec.ID), tasks.ErrUnknown)
		}
		var accepted atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				switch err := s.DeleteImage(ctx, scopeOf(spec), spec.ID); {
				case err == nil:
					accepted.Add(1)
				case !errors.Is(err, tasks.ErrImageRemoving):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if accepted.Load() != 1 {
			t.Errorf("%d deletions accepted", accepted.Load())
		}
		task, err := s.Get(ctx, scopeOf(spec), spec.ID)
		if err != nil || task.State != tasks.Succeeded || task.DeletedAt.IsZero() || task.Removed || task.Progress != 100 {
			t.Errorf("deleted: %+v, %v", task, err)
		}
		create(t, s, newImage("b", "web")) // the name is free
	})
}

// A removal is handed out, lost, given back and done like the clean-up of a canceled
// import.
func TestRemoval(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec := newImage("a", "web")
		old := reach(t, s, spec, tasks.Succeeded)
		if got := survey(t, s, "a", clock.now().Add(keep*2)); got.Ended != 0 {
			t.Errorf("the record of an image may be purged: %+v", got)
		}
		if err := s.DeleteImage(ctx, scopeOf(spec), spec.ID); err != nil {
			t.Fatal(err)
		}
		take := func(now time.Time) tasks.Held {
			t.Helper()
			tickets, err := s.Dispatch(ctx, "a", true, 5, now)
			if err != nil || len(tickets) != 1 || !tickets[0].Cleanup {
				t.Fatalf("tickets %+v, %v", tickets, err)
			}
			return claim(t, s, spec.Ref()).Held
		}
		first := take(clock.now())
		if p, err := s.Beat(ctx, first, tasks.Progress{Percent: 1, Stage: tasks.StageCleaning}, lease); p.State != tasks.Succeeded || err != nil {
			t.Errorf("Beat: %+v, %v", p, err)
		}
		_, err := s.Claim(ctx, spec.Ref(), "w2", lease)
		wantErr(t, "a second claim", err, tasks.ErrNotClaimable)
		now := clock.set(lease + time.Second)
		if err := s.Expire(ctx, first, attemptOf(first, tasks.OutcomeLost), time.Minute, now); err != nil {
			t.Fatal(err)
		}
		second := take(now) // without a pause
		wantErr(t, "the first worker", s.Removed(ctx, first, attemptOf(first, tasks.OutcomeRemoved)), tasks.ErrFenced)
		if err := s.Release(ctx, second, time.Minute, attemptOf(second, tasks.OutcomeLeftovers)); err != nil {
			t.Fatal(err)
		}
		now = clock.set(2 * time.Minute)
		third := take(now)
		wantErr(t, "a deletion meanwhile", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrImageRemoving)
		for range 2 { // a second run changes nothing
			if err := s.Removed(ctx, third, attemptOf(third, tasks.OutcomeRemoved)); err != nil {
				t.Fatal(err)
			}
		}
		task, err := s.Get(ctx, scopeOf(spec), spec.ID)
		if err != nil || !task.Removed || task.State != tasks.Succeeded || task.Progress != 100 || len(task.Attempts) != 4 {
			t.Errorf("removed: %+v, %v", task, err)
		}
		wantErr(t, "a deletion afterwards", s.DeleteImage(ctx, scopeOf(spec), spec.ID), tasks.ErrUnknown)
		wantErr(t, "a late end of the import", s.Succeed(ctx, old, attemptOf(old, "succeeded")), tasks.ErrFenced)
		if got := survey(t, s, "a", now); got.Open != 0 {
			t.Errorf("left: %+v", got)
		}
		if n, err := s.Purge(ctx, "a", 10, clock.set(3*time.Minute+keep)); n != 1 || err != nil {
			t.Errorf("purged %d, %v", n, err)
		}
		keys, err := s.rdb.Keys(ctx, "vmimport:{a}:*").Result()
		if slices.Sort(keys); err != nil || !slices.Equal(keys, []string{"vmimport:{a}:seq", "vmimport:{a}:usage"}) {
			t.Errorf("left: %q, %v", keys, err)
		}
	})
}

// Find is compared with a plain search over all records.
func TestFind(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		random := rand.New(rand.NewPCG(1, 2))
		var all []tasks.ID // newest first
		var scope tasks.Scope
		for i := range 60 {
			spec := newImage("a", fmt.Sprint("web", i))
			spec.RequestedAt = start.Add(time.Duration(i) * time.Second)
			scope = scopeOf(spec)
			scope.Project = ""
			to := []tasks.State{tasks.Queued, tasks.Processing, tasks.Succeeded, tasks.Failed, tasks.Cancelling, tasks.Canceled}[random.IntN(6)]
			held := reach(t, s, spec, to)
			all = slices.Insert(all, 0, spec.ID)
			switch {
			case to == tasks.Processing && i%2 == 0: // it waits for another attempt
				if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeDrained)); err != nil {
					t.Fatal(err)
				}
			case to.Final() && i%3 == 0:
				if err := s.DeleteImage(ctx, scope, spec.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		create(t, s, newSpec("a"))
		create(t, s, newImage("b", "web1"))

		phases := []tasks.Phase{tasks.PhaseWaiting, tasks.PhaseWorking, tasks.PhaseSucceeded, tasks.PhaseFailed, tasks.PhaseCanceled}
		for range 300 {
			q := tasks.Query{Images: random.IntN(2) == 0, Start: random.IntN(20), Limit: random.IntN(15)}
			for range random.IntN(4) {
				q.Phases = append(q.Phases, phases[random.IntN(5)])
			}
			if random.IntN(4) == 0 {
				q.Match = func(task *tasks.Task) bool { return len(task.Name)%2 == 0 }
			}
			if random.IntN(3) == 0 {
				q.Name = fmt.Sprint("web", random.IntN(60))
			}
			if random.IntN(4) == 0 {
				q.IDs = []tasks.ID{all[random.IntN(60)], all[random.IntN(60)], all[0], all[0], "unknown", ""}
			}
			var want []tasks.ID
			for _, id := range all {
				task, err := s.Get(ctx, scope, id)
				if err != nil {
					t.Fatal(err)
				}
				if selects(scope, q, task) && (q.IDs == nil || slices.Contains(q.IDs, id)) {
					want = append(want, id)
				}
			}
			total := len(want)
			want = want[min(q.Start, total):min(q.Start+q.Limit, total)]
			found, n, err := s.Find(ctx, scope, q)
			var got []tasks.ID
			for _, task := range found {
				got = append(got, task.ID)
			}
			if err != nil || n != total || !slices.Equal(got, want) {
				t.Fatalf("%+v\n got %d %v, %v\nwant %d %v", q, n, got, err, total, want)
			}
		}
	})
}

// pageCmd costs the same at any offset: what it does is bounded by the halvings.
func TestFindFarDown(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		spec := newImage("a", "web")
		spec.ID = "newest"
		create(t, s, spec)
		scope := scopeOf(spec)
		scope.Project = ""
		for _, start := range []int{1, 1 << 31, 1 << 52} {
			found, total, err := s.Find(t.Context(), scope, tasks.Query{Start: start, Limit: 10})
			if err != nil || total != 1 || len(found) != 0 {
				t.Errorf("from %d: %d of %d, %v", start, len(found), total, err)
			}
		}
	})
}

// Ten thousand records are paged through without gap or overlap, and the last page costs
// what the first does.
func TestFindAmongTenThousand(t *testing.T) {
	t.Parallel()
	const records, page = 10_000, 100
	ctx := t.Context()
	s := New(testenv.StartRedis(t).Client(), Options{Retention: keep})
	scope := scopeOf(newImage("a", ""))
	scope.Project = ""
	next := make(chan int)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := range next {
				spec := newImage("a", fmt.Sprint("web", i))
				if _, _, err := s.Create(ctx, spec, tasks.Limits{}); err != nil {
					t.Error(err)
				}
				if i%10 != 0 { // most are canceled, the others wait
					if _, err := s.Cancel(ctx, scope, spec.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for i := range records {
		next <- i
	}
	close(next)
	wg.Wait()

	for what, q := range map[string]tasks.Query{
		"tasks":      {},
		"images":     {Images: true},
		"one phase":  {Images: true, Phases: []tasks.Phase{tasks.PhaseCanceled}},
		"two phases": {Phases: []tasks.Phase{tasks.PhaseCanceled, tasks.PhaseWaiting}},
	} {
		want := records
		if len(q.Phases) == 1 {
			want = records * 9 / 10
		}
		seen := map[tasks.ID]bool{}
		var took []time.Duration
		for q.Start, q.Limit = 0, page; q.Start < want; q.Start += page {
			began := time.Now()
			found, total, err := s.Find(ctx, scope, q)
			took = append(took, time.Since(began))
			if err != nil || total != want || len(found) != page {
				t.Fatalf("%s from %d: %d of %d, %v", what, q.Start, len(found), total, err)
			}
			for _, task := range found {
				seen[task.ID] = true
			}
		}
		if len(seen) != want {
			t.Errorf("%s: %d of %d", what, len(seen), want)
		}
		first, last := median(took[:20]), median(took[len(took)-20:])
		t.Logf("%s: the first pages take %v, the last %v", what, first, last)
		if last > 4*first { // reading through would take a hundred times as long
			t.Errorf("%s: the first pages take %v, the last %v", what, first, last)
		}
	}
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
