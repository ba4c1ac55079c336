package clustertest

import (
	"context"
	"testing"
	"time"

	"vmimport/internal/testenv"
)

// TestRedisCluster has tenants on several nodes of a Redis Cluster, and kills the master that one
// of them is on.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	group := testenv.StartRedisCluster(t)
	rdb := group.Client(t)
	f := startFailover(ctx, t, &redisGroup{map[string]any{"mode": "cluster", "url": group.URL(), "replicas": 1}, rdb},
		"blue", "black", "green", "pink")
	place := func(tn *tenant) *testenv.Redis {
		return group.MasterOf(t, rdb, "vmimport:{"+string(tn.name)+"}:")
	}
	nodes := map[*testenv.Redis]bool{}
	for _, tn := range f.tenants {
		nodes[place(tn)] = true
	}
	if len(nodes) < 2 {
		t.Errorf("all tenants are on one node")
	}
	tn := f.tenants[0]
	master := place(tn)
	f.kill(master, tn, func() bool { return place(tn) != master })
	f.check(ctx)
	f.checkOperators()
}
