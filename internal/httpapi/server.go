// Package httpapi is the HTTP front of the API process.
//
// It does what is the same for every wire API: request ids, one log line for
// each request, metrics, bounds on size and time, health, the operators' pages,
// and an orderly stop. What a request means is the business of the dialects,
// which are packages of their own and are chosen by the Host header, since one
// process may serve several regions.
//
// Whatever a client sends, it gets an answer with a JSON body, and no panic in
// a handler reaches another request. Tokens, query strings and bodies are never
// logged.
package httpapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/audit"
	"vmimport/internal/secret"
)

// Dialect is one public wire API. It is the only thing through which echo is
// seen outside of this package, and only by packages below it.
type Dialect interface {
	// Mount adds the dialect's routes.
	Mount(e *echo.Echo)
	// WriteError answers a request to one of these routes that ended in err:
	// an error of its own handlers, or an *echo.HTTPError of the server. A handler that
	// returns echo.ErrNotFound leaves the answer to the server.
	WriteError(c echo.Context, err error) error
}

// Streamer is a Dialect some of whose answers go on until the client, the server or the
// dialect ends them: streams of events. Each of their writes has a time limit, and the
// answer as a whole none.
type Streamer interface {
	Dialect
	// Streams reports whether the answers at a route template are streams.
	Streams(route string) bool
}

// Region is a dialect and the hosts it answers for.
type Region struct {
	ID      string
	Hosts   []string // without port; compared without regard to case
	Dialect Dialect
	Portal  Dialect // the web page, under /portal/, where "/" leads to; nil: none
}

// Check is one condition of being ready, such as a dependency that answers.
type Check struct {
	Name string // shown to everybody
	Func func(context.Context) error
}

// Options of a Server. The zero value serves health, metrics (to nobody) and
// the OpenAPI document.
type Options struct {
	// FJcloud lists the regions. The first also answers for unknown hosts.
	FJcloud []Region
	// Aliyun is served under every host, since its requests name their region.
	Aliyun Dialect
	// Objects is the object store's API, for standalone. Its requests may be of
	// any length and last as long as bytes keep coming.
	Objects Dialect
	// Monitoring is served under /monitoring/ to operators.
	Monitoring http.Handler
	// OperatorToken opens /monitoring/ and /metrics. Without one they are shut.
	OperatorToken secret.Text
	// OpenMetrics opens /metrics to everybody.
	OpenMetrics bool

	Checks   []Check
	Registry *prometheus.Registry // nil: one of its own
	Log      zerolog.Logger
	Audit    audit.Sink   // nil: who asked for what is not noted
	Tracer   trace.Tracer // nil: requests are no spans

	// TrustedProxies are those whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	MaxBodyBytes  int64         // of a request to a dialect; 0: 1 MiB
	BodyTimeout   time.Duration // for such a body to arrive; 0: 30 s
	AnswerTimeout time.Duration // for such a request to be answered; 0: 60 s
	IdleTimeout   time.Duration // between bytes of an object; 0: 60 s
	CheckTimeout  time.Duration // of each Check; 0: 2 s
	// ShutdownGrace is how long requests may go on after the stop; 0: 15 s.
	ShutdownGrace time.Duration
}

// Server is the API's HTTP server. It is an http.Handler; Serve adds the
// connection's timeouts and the orderly stop.
type Server struct {
	opts    Options
	metrics *metrics
	byHost  map[string]http.Handler
	first   http.Handler

	live       context.Context // of streams
	endStreams context.CancelFunc
}

// New returns a Server. It panics if two regions claim the same host, or if the
// registry already has a Server's metrics.
func New(opts Options) *Server {
	opts.MaxBodyBytes = cmp.Or(opts.MaxBodyBytes, 1<<20)
	opts.BodyTimeout = cmp.Or(opts.BodyTimeout, 30*time.Second)
	opts.AnswerTimeout = cmp.Or(opts.AnswerTimeout, time.Minute)
	opts.IdleTimeout = cmp.Or(opts.IdleTimeout, time.Minute)
	opts.CheckTimeout = cmp.Or(opts.CheckTimeout, 2*time.Second)
	opts.ShutdownGrace = cmp.Or(opts.ShutdownGrace, 15*time.Second)
	if opts.Registry == nil {
		opts.Registry = prometheus.NewRegistry()
	}
	s := &Server{opts: opts, metrics: newMetrics(opts.Registry), byHost: map[string]http.Handler{}}
	s.live, s.endStreams = context.WithCancel(context.Background())
	for _, region := range opts.FJcloud {
		front := s.front(region)
		if s.first == nil {
			s.first = front
		}
		for _, host := range region.Hosts {
			host = strings.ToLower(host)
			if s.byHost[host] != nil {
				panic(fmt.Sprintf("httpapi: two regions answer for the host %q", host))
			}
			s.byHost[host] = front
		}
	}
	if s.first == nil {
		s.first = s.front(Region{})
	}
	return s
}

// front is everything that is served under the hosts of one region.
func (s *Server) front(region Region) *echo.Echo {
	e := echo.New()
	e.IPExtractor = clientAddress(s.opts.TrustedProxies)
	f := &frontend{Server: s, region: region, owners: map[string]Dialect{}, streams: map[string]bool{}}
	e.Use(f.observe, f.bound, f.welcome)
	e.HTTPErrorHandler = f.writeError
	f.mountOperations(e)
	f.mount(e, region.Dialect)
	f.mount(e, region.Portal)
	f.mount(e, s.opts.Aliyun)
	f.mount(e, s.opts.Objects)
	return e
}

// frontend is the middleware's view of one region.
type frontend struct {
	*Server
	region Region
	// By route template.
	owners  map[string]Dialect
	streams map[string]bool
}

func (f *frontend) mount(e *echo.Echo, d Dialect) {
	if d == nil {
		return
	}
	// A fresh instance tells which routes are this dialect's.
	own := echo.New()
	d.Mount(own)
	streamer, _ := d.(Streamer)
	for _, route := range own.Routes() {
		f.owners[route.Path] = d
		f.streams[route.Path] = streamer != nil && streamer.Streams(route.Path)
	}
	d.Mount(e)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if front := s.byHost[strings.ToLower(strings.TrimSuffix(host, "."))]; front != nil {
		front.ServeHTTP(w, r)
		return
	}
	s.first.ServeHTTP(w, r)
}

// Timeouts and sizes of a connection. A request's own bounds are in Options,
// since they differ by route; these hold before the route is known.
const (
	headerTimeout  = 10 * time.Second  // a few round trips of a slow link
	keepAlive      = 120 * time.Second // longer than clients poll (60 s)
	maxHeaderBytes = 64 << 10          // tokens of Keystone reach a few KiB
)

// Serve answers requests on l until ctx ends. It then takes no more, ends streams, waits
// for those under way as long as Options.ShutdownGrace, cuts off the rest, and
// returns nil if there were none. Serve closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       keepAlive,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(s.opts.Log, "", 0),
	}
	early := &newcomers{conns: map[net.Conn]bool{}}
	srv.ConnState = early.note
	srv.RegisterOnShutdown(early.close)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()

	select {
	case err := <-ended:
		return fmt.Errorf("serve http: %w", err)
	case <-ctx.Done():
	}
	s.endStreams()
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), s.opts.ShutdownGrace)
	defer stop()
	err := srv.Shutdown(grace)
	if err != nil {
		err = fmt.Errorf("stop http: requests were cut off: %w", errors.Join(err, srv.Close()))
	}
	<-ended
	return err
}

// newcomers are the connections that no request has come over yet, of which browsers keep some
// in store. A server that stops answers none of these, and would yet wait for them for 5 s.
type newcomers struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
	over  bool
}

// note is for http.Server.ConnState.
func (n *newcomers) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(n.conns, c)
	case n.over:
		_ = c.Close()
	default:
		n.conns[c] = true
	}
}

func (n *newcomers) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = true
	for c := range n.conns {
		_ = c.Close()
	}
}

// clientAddress says where a request comes from: the peer of the connection,
// unless that is a trusted proxy and names another.
func clientAddress(proxies []netip.Prefix) echo.IPExtractor {
	if len(proxies) == 0 {
		return echo.ExtractIPDirect()
	}
	trust := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
	for _, p := range proxies {
		p = p.Masked()
		trust = append(trust, echo.TrustIPRange(&net.IPNet{
			IP:   p.Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}))
	}
	return echo.ExtractIPFromXFFHeader(trust...)
}
