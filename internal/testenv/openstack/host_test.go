package openstack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// In a process with this variable, TestMain starts servers in the directory that it
// names, some of which start others, and waits to be killed.
const bystander = "VMIMPORT_TEST_BYSTANDER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(bystander); dir != "" {
		if err := standBy(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func standBy(dir string) error {
	c, err := smallCloud(dir)
	if err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	for _, s := range []*Server{c.Keystone, c.rabbit(ports[0])} {
		if err := s.Start(context.Background()); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}

// smallCloud returns a cloud whose Keystone is a program of a few lines, under the
// same uwsgi.
func smallCloud(dir string) (*Cloud, error) {
	h, err := newHost(dir)
	if err != nil {
		return nil, err
	}
	const app = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
	err = errors.Join(os.WriteFile(filepath.Join(dir, "app.py"), []byte(app), 0o600), os.Mkdir(filepath.Join(dir, "log"), 0o700))
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	c := &Cloud{Dir: dir, host: h}
	c.Keystone = c.wsgi("small", "app.py", ports[0], "/")
	return c, nil
}

// processes returns the command lines of the processes of the cloud in dir.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range environments {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b)+"\x00", marker+"="+dir+"\x00") {
			continue // gone, or somebody else's
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func exists(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// Whoever started servers may be killed: they, their workers and the directory go
// with it.
func TestKilledWithItsServers(t *testing.T) {
	t.Parallel()
	if err := checkInstalled(slices.Concat(packages, computePackages)); err != nil {
		t.Fatal(err)
	}
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), bystander+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("said %q, %v", line, err)
	}
	if n := len(processes(t, dir)); n < 5 {
		t.Errorf("%d processes run, want uwsgi's master and its worker, and the broker with its children", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says "killed"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for exists(t, dir) || len(processes(t, dir)) > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("left: the directory (%t) and %q", exists(t, dir), processes(t, dir))
		}
	}
}

func TestServer(t *testing.T) {
	t.Parallel()
	if err := checkInstalled(packages); err != nil {
		t.Fatal(err)
	}
	dir, err := makeDir()
	if err != nil {
		t.Fatal(err)
	}
	c, err := smallCloud(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	s := c.Keystone
	for _, end := range []func() error{
		func() error { s.Kill(); return nil },
		func() error { return s.Terminate(t.Context()) },
	} {
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if left := processes(t, dir); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}

	taken := c.wsgi("taken", "app.py", s.port, "/")
	broken := c.wsgi("broken", "missing.py", s.port, "/")
	if err := broken.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "missing.py") {
		t.Errorf("a server that cannot start: %v; want the end of its log", err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := taken.Start(t.Context()); !errors.Is(err, errPortTaken) {
		t.Errorf("a server on a port that is in use: %v", err)
	}

	c.Stop()
	if left := processes(t, dir); len(left) > 0 || exists(t, dir) {
		t.Errorf("left: the directory (%t) and %q", exists(t, dir), left)
	}
}
