package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

// TestPromisesAreReplicated takes the only replica away, and gives it back.
func TestPromisesAreReplicated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	master := testenv.StartRedisOnPort(t)
	replica := testenv.StartReplica(t, master)
	rdb := master.Client()
	s := New(rdb, Options{Retention: keep, Replicas: 1})

	kept, canceled := newSpec("d1"), newSpec("d1")
	for _, spec := range []*tasks.Spec{kept, canceled} {
		if err := rdb.ScriptFlush(ctx).Err(); err != nil { // as after a restart
			t.Fatal(err)
		}
		create(t, s, spec)
	}
	there := New(replica.Client(), Options{})
	if got := state(t, there, kept); got != tasks.Queued {
		t.Errorf("the replica has it %s", got)
	}

	waits := &waits{}
	rdb.AddHook(waits)
	published := newSpec("d1")
	create(t, s, published)
	held, before := claim(t, s, published.Ref()).Held, waits.n
	succeed(t, s, held)
	if waits.n != before+2 {
		t.Errorf("publishing and the end waited %d times", waits.n-before)
	}

	unreplicated := newSpec("d1")
	create(t, s, unreplicated)
	held = claim(t, s, unreplicated.Ref()).Held
	replica.Kill()
	succeed(t, s, held) // a worker goes on
	_, err := s.Cancel(ctx, scopeOf(canceled), canceled.ID)
	wantErr(t, "cancel without the replica", err, errNotReplicated)

	lost := newSpec("d1")
	began := time.Now()
	_, _, err = s.Create(ctx, lost, tasks.Limits{})
	wantErr(t, "create without the replica", err, errNotReplicated)
	if took := time.Since(began); took > 3*waitFor {
		t.Errorf("a create without the replica took %s", took)
	}

	replica.Start()
	replica.AwaitMaster()
	_, err = s.Cancel(ctx, scopeOf(canceled), canceled.ID)
	wantErr(t, "cancel again", err, tasks.ErrCancelRequested)
	create(t, s, newSpec("d1"))
}

// single is the part of a hook that is not about pipelines.
type single struct{}

func (single) DialHook(next redis.DialHook) redis.DialHook { return next }

func (single) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// waits counts how often replicas were waited for.
type waits struct {
	single
	n int
}

func (w *waits) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if cmds[0].Err() == nil && cmds[len(cmds)-1].Name() == "wait" { // the script was known
			w.n++
		}
		return err
	}
}

// TestUnkeptTasksDoNotRun has the script write what the replica then does not get.
func TestUnkeptTasksDoNotRun(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	master := testenv.StartRedisOnPort(t)
	replica := testenv.StartReplica(t, master)
	s := New(master.Client(), Options{Retention: keep, Replicas: 1})
	replica.Kill()

	plain, withToken := newSpec("d1"), newSpec("d1")
	withToken.ClientToken = "a token"
	for _, spec := range []*tasks.Spec{plain, withToken} {
		_, err := s.create(ctx, spec, tasks.Limits{}, false)
		wantErr(t, "create", err, errNotReplicated)
		s.abandon(ctx, spec, err)
	}
	if got := state(t, s, plain); got != tasks.Canceled {
		t.Errorf("without a token it is %s", got)
	}
	if got := state(t, s, withToken); got != tasks.Queued {
		t.Errorf("with a token it is %s", got)
	}
	again := newSpec("d1")
	again.ClientToken = withToken.ClientToken
	_, err := s.Admit(ctx, again, tasks.Limits{})
	wantErr(t, "a repetition without the replica", err, errNotReplicated)

	replica.Start()
	replica.AwaitMaster()
	if task, err := s.Admit(ctx, again, tasks.Limits{}); err != nil || task == nil || task.ID != withToken.ID {
		t.Errorf("a repetition: %+v, %v", task, err)
	}
	task, fresh, err := s.Create(ctx, again, tasks.Limits{})
	if err != nil || fresh || task.ID != withToken.ID {
		t.Errorf("asked again: %+v, fresh %v, %v", task, fresh, err)
	}
}

// TestUnkeptAnnouncement takes the replica away when it has the task, before the dispatcher is told
// for the second time.
func TestUnkeptAnnouncement(t *testing.T) {
	t.Parallel()
	master := testenv.StartRedisOnPort(t)
	replica := testenv.StartReplica(t, master)
	rdb := master.Client()
	s := New(rdb, Options{Retention: keep, Replicas: 1})
	create(t, s, newSpec("d1")) // the scripts are known from now on
	rdb.AddHook(&beforeThird{do: replica.Kill})
	spec := newSpec("d1")
	_, _, err := s.Create(t.Context(), spec, tasks.Limits{})
	wantErr(t, "create", err, errNotReplicated)
	if got := state(t, s, spec); got != tasks.Canceled {
		t.Errorf("it is %s", got)
	}
}

// beforeThird calls do before the third pipeline that is sent.
type beforeThird struct {
	single
	sent int
	do   func()
}

func (b *beforeThird) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if b.sent++; b.sent == 3 {
			b.do()
		}
		return next(ctx, cmds)
	}
}

func TestDurabilityOfReplicas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	master := testenv.StartRedisOnPort(t)
	replica := testenv.StartReplica(t, master)
	s := New(master.Client(), Options{})
	for _, step := range []struct {
		on          *testenv.Redis
		name, value string
		want        []string
	}{
		{replica, "appendonly", "yes", nil},
		{replica, "appendfsync", "everysec", []string{"appendfsync is everysec on 1 of 2 nodes, and must be always"}},
		{master, "appendfsync", "everysec", []string{"appendfsync is everysec on 2 of 2 nodes, and must be always"}},
		{replica, "replica-priority", "0", []string{"appendfsync is everysec, and must be always"}},
		{master, "appendfsync", "always", nil},
	} {
		if err := step.on.Client().ConfigSet(ctx, step.name, step.value).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Durability(ctx); err != nil || !slices.Equal(got, step.want) {
			t.Errorf("after %s %s: %q, %v, want %q", step.name, step.value, got, err, step.want)
		}
	}
	replica.Kill()
	if got, err := s.Durability(ctx); err != nil || len(got) > 0 {
		t.Errorf("without the replica: %q, %v", got, err)
	}
	master.Kill()
	if got, err := s.Durability(ctx); err == nil {
		t.Errorf("without the master: %q", got)
	}
}

// TestOnCluster goes through the life of imports of tenants on all nodes of a Redis Cluster, one
// of which hands its slots to another meanwhile.
func TestOnCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers := testenv.StartRedisCluster(t)
	rdb := servers.Client(t)
	s := New(rdb, Options{Retention: keep, Replicas: 1})
	if problems, err := s.Durability(ctx); err != nil || len(problems) > 0 {
		t.Errorf("durability: %q, %v", problems, err)
	}

	var tenants []tasks.Tenant
	nodes := map[*testenv.Redis]bool{}
	for n := range 12 {
		tenant := tasks.Tenant(fmt.Sprint("tenant ", n))
		tenants = append(tenants, tenant)
		nodes[servers.MasterOf(t, rdb, keysOf(tenant).seq())] = true
		create(t, s, newSpec(tenant))
	}
	if len(nodes) != 3 {
		t.Errorf("tenants are on %d nodes", len(nodes))
	}
	handOver(t, rdb, keysOf(tenants[0]).seq())
	for _, tenant := range tenants { // with a client that does not know of that yet
		create(t, s, newSpec(tenant))
	}

	now, err := s.Now(ctx)
	if err != nil {
		t.Fatal(err)
	}
	loads, err := s.Survey(ctx, tenants, now.Add(time.Second), now)
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range tenants {
		if loads[tenant].Due != 2 {
			t.Errorf("%s has %+v", tenant, loads[tenant])
		}
		tickets, err := s.Dispatch(ctx, tenant, false, 2, now.Add(time.Second))
		if err != nil || len(tickets) != 2 {
			t.Fatal(tickets, err)
		}
		held := claim(t, s, tickets[0].Ref).Held
		if unfinished, err := s.Unfinished(ctx, held.ID); err != nil || !unfinished {
			t.Errorf("unfinished %v, %v", unfinished, err)
		}
		if err := s.Fail(ctx, held, tasks.Failure{Code: "x", Message: "X."}, attemptOf(held, "failed"), 0); err != nil {
			t.Error(err)
		}
		scope := tasks.Scope{Region: region, Tenant: tenant, Dialect: "fjcloud"}
		if got, err := s.Cancel(ctx, scope, tickets[1].ID); err != nil || got != tasks.Canceled {
			t.Errorf("cancel: %s, %v", got, err)
		}
		if list, err := s.List(ctx, scope, 0, 10); err != nil || len(list) != 2 {
			t.Errorf("list of %s: %v, %v", tenant, list, err)
		}
		late := now.Add(keep + time.Hour)
		if n, err := s.Purge(ctx, tenant, 10, late); err != nil || n != 2 {
			t.Errorf("purged %d, %v", n, err)
		}
	}
}

// handOver makes a replica the master of a key, which takes a moment.
func handOver(t *testing.T, rdb *redis.ClusterClient, key string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	master, err := rdb.MasterForKey(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	addrs := replicas(ctx, master)
	if len(addrs) != 1 {
		t.Fatalf("the master has replicas %v", addrs)
	}
	replica := besides(master, addrs[0])
	defer replica.Close()
	if err := replica.ClusterFailover(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		old, err := master.Info(ctx, "replication").Result()
		if err == nil && strings.Contains(old, "role:slave") && strings.Contains(old, "master_link_status:up") {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(errors.Join(errors.New("the replica did not become the master"), err))
		}
	}
}
