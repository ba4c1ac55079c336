package clustertest

import (
	"context"
	"testing"
	"time"

	"vmimport/internal/testenv"
)

// TestSentinelFailover kills the master while imports run and others are being accepted. With
// redis.replicas 1 none that was accepted is lost.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	group := testenv.StartSentinels(t)
	f := startFailover(ctx, t, &redisGroup{map[string]any{"mode": "sentinel", "url": group.URL(), "replicas": 1}, group.Client(t)})
	master := group.Master(ctx)
	f.kill(master, nil, func() bool {
		now := group.Master(ctx)
		return now != nil && now != master
	})
	f.check(ctx)
	f.checkOperators()
}
