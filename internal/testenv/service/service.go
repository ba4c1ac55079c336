package clustertest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is a running program of the service.
type process struct {
	name   string // for people, unique
	cmd    *exec.Cmd
	log    string        // path of what it wrote to standard error
	listen string        // where it said that it listens
	exited chan struct{} // closed when it has ended
}

// startTimeout is how long a program may take until it listens.
const startTimeout = 30 * time.Second

// startProcess starts a program and returns when it listens.
func startProcess(program, name, dir, config string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command(filepath.Join(binaries, program), "-config", config)
	p.cmd.Env = []string{"GOTRACEBACK=all"} // and no VMIMPORT_ variable of the developer's
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := p.cmd.StderrPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	up := make(chan string, 1)
	go func() {
		defer close(p.exited)
		keep(stderr, log, up)
		_ = p.cmd.Wait() // ProcessState has what it says
	}()
	select {
	case p.listen = <-up:
		return p, nil
	case <-p.exited:
	case <-time.After(startTimeout):
		p.kill()
	}
	return nil, fmt.Errorf("%s did not come up:\n%s", name, p.tail(20))
}

// keep copies a program's log to a file until the program ends, and sends the
// address that it listens on.
func keep(from io.Reader, to *os.File, up chan<- string) {
	defer to.Close()
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadBytes('\n')
		_, _ = to.Write(line)
		var said struct{ Message, Listen string }
		if bytes.Contains(line, []byte(" is up")) && json.Unmarshal(line, &said) == nil && said.Listen != "" {
			up <- said.Listen
		}
		if err != nil {
			return
		}
	}
}

// kill ends the process as a crash would, and returns when it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails if it has ended
	<-p.exited
}

// stop asks the process to end and returns its exit code, -1 if a signal ended
// it, and how long it took. It is killed after most.
func (p *process) stop(most time.Duration) (code int, took time.Duration) {
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	select {
	case <-p.exited:
	case <-time.After(most):
		p.kill()
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(began)
}

// runs reports whether an attempt of that worker runs in this process: the
// names of workers hold their process id.
func (p *process) runs(worker string) bool {
	return strings.Contains(worker, fmt.Sprintf("-%d-", p.cmd.Process.Pid))
}

// lines returns what the process has logged so far.
func (p *process) lines() []string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// tail returns the last n lines of the log.
func (p *process) tail(n int) string {
	l := p.lines()
	return strings.Join(l[max(0, len(l)-n):], "\n")
}

// peakMemory returns the most memory, in bytes, that was ever resident.
func (p *process) peakMemory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("read VmHWM: %w", err)
	}
	return kib << 10, nil
}
