package openstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Server is one of the cloud's servers, which can be killed, stopped and started
// again with the address and the data it had.
type Server struct {
	host  *host
	name  string
	argv  []string
	env   []string
	port  int    // 0 if it listens on none
	ready string // path that answers 200 when the server is ready; "" if it is no HTTP server

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended, with all its children
}

const python = "/usr/bin/python3"

// wsgi returns an application under uwsgi.
func (c *Cloud) wsgi(name, launcher string, port int, ready string, env ...string) *Server {
	s := &Server{host: c.host, name: name, env: env, port: port, ready: ready}
	s.argv = []string{
		"/usr/bin/uwsgi", "--plugin", "python3", "--http-socket", s.address(), "--wsgi-file", c.path(launcher),
		"--need-app", "--lazy-apps", "--enable-threads", "--master", "--processes", "1", "--threads", "8",
		// SIGTERM would mean "restart", and the worker would go on without its master.
		"--die-on-term", "--no-orphans",
		// Tokens, and what the middleware adds to them, are more than the default of 4 KiB.
		"--buffer-size", "65535",
		// For how many seconds a sender may pause, as in Debian's Glance.
		"--socket-timeout", "10",
		// Otherwise it closes connections without a word, and clients that pool them see resets.
		"--add-header", "Connection: close",
	}
	return s
}

// swift returns one of Swift's servers.
func (c *Cloud) swift(kind string, port int) *Server {
	return &Server{
		host: c.host, name: kind, port: port, ready: "/healthcheck",
		argv: []string{python, c.path("swift/swift_server.py"), c.path("swift"), kind},
	}
}

func (s *Server) address() string { return net.JoinHostPort(loopback, strconv.Itoa(s.port)) }

func (s *Server) url() string { return "http://" + s.address() }

// startTimeout is how long a server may take to answer. On idle cores it is 4 s, but the
// cores are not always idle.
const startTimeout = 3 * time.Minute

var (
	errEnded = errors.New("the server ended")
	// Another process took the port between its choice and its use.
	errPortTaken = errors.New("the port is in use")
)

// Start starts the server and waits until it answers. A server that runs is left
// alone. The error quotes the end of the server's log.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		return nil
	}
	// Whoever has the port now might answer in its stead.
	l, err := net.Listen("tcp", s.address())
	if err != nil {
		return fmt.Errorf("start %s: %w: %w", s.name, errPortTaken, err)
	}
	if err := l.Close(); err != nil {
		return err
	}
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = s.env
	wait, err := s.host.start(cmd, s.name)
	if err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = wait() // says how it was stopped
	}()
	s.cmd, s.exited = cmd, exited
	if err := s.await(ctx); err != nil {
		s.kill()
		return s.host.failed(s.name, err)
	}
	return nil
}

// await polls the server until it answers. Nobody can tell from outside when one is
// ready that has no port.
func (s *Server) await(ctx context.Context) error {
	if s.port == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no answer in %s", startTimeout))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.answers(ctx) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return errEnded
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// answers reports whether the server is ready. Of an HTTP server it is not enough that
// it accepts connections: uwsgi does so while its worker fails again and again.
func (s *Server) answers(ctx context.Context) bool {
	if s.ready != "" {
		_, err := call(ctx, http.MethodGet, s.url()+s.ready, nil, nil, nil)
		return err == nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.address())
	return err == nil && conn.Close() == nil
}

// Kill ends the server and all its workers at once, as a crash would. It returns
// when they are gone.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill()
}

func (s *Server) kill() {
	if s.running() {
		_ = killGroup(s.cmd) // fails if it has ended meanwhile
		<-s.exited
	}
}

// Terminate asks the server to end, as an operator's restart does, and returns
// when it and its workers are gone. When ctx ends before that they are killed, and
// that is an error.
func (s *Server) Terminate(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return nil
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("terminate %s: %w", s.name, err)
	}
	select {
	case <-s.exited:
		return nil
	case <-ctx.Done():
		s.kill()
		return fmt.Errorf("terminate %s: %w", s.name, context.Cause(ctx))
	}
}

func (s *Server) isRunning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running()
}

func (s *Server) running() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}
