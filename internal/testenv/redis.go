// Package testenv starts the real servers that tests run against: on free
// ports or sockets, in temporary directories, stopped when the test ends. A
// server that is missing fails the test; it never skips it.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is a real redis-server, set up as production should be (by the files in etc/redis), or
// a Sentinel.
type Redis struct {
	// Addr is host:port, or the path of a socket.
	Addr string

	t       testing.TB
	dir     string
	network string
	args    []string // of redis-server, behind the configuration
	exited  chan struct{}
	cmd     *exec.Cmd
}

// StartRedis starts a server that lives as long as the test, reachable over a socket.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	r := newRedis(t)
	r.network, r.Addr = "unix", filepath.Join(r.dir, "s")
	r.configure("server.conf", map[string]string{"port": "0", "unixsocket": r.Addr})
	r.Start()
	return r
}

// StartRedisOnPort starts a server that lives as long as the test and that replicas can reach.
func StartRedisOnPort(t testing.TB) *Redis {
	t.Helper()
	return startOnPort(t, "server.conf", func(int) map[string]string { return map[string]string{} })
}

// newRedis makes the place for a server that is not running yet.
func newRedis(t testing.TB) *Redis {
	t.Helper()
	// Socket paths are limited to 107 bytes, so not t.TempDir with its long names.
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	r := &Redis{t: t, dir: dir}
	t.Cleanup(func() {
		r.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// startOnPort starts a server on a free port. set returns what differs from the file of that
// name for this port.
func startOnPort(t testing.TB, file string, set func(port int) map[string]string, args ...string) *Redis {
	t.Helper()
	r := newRedis(t)
	r.network, r.args = "tcp", args
	var err error
	// Another process may take the port between its choice and its use.
	for range 5 {
		port := freePort(t)
		r.Addr = fmt.Sprintf("127.0.0.1:%d", port)
		settings := set(port)
		settings["port"] = fmt.Sprint(port)
		r.configure(file, settings)
		if err = r.start(); err == nil {
			return r
		}
	}
	t.Fatal(err)
	return nil
}

// freePort returns a port that nobody listens on at present.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// configure writes the server's configuration: a file of etc/redis with some settings changed.
func (r *Redis) configure(file string, set map[string]string) {
	r.t.Helper()
	set["dir"], set["loglevel"], set["logfile"] = r.dir, "notice", "redis.log"
	text, err := confOf(file)
	if err == nil {
		err = os.WriteFile(r.conf(), []byte(with(text, set)), 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *Redis) conf() string { return filepath.Join(r.dir, "redis.conf") }

// confOf returns a file of etc/redis, with those that it includes.
func confOf(file string) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(root, "etc", "redis", file))
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "include "); ok {
			if line, err = confOf(filepath.Base(strings.TrimSpace(path))); err != nil {
				return "", err
			}
		}
		all.WriteString(line)
	}
	return all.String(), nil
}

// with returns a configuration in which settings have other values. One that it does not have
// is added.
func with(text string, set map[string]string) string {
	var all strings.Builder
	for line := range strings.Lines(text) {
		changed := false
		for name := range set {
			changed = changed || strings.HasPrefix(line, name+" ")
		}
		if !changed {
			all.WriteString(line)
		}
	}
	for name, value := range set {
		fmt.Fprintf(&all, "%s %s\n", name, value)
	}
	return all.String()
}

// Start starts the server again after Kill, with the data it had.
func (r *Redis) Start() {
	r.t.Helper()
	if err := r.start(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *Redis) start() error {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		return errors.New("redis-server is not installed; `make deps` installs it")
	}
	r.cmd = exec.Command(bin, append([]string{r.conf()}, r.args...)...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	exited, cmd := make(chan struct{}), r.cmd
	r.exited = exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // says "killed"
	}()
	rdb := redis.NewClient(&redis.Options{Network: r.network, Addr: r.Addr, MaxRetries: -1})
	defer rdb.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for rdb.Ping(ctx).Err() != nil {
		select {
		case <-exited:
			return fmt.Errorf("redis-server ended:\n%s", r.log())
		case <-ctx.Done():
			return fmt.Errorf("redis-server did not come up in 30 s:\n%s", r.log())
		case <-tick.C:
		}
	}
	return nil
}

// log returns what the server has written.
func (r *Redis) log() string {
	b, err := os.ReadFile(filepath.Join(r.dir, "redis.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill ends the server at once, as a crash would.
func (r *Redis) Kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill() // fails if it has ended
	<-r.exited
	r.cmd = nil
}

// URL is the server's address in the form that the configuration takes.
func (r *Redis) URL() string {
	if r.network == "unix" {
		return fmt.Sprintf("unix://%s?db=0", r.Addr)
	}
	return fmt.Sprintf("redis://%s/0", r.Addr)
}

// Client returns a client that is closed when the test ends.
func (r *Redis) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Network: r.network, Addr: r.Addr})
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}
