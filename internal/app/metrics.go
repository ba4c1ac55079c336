package app

import (
	"cmp"
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"vmimport/storage"
	"vmimport/tasks"
	"vmimport/tasks/pipeline"
	"vmimport/tasks/queue"
)

func newRegistry(cs ...prometheus.Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(cs...)
	return r
}

// importsCollector counts unfinished imports when it is asked, over all tenants.
type importsCollector struct {
	backlog tasks.Backlog
	imports *prometheus.Desc
	tenants *prometheus.Desc
}

// scrapeTimeout bounds what a scrape may ask of the store.
const scrapeTimeout = 5 * time.Second

func newImportsCollector(backlog tasks.Backlog) *importsCollector {
	return &importsCollector{
		backlog: backlog,
		imports: prometheus.NewDesc("vmimport_imports", "Unfinished imports: waiting for dispatch, dispatched to the queue, running, or canceled and waiting for their clean-up.", []string{"place"}, nil),
		tenants: prometheus.NewDesc("vmimport_tenants_active", "Tenants with unfinished imports.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *importsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.imports
	ch <- c.tenants
}

// Collect implements prometheus.Collector. If the store is away it reports
// nothing: a gap in a graph is truer than a zero.
func (c *importsCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	now, err := c.backlog.Now(ctx)
	if err != nil {
		return
	}
	tenants, err := c.backlog.Tenants(ctx, now)
	if err != nil {
		return
	}
	loads, err := c.backlog.Survey(ctx, tenants, now, now)
	if err != nil {
		return
	}
	var sum tasks.Load
	cleanups, active := 0, 0
	for _, load := range loads {
		sum.Waiting += load.Waiting
		sum.Dispatched += load.Dispatched
		sum.Running += load.Running
		cleanups += load.Open - load.Waiting - load.Dispatched - load.Running
		if load.Open > 0 {
			active++
		}
	}
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	gauge(c.imports, sum.Waiting, "waiting")
	gauge(c.imports, sum.Dispatched, "dispatched")
	gauge(c.imports, sum.Running, "running")
	gauge(c.imports, cleanups, "cleanup")
	gauge(c.tenants, active)
}

// attemptMetrics counts the attempts of a worker. It is a pipeline.Observer.
type attemptMetrics struct {
	ended    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	received *prometheus.CounterVec
	retries  *prometheus.CounterVec
	stalls   *prometheus.CounterVec
}

func newAttemptMetrics() *attemptMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &attemptMetrics{
		ended:    counter("vmimport_attempts_total", "Ended attempts, by what they left behind.", "kind", "region", "outcome"),
		received: counter("vmimport_received_bytes_total", "Bytes that ended attempts have read, from object stores or images.", "kind", "region"),
		retries:  counter("vmimport_range_retries_total", "Range requests made again after a failure.", "kind", "region"),
		stalls:   counter("vmimport_range_stalls_total", "Range requests replaced since no byte came.", "kind", "region"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vmimport_attempt_seconds", Help: "Duration of attempts.", Buckets: prometheus.ExponentialBuckets(0.1, 3, 12),
		}, []string{"kind", "region", "outcome"}),
	}
}

func (m *attemptMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.ended, m.seconds, m.received, m.retries, m.stalls}
}

// Ended implements pipeline.Observer.
func (m *attemptMetrics) Ended(kind tasks.Kind, region, outcome string, took time.Duration, c tasks.Counters, received int64) {
	outcome = cmp.Or(outcome, "unrecorded") // the store was away for too long
	m.ended.WithLabelValues(string(kind), region, outcome).Inc()
	m.seconds.WithLabelValues(string(kind), region, outcome).Observe(took.Seconds())
	m.received.WithLabelValues(string(kind), region).Add(float64(received))
	m.retries.WithLabelValues(string(kind), region).Add(float64(c.Retries))
	m.stalls.WithLabelValues(string(kind), region).Add(float64(c.Stalls))
}

// workerGauges are read when they are asked for.
func workerGauges(runner *pipeline.Runner, pool *storage.Pool, d *queue.Dispatcher) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("vmimport_attempts_running", "Attempts that run in this worker.", func() float64 { return float64(runner.Running()) }),
		gauge("vmimport_buffer_bytes_in_use", "Buffer memory in use by imports.", func() float64 { return float64(int64(pool.InUse()) * pool.ChunkSize()) }),
		gauge("vmimport_dispatcher_leads", "1 while this worker's dispatcher leads.", func() float64 {
			if d.Leading() {
				return 1
			}
			return 0
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "vmimport_claims_expired_total", Help: "Claims taken from workers that stopped answering."},
			func() float64 { return float64(d.Expired()) }),
	}
}
