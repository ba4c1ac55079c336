package app

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"vmimport/internal/config"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
	"vmimport/tasks/queue"
)

// monitored returns an API on a real Redis whose queue holds a task.
func monitored(t *testing.T, change ...func(*config.Config)) (*API, *logLines) {
	t.Helper()
	cfg := healthy(t, testenv.StartRedis(t), storagetest.NewS3(t))
	cfg.Operator.Token, cfg.Audit.Path, cfg.Tracing.Endpoint = secret.New("operator"), "", ""
	for _, c := range change {
		c(cfg)
	}
	log := &logLines{}
	api, err := NewAPI(cfg, APIOptions{}, zerolog.New(log).Level(zerolog.ErrorLevel))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	ticket := tasks.Ticket{Ref: tasks.Ref{Tenant: "d", ID: "waiting"}, Number: 1}
	if err := queue.New(api.rdb).Enqueue(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
	return api, log
}

// logLines are the lines of a log, of which the tests read only after all were written.
type logLines struct{ strings.Builder }

func (a *API) ask(method, target string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, nil)
	req.SetBasicAuth("anybody", "operator")
	rec := httptest.NewRecorder()
	a.Handler().ServeHTTP(rec, req)
	return rec
}

// Operators see the queue, and can change nothing in it.
func TestMonitoringIsReadOnly(t *testing.T) {
	t.Parallel()
	api, _ := monitored(t)
	const task = "/monitoring/api/queues/imports/pending_tasks"
	if rec := api.ask(http.MethodGet, task); rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), "waiting.1") {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	for _, change := range []struct{ method, path string }{
		{"DELETE", "/monitoring/api/queues/imports"},
		{"POST", "/monitoring/api/queues/imports:pause"},
		{"POST", "/monitoring/api/queues/imports:resume"},
		{"DELETE", task + "/waiting.1"},
		{"DELETE", task + ":delete_all"},
		{"POST", task + ":batch_delete"},
		{"POST", task + "/waiting.1:archive"},
		{"POST", task + ":archive_all"},
		{"POST", "/monitoring/api/queues/imports/archived_tasks:run_all"},
		{"PUT", "/monitoring/"}, {"PATCH", "/monitoring/"},
	} {
		if rec := api.ask(change.method, change.path); rec.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %d %s", change.method, change.path, rec.Code, rec.Body)
		}
		// Nor by asking for it with another method.
		req := httptest.NewRequest(http.MethodGet, change.path, nil)
		req.SetBasicAuth("anybody", "operator")
		req.Header.Set("X-Http-Method-Override", change.method)
		api.Handler().ServeHTTP(httptest.NewRecorder(), req)
	}
	if rec := api.ask(http.MethodGet, task); !strings.Contains(rec.Body.String(), "waiting.1") {
		t.Errorf("the task is gone: %s", rec.Body)
	}
	if rec := api.ask(http.MethodGet, "/monitoring/api/queues/imports"); !strings.Contains(rec.Body.String(), `"paused":false`) {
		t.Errorf("the queue is paused: %s", rec.Body)
	}
}

var reference = regexp.MustCompile(`<(script|link)[^>]*\s(?:src|href)="([^"]*)"`)

// Everything that the page needs comes from where its policy allows.
func TestMonitoringPage(t *testing.T) {
	t.Parallel()
	api, _ := monitored(t)
	server := httptest.NewServer(api.Handler()) // which tells types that handlers leave out
	t.Cleanup(server.Close)
	fetch := func(path string) (header http.Header, body string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("anybody", "operator")
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
		}
		return resp.Header, string(text)
	}
	header, page := fetch("/monitoring/")
	if !strings.Contains(header.Get("Content-Type"), "text/html") || !strings.Contains(header.Get("Content-Security-Policy"), "default-src 'self'") {
		t.Fatalf("%v", header)
	}
	scripts := 0
	for _, found := range reference.FindAllStringSubmatch(page, -1) {
		at, err := url.Parse(found[2])
		if err != nil {
			t.Fatal(err)
		}
		if at.Host != "" {
			if found[1] == "script" { // fonts elsewhere are refused, and done without
				t.Errorf("a script from %s", at.Host)
			}
			continue
		}
		at = (&url.URL{Path: "/monitoring/"}).ResolveReference(at)
		if header, _ := fetch(at.Path); found[1] == "script" && !strings.Contains(header.Get("Content-Type"), "javascript") {
			t.Errorf("%s is %s", at.Path, header.Get("Content-Type"))
		}
		if found[1] == "script" {
			scripts++
		}
	}
	if scripts == 0 {
		t.Errorf("the page has no script of its own: %s", page)
	}
}

// Who looked at the queue, and who was not let in, is noted in the log whatever its level.
func TestAuditStream(t *testing.T) {
	t.Parallel()
	api, log := monitored(t)
	api.ask(http.MethodGet, "/monitoring/api/queues")
	api.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v1/imageimport", nil))
	want := []map[string]any{
		{"action": "monitoring.view", "dialect": "operations", "outcome": "accepted", "status": 200.0},
		{"action": "sign_in.refused", "dialect": "fjcloud", "outcome": "refused", "status": 401.0},
	}
	for line := range strings.Lines(log.String()) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r["log"] != "audit" {
			continue
		}
		if len(want) == 0 {
			t.Fatalf("also noted: %s", line)
		}
		for name, v := range want[0] {
			if r[name] != v {
				t.Errorf("%s, want %s %v", line, name, v)
			}
		}
		want = want[1:]
	}
	if len(want) > 0 {
		t.Errorf("%v is missing in %s", want, log)
	}
}

func TestAuditFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	api, log := monitored(t, func(c *config.Config) { c.Audit.Path = path })
	api.ask(http.MethodGet, "/monitoring/api/queues")
	text, err := os.ReadFile(path)
	if err != nil || strings.Count(string(text), "\n") != 1 || !strings.Contains(string(text), `"action":"monitoring.view","id":"api/queues","outcome":"accepted","status":200}`) {
		t.Errorf("%s, %v", text, err)
	}
	if strings.Contains(log.String(), "audit") {
		t.Errorf("it is in the log, too: %s", log)
	}
	cfg := config.Default()
	cfg.Audit.Path = filepath.Join(path, "below")
	if _, err := NewAPI(&cfg, APIOptions{}, zerolog.Nop()); err == nil {
		t.Error("an API without its audit log")
	}
}
