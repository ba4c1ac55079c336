package clustertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/auth/localtokens"
	"vmimport/internal/client"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/internal/testenv/link"
	"vmimport/internal/testenv/service"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

const (
	region        = "jp-east-3"
	operatorToken = "token of the operators"
)

// settings are what differs between the tests' clusters. Zero members are as
// the service has them by default.
type settings struct {
	apis, workers   int
	bytesPerSecond  int64 // from the object store, for all processes together
	concurrency     int
	chunk           string
	parallel        int
	checkpointEvery string
	directory       bool // objects are in a directory, which exports can be written to
	redis           *redisGroup
	tenants         []string // blue and green by default
}

// redisGroup is what takes the place of a single Redis.
type redisGroup struct {
	config map[string]any
	rdb    redis.UniversalClient
}

// drainTimeout is how long a worker of a cluster may take to stop.
const drainTimeout = 10 * time.Second

// cluster is the whole service, and what it needs, in processes of their own.
type cluster struct {
	t       testing.TB
	dir     string
	config  string
	images  string         // the image directory
	objects string         // the object directory
	redis   *testenv.Redis // nil if there is a group
	redisAt map[string]any // as configured
	rdb     redis.UniversalClient
	records *redisstore.Store
	store   *objectStore
	link    *link.Link
	tenants []*tenant

	mu      sync.Mutex
	apis    []*service.Process
	workers []*service.Process
	all     []*service.Process // dead ones too
}

// startCluster starts a cluster that lives as long as the test.
func startCluster(t testing.TB, s settings) *cluster {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &cluster{t: t, dir: dir, config: filepath.Join(dir, "vmimport.yaml"), images: filepath.Join(dir, "images"), objects: filepath.Join(dir, "objects")}
	if s.redis == nil {
		c.redis = testenv.StartRedis(t)
		s.redis = &redisGroup{map[string]any{"url": c.redis.URL()}, c.redis.Client()}
	}
	c.rdb, c.redisAt = s.redis.rdb, s.redis.config
	c.records = redisstore.New(c.rdb, redisstore.Options{Retention: 24 * time.Hour})
	c.store = startObjectStore(t)
	c.link = link.Start(t, strings.TrimPrefix(c.store.URL, "http://"), s.bytesPerSecond)
	if s.tenants == nil {
		s.tenants = []string{"blue", "green"}
	}
	c.addTenants(s.tenants...)
	c.configure(s)
	t.Cleanup(c.end)
	for range s.apis {
		c.apis = append(c.apis, c.start("api"))
	}
	for range s.workers {
		c.workers = append(c.workers, c.start("worker"))
	}
	return c
}

// end kills all processes, and shows their last words if the test failed.
func (c *cluster) end() {
	for _, p := range c.all {
		p.Kill()
		if c.t.Failed() {
			c.t.Logf("the end of the log of %s:\n%s", p.Name, p.Tail(4))
		}
	}
}

// start starts a program. It is called by the test's own goroutine only.
func (c *cluster) start(program string) *service.Process {
	c.t.Helper()
	p, err := service.Start(binaries, program, fmt.Sprintf("%s-%d", program, len(c.all)+1), c.dir, c.config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, p)
	return p
}

// replace puts a new process in the place of one that has ended.
func (c *cluster) replace(place **service.Process, program string) {
	c.t.Helper()
	p := c.start(program)
	c.mu.Lock()
	defer c.mu.Unlock()
	*place = p
}

// addTenants makes tenants: each a domain with one project and one user.
func (c *cluster) addTenants(names ...string) {
	c.t.Helper()
	for i, name := range names {
		c.tenants = append(c.tenants, &tenant{
			cluster: c,
			name:    tasks.Tenant("domain-" + name),
			project: fmt.Sprintf("%032x", 0xa0+i),
			token:   "token-of-" + name,
		})
	}
}

// configure writes the configuration that all processes read.
func (c *cluster) configure(s settings) {
	c.t.Helper()
	type m = map[string]any
	tokens, secretKey, operator := filepath.Join(c.dir, "tokens.yaml"), filepath.Join(c.dir, "s3-secret"), filepath.Join(c.dir, "operator")
	var entries []localtokens.Entry
	for _, t := range c.tenants {
		entries = append(entries, localtokens.Entry{
			SHA256: localtokens.Digest(t.token), User: "user", Project: t.project, Domain: string(t.name), Roles: []string{},
		})
	}
	worker := m{"listen": "127.0.0.1:0", "drain_timeout": drainTimeout.String()}
	given := m{"concurrency": s.concurrency, "chunk": s.chunk, "parallel": s.parallel, "checkpoint_every": s.checkpointEvery}
	for key, v := range given {
		if v != 0 && v != "" {
			worker[key] = v
		}
	}
	objects := m{"s3": m{
		"endpoint": c.link.URL, "region": c.store.Region, "path_style": true,
		"access_key": c.store.AccessKey, "secret_key_file": secretKey, "bucket_prefix": "{project}-",
	}}
	if s.directory {
		objects = m{"directory": m{"path": filepath.Join(c.objects, "{project}")}}
	}
	err := errors.Join(
		os.WriteFile(secretKey, []byte(c.store.SecretKey), 0o600),
		os.WriteFile(operator, []byte(operatorToken), 0o600),
		writeYAML(tokens, m{"tokens": entries}),
		writeYAML(c.config, m{
			"redis":    c.redisAt,
			"listen":   "127.0.0.1:0",
			"operator": m{"token_file": operator},
			"worker":   worker,
			"regions": []m{{
				"id":      region,
				"fjcloud": m{"profile": "gen3", "extensions": []string{".raw", ".vhd"}, "tokens_file": tokens},
				"objects": objects,
				"images":  m{"directory": m{"path": c.images}},
			}},
		}))
	if err != nil {
		c.t.Fatal(err)
	}
}

func writeYAML(path string, v any) error {
	b, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// tenant is one customer.
type tenant struct {
	cluster *cluster
	name    tasks.Tenant
	project string
	token   string

	mu      sync.Mutex
	clients []*client.Client // one for each API process
	turn    atomic.Int64
}

func (t *tenant) scope() tasks.Scope { return tasks.Scope{Region: region, Tenant: t.name} }

func (t *tenant) bucket() string { return t.project + "-" + container }

// api returns a client of the API whose turn it is.
func (t *tenant) api() *client.Client {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.clients == nil {
		for i := range t.cluster.apis {
			t.clients = append(t.clients, t.cluster.client(i, t.token))
		}
	}
	return t.clients[int(t.turn.Add(1))%len(t.clients)]
}

// client returns a client of the i-th API, wherever that listens: a process
// that takes the place of a dead one gets another port.
func (c *cluster) client(i int, token string) *client.Client {
	var d net.Dialer
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			c.mu.Lock()
			addr := c.apis[i].Listen
			c.mu.Unlock()
			return d.DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 64,
	}
	c.t.Cleanup(transport.CloseIdleConnections)
	api, err := client.New(client.Options{
		Endpoint: "http://api.test", Token: secret.New(token), HTTP: &http.Client{Transport: transport},
	})
	if err != nil {
		panic(err) // the address is a constant
	}
	return api
}

// request is what a tenant sends to have an object imported.
func (t *tenant) request(name string, o *object) client.Registration {
	return client.Registration{
		Name:     name,
		Location: client.Gen3.Location(t.project, client.Object{Container: container, Name: o.key}),
		Checksum: o.sha1,
		OSType:   "ubuntu",
	}
}

// register asks for an import when nothing is expected to go wrong.
func (t *tenant) register(name string, o *object) tasks.ID {
	t.cluster.t.Helper()
	id, err := t.api().Register(t.cluster.t.Context(), t.request(name, o))
	if err != nil {
		t.cluster.t.Fatal(err)
	}
	return id
}

// await looks at a record, often, until it is as wanted.
func (t *tenant) await(id tasks.ID, most time.Duration, wanted func(*tasks.Task) bool) *tasks.Task {
	c := t.cluster
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), most)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		imp, err := c.records.Get(ctx, t.scope(), id)
		if err == nil && wanted(imp) {
			return imp
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("import %s is not as wanted after %s: %+v, %v\n%s", id, most, imp, err, c.explain(id))
		}
	}
}

// place returns the place of the worker that runs an attempt.
func (c *cluster) place(worker string) **service.Process {
	c.t.Helper()
	i := slices.IndexFunc(c.workers, func(p *service.Process) bool { return p.Runs(worker) })
	if i < 0 {
		c.t.Fatalf("no process is worker %s", worker)
	}
	return &c.workers[i]
}

// explain returns what all processes logged about an import.
func (c *cluster) explain(id tasks.ID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []string
	for _, p := range c.all {
		for _, line := range p.Lines() {
			if strings.Contains(line, string(id)) {
				found = append(found, p.Name+": "+line)
			}
		}
	}
	return strings.Join(found, "\n")
}

// checkLogs reports what no disturbance may bring about.
func (c *cluster) checkLogs() {
	c.t.Helper()
	for _, p := range c.all {
		for _, line := range p.Lines() {
			if !json.Valid([]byte(line)) && line != "" || strings.Contains(line, `"panic"`) {
				c.t.Errorf("%s logged: %s", p.Name, line)
			}
		}
	}
}

// checkNothingLeft reports records that are not final, and whatever is left of
// an import besides its image and its record.
func (c *cluster) checkNothingLeft() {
	t := c.t
	t.Helper()
	staged, err := os.ReadDir(filepath.Join(c.images, ".staging"))
	if err != nil {
		t.Error(err)
	}
	for _, e := range staged {
		t.Errorf("left in staging: %s", e.Name())
	}
	for _, key := range c.keys("vmimport:*") {
		kind := key[strings.LastIndex(key, "}:")+1:]
		// Redis has no empty collections: the key is there if anything is in it.
		if slices.Contains([]string{":waiting", ":dispatched", ":running", ":images", ":names"}, kind) {
			t.Errorf("Redis still has %s", key)
		}
		if !strings.HasPrefix(kind, ":import:") {
			continue
		}
		got, err := c.rdb.HMGet(t.Context(), key, "state", "claim_until", "checkpoint").Result()
		if err != nil {
			t.Fatal(err)
		}
		if state, _ := got[0].(string); !tasks.State(state).Final() || got[1] != "0" || got[2] != nil {
			t.Errorf("record %s has state, claim_until and checkpoint %v", key, got)
		}
	}
}

// keys returns the names of all keys of a pattern, on all nodes.
func (c *cluster) keys(pattern string) (all []string) {
	c.t.Helper()
	var mu sync.Mutex
	each := func(ctx context.Context, node *redis.Client) error {
		keys, err := node.Keys(ctx, pattern).Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, keys...)
		return err
	}
	var err error
	switch rdb := c.rdb.(type) {
	case *redis.ClusterClient:
		err = rdb.ForEachMaster(c.t.Context(), each)
	case *redis.Client:
		err = each(c.t.Context(), rdb)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

// pause waits and reports whether ctx still runs.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
