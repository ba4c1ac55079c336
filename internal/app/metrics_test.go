package app

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/config"
	"vmimport/internal/testenv"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

var (
	dashboardFile = filepath.Join("..", "..", "etc", "grafana", "vmimport.json")
	alertsFile    = filepath.Join("..", "..", "etc", "prometheus", "alerts.yaml")
	guideFile     = filepath.Join("..", "..", "docs", "operations", "observability.md")
)

// series is a metric as a line of the guide has it.
type series struct {
	name, kind, of string
	labels         []string
	help           string
}

func (s series) String() string {
	labels := "–"
	if len(s.labels) > 0 {
		labels = "`" + strings.Join(s.labels, "`, `") + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s | %s |", s.name, s.kind, s.of, labels, s.help)
}

// exposed returns what a real API and a real worker expose, after each has done one of everything.
func exposed(t *testing.T) map[string]series {
	t.Helper()
	cfg := healthy(t, testenv.StartRedis(t), storagetest.NewS3(t))
	cfg.Tracing.Endpoint = ""
	cfg.Worker.Scratch = t.TempDir()
	api, err := NewAPI(cfg, APIOptions{}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	worker, err := NewWorker(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = worker.Close() })
	for _, h := range []http.Handler{api.Handler(), worker.health} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/healthz", nil))
	}
	now, err := api.store.Now(t.Context())
	if err == nil {
		err = api.store.Predict(t.Context(), tasks.Outlook{At: now, Slots: 4})
	}
	if err != nil {
		t.Fatal(err)
	}
	worker.metrics.Ended(tasks.KindImport, "east", "succeeded", time.Minute)
	worker.metrics.StageEnded(tasks.KindImport, "east", "copy", time.Second)

	all := map[string]series{}
	gather(t, api.registry, "API", all)
	gather(t, worker.registry, "worker", all)
	return all
}

func gather(t *testing.T, registry *prometheus.Registry, of string, into map[string]series) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		s := series{name: f.GetName(), kind: strings.ToLower(f.GetType().String()), of: of, help: f.GetHelp()}
		for _, l := range f.GetMetric()[0].GetLabel() {
			s.labels = append(s.labels, l.GetName())
		}
		if _, known := into[s.name]; known {
			s.of = "both"
		}
		into[s.name] = s
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%s: %v, %v", of, problems, err)
	}
}

// ours are the metrics that are not of a library.
func ours(all map[string]series) []series {
	own := slices.Collect(maps.Values(all))
	own = slices.DeleteFunc(own, func(s series) bool { return !strings.HasPrefix(s.name, "vmimport_") })
	slices.SortFunc(own, func(a, b series) int { return cmp.Compare(a.name, b.name) })
	return own
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// alert is a rule of etc/prometheus.
type alert struct {
	Alert, Record, Expr, For string
	Labels, Annotations      map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal([]byte(read(t, alertsFile)), &file); err != nil {
		t.Fatal(err)
	}
	var rules []alert
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// query is an expression of the dashboard or of a rule, with the labels that are made use of.
type query struct{ where, expr, legend string }

func queries(t *testing.T) []query {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title, Type, Description string
			ID                       int
			Targets                  []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &dashboard); err != nil {
		t.Fatal(err)
	}
	var all []query
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && (p.Description == "" || len(p.Targets) == 0) {
			t.Errorf("panel %d, %q, is not complete, or not the only one of its number", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "1m", `"$region"`, `".*"`).Replace(target.Expr)
			all = append(all, query{"panel " + p.Title, expr, target.LegendFormat})
		}
	}
	for _, rule := range alerts(t) {
		texts := strings.Join(slices.Collect(maps.Values(rule.Annotations)), " ")
		all = append(all, query{"rule " + rule.Alert + rule.Record, rule.Expr, strings.ReplaceAll(texts, "$labels.", "")})
	}
	return all
}

var (
	text      = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	selection = regexp.MustCompile(`([a-z_:]+)\{([^}]*)\}`)
	matcher   = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping  = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	metric    = regexp.MustCompile(`\b(?:vmimport_|process_|go_)[a-z0-9_]+`)
	shown     = regexp.MustCompile(`\{\{\s*([a-z_]+)\s*\}\}`)
)

// scraped are the labels that Prometheus adds to what it scrapes.
var scraped = []string{"job", "instance"}

// labelsOf returns those that a metric of that name has, which may be that of a part of a histogram.
func labelsOf(name string, all map[string]series) ([]string, bool) {
	s, ok := all[name]
	if !ok {
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			base, cut := strings.CutSuffix(name, part)
			if h, known := all[base]; cut && known && h.kind == "histogram" {
				s, ok = h, true
				s.labels = append(slices.Clone(h.labels), "le")
			}
		}
	}
	return append(slices.Clone(s.labels), scraped...), ok
}

// What the dashboard and the rules ask for exists, with the labels that they ask for it by.
func TestQueriesNameWhatExists(t *testing.T) {
	t.Parallel()
	all := exposed(t)
	all["up"] = series{}
	for _, q := range queries(t) {
		expr := text.ReplaceAllString(q.expr, `""`)
		var labels []string
		for _, name := range metric.FindAllString(expr, -1) {
			has, ok := labelsOf(name, all)
			if !ok {
				t.Errorf("%s: there is no metric %s", q.where, name)
			}
			labels = append(labels, has...)
		}
		for _, s := range selection.FindAllStringSubmatch(expr, -1) {
			has, _ := labelsOf(s[1], all)
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				if !slices.Contains(has, m[1]) {
					t.Errorf("%s: %s has no label %s", q.where, s[1], m[1])
				}
			}
		}
		labels = append(labels, scraped...)
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for name := range strings.SplitSeq(g[1], ",") {
				if !slices.Contains(labels, strings.TrimSpace(name)) {
					t.Errorf("%s: grouped by %s, which nothing there has", q.where, name)
				}
			}
		}
		for _, s := range shown.FindAllStringSubmatch(q.legend, -1) {
			if !slices.Contains(labels, s[1]) {
				t.Errorf("%s: shows %s, which nothing there has", q.where, s[1])
			}
		}
	}
}

// The guide lists every metric as it is, and has a part for each alert.
func TestGuideIsComplete(t *testing.T) {
	t.Parallel()
	guide := read(t, guideFile)
	var want, got []string
	for _, s := range ours(exposed(t)) {
		want = append(want, s.String())
	}
	for line := range strings.Lines(guide) {
		if strings.HasPrefix(line, "| `vmimport_") {
			got = append(got, strings.TrimSuffix(line, "\n"))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the guide has\n%s\nand should have\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, rule := range alerts(t) {
		if rule.Record != "" {
			continue
		}
		a := rule.Annotations
		if rule.For == "" || rule.Labels["severity"] == "" || a["summary"] == "" || a["description"] == "" {
			t.Errorf("%s is not complete", rule.Alert)
		}
		if a["runbook_url"] != "docs/operations/observability.md#"+strings.ToLower(rule.Alert) || !strings.Contains(guide, "\n### "+rule.Alert+"\n") {
			t.Errorf("%s: there is no part of the guide at %s", rule.Alert, a["runbook_url"])
		}
	}
}

// promtool runs the checker that comes with Prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	bin, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is not installed; `make deps` installs it")
	}
	if out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrometheusFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Dir(alertsFile)
	promtool(t, "check", "config", "--syntax-only", filepath.Join(dir, "prometheus.yaml"))
	promtool(t, "check", "rules", alertsFile)
	promtool(t, "test", "rules", filepath.Join(dir, "alerts_test.yaml"))

	// The dashboard's queries, as rules, since rules can be checked.
	type rule struct{ Record, Expr string }
	var rules []rule
	for i, q := range queries(t) {
		rules = append(rules, rule{fmt.Sprintf("query:%d", i), q.expr})
	}
	file, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}

// What customers do is counted where it is accepted.
func TestCountedRecords(t *testing.T) {
	t.Parallel()
	store := redisstore.New(testenv.StartRedis(t).Client(), redisstore.Options{})
	records := newCountedRecords(store, []config.Region{{ID: "east", FJcloud: &config.FJcloud{}, Aliyun: &config.AliyunRegion{}}})
	at := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	ctx, limits := trace.ContextWithSpanContext(t.Context(), at), tasks.Limits{}
	spec := &tasks.Spec{
		Owner: tasks.Owner{Tenant: "d", Project: "p"}, Region: "east", Dialect: "aliyun", ImageID: "i",
		Disks: make([]tasks.Disk, 1), ClientToken: "t", Fingerprint: "f",
	}
	for _, id := range []tasks.ID{"i", "j"} { // the second is the repetition of a token
		asked := *spec
		asked.ID = id
		if _, _, err := records.Create(ctx, &asked, limits); err != nil {
			t.Fatal(err)
		}
	}
	scope := tasks.Scope{Region: "east", Tenant: "d"}
	if task, err := store.Get(ctx, scope, "i"); err != nil || task.Trace != "00-01000000000000000000000000000000-0200000000000000-01" {
		t.Errorf("in the trace %q, %v", task.Trace, err)
	}
	if state, err := records.Cancel(ctx, scope, "i"); err != nil || state != tasks.Canceled {
		t.Fatalf("%s, %v", state, err)
	}
	if _, err := records.Cancel(ctx, scope, "i"); err == nil {
		t.Error("canceled twice")
	}
	if err := records.Retry(ctx, scope, "i", limits); err == nil {
		t.Error("tried again what was canceled")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(records.collectors()...)
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP vmimport_tasks_accepted_total Imports and exports that were accepted.
# TYPE vmimport_tasks_accepted_total counter
vmimport_tasks_accepted_total{dialect="aliyun",kind="import",region="east"} 1
vmimport_tasks_accepted_total{dialect="fjcloud",kind="export",region="east"} 0
vmimport_tasks_accepted_total{dialect="fjcloud",kind="import",region="east"} 0
# HELP vmimport_tasks_ended_total Imports and exports that came to a final state. One that is tried again ends again.
# TYPE vmimport_tasks_ended_total counter
vmimport_tasks_ended_total{kind="export",region="east",state="canceled"} 0
vmimport_tasks_ended_total{kind="export",region="east",state="failed"} 0
vmimport_tasks_ended_total{kind="export",region="east",state="succeeded"} 0
vmimport_tasks_ended_total{kind="import",region="east",state="canceled"} 1
vmimport_tasks_ended_total{kind="import",region="east",state="failed"} 0
vmimport_tasks_ended_total{kind="import",region="east",state="succeeded"} 0
# HELP vmimport_tasks_retried_total Failed imports and exports that a customer had tried again.
# TYPE vmimport_tasks_retried_total counter
vmimport_tasks_retried_total{kind="export",region="east"} 0
vmimport_tasks_retried_total{kind="import",region="east"} 0
`))
	if err != nil {
		t.Error(err)
	}
}

// While the store is away the queue is no zero, and Redis is.
func TestCollectorsWithoutRedis(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t)
	p := &parts{rdb: server.Client()}
	p.store = redisstore.New(p.rdb, redisstore.Options{})
	server.Kill()
	slots := func() (int, error) { t.Error("asked after the store had failed"); return 0, nil }
	registry := prometheus.NewRegistry()
	registry.MustRegister(newQueueCollector(p.store, slots), newRedisCollector(p))
	err := testutil.GatherAndCompare(registry, bytes.NewBufferString(`
# HELP vmimport_redis_up 1 if Redis answers this process.
# TYPE vmimport_redis_up gauge
vmimport_redis_up 0
`))
	if err != nil {
		t.Error(err)
	}
}
