package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
)

func TestParseLocation(t *testing.T) {
	t.Parallel()
	o := client.Object{Container: "my images", Name: "a/b+%.vmdk"}
	for _, p := range []client.Profile{client.Gen3, client.Classic} {
		if project, got, ok := client.ParseLocation(p.Location("p1", o)); !ok || project != "p1" || got != o {
			t.Errorf("%s: %q %+v %v", p, project, got, ok)
		}
	}
	for _, s := range []string{"", "disk.vmdk", "/v3/AUTH_p/c/o", "v2/AUTH_p/c/o", "/v2/c/o", "/images/v2/AUTH_p/c/o"} {
		if _, _, ok := client.ParseLocation(s); ok {
			t.Errorf("%q passes for a location", s)
		}
	}
	for _, s := range []string{"/v2/AUTH_p", "/v2/AUTH_p/c", "/v2/AUTH_p/c/", "/v1/AUTH_p//o"} {
		if _, o, ok := client.ParseLocation(s); !ok || o.Check() == nil {
			t.Errorf("%q is %+v, %v", s, o, ok)
		}
	}
}

// store serves one object the way that Swift does.
type store struct {
	content []byte
	etag    string // as it is sent; may be empty
	date    string
	wrap    func(http.ResponseWriter, *http.Request) http.ResponseWriter
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Auth-Token") != clienttest.Token || r.RequestURI != "/v2/AUTH_p/my%20images/a/100%25.vmdk" {
		http.NotFound(w, r)
		return
	}
	if s.wrap != nil {
		if w = s.wrap(w, r); w == nil {
			return
		}
	}
	if s.etag != "" {
		w.Header().Set("ETag", `"`+strings.Trim(s.etag, `"`)+`"`) // as ServeContent compares it
	}
	if s.date != "" {
		w.Header().Set("Last-Modified", s.date)
	}
	http.ServeContent(bare{w, s.etag}, r, "", time.Time{}, bytes.NewReader(s.content))
}

// bare sends an ETag as it was given.
type bare struct {
	http.ResponseWriter
	etag string
}

func (w bare) WriteHeader(status int) {
	if w.etag != "" {
		w.Header().Set("ETag", w.etag)
	}
	w.ResponseWriter.WriteHeader(status)
}

var inStore = client.Object{Container: "my images", Name: "a/100%.vmdk"}

// clientOf returns a client of the store.
func clientOf(t *testing.T, s *store) *client.Client {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return newClient(t, client.Options{Endpoint: server.URL, ObjectsURL: server.URL + "/v2/AUTH_p", HTTP: server.Client()})
}

func TestOpenObject(t *testing.T) {
	t.Parallel()
	content := noise(300 << 10)
	for name, s := range map[string]*store{
		"bare ETag":     {content: content, etag: "d41d8cd98f00b204e9800998ecf8427e"},
		"quoted ETag":   {content: content, etag: `"d41d8cd98f00b204e9800998ecf8427e"`},
		"date":          {content: content, date: "Mon, 02 Jan 2006 15:04:05 GMT"},
		"no version":    {content: content},
		"nothing in it": {etag: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := clientOf(t, s).OpenObject(t.Context(), inStore)
			if err != nil {
				t.Fatal(err)
			}
			if r.Size() != int64(len(s.content)) {
				t.Fatalf("size is %d", r.Size())
			}
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
			if err != nil || !bytes.Equal(got, s.content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			p := make([]byte, 1000)
			off := max(0, r.Size()-10)
			if n, err := r.ReadAt(p, off); err != io.EOF || !bytes.Equal(p[:n], s.content[off:]) {
				t.Errorf("at the end: %d bytes, %v", n, err)
			}
			if n, err := r.ReadAt(p, r.Size()); n != 0 || err != io.EOF {
				t.Errorf("behind the end: %d bytes, %v", n, err)
			}
			if n, err := r.ReadAt(nil, 0); n != 0 || err != nil && len(s.content) > 0 {
				t.Errorf("nothing: %d bytes, %v", n, err)
			}
			if _, err := r.ReadAt(p, -1); err == nil || err == io.EOF {
				t.Errorf("before the start: %v", err)
			}
		})
	}
}

func TestObjectRefused(t *testing.T) {
	t.Parallel()
	c := clientOf(t, &store{content: []byte("x")})
	_, err := c.OpenObject(t.Context(), client.Object{Container: "c", Name: "missing"})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != http.StatusNotFound {
		t.Errorf("a missing object: %v", err)
	}
	if _, err := c.OpenObject(t.Context(), client.Object{Container: "c", Name: "a//b"}); err == nil {
		t.Error("an impossible name was looked up")
	}
	if _, err := newClient(t, client.Options{Endpoint: "http://service.test"}).OpenObject(t.Context(), inStore); err == nil {
		t.Error("there is no store")
	}
}

// header answers a GET with one more header.
func header(name, value string) func(http.ResponseWriter, *http.Request) http.ResponseWriter {
	return func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
		if r.Method == http.MethodGet {
			return late{w, name, value}
		}
		return w
	}
}

type late struct {
	http.ResponseWriter
	name, value string
}

func (w late) WriteHeader(status int) {
	w.Header().Set(w.name, w.value)
	w.ResponseWriter.WriteHeader(status)
}

// Whatever is not the part of the version that was looked up is an error at once.
func TestAnotherObject(t *testing.T) {
	t.Parallel()
	content := noise(100)
	for name, tt := range map[string]struct {
		before, after store
		want          string
	}{
		"replaced":            {store{content: content, etag: "a"}, store{content: content, etag: "b"}, "replaced"},
		"replaced, no ETag":   {store{content: content, date: "Mon, 02 Jan 2006 15:04:05 GMT"}, store{content: content, date: "Tue, 03 Jan 2006 15:04:05 GMT"}, "replaced"},
		"replaced, weak ETag": {store{content: content, etag: `W/"a"`}, store{content: content, etag: `W/"b"`}, "replaced"},
		"longer":              {store{content: content}, store{content: noise(200)}, "another part"},
		"another part":        {store{content: content}, store{content: content, wrap: header("Content-Range", "bytes 1-10/100")}, "another part"},
		"ranges ignored": {store{content: content}, store{content: content, wrap: func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			r.Header.Del("Range")
			return w
		}}, "does not serve parts"},
		"gone": {store{content: content}, store{wrap: func(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
			http.NotFound(w, r)
			return nil
		}}, "HTTP 404"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tt.before
			r, err := clientOf(t, &s).OpenObject(t.Context(), inStore)
			if err != nil {
				t.Fatal(err)
			}
			s = tt.after
			if n, err := r.ReadAt(make([]byte, 10), 0); n != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}

func TestReadAgain(t *testing.T) {
	const size = 100
	ok := func(r *http.Request) *http.Response {
		resp := response(http.StatusOK, "")
		resp.ContentLength = size
		if r.Method == http.MethodGet {
			resp = response(http.StatusPartialContent, strings.Repeat("x", 10))
			resp.Header.Set("Content-Range", "bytes 0-9/100")
		}
		return resp
	}
	busy := func(*http.Request) *http.Response {
		resp := response(http.StatusServiceUnavailable, "")
		resp.Header.Set("Retry-After", "20")
		return resp
	}
	short := func(r *http.Request) *http.Response {
		resp := ok(r)
		resp.Body = io.NopCloser(strings.NewReader("x"))
		return resp
	}
	for _, tt := range []struct {
		name    string
		answers []func(*http.Request) *http.Response // nil: the connection fails; the last one again and again
		waits   time.Duration
		fails   bool
	}{
		{"lost connections", []func(*http.Request) *http.Response{nil, ok, nil, nil, ok}, 2 * time.Second, false},
		{"a busy store", []func(*http.Request) *http.Response{ok, busy, ok}, 20 * time.Second, false},
		{"a short answer", []func(*http.Request) *http.Response{ok, short, ok}, 500 * time.Millisecond, false},
		{"a store that is away", []func(*http.Request) *http.Response{ok, nil}, 3500 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				c := offline(t, func(r *http.Request) (*http.Response, error) {
					answer := tt.answers[0]
					if len(tt.answers) > 1 {
						tt.answers = tt.answers[1:]
					}
					if answer == nil {
						return nil, errors.New("connection reset")
					}
					return answer(r), nil
				})
				r, err := c.OpenObject(t.Context(), inStore)
				if err != nil {
					t.Fatal(err)
				}
				p := make([]byte, 10)
				n, err := r.ReadAt(p, 0)
				if (err != nil) != tt.fails || !tt.fails && string(p[:n]) != strings.Repeat("x", 10) {
					t.Errorf("%q, %v", p[:n], err)
				}
				if waited := time.Since(began); waited != tt.waits {
					t.Errorf("waited %v", waited)
				}
			})
		})
	}
}

func TestReadCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := clientOf(t, &store{content: noise(100)}).OpenObject(ctx, inStore)
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	cancel(stop)
	if _, err := r.ReadAt(make([]byte, 10), 0); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
