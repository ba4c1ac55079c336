package app

import (
	"cmp"
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/propagation"

	"vmimport/internal/config"
	"vmimport/storage"
	"vmimport/tasks"
	"vmimport/tasks/pipeline"
	"vmimport/tasks/queue"
)

func newRegistry(cs ...prometheus.Collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "vmimport_build_info", Help: "1, with the version of the program and of Go.",
		ConstLabels: prometheus.Labels{"version": Version(), "goversion": runtime.Version()},
	})
	build.Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	r.MustRegister(cs...)
	return r
}

// scrapeTimeout bounds what a scrape may ask of the store.
const scrapeTimeout = 5 * time.Second

// queueCollector looks at the queue when it is asked, over all tenants. Every API process sees
// the same queue.
type queueCollector struct {
	backlog tasks.Backlog
	slots   func() (int, error)

	imports, tenants, oldest, workers *prometheus.Desc

	outlookAge, starts, contenders *prometheus.Desc
}

func newQueueCollector(backlog tasks.Backlog, slots func() (int, error)) *queueCollector {
	return &queueCollector{
		backlog:    backlog,
		slots:      slots,
		imports:    prometheus.NewDesc("vmimport_imports", "Unfinished imports and exports: waiting for dispatch, dispatched to the queue, running, or waiting for a clean-up.", []string{"place"}, nil),
		tenants:    prometheus.NewDesc("vmimport_tenants_active", "Tenants with unfinished imports or exports.", nil, nil),
		oldest:     prometheus.NewDesc("vmimport_queue_oldest_seconds", "For how long the oldest that could be started has been waiting; 0 if none is.", nil, nil),
		workers:    prometheus.NewDesc("vmimport_worker_slots", "Imports and exports that all live workers can run at a time.", nil, nil),
		outlookAge: prometheus.NewDesc("vmimport_outlook_age_seconds", "Age of what the leading dispatcher said last; it says something every few seconds.", nil, nil),
		starts:     prometheus.NewDesc("vmimport_outlook_starts_per_second", "Rate of starts of late, while others waited; 0 if it is not known.", nil, nil),
		contenders: prometheus.NewDesc("vmimport_outlook_contenders", "Tenants among which starts are dealt out.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.imports, c.tenants, c.oldest, c.workers, c.outlookAge, c.starts, c.contenders} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. If the store is away it reports
// nothing: a gap in a graph is truer than a zero.
func (c *queueCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	now, err := c.backlog.Now(ctx)
	if err != nil {
		return
	}
	load, active, err := survey(ctx, c.backlog, now)
	if err != nil {
		return
	}
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	gauge(c.imports, float64(load.Waiting), "waiting")
	gauge(c.imports, float64(load.Dispatched), "dispatched")
	gauge(c.imports, float64(load.Running), "running")
	gauge(c.imports, float64(load.Open-load.Waiting-load.Dispatched-load.Running), "cleanup")
	gauge(c.tenants, float64(active))
	gauge(c.oldest, since(load.Oldest, now).Seconds())
	if n, err := c.slots(); err == nil {
		gauge(c.workers, float64(n))
	}
	if o, err := c.backlog.Outlook(ctx); err == nil && !o.At.IsZero() {
		gauge(c.outlookAge, since(o.At, now).Seconds())
		gauge(c.starts, o.StartsPerMinute/60)
		gauge(c.contenders, float64(o.Contenders))
	}
}

// survey adds up what all tenants have, and counts those that have something.
func survey(ctx context.Context, backlog tasks.Backlog, now time.Time) (sum tasks.Load, active int, err error) {
	tenants, err := backlog.Tenants(ctx, now)
	if err != nil {
		return sum, 0, err
	}
	loads, err := backlog.Survey(ctx, tenants, now, now)
	if err != nil {
		return sum, 0, err
	}
	for _, load := range loads {
		sum.Waiting += load.Waiting
		sum.Due += load.Due
		sum.Dispatched += load.Dispatched
		sum.Running += load.Running
		sum.Open += load.Open
		if load.Open > 0 {
			active++
		}
		if !load.Oldest.IsZero() && (sum.Oldest.IsZero() || load.Oldest.Before(sum.Oldest)) {
			sum.Oldest = load.Oldest
		}
	}
	return sum, active, nil
}

// since is how long ago something was, 0 if it was never or is not yet.
func since(at, now time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(now.Sub(at), 0)
}

// redisCollector looks at Redis when it is asked, from where the process is.
type redisCollector struct {
	*parts
	up, durable *prometheus.Desc
}

func newRedisCollector(p *parts) *redisCollector {
	return &redisCollector{
		parts:   p,
		up:      prometheus.NewDesc("vmimport_redis_up", "1 if Redis answers this process.", nil, nil),
		durable: prometheus.NewDesc("vmimport_redis_durable", "1 if Redis is set up to lose nothing that it accepted; missing if it does not tell.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *redisCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.up; ch <- c.durable }

// Collect implements prometheus.Collector.
func (c *redisCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	up := c.rdb.Ping(ctx).Err() == nil
	ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, number(up))
	if !up {
		return
	}
	if problems, err := c.store.Durability(ctx); err == nil {
		ch <- prometheus.MustNewConstMetric(c.durable, prometheus.GaugeValue, number(len(problems) == 0))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// kinds are those of tasks, as label values.
var kinds = []string{string(tasks.KindImport), string(tasks.KindExport)}

func newCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// newEnded counts ends in whichever process brings them about: workers most of them, an API
// process cancels of what no worker has begun. Series that begin at 0 show their first step, too.
func newEnded(regions []config.Region) *prometheus.CounterVec {
	ended := newCounter("vmimport_tasks_ended_total", "Imports and exports that came to a final state. One that is tried again ends again.", "kind", "region", "state")
	for _, rc := range regions {
		for _, kind := range kinds {
			for _, state := range tasks.States {
				if state.Final() {
					ended.WithLabelValues(kind, rc.ID, string(state))
				}
			}
		}
	}
	return ended
}

// countedRecords counts what customers ask of records, and keeps the trace that they ask in.
type countedRecords struct {
	tasks.Records
	accepted, retried, ended *prometheus.CounterVec
}

func newCountedRecords(records tasks.Records, regions []config.Region) *countedRecords {
	r := &countedRecords{
		Records:  records,
		accepted: newCounter("vmimport_tasks_accepted_total", "Imports and exports that were accepted.", "kind", "dialect", "region"),
		retried:  newCounter("vmimport_tasks_retried_total", "Failed imports and exports that a customer had tried again.", "kind", "region"),
		ended:    newEnded(regions),
	}
	for _, rc := range regions {
		for _, kind := range kinds {
			r.retried.WithLabelValues(kind, rc.ID)
			if rc.FJcloud != nil {
				r.accepted.WithLabelValues(kind, "fjcloud", rc.ID)
			}
		}
		if rc.Aliyun != nil {
			r.accepted.WithLabelValues(string(tasks.KindImport), "aliyun", rc.ID)
		}
	}
	return r
}

func (r *countedRecords) collectors() []prometheus.Collector {
	return []prometheus.Collector{r.accepted, r.retried, r.ended}
}

// Create implements tasks.Records.
func (r *countedRecords) Create(ctx context.Context, spec *tasks.Spec, limits tasks.Limits) (*tasks.Task, bool, error) {
	if spec.Trace == "" {
		spec.Trace = traceparent(ctx)
	}
	task, fresh, err := r.Records.Create(ctx, spec, limits)
	if err == nil && fresh {
		r.accepted.WithLabelValues(string(spec.Kind()), spec.Dialect, spec.Region).Inc()
	}
	return task, fresh, err
}

// Retry implements tasks.Records.
func (r *countedRecords) Retry(ctx context.Context, scope tasks.Scope, id tasks.ID, limits tasks.Limits) error {
	err := r.Records.Retry(ctx, scope, id, limits)
	if err == nil {
		r.retried.WithLabelValues(kindOf(scope), scope.Region).Inc()
	}
	return err
}

// Cancel implements tasks.Records.
func (r *countedRecords) Cancel(ctx context.Context, scope tasks.Scope, id tasks.ID) (tasks.State, error) {
	state, err := r.Records.Cancel(ctx, scope, id)
	if err == nil && state.Final() {
		r.ended.WithLabelValues(kindOf(scope), scope.Region, string(state)).Inc()
	}
	return state, err
}

// kindOf is what a scope is about.
func kindOf(scope tasks.Scope) string { return string(cmp.Or(scope.Kind, tasks.KindImport)) }

// traceparent is the trace that ctx belongs to, in the form that it is sent on in; "" for none.
func traceparent(ctx context.Context) string {
	header := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, header)
	return header.Get("traceparent")
}

// attemptMetrics counts the attempts of a worker. It is a pipeline.Observer.
type attemptMetrics struct {
	attempts *prometheus.CounterVec
	ended    *prometheus.CounterVec // tasks
	seconds  *prometheus.HistogramVec
	stages   *prometheus.HistogramVec
	received *prometheus.CounterVec
	retries  *prometheus.CounterVec
	stalls   *prometheus.CounterVec
}

// outcomes of attempts, as label values.
var outcomes = []string{
	string(tasks.Succeeded), string(tasks.Failed), string(tasks.Canceled),
	tasks.OutcomeRetry, tasks.OutcomeDrained, tasks.OutcomeRemoved, tasks.OutcomeLeftovers, outcomeUnrecorded,
}

// outcomeUnrecorded is of an attempt that could not write its end: the store was away for too long.
const outcomeUnrecorded = "unrecorded"

func newAttemptMetrics(regions []config.Region) *attemptMetrics {
	m := &attemptMetrics{
		attempts: newCounter("vmimport_attempts_total", "Ended attempts, by what they left behind.", "kind", "region", "outcome"),
		ended:    newEnded(regions),
		received: newCounter("vmimport_received_bytes_total", "Bytes that attempts have read, from object stores or images.", "kind", "region"),
		retries:  newCounter("vmimport_range_retries_total", "Range requests made again after a failure.", "kind", "region"),
		stalls:   newCounter("vmimport_range_stalls_total", "Range requests replaced since no byte came.", "kind", "region"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vmimport_attempt_seconds", Help: "Duration of attempts.", Buckets: prometheus.ExponentialBuckets(0.1, 3, 12), // up to 5 h
		}, []string{"kind", "region", "outcome"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vmimport_stage_seconds", Help: "How long attempts were in each stage.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 11), // up to 3 h
		}, []string{"kind", "region", "stage"}),
	}
	for _, rc := range regions {
		for _, kind := range kinds {
			for _, outcome := range outcomes {
				m.attempts.WithLabelValues(kind, rc.ID, outcome)
			}
			for _, c := range []*prometheus.CounterVec{m.received, m.retries, m.stalls} {
				c.WithLabelValues(kind, rc.ID)
			}
		}
	}
	return m
}

func (m *attemptMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.attempts, m.ended, m.seconds, m.stages, m.received, m.retries, m.stalls}
}

// Ended implements pipeline.Observer.
func (m *attemptMetrics) Ended(kind tasks.Kind, region, outcome string, took time.Duration) {
	outcome = cmp.Or(outcome, outcomeUnrecorded)
	m.attempts.WithLabelValues(string(kind), region, outcome).Inc()
	if tasks.State(outcome).Final() {
		m.ended.WithLabelValues(string(kind), region, outcome).Inc()
	}
	m.seconds.WithLabelValues(string(kind), region, outcome).Observe(took.Seconds())
}

// StageEnded implements pipeline.Observer.
func (m *attemptMetrics) StageEnded(kind tasks.Kind, region string, stage tasks.Stage, took time.Duration) {
	m.stages.WithLabelValues(string(kind), region, string(stage)).Observe(took.Seconds())
}

// Moved implements pipeline.Observer.
func (m *attemptMetrics) Moved(kind tasks.Kind, region string, bytes, retries, stalls int64) {
	m.received.WithLabelValues(string(kind), region).Add(float64(bytes))
	m.retries.WithLabelValues(string(kind), region).Add(float64(retries))
	m.stalls.WithLabelValues(string(kind), region).Add(float64(stalls))
}

// workerGauges are read when they are asked for.
func workerGauges(runner *pipeline.Runner, pool *storage.Pool, d *queue.Dispatcher) []prometheus.Collector {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	return []prometheus.Collector{
		gauge("vmimport_attempts_running", "Attempts that run in this worker.", func() float64 { return float64(runner.Running()) }),
		gauge("vmimport_buffer_bytes_in_use", "Buffer memory in use by imports.", func() float64 { return float64(int64(pool.InUse()) * pool.ChunkSize()) }),
		gauge("vmimport_dispatcher_leads", "1 while this worker's dispatcher leads.", func() float64 { return number(d.Leading()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "vmimport_claims_expired_total", Help: "Claims taken from workers that stopped answering."},
			func() float64 { return float64(d.Expired()) }),
	}
}
