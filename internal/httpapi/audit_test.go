package httpapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/audit"
	"vmimport/internal/fault"
	"vmimport/internal/secret"
)

// notes is a Sink in memory.
type notes struct {
	mu      sync.Mutex
	records []audit.Record
	fail    error
}

func (n *notes) Add(r audit.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records = append(n.records, r)
	return n.fail
}

// take returns what was noted since the last time.
func (n *notes) take() []audit.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.records
	n.records = nil
	return taken
}

// asking is a dialect that says what it was asked for, and answers with the status in the path.
type asking struct{}

func (asking) Mount(e *echo.Echo) {
	e.POST("/ask/:id", func(c echo.Context) error {
		*audit.From(c.Request().Context()) = audit.Entry{
			Tenant: "d", Project: "p", User: "u", Region: "r", Action: "import.register", ID: c.Param("id"),
		}
		switch c.Param("id") {
		case "refused":
			return fault.New(fault.Conflict, "image_id_taken", "There is one.")
		case "failed":
			return errors.New("dial 10.0.0.9: refused")
		case "cut":
			_, _ = c.Response().Write([]byte("the first half"))
			return errors.New("fell over")
		}
		return c.NoContent(http.StatusAccepted)
	})
	e.GET("/look", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
	e.GET("/closed", func(echo.Context) error { return fault.New(fault.Denied, "unauthorized", "Who are you?") })
	e.GET("/tasks/:id/events", func(c echo.Context) error { return c.NoContent(http.StatusOK) })
}

func (asking) Streams(route string) bool { return strings.HasSuffix(route, "/events") }

func (asking) WriteError(c echo.Context, err error) error {
	switch fault.KindOf(err) {
	case fault.Conflict:
		return c.NoContent(http.StatusConflict)
	case fault.Denied:
		return c.NoContent(http.StatusUnauthorized)
	}
	return c.NoContent(http.StatusInternalServerError)
}

func TestAudit(t *testing.T) {
	t.Parallel()
	sink := &notes{}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	s := New(Options{
		FJcloud: []Region{{ID: "r", Dialect: asking{}}}, Audit: sink, Monitoring: page, OperatorToken: secret.New("hunter2"),
	})
	asked := audit.Entry{Tenant: "d", Project: "p", User: "u", Region: "r", Action: "import.register"}
	with := func(e audit.Entry, id, code string) audit.Entry { e.ID, e.Fault = id, code; return e }
	for _, tt := range []struct {
		method, target string
		operator       string // password
		want           *audit.Record
	}{
		{"POST", "/ask/1?token=hunter2", "", &audit.Record{Dialect: "fjcloud", Entry: with(asked, "1", ""), Outcome: audit.Accepted, Status: 202}},
		{"POST", "/ask/refused", "", &audit.Record{Dialect: "fjcloud", Entry: with(asked, "refused", "image_id_taken"), Outcome: audit.Refused, Status: 409}},
		{"POST", "/ask/failed", "", &audit.Record{Dialect: "fjcloud", Entry: with(asked, "failed", ""), Outcome: audit.Failed, Status: 500}},
		{"POST", "/ask/a%0Ab", "", &audit.Record{Dialect: "fjcloud", Entry: with(asked, "a\ufffdb", ""), Outcome: audit.Accepted, Status: 202}},
		{"GET", "/look", "", nil},
		{"GET", "/nothing", "", nil},
		{"GET", "/closed", "", &audit.Record{Dialect: "fjcloud", Entry: audit.Entry{Action: "sign_in.refused", Fault: "unauthorized"}, Outcome: audit.Refused, Status: 401}},
		{"GET", "/healthz", "", nil},
		{"GET", "/metrics", "wrong", &audit.Record{Dialect: "operations", Entry: audit.Entry{Action: "sign_in.refused"}, Outcome: audit.Refused, Status: 401}},
		{"GET", "/metrics", "hunter2", nil},
		{"GET", "/monitoring/", "", &audit.Record{Dialect: "operations", Entry: audit.Entry{Action: "sign_in.refused"}, Outcome: audit.Refused, Status: 401}},
		{"GET", "/monitoring/api/queues?x=hunter2", "hunter2", &audit.Record{Dialect: "operations", Entry: audit.Entry{Action: "monitoring.view", ID: "api/queues"}, Outcome: audit.Accepted, Status: 200}},
		{"GET", "/monitoring/static/js/main.js", "hunter2", nil},
	} {
		req := httptest.NewRequest(tt.method, tt.target, strings.NewReader("hunter2"))
		if tt.operator != "" {
			req.SetBasicAuth("op", tt.operator)
		}
		rec := send(s, req)
		got := sink.take()
		if tt.want == nil {
			if len(got) != 0 {
				t.Errorf("%s: %+v", tt.target, got)
			}
			continue
		}
		if len(got) != 1 || got[0].RequestID != rec.Header().Get("X-Request-Id") || got[0].Time.IsZero() || got[0].Remote != "192.0.2.1" {
			t.Fatalf("%s: %+v", tt.target, got)
		}
		tt.want.Time, tt.want.RequestID, tt.want.Remote = got[0].Time, got[0].RequestID, got[0].Remote
		if got[0] != *tt.want {
			t.Errorf("%s: %+v, want %+v", tt.target, got[0], *tt.want)
		}
		if line, err := json.Marshal(got[0]); err != nil || strings.Contains(string(line), "hunter2") {
			t.Errorf("%s, %v", line, err)
		}
	}

	func() {
		defer func() { _ = recover() }() // which the server takes to cut the connection
		send(s, httptest.NewRequest("POST", "/ask/cut", nil))
	}()
	if got := sink.take(); len(got) != 1 || got[0].Outcome != audit.Failed {
		t.Errorf("an answer that was cut off: %+v", got)
	}
}

// A log that cannot be written fails no request, and is told of.
func TestAuditThatFails(t *testing.T) {
	t.Parallel()
	log, registry := &logBuffer{}, prometheus.NewRegistry()
	s := New(Options{FJcloud: []Region{{Dialect: asking{}}}, Audit: &notes{fail: errors.New("no space left")}, Log: zerolog.New(log), Registry: registry})
	if rec := send(s, httptest.NewRequest("POST", "/ask/1", nil)); rec.Code != http.StatusAccepted {
		t.Errorf("%d", rec.Code)
	}
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP vmimport_audit_failures_total Requests that the audit log lacks, since it could not be written.
# TYPE vmimport_audit_failures_total counter
vmimport_audit_failures_total 1
`), "vmimport_audit_failures_total")
	if err != nil || !strings.Contains(log.String(), "no space left") {
		t.Errorf("%v, %s", err, log)
	}
}

func TestSpans(t *testing.T) {
	t.Parallel()
	recorder, log := tracetest.NewSpanRecorder(), &logBuffer{}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	opts := Options{FJcloud: []Region{{ID: "r", Dialect: asking{}}}, Tracer: provider.Tracer("test"), Log: zerolog.New(log)}
	stranger := New(opts)
	opts.Registry, opts.TrustedProxies = nil, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} // where tests come from
	s := New(opts)
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, tt := range []struct {
		method, target string
		name, route    string // of the span; empty name: none
		status         int64
		failed         bool
	}{
		{"POST", "/ask/1?secret=x", "POST /ask/:id", "/ask/:id", 202, false},
		{"POST", "/ask/refused", "POST /ask/:id", "/ask/:id", 409, false},
		{"POST", "/ask/failed", "POST /ask/:id", "/ask/:id", 500, true},
		{"BREW", "/made/up", "other", "", 404, false},
		{"GET", "/healthz", "", "", 0, false},
		{"GET", "/tasks/1/events", "", "", 0, false},
	} {
		recorder.Reset()
		send(s, httptest.NewRequest(tt.method, tt.target, nil), "Traceparent", "00-"+parent+"-00f067aa0ba902b7-01")
		ended := recorder.Ended()
		if tt.name == "" {
			if len(ended) != 0 {
				t.Errorf("%s %s: %d spans", tt.method, tt.target, len(ended))
			}
			continue
		}
		if len(ended) != 1 {
			t.Fatalf("%s %s: %d spans", tt.method, tt.target, len(ended))
		}
		span, attributes := ended[0], map[string]any{}
		for _, a := range span.Attributes() {
			attributes[string(a.Key)] = a.Value.AsInterface()
			if strings.Contains(a.Value.String(), "secret") {
				t.Errorf("%s holds the query: %v", a.Key, a.Value)
			}
		}
		route, _ := attributes["http.route"].(string)
		if span.Name() != tt.name || span.SpanKind() != trace.SpanKindServer || route != tt.route ||
			attributes["http.response.status_code"] != tt.status || (span.Status().Code == 1) != tt.failed || attributes["http.request.method"] == "BREW" {
			t.Errorf("%s %s: %s %v %v", tt.method, tt.target, span.Name(), span.Status(), attributes)
		}
		if span.Parent().TraceID().String() != parent || span.SpanContext().TraceID().String() != parent {
			t.Errorf("%s %s: in trace %s", tt.method, tt.target, span.SpanContext().TraceID())
		}
	}
	if !strings.Contains(log.String(), `"trace_id":"`+parent+`"`) {
		t.Errorf("the log does not name the trace: %s", log)
	}
	recorder.Reset()
	send(stranger, httptest.NewRequest("POST", "/ask/1", nil), "Traceparent", "00-"+parent+"-00f067aa0ba902b7-01")
	if ended := recorder.Ended(); len(ended) != 1 || ended[0].SpanContext().TraceID().String() == parent {
		t.Errorf("a stranger chose the trace: %v", ended)
	}
}
