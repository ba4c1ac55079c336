package redisstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

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

		if err := s.Fail(ctx, held, tasks.Failure{Code: "x"}, attemptOf(held, "failed"), 0); err != nil {
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
				task, made, err := s.Create(ctx, spec, tasks.Limits{})
				if err != nil {
					t.Error(err)
					return
				}
				if ids[i] = task.ID; made {
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
		if task, err := s.Admit(ctx, spec, tasks.Limits{}); err != nil || task == nil || task.ID != ids[0] {
			t.Errorf("Admit: %+v, %v", task, err)
		}
		spec.Fingerprint = "f2"
		_, _, err := s.Create(ctx, spec, tasks.Limits{})
		wantErr(t, "another request", err, tasks.ErrTokenMismatch)
		_, err = s.Admit(ctx, spec, tasks.Limits{})
		wantErr(t, "another request in advance", err, tasks.ErrTokenMismatch)
		spec.ClientToken = "t2"
		if task, err := s.Admit(ctx, spec, tasks.Limits{}); task != nil || err != nil {
			t.Errorf("a new token: %+v, %v", task, err)
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
			other := newSpec("d1") // which no window of this dialect shows
			other.Dialect = "aliyun"
			create(t, s, other)
			want = append([]tasks.ID{spec.ID}, want...)
		}
		create(t, s, newSpec("d2"))
		all := tasks.Scope{Region: region, Tenant: "d1", Dialect: "fjcloud"}
		var got []tasks.ID
		for at := 0; at < 30; at += 7 {
			page, err := s.List(ctx, all, at, 7)
			if err != nil {
				t.Fatal(err)
			}
			for _, task := range page {
				got = append(got, task.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages\n%v\nwant\n%v", got, want)
		}
		for scope, n := range map[tasks.Scope]int{
			{Region: region, Tenant: "d1", Dialect: "fjcloud", Project: "beta"}:  5,
			{Region: region, Tenant: "d1", Dialect: "fjcloud", Project: "gamma"}: 0,
			{Region: "elsewhere", Tenant: "d1", Dialect: "fjcloud"}:              0,
			{Region: region, Tenant: "d1", Dialect: "aliyun"}:                    25,
			{Region: region, Tenant: "d2", Dialect: "fjcloud"}:                   1,
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
			{Region: region, Tenant: "d1", Dialect: "aliyun"},
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
