package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"vmimport/internal/client"
	"vmimport/tasks"
)

func TestCredentials(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "a new one")
	w := serve(t, data)
	path := filepath.Join(data, credentialsFile)
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first, c := read(), w.stack.Credentials
	want := fmt.Sprintf("VMIMPORT_ENDPOINT=%[1]s\nVMIMPORT_TOKEN=%[2]s\nVMIMPORT_PROJECT_ID=%[3]s\nVMIMPORT_REGION=jp-east-3\n"+
		"VMIMPORT_OBJECTS_URL=%[1]s/v2/AUTH_%[3]s\nVMIMPORT_CONTAINER=images\nVMIMPORT_OPERATOR_TOKEN=%[4]s\n"+
		"ALIYUN_ENDPOINT=%[1]s\nALIYUN_ACCESS_KEY_ID=%[5]s\nALIYUN_ACCESS_KEY_SECRET=%[6]s\nALIYUN_REGION=cn-hangzhou\n",
		c.Endpoint, c.Token, c.ProjectID, c.OperatorToken, c.AccessKeyID, c.AccessKeySecret)
	if first != want || !regexp.MustCompile(`^http://127\.0\.0\.1:[0-9]+$`).MatchString(c.Endpoint) {
		t.Errorf("%q, want %q", first, want)
	}
	if hex := regexp.MustCompile(`^[0-9a-f]{32,}$`); !hex.MatchString(c.Token) || !hex.MatchString(c.ProjectID) || !hex.MatchString(c.OperatorToken) {
		t.Error("something can be guessed, or means something to a shell")
	}
	for name, mode := range map[string]fs.FileMode{path: 0o600, data: fs.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != mode {
			t.Errorf("%s has the mode %v, %v", name, info.Mode(), err)
		}
	}
	sh := exec.Command("/bin/sh", "-c", `set -a; . "$1"; env`, "sh", path)
	if env, err := sh.Output(); err != nil || !strings.Contains(string(env), "\nVMIMPORT_TOKEN="+c.Token+"\n") {
		t.Errorf("sourced by a shell: %s, %v", env, err)
	}
	w.stop()

	second := serve(t, data)
	if got := strings.ReplaceAll(read(), second.stack.Credentials.Endpoint, c.Endpoint); got != first {
		t.Errorf("after a restart %q, before %q", got, first)
	}
	if a := second.do("GET", "/v1/imageimport", "", "X-Auth-Token", c.Token); a.status != 200 {
		t.Errorf("the token of before: %d %s", a.status, a.body)
	}
}

func TestEndpointOfAllAddresses(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Options{Listen: ":0", Data: t.TempDir(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.end()
	if !strings.HasPrefix(s.Credentials.Endpoint, "http://127.0.0.1:") {
		t.Errorf("endpoint %s", s.Credentials.Endpoint)
	}
}

// A stop in the middle loses nothing: running imports go on from where they
// were, waiting ones are run.
func TestRestart(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	w := serve(t, data)
	w.putSparse("big.raw", 3<<30)
	w.putSparse("small.raw", 64<<20)
	running := w.register(client.Registration{Location: "big.raw"})
	w.running(running)
	var waiting []tasks.ID
	for range 6 { // with the one that runs, more than run at a time
		waiting = append(waiting, w.register(client.Registration{Location: "small.raw"}))
	}
	w.stop()

	w = serve(t, data)
	imp := w.ended(running)
	if imp.State != tasks.Succeeded || imp.Extra.Attempt != 2 {
		t.Errorf("%+v", imp)
	}
	w.equal("big.raw", imp.ID)
	attempts, err := w.redis().LRange(t.Context(), "vmimport:{default}:attempts:"+string(running), 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	var decoded [2]tasks.Attempt
	for i := range min(2, len(attempts)) {
		if err := json.Unmarshal([]byte(attempts[i]), &decoded[i]); err != nil {
			t.Fatal(err)
		}
	}
	if len(attempts) != 2 || decoded[0].Outcome != tasks.OutcomeDrained || decoded[1].FromBytes == 0 {
		t.Errorf("attempts %s", attempts)
	}
	for _, id := range waiting {
		if imp := w.ended(id); imp.State != tasks.Succeeded {
			t.Errorf("%+v", imp)
		}
	}
	w.nothingStaged()
}

// pid asks the Stack's Redis for its process.
func (w *world) pid() int {
	w.t.Helper()
	info, err := w.redis().Info(w.t.Context(), "server").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	pid, err := strconv.Atoi(regexp.MustCompile(`process_id:(\d+)`).FindStringSubmatch(info)[1])
	if err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// An import that runs outlives the death of Redis, and goes on in the same
// attempt.
func TestRedisKilled(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	w.putSparse("web01.raw", 3<<30)
	id := w.register(client.Registration{Location: "web01.raw"})
	w.running(id)
	killed := w.pid()
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	imp := w.ended(id)
	if imp.State != tasks.Succeeded || imp.Extra.Attempt != 1 {
		t.Errorf("%+v", imp)
	}
	if w.pid() == killed || !strings.Contains(w.log.String(), "redis-server died") {
		t.Error("Redis was not killed")
	}
	if a := w.do("GET", "/readyz", ""); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestOneAtATime(t *testing.T) {
	t.Parallel()
	data, other := t.TempDir(), t.TempDir()
	w := serve(t, data)
	start := func(listen, data, want string) {
		t.Helper()
		s, err := Start(t.Context(), Options{Listen: listen, Data: data, Log: zerolog.Nop()})
		if err == nil {
			s.end()
		}
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %q", err, want)
		}
	}
	taken := w.stack.ln.Addr().String()
	start("127.0.0.1:0", data, "another vmimport runs in "+data)
	start(taken, other, "another program listens on "+taken+"; choose another address with --listen (port 0 takes a free one)")
	if a := w.do("GET", "/v1/imageimport", ""); a.status != 200 {
		t.Errorf("the first: %d %s", a.status, a.body)
	}
	serve(t, other) // nothing of the failed start stands in its way
}

// What cannot be started is let go of whole. TestMain looks for what is left.
func TestFailedStart(t *testing.T) {
	t.Parallel()
	file := func(data, name string) { // where a directory should be
		if err := os.MkdirAll(data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(data, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"objects", "images", "redis"} {
		data := filepath.Join(t.TempDir(), "data")
		file(data, name)
		s, err := Start(t.Context(), Options{Listen: "127.0.0.1:0", Data: data, Log: zerolog.Nop()})
		if err == nil {
			s.end()
			t.Errorf("started although %s is a file", name)
		}
		if err := os.Remove(filepath.Join(data, name)); err != nil {
			t.Fatal(err)
		}
		serve(t, data).stop()
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(done, Options{Listen: "127.0.0.1:0", Data: t.TempDir(), Log: zerolog.Nop()}); !errors.Is(err, context.Canceled) {
		t.Errorf("started although it was too late: %v", err)
	}
	for _, listen := range []string{"nonsense", "127.0.0.1:99999", "host.invalid:1"} {
		if _, err := Start(t.Context(), Options{Listen: listen, Data: t.TempDir(), Log: zerolog.Nop()}); err == nil || !strings.Contains(err.Error(), listen) && !strings.Contains(err.Error(), "99999") && !strings.Contains(err.Error(), "host.invalid") {
			t.Errorf("listen %s: %v", listen, err)
		}
	}
}

// A Redis that cannot read its data is told about at once, with its log.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	serve(t, data).stop()
	logs, err := filepath.Glob(filepath.Join(data, "redis", "appendonlydir", "*.manifest"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	if err := os.WriteFile(logs[0], []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Options{Listen: "127.0.0.1:0", Data: data, Log: zerolog.Nop()})
	if err == nil || !strings.Contains(err.Error(), filepath.Join(data, "redis", "redis.log")) {
		t.Errorf("%v", err)
	}
}

// What uploads left that a crash cut off is gone after the next start.
func TestCutOffUploads(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "objects", container)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".vmimport-upload-ABC", "web01.raw"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 512), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := serve(t, data)
	if got := files(t, filepath.Dir(w.file("x"))); !slices.Equal(got, []string{"", "/web01.raw"}) {
		t.Errorf("%q", got)
	}
}

// Without redis-server all works, but for the durability. It changes PATH, and
// so runs beside no other test.
func TestInProcessRedis(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	data := t.TempDir()
	w := serve(t, data)
	if w.stack.Durable || !strings.Contains(w.log.String(), "redis-server is not installed") {
		t.Errorf("durable %v, log %s", w.stack.Durable, w.log)
	}
	if a := w.do("GET", "/readyz", ""); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	said := 0
	demo := Demo{Say: func(string, ...any) { said++ }}
	shown, err := demo.Run(t.Context(), w.stack)
	if err != nil {
		t.Fatal(err)
	}
	if shown.Import.State != tasks.Succeeded || shown.Image != w.image(shown.Import.ID) || said == 0 {
		t.Errorf("%+v", shown)
	}
	if took, size := blocks(t, shown.Image), int64(sampleBytes); took > size/3 {
		t.Errorf("the image of a disk that is holes for three quarters takes %d of %d bytes", took, size)
	}
	// Canceled while it runs, as with the real one.
	w.putSparse("web01.raw", 4<<30)
	id := w.register(client.Registration{Location: "web01.raw"})
	w.running(id)
	if err := w.api.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.until(id, func(imp *client.Import) bool { return imp.State == tasks.Canceled })
	w.nothingStaged()
	// No other process of the machine gets in.
	rdb := w.redis()
	opt := *rdb.Options()
	if opt.Password == "" {
		t.Error("the in-process Redis has no password")
	}
}
