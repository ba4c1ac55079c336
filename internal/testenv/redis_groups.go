package testenv

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// settleTimeout is how long the servers of a group may take to find one another.
const settleTimeout = 30 * time.Second

// masterName is what etc/redis/sentinel.conf calls the master.
const masterName = "vmimport"

// StartReplica starts a replica of a server on a port, which lives as long as the test, and
// returns when it has all that the master has.
func StartReplica(t testing.TB, master *Redis) *Redis {
	t.Helper()
	host, port, _ := net.SplitHostPort(master.Addr)
	r := startOnPort(t, "replica.conf", func(int) map[string]string { return map[string]string{"replicaof": host + " " + port} })
	r.AwaitMaster()
	return r
}

// AwaitMaster waits until a replica has all that its master has.
func (r *Redis) AwaitMaster() {
	r.t.Helper()
	c := r.Client()
	settle(r.t, "master and replica", func(ctx context.Context) bool {
		info, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	})
}

// Sentinels is a master with replicas, and the Sentinels that replace it when it dies: after a
// second, so that tests need not wait long.
type Sentinels struct {
	Servers   []*Redis // the first is the master in the beginning
	sentinels []*Redis
}

// StartSentinels starts a master, two replicas and three Sentinels that live as long as the
// test, and returns when they know of one another.
func StartSentinels(t testing.TB) *Sentinels {
	t.Helper()
	s := &Sentinels{}
	// Each of the servers may be the master, so all have the same number of replicas to ask for.
	master := startOnPort(t, "server.conf", func(int) map[string]string {
		return map[string]string{"min-replicas-to-write": "1", "min-replicas-max-lag": "10"}
	})
	_, port, _ := net.SplitHostPort(master.Addr)
	s.Servers = []*Redis{master}
	for range 2 {
		s.Servers = append(s.Servers, StartReplica(t, master))
	}
	for range 3 {
		s.sentinels = append(s.sentinels, startOnPort(t, "sentinel.conf", func(int) map[string]string {
			return map[string]string{
				"sentinel monitor " + masterName:                 "127.0.0.1 " + port + " 2",
				"sentinel down-after-milliseconds " + masterName: "1000",
				"sentinel failover-timeout " + masterName:        "5000",
			}
		}, "--sentinel"))
	}
	settle(t, "the Sentinels", func(ctx context.Context) bool {
		for _, sentinel := range s.sentinels {
			knows, err := sentinel.watched(ctx)
			if err != nil || knows["num-slaves"] != "2" || knows["num-other-sentinels"] != "2" {
				return false
			}
		}
		info, err := master.Client().Info(ctx, "replication").Result()
		return err == nil && strings.Count(info, "state=online") == 2
	})
	return s
}

// watched returns what a Sentinel knows of the master.
func (r *Redis) watched(ctx context.Context) (map[string]string, error) {
	c := redis.NewSentinelClient(&redis.Options{Addr: r.Addr})
	defer c.Close()
	return c.Master(ctx, masterName).Result()
}

// Master returns the server that most Sentinels call the master now, nil if they do not agree.
func (s *Sentinels) Master(ctx context.Context) *Redis {
	votes := map[string]int{}
	for _, sentinel := range s.sentinels {
		knows, err := sentinel.watched(ctx)
		if err == nil {
			votes[net.JoinHostPort(knows["ip"], knows["port"])]++
		}
	}
	for _, server := range s.Servers {
		if votes[server.Addr] > len(s.sentinels)/2 {
			return server
		}
	}
	return nil
}

// URL is the Sentinels' addresses in the form that the configuration takes.
func (s *Sentinels) URL() string { return urlOf(s.sentinels) + "&master_name=" + masterName }

// Client returns a client of whoever is the master. It is closed when the test ends.
func (s *Sentinels) Client(t testing.TB) redis.UniversalClient {
	return closing(t, redis.NewFailoverClient(&redis.FailoverOptions{MasterName: masterName, SentinelAddrs: addrsOf(s.sentinels)}))
}

// RedisCluster is a Redis Cluster of three masters, each with a replica that takes its place
// when it dies: after two seconds or so, so that tests need not wait long.
type RedisCluster struct {
	Nodes []*Redis // the first three are the masters in the beginning
}

// The number of slots is Redis's own.
const (
	clusterMasters = 3
	clusterSlots   = 16384
)

// StartRedisCluster starts a Cluster that lives as long as the test, and returns when it is
// whole.
func StartRedisCluster(t testing.TB) *RedisCluster {
	t.Helper()
	c := &RedisCluster{}
	for range 2 * clusterMasters {
		c.Nodes = append(c.Nodes, startOnPort(t, "cluster.conf", func(int) map[string]string {
			return map[string]string{"cluster-port": fmt.Sprint(freePort(t)), "cluster-node-timeout": "1500"}
		}))
	}
	ids := c.meet(t)
	settle(t, "the Cluster's nodes", func(ctx context.Context) bool {
		return c.each(func(_ int, node *redis.Client) error {
			known, err := node.ClusterNodes(ctx).Result()
			if err == nil && (strings.Count(known, " connected") != len(c.Nodes) || strings.Contains(known, "handshake")) {
				err = fmt.Errorf("knows of\n%s", known)
			}
			return err
		}) == nil
	})
	must(t, c.each(func(i int, node *redis.Client) error {
		if i < clusterMasters {
			return nil
		}
		return node.ClusterReplicate(t.Context(), ids[i-clusterMasters]).Err()
	}))
	settle(t, "the Cluster", func(ctx context.Context) bool {
		return c.each(func(i int, node *redis.Client) error {
			cluster, err := node.ClusterInfo(ctx).Result()
			if err != nil || !strings.Contains(cluster, "cluster_state:ok") {
				return fmt.Errorf("is not ready: %s, %w", cluster, err)
			}
			info, err := node.Info(ctx, "replication").Result()
			if err != nil || i < clusterMasters && !strings.Contains(info, "state=online") {
				return fmt.Errorf("has no replica: %s, %w", info, err)
			}
			return nil
		}) == nil
	})
	return c
}

// meet gives the slots to the masters and makes the nodes known to one another. It returns
// their names.
func (c *RedisCluster) meet(t testing.TB) []string {
	t.Helper()
	ctx := t.Context()
	ids := make([]string, len(c.Nodes))
	first := c.Nodes[0].Client()
	must(t, c.each(func(i int, node *redis.Client) (err error) {
		if ids[i], err = node.ClusterMyID(ctx).Result(); err != nil {
			return err
		}
		if err := node.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err(); err != nil {
			return err
		}
		if i < clusterMasters {
			if err := node.ClusterAddSlotsRange(ctx, clusterSlots*i/clusterMasters, clusterSlots*(i+1)/clusterMasters-1).Err(); err != nil {
				return err
			}
		}
		bus, err := node.ConfigGet(ctx, "cluster-port").Result()
		if err != nil {
			return err
		}
		host, port, _ := net.SplitHostPort(c.Nodes[i].Addr)
		return first.Do(ctx, "CLUSTER", "MEET", host, port, bus["cluster-port"]).Err()
	}))
	return ids
}

// each calls do for every node, and stops at an error.
func (c *RedisCluster) each(do func(i int, node *redis.Client) error) error {
	for i, n := range c.Nodes {
		node := redis.NewClient(&redis.Options{Addr: n.Addr})
		err := do(i, node)
		_ = node.Close()
		if err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	return nil
}

// MasterOf returns the node that a key is written to now.
func (c *RedisCluster) MasterOf(t testing.TB, rdb *redis.ClusterClient, key string) *Redis {
	t.Helper()
	// Has the client look again. What else it may find wrong is not the question.
	_ = rdb.ForEachMaster(t.Context(), func(context.Context, *redis.Client) error { return nil })
	master, err := rdb.MasterForKey(t.Context(), key)
	must(t, err)
	i := slices.IndexFunc(c.Nodes, func(n *Redis) bool { return n.Addr == master.Options().Addr })
	if i < 0 {
		t.Fatalf("%s is on no node of the test", key)
	}
	return c.Nodes[i]
}

// URL is the addresses of some nodes in the form that the configuration takes.
func (c *RedisCluster) URL() string { return strings.Replace(urlOf(c.Nodes), "/0?", "?", 1) }

// Client returns a client that is closed when the test ends.
func (c *RedisCluster) Client(t testing.TB) *redis.ClusterClient {
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrsOf(c.Nodes)})
	closing(t, rdb)
	return rdb
}

func addrsOf(servers []*Redis) (addrs []string) {
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	return addrs
}

// urlOf names several servers.
func urlOf(servers []*Redis) string {
	addrs := addrsOf(servers)
	return "redis://" + addrs[0] + "/0?addr=" + strings.Join(addrs[1:], "&addr=")
}

func closing(t testing.TB, rdb redis.UniversalClient) redis.UniversalClient {
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// settle waits until the servers of a group are as they should be.
func settle(t testing.TB, who string, settled func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !settled(ctx) {
		select {
		case <-ctx.Done():
			t.Fatalf("%s did not find one another in %s", who, settleTimeout)
		case <-tick.C:
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
