package devstack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"vmimport/internal/client"
	"vmimport/internal/secret"
	"vmimport/tasks"
)

// TestMain also sees to it that nothing is left: no goroutine, and nothing in
// the directory for temporary files.
func TestMain(m *testing.M) {
	temp, err := os.MkdirTemp("", "devstack")
	if err == nil {
		err = os.Setenv("TMPDIR", temp)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		left, err := os.ReadDir(temp)
		if err != nil || len(left) > 0 {
			fmt.Fprintln(os.Stderr, "left in the temporary directory:", left, err)
			code = max(code, 1)
		}
		_ = os.RemoveAll(temp)
		os.Exit(code)
	}))
}

// world is a Stack that is served, and a client of it.
type world struct {
	t     testing.TB
	stack *Stack
	api   *client.Client
	http  *http.Client
	log   *journal // of the service, at its most talkative
	seen  *journal // of all answers
	stop  func()   // the service, in order; may be called more than once
}

// serve starts a Stack on a directory and serves it until the test ends.
func serve(t testing.TB, data string) *world {
	t.Helper()
	w := &world{t: t, log: &journal{}, seen: &journal{}}
	var err error
	if w.stack, err = Start(t.Context(), Options{Listen: "127.0.0.1:0", Data: data, Log: zerolog.New(w.log)}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.stack.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	t.Cleanup(w.stop)
	w.http = &http.Client{
		Transport:     &http.Transport{},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(w.http.CloseIdleConnections)
	c := w.stack.Credentials
	w.api, err = client.New(client.Options{Endpoint: c.Endpoint, ObjectsURL: c.ObjectsURL, Token: secret.New(c.Token), HTTP: w.http})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// journal is a buffer that is written to and read at the same time.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// member returns a member of the body, which must be a JSON object.
func (a answer) member(t testing.TB, name string) any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	return m[name]
}

// do sends a request with the project's token, unless header names another.
func (w *world) do(method, path, body string, header ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.stack.Credentials.Endpoint+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", w.stack.Credentials.Token)
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	fmt.Fprintln(w.seen, resp.Header, string(b))
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// refused is do for a request that must be refused, in the dialect's form.
func (w *world) refused(method, path, body string, header ...string) answer {
	w.t.Helper()
	a := w.do(method, path, body, header...)
	if a.status < 400 || a.status >= 500 {
		w.t.Errorf("%s %.80q %.80q: answered with %d %s", method, path, body, a.status, a.body)
		return a
	}
	code, _ := a.member(w.t, "error_code").(string)
	message, _ := a.member(w.t, "message").(string)
	if len(code) != 5 || message == "" || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") {
		w.t.Errorf("%s %.80q: %d with a body of another form: %s", method, path, a.status, a.body)
	}
	return a
}

// location names an object of the project as a registration does.
func (w *world) location(name string) string {
	return client.Gen3.Location(w.stack.Credentials.ProjectID, client.Object{Container: container, Name: name})
}

// file returns where an object lies.
func (w *world) file(name string) string { return filepath.Join(w.stack.objects(), container, name) }

// put puts an object there, as somebody would who copies files.
func (w *world) put(name string, content []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.file(name), content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// putSparse puts an object there that is a hole but for some bytes at its start,
// in its middle and at its end.
func (w *world) putSparse(name string, size int64) {
	w.t.Helper()
	f, err := os.Create(w.file(name))
	if err != nil {
		w.t.Fatal(err)
	}
	err = f.Truncate(size)
	for i, off := range []int64{4096, size / 2, size - 512} {
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 512), off)
		}
	}
	if cerr := f.Close(); err != nil || cerr != nil {
		w.t.Fatal(err, cerr)
	}
}

// register asks for an import of an object, with defaults for what is required.
func (w *world) register(r client.Registration) tasks.ID {
	w.t.Helper()
	if !strings.HasPrefix(r.Location, "/") {
		r.Location = w.location(r.Location)
	}
	if r.Name == "" {
		r.Name = "web01"
	}
	r.OSType = "ubuntu"
	id, err := w.api.Register(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// until looks at an import until it is as it should be.
func (w *world) until(id tasks.ID, is func(*client.Import) bool) *client.Import {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		imp, err := w.api.Status(w.t.Context(), id)
		if err == nil && is(imp) {
			return imp
		}
		if err == nil && imp.State.Final() {
			w.t.Fatalf("import %s ended as %s: %s", id, imp.State, imp.ErrorMessage)
		}
		select {
		case <-tick.C:
		case <-w.t.Context().Done():
			w.t.Fatal("the test ended before the import was as expected")
		}
	}
}

// ended waits for the end of an import.
func (w *world) ended(id tasks.ID) *client.Import {
	w.t.Helper()
	return w.until(id, func(imp *client.Import) bool { return imp.State.Final() })
}

// running waits until bytes of an import have been copied and more are to come.
func (w *world) running(id tasks.ID) *client.Import {
	w.t.Helper()
	return w.until(id, func(imp *client.Import) bool { return imp.State == tasks.Processing && imp.Progress > 0 })
}

// image returns the path of the first disk of an image.
func (w *world) image(imageID string) string {
	return filepath.Join(w.stack.Images, imageID, "disk-1.raw")
}

// equal fails unless the disks of an image are those of an object.
func (w *world) equal(name, imageID string) {
	w.t.Helper()
	src, err := openSource(w.file(name))
	if err != nil {
		w.t.Fatal(err)
	}
	defer src.close()
	if err := src.equal(w.t.Context(), filepath.Join(w.stack.Images, imageID), w.t.TempDir()); err != nil {
		w.t.Error(err)
	}
}

// nothingStaged fails if there is more in the image directory than published images.
func (w *world) nothingStaged() {
	w.t.Helper()
	left, err := os.ReadDir(filepath.Join(w.stack.Images, ".staging"))
	if err != nil || len(left) > 0 {
		w.t.Errorf("left in staging: %v, %v", left, err)
	}
}

// redis returns a client of the Stack's Redis.
func (w *world) redis() *redis.Client {
	w.t.Helper()
	opt, err := redis.ParseURL(w.stack.redis.url.Reveal())
	if err != nil {
		w.t.Fatal(err)
	}
	rdb := redis.NewClient(opt)
	w.t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// blocks is what a file takes on disk, in bytes.
func blocks(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// files lists all that lies below a directory, by relative path.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		list = append(list, strings.TrimPrefix(path, dir))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
