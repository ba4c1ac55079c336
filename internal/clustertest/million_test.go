package clustertest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

var millionRecords = flag.Int("million.records", 1_000_000, "how many finished records BenchmarkMillion makes")

// A view is a page of many records that somebody waits for.
type view struct {
	name   string
	path   func(n int) string // of the n-th request
	header http.Header
}

// slowestView is how long one request in a hundred may take, or more.
const slowestView = 20 * time.Millisecond

// BenchmarkMillion fills a tenant with finished imports, each as large as one that was really
// made, and measures what a record takes and how long its views do.
func BenchmarkMillion(b *testing.B) {
	for b.Loop() {
		c := startCluster(b, settings{apis: 1, workers: 1})
		tn := c.tenants[0]
		o := c.store.put(tn.bucket(), "disk.raw", make([]byte, 1<<20))
		id := tn.register("web server 01", o)
		model := tn.await(id, time.Minute, func(imp *tasks.Task) bool { return imp.State == tasks.Succeeded })
		c.checkNothingLeft()
		c.copyRecord(b, tn, model, *millionRecords)
		token, cookie := http.Header{"X-Auth-Token": {tn.token}}, http.Header{"Cookie": {"vmimport_token=" + url.QueryEscape(tn.token)}}
		one := func(n int) string { return copyID(1 + n*7919%*millionRecords) }
		for _, v := range []view{
			{"list", fixed("/v1/imageimport?limit=100"), token},
			{"list-middle", fixed(fmt.Sprintf("/v1/imageimport?start=%d&limit=100", *millionRecords/2)), token},
			{"status", func(n int) string { return "/v1/imageimport/" + one(n) + "/status" }, token},
			{"portal-list", fixed("/portal/imports"), cookie},
			{"portal-list-middle", fixed(fmt.Sprintf("/portal/imports?page=%d", *millionRecords/40)), cookie},
			{"portal-detail", func(n int) string { return "/portal/imports/" + one(n) }, cookie},
		} {
			c.measureView(b, v)
		}
	}
	b.ReportMetric(0, "ns/op") // of all that is around it
}

func fixed(path string) func(int) string { return func(int) string { return path } }

// copyID is the id of the n-th copy, from 1.
func copyID(n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n) }

// copyRecords makes copies of a finished record as scripts and workers leave them: in every
// sorted set that the record is in, under another id.
//
// KEYS[1]    -> record
// KEYS[2]    -> attempts
// KEYS[3]    -> seq
// KEYS[4...] -> sorted sets
// --
// ARGV[1] -> id of the record
// ARGV[2] -> id of its image
// ARGV[3] -> number of the first copy
// ARGV[4] -> number of the last one
var copyRecords = redis.NewScript(`
local record, attempts = redis.call("HGETALL", KEYS[1]), redis.call("LRANGE", KEYS[2], 0, -1)
local scores = {}
for k = 4, #KEYS do scores[k] = tonumber(redis.call("ZSCORE", KEYS[k], ARGV[1])) end
local quoted, image = ARGV[1]:gsub("%-", "%%-"), ARGV[2]:gsub("%-", "%%-")
for n = tonumber(ARGV[3]), tonumber(ARGV[4]) do
  local id = string.format("%08x-0000-4000-8000-%012x", n, n)
  local function own(s)
    if #s < #id then return s end
    return (s:gsub(quoted, id):gsub(image, (id:gsub("4000", "4001"))))
  end
  local fields, ended = {}, {}
  for i, s in ipairs(record) do fields[i] = own(s) end
  for i, s in ipairs(attempts) do ended[i] = own(s) end
  redis.call("HSET", own(KEYS[1]), unpack(fields))
  redis.call("RPUSH", own(KEYS[2]), unpack(ended))
  for k = 4, #KEYS do redis.call("ZADD", KEYS[k], string.format("%.0f", scores[k] + n), id) end
end
redis.call("INCRBY", KEYS[3], tonumber(ARGV[4]) - tonumber(ARGV[3]) + 1)
`)

// copyRecord makes n copies of a finished record, and reports the memory that one takes.
func (c *cluster) copyRecord(b *testing.B, tn *tenant, model *tasks.Task, n int) {
	b.Helper()
	ctx := b.Context()
	prefix := "vmimport:{" + string(tn.name) + "}:"
	keys := []string{prefix + "import:" + string(model.ID), prefix + "attempts:" + string(model.ID), prefix + "seq"}
	for _, key := range c.keys(prefix + "*") {
		if c.rdb.Type(ctx, key).Val() == "zset" && c.rdb.ZScore(ctx, key, string(model.ID)).Err() == nil {
			keys = append(keys, key)
		}
	}
	b.Logf("a record is %d bytes in %d fields, and in %d sorted sets", c.valueBytes(b, keys[0]), c.rdb.HLen(ctx, keys[0]).Val(), len(keys)-3)
	// The journal of these writes is not the question, only the one of a server that has them.
	c.set(b, "appendonly", "no")
	before := c.memory(b)
	const batch = 1000
	for first := 1; first <= n; first += batch {
		if err := copyRecords.Run(ctx, c.rdb, keys, string(model.ID), model.ImageID, first, min(first+batch-1, n)).Err(); err != nil && err != redis.Nil {
			b.Fatal(err)
		}
	}
	after := c.memory(b)
	for what := range after {
		report(b, float64(after[what]-before[what])/float64(n), what+"-B/record")
	}
	began := time.Now()
	c.set(b, "appendonly", "yes")
	awaitFor(b, 15*time.Minute, "the append-only file is written", func() bool {
		info := c.info(b, "persistence")
		return info["aof_rewrite_in_progress"] == "0" && info["aof_rewrite_scheduled"] == "0" && info["aof_last_bgrewrite_status"] == "ok"
	})
	size, _ := strconv.ParseFloat(c.info(b, "persistence")["aof_current_size"], 64)
	b.Logf("the append-only file was rewritten in %s", time.Since(began).Round(time.Second))
	report(b, size/float64(n), "file-B/record")
}

// report is also for a benchmark that fails, of which the metrics are not shown.
func report(b *testing.B, value float64, unit string) {
	b.Helper()
	b.Logf("%.2f %s", value, unit)
	b.ReportMetric(value, unit)
}

// valueBytes is how long the names and values of a hash are together.
func (c *cluster) valueBytes(b *testing.B, key string) (n int) {
	b.Helper()
	all, err := c.rdb.HGetAll(b.Context(), key).Result()
	if err != nil {
		b.Fatal(err)
	}
	for name, value := range all {
		n += len(name) + len(value)
	}
	return n
}

func (c *cluster) set(b *testing.B, name, value string) {
	b.Helper()
	if err := c.rdb.ConfigSet(b.Context(), name, value).Err(); err != nil {
		b.Fatal(err)
	}
}

// info returns a section of what Redis says of itself.
func (c *cluster) info(b *testing.B, section string) map[string]string {
	b.Helper()
	text, err := c.rdb.Info(b.Context(), section).Result()
	if err != nil {
		b.Fatal(err)
	}
	values := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		values[name] = value
	}
	return values
}

// memory returns what Redis has taken, as it counts it and as the kernel does.
func (c *cluster) memory(b *testing.B) map[string]int64 {
	b.Helper()
	values, info := map[string]int64{}, c.info(b, "memory")
	for what, name := range map[string]string{"used": "used_memory", "rss": "used_memory_rss"} {
		n, err := strconv.ParseInt(info[name], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		values[what] = n
	}
	return values
}

// measureView asks the API for a view many times, and reports how long it took.
func (c *cluster) measureView(b *testing.B, v view) {
	b.Helper()
	const warm, requests = 20, 1000
	var took []time.Duration
	for n := range warm + requests {
		began := time.Now()
		size, err := c.get(b.Context(), v.path(n), v.header)
		if err != nil || size == 0 {
			b.Fatalf("%s: %d bytes, %v", v.name, size, err)
		}
		if n >= warm {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	half, most := took[requests/2], took[requests*99/100]
	report(b, float64(half.Microseconds())/1000, v.name+"-p50-ms")
	report(b, float64(most.Microseconds())/1000, v.name+"-p99-ms")
	if most > slowestView {
		b.Errorf("one %s in a hundred takes %s or more, want at most %s", v.name, most, slowestView)
	}
}

// get asks the first API process for a page and returns its size.
func (c *cluster) get(ctx context.Context, path string, header http.Header) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.apis[0].Listen+path, nil)
	if err != nil {
		return 0, err
	}
	req.Header = header
	resp, err := http.DefaultTransport.RoundTrip(req) // which follows no redirect
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	size, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", path, resp.Status)
	}
	return size, err
}
