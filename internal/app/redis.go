package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/internal/config"
)

const (
	// redisTimeout bounds one exchange with Redis, whose disk may be slow to sync.
	redisTimeout = 3 * time.Second
	// redisPool is room for the heartbeats and reads of all imports beside asynq's own.
	redisPool = 64
)

// errRedisURL says no more, since the parser's own words may quote the URL, and so the password.
var errRedisURL = errors.New("redis.url is not a valid Redis URL (in a password, write %40 for @, and so on)")

// openRedis returns the client for what rc describes. Nothing is contacted yet.
//
// A beat must end well within a lease, also on a connection that went dead without a word; the
// client heeds a context's deadline only if told to.
func openRedis(rc config.Redis) (redis.UniversalClient, error) {
	u, err := parseRedisURL(rc)
	if err != nil {
		return nil, err
	}
	switch rc.Mode {
	case "sentinel":
		opt, err := redis.ParseFailoverURL(failoverURL(u).String())
		if err != nil {
			return nil, redisURLError(err)
		}
		opt.PoolSize, opt.ContextTimeoutEnabled = redisPool, true
		opt.ReadTimeout, opt.WriteTimeout = redisTimeout, redisTimeout
		return redis.NewFailoverClient(opt), nil
	case "cluster":
		opt, err := redis.ParseClusterURL(u.String())
		if err != nil {
			return nil, redisURLError(err)
		}
		opt.PoolSize, opt.ContextTimeoutEnabled = redisPool, true
		opt.ReadTimeout, opt.WriteTimeout = redisTimeout, redisTimeout
		return redis.NewClusterClient(opt), nil
	}
	opt, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, redisURLError(err)
	}
	opt.PoolSize, opt.ContextTimeoutEnabled = redisPool, true
	opt.ReadTimeout, opt.WriteTimeout = redisTimeout, redisTimeout
	return redis.NewClient(opt), nil
}

// parseRedisURL refuses what the client would understand in another way than its writer.
func parseRedisURL(rc config.Redis) (*url.URL, error) {
	u, err := url.Parse(rc.URL.Reveal())
	if err != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") { // then a password was cut in two
		return nil, errRedisURL
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errRedisURL
	}
	mode := cmp.Or(rc.Mode, "server")
	refuse := func(because string, parameters ...string) {
		for _, p := range parameters {
			if q.Has(p) && err == nil {
				err = fmt.Errorf("redis.url: parameter %s %s", p, because)
			}
		}
	}
	refuse("would read from replicas, which may be behind", "read_only", "replica_only", "route_by_latency", "route_randomly", "use_disconnected_replicas")
	if mode != "sentinel" {
		refuse("needs redis.mode sentinel", "master_name", "sentinel_username", "sentinel_password")
	} else {
		refuse("is not used: name and password of the servers stand before the @", "username", "password")
	}
	switch {
	case err != nil:
		return nil, err
	case mode == "server" && q.Has("addr"):
		return nil, errors.New("redis.url: parameter addr needs redis.mode sentinel or cluster")
	case mode == "sentinel" && q.Get("master_name") == "":
		return nil, errors.New("redis.url: with redis.mode sentinel the parameter master_name is needed")
	case mode != "server" && u.Scheme != "redis" && u.Scheme != "rediss":
		return nil, fmt.Errorf("redis.url: redis.mode %s needs redis:// or rediss://", mode)
	case mode == "cluster" && (!slices.Contains([]string{"", "0"}, strings.Trim(u.Path, "/")) || q.Has("db")):
		return nil, errors.New("redis.url: a Redis Cluster has no databases to choose from")
	}
	return u, nil
}

// failoverURL puts the names and passwords where the client's parser looks for them: it takes
// those in front of the addresses for the Sentinels'. Here they are the servers', in every mode.
func failoverURL(u *url.URL) *url.URL {
	f, q := *u, u.Query()
	if name := u.User.Username(); name != "" {
		q.Set("username", name)
	}
	if password, ok := u.User.Password(); ok {
		q.Set("password", password)
	}
	f.User = nil
	if name, password := q.Get("sentinel_username"), q.Get("sentinel_password"); name != "" || password != "" {
		f.User = url.UserPassword(name, password)
	}
	q.Del("sentinel_username")
	q.Del("sentinel_password")
	f.RawQuery = q.Encode()
	return &f
}

// redisURLError passes on what the client's own parser says. It names parameters, and never
// quotes what stands before the addresses.
func redisURLError(err error) error {
	if said, ok := strings.CutPrefix(err.Error(), "redis: "); ok {
		return errors.New("redis.url: " + said)
	}
	return errRedisURL
}

// redisReady fails while Redis does not answer, or (if required) would lose
// what it accepted.
func (p *parts) redisReady(requireDurable bool) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := p.rdb.Ping(ctx).Err(); err != nil {
			return errors.New("redis does not answer")
		}
		if !requireDurable {
			return nil
		}
		problems, err := p.store.Durability(ctx)
		if err != nil {
			return errors.New("redis does not tell how it is set up")
		}
		if len(problems) > 0 {
			return fmt.Errorf("redis may lose accepted imports: %s", strings.Join(problems, "; "))
		}
		return nil
	}
}

// sharedRedis lets asynqmon use the process's own connection pool.
type sharedRedis struct{ rdb redis.UniversalClient }

// MakeRedisClient implements asynq.RedisConnOpt.
func (s sharedRedis) MakeRedisClient() any { return s.rdb }

// redisLog takes what go-redis would write to standard error in its own form.
type redisLog struct{ log zerolog.Logger }

// Printf implements the logger of go-redis.
func (l redisLog) Printf(_ context.Context, format string, args ...any) {
	l.log.Warn().Msgf(format, args...)
}
