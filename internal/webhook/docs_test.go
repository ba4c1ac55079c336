package webhook

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmimport/tasks"
)

func readDocs(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "webhooks.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// program writes the documentation's program in a language to a file.
func program(t *testing.T, language, name string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(readDocs(t))
	if found == nil {
		t.Fatalf("no program in %s", language)
	}
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(found[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestMembersAreDocumented(t *testing.T) {
	t.Parallel()
	docs := readDocs(t)
	for _, kind := range []reflect.Type{reflect.TypeFor[event](), reflect.TypeFor[change](), reflect.TypeFor[tasks.Failure]()} {
		for f := range kind.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.Anonymous && !strings.Contains(docs, "`"+name+"`") {
				t.Errorf("%s is not in the documentation", name)
			}
		}
	}
}

func TestPythonReceiver(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is not installed; `make deps` installs it")
	}
	receives(t, python, program(t, "python", "receiver.py"))
}

func TestGoReceiver(t *testing.T) {
	t.Parallel()
	file := program(t, "go", "main.go")
	binary := filepath.Join(t.TempDir(), "receiver")
	if out, err := exec.Command("go", "build", "-o", binary, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	receives(t, binary)
}

// receives runs a receiver, which must take what is signed, once, and nothing else.
func receives(t *testing.T, command ...string) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "PORT=0", "WEBHOOK_SECRET="+testSecret.Reveal())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says "killed"
	})
	lines := bufio.NewScanner(out)
	var port int
	if !lines.Scan() {
		t.Fatal("it says nothing")
	}
	if _, err := fmt.Sscanf(lines.Text(), "listening on %d", &port); err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}

	body, err := stateEvent("d1", &tasks.Change{Mark: "1-1", ID: "i1", Name: "ウェブ", State: tasks.Failed, At: time.Now()}).body()
	if err != nil {
		t.Fatal(err)
	}
	last, err := stateEvent("d1", &tasks.Change{Mark: "1-2", ID: "i2", State: tasks.Succeeded, At: time.Now()}).body()
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	for _, tc := range []struct {
		name   string
		body   []byte
		change func(h http.Header)
		want   int
	}{
		{"signed", body, func(http.Header) {}, http.StatusNoContent},
		{"again", body, func(http.Header) {}, http.StatusNoContent},
		{"two signatures", body, func(h http.Header) { h.Set(headerSignature, "v1,AAAA "+h.Get(headerSignature)) }, http.StatusNoContent},
		{"another id", body, func(h http.Header) { h.Set(headerID, "evt_1") }, http.StatusUnauthorized},
		{"no signature", body, func(h http.Header) { h.Del(headerSignature) }, http.StatusUnauthorized},
		{"no time", body, func(h http.Header) { h.Del(headerTimestamp) }, http.StatusUnauthorized},
		{"an old one", body, func(h http.Header) { Sign(h, key(t, testSecret.Reveal()), "evt_1", time.Now().Add(-time.Hour), body) }, http.StatusUnauthorized},
		{"the next", last, func(http.Header) {}, http.StatusNoContent},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/hooks", port), bytes.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		Sign(req.Header, key(t, testSecret.Reveal()), "evt_0", time.Now(), tc.body)
		tc.change(req.Header)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, resp.StatusCode, tc.want)
		}
	}
	for _, want := range []string{"state i1 failed", "state i2 succeeded"} {
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("it says %q, not %q", lines.Text(), want)
		}
	}
}
