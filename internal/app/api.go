package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/hibiken/asynqmon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/internal/auth"
	"vmimport/internal/auth/keystone"
	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/internal/openstack"
	"vmimport/tasks"
	"vmimport/tasks/pipeline"
)

// API is the HTTP side of the service.
type API struct {
	*parts
	server *httpapi.Server
}

// APIOptions are what standalone adds to a configuration.
type APIOptions struct {
	// Tokens authenticates callers in place of each region's tokens_file.
	Tokens auth.TokenAuthenticator
	// Objects is served as the object API.
	Objects httpapi.Dialect
}

// NewAPI returns the API that cfg describes. Nothing is contacted yet.
func NewAPI(cfg *config.Config, opt APIOptions, log zerolog.Logger) (*API, error) {
	p, err := open(cfg)
	if err != nil {
		return nil, err
	}
	a := &API{parts: p}
	preflight := pipeline.NewPreflight(p.regions)
	service := tasks.NewService(p.store, preflight, tasks.Limits{Unfinished: cfg.Limits.Unfinished}, time.Now)
	var regions []httpapi.Region
	for _, rc := range cfg.Regions {
		if rc.FJcloud == nil {
			continue
		}
		d, err := newFJcloud(rc, service, opt.Tokens, p.clouds[rc.ID])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("region %s: %w", rc.ID, err), p.Close())
		}
		regions = append(regions, httpapi.Region{ID: rc.ID, Hosts: rc.Hosts, Dialect: d})
	}
	rpc, err := p.newAliyun(cfg, service, log)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	proxies, err := parsePrefixes(cfg.HTTP.TrustedProxies)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	registry := newRegistry(newImportsCollector(p.store))
	// Its Close would close the shared connections, so nobody calls it.
	monitor := asynqmon.New(asynqmon.Options{RootPath: "/monitoring", RedisConnOpt: sharedRedis{p.rdb}, ReadOnly: true})
	a.server = httpapi.New(httpapi.Options{
		FJcloud:        regions,
		Aliyun:         rpc,
		Objects:        opt.Objects,
		Monitoring:     monitor,
		OperatorToken:  cfg.Operator.Token,
		OpenMetrics:    cfg.Operator.OpenMetrics,
		Checks:         []httpapi.Check{{Name: "redis", Func: p.redisReady(cfg.Redis.RequireDurable)}},
		Registry:       registry,
		Log:            log,
		TrustedProxies: proxies,
	})
	return a, nil
}

func newFJcloud(rc config.Region, service *tasks.Service, tokens auth.TokenAuthenticator, cloud *openstack.Cloud) (*fjcloud.Dialect, error) {
	if tokens == nil {
		var err error
		if tokens, err = openTokens(rc, cloud); err != nil {
			return nil, err
		}
	}
	role := rc.FJcloud.RequiredRole
	if role == anyRole {
		role = ""
	}
	return fjcloud.New(rc.ID, service, tokens, fjcloud.Options{
		Profile:       fjcloud.Profile(rc.FJcloud.Profile),
		ListScope:     fjcloud.ListScope(rc.FJcloud.ListScope),
		Extensions:    rc.FJcloud.Extensions,
		LegacyOSTypes: rc.FJcloud.LegacyOSTypes,
		TargetFormat:  rc.Images.TargetFormat,
		RequiredRole:  role,
	})
}

// anyRole is how a configuration says that no role is required.
const anyRole = "*"

// openTokens returns what knows the tokens of a region's customers.
func openTokens(rc config.Region, cloud *openstack.Cloud) (auth.TokenAuthenticator, error) {
	if cloud != nil {
		return keystone.New(cloud, keystone.Options{CacheFor: rc.Keystone.CacheTokens})
	}
	return localtokens.Load(rc.FJcloud.TokensFile)
}

// Handler returns the API as a handler, for tests.
func (a *API) Handler() http.Handler { return a.server }

// Run serves on ln until ctx ends, and then until the requests under way have
// ended. It closes ln and all that NewAPI opened.
func (a *API) Run(ctx context.Context, ln net.Listener) error {
	return errors.Join(a.server.Serve(ctx, ln), a.Close())
}

func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("http.trusted_proxies: %q is no CIDR block", s)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

// sharedRedis lets asynqmon use the process's own connection pool.
type sharedRedis struct{ rdb redis.UniversalClient }

// MakeRedisClient implements asynq.RedisConnOpt.
func (s sharedRedis) MakeRedisClient() any { return s.rdb }

var _ prometheus.Collector = (*importsCollector)(nil)
