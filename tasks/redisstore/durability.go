package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// setting is one of Redis's, as CONFIG GET shows it.
type setting struct{ name, value string }

// durable is how Redis must be set for "accepted means durable" to hold.
var durable = []setting{
	{"appendonly", "yes"},
	{"appendfsync", "always"},
	{"maxmemory-policy", "noeviction"},
}

// neverMaster are settings each of which keeps a replica from becoming a master, under Sentinels
// and in a Cluster. How such a replica is set otherwise does not matter.
var neverMaster = []setting{
	{"replica-priority", "0"},
	{"cluster-replica-no-failover", "yes"},
}

// Durability returns a sentence for each setting under which Redis could lose a
// record that was accepted, on a master or on a replica that may become one. Nodes that do
// not answer are left out as long as one does. It fails if Redis does not tell, as some
// managed services do not.
func (s *Store) Durability(ctx context.Context) (problems []string, err error) {
	var mu sync.Mutex
	var silent error
	nodes, wrong := 0, map[setting]int{}
	err = s.eachNode(ctx, func(ctx context.Context, node *redis.Client, replica bool) error {
		has, err := settingsOf(ctx, node)
		if _, said := errors.AsType[redis.Error](err); err != nil && !said {
			mu.Lock()
			defer mu.Unlock()
			silent = err
			return nil
		}
		if err != nil || replica && slices.ContainsFunc(neverMaster, func(n setting) bool { return has[n.name] == n.value }) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		nodes++
		for _, d := range durable {
			if has[d.name] != d.value {
				wrong[setting{d.name, has[d.name]}]++
			}
		}
		return nil
	})
	if err = cmp.Or(err, silent); err != nil && (nodes == 0 || err != silent) {
		return nil, redisError("read Redis settings", err)
	}
	for found, n := range wrong {
		problems = append(problems, found.sentence(n, nodes))
	}
	slices.Sort(problems)
	return problems, nil
}

// sentence says that n of the nodes are set so, and how they should be.
func (f setting) sentence(n, nodes int) string {
	where := ""
	if nodes > 1 {
		where = fmt.Sprintf(" on %d of %d nodes", n, nodes)
	}
	must := durable[slices.IndexFunc(durable, func(d setting) bool { return d.name == f.name })].value
	return fmt.Sprintf("%s is %s%s, and must be %s", f.name, cmp.Or(f.value, "not known"), where, must)
}

// settingsOf returns those settings of a node that matter here.
func settingsOf(ctx context.Context, node *redis.Client) (map[string]string, error) {
	has := map[string]string{}
	for _, asked := range slices.Concat(durable, neverMaster) {
		got, err := node.ConfigGet(ctx, asked.name).Result()
		if err != nil {
			return nil, err
		}
		has[asked.name] = got[asked.name]
	}
	return has, nil
}
