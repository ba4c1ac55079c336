package webhook

import (
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

	"github.com/rs/zerolog"

	"vmimport/internal/secret"
	"vmimport/tasks"
)

var testSecret = secret.New("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

// delivery is a request as the receiver got it.
type delivery struct {
	event
	At time.Time
}

// inbox is a receiver. What it answers is up to answer; nil is 200.
type inbox struct {
	t      *testing.T
	answer func(n int, e event, r *http.Request) (*http.Response, error)

	mu  sync.Mutex
	got []delivery
}

// RoundTrip implements http.RoundTripper.
func (i *inbox) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		i.t.Error(err)
	}
	e := i.check(r.Header, body)
	i.mu.Lock()
	i.got = append(i.got, delivery{e, time.Now()})
	n := len(i.got)
	i.mu.Unlock()
	if i.answer != nil {
		return i.answer(n, e, r)
	}
	return status(http.StatusOK), nil
}

// check reads a delivery, which must be signed.
func (i *inbox) check(h http.Header, body []byte) event {
	key, err := Key(testSecret)
	if err != nil {
		i.t.Error(err)
	}
	if err := Verify(key, h, body, time.Now()); err != nil {
		i.t.Error(err)
	}
	e := event{change: &change{}}
	if err := json.Unmarshal(body, &e); err != nil || e.ID != h.Get("webhook-id") || h.Get("Content-Type") != "application/json" {
		i.t.Errorf("%v: %s with %v", err, body, h)
	}
	return e
}

func (i *inbox) all() []delivery {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.got)
}

// names returns what was delivered, by the names of the tasks.
func (i *inbox) names() []string {
	var names []string
	for _, d := range i.all() {
		if d.Type == typeReset {
			names = append(names, "reset")
		} else {
			names = append(names, d.Name)
		}
	}
	return names
}

func status(code int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader("whatever"))}
}

// tally is an Observer.
type tally struct {
	mu     sync.Mutex
	tried  map[Outcome]int
	oldest time.Time
}

func (t *tally) Tried(_ string, o Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tried == nil {
		t.tried = map[Outcome]int{}
	}
	t.tried[o]++
}

func (t *tally) Lagging(_ string, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.oldest = since
}

func (t *tally) count(o Outcome) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tried[o]
}

func (t *tally) lag() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.oldest.IsZero() {
		return 0
	}
	return time.Since(t.oldest)
}

// process is an API process with one receiver.
type process struct {
	*Sender
	tally tally
	log   strings.Builder // to be read after stop
	stop  func()
}

// begin starts a process that sends to an inbox.
func begin(t *testing.T, l *ledger, who string, to *inbox, change ...func(*Receiver)) *process {
	t.Helper()
	to.t = t
	r := Receiver{ID: "portal", URL: "https://portal.example.test/hooks?token=hidden", Secret: testSecret}
	for _, c := range change {
		c(&r)
	}
	p := &process{}
	var err error
	p.Sender, err = New(l, l, []Receiver{r}, Options{Who: who, Observe: &p.tally, Log: zerolog.New(zerolog.SyncWriter(&p.log))})
	if err != nil {
		t.Fatal(err)
	}
	p.couriers[0].endpoint.transport = to
	p.run(t)
	return p
}

// run starts the sender and waits until it has nothing more to do at once.
func (p *process) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if strings.Contains(p.log.String(), "hidden") {
			t.Error("the URL is in the log")
		}
	})
	t.Cleanup(p.stop)
	synctest.Wait()
}

func named(name string) tasks.Change {
	return tasks.Change{ID: tasks.ID("id-of-" + name), Kind: tasks.KindImport, Region: "jp-east-3", Project: "alpha", Dialect: "fjcloud",
		Name: name, State: tasks.Queued}
}

func want(t *testing.T, i *inbox, names ...string) {
	t.Helper()
	if got := i.names(); !slices.Equal(got, names) {
		t.Errorf("delivered %v, want %v", got, names)
	}
}

// bubble runs a test in time that passes when nothing happens.
func bubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, test)
}

// TestWhatIsToldOfNoAnswer: why it failed, and nothing of the URL.
func TestWhatIsToldOfNoAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer func(request string) string
		tls    bool
		want   string
	}{
		"none":      {func(string) string { return "" }, false, "EOF"},
		"an echo":   {func(request string) string { return request }, false, "cannot be read"},
		"a header":  {func(request string) string { return "HTTP/1.1 200 OK\r\n" + request + "\r\n" }, false, "cannot be read"},
		"no TLS":    {func(string) string { return "HTTP/1.1 400 Bad Request\r\n\r\n" }, true, "does not look like a TLS handshake"},
		"an answer": {func(string) string { return "HTTP/1.1 410 Gone\r\n\r\n" }, false, "status 410"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				b := make([]byte, 64<<10)
				n, _ := c.Read(b)
				_, _ = io.WriteString(c, tc.answer(string(b[:n])))
			}()
			r := Receiver{ID: "portal", URL: "http://" + l.Addr().String() + "/hooks?token=hidden", Secret: testSecret, AllowPrivate: true}
			if tc.tls {
				r.URL = "https" + strings.TrimPrefix(r.URL, "http")
			}
			e, err := newEndpoint(&r)
			if err != nil {
				t.Fatal(err)
			}
			err = e.deliver(t.Context(), "evt_1", []byte("{}"))
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("%v, want %s", err, tc.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Receiver{ID: "portal", URL: "https://portal.example.test/", Secret: testSecret}
	for name, change := range map[string]func(*Receiver){
		"no URL":        func(r *Receiver) { r.URL = "" },
		"no host":       func(r *Receiver) { r.URL = "https:///hooks" },
		"a path":        func(r *Receiver) { r.URL = "https:hooks" },
		"http":          func(r *Receiver) { r.URL = "http://portal.example.test/" },
		"ftp":           func(r *Receiver) { r.URL, r.AllowPrivate = "ftp://portal.example.test/", true },
		"a user":        func(r *Receiver) { r.URL = "https://u:hidden@portal.example.test/" },
		"a broken URL":  func(r *Receiver) { r.URL = "https://u:hidden@portal:port/" },
		"a fragment":    func(r *Receiver) { r.URL = "https://portal.example.test/#hidden" },
		"no secret":     func(r *Receiver) { r.Secret = secret.Text{} },
		"a short one":   func(r *Receiver) { r.Secret = secret.New("hidden") },
		"no such roots": func(r *Receiver) { r.CAFile = "missing.pem" },
	} {
		r := good
		change(&r)
		if _, err := New(nil, nil, []Receiver{r}, Options{}); err == nil || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.URL, good.AllowPrivate = "http://127.0.0.1/hooks?token=x", true
	if _, err := New(nil, nil, []Receiver{good}, Options{}); err != nil {
		t.Error(err)
	}
}
