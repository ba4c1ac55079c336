package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmimport/internal/app"
	"vmimport/internal/cli"
)

// vmimport returns the program (TestMain has put it on the PATH), with a
// directory for temporary files of its own.
func vmimport(t *testing.T, args ...string) (cmd *exec.Cmd, temp string) {
	t.Helper()
	cmd = exec.Command("vmimport", args...)
	return cmd, isolate(t, cmd)
}

func isolate(t *testing.T, cmd *exec.Cmd) (temp string) {
	t.Helper()
	temp = t.TempDir()
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+temp, "GORACE=atexit_sleep_ms=0")
	return temp
}

// run runs a command to its end.
func run(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), out.String(), errs.String()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out.String(), errs.String()
}

// empty fails if something is left in a directory.
func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in the directory for temporary files: %v, %v", left, err)
	}
}

// standalone is the service as a process of its own.
type standalone struct {
	t     *testing.T
	cmd   *exec.Cmd
	data  string
	temp  string
	lines chan string // of stderr, closed at its end
}

// startStandalone returns when the service says that it is up.
func startStandalone(t *testing.T, data string, args ...string) *standalone {
	t.Helper()
	cmd, temp := vmimport(t, append([]string{"standalone", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has ended
		_ = cmd.Wait()
	})
	s := &standalone{t: t, cmd: cmd, data: data, temp: temp, lines: make(chan string, 10000)}
	go s.read(stderr)
	for line := range s.lines {
		if strings.HasPrefix(line, "vmimport is up at http://127.0.0.1:") {
			return s
		}
		t.Log(line)
	}
	t.Fatal("the service ended")
	return nil
}

func (s *standalone) read(stderr io.Reader) {
	defer close(s.lines)
	for scan := bufio.NewScanner(stderr); scan.Scan(); {
		s.lines <- scan.Text()
	}
}

// client runs vmimport as somebody would who has sourced the credentials.
func (s *standalone) client(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `set -a; . "$0"; set +a; exec vmimport "$@"`, filepath.Join(s.data, "credentials.env")}, args...)...)
	isolate(s.t, cmd)
	return run(s.t, cmd)
}

// end sends a signal, and returns the exit code and what was printed meanwhile.
func (s *standalone) end(signal os.Signal) (code int, stderr string) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
	var text strings.Builder
	for line := range s.lines {
		text.WriteString(line + "\n")
	}
	_ = s.cmd.Wait() // the code says it
	return s.cmd.ProcessState.ExitCode(), text.String()
}

func TestStandalone(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "it's a directory")
	s := startStandalone(t, data)
	disk := filepath.Join(t.TempDir(), "web01.raw")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("disk"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := s.client("push", disk, "--os-type", "ubuntu"); code != 0 || !strings.Contains(stdout, "succeeded") {
		t.Errorf("push: %d %s%s", code, stdout, stderr)
	}
	second, temp := vmimport(t, "standalone", "--data", data, "--listen", "127.0.0.1:0")
	if code, _, stderr := run(t, second); code != cli.ExitError || !strings.Contains(stderr, "another vmimport runs in "+data) {
		t.Errorf("a second one on the same directory: %d %s", code, stderr)
	}
	empty(t, temp)
	credentials, err := os.ReadFile(filepath.Join(data, "credentials.env"))
	if err != nil {
		t.Fatal(err)
	}
	listen := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(string(credentials))
	third, temp := vmimport(t, "standalone", "--data", t.TempDir(), "--listen", listen)
	if code, _, stderr := run(t, third); code != cli.ExitError || !strings.Contains(stderr, "another program listens on "+listen) {
		t.Errorf("another one on the same port: %d %s", code, stderr)
	}
	empty(t, temp)
	code, log := s.end(syscall.SIGTERM)
	if code != 0 {
		t.Errorf("exit code %d after SIGTERM: %s", code, log)
	}
	for _, hint := range []string{"set -a; . '" + strings.ReplaceAll(data, "'", `'\''`) + "/credentials.env'; set +a", "vmimport push"} {
		if !strings.Contains(log, hint) {
			t.Errorf("not printed: %s\nbut: %s", hint, log)
		}
	}
	for _, secret := range regexp.MustCompile(`TOKEN=(\w+)`).FindAllStringSubmatch(string(credentials), -1) {
		if strings.Contains(log, secret[1]) {
			t.Error("a token is in the log")
		}
	}
	empty(t, s.temp)

	again := startStandalone(t, data)
	if code, stdout, stderr := again.client("list", "--long"); code != 0 || !strings.Contains(stdout, "web01") {
		t.Errorf("list after a restart: %d %s%s", code, stdout, stderr)
	}
	if code, log := again.end(os.Interrupt); code != 0 {
		t.Errorf("exit code %d after an interrupt: %s", code, log)
	}
}

// An import outlives a kill -9 of the whole service: the next one goes on with
// it from where it was.
func TestStandaloneKilled(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := startStandalone(t, data)
	f, err := os.Create(filepath.Join(data, "objects", "images", "web01.raw"))
	if err == nil {
		err = errors.Join(f.Truncate(3<<30), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	status := func(s *standalone, id string) (state string, progress, attempt float64) {
		code, stdout, stderr := s.client("status", id, "--json")
		var imp map[string]any
		if err := json.Unmarshal([]byte(stdout), &imp); code != 0 || err != nil {
			t.Fatalf("status: %d %s %v", code, stderr, err)
		}
		attempt, _ = imp["vmimport"].(map[string]any)["attempt"].(float64)
		return imp["import_status"].(string), imp["progress"].(float64), attempt
	}
	code, id, stderr := s.client("import", "--object", "web01.raw", "--os-type", "ubuntu", "--quiet")
	if id = strings.TrimSpace(id); code != 0 {
		t.Fatalf("import: %d %s", code, stderr)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for state, progress := "", 0.0; progress == 0; <-tick.C {
		if state, progress, _ = status(s, id); state == "succeeded" {
			t.Fatal("the import was too quick to be disturbed")
		}
	}
	s.end(syscall.SIGKILL)

	s = startStandalone(t, data)
	if code, stdout, stderr := s.client("watch", id); code != 0 {
		t.Errorf("watch: %d %s%s", code, stdout, stderr)
	}
	if _, _, attempt := status(s, id); attempt != 2 {
		t.Errorf("succeeded in attempt %v", attempt)
	}
	if code, log := s.end(syscall.SIGTERM); code != 0 || !strings.Contains(log, "going on from a checkpoint") {
		t.Errorf("%d %s", code, log)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "a disk.img")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("disk"), 12345), 0o600); err != nil { // no multiple of 512
		t.Fatal(err)
	}
	demo, temp := vmimport(t, "demo", "--image", disk)
	code, stdout, stderr := run(t, demo)
	image := strings.TrimSuffix(stdout, "\n")
	if info, err := os.Stat(image); code != 0 || err != nil || info.Size() != 49664 {
		t.Errorf("%d %q %s %v", code, stdout, stderr, err)
	}
	remove := regexp.MustCompile(`rm -r (\S+)\n`).FindStringSubmatch(stderr)
	if remove == nil || !strings.HasPrefix(image, remove[1]) {
		t.Fatalf("how to remove what is left is not said: %s", stderr)
	}
	if err := os.RemoveAll(remove[1]); err != nil {
		t.Fatal(err)
	}
	empty(t, temp)

	data := filepath.Join(t.TempDir(), "data")
	demo, temp = vmimport(t, "demo", "--image", disk, "--data", data, "--quiet")
	if code, stdout, stderr := run(t, demo); code != 0 || stderr != "" || !strings.HasPrefix(stdout, data) {
		t.Errorf("--quiet: %d %s %s", code, stdout, stderr)
	}
	empty(t, temp)
	demo, _ = vmimport(t, "demo", "--image", disk, "--data", data, "--json") // in the same directory
	code, stdout, stderr = run(t, demo)
	var last map[string]any
	events := strings.Split(strings.TrimSpace(stdout), "\n")
	for _, event := range events {
		last = nil
		if err := json.Unmarshal([]byte(event), &last); err != nil {
			t.Fatalf("%s: %v", event, err)
		}
	}
	if code != 0 || stderr != "" || len(events) < 4 || last["event"] != "compared" || last["source"] != disk || last["data"] != data || !strings.HasPrefix(last["image"].(string), data) {
		t.Errorf("--json: %d %s %s", code, stdout, stderr)
	}
}

// A demo that fails says why, and leaves nothing.
func TestDemoFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"disk.qcow2": "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 4096), "empty.raw": "", "data": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--image", filepath.Join(dir, "disk.qcow2")}, cli.ExitError, "The image is damaged"},
		{[]string{"--image", filepath.Join(dir, "empty.raw")}, cli.ExitError, "The object is empty"},
		{[]string{"--image", filepath.Join(dir, "missing.raw")}, cli.ExitError, "no such file"},
		{[]string{"--image", dir}, cli.ExitError, "is no regular file"},
		{[]string{"--data", filepath.Join(dir, "data")}, cli.ExitError, "not a directory"},
		{[]string{"surplus"}, cli.ExitUsage, "surplus"},
		{[]string{"--imagine"}, cli.ExitUsage, "--imagine"},
	} {
		demo, temp := vmimport(t, append([]string{"demo"}, tt.args...)...)
		code, stdout, stderr := run(t, demo)
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.says) {
			t.Errorf("%q: %d %s %s, want %d and %q", tt.args, code, stdout, stderr, tt.code, tt.says)
		}
		empty(t, temp)
	}
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	demo, temp := vmimport(t, "demo")
	stderr, err := demo.StderrPipe()
	if err == nil {
		err = demo.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "made a sample disk") {
	}
	if err := demo.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stderr)
	if err != nil {
		t.Fatal(err)
	}
	_ = demo.Wait() // the code says it
	if code := demo.ProcessState.ExitCode(); code != cli.ExitInterrupted {
		t.Errorf("exit code %d: %s", code, rest)
	}
	empty(t, temp)
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	doctor := func(config string, args ...string) (code int, stdout, stderr string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "vmimport.yaml")
		if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd, _ := vmimport(t, append([]string{"doctor", "--config", path}, args...)...)
		return run(t, cmd)
	}
	dir := t.TempDir()
	broken := "redis: {url: \"redis://:hunter2@127.0.0.1:1/0\"}\nworker: {scratch: " + dir + "}\nregions: [{id: east, objects: {directory: {path: " + dir + "}}, images: {directory: {path: " + dir + "}}}]\n"
	code, stdout, stderr := doctor(broken)
	want := "ok    configuration\nFAIL  redis: dial tcp 127.0.0.1:1: connect: connection refused\n" +
		"      Start Redis, or correct redis.url and redis.mode.\nok    scratch: N free\nok    open files: up to N\nok    region east: objects\nok    region east: images: N free\n"
	stdout = regexp.MustCompile(`\d+ .iB free`).ReplaceAllString(stdout, "N free")
	stdout = regexp.MustCompile(`up to \d+`).ReplaceAllString(stdout, "up to N")
	if code != cli.ExitError || stdout != want || stderr != "vmimport: not everything is in order\n" {
		t.Errorf("%d %s %s", code, stdout, stderr)
	}
	code, stdout, stderr = doctor(broken, "--json")
	var report struct{ Findings []app.Finding }
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != cli.ExitError || len(report.Findings) != 6 || report.Findings[1].OK || report.Findings[1].Remedy == "" {
		t.Errorf("%d %s %s %v", code, stdout, stderr, err)
	}
	for config, says := range map[string][]string{
		"lissten: x\n": {`unknown field "lissten"`},
		"log: {level: loud}\nworker: {concurrency: 0}\n": {"log.level", "worker.concurrency", "regions: there is none"},
	} {
		code, stdout, _ := doctor(config)
		for _, s := range says {
			if code != cli.ExitError || !strings.Contains(stdout, s) || strings.Count(stdout, "FAIL  configuration") != len(says) {
				t.Errorf("%q: %d %s", config, code, stdout)
			}
		}
	}
	none, _ := vmimport(t, "doctor")
	none.Env = append(none.Env, "VMIMPORT_CONFIG=")
	if code, _, stderr := run(t, none); code != cli.ExitUsage || !strings.Contains(stderr, "--config") {
		t.Errorf("%d %s", code, stderr)
	}
}
