package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// changes reads a whole journal in pages.
func changes(t *testing.T, s *Store, tenant tasks.Tenant) []tasks.Change {
	t.Helper()
	var all []tasks.Change
	mark := ""
	for {
		page, err := s.Changes(t.Context(), tenant, mark, 7)
		if err != nil {
			t.Fatalf("Changes after %q: %v", mark, err)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
		mark = page[len(page)-1].Mark
	}
}

// path is the states of one import, as the journal has them.
func path(all []tasks.Change, id tasks.ID) []tasks.State {
	var states []tasks.State
	for _, c := range all {
		if c.ID == id {
			states = append(states, c.State)
		}
	}
	return states
}

func TestJournalHasEachChange(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		spec, exp := newSpec("d1"), newExport("d1")
		spec.Name = `ウェブ "01"` + "\n{}/%00 \u2028 \\u0041"
		create(t, s, spec)
		clock.set(time.Second)
		held := claim(t, s, spec.Ref()).Held
		if _, err := s.Beat(ctx, held, tasks.Progress{Percent: 42}, lease); err != nil {
			t.Fatal(err)
		}
		failure := tasks.Failure{Code: "x", Message: "X.", Evidence: "e", Remedy: "r", Disk: 2}
		clock.set(2 * time.Second)
		if err := s.Fail(ctx, held, failure, attemptOf(held, "failed"), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{}); err != nil {
			t.Fatal(err)
		}
		succeed(t, s, claim(t, s, spec.Ref()).Held)
		create(t, s, exp)
		if _, err := s.Cancel(ctx, scopeOfExport(exp), exp.ID); err != nil {
			t.Fatal(err)
		}

		of := func(spec *tasks.Spec, state tasks.State, epoch tasks.Epoch, progress int, after time.Duration) tasks.Change {
			return tasks.Change{
				ID: spec.ID, Kind: spec.Kind(), Region: region, Project: "alpha", Dialect: "fjcloud", Name: spec.Name,
				State: state, Epoch: epoch, Progress: progress, At: start.Add(after),
			}
		}
		want := []tasks.Change{
			of(spec, tasks.Queued, 0, 0, 0),
			of(spec, tasks.Processing, 1, 0, time.Second),
			of(spec, tasks.Failed, 1, 42, 2*time.Second),
			of(spec, tasks.Queued, 1, 42, 2*time.Second),
			of(spec, tasks.Processing, 2, 42, 2*time.Second),
			of(spec, tasks.Succeeded, 2, 100, 2*time.Second),
			of(exp, tasks.Queued, 0, 0, 2*time.Second),
			of(exp, tasks.Canceled, 0, 0, 2*time.Second),
		}
		want[2].Failure = &failure
		got := changes(t, s, "d1")
		marks := map[string]bool{}
		for i := range got {
			if m := got[i].Mark; m == "" || len(m) > tasks.MaxMark || marks[m] {
				t.Errorf("mark %q", m)
			}
			marks[got[i].Mark] = true
		}
		if latest, err := s.Latest(ctx, "d1"); err != nil || latest != got[len(got)-1].Mark {
			t.Errorf("latest is %q, %v", latest, err)
		}
		for i := range got {
			got[i].Mark = ""
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("journal\n got %+v\nwant %+v", got, want)
		}
		if latest, err := s.Latest(ctx, "d2"); err != nil || latest != "" {
			t.Errorf("latest of an empty journal is %q, %v", latest, err)
		}
		if none, err := s.Changes(ctx, "d2", "", 10); err != nil || len(none) != 0 {
			t.Errorf("an empty journal has %v, %v", none, err)
		}
		if none, err := s.Changes(ctx, "d1", "", 0); err != nil || len(none) != 0 {
			t.Errorf("none asked for: %v, %v", none, err)
		}
	})
}

// Whoever asks for what came after a mark gets all of it, or hears that it is gone.
func TestGaps(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		for range 10 {
			create(t, s, newSpec("a"))
		}
		all := changes(t, s, "a")
		for i, c := range all {
			if got, err := s.Changes(ctx, "a", c.Mark, 100); err != nil || !reflect.DeepEqual(got, append([]tasks.Change{}, all[i+1:]...)) {
				t.Errorf("after %d of %d: %d changes, %v", i, len(all), len(got), err)
			}
		}
		if err := s.rdb.XTrimMaxLen(ctx, keysOf("a").journal(), 4).Err(); err != nil {
			t.Fatal(err)
		}
		for i, c := range all {
			var want error
			if i < 6 {
				want = tasks.ErrMarkGone
			}
			for _, limit := range []int{0, 1, 100} {
				_, err := s.Changes(ctx, "a", c.Mark, limit)
				wantErr(t, fmt.Sprintf("after %d, %d", i, limit), err, want)
			}
		}
		if kept, err := s.Changes(ctx, "a", "", 100); err != nil || !reflect.DeepEqual(kept, all[6:]) {
			t.Errorf("all that is kept: %v, %v", kept, err)
		}

		// Another journal, and the next one of the same tenant.
		create(t, s, newSpec("b"))
		latest := all[len(all)-1].Mark
		_, err := s.Changes(ctx, "b", latest, 10)
		wantErr(t, "of another tenant", err, tasks.ErrMarkGone)
		if err := s.rdb.Del(ctx, keysOf("a").journal()).Err(); err != nil {
			t.Fatal(err)
		}
		_, err = s.Changes(ctx, "a", latest, 10)
		wantErr(t, "of a journal that was removed", err, tasks.ErrMarkGone)
		create(t, s, newSpec("a"))
		_, err = s.Changes(ctx, "a", latest, 10)
		wantErr(t, "of the journal before", err, tasks.ErrMarkGone)
	})
}

func TestHostileMarks(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		create(t, s, newSpec("a"))
		latest, err := s.Latest(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ms, _, _ := strings.Cut(latest, "-")
		for _, mark := range []string{
			"-", "+", "$", "*", ">", "0", "0-0", "0-1", "(" + latest, " " + latest, latest + " ", latest + "\n", "+" + latest, "0" + latest,
			latest + "-0", ms, ms + "-", ms + "-*", "-1-0", "1-x", "1--1", "１-0", "\x00", strings.Repeat("9", 1<<20), strings.Repeat("9", 64) + "-0",
			fmt.Sprintf("%d-%d", uint64(math.MaxUint64), uint64(math.MaxUint64)), "18446744073709551616-0", "9999999999999-0", "null", `{"$gt":""}`,
		} {
			_, err := s.Changes(t.Context(), "a", mark, 10)
			wantErr(t, fmt.Sprintf("after %.80q", mark), err, tasks.ErrMarkGone)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add("1767323045000-0")
	f.Add("01-1")
	f.Fuzz(func(t *testing.T, mark string) {
		var ms, n uint64
		_, err := fmt.Sscanf(mark, "%d-%d", &ms, &n)
		if want := err == nil && fmt.Sprintf("%d-%d", ms, n) == mark; isMark(mark) != want {
			t.Errorf("%q is a mark: %v", mark, !want)
		}
	})
}

// A journal does not grow for ever.
func TestJournalIsBounded(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		key := keysOf("a").journal()
		_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for range 10_500 {
				p.XAdd(ctx, &redis.XAddArgs{Stream: key, Values: []string{"id", "x"}})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		create(t, s, newSpec("a"))
		if n, err := s.rdb.XLen(ctx, key).Result(); err != nil || n < 10_000 || n > 10_200 {
			t.Errorf("%d entries, %v", n, err)
		}
	})
}

// walk makes random moves with a tenant's imports, legal or not, and takes note of each state
// that Get shows.
type walk struct {
	t      *testing.T
	s      *Store
	random *rand.Rand
	tenant tasks.Tenant
	clock  *clock
	specs  []*tasks.Spec
	held   map[tasks.ID]tasks.Held
	seen   map[tasks.ID][]tasks.State
}

func (w *walk) step() {
	t, s, ctx := w.t, w.s, w.t.Context()
	if len(w.specs) == 0 || w.random.IntN(20) == 0 {
		spec := newSpec(w.tenant)
		if w.random.IntN(2) == 0 {
			spec = newImage(w.tenant, string(spec.ID))
		}
		w.specs = append(w.specs, spec)
		create(t, s, spec)
		w.look(spec)
		return
	}
	spec := w.specs[w.random.IntN(len(w.specs))]
	h := w.held[spec.ID]
	pause := time.Duration(w.random.IntN(2)) * time.Minute
	// What is refused is as good: the journal must not have it.
	switch w.random.IntN(14) {
	case 0, 1, 2, 3:
		if c, err := s.Claim(ctx, spec.Ref(), "w", lease); err == nil {
			w.held[spec.ID] = c.Held
		}
	case 4:
		_ = s.SaveCheckpoint(ctx, h, []byte("c"), w.random.Int64N(100))
	case 5:
		outcome := []string{tasks.OutcomeDrained, tasks.OutcomeRetry, tasks.OutcomeLeftovers}[w.random.IntN(3)]
		_ = s.Release(ctx, h, pause, attemptOf(h, outcome))
	case 6:
		_ = s.Fail(ctx, h, tasks.Failure{Code: "x"}, attemptOf(h, "failed"), pause)
	case 7:
		if s.BeginPublish(ctx, h, &tasks.Result{}) == nil {
			_ = s.Succeed(ctx, h, attemptOf(h, "succeeded"))
		}
	case 8:
		_, _ = s.Cancel(ctx, scopeOf(spec), spec.ID)
	case 9:
		_ = s.Canceled(ctx, h, attemptOf(h, "canceled"))
	case 10:
		_ = s.Expire(ctx, h, attemptOf(h, tasks.OutcomeLost), pause, w.clock.now())
	case 11:
		_ = s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{})
	case 12:
		_ = s.DeleteImage(ctx, scopeOf(spec), spec.ID)
	case 13:
		_ = s.Removed(ctx, h, attemptOf(h, tasks.OutcomeRemoved))
	}
	w.look(spec)
}

// look adds the state of an import to those seen, if it is another.
func (w *walk) look(spec *tasks.Spec) {
	now, seen := state(w.t, w.s, spec), w.seen[spec.ID]
	if len(seen) == 0 || seen[len(seen)-1] != now {
		w.seen[spec.ID] = append(seen, now)
	}
}

// The journal of a random walk is what Get has shown, whether each script runs once or twice, and
// whatever other tenants do meanwhile.
func TestJournalOfARandomWalk(t *testing.T) {
	for _, times := range []string{"once", "twice"} {
		t.Run(times, func(t *testing.T) {
			everywhere(t, func(t *testing.T, s *Store, clock *clock) {
				if times == "twice" {
					s.rdb.AddHook(twice{})
				}
				for i := range uint64(4) {
					t.Run(fmt.Sprint(i), func(t *testing.T) {
						t.Parallel()
						w := &walk{
							t: t, s: s, clock: clock, random: rand.New(rand.NewPCG(7, i)), tenant: tasks.Tenant(fmt.Sprint("{t}", i)),
							held: map[tasks.ID]tasks.Held{}, seen: map[tasks.ID][]tasks.State{},
						}
						for range 300 {
							w.step()
							clock.advance(2 * time.Second)
						}
						w.compare()
					})
				}
			})
		})
	}
}

// compare holds the journal against what was seen.
func (w *walk) compare() {
	all := changes(w.t, w.s, w.tenant)
	total, ways := 0, map[[2]tasks.State]bool{}
	for id, seen := range w.seen {
		total += len(seen)
		if got := path(all, id); !slices.Equal(got, seen) {
			w.t.Errorf("journal %v, seen %v", got, seen)
		}
		for i := range len(seen) - 1 {
			ways[[2]tasks.State{seen[i], seen[i+1]}] = true
			if !seen[i].CanBecome(seen[i+1]) {
				w.t.Errorf("the table forbids %v", seen)
			}
		}
	}
	if len(all) != total || len(ways) < 6 {
		w.t.Errorf("%d changes in the journal, %d seen, of %d kinds", len(all), total, len(ways))
	}
}

// Whoever races, each import's journal is a way through the table that leads to its state.
func TestJournalOfARace(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		var specs []*tasks.Spec
		for range 20 {
			spec := newSpec("d1")
			create(t, s, spec)
			specs = append(specs, spec)
		}
		var wg sync.WaitGroup
		for i := range uint64(8) {
			random := rand.New(rand.NewPCG(3, i))
			wg.Go(func() {
				for range 150 {
					spec := specs[random.IntN(len(specs))]
					switch random.IntN(12) {
					case 0:
						_, _ = s.Cancel(ctx, scopeOf(spec), spec.ID)
					case 1, 2, 3:
						_ = s.Retry(ctx, scopeOf(spec), spec.ID, tasks.Limits{})
					default:
						raceOn(ctx, s, random, spec)
					}
				}
			})
		}
		wg.Wait()
		all := changes(t, s, "d1")
		for _, spec := range specs {
			states := path(all, spec.ID)
			if last := len(states) - 1; states[0] != tasks.Queued || states[last] != state(t, s, spec) {
				t.Errorf("journal %v, state %s", states, state(t, s, spec))
			}
			for i := range len(states) - 1 {
				if !states[i].CanBecome(states[i+1]) {
					t.Errorf("the table forbids %v", states)
				}
			}
		}
	})
}

// raceOn is an attempt that ends in any way.
func raceOn(ctx context.Context, s *Store, random *rand.Rand, spec *tasks.Spec) {
	c, err := s.Claim(ctx, spec.Ref(), "w", lease)
	if err != nil {
		return
	}
	h := c.Held
	switch random.IntN(4) {
	case 0:
		err = s.Release(ctx, h, 0, attemptOf(h, tasks.OutcomeDrained))
	case 1:
		if err = s.BeginPublish(ctx, h, &tasks.Result{}); err == nil && random.IntN(3) == 0 {
			err = s.Succeed(ctx, h, attemptOf(h, "succeeded"))
		} else if err == nil {
			err = s.Release(ctx, h, 0, attemptOf(h, tasks.OutcomeDrained))
		}
	default:
		err = s.Fail(ctx, h, tasks.Failure{Code: "x"}, attemptOf(h, "failed"), 0)
	}
	if errors.Is(err, tasks.ErrCancelCameFirst) {
		_ = s.Canceled(ctx, h, attemptOf(h, "canceled"))
	}
}

// A journal stays as long as anything that it tells of, and no longer.
func TestJournalEndsWithItsTenant(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		image, plain := newImage("a", "web"), newSpec("a")
		reach(t, s, image, tasks.Succeeded)
		reach(t, s, plain, tasks.Failed)
		tidy := func(after time.Duration, want bool) {
			t.Helper()
			if _, err := s.Purge(ctx, "a", 10, clock.set(after)); err != nil {
				t.Fatal(err)
			}
			if n, err := s.rdb.Exists(ctx, keysOf("a").journal()).Result(); err != nil || (n == 1) != want {
				t.Errorf("%s later the journal is there: %v, %v", after, n == 1, err)
			}
		}
		tidy(time.Hour, true)
		tidy(keep+time.Hour, true) // the image is still there, and no record will go
		if err := s.DeleteImage(ctx, scopeOf(image), image.ID); err != nil {
			t.Fatal(err)
		}
		tidy(keep+2*time.Hour, true)
		held := claim(t, s, image.Ref()).Held
		if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
			t.Fatal(err)
		}
		tidy(keep+3*time.Hour, true)
		tidy(2*keep+4*time.Hour, false)
		if tenants, err := s.Tenants(ctx, clock.now()); len(tenants) != 0 || err != nil {
			t.Errorf("tenants %v, %v", tenants, err)
		}
	})
}

func TestRunning(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		var ids []tasks.ID
		for range 3 {
			spec := newSpec("a")
			held := reach(t, s, spec, tasks.Processing)
			if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeDrained)); err != nil {
				t.Fatal(err)
			}
			held = claim(t, s, spec.Ref()).Held
			pulse, err := s.Beat(ctx, held, tasks.Progress{Percent: 3}, lease)
			ids = append(ids, spec.ID)
			if want := (tasks.Pulse{State: tasks.Processing, Running: len(ids)}); pulse != want || err != nil {
				t.Errorf("%+v, %v, want %+v", pulse, err, want)
			}
		}
		create(t, s, newSpec("a"))
		reach(t, s, newSpec("b"), tasks.Processing)
		for limit, want := range map[int]int{-1: 0, 0: 0, 2: 2, 10: 3} {
			running, err := s.Running(ctx, "a", limit)
			if err != nil || len(running) != want {
				t.Errorf("%d of at most %d, %v", len(running), limit, err)
			}
			for _, task := range running {
				if !slices.Contains(ids, task.ID) || task.Progress != 3 || task.Attempts != nil {
					t.Errorf("running is %+v", task)
				}
			}
		}
	})
}

func TestFollow(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		const tenant = "{d1}: 100% ドメイン"
		ctx, cancel := context.WithCancelCause(t.Context())
		heard := make(chan tasks.Tenant, 1000)
		ended := make(chan error, 1)
		go func() { ended <- s.Follow(ctx, func(tenant tasks.Tenant) { heard <- tenant }) }()
		for listening := false; !listening; { // until the subscription stands
			create(t, s, newSpec("probe"))
			select {
			case <-heard:
				listening = true
			default:
			}
		}
		s.hint(ctx, changesChannel, "no journal")
		create(t, s, newSpec(tenant))
		for got := range heard {
			if got == tenant {
				break
			}
			if got != "probe" {
				t.Errorf("heard of %q", got)
			}
		}
		stop := errors.New("stop")
		cancel(stop)
		wantErr(t, "Follow", <-ended, stop)
	})
}
