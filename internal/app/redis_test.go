package app

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"vmimport/internal/config"
	"vmimport/internal/secret"
)

func TestRedisURL(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode, url, want string // want is a part of the error, empty for none
	}{
		{"server", "redis://user:hunter2@r.test/1", ""},
		{"", "unix:///run/redis.sock?db=1", ""},
		{"server", "rediss://:hunter2@r.test?dial_timeout=1s", ""},
		{"sentinel", "redis://:hunter2@s1.test/1?addr=s2.test:26379&master_name=m&sentinel_password=hunter2", ""},
		{"cluster", "rediss://n1.test?addr=n2.test:6379", ""},
		{"cluster", "redis://n1.test/0?addr=n2.test:6379", ""},

		{"server", "http://r.test", "invalid URL scheme"},
		{"server", "redis://:hun/ter2@r.test", "%40"},
		{"server", "redis://:1?hunter2@r.test", "%40"},
		{"server", "redis://:hunter2@r.test/x", "invalid database number"},
		{"server", "redis://:hunter2@r.test?bogus=hunter2", "unexpected option: bogus"},
		{"server", "redis://r.test?addr=r2.test:6379", "addr needs redis.mode sentinel or cluster"},
		{"server", "redis://r.test?master_name=m", "master_name needs redis.mode sentinel"},
		{"sentinel", "redis://s1.test", "master_name is needed"},
		{"sentinel", "unix:///run/redis.sock?master_name=m", "needs redis:// or rediss://"},
		{"sentinel", "redis://s1.test?master_name=m&password=hunter2", "before the @"},
		{"sentinel", "redis://s1.test?master_name=m&replica_only=true", "replica_only would read from replicas"},
		{"sentinel", "redis://s1.test?master_name=m&addr=s2.test", "addr"},
		{"cluster", "redis://n1.test/1", "no databases"},
		{"cluster", "redis://n1.test?db=1", "no databases"},
		{"cluster", "redis://n1.test?master_name=m", "master_name needs redis.mode sentinel"},
		{"cluster", "redis://n1.test?read_only=true", "read_only would read from replicas"},
		{"cluster", "redis://n1.test?bogus=1", "unexpected option: bogus"},
	} {
		rdb, err := openRedis(config.Redis{Mode: c.mode, URL: secret.New(c.url)})
		switch {
		case err == nil:
			if err := rdb.Close(); err != nil {
				t.Error(err)
			}
			if c.want != "" {
				t.Errorf("%s %s is accepted", c.mode, c.url)
			}
		case c.want == "" || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s %s: error %q, want %q", c.mode, c.url, err, c.want)
		case strings.Contains(err.Error(), "hunter2"), strings.Contains(err.Error(), "ter2"):
			t.Errorf("%s: the error tells the password: %v", c.mode, err)
		}
	}
}

// In every mode the same place of the URL has the servers' name and password.
func TestRedisCredentials(t *testing.T) {
	t.Parallel()
	parsed, err := parseRedisURL(config.Redis{Mode: "sentinel", URL: secret.New(
		"rediss://user:p%40ss@s1.test:26379/3?addr=s2.test:26379&master_name=m&sentinel_username=su&sentinel_password=s%26p")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := redis.ParseFailoverURL(failoverURL(parsed).String())
	if err != nil {
		t.Fatal(err)
	}
	if got.Username != "user" || got.Password != "p@ss" || got.SentinelUsername != "su" || got.SentinelPassword != "s&p" {
		t.Errorf("servers %q %q, sentinels %q %q", got.Username, got.Password, got.SentinelUsername, got.SentinelPassword)
	}
	if got.DB != 3 || got.MasterName != "m" || !slices.Equal(got.SentinelAddrs, []string{"s1.test:26379", "s2.test:26379"}) ||
		got.TLSConfig == nil || got.TLSConfig.MinVersion != tls.VersionTLS12 {
		t.Errorf("options %+v", got)
	}
}
