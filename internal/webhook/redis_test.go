package webhook

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/internal/testenv"
	"vmimport/tasks"
	"vmimport/tasks/redisstore"
)

// quick is timing for tests that cannot do without real time.
var quick = timing{
	leadFor: 500 * time.Millisecond, renew: 50 * time.Millisecond, look: 200 * time.Millisecond,
	deliver: 2 * time.Second, firstWait: time.Millisecond, lastWait: 50 * time.Millisecond, giveUp: time.Hour,
	storeWait: 50 * time.Millisecond,
}

// desk is an inbox behind a real server.
type desk struct {
	inbox
	url  string
	down atomic.Bool // connections are cut
}

func newDesk(t *testing.T) *desk {
	d := &desk{inbox: inbox{t: t}}
	d.down.Store(true)
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d.down.Load() {
		panic(http.ErrAbortHandler)
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if _, err := d.RoundTrip(r); err != nil {
		d.t.Error(err)
	}
}

func openStore(rdb redis.UniversalClient) *mortal {
	return &mortal{Store: redisstore.New(rdb, redisstore.Options{Retention: 24 * time.Hour})}
}

// mortal is a store as a process sees it that may be killed: nothing of it arrives any more.
type mortal struct {
	*redisstore.Store
	dead atomic.Bool
}

func (m *mortal) MoveCursor(ctx context.Context, receiver string, t tasks.Tenant, from, to tasks.Cursor) error {
	if m.dead.Load() {
		return errAway
	}
	return m.Store.MoveCursor(ctx, receiver, t, from, to)
}

func (m *mortal) ResignReceiver(ctx context.Context, receiver, who string) error {
	if m.dead.Load() {
		return errAway
	}
	return m.Store.ResignReceiver(ctx, receiver, who)
}

// send runs a sender until the function that it returns is called, or the test ends.
func send(t *testing.T, store *mortal, who string, observe Observer, receivers ...Receiver) (stop func()) {
	t.Helper()
	s, err := New(store, store, receivers, Options{Who: who, Observe: observe, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.couriers {
		c.timing = quick
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within a minute: %s", what)
		case <-tick.C:
		}
	}
}

// ask makes an import of a tenant and cancels it: two events.
func ask(t *testing.T, store *mortal, tenant tasks.Tenant, name string) {
	t.Helper()
	spec := &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: tenant, Project: "alpha"}, Dialect: "fjcloud", Region: "jp-east-3",
		Name: name, ImageID: uuid.NewString(), TargetFormat: "raw", RequestedAt: time.Now(),
	}
	if _, _, err := store.Create(t.Context(), spec, tasks.Limits{}); err != nil {
		t.Fatal(err)
	}
	scope := tasks.Scope{Region: spec.Region, Tenant: tenant, Dialect: spec.Dialect}
	if _, err := store.Cancel(t.Context(), scope, spec.ID); err != nil {
		t.Fatal(err)
	}
}

// inOrder checks what was delivered of each tenant: the first time that each event came.
func (d *desk) inOrder(t *testing.T, tenants []tasks.Tenant, want []string) {
	t.Helper()
	got, seen := map[tasks.Tenant][]string{}, map[string]bool{}
	for _, e := range d.all() {
		if !seen[e.ID] {
			seen[e.ID] = true
			got[e.Tenant] = append(got[e.Tenant], e.Name+" "+string(e.State))
		}
	}
	for _, tenant := range tenants {
		if !slices.Equal(got[tenant], want) {
			t.Errorf("%s got %v", tenant, got[tenant])
		}
	}
	t.Logf("%d deliveries of %d events", len(d.all()), len(seen))
}

// events counts those that have come.
func (d *desk) events() int {
	seen := map[string]bool{}
	for _, e := range d.all() {
		seen[e.ID] = true
	}
	return len(seen)
}

// TestBacklogSurvivesKills: while 1,000 events go to a receiver that was down and is slow,
// whoever sends is killed, and so is Redis.
func TestBacklogSurvivesKills(t *testing.T) {
	t.Parallel()
	server := testenv.StartRedis(t)
	store := openStore(server.Client())
	d := newDesk(t)
	receiver := Receiver{ID: "portal", URL: d.url, Secret: testSecret, AllowPrivate: true}
	first := openStore(server.Client())
	stop := send(t, first, "a", &tally{}, receiver)
	until(t, "a leads", func() bool { return begun(t, store) })

	const each = 100
	tenants := []tasks.Tenant{"d1", "d2", "d3", "d4", "d5"}
	var want []string
	for i := range each {
		name := fmt.Sprint("web", i)
		want = append(want, name+" queued", name+" canceled")
		for _, tenant := range tenants {
			ask(t, store, tenant, name)
		}
	}
	send(t, openStore(server.Client()), "b", &tally{}, receiver)
	d.down.Store(false)
	until(t, "some came", func() bool { return d.events() > 200 })
	first.dead.Store(true)
	stop()
	until(t, "more came", func() bool { return d.events() > 500 })
	server.Kill()
	d.down.Store(true)
	server.Start()
	d.down.Store(false)
	until(t, "all came", func() bool { return d.events() >= 2*each*len(tenants) })
	until(t, "all are done with", func() bool { return behind(t, store) == nil })
	d.inOrder(t, tenants, want)
	if n := len(d.all()) - d.events(); n > 3*parallel {
		t.Errorf("%d events came twice", n)
	}
}

// behind returns the tenants with events for the receiver "portal"; some, while nobody leads.
func behind(t *testing.T, store *mortal) []tasks.Tenant {
	t.Helper()
	tenants, err := store.Behind(t.Context(), "portal")
	if err != nil {
		return []tasks.Tenant{"unknown"}
	}
	return tenants
}

// begun reports whether anybody has led for the receiver "portal".
func begun(t *testing.T, store *mortal) bool {
	t.Helper()
	_, err := store.Cursor(t.Context(), "portal", "d1")
	return err == nil
}

func TestHintsArriveAtOnce(t *testing.T) {
	t.Parallel()
	store := openStore(testenv.StartRedis(t).Client())
	d := newDesk(t)
	d.down.Store(false)
	send(t, store, "a", &tally{}, Receiver{ID: "portal", URL: d.url, Secret: testSecret, AllowPrivate: true})
	until(t, "a leads", func() bool { return begun(t, store) })
	ask(t, store, "d1", "web01")
	until(t, "it came", func() bool { return d.events() == 2 })
	d.inOrder(t, []tasks.Tenant{"d1"}, []string{"web01 queued", "web01 canceled"})
}

// TestTLS: with certificates of its own, an endless answer, and a redirect that leads to
// nowhere.
func TestTLS(t *testing.T) {
	t.Parallel()
	store := openStore(testenv.StartRedis(t).Client())
	in := &inbox{t: t}
	var redirects atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") })
	mux.HandleFunc("/hooks", func(w http.ResponseWriter, r *http.Request) {
		if redirects.Add(1) <= 3 {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
			return
		}
		if _, err := in.RoundTrip(r); err != nil || r.URL.RawQuery != "token=x" {
			t.Error(r.URL.RawQuery, err)
		}
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var count tally
	send(t, store, "a", &count, Receiver{ID: "portal", URL: server.URL + "/hooks?token=x", Secret: testSecret, AllowPrivate: true, CAFile: ca})
	until(t, "a leads", func() bool { return begun(t, store) })
	ask(t, store, "d1", "web01")
	until(t, "it came", func() bool { return count.count(Delivered) == 2 })
	if got := in.names(); !slices.Equal(got, []string{"web01", "web01"}) || count.count(Failed) != 3 {
		t.Errorf("got %v, %d failures", got, count.count(Failed))
	}
}

// TestPrivateReceiver is not reached, whatever its name.
func TestPrivateReceiver(t *testing.T) {
	t.Parallel()
	store := openStore(testenv.StartRedis(t).Client())
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s reached a private server", r.Method)
	}))
	t.Cleanup(server.Close)
	var count tally
	send(t, store, "a", &count, Receiver{ID: "portal", URL: server.URL, Secret: testSecret})
	until(t, "a leads", func() bool { return begun(t, store) })
	ask(t, store, "d1", "web01")
	until(t, "it failed", func() bool { return count.count(Failed) > 2 })
	if n := count.count(Delivered) + count.count(GivenUp); n != 0 {
		t.Errorf("%d are done with", n)
	}
}
