package tracing_test

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"vmimport/internal/tracing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector takes spans, and keeps the bytes of what was sent.
type collector struct {
	*httptest.Server
	mu       sync.Mutex
	received []byte
	status   int
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{status: http.StatusOK}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			unpacked, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unpacked
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.received = append(c.received, b...)
		w.WriteHeader(c.status)
	}))
	t.Cleanup(c.Close)
	return c
}

// says reports whether a text came in: strings lie in protobuf messages as they are.
func (c *collector) says(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(string(c.received), text)
}

// The provider is one for the process, so these are parts of one test.
func TestStart(t *testing.T) {
	off, err := tracing.Start(t.Context(), tracing.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, span := otel.Tracer("test").Start(t.Context(), "nobody hears of this")
	if span.IsRecording() {
		t.Error("recorded without an endpoint")
	}
	if err := off(t.Context()); err != nil {
		t.Error(err)
	}

	c := startCollector(t)
	stop, err := tracing.Start(t.Context(), tracing.Options{Endpoint: c.URL + "/", Sample: 1, Service: "vmimport-api", Version: "v1.2.3", Instance: "host-1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, parent := otel.Tracer("test").Start(t.Context(), "POST /v1/imageimport")
	_, child := otel.Tracer("test").Start(ctx, "attempt")
	child.End()
	parent.End()
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"POST /v1/imageimport", "attempt", "service.name", "vmimport-api", "v1.2.3", "host-1"} {
		if !c.says(text) {
			t.Errorf("%q did not arrive", text)
		}
	}

	sampled(t, c)
	unreachable(t)
}

// sampled: what begins here is kept as configured, what began elsewhere as it is there.
func sampled(t *testing.T, c *collector) {
	t.Helper()
	stop, err := tracing.Start(t.Context(), tracing.Options{Endpoint: c.URL, Sample: 0, Service: "s"})
	if err != nil {
		t.Fatal(err)
	}
	_, root := otel.Tracer("test").Start(t.Context(), "dropped")
	root.End()
	for name, flags := range map[string]trace.TraceFlags{"kept there": trace.FlagsSampled, "dropped there": 0} {
		parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags, Remote: true})
		_, span := otel.Tracer("test").Start(trace.ContextWithRemoteSpanContext(t.Context(), parent), name)
		span.End()
	}
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
	if !c.says("kept there") || c.says("dropped") {
		t.Error("the wrong spans were kept")
	}
}

// unreachable: a collector that is down is told of, and stops nobody.
func unreachable(t *testing.T) {
	t.Helper()
	var mu sync.Mutex
	var told []error
	stop, err := tracing.Start(t.Context(), tracing.Options{Endpoint: "http://127.0.0.1:1", Sample: 1, Service: "s", OnError: func(err error) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, span := otel.Tracer("test").Start(t.Context(), "lost")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = stop(ctx)
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(append(told, err)...); err == nil {
		t.Error("nobody was told")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	c := startCollector(t)
	if err := tracing.Check(t.Context(), c.URL); err != nil {
		t.Error(err)
	}
	for endpoint, says := range map[string]string{
		c.URL + "/other":     "404",
		"http://127.0.0.1:1": "refused",
		"http://[::1":        "tracing endpoint",
		strings.Replace(c.URL, "http:", "https:", 1): "HTTP response to HTTPS",
	} {
		if err := tracing.Check(t.Context(), endpoint); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", endpoint, err, says)
		}
	}
}
