package testenv_test

import (
	"testing"

	"vmimport/internal/testenv"
)

// Groups of servers come up as the files in etc/redis describe them.
func TestStartSentinels(t *testing.T) {
	t.Parallel()
	s := testenv.StartSentinels(t)
	if master := s.Master(t.Context()); master != s.Servers[0] {
		t.Errorf("the master is %+v", master)
	}
	if err := s.Client(t).Set(t.Context(), "a", "b", 0).Err(); err != nil {
		t.Error(err)
	}
}

func TestStartRedisCluster(t *testing.T) {
	t.Parallel()
	c := testenv.StartRedisCluster(t)
	rdb := c.Client(t)
	for _, key := range []string{"a", "b", "c", "d"} {
		if err := rdb.Set(t.Context(), key, "x", 0).Err(); err != nil {
			t.Error(err)
		}
	}
	if c.MasterOf(t, rdb, "a") == c.MasterOf(t, rdb, "b") {
		t.Error("one node has all keys")
	}
}
