// Package service runs the service's own programs in processes of their own, as they
// are shipped.
package service

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

// Process is a running program of the service.
type Process struct {
	Name   string        // for people, unique
	Listen string        // where it said that it listens
	Exited chan struct{} // closed when it has ended

	cmd *exec.Cmd
	log string // path of what it wrote to standard error
}

// Build builds the programs into bin, without the race detector: what they take is
// measured.
func Build(bin string) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin+string(filepath.Separator), "vmimport/cmd/api", "vmimport/cmd/worker")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// startTimeout is how long a program may take until it listens.
const startTimeout = 30 * time.Second

// Start starts a program out of the directory bin and returns when it listens. Its log
// goes to dir.
func Start(bin, program, name, dir, config string) (*Process, error) {
	p := &Process{Name: name, log: filepath.Join(dir, name+".log"), Exited: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	p.cmd = exec.Command(filepath.Join(bin, program), "-config", config)
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
		defer close(p.Exited)
		keep(stderr, log, up)
		_ = p.cmd.Wait() // ProcessState has what it says
	}()
	select {
	case p.Listen = <-up:
		return p, nil
	case <-p.Exited:
	case <-time.After(startTimeout):
		p.Kill()
	}
	return nil, fmt.Errorf("%s did not come up:\n%s", name, p.Tail(20))
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

// Kill ends the process as a crash would, and returns when it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails if it has ended
	<-p.Exited
}

// Stop asks the process to end and returns its exit code, -1 if a signal ended
// it, and how long it took. It is killed after most.
func (p *Process) Stop(most time.Duration) (code int, took time.Duration) {
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	select {
	case <-p.Exited:
	case <-time.After(most):
		p.Kill()
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(began)
}

// Runs reports whether an attempt of that worker runs in this process: the
// names of workers hold their process id.
func (p *Process) Runs(worker string) bool {
	return strings.Contains(worker, fmt.Sprintf("-%d-", p.cmd.Process.Pid))
}

// Lines returns what the process has logged so far.
func (p *Process) Lines() []string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// Tail returns the last n lines of the log.
func (p *Process) Tail(n int) string {
	l := p.Lines()
	return strings.Join(l[max(0, len(l)-n):], "\n")
}

// PeakMemory returns the most memory, in bytes, that was ever resident.
func (p *Process) PeakMemory() (int64, error) {
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
