package app

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"vmimport/internal/config"
	"vmimport/internal/httpapi"
	"vmimport/internal/scratch"
	"vmimport/storage"
	"vmimport/tasks"
	"vmimport/tasks/pipeline"
	"vmimport/tasks/queue"
)

// Worker runs imports.
type Worker struct {
	*parts
	runner     *pipeline.Runner
	dispatcher *queue.Dispatcher
	server     *queue.Server
	health     *httpapi.Server
	metrics    *attemptMetrics
	registry   *prometheus.Registry
	log        zerolog.Logger
}

// NewWorker returns the worker that cfg describes. Nothing is contacted yet.
func NewWorker(cfg *config.Config, log zerolog.Logger) (*Worker, error) {
	p, err := open(cfg)
	if err != nil {
		return nil, err
	}
	spool, err := scratch.Open(cfg.Worker.Scratch)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	name := instance()
	log = log.With().Str("worker", name).Logger()
	pool := storage.NewPool(int64(cfg.Worker.Memory), int64(cfg.Worker.Chunk))
	metrics := newAttemptMetrics(cfg.Regions)
	policy := policyOf(cfg.Limits)
	w := &Worker{parts: p, metrics: metrics, log: log}
	w.runner = pipeline.New(p.store, p.regions, pipeline.Options{
		Worker: name,
		Fetch: storage.Options{
			Pool:       pool,
			Parallel:   cfg.Worker.Parallel,
			StallAfter: cfg.Worker.StallAfter,
			Digests:    cfg.Worker.Digests,
			MarkEvery:  int64(cfg.Worker.CheckpointEvery),
		},
		Spool:   func(bytes int64) (pipeline.Spool, error) { return spool.Reserve(bytes) },
		Observe: metrics,
		Policy:  policy,
		Keep:    cfg.Records.KeepPartial,
		Log:     log,
	})
	w.dispatcher = queue.NewDispatcher(p.store, p.store, queue.New(p.rdb), queue.DispatcherOptions{
		Who: name, Lease: pipeline.Lease, Policy: policy, Log: log,
	})
	w.dispatcher.OnCancel = w.runner.Cancel
	w.server = queue.NewServer(p.rdb, queue.ServerOptions{
		Concurrency:  cfg.Worker.Concurrency,
		DrainTimeout: cfg.Worker.DrainTimeout,
		Log:          log,
	})
	w.registry = newRegistry(slices.Concat(metrics.collectors(), workerGauges(w.runner, pool, w.dispatcher), []prometheus.Collector{newRedisCollector(p)})...)
	w.health = httpapi.New(httpapi.Options{
		OperatorToken: cfg.Operator.Token,
		OpenMetrics:   cfg.Operator.OpenMetrics,
		Checks:        []httpapi.Check{{Name: "redis", Func: p.redisReady(cfg.Redis.RequireDurable)}},
		Registry:      w.registry,
		Audit:         auditStream{log},
		Log:           log,
	})
	return w, nil
}

// sweepEvery is the time between searches for leftovers of tasks that ended.
// There should be none: each task cleans up after itself.
const sweepEvery = time.Hour

// sweep removes leftovers until ctx ends. Each worker does, since directories
// need not be shared.
func (w *Worker) sweep(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, s := range w.sweepers {
			n, err := s.Sweep(ctx, func(id string) (bool, error) { return w.store.Unfinished(ctx, tasks.ID(id)) })
			if n > 0 || err != nil {
				w.log.Warn().Err(err).Int("tasks", n).Msg("leftovers of ended tasks swept")
			}
		}
	}
}

// Run works until ctx ends, and then until every import that runs here has been
// given back to the queue. ln is for health and metrics, and may be nil. Run
// closes it and all that NewWorker opened.
func (w *Worker) Run(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.server.Run(ctx, w.runner.Handle) })
	g.Go(func() error { return w.dispatcher.Run(ctx) })
	g.Go(func() error { return w.sweep(ctx) })
	if ln != nil {
		g.Go(func() error { return w.health.Serve(ctx, ln) })
	}
	return errors.Join(g.Wait(), w.Close())
}
