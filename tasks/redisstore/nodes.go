package redisstore

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// eachNode calls do for every server that the records are on, at once: the master, or all
// masters of a Cluster, and then for their replicas. It returns one error at least if there is one.
func (s *Store) eachNode(ctx context.Context, do func(ctx context.Context, node *redis.Client, replica bool) error) error {
	switch rdb := s.rdb.(type) {
	case *redis.ClusterClient:
		if err := rdb.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return do(ctx, c, false) }); err != nil {
			return err
		}
		return rdb.ForEachSlave(ctx, func(ctx context.Context, c *redis.Client) error { return do(ctx, c, true) })
	case *redis.Client:
		if err := do(ctx, rdb, false); err != nil {
			return err
		}
		addrs := replicas(ctx, rdb)
		errs := make([]error, len(addrs))
		var wg sync.WaitGroup
		for i, addr := range addrs {
			wg.Go(func() {
				c := besides(rdb, addr)
				defer c.Close()
				errs[i] = do(ctx, c, true)
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	return nil
}

// replicas returns the addresses of a master's replicas, as far as it tells.
func replicas(ctx context.Context, master *redis.Client) (addrs []string) {
	info, err := master.Info(ctx, "replication").Result()
	if err != nil {
		return nil // a server that has none may not know what is asked
	}
	for line := range strings.Lines(info) {
		// slave0:ip=192.0.2.11,port=6379,state=online,offset=14,lag=0
		name, values, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !strings.HasPrefix(name, "slave") || !strings.Contains(values, "state=online") {
			continue
		}
		has := map[string]string{}
		for field := range strings.SplitSeq(values, ",") {
			key, value, _ := strings.Cut(field, "=")
			has[key] = value
		}
		addrs = append(addrs, net.JoinHostPort(has["ip"], has["port"]))
	}
	return addrs
}

// besides returns a client of another node, which the caller closes. It gives up soon.
func besides(c *redis.Client, addr string) *redis.Client {
	const soon = time.Second
	opt := c.Options()
	return redis.NewClient(&redis.Options{
		Addr: addr, Username: opt.Username, Password: opt.Password, TLSConfig: opt.TLSConfig,
		PoolSize: 1, MaxRetries: -1, DialTimeout: soon, ReadTimeout: soon, WriteTimeout: soon, DialerRetries: 1,
	})
}

// readClock returns the time of the clock that is most behind of all masters'. Scripts go by
// the clock of the node that they run on: what is due by this time is due for each of them. By
// another's it might not be yet, and a ticket that came too early would be lost for a while.
func (s *Store) readClock(ctx context.Context) (time.Time, error) {
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return s.rdb.Time(ctx).Result()
	}
	var mu sync.Mutex
	var first time.Time
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		now, err := node.Time(ctx).Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if first.IsZero() || now.Before(first) {
			first = now
		}
		return nil
	})
	return first, err
}
