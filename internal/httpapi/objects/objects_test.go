package objects_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"vmimport/internal/auth"
	"vmimport/internal/fault"
	"vmimport/internal/httpapi"
	"vmimport/internal/httpapi/httpapitest"
	"vmimport/internal/httpapi/objects"
	"vmimport/storage"
	"vmimport/storage/dirstore"
)

type fakeTokens struct{}

func (fakeTokens) Authenticate(_ context.Context, token string) (*auth.Identity, error) {
	switch token {
	case "alice":
		return &auth.Identity{ProjectID: "p1", DomainID: "d"}, nil
	case "bob":
		return &auth.Identity{ProjectID: "p2", DomainID: "d"}, nil
	case "dora":
		return &auth.Identity{DomainID: "d"}, nil
	case "down":
		return nil, fault.New(fault.Unavailable, "keystone_unavailable", "The identity service does not answer.")
	}
	return nil, auth.ErrNoIdentity
}

// world is the API over a real directory.
type world struct {
	http.Handler
	dir string
	doc *httpapitest.Document
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	store, err := dirstore.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		Handler: httpapi.New(httpapi.Options{Objects: objects.New(store, fakeTokens{})}),
		dir:     dir, doc: httpapitest.LoadDocument(t),
	}
}

// do sends a request as alice, unless header says otherwise, and holds it
// against the document.
func (w *world) do(t *testing.T, method, target, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("X-Auth-Token", "alice")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.ServeHTTP(rec, req)
	w.check(t, method, target, body, rec)
	return rec
}

func (w *world) check(t *testing.T, method, target, body string, rec *httptest.ResponseRecorder) {
	t.Helper()
	req := httptest.NewRequest(method, strings.Replace(target, "/v1/", "/v2/", 1), strings.NewReader(body))
	req.Header.Set("Content-Type", "application/octet-stream")
	if _, object, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/AUTH_"), "/"); ok && strings.Contains(object, "/") {
		req.URL.Path, req.URL.RawPath = "/v2/AUTH_p1/c/o", "" // to the document, a name is one segment
	}
	w.doc.Check(t, req, rec.Result())
	if rec.Code >= 400 && rec.Code != 412 && rec.Code != 416 && method != "HEAD" {
		var answer map[string]string
		if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil || answer["message"] == "" || len(answer["error_code"]) != 5 {
			t.Errorf("%s %s: %d without an error body: %q", method, target, rec.Code, rec.Body)
		}
	}
}

func sum(s string) string {
	d := md5.Sum([]byte(s))
	return hex.EncodeToString(d[:])
}

func TestObjectLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	expect := func(rec *httptest.ResponseRecorder, status int, body string) {
		t.Helper()
		if rec.Code != status || rec.Code < 300 && rec.Body.String() != body {
			t.Fatalf("%d %q, want %d %q", rec.Code, rec.Body, status, body)
		}
	}
	const c, o = "/v2/AUTH_p1/images", "/v2/AUTH_p1/images/web01.raw"
	expect(w.do(t, "PUT", o, "too early"), 404, "")
	expect(w.do(t, "PUT", c, ""), 201, "")
	expect(w.do(t, "PUT", c+"/", ""), 201, "") // again, and with a slash
	expect(w.do(t, "GET", c, ""), 204, "")
	expect(w.do(t, "GET", o, ""), 404, "")

	put := w.do(t, "PUT", o, "0123456789")
	expect(put, 201, "")
	if got := put.Header().Get("Etag"); got != sum("0123456789") {
		t.Errorf("Etag %q", got)
	}
	get := w.do(t, "GET", o, "")
	expect(get, 200, "0123456789")
	head := w.do(t, "HEAD", o, "")
	expect(head, 200, "")
	for _, rec := range []*httptest.ResponseRecorder{get, head} {
		h := rec.Header()
		if h.Get("Etag") != sum("0123456789") || h.Get("Content-Length") != "10" || h.Get("Last-Modified") == "" || h.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("headers %v", h)
		}
	}
	expect(w.do(t, "GET", o, "", "Range", "bytes=2-4"), 206, "234")
	expect(w.do(t, "GET", o, "", "Range", "bytes=-3"), 206, "789")
	expect(w.do(t, "GET", o, "", "Range", "bytes=10-"), 416, "")
	expect(w.do(t, "GET", o, "", "If-Match", `"`+sum("0123456789")+`"`, "Range", "bytes=0-0"), 206, "0")
	expect(w.do(t, "GET", o, "", "If-Match", `"`+sum("other")+`"`), 412, "")
	expect(w.do(t, "GET", o, "", "If-None-Match", `"`+sum("0123456789")+`"`), 304, "")
	req := httptest.NewRequest("GET", o, nil) // and not by do: no validator reads multipart/byteranges
	req.Header.Set("X-Auth-Token", "alice")
	req.Header.Set("Range", "bytes=0-1,8-9")
	two := httptest.NewRecorder()
	if w.ServeHTTP(two, req); two.Code != 206 || !strings.Contains(two.Body.String(), "01") || !strings.Contains(two.Body.String(), "89") {
		t.Errorf("two ranges: %d %s", two.Code, two.Body)
	}

	// What was replaced behind our back has no MD5 that we know.
	if err := os.WriteFile(filepath.Join(w.dir, "images", "web01.raw"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	get = w.do(t, "GET", o, "")
	if expect(get, 200, "new"); get.Header().Get("Etag") != "" {
		t.Errorf("Etag of another version: %v", get.Header())
	}

	expect(w.do(t, "DELETE", o, ""), 204, "")
	expect(w.do(t, "DELETE", o, ""), 404, "")
	expect(w.do(t, "DELETE", c, ""), 405, "")
	expect(w.do(t, "DELETE", c+"/", ""), 405, "")
	expect(w.do(t, "HEAD", o, ""), 404, "")
}

func TestNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(t, "PUT", "/v2/AUTH_p1/c", "")
	for path, file := range map[string]string{
		"/v2/AUTH_p1/c/plain.raw":              "plain.raw",
		"/v1/AUTH_p1/c/version-one.raw":        "version-one.raw",
		"/v2/AUTH_p1/c/a%20b.raw":              "a b.raw",
		"/v2/AUTH_p1/c/a+b.raw":                "a+b.raw",
		"/v2/AUTH_p1/c/100%25.raw":             "100%.raw",
		"/v2/AUTH_p1/c/%2561.raw":              "%61.raw", // decoded once, not twice
		"/v2/AUTH_p1/c/%E3%82%A6%E3%82%A7.raw": "ウェ.raw",
		"/v2/AUTH_p1/c/dir/inner.raw":          "dir/inner.raw",
		"/v2/AUTH_p1/c/dir%2Fescaped.raw":      "dir/escaped.raw",
		"/v2/AUTH_p1/c/q%3Fx%23.raw":           "q?x#.raw",
		"/v2/AUTH_p1/c/...":                    "...",
		"/v2/AUTH_p1/c/%2e%2e%2e":              "...",
	} {
		if rec := w.do(t, "PUT", path, path); rec.Code != 201 {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(w.dir, "c", file)); err != nil || string(got) != path {
			t.Errorf("%s: file %q holds %q, %v", path, file, got, err)
		}
		if rec := w.do(t, "GET", path, ""); rec.Body.String() != path {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
	for _, path := range []string{
		"/v2/AUTH_p1/c/..", "/v2/AUTH_p1/c/../c/x", "/v2/AUTH_p1/c/a/../../x", "/v2/AUTH_p1/c/%2e%2e/x", "/v2/AUTH_p1/c/.%2e%2fx",
		"/v2/AUTH_p1/../p2/x", "/v2/AUTH_p1/%2e%2e/x", "/v2/AUTH_p1/c%2Fd/x", "/v2/AUTH_p1/c/a%00b", "/v2/AUTH_p1/c/a%0Ab", "/v2/AUTH_p1/c/a%7F",
		"/v2/AUTH_p1/c/%FF", "/v2/AUTH_p1/c/a//b", "/v2/AUTH_p1/c//b", "/v2/AUTH_p1/c/" + strings.Repeat("x", 1025), "/v2/AUTH_p1/" + strings.Repeat("c", 257) + "/x",
		"/v2/AUTH_p1/c/dir/", "/v2/AUTH_p1/.", "/v2/AUTH_p1/%2e%2e",
	} {
		for _, method := range []string{"PUT", "GET", "HEAD", "DELETE"} {
			if rec := w.do(t, method, path, "x"); rec.Code < 400 || rec.Code >= 500 {
				t.Errorf("%s %s: %d", method, path, rec.Code)
			}
		}
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("something was made outside of the container: %v, %v", entries, err)
	}
}

func TestWhoMay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(t, "PUT", "/v2/AUTH_p1/c", "")
	w.do(t, "PUT", "/v2/AUTH_p1/c/o", "secret")
	for _, tt := range []struct {
		token, path string
		status      int
	}{
		{"", "/v2/AUTH_p1/c/o", 401},
		{"mallory", "/v2/AUTH_p1/c/o", 401},
		{"bob", "/v2/AUTH_p1/c/o", 403},
		{"bob", "/v2/AUTH_p1/c", 403},
		{"dora", "/v2/AUTH_p1/c/o", 403},
		{"dora", "/v2/AUTH_/c/o", 404},
		{"alice", "/v2/AUTH_p2/c/o", 403},
		{"alice", "/v2/AUTH_p1%2Fx/c/o", 403},
		{"down", "/v2/AUTH_p1/c/o", 503},
	} {
		for _, method := range []string{"GET", "PUT", "DELETE", "HEAD"} {
			if method == "DELETE" && strings.Count(tt.path, "/") == 3 {
				continue
			}
			rec := w.do(t, method, tt.path, "x", "X-Auth-Token", tt.token)
			if rec.Code < 400 || tt.status != 404 && rec.Code != tt.status && !(strings.Contains(tt.path, "%2F") && rec.Code == 400) {
				t.Errorf("%s %s by %q: %d", method, tt.path, tt.token, rec.Code)
			}
			if strings.Contains(rec.Body.String(), "secret") {
				t.Errorf("%s %s by %q: %s", method, tt.path, tt.token, rec.Body)
			}
		}
	}
	if rec := w.do(t, "GET", "/v2/AUTH_p1/c/o", ""); rec.Body.String() != "secret" {
		t.Errorf("the object was changed: %s", rec.Body)
	}
}

func TestUploadsThatFail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(t, "PUT", "/v2/AUTH_p1/c", "")
	w.do(t, "PUT", "/v2/AUTH_p1/c/dir/o", "x")
	for _, tt := range []struct {
		name   string
		path   string
		header []string
		status int
	}{
		{"wrong MD5", "/c/o", []string{"Etag", sum("other")}, 422},
		{"no MD5 at all", "/c/o", []string{"Etag", "abc"}, 422},
		{"right MD5", "/c/good", []string{"Etag", sum("data")}, 201},
		{"right MD5, in quotes and capitals", "/c/good", []string{"Etag", `"` + strings.ToUpper(sum("data")) + `"`}, 201},
		{"dynamic large object", "/c/o", []string{"X-Object-Manifest", "c/parts"}, 501},
		{"copy", "/c/o", []string{"X-Copy-From", "/c/dir/o"}, 501},
		{"static large object", "/c/o?multipart-manifest=put", nil, 501},
		{"no container", "/d/o", nil, 404},
		{"name of a directory", "/c/dir", nil, 409},
		{"below an object", "/c/dir/o/p", nil, 409},
	} {
		if rec := w.do(t, "PUT", "/v2/AUTH_p1"+tt.path, "data", tt.header...); rec.Code != tt.status {
			t.Errorf("%s: %d %s", tt.name, rec.Code, rec.Body)
		}
	}
	req := httptest.NewRequest("PUT", "/v2/AUTH_p1/c/o", io.MultiReader(strings.NewReader("da"), iotest.ErrReader(io.ErrUnexpectedEOF)))
	req.Header.Set("X-Auth-Token", "alice")
	req.ContentLength = 4
	rec := httptest.NewRecorder()
	if w.ServeHTTP(rec, req); rec.Code != 400 {
		t.Errorf("cut short: %d %s", rec.Code, rec.Body)
	}
	if got := w.do(t, "GET", "/v2/AUTH_p1/c", "").Body.String(); got != "dir/o\ngood\n" {
		t.Errorf("left behind: %q", got)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(t, "PUT", "/v2/AUTH_p1/c", "")
	for _, name := range []string{"b", "a/2", "a/1", "c"} {
		w.do(t, "PUT", "/v2/AUTH_p1/c/"+name, "12345")
	}
	for query, want := range map[string]string{
		"":                    "a/1\na/2\nb\nc\n",
		"?limit=2":            "a/1\na/2\n",
		"?limit=2&marker=a/2": "b\nc\n",
		"?marker=c":           "",
		"?prefix=a/":          "a/1\na/2\n",
		"?prefix=a%2F2":       "a/2\n",
		"?limit=0":            "",
	} {
		if got := w.do(t, "GET", "/v2/AUTH_p1/c"+query, "").Body.String(); got != want {
			t.Errorf("%q: %q", query, got)
		}
	}
	for _, header := range [][]string{nil, {"Accept", "application/json"}} {
		query := "?format=json"
		if header != nil {
			query = ""
		}
		var list []struct {
			Name  string
			Bytes int64
		}
		rec := w.do(t, "GET", "/v2/AUTH_p1/c"+query, "", header...)
		if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil || len(list) != 4 || list[0].Name != "a/1" || list[3].Bytes != 5 {
			t.Errorf("%v: %s", err, rec.Body)
		}
	}
	if got := w.do(t, "GET", "/v2/AUTH_p1/c?format=json&prefix=x", "").Body.String(); got != "[]\n" {
		t.Errorf("empty list: %q", got)
	}
	head := w.do(t, "HEAD", "/v2/AUTH_p1/c", "")
	if h := head.Header(); head.Code != 204 || h.Get("X-Container-Object-Count") != "4" || h.Get("X-Container-Bytes-Used") != "20" {
		t.Errorf("%d %v", head.Code, h)
	}
	for _, query := range []string{"?limit=-1", "?limit=x", "?limit=10001", "?limit=99999999999"} {
		if rec := w.do(t, "GET", "/v2/AUTH_p1/c"+query, ""); rec.Code != 412 {
			t.Errorf("%s: %d", query, rec.Code)
		}
	}
	if rec := w.do(t, "GET", "/v2/AUTH_p1/other", ""); rec.Code != 404 {
		t.Errorf("no container: %d", rec.Code)
	}
}

// tapStore tells what Put reads, as it reads it.
type tapStore struct {
	storage.Writable
	tap chan<- int
}

func (s tapStore) Put(_ context.Context, _ storage.Location, r io.Reader, _ storage.Announced) (string, error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.tap <- n
		}
		if err == io.EOF {
			return "d41d8cd98f00b204e9800998ecf8427e", nil
		}
		if err != nil {
			return "", err
		}
	}
}

func (tapStore) Stat(storage.Location) (storage.Entry, error) {
	return storage.Entry{}, errors.New("gone")
}

// The body reaches the store while it comes in, and is never held as a whole:
// the client sends each piece only after the store has the one before. It is
// also longer than any other body may be.
func TestUploadStreams(t *testing.T) {
	t.Parallel()
	tap := make(chan int)
	server := httptest.NewServer(httpapi.New(httpapi.Options{Objects: objects.New(tapStore{tap: tap}, fakeTokens{}), MaxBodyBytes: 1000}))
	defer server.Close()
	body, pipe := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", server.URL+"/v2/AUTH_p1/c/o", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", "alice")
	answered := make(chan error, 1)
	go func() {
		resp, err := server.Client().Do(req)
		if err == nil {
			err = resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				err = errors.New(resp.Status)
			}
		}
		answered <- err
	}()
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for range 100 {
		if _, err := pipe.Write(piece); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(piece); {
			got += <-tap
		}
	}
	pipe.Close()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

// failingStore gives an object whose reading fails on the way.
type failingStore struct{ storage.Writable }

type failingObject struct{}

func (failingStore) Open(context.Context, storage.Location) (storage.Object, error) {
	return failingObject{}, nil
}
func (failingStore) Stat(storage.Location) (storage.Entry, error) { return storage.Entry{}, nil }

func (failingObject) Size() int64     { return 1 << 20 }
func (failingObject) Version() string { return "v" }
func (failingObject) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)), iotest.ErrReader(storage.ErrChanged))), nil
}

func TestDownloadThatFails(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(httpapi.New(httpapi.Options{Objects: objects.New(failingStore{}, fakeTokens{})}))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/v2/AUTH_p1/c/o", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", "alice")
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d bytes came to a clean end", n)
	}
}

func TestHostilePaths(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(t, "PUT", "/v2/AUTH_p1/c", "")
	pieces := []string{"/", "//", ".", "..", "%2e", "%2F", "%00", "%", "%zz", "%25", "c", "o", "AUTH_p1", "AUTH_p2", "AUTH_", "v1", "v2", "?", "#", "\\", "%5c", ":", "*", "%E2%80%AE"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		path := "/v2/AUTH_p1/c/"
		if random.IntN(2) == 0 {
			path = "/"
		}
		for range random.IntN(8) {
			path += pieces[random.IntN(len(pieces))]
		}
		method := []string{"GET", "HEAD", "PUT", "DELETE", "POST"}[random.IntN(5)]
		req, err := http.NewRequest(method, "http://a"+path, strings.NewReader("x"))
		if err != nil {
			continue // not a URL
		}
		req.Header.Set("X-Auth-Token", "alice")
		rec := httptest.NewRecorder()
		if w.ServeHTTP(rec, req); rec.Code >= 500 {
			t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
		}
	}
	outside, err := filepath.Glob(filepath.Join(w.dir, "..", "*"))
	if err != nil || len(outside) != 1 {
		t.Errorf("made outside: %v", outside)
	}
}
