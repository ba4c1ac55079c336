package app

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/internal/webhook"
	"vmimport/tasks"
)

// webhooks sends events to the receivers of a configuration, and counts what it does.
type webhooks struct {
	sender     *webhook.Sender
	deliveries *prometheus.CounterVec
	oldest     map[string]*atomic.Int64 // when the oldest event was that waits, by receiver, in Unix ms; 0: none waits
	lags       []prometheus.Collector
}

// newWebhooks returns the webhooks of hooks, of which there may be none. Nothing is contacted.
func newWebhooks(store interface {
	tasks.Journal
	tasks.Outbox
}, hooks []config.Webhook, log zerolog.Logger) (*webhooks, error) {
	w := &webhooks{
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vmimport_webhook_deliveries_total",
			Help: "Events sent to receivers: delivered, failed and to be sent again, or given up.",
		}, []string{"receiver", "outcome"}),
		oldest: map[string]*atomic.Int64{},
	}
	var receivers []webhook.Receiver
	for _, h := range hooks {
		r, err := receiverOf(h)
		if err != nil {
			return nil, fmt.Errorf("webhook %s: %w", h.ID, err)
		}
		receivers = append(receivers, r)
		w.measure(h.ID)
	}
	var err error
	w.sender, err = webhook.New(store, store, receivers, webhook.Options{Who: instance(), Observe: w, Log: log})
	if err != nil {
		return nil, err
	}
	return w, nil
}

func receiverOf(h config.Webhook) (webhook.Receiver, error) {
	key, err := secret.FromFile(h.SecretFile)
	if err != nil {
		return webhook.Receiver{}, err
	}
	r := webhook.Receiver{ID: h.ID, URL: h.URL, Secret: key, Dialects: h.Dialects, AllowPrivate: h.AllowPrivate, CAFile: h.CAFile}
	for _, t := range h.Tenants {
		r.Tenants = append(r.Tenants, tasks.Tenant(t))
	}
	for _, s := range h.States {
		r.States = append(r.States, tasks.State(s))
	}
	return r, nil
}

// measure begins the metrics of a receiver, at zero.
func (w *webhooks) measure(receiver string) {
	for _, o := range []webhook.Outcome{webhook.Delivered, webhook.Failed, webhook.GivenUp} {
		w.deliveries.WithLabelValues(receiver, string(o))
	}
	oldest := new(atomic.Int64)
	w.oldest[receiver] = oldest
	w.lags = append(w.lags, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "vmimport_webhook_lag_seconds",
		Help:        "Age of the oldest event that this process has yet to deliver to the receiver; 0 in those that do not send to it.",
		ConstLabels: prometheus.Labels{"receiver": receiver},
	}, func() float64 {
		since := oldest.Load()
		if since == 0 {
			return 0
		}
		return max(0, time.Since(time.UnixMilli(since)).Seconds())
	}))
}

func (w *webhooks) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{w.deliveries}, w.lags...)
}

// Run sends until ctx ends. The store must not be closed before it returns.
func (w *webhooks) Run(ctx context.Context) error { return w.sender.Run(ctx) }

// Tried implements webhook.Observer.
func (w *webhooks) Tried(receiver string, o webhook.Outcome) {
	w.deliveries.WithLabelValues(receiver, string(o)).Inc()
}

// Lagging implements webhook.Observer.
func (w *webhooks) Lagging(receiver string, since time.Time) {
	ms := since.UnixMilli()
	if since.IsZero() {
		ms = 0
	}
	w.oldest[receiver].Store(ms)
}
