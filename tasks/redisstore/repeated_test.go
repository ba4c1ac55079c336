package redisstore

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// twice runs every script a second time, as the client does when a connection breaks
// before the answer. The caller sees the second answer.
type twice struct{}

func (twice) DialHook(next redis.DialHook) redis.DialHook { return next }

func (twice) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (twice) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" || cmd.Name() == "eval" {
			_ = next(ctx, redis.NewCmd(ctx, cmd.Args()...))
		}
		return next(ctx, cmd)
	}
}

// The life of an import is the same if each of its scripts runs twice: nothing is refused,
// and nothing is counted, listed or remembered a second time.
func TestScriptsRunTwice(t *testing.T) {
	everywhere(t, func(t *testing.T, s *Store, clock *clock) {
		ctx := t.Context()
		s.rdb.AddHook(twice{})
		usage := func(images, disks string) {
			t.Helper()
			got, err := s.rdb.HGetAll(ctx, keysOf("a").usage()).Result()
			prefix := region + "/aliyun/"
			if want := map[string]string{prefix + "images": images, prefix + "disks": disks}; err != nil || !maps.Equal(got, want) {
				t.Errorf("usage %v, want %v; %v", got, want, err)
			}
		}
		attempts := func(spec *tasks.Spec, n int) {
			t.Helper()
			if task, err := s.Get(ctx, scopeOf(spec), spec.ID); err != nil || len(task.Attempts) != n {
				t.Errorf("%+v, %v; want %d attempts", task, err, n)
			}
		}
		only := tasks.Limits{Unfinished: 1, Quota: tasks.Quota{Images: 1, Disks: 2}}
		spec := newImage("a", "web")
		spec.Disks = append(spec.Disks, spec.Disks[0])
		spec.ClientToken, spec.Fingerprint = "token", "f"
		if task, err := s.Admit(ctx, spec, only); task != nil || err != nil {
			t.Fatalf("Admit: %v, %v", task, err)
		}
		if _, fresh, err := s.Create(ctx, spec, only); !fresh || err != nil {
			t.Fatalf("Create: fresh %v, %v", fresh, err)
		}
		usage("1", "2")
		held := claim(t, s, spec.Ref()).Held
		if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeRetry)); err != nil {
			t.Fatal(err)
		}
		attempts(spec, 1)
		held = claim(t, s, spec.Ref()).Held
		if held.Epoch != 2 {
			t.Errorf("epoch %d of the second claim", held.Epoch)
		}
		if err := s.Reassign(ctx, held, "another"); err != nil {
			t.Fatal(err)
		}
		succeed(t, s, held)
		usage("1", "2")
		attempts(spec, 2)
		if err := s.DeleteImage(ctx, scopeOf(spec), spec.ID); err != nil {
			t.Fatal(err)
		}
		usage("0", "0")
		held = claim(t, s, spec.Ref()).Held
		if err := s.Release(ctx, held, 0, attemptOf(held, tasks.OutcomeLeftovers)); err != nil {
			t.Fatal(err)
		}
		held = claim(t, s, spec.Ref()).Held
		if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
			t.Fatal(err)
		}
		attempts(spec, 4)
		for _, end := range []tasks.State{tasks.Failed, tasks.Canceled} {
			spec := newImage("a", "web")
			reach(t, s, spec, end)
			usage("0", "0")
			attempts(spec, 1)
			if err := s.DeleteImage(ctx, scopeOf(spec), spec.ID); err != nil {
				t.Fatal(err)
			}
			usage("0", "0")
		}
		// One that keeps something, is retried, keeps it again, and has it removed.
		failing := newImage("a", "web")
		create(t, s, failing)
		for n := range 2 {
			held = claim(t, s, failing.Ref()).Held
			if err := s.Fail(ctx, held, failure, attemptOf(held, "failed"), time.Minute); err != nil {
				t.Fatal(err)
			}
			usage("0", "0")
			if n == 0 {
				if err := s.Retry(ctx, scopeOf(failing), failing.ID, only); err != nil {
					t.Fatal(err)
				}
				usage("1", "1")
			}
		}
		clock.set(time.Minute)
		held = claim(t, s, failing.Ref()).Held
		if err := s.Removed(ctx, held, attemptOf(held, tasks.OutcomeRemoved)); err != nil {
			t.Fatal(err)
		}
		usage("0", "0")
		attempts(failing, 3)
		if task := get(t, s, failing); task.Retried != 1 || task.Epoch != 3 {
			t.Errorf("%+v", task)
		}
		waiting := newImage("a", "web")
		create(t, s, waiting)
		if st, err := s.Cancel(ctx, scopeOf(waiting), waiting.ID); st != tasks.Canceled || err != nil {
			t.Errorf("Cancel: %s, %v", st, err)
		}
		usage("0", "0")
		all := changes(t, s, "a")
		for id, want := range map[tasks.ID][]tasks.State{
			spec.ID:    {tasks.Queued, tasks.Processing, tasks.Queued, tasks.Processing, tasks.Succeeded},
			failing.ID: {tasks.Queued, tasks.Processing, tasks.Failed, tasks.Queued, tasks.Processing, tasks.Failed},
			waiting.ID: {tasks.Queued, tasks.Canceled},
		} {
			if got := path(all, id); !slices.Equal(got, want) {
				t.Errorf("journal %v, want %v", got, want)
			}
		}
		if want := 5 + 6 + 2 + 3 + 4; len(all) != want { // with the two that were reached
			t.Errorf("%d changes, want %d: %+v", len(all), want, all)
		}
		if _, err := s.Purge(ctx, "a", 10, clock.set(keep+time.Hour)); err != nil {
			t.Fatal(err)
		}
		left, err := s.rdb.Keys(ctx, "vmimport:{a}:*").Result()
		if err != nil || len(left) != 3 { // seq, usage, and the token, which goes by itself
			t.Errorf("left: %q, %v", left, err)
		}
	})
}
