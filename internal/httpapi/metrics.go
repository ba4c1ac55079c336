package httpapi

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inFlight prometheus.Gauge
	streams  prometheus.Gauge
	unnoted  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	labels := []string{"method", "route", "status"}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vmimport_http_requests_total",
			Help: "HTTP requests answered.",
		}, labels),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "vmimport_http_request_duration_seconds",
			Help: "Time from a request's header to the end of its answer.",
			// From a list (a few ms) to the upload of an object (minutes).
			Buckets: []float64{.005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}, labels),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vmimport_http_requests_in_flight",
			Help: "HTTP requests not answered yet, without event streams.",
		}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "vmimport_event_streams",
			Help: "Event streams that are open.",
		}),
		unnoted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vmimport_audit_failures_total",
			Help: "Requests that the audit log lacks, since it could not be written.",
		}),
	}
	r.MustRegister(m.requests, m.seconds, m.inFlight, m.streams, m.unnoted)
	return m
}

// observe counts an answer. How long a stream was open tells nothing of how long answers take.
func (m *metrics) observe(c echo.Context, took time.Duration, stream bool) {
	labels := []string{method(c), route(c), strconv.Itoa(c.Response().Status)}
	m.requests.WithLabelValues(labels...).Inc()
	if stream && c.Response().Status == http.StatusOK {
		return
	}
	m.seconds.WithLabelValues(labels...).Observe(took.Seconds())
}

var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodOptions, http.MethodTrace, http.MethodConnect,
}

// method and route are chosen from small sets, whatever the client sends:
// every new value would be a time series for ever.

func method(c echo.Context) string {
	if m := c.Request().Method; slices.Contains(methods, m) {
		return m
	}
	return "other"
}

func route(c echo.Context) string {
	if p := c.Path(); p != "" {
		return p
	}
	return "unknown"
}
