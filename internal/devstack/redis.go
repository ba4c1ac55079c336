package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"vmimport/internal/secret"
)

// embedded is a Redis that lives and dies with this process.
type embedded struct {
	url     secret.Text
	durable bool
	stop    func() // stops it and waits for its end
}

// startRedis starts a redis-server with its data in dir, if one is installed,
// else an in-process Redis without durability. ctx is for the start alone.
func startRedis(ctx context.Context, dir string, log zerolog.Logger) (*embedded, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		log.Warn().Msg("redis-server is not installed: the in-process Redis is used, and imports are lost when this process ends")
		return startMiniredis()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make Redis directory: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	lock, err := waitForLock(ctx, dir)
	if err != nil {
		return nil, err
	}
	// The socket lies elsewhere, since its path must be short.
	run, err := os.MkdirTemp("", "vmimport")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make socket directory: %w", err), lock.Close())
	}
	life, stop := context.WithCancel(context.Background())
	s := &server{bin: bin, dir: dir, run: run, lock: lock, log: log, ended: make(chan struct{})}
	died, err := s.start(ctx, life)
	if err != nil {
		stop()
		return nil, errors.Join(err, s.cleanUp())
	}
	go s.keep(life, died)
	address := url.URL{Scheme: "unix", Path: s.sock(), RawQuery: "db=0"}
	return &embedded{
		url:     secret.New(address.String()),
		durable: true,
		stop:    func() { stop(); <-s.ended },
	}, nil
}

const (
	startTime = time.Minute // for Redis to load its data
	stopTime  = 10 * time.Second
	askEvery  = 10 * time.Millisecond
)

// waitForLock waits for the redis-server of an earlier process in dir: killed
// with its parent, it takes a moment to end, and two of them must never write
// to the same files.
func waitForLock(ctx context.Context, dir string) (*os.File, error) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		lock, err := tryLock(dir)
		if err == nil {
			return lock, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock Redis directory: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("an earlier redis-server still runs in %s: %w", dir, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// server is a redis-server child, and the next one when it dies.
type server struct {
	bin, dir, run string   // program, data directory, directory of the socket
	lock          *os.File // of dir
	log           zerolog.Logger
	ended         chan struct{}
}

func (s *server) sock() string { return filepath.Join(s.run, "redis.sock") }

func (s *server) cleanUp() error { return errors.Join(s.lock.Close(), os.RemoveAll(s.run)) }

// start returns when the server answers, or when ctx ends. It then lives until
// life ends, and its end is told on died.
func (s *server) start(ctx, life context.Context) (died <-chan error, err error) {
	cmd := exec.CommandContext(life, s.bin, "--port", "0", "--unixsocket", s.sock(), "--unixsocketperm", "700", "--dir", s.dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
		"--daemonize", "no", "--logfile", "redis.log")
	// Newer servers refuse to start under a locale that is not installed.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.ExtraFiles = []*os.File{s.lock} // which the kernel unlocks when the child has ended, too
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = stopTime
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start redis-server: %w", err)
	}
	wait := make(chan error, 1)
	go func() { wait <- cmd.Wait() }()

	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: s.sock(), MaxRetries: -1})
	defer rdb.Close()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		err := rdb.Ping(ctx).Err()
		if err == nil {
			return wait, nil
		}
		select {
		case err := <-wait:
			return nil, fmt.Errorf("redis-server does not start (%w); see %s", err, filepath.Join(s.dir, "redis.log"))
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-wait
			return nil, fmt.Errorf("redis-server does not answer (%w): %w", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// keep starts the server again when it dies, until life ends.
func (s *server) keep(life context.Context, died <-chan error) {
	defer close(s.ended)
	defer func() {
		if err := s.cleanUp(); err != nil {
			s.log.Warn().Err(err).Msg("socket of redis-server not removed")
		}
	}()
	for {
		err := <-died
		if life.Err() != nil {
			return
		}
		s.log.Error().Err(err).Msg("redis-server died; starting it again")
		for {
			if died, err = s.restart(life); err == nil {
				break
			}
			s.log.Error().Err(err).Msg("redis-server does not start")
			select {
			case <-life.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

func (s *server) restart(life context.Context) (<-chan error, error) {
	ctx, cancel := context.WithTimeout(life, startTime)
	defer cancel()
	return s.start(ctx, life)
}

// clockStep is how often the in-process Redis is told that time passes; without
// that nothing in it would ever expire.
const clockStep = 200 * time.Millisecond

func startMiniredis() (*embedded, error) {
	m := miniredis.NewMiniRedis()
	// It knows no sockets that only their owner can open.
	password := random(16)
	m.RequireAuth(password)
	if err := m.Start(); err != nil {
		return nil, fmt.Errorf("start in-process Redis: %w", err)
	}
	life, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer m.Close()
		tick := time.NewTicker(clockStep)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-life.Done():
				return
			case now := <-tick.C:
				m.FastForward(now.Sub(last))
				last = now
			}
		}
	}()
	return &embedded{url: secret.New("redis://:" + password + "@" + m.Addr() + "/0"), stop: func() { stop(); <-ended }}, nil
}
