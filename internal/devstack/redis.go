package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"vmimport/internal/secret"
)

// embedded is a Redis that lives and dies with this process.
type embedded struct {
	url     secret.Text
	durable bool
	wait    func() // returns when the Redis has stopped, after ctx ended
}

// startRedis starts a redis-server with its data in dir, if one is installed,
// else an in-process Redis without durability. It lives until ctx ends.
func startRedis(ctx context.Context, dir string, log zerolog.Logger) (*embedded, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		log.Warn().Msg("redis-server is not installed: the in-process Redis is used, and imports are lost when this process ends")
		return startMiniredis(ctx)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make Redis directory: %w", err)
	}
	// The socket lies elsewhere, since its path must be short.
	run, err := os.MkdirTemp("", "vmimport")
	if err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	s := &server{bin: bin, dir: dir, sock: filepath.Join(run, "redis.sock"), log: log, ended: make(chan struct{})}
	cmd, err := s.start(ctx)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(run))
	}
	go s.keep(ctx, cmd, run)
	return &embedded{
		url:     secret.New("unix://" + s.sock + "?db=0"),
		durable: true,
		wait:    func() { <-s.ended },
	}, nil
}

// server is a redis-server child.
type server struct {
	bin, dir, sock string
	log            zerolog.Logger
	ended          chan struct{}
}

// startTime bounds how long Redis may take to load its data.
const startTime = time.Minute

// start returns when the server answers.
func (s *server) start(ctx context.Context) (*exec.Cmd, error) {
	cmd := exec.Command(s.bin, "--port", "0", "--unixsocket", s.sock, "--unixsocketperm", "700", "--dir", s.dir,
		"--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
		"--daemonize", "no", "--logfile", "redis.log")
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start redis-server: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: s.sock, MaxRetries: -1})
	defer rdb.Close()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		err := rdb.Ping(ctx).Err()
		if err == nil {
			tick.Stop()
			return cmd, nil
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return nil, fmt.Errorf("redis-server does not answer: %w", err)
		case <-tick.C:
		}
	}
}

// keep starts the server again when it dies, until ctx ends; then it stops it.
func (s *server) keep(ctx context.Context, cmd *exec.Cmd, run string) {
	defer close(s.ended)
	defer os.RemoveAll(run)
	for {
		died := make(chan error, 1)
		go func() { died <- cmd.Wait() }()
		select {
		case <-ctx.Done():
			_ = cmd.Process.Signal(os.Interrupt) // redis-server then ends in order
			<-died
			return
		case err := <-died:
			s.log.Error().Err(err).Msg("redis-server died; starting it again")
		}
		for {
			var err error
			if cmd, err = s.start(ctx); err == nil {
				break
			}
			s.log.Error().Err(err).Msg("redis-server does not start")
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

// clockStep is how often the in-process Redis is told that time passes; without
// that nothing in it would ever expire.
const clockStep = 200 * time.Millisecond

func startMiniredis(ctx context.Context) (*embedded, error) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		return nil, fmt.Errorf("start in-process Redis: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer m.Close()
		tick := time.NewTicker(clockStep)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				m.FastForward(now.Sub(last))
				last = now
			}
		}
	}()
	return &embedded{url: secret.New("redis://" + m.Addr() + "/0"), wait: func() { <-ended }}, nil
}
