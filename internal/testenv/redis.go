// Package testenv starts the real servers that tests run against: on free
// ports or sockets, in temporary directories, stopped when the test ends. A
// server that is missing fails the test; it never skips it.
package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is a real redis-server, set up as production should be (every write
// fsynced before its answer), reachable over a socket.
type Redis struct {
	t    testing.TB
	dir  string
	sock string
	cmd  *exec.Cmd
}

// StartRedis starts a server that lives as long as the test.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	// Socket paths are limited to 107 bytes, so not t.TempDir with its long names.
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	r := &Redis{t: t, dir: dir, sock: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		r.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r.Start()
	return r
}

// Start starts the server again after Kill, with the data it had.
func (r *Redis) Start() {
	r.t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		r.t.Fatal("redis-server is not installed; `make deps` installs it")
	}
	r.cmd = exec.Command(bin, "--port", "0", "--unixsocket", r.sock, "--dir", r.dir, "--save", "",
		"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", "--loglevel", "warning", "--logfile", "redis.log")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: r.sock, MaxRetries: -1})
	defer rdb.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for rdb.Ping(ctx).Err() != nil {
		select {
		case <-ctx.Done():
			r.t.Fatal("redis-server did not come up in 30 s")
		case <-tick.C:
		}
	}
}

// Kill ends the server at once, as a crash would.
func (r *Redis) Kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // says "killed"
	r.cmd = nil
}

// URL is the server's address in the form that the configuration takes.
func (r *Redis) URL() string { return fmt.Sprintf("unix://%s?db=0", r.sock) }

// Client returns a client that is closed when the test ends.
func (r *Redis) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: r.sock})
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}
