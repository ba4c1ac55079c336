package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/hibiken/asynqmon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"vmimport/internal/audit"
	"vmimport/internal/auth"
	"vmimport/internal/auth/keystone"
	"vmimport/internal/auth/localtokens"
	"vmimport/internal/config"
	"vmimport/internal/events"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/internal/openstack"
	"vmimport/tasks"
	"vmimport/tasks/pipeline"
	"vmimport/tasks/queue"
)

// API is the HTTP side of the service.
type API struct {
	*parts
	server     *httpapi.Server
	hub        *events.Hub
	hooks      *webhooks
	registry   *prometheus.Registry
	closeAudit func() error
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
	a := &API{parts: p, closeAudit: func() error { return nil }}
	a.hub = events.New(p.store, events.Options{
		PerTenant: cfg.Limits.EventStreams,
		Trouble:   func(err error) { log.Warn().Err(err).Msg("events stand still: the journal cannot be read") },
	})
	if err := a.build(cfg, opt, log); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *API) build(cfg *config.Config, opt APIOptions, log zerolog.Logger) error {
	proxies, err := parsePrefixes(cfg.HTTP.TrustedProxies)
	if err != nil {
		return err
	}
	records := newCountedRecords(a.store, cfg.Regions)
	service := tasks.NewService(records, pipeline.NewPreflight(a.regions), policyOf(cfg.Limits), time.Now)
	regions, err := a.newRegions(cfg, service, opt.Tokens, proxies)
	if err != nil {
		return err
	}
	rpc, err := a.newAliyun(cfg, service, log)
	if err != nil {
		return err
	}
	if a.hooks, err = newWebhooks(a.store, cfg.Webhooks, log); err != nil {
		return err
	}
	var sink audit.Sink
	if sink, a.closeAudit, err = openAudit(cfg.Audit, log); err != nil {
		return err
	}
	a.registry = newRegistry(slices.Concat(records.collectors(), a.hooks.collectors(), []prometheus.Collector{
		newQueueCollector(a.store, queue.New(a.rdb).Slots), newRedisCollector(a.parts),
	})...)
	// Its Close would close the shared connections, so nobody calls it.
	monitor := asynqmon.New(asynqmon.Options{RootPath: "/monitoring", RedisConnOpt: sharedRedis{a.rdb}, ReadOnly: true})
	a.server = httpapi.New(httpapi.Options{
		FJcloud:        regions,
		Aliyun:         rpc,
		Objects:        opt.Objects,
		Monitoring:     monitor,
		OperatorToken:  cfg.Operator.Token,
		OpenMetrics:    cfg.Operator.OpenMetrics,
		Checks:         []httpapi.Check{{Name: "redis", Func: a.redisReady(cfg.Redis.RequireDurable)}},
		Registry:       a.registry,
		Audit:          sink,
		Tracer:         requestTracer(cfg.Tracing),
		Log:            log,
		TrustedProxies: proxies,
	})
	return nil
}

// newRegions returns the regions that have the FJcloud dialect.
func (a *API) newRegions(cfg *config.Config, service *tasks.Service, tokens auth.TokenAuthenticator, proxies []netip.Prefix) ([]httpapi.Region, error) {
	var regions []httpapi.Region
	for _, rc := range cfg.Regions {
		if rc.FJcloud == nil {
			continue
		}
		d, err := a.newFJcloud(rc, service, tokens)
		if err != nil {
			return nil, fmt.Errorf("region %s: %w", rc.ID, err)
		}
		region := httpapi.Region{ID: rc.ID, Hosts: rc.Hosts, Dialect: d}
		if cfg.HTTP.Portal {
			region.Portal = a.newPortal(rc, d, proxies)
		}
		regions = append(regions, region)
	}
	return regions, nil
}

func (a *API) newFJcloud(rc config.Region, service *tasks.Service, tokens auth.TokenAuthenticator) (*fjcloud.Dialect, error) {
	if tokens == nil {
		var err error
		if tokens, err = openTokens(rc, a.clouds[rc.ID]); err != nil {
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
		Events:        a.hub,
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

// Close lets go of what NewAPI opened. Run does so itself.
func (a *API) Close() error {
	a.hub.Close()
	return errors.Join(a.parts.Close(), a.closeAudit())
}

// Run serves on ln until ctx ends, and then until the requests under way have
// ended. It closes ln and all that NewAPI opened.
func (a *API) Run(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.server.Serve(ctx, ln) })
	g.Go(func() error { return a.hooks.Run(ctx) })
	return errors.Join(g.Wait(), a.Close())
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

// policyOf returns what each tenant may have. In a configuration 0 of a tenant is what all have,
// and a negative number no bound.
func policyOf(limits config.Limits) tasks.Policy {
	policy := tasks.Policy{Default: allowance(limits.Limit, config.Limit{}), Tenants: map[tasks.Tenant]tasks.Allowance{}}
	for tenant, own := range limits.Tenants {
		policy.Tenants[tasks.Tenant(tenant)] = allowance(own, limits.Limit)
	}
	return policy
}

func allowance(own, all config.Limit) tasks.Allowance {
	return tasks.Allowance{
		Unfinished:     max(cmp.Or(own.Unfinished, all.Unfinished), 0),
		Running:        max(cmp.Or(own.Running, all.Running), 0),
		BytesPerSecond: max(int64(cmp.Or(own.Bandwidth, all.Bandwidth)), 0),
	}
}
