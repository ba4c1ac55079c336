package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"vmimport"
	"vmimport/internal/httpapi/aliyun"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/internal/httpapi/httpapitest"
	"vmimport/internal/httpapi/objects"
	"vmimport/internal/secret"
)

// stub is a dialect that does odd things.
type stub struct{ name string }

func (d stub) Mount(e *echo.Echo) {
	e.GET("/name", func(c echo.Context) error { return c.String(http.StatusOK, d.name) })
	e.GET("/panic", func(echo.Context) error { panic("the stub fell over") })
	e.GET("/half", func(c echo.Context) error {
		c.Response().WriteHeader(http.StatusOK)
		_, _ = c.Response().Write([]byte("the first half"))
		c.Response().Flush()
		panic("the stub fell over")
	})
	e.POST("/read", func(c echo.Context) error {
		n, err := io.Copy(io.Discard, c.Request().Body)
		if err != nil {
			return err
		}
		return c.String(http.StatusOK, fmt.Sprint(n))
	})
	e.GET("/wait", func(c echo.Context) error {
		<-c.Request().Context().Done()
		return context.Cause(c.Request().Context())
	})
}

func (d stub) WriteError(c echo.Context, err error) error {
	return c.JSON(http.StatusTeapot, map[string]string{"stub": d.name})
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func get(h http.Handler, target string, header ...string) *httptest.ResponseRecorder {
	return send(h, httptest.NewRequest("GET", target, nil), header...)
}

func send(h http.Handler, req *http.Request, header ...string) *httptest.ResponseRecorder {
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

// Every route is in the document, and everything in the document is a route.
func TestDocumentIsComplete(t *testing.T) {
	t.Parallel()
	dialect, err := fjcloud.New("r", nil, nil, fjcloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rpc, err := aliyun.New(nil, aliyun.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{
		FJcloud:    []Region{{ID: "r", Dialect: dialect}},
		Aliyun:     rpc,
		Objects:    objects.New(nil, nil),
		Monitoring: http.NotFoundHandler(),
	})
	served := map[string]bool{}
	for _, r := range s.first.(*echo.Echo).Routes() {
		if r.Path == "/" && !slices.Contains([]string{"GET", "HEAD", "POST"}, r.Method) {
			continue // refused by the dialect, in its own form
		}
		path := strings.ReplaceAll(r.Path, "/v1/AUTH_", "/v2/AUTH_") // said once for both
		path = strings.Replace(path, "/:container/*", "/:container/:object", 1)
		path = strings.Replace(path, "/monitoring/*", "/monitoring/:page", 1)
		for _, name := range []string{"import_id", "export_id", "project", "container", "object", "page"} {
			path = strings.Replace(path, ":"+name, "{"+name+"}", 1)
		}
		served[r.Method+" "+path] = true
	}
	documented := map[string]bool{}
	for path, item := range httpapitest.LoadDocument(t).Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+path] = true
			if method == http.MethodGet && !strings.HasPrefix(path, "/v1/") {
				documented["HEAD "+path] = true // goes without saying
			}
		}
	}
	if !maps.Equal(served, documented) {
		t.Errorf("served:\n%s\ndocumented:\n%s", lines(served), lines(documented))
	}
}

func lines(set map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(set)), "\n")
}

func TestHosts(t *testing.T) {
	t.Parallel()
	s := New(Options{FJcloud: []Region{
		{ID: "one", Hosts: []string{"One.example.test"}, Dialect: stub{"one"}},
		{ID: "two", Hosts: []string{"two.example.test", "2.example.test"}, Dialect: stub{"two"}},
	}})
	for host, want := range map[string]string{
		"one.example.test": "one", "two.example.test": "two", "2.example.test:8080": "two", "TWO.EXAMPLE.TEST.": "two",
		"other": "one", "": "one", "[::1]:80": "one", "127.0.0.1": "one",
	} {
		req := httptest.NewRequest("GET", "/name", nil)
		req.Host = host
		if got := send(s, req).Body.String(); got != want {
			t.Errorf("%q answered by %q", host, got)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("two regions share a host")
		}
	}()
	New(Options{FJcloud: []Region{{Hosts: []string{"a"}, Dialect: stub{}}, {Hosts: []string{"A"}, Dialect: stub{}}}})
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	for id, kept := range map[string]bool{
		"req-1234.A_b": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a b": false, "a\x1b[31m": false, "ä": false, `"`: false,
	} {
		got := get(s, "/healthz", "X-Request-Id", id).Header().Get("X-Request-Id")
		if (got == id) != kept || !kept && (!strings.HasPrefix(got, "req-") || len(got) != 40) {
			t.Errorf("%q became %q", id, got)
		}
	}
}

func TestUnknownPaths(t *testing.T) {
	t.Parallel()
	s := New(Options{FJcloud: []Region{{Dialect: stub{"s"}}}})
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/", 404}, {"GET", "/nothing", 404}, {"POST", "/%00/%2e%2e", 404}, {"GET", "//healthz", 404},
		{"GET", "/monitoring/", 404}, {"POST", "/healthz", 405}, {"OPTIONS", "/healthz", 405}, {"DELETE", "/metrics", 405},
		{"PUT", "/name", 418}, // the dialect's own
	} {
		rec := send(s, httptest.NewRequest(tt.method, tt.path, nil))
		var body map[string]string
		if err := json.Unmarshal(rec.Body.Bytes(), &body); rec.Code != tt.status || err != nil {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, rec.Code, rec.Body)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Content-Type": "application/json"} {
			if got := rec.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q", tt.method, tt.path, name, got)
			}
		}
		if allow := rec.Header().Get("Allow"); (allow != "") != (tt.status == 405 || tt.status == 418) || strings.Contains(allow, "OPTIONS") {
			t.Errorf("%s %s: Allow is %q", tt.method, tt.path, allow)
		}
	}
}

func TestPanics(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	s := New(Options{FJcloud: []Region{{ID: "r", Dialect: stub{"s"}}}, Log: zerolog.New(log)})
	if rec := get(s, "/panic"); rec.Code != http.StatusTeapot {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}

	// Once the answer has begun, the connection must break: a client that
	// reads to the end must not take the half for the whole.
	server := httptest.NewServer(s)
	defer server.Close()
	resp, err := server.Client().Get(server.URL + "/half")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%q came to a clean end", body)
	}
	if got := strings.Count(log.String(), `"level":"error"`); got != 1 || !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("%d errors logged, or no stack:\n%s", got, log)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	doc := httpapitest.LoadDocument(t)
	good := Check{"redis", func(context.Context) error { return nil }}
	bad := Check{"objects", func(context.Context) error { return errors.New("dial 10.0.0.9: refused") }}
	slow := Check{"images", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	deaf := Check{"keystone", func(context.Context) error { time.Sleep(time.Hour); return nil }} // simulated
	for _, tt := range []struct {
		checks []Check
		status int
		body   string
	}{
		{nil, 200, `{"status":"ready","checks":{}}`},
		{[]Check{good}, 200, `{"status":"ready","checks":{"redis":"ok"}}`},
		{[]Check{bad, good}, 503, `{"status":"not ready","checks":{"objects":"failed","redis":"ok"}}`},
		{[]Check{slow, deaf, good}, 503, `{"status":"not ready","checks":{"images":"failed","keystone":"failed","redis":"ok"}}`},
	} {
		synctest.Test(t, func(t *testing.T) {
			log := &logBuffer{}
			s := New(Options{Checks: tt.checks, Log: zerolog.New(log)})
			req := httptest.NewRequest("GET", "/readyz", nil)
			start := time.Now()
			rec := send(s, req)
			if after := time.Since(start); after > 2*time.Second {
				t.Errorf("answered after %v", after)
			}
			if got := strings.TrimSpace(rec.Body.String()); rec.Code != tt.status || got != tt.body {
				t.Errorf("%d %s, want %d %s", rec.Code, got, tt.status, tt.body)
			}
			doc.Check(t, req, rec.Result())
			if failed := tt.status != 200; failed != strings.Contains(log.String(), `"check":`) {
				t.Errorf("log: %s", log)
			}
			time.Sleep(time.Hour) // simulated; until the deaf check has ended
		})
	}
}

func TestOperations(t *testing.T) {
	t.Parallel()
	doc := httpapitest.LoadDocument(t)
	monitoring := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "page "+r.URL.Path)
	})
	closed := New(Options{Monitoring: monitoring, OperatorToken: secret.New("op")})
	open := New(Options{Monitoring: monitoring, OperatorToken: secret.New("op"), OpenMetrics: true})
	none := New(Options{Monitoring: monitoring})
	const basic = "Basic "
	for _, tt := range []struct {
		name      string
		s         *Server
		method    string
		path      string
		authorize string
		status    int
	}{
		{"nobody", closed, "GET", "/monitoring/", "", 401},
		{"wrong bearer", closed, "GET", "/monitoring/", "Bearer o", 401},
		{"empty bearer", closed, "GET", "/monitoring/", "Bearer ", 401},
		{"bare token", closed, "GET", "/monitoring/", "op", 401},
		{"bearer", closed, "GET", "/monitoring/queues/x?a=b", "Bearer op", 200},
		{"basic", closed, "GET", "/monitoring/", basic + "YW55Ym9keTpvcA==", 200}, // anybody:op
		{"basic, head", closed, "HEAD", "/monitoring/", basic + "OnZw", 401},      // :vp
		{"token as the user", closed, "GET", "/monitoring/", basic + "b3A6", 401}, // op:
		{"broken basic", closed, "GET", "/monitoring/", basic + "%%%", 401},
		{"head", closed, "HEAD", "/monitoring/", "Bearer op", 200},
		{"post", closed, "POST", "/monitoring/api/queues/q:pause", "Bearer op", 405},
		{"delete", closed, "DELETE", "/monitoring/api/queues/q", "Bearer op", 405},
		{"redirect", closed, "GET", "/monitoring", "", 302},
		{"no token is configured", none, "GET", "/monitoring/", "Bearer ", 401},
		{"no token is configured, basic", none, "GET", "/monitoring/", basic + "Og==", 401}, // :
		{"metrics, nobody", closed, "GET", "/metrics", "", 401},
		{"metrics", closed, "GET", "/metrics", "Bearer op", 200},
		{"open metrics", open, "GET", "/metrics", "", 200},
		{"open metrics, shut monitoring", open, "GET", "/monitoring/", "", 401},
		{"document", closed, "GET", "/openapi.yaml", "", 200},
		{"health", closed, "HEAD", "/healthz", "", 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			req := httptest.NewRequest(tt.method, tt.path, nil)
			if tt.authorize != "" {
				req.Header.Set("Authorization", tt.authorize)
			}
			rec := send(tt.s, req)
			if rec.Code != tt.status {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			if challenged := rec.Header().Get("WWW-Authenticate") != ""; challenged != (tt.status == 401) {
				t.Errorf("headers %v", rec.Header())
			}
			if tt.method == "GET" && tt.path != "/openapi.yaml" { // whose type no validator knows
				if strings.HasPrefix(tt.path, "/monitoring/") {
					req.URL.Path = "/monitoring/page" // to the document, any path is one page
				}
				doc.Check(t, req, rec.Result())
			}
		})
	}

	page := get(closed, "/monitoring/x", "Authorization", "Bearer op")
	csp := page.Header().Get("Content-Security-Policy")
	if page.Body.String() != "page /monitoring/x" || !strings.Contains(csp, "default-src 'self'") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("%s with policy %q", page.Body, csp)
	}
	if got := get(closed, "/openapi.yaml").Body.Bytes(); string(got) != string(vmimport.OpenAPI) {
		t.Error("the document is not the one of the repository")
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	s := New(Options{Registry: registry, FJcloud: []Region{{Dialect: streaming{stub{"s"}}}}})
	s.endStreams()
	get(s, "/stream")
	for i := range 50 {
		send(s, httptest.NewRequest(fmt.Sprintf("M%d", i), fmt.Sprintf("/made/up/%d", i), nil))
	}
	get(s, "/name?x=1")
	get(s, "/name?x=2")
	send(s, httptest.NewRequest("POST", "/name", nil))
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP vmimport_http_requests_total HTTP requests answered.
# TYPE vmimport_http_requests_total counter
vmimport_http_requests_total{method="GET",route="/name",status="200"} 2
vmimport_http_requests_total{method="GET",route="/stream",status="200"} 1
vmimport_http_requests_total{method="POST",route="/name",status="418"} 1
vmimport_http_requests_total{method="other",route="unknown",status="404"} 50
# HELP vmimport_http_requests_in_flight HTTP requests not answered yet, without event streams.
# TYPE vmimport_http_requests_in_flight gauge
vmimport_http_requests_in_flight 0
`), "vmimport_http_requests_total", "vmimport_http_requests_in_flight")
	if err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "vmimport_http_request_duration_seconds"); err != nil || n != 3 {
		t.Errorf("%d histograms, %v", n, err)
	}
}

// TestStreamsAreCountedOnce: the portal's are the API's.
func TestStreamsAreCountedOnce(t *testing.T) {
	t.Parallel()
	var s *Server
	open := 0.0
	s = New(Options{FJcloud: []Region{{Dialect: &watching{"/stream", func(c echo.Context) error {
		open = testutil.ToFloat64(s.metrics.streams)
		return c.NoContent(http.StatusOK)
	}}, Portal: &watching{"/portal/stream", func(c echo.Context) error {
		s.ServeHTTP(c.Response(), httptest.NewRequest(http.MethodGet, "/stream", nil).WithContext(c.Request().Context()))
		return nil
	}}}}})
	for _, target := range []string{"/stream", "/portal/stream"} {
		if get(s, target); open != 1 || testutil.ToFloat64(s.metrics.streams) != 0 || testutil.ToFloat64(s.metrics.inFlight) != 0 {
			t.Errorf("%s counts as %v", target, open)
		}
	}
}

// watching is a dialect with one stream.
type watching struct {
	path  string
	serve echo.HandlerFunc
}

func (d *watching) Mount(e *echo.Echo)                     { e.GET(d.path, d.serve) }
func (*watching) Streams(string) bool                      { return true }
func (*watching) WriteError(_ echo.Context, e error) error { return e }

func TestPortalIsTheWelcome(t *testing.T) {
	t.Parallel()
	rpc, err := aliyun.New(nil, aliyun.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Server{
		New(Options{FJcloud: []Region{{Dialect: stub{"s"}, Portal: page{}}}}),
		New(Options{FJcloud: []Region{{Dialect: stub{"s"}, Portal: page{}}}, Aliyun: rpc}),
	} {
		for _, tt := range []struct {
			method, target, header string
			leads                  bool
		}{
			{"GET", "/", "", true}, {"HEAD", "/?lang=ja", "", true},
			{"GET", "/?Action=DescribeRegions", "", false}, {"GET", "/?Action=", "", false}, {"POST", "/", "", false},
			{"GET", "/", "DescribeRegions", false}, {"GET", "/name", "", false},
		} {
			rec := send(s, httptest.NewRequest(tt.method, tt.target, nil), "X-Acs-Action", tt.header)
			if leads := rec.Code == http.StatusFound && rec.Header().Get("Location") == "/portal/"; leads != tt.leads {
				t.Errorf("%s %s: %d %v", tt.method, tt.target, rec.Code, rec.Header())
			}
		}
		if rec := get(s, "/portal/"); rec.Body.String() != "the page" {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
		if rec := get(s, "/portal/broken"); rec.Body.String() != "the page says no" {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	}
}

// page is a portal.
type page struct{}

func (page) Mount(e *echo.Echo) {
	e.GET("/portal/", func(c echo.Context) error { return c.String(http.StatusOK, "the page") })
	e.GET("/portal/broken", func(echo.Context) error { return errors.New("broken") })
}

func (page) WriteError(c echo.Context, _ error) error {
	return c.String(http.StatusInternalServerError, "the page says no")
}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		proxies []netip.Prefix
		peer    string
		want    string
	}{
		{nil, "10.1.1.1:9", "10.1.1.1"},
		{[]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, "10.1.1.1:9", "192.0.2.7"},
		{[]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, "10.2.1.1:9", "10.2.1.1"},
		{[]netip.Prefix{netip.MustParsePrefix("fd00::5/8")}, "[fd00::1]:9", "192.0.2.7"},
		{[]netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")}, "127.0.0.1:9", "127.0.0.1"},
	} {
		log := &logBuffer{}
		s := New(Options{TrustedProxies: tt.proxies, Log: zerolog.New(log)})
		req := httptest.NewRequest("GET", "/nothing", nil)
		req.RemoteAddr = tt.peer
		send(s, req, "X-Forwarded-For", "203.0.113.1, 192.0.2.7", "X-Real-Ip", "203.0.113.2")
		if want := `"remote":"` + tt.want + `"`; !strings.Contains(log.String(), want) {
			t.Errorf("proxies %v, peer %s: no %s in %s", tt.proxies, tt.peer, want, log)
		}
	}
}

func TestBodyIsBounded(t *testing.T) {
	t.Parallel()
	s := New(Options{MaxBodyBytes: 10, FJcloud: []Region{{Dialect: stub{"s"}}}})
	for body, want := range map[string]int{"": 200, "0123456789": 200, "0123456789x": 418} {
		if rec := send(s, httptest.NewRequest("POST", "/read", strings.NewReader(body))); rec.Code != want {
			t.Errorf("%d bytes: %d", len(body), rec.Code)
		}
	}
}
