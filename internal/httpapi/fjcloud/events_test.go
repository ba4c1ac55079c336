package fjcloud_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/auth"
	"vmimport/internal/events"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/fjcloud"
	"vmimport/tasks"
)

// pipes is a listener without a network, so that time can be simulated.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// revocable are tokens that can be taken back.
type revocable struct {
	mu   sync.Mutex
	fate map[string]error
}

func (r *revocable) set(token string, fate error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fate[token] = fate
}

func (r *revocable) Authenticate(ctx context.Context, token string) (*auth.Identity, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fate[token]; err != nil {
		return nil, err
	}
	return fakeTokens{}.Authenticate(ctx, token)
}

// live is a server of one region in simulated time.
type live struct {
	t       *testing.T
	service *fakeService
	tokens  *revocable
	hub     *events.Hub
	l       *pipes
	stop    func() error
}

func simulate(t *testing.T, opts fjcloud.Options, test func(t *testing.T, s *live)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &live{t: t, service: newFakeService(), tokens: &revocable{fate: map[string]error{}}, l: &pipes{make(chan net.Conn), make(chan struct{})}}
		s.hub = events.New(s.service.journal, events.Options{PerTenant: 3})
		defer s.hub.Close()
		opts.Events = s.hub
		d, err := fjcloud.New("gen3", s.service, s.tokens, opts)
		if err != nil {
			t.Fatal(err)
		}
		server := httpapi.New(httpapi.Options{FJcloud: []httpapi.Region{{ID: "gen3", Dialect: d}}})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(ctx, s.l) }()
		s.stop = sync.OnceValue(func() error { cancel(); return <-ended })
		test(t, s)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
}

// register has an import accepted.
func (s *live) register(owner string) tasks.ID {
	s.t.Helper()
	who := callers[owner]
	task, _, err := s.service.Register(s.t.Context(), &tasks.Spec{
		ID: tasks.ID("c0ffee00-0000-4000-8000-00000000000" + string(rune('1'+len(s.service.imports)))), Region: "gen3", Dialect: fjcloud.Name, Name: "web01",
		Owner: tasks.Owner{Tenant: tasks.Tenant(who.DomainID), Project: who.ProjectID}, Disks: []tasks.Disk{{}}, ImageID: string(rune('a' + len(s.service.imports))),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return task.ID
}

// frame is an event as it came.
type frame struct {
	event, id string
	data      map[string]any
}

// client is the other end of a stream.
type client struct {
	net.Conn
	*http.Response
	lines *bufio.Scanner
}

func (s *live) get(path, token string, header ...string) *client {
	s.t.Helper()
	near, far := net.Pipe()
	s.l.conns <- far
	text := "GET " + path + " HTTP/1.1\r\nHost: a\r\nX-Auth-Token: " + token + "\r\n"
	for i := 0; i+1 < len(header); i += 2 {
		text += header[i] + ": " + header[i+1] + "\r\n"
	}
	if _, err := io.WriteString(near, text+"\r\n"); err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(near), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &client{near, resp, bufio.NewScanner(resp.Body)}
}

func (c *client) close() { _ = c.Conn.Close() }

// next returns the next frame, of which beats are some too; nil at the end.
func (c *client) next(t *testing.T) *frame {
	t.Helper()
	var f frame
	for c.lines.Scan() {
		name, value, _ := strings.Cut(c.lines.Text(), ": ")
		switch name {
		case "event":
			f.event = value
		case "id":
			f.id = value
		case "data":
			if err := json.Unmarshal([]byte(value), &f.data); err != nil {
				t.Fatal(err)
			}
		case "retry":
			f.event = "retry " + value
		case "":
			if value == "beat" {
				f.event = "beat"
			} else {
				return &f
			}
		default:
			t.Fatalf("line %q", c.lines.Text())
		}
	}
	return nil
}

// words says what a frame is, in short.
func (f *frame) words() string {
	if f == nil {
		return "end"
	}
	state, _ := f.data["state"].(string)
	return strings.TrimSpace(f.event + " " + cmp.Or(state, f.id))
}

func (c *client) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if got := c.next(t).words(); got != w {
			t.Errorf("got %q, want %q", got, w)
		}
	}
}

func (s *live) advance(state tasks.State, percent string) {
	s.service.change(func(t *tasks.Task) { advance(s.t, t, []string{string(state), percent}) })
}

func TestStreamOfOneTask(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		id := s.register("alice")
		path := "/v1/imageimport/" + string(id) + "/events"
		c := s.get(path, "bob") // of another project, but of the same domain
		defer c.close()
		if c.StatusCode != 200 || c.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" ||
			c.Header.Get("Cache-Control") != "no-store" || c.Header.Get("X-Accel-Buffering") != "no" {
			t.Errorf("%s %v", c.Status, c.Header)
		}
		c.expect(t, "retry 2000", "ready", "state queued")
		s.advance(tasks.Processing, "1")
		c.expect(t, "state processing")
		running := clone(s.service.imports[0])
		running.DoneBytes = 123
		s.service.journal.run(running)
		f := c.next(t)
		if f.words() != "progress processing" || f.id != "" || f.data["done_bytes"] != 123.0 || f.data["stage"] != "copying" || len(f.data) != 11 {
			t.Errorf("%+v", f)
		}
		c.expect(t, "beat", "beat") // 30 s in which nothing changes
		s.service.journal.run()
		s.advance(tasks.Failed, "7")
		f = c.next(t)
		if f.words() != "state failed" || f.id != "m-3" || f.data["kind"] != "import" || f.data["progress"] != 7.0 || f.data["attempt"] != 1.0 ||
			f.data["failure"].(map[string]any)["code"] != "checksum_mismatch" {
			t.Errorf("%+v", f)
		}
		c.expect(t, "end")

		// What was told is told again to nobody who names it, and to others it is.
		again := s.get(path, "alice", "Last-Event-ID", "m-3")
		defer again.close()
		if again.StatusCode != http.StatusNoContent {
			t.Errorf("%s", again.Status)
		}
		for _, after := range []string{"", "?last_event_id=m-2"} {
			c := s.get(path+after, "alice")
			if after == "" {
				c.expect(t, "retry 2000", "ready", "state failed", "end")
			} else {
				c.expect(t, "retry 2000", "state failed", "end")
			}
			c.close()
		}
		// Tried again, it goes on from there.
		if err := s.service.Retry(t.Context(), tasks.Scope{Region: "gen3", Tenant: "contract01"}, id); err != nil {
			t.Fatal(err)
		}
		more := s.get(path, "alice", "Last-Event-ID", "m-3")
		defer more.close()
		more.expect(t, "retry 2000", "state queued")
	})
}

// A stream begins with the state that a task has, even if it changes in that moment.
func TestStreamBeginsOnce(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		id := s.register("alice")
		gets := 0
		s.service.onGet = func() {
			if gets++; gets == 2 { // the first look is whether the caller may see it
				s.service.imports[0].State = tasks.Processing
				s.service.journal.note(s.service.imports[0])
			}
		}
		c := s.get("/v1/imageimport/"+string(id)+"/events", "alice")
		defer c.close()
		c.expect(t, "retry 2000", "ready", "state processing", "beat")
	})
}

func TestStreamOfAll(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, path, token string
		opts              fjcloud.Options
		want              []string // ids of projects, after the present
	}{
		{"domain", "/v1/events", "bob", fjcloud.Options{}, []string{"alice", "bob", "alice's export"}},
		{"project", "/v1/events", "alice", fjcloud.Options{ListScope: fjcloud.ListProject}, []string{"alice", "alice's export"}},
		{"imports", "/v1/events?kind=import", "alice", fjcloud.Options{}, []string{"alice", "bob"}},
		{"exports", "/v1/events?kind=export", "alice", fjcloud.Options{}, []string{"alice's export"}},
		{"another domain", "/v1/events", "carol", fjcloud.Options{}, []string{"carol"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			simulate(t, tt.opts, func(t *testing.T, s *live) {
				c := s.get(tt.path, tt.token)
				defer c.close()
				c.expect(t, "retry 2000", "ready "+events.Origin)
				note := func(name, owner, region, dialect string, export *tasks.Export) {
					who := callers[owner]
					s.service.journal.note(&tasks.Task{State: tasks.Queued, Spec: tasks.Spec{
						ID: tasks.ID(name), Region: region, Dialect: dialect, Export: export,
						Owner: tasks.Owner{Tenant: tasks.Tenant(who.DomainID), Project: who.ProjectID},
					}})
				}
				note("elsewhere", "alice", "west", fjcloud.Name, nil)
				note("signed", "alice", "gen3", "aliyun", nil)
				note("alice", "alice", "gen3", fjcloud.Name, nil)
				note("bob", "bob", "gen3", fjcloud.Name, nil)
				note("carol", "carol", "gen3", fjcloud.Name, nil)
				note("alice's export", "alice", "gen3", fjcloud.Name, &tasks.Export{})
				for _, want := range tt.want {
					if f := c.next(t); f.data["id"] != want {
						t.Errorf("got %v, want %s", f, want)
					}
				}
				if f := c.next(t); f.event != "beat" {
					t.Errorf("%v came, too", f)
				}
			})
		})
	}
}

// Who hears of nothing for long still learns how far the stream is, so that it can be
// taken up when older changes are forgotten.
func TestBeatsMoveTheMark(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{ListScope: fjcloud.ListProject}, func(t *testing.T, s *live) {
		c := s.get("/v1/events", "bob")
		c.expect(t, "retry 2000", "ready "+events.Origin)
		s.register("alice")
		s.advance(tasks.Processing, "1")
		c.expect(t, "beat m-2", "beat")
		c.close()
		s.service.journal.forget("contract01")
		s.register("bob")
		c = s.get("/v1/events", "bob", "Last-Event-ID", "m-2")
		defer c.close()
		c.expect(t, "retry 2000", "state queued")
	})
}

func TestStreamReset(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"m-1", "m-99", "origin-1", "\xff", strings.Repeat("x", 5000), "1-1: data"} {
		simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
			id := s.register("alice")
			s.advance(tasks.Processing, "1")
			s.service.journal.forget("contract01")
			all := s.get("/v1/events", "alice", "Last-Event-ID", after)
			defer all.close()
			all.expect(t, "retry 2000", "reset m-2", "beat")
			one := s.get("/v1/imageimport/"+string(id)+"/events", "alice", "Last-Event-ID", after)
			defer one.close()
			one.expect(t, "retry 2000", "reset", "state processing", "beat")
		})
	}
}

func TestStreamIsRefused(t *testing.T) {
	t.Parallel()
	down := fault.New(fault.Unavailable, "store_unavailable", "The record store is not available.")
	for _, tt := range []struct {
		name, path, token, after string
		journal                  error
		status                   int
		code                     string
	}{
		{"no token", "/v1/events", "", "", nil, 401, "40101"},
		{"no project", "/v1/events", "dora", "", nil, 400, "40005"},
		{"bad kind", "/v1/events?kind=both", "alice", "", nil, 400, "40040"},
		{"unknown", "/v1/imageimport/c0ffee00-0000-4000-8000-00000000000f/events", "alice", "", nil, 404, "40401"},
		{"no id", "/v1/imageimport/x/events", "alice", "", nil, 404, "40401"},
		{"foreign", "/v1/imageimport/c0ffee00-0000-4000-8000-000000000001/events", "carol", "", nil, 404, "40401"},
		{"an import as an export", "/v1/imageexport/c0ffee00-0000-4000-8000-000000000001/events", "alice", "", nil, 404, "40401"},
		{"store down", "/v1/events", "alice", "", down, 503, "50301"},
		{"store down, resumed", "/v1/events", "alice", "m-1", down, 503, "50301"},
		{"store down, one task", "/v1/imageimport/c0ffee00-0000-4000-8000-000000000001/events", "alice", "", down, 503, "50301"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
				s.register("alice")
				s.service.journal.fail(tt.journal)
				c := s.get(tt.path, tt.token, "Last-Event-ID", tt.after)
				defer c.close()
				var body map[string]string
				if err := json.NewDecoder(c.Body).Decode(&body); err != nil || c.StatusCode != tt.status || body["error_code"] != tt.code {
					t.Errorf("%s %v %v", c.Status, body, err)
				}
				if s.hub.Open() != 0 {
					t.Error("a refused stream is open")
				}
			})
		})
	}
}

func TestTooManyStreams(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		open := []*client{s.get("/v1/events", "alice"), s.get("/v1/events", "bob"), s.get("/v1/events", "alice")}
		c := s.get("/v1/events", "alice")
		defer c.close()
		if c.StatusCode != http.StatusTooManyRequests || c.Header.Get("Retry-After") == "" {
			t.Errorf("%s %v", c.Status, c.Header)
		}
		other := s.get("/v1/events", "carol")
		defer other.close()
		other.expect(t, "retry 2000")
		open[0].close()
		synctest.Wait()
		again := s.get("/v1/events", "alice")
		defer again.close()
		again.expect(t, "retry 2000")
		open[1].close()
		open[2].close()
	})
}

func TestTokenComesToItsEnd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fate error
		want []string
	}{
		{"revoked", auth.ErrNoIdentity, []string{"end"}},
		// It goes on for five minutes, of which nineteen beats are the most.
		{"nobody can tell", fault.New(fault.Unavailable, "keystone_unavailable", "The identity service does not answer."),
			append(slices.Repeat([]string{"beat"}, 19), "end")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
				c := s.get("/v1/events", "alice")
				defer c.close()
				c.expect(t, "retry 2000", "ready "+events.Origin, "beat")
				s.tokens.set("alice", tt.fate)
				c.expect(t, tt.want...)
			})
		})
	}
}

func TestStopEndsStreams(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		c := s.get("/v1/events", "alice")
		defer c.close()
		c.expect(t, "retry 2000", "ready "+events.Origin)
		start := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- s.stop() }()
		c.expect(t, "end")
		if err := <-stopped; err != nil || time.Since(start) > time.Second {
			t.Errorf("stopped after %v: %v", time.Since(start), err)
		}
	})
}

// A client that does not read is cut, and costs nothing any more.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		c := s.get("/v1/events", "alice") // has read the header, and reads no more
		defer c.close()
		s.register("alice")
		time.Sleep(9 * time.Second)
		if s.hub.Open() != 1 {
			t.Error("cut too early")
		}
		time.Sleep(2 * time.Second)
		if s.hub.Open() != 0 {
			t.Error("not cut")
		}
	})
}

// A stream lasts longer than any other answer may take.
func TestLongStream(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		c := s.get("/v1/events", "alice")
		defer c.close()
		c.expect(t, "retry 2000", "ready "+events.Origin)
		for range 4 * 60 * 12 {
			c.expect(t, "beat")
		}
		s.register("alice")
		c.expect(t, "state queued")
	})
}

// Each change is told once, wherever the stream is cut.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		first := s.get("/v1/events", "alice")
		first.expect(t, "retry 2000", "ready "+events.Origin)
		first.close()
		for range 4 {
			s.register("alice")
			s.advance(tasks.Processing, "1")
			s.advance(tasks.Succeeded, "1")
		}
		const changes = 12
		whole := s.read(t, "/v1/events", events.Origin)
		for cut := 0; cut < len(whole); cut += 11 {
			got, last := marks(whole[:cut])
			rest, _ := marks(s.read(t, "/v1/events", cmp.Or(last, events.Origin)))
			if all := append(got, rest...); len(all) != changes || !slices.IsSorted(serials(all)) {
				t.Fatalf("cut at %d: %v", cut, all)
			}
		}
	})
}

// The same for the stream of one task, whose end nobody may miss.
func TestCutBeforeTheEnd(t *testing.T) {
	t.Parallel()
	simulate(t, fjcloud.Options{}, func(t *testing.T, s *live) {
		path := "/v1/imageimport/" + string(s.register("alice")) + "/events"
		s.advance(tasks.Processing, "1")
		s.advance(tasks.Failed, "1")
		for _, after := range []string{"", "m-1", "m-2", "no mark"} {
			whole := s.read(t, path, after)
			for cut := 0; cut < len(whole); cut += 5 {
				_, last := marks(whole[:cut])
				if last = cmp.Or(last, after); last == "m-3" {
					continue // the end was told
				}
				if all, end := marks(s.read(t, path, last)); end != "m-3" {
					t.Fatalf("after %q, cut at %d: %v", after, cut, all)
				}
			}
		}
	})
}

// read returns a stream up to its first beat.
func (s *live) read(t *testing.T, path, after string) []byte {
	t.Helper()
	c := s.get(path, "alice", "Last-Event-ID", after)
	defer c.close()
	var all bytes.Buffer
	for c.lines.Scan() && c.lines.Text() != ": beat" {
		all.WriteString(c.lines.Text() + "\n")
	}
	return all.Bytes()
}

// marks returns the ids of the whole frames in a part of a stream, and the last of them.
func marks(part []byte) (all []string, last string) {
	frames := strings.Split(string(part), "\n\n")
	for _, f := range frames[:len(frames)-1] {
		for line := range strings.Lines(f) {
			if id, ok := strings.CutPrefix(strings.TrimSpace(line), "id: "); ok {
				all, last = append(all, id), id
			}
		}
	}
	return all, last
}

func serials(marks []string) []int {
	var list []int
	for _, m := range marks {
		n := 0
		for _, digit := range strings.TrimPrefix(m, "m-") {
			n = n*10 + int(digit-'0')
		}
		list = append(list, n)
	}
	return list
}
