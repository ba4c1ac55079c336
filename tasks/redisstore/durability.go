package redisstore

import (
	"context"
	"fmt"
)

// durable is how Redis must be set for "accepted means durable" to hold.
var durable = []struct{ name, value string }{
	{"appendonly", "yes"},
	{"appendfsync", "always"},
	{"maxmemory-policy", "noeviction"},
}

// Durability returns a sentence for each setting under which Redis could lose a
// record that was accepted. It fails if Redis does not tell, as some managed
// services do not.
func (s *Store) Durability(ctx context.Context) (problems []string, err error) {
	for _, d := range durable {
		got, err := s.rdb.ConfigGet(ctx, d.name).Result()
		if err != nil {
			return nil, redisError("read Redis settings", err)
		}
		value, ok := got[d.name]
		if !ok {
			return nil, redisError("read Redis settings", fmt.Errorf("%s is not known", d.name))
		}
		if value != d.value {
			problems = append(problems, fmt.Sprintf("%s is %s, and must be %s", d.name, value, d.value))
		}
	}
	return problems, nil
}
