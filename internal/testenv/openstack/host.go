package openstack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// host is where the processes of a cloud live: one directory, and one OS thread
// that has started them all.
//
// The kernel can kill a process when its parent ends, but what it waits for is
// the end of the thread that started it, and threads of Go come and go. So there
// is one that stays.
type host struct {
	dir     string
	starts  chan func()
	sweeper *exec.Cmd
	held    io.Closer // what the sweeper waits for
	once    sync.Once

	mu      sync.Mutex
	running map[*exec.Cmd]bool
	ended   sync.WaitGroup // all that were running
}

// newHost takes over dir, which is removed when the host is closed, or when this
// process ends, however it ends.
func newHost(dir string) (*host, error) {
	h := &host{dir: dir, starts: make(chan func()), running: map[*exec.Cmd]bool{}}
	// It reads until this process closes the pipe or is no more. Servers that are
	// just being killed may still write, so once may not be enough.
	const sweep = `read -r _; n=100; until rm -rf -- "$0" || [ $((n-=1)) = 0 ]; do sleep 0.1; done`
	h.sweeper = exec.Command("/bin/sh", "-c", sweep, dir)
	h.sweeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // ^C is not for it
	held, err := h.sweeper.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := h.sweeper.Start(); err != nil {
		return nil, fmt.Errorf("start the sweeper of %s: %w", dir, err)
	}
	h.held = held
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for start := range h.starts {
			start()
		}
	}()
	return h, nil
}

// close kills what still runs and removes the directory. No process may be started
// any more.
func (h *host) close() {
	h.once.Do(func() {
		close(h.starts)
		h.mu.Lock()
		for cmd := range h.running {
			_ = killGroup(cmd)
		}
		h.mu.Unlock()
		h.ended.Wait()
		_ = h.held.Close()
		_ = h.sweeper.Wait()
	})
}

// start starts cmd in a process group of its own, with its output appended to the
// log of that name. The kernel kills it when the host or this process is no more.
// The func that is returned waits until it and all its children have ended.
func (h *host) start(cmd *exec.Cmd, name string) (wait func() error, err error) {
	log, err := os.OpenFile(h.log(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	// Nothing of the caller's environment, in which another Python may come first.
	cmd.Env = slices.Concat(cmd.Env, pythonEnv, []string{"PATH=" + systemPath, "HOME=" + h.dir, "LANG=C.UTF-8", marker + "=" + h.dir})
	cmd.Dir = h.dir
	// Not the file itself: through a pipe, Wait returns only when all children of
	// the process have gone as well, with their ports.
	cmd.Stdout = struct{ io.Writer }{log}
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	h.starts <- func() { done <- cmd.Start() }
	if err := <-done; err != nil {
		_ = log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	h.ended.Add(1)
	h.setRunning(cmd, true)
	return func() error {
		defer h.ended.Done()
		err := cmd.Wait()
		h.setRunning(cmd, false)
		return errors.Join(err, log.Close())
	}, nil
}

// pythonEnv is how Python writes and loads. What it leaves out takes some programs a third
// of their time to load: setuptools in place of the library's distutils, and a resolver
// for DNS.
var pythonEnv = []string{
	"PYTHONUNBUFFERED=1", "PYTHONWARNINGS=ignore",
	"SETUPTOOLS_USE_DISTUTILS=stdlib", "EVENTLET_NO_GREENDNS=yes",
}

func (h *host) setRunning(cmd *exec.Cmd, running bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if running {
		h.running[cmd] = true
	} else {
		delete(h.running, cmd)
	}
}

// killGroup kills a process and its children. It fails if they have ended.
func killGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// marker is in the environment of every process of a cloud, with its directory.
const marker = "VMIMPORT_TEST_OPENSTACK"

const systemPath = "/usr/bin:/bin:/usr/sbin:/sbin"

// run runs a program to its end.
func (h *host) run(ctx context.Context, name string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return killGroup(cmd) }
	wait, err := h.start(cmd, name)
	if err != nil {
		return err
	}
	if err := wait(); err != nil {
		return h.failed(name, err)
	}
	return nil
}

func (h *host) log(name string) string { return filepath.Join(h.dir, "log", name+".log") }

// tail returns the last lines of a log, or "".
func (h *host) tail(name string, lines int) string {
	b, err := os.ReadFile(h.log(name))
	if err != nil {
		return ""
	}
	all := strings.SplitAfter(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}

func (h *host) failed(name string, err error) error {
	return fmt.Errorf("%s: %w; the end of its log:\n%s", name, err, h.tail(name, 40))
}
