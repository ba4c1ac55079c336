package swiftstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/storage/swiftstore"
)

// at is a location of project p1.
func at(container, name string) storage.Location {
	return storage.Location{API: "swift", Project: "p1", Container: container, Name: name}
}

// read reads as one does who knows how much is coming, and never to the end.
func read(ctx context.Context, obj storage.Object, off, n int64) ([]byte, error) {
	body, err := obj.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	p := make([]byte, n)
	_, err = io.ReadFull(body, p)
	return p, err
}

func mustOpen(t *testing.T, s *swiftstore.Store, loc storage.Location) storage.Object {
	t.Helper()
	obj, err := s.Open(t.Context(), loc)
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

// wantAll reads all of an object, and in two halves.
func wantAll(t *testing.T, obj storage.Object, want string) {
	t.Helper()
	size := int64(len(want))
	if obj.Size() != size {
		t.Fatalf("%d bytes, want %d", obj.Size(), size)
	}
	for _, r := range [][2]int64{{0, size}, {0, size / 2}, {size / 2, size - size/2}} {
		if got, err := read(t.Context(), obj, r[0], r[1]); err != nil || string(got) != want[r[0]:r[0]+r[1]] {
			t.Errorf("range %d+%d: %q, %v; want %q", r[0], r[1], got, err, want[r[0]:r[0]+r[1]])
		}
	}
}

// thirds cuts content into parts.
func thirds(content []byte) [][]byte {
	if len(content) < 3 {
		return [][]byte{content}
	}
	n := len(content) / 3
	return [][]byte{content[:n], content[n : 2*n], content[2*n:]}
}

// kinds are the ways in which an object can be stored. Each stores content under
// images/disks/web.raw, in the place of what is there.
var kinds = map[string]func(f *fake, content []byte){
	"plain": func(f *fake, content []byte) { f.put("images/disks/web.raw", content) },
	"static": func(f *fake, content []byte) {
		if len(content) == 0 {
			f.put("images/disks/web.raw", nil)
			return
		}
		var segments []any
		for i, p := range thirds(content) {
			path := fmt.Sprintf("parts/web/%d", i)
			f.put(path, p)
			segments = append(segments, f.segment(path, nil))
		}
		f.putStatic("images/disks/web.raw", segments...)
	},
	"dynamic": func(f *fake, content []byte) {
		f.removeAll("parts/")
		for i, p := range thirds(content) {
			f.put(fmt.Sprintf("parts/web disk/%d", i), p)
		}
		f.put("images/disks/web.raw", nil, "X-Object-Manifest", "parts/web%20disk/")
	},
	"versioned": func(f *fake, content []byte) {
		f.mu.Lock()
		id := fmt.Sprintf("17000%05d.12345", f.clock)
		f.mu.Unlock()
		f.put("images/disks/web.raw@"+id, content)
		f.put("images/disks/web.raw", nil, "X-Symlink-Target", "images/disks/web.raw?version-id="+id)
	},
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, put := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storagetest.Run(t, func(t *testing.T, content []byte) storagetest.Subject {
				f := newFake(t)
				f.pageLimit = 2
				put(f, content)
				sub := storagetest.Subject{
					Store:    f.store(),
					Location: at("images", "disks/web.raw"),
					Replace:  func(content []byte) { put(f, content) },
					// The parts stay.
					Remove: func() { f.remove("images/disks/web.raw") },
					Put: func(loc storage.Location, content []byte) error {
						if len(loc.Name) > storage.MaxNameBytes {
							return errors.New("name too long")
						}
						f.putIn("AUTH_"+loc.Project, loc.Container+"/"+loc.Name, content)
						return nil
					},
					Stall: func() {
						f.setTamper(func(r *http.Request, a *answer) {
							if r.Method == http.MethodGet {
								a.silence = make(chan struct{})
							}
						})
					},
				}
				switch name {
				case "static":
					// Only the parts change.
					sub.Overwrite = func(content []byte) {
						for i, p := range thirds(content) {
							f.put(fmt.Sprintf("parts/web/%d", i), p)
						}
					}
				case "dynamic":
					sub.Overwrite = func(content []byte) {
						for i, p := range thirds(content) {
							f.put(fmt.Sprintf("parts/web disk/%d", i), p)
						}
					}
				}
				return sub
			})
		})
	}
}

// Every name is encoded once, and asked for as it is.
func TestRequestURI(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"plain-_.~1":      "plain-_.~1",
		"a b+c%20d%2Fe":   "a%20b%2Bc%2520d%252Fe",
		"a?b#c&d=e;f":     "a%3Fb%23c%26d%3De%3Bf",
		"/lead//two/end/": "/lead//two/end/",
		"日本@:$!'()*,":     "%E6%97%A5%E6%9C%AC%40%3A%24%21%27%28%29%2A%2C",
		"\\[]{}|^`\"<>":   "%5C%5B%5D%7B%7D%7C%5E%60%22%3C%3E",
	} {
		f := newFake(t)
		f.put("im ages%/"+name, []byte("hello"))
		obj := mustOpen(t, f.store(), at("im ages%", name))
		wantAll(t, obj, "hello")
		for _, r := range f.seen() {
			if want := "/v1/AUTH_p1/im%20ages%25/" + want + "?multipart-manifest=get&symlink=get"; r.RequestURI != want {
				t.Errorf("%q: asked for %s\nwant %s", name, r.RequestURI, want)
			}
		}
	}
}

// What is asked of Swift for a plain object: one look, and one request for a range.
func TestRequestHeader(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("images/disk", []byte("hello"), "Content-Encoding", "gzip", "X-Delete-At", "9999999999")
	obj := mustOpen(t, f.store(), at("images", "disk"))
	if got, err := read(t.Context(), obj, 1, 3); err != nil || string(got) != "ell" {
		t.Errorf("%q, %v", got, err)
	}
	seen := f.seen()
	if len(seen) != 2 || seen[0].Method != http.MethodHead || seen[0].Header.Get("X-Newest") != "true" {
		t.Fatalf("%d requests, the first %+v", len(seen), seen[0])
	}
	h := seen[1].Header
	if h.Get("Range") != "bytes=1-3" || h.Get("If-Match") != `"5d41402abc4b2a76b9719d911017c592"` || h.Get("X-Newest") != "" || h.Get("Accept-Encoding") != "" {
		t.Errorf("%v", h)
	}
}

// A project reads its own account and no other, by either API.
func TestProjects(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.putIn("AUTH_p1", "images/disk", []byte("of p1"))
	f.putIn("AUTH_p2", "images/disk", []byte("of p2"))
	f.putIn("AUTH_p2", "own/disk", []byte("of p2"))
	for _, accountURL := range []string{"", f.url + "/v1/AUTH_{project}", f.url + "/v1/AUTH_{project}/"} {
		s := f.storeAt(accountURL)
		for _, api := range []string{"swift", "s3"} {
			for _, project := range []string{"p1", "p2"} {
				loc := storage.Location{API: api, Project: project, Container: "images", Name: "disk"}
				wantAll(t, mustOpen(t, s, loc), "of "+project)
			}
			for _, loc := range []storage.Location{
				{API: api, Project: "p1", Container: "own", Name: "disk"},
				{API: api, Project: "p1/../AUTH_p2", Container: "own", Name: "disk"},
				{API: api, Project: "p1%2F..%2FAUTH_p2", Container: "own", Name: "disk"},
				{API: api, Project: "p2/own", Container: "disk", Name: "disk"},
				{API: api, Project: "p2?", Container: "own", Name: "disk"},
				{API: api, Project: "", Container: "own", Name: "disk"},
				{API: api, Project: "p2 ", Container: "own", Name: "disk"},
				{API: api, Project: "p1", Container: "..%2FAUTH_p2%2Fown", Name: "disk"},
			} {
				if _, err := s.Open(t.Context(), loc); !errors.Is(err, storage.ErrNoObject) {
					t.Errorf("%+v: %v", loc, err)
				}
			}
		}
		for _, r := range f.seen() {
			if strings.Contains(r.RequestURI, "AUTH_p2/own") {
				t.Errorf("asked for %s", r.RequestURI)
			}
		}
	}
}

// Whatever answers, it is either the bytes that were pinned or an error of the right
// kind, and one request.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	status := func(code int) func(*http.Request, *answer) {
		return func(_ *http.Request, a *answer) { a.status, a.body, a.header = code, nil, http.Header{} }
	}
	header := func(name, value string) func(*http.Request, *answer) {
		return func(_ *http.Request, a *answer) {
			if a.header.Set(name, value); value == "" {
				a.header.Del(name)
			}
		}
	}
	for name, test := range map[string]struct {
		answer func(*http.Request, *answer)
		want   error
		cause  error
	}{
		"cut off":            {func(_ *http.Request, a *answer) { a.body = a.body[:2] }, storage.ErrUnavailable, io.ErrUnexpectedEOF},
		"cut off before all": {func(_ *http.Request, a *answer) { a.body = nil }, storage.ErrUnavailable, io.ErrUnexpectedEOF},
		"short, and ended well": {func(_ *http.Request, a *answer) { a.body = a.body[:2]; a.header.Del("Content-Length") },
			storage.ErrUnavailable, io.ErrUnexpectedEOF},
		"short, and said so": {func(_ *http.Request, a *answer) { a.body = a.body[:2]; a.header.Set("Content-Length", "2") },
			storage.ErrUnavailable, nil},
		"long": {func(_ *http.Request, a *answer) { a.body = append(a.body, '!'); a.header.Del("Content-Length") },
			storage.ErrUnavailable, nil},
		"long, and said so": {func(_ *http.Request, a *answer) { a.body = append(a.body, '!'); a.header.Set("Content-Length", "5") },
			storage.ErrUnavailable, nil},
		"whole object": {func(_ *http.Request, a *answer) {
			a.status, a.body = 200, []byte("0123456789")
			a.header.Del("Content-Length")
		},
			storage.ErrUnavailable, nil},
		"other range":       {header("Content-Range", "bytes 4-7/10"), storage.ErrUnavailable, nil},
		"other size":        {header("Content-Range", "bytes 3-6/11"), storage.ErrUnavailable, nil},
		"unknown size":      {header("Content-Range", "bytes 3-6/*"), storage.ErrUnavailable, nil},
		"no range":          {header("Content-Range", ""), storage.ErrUnavailable, nil},
		"other ETag":        {header("ETag", "other"), storage.ErrChanged, nil},
		"no ETag":           {header("ETag", ""), storage.ErrUnavailable, nil},
		"odd ETag":          {header("ETag", `a"b`), storage.ErrUnavailable, nil},
		"stored later":      {header("X-Timestamp", "1800000000.00000"), storage.ErrChanged, nil},
		"stored before":     {header("X-Timestamp", "1600000000.00000"), storage.ErrUnavailable, nil},
		"from elsewhere":    {header("Content-Location", "/v1/AUTH_p2/images/disk"), storage.ErrChanged, nil},
		"a manifest":        {header("X-Static-Large-Object", "True"), storage.ErrChanged, nil},
		"another manifest":  {header("X-Object-Manifest", "a/b"), storage.ErrChanged, nil},
		"a link":            {header("X-Symlink-Target", "a/b"), storage.ErrChanged, nil},
		"not modified":      {status(304), storage.ErrUnavailable, nil},
		"bad request":       {status(400), storage.ErrUnavailable, nil},
		"no right":          {status(403), storage.ErrUnavailable, nil},
		"conflict":          {status(409), storage.ErrUnavailable, nil},
		"too many requests": {status(429), storage.ErrUnavailable, nil},
		"server error":      {status(500), storage.ErrUnavailable, nil},
		"slow down":         {status(503), storage.ErrUnavailable, nil},
		// Somebody's replica: the one asked next has what was pinned.
		"changed, it seems": {status(412), storage.ErrUnavailable, nil},
		"short, it seems":   {status(416), storage.ErrUnavailable, nil},
		"gone, it seems":    {status(404), storage.ErrUnavailable, nil},
		"page, not object": {func(_ *http.Request, a *answer) { a.status, a.body, a.header = 200, []byte("<html>"), http.Header{} },
			storage.ErrUnavailable, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("images/disk", []byte("0123456789"))
			obj := mustOpen(t, f.store(), at("images", "disk"))
			f.setTamper(func(r *http.Request, a *answer) {
				if r.Method == http.MethodGet {
					test.answer(r, a)
				}
			})
			f.seen()
			got, err := read(t.Context(), obj, 3, 4)
			if !errors.Is(err, test.want) || test.cause != nil && !errors.Is(err, test.cause) {
				t.Errorf("%q, %v; want %v", got, err, test.want)
			}
			if e := fault.Of(err); name == "no right" && !strings.Contains(e.Remedy, "ResellerAdmin") {
				t.Errorf("the remedy is %q", e.Remedy)
			}
			gets := slices.DeleteFunc(f.seen(), func(r *http.Request) bool { return r.Method == http.MethodHead })
			if len(gets) != 1 {
				t.Errorf("%d requests for one range", len(gets))
			}
			f.setTamper(nil)
			if got, err := read(t.Context(), obj, 3, 4); err != nil || string(got) != "3456" {
				t.Errorf("afterwards: %q, %v", got, err)
			}
		})
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	t.Cleanup(elsewhere.Close)
	f := newFake(t)
	f.put("images/disk", []byte("hello"))
	obj := mustOpen(t, f.store(), at("images", "disk"))
	f.setTamper(func(_ *http.Request, a *answer) {
		a.status, a.body, a.header = http.StatusTemporaryRedirect, nil, http.Header{"Location": {elsewhere.URL}}
	})
	if _, err := read(t.Context(), obj, 0, 1); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if _, err := f.store().Open(t.Context(), at("images", "disk")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	header := http.Header{"Etag": {"x"}, "X-Timestamp": {"1.0"}, "Content-Length": {"5"}}
	without := func(name string) http.Header {
		h := header.Clone()
		h.Del(name)
		return h
	}
	for name, test := range map[string]struct {
		status int
		header http.Header
		want   error
	}{
		"missing":        {404, nil, storage.ErrNoObject},
		"account gone":   {410, nil, storage.ErrNoObject},
		"name too long":  {400, nil, storage.ErrNoObject},
		"name refused":   {412, nil, storage.ErrNoObject},
		"no right":       {403, nil, storage.ErrUnavailable},
		"token refused":  {401, nil, storage.ErrUnavailable},
		"redirect":       {301, http.Header{"Location": {"http://127.0.0.1:1/"}}, storage.ErrUnavailable},
		"server error":   {500, nil, storage.ErrUnavailable},
		"slow down":      {429, nil, storage.ErrUnavailable},
		"no ETag":        {200, without("ETag"), storage.ErrUnavailable},
		"no time":        {200, without("X-Timestamp"), storage.ErrUnavailable},
		"no length":      {200, without("Content-Length"), storage.ErrUnavailable},
		"from elsewhere": {200, http.Header{"Etag": {"x"}, "X-Timestamp": {"1.0"}, "Content-Length": {"5"}, "Content-Location": {"/v1/AUTH_p2/a/b"}}, storage.ErrNoObject},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.put("images/disk", []byte("hello"))
			f.setTamper(func(_ *http.Request, a *answer) { a.status, a.body, a.header = test.status, nil, test.header })
			_, err := f.store().Open(t.Context(), at("images", "disk"))
			if !errors.Is(err, test.want) {
				t.Fatalf("%v; want %v", err, test.want)
			}
			if strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "token1") {
				t.Errorf("it tells a secret: %v", err)
			}
		})
	}
}

// A token that ends early is replaced once, within one range.
func TestTokenRenewed(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("images/disk", []byte("hello"))
	obj := mustOpen(t, f.store(), at("images", "disk"))
	f.revoke()
	wantAll(t, obj, "hello")
	if f.tokens != 2 {
		t.Errorf("%d tokens", f.tokens)
	}
}

// While Swift is silent, an end of the context is heeded.
func TestCanceledWhileWaiting(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("images/disk", []byte("hello"))
	s := f.store()
	obj := mustOpen(t, s, at("images", "disk"))
	left := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	f.setTamper(func(r *http.Request, _ *answer) {
		cancel(left)
		<-r.Context().Done()
	})
	if _, err := read(ctx, obj, 0, 5); !errors.Is(err, left) {
		t.Errorf("%v", err)
	}
	ctx, cancelOpen := context.WithCancelCause(t.Context())
	cancel = cancelOpen
	if _, err := s.Open(ctx, at("images", "disk")); !errors.Is(err, left) {
		t.Errorf("%v", err)
	}
}

func TestRangeOutside(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("images/disk", []byte("hello"))
	obj := mustOpen(t, f.store(), at("images", "disk"))
	for _, r := range [][2]int64{{0, 6}, {5, 1}, {-1, 2}, {0, 0}, {1, 1<<63 - 1}} {
		if body, err := obj.ReadRange(t.Context(), r[0], r[1]); err == nil {
			_ = body.Close()
			t.Errorf("range %v was read", r)
		}
	}
	body, err := obj.ReadRange(t.Context(), 0, 5)
	if err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	if n, err := body.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d after Close", n)
	}
}

// Between two parts, too, a body that is closed asks for nothing more.
func TestClosedBetweenParts(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.put("c/a", []byte("0123"))
	f.putStatic("images/disk", f.segment("c/a", nil), f.segment("c/a", nil))
	body, err := mustOpen(t, f.store(), at("images", "disk")).ReadRange(t.Context(), 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	f.seen()
	if n, err := body.Read(make([]byte, 1)); err == nil || len(f.seen()) > 0 {
		t.Errorf("after Close: %d bytes, %v, or a request", n, err)
	}
}

// Another upload of the same bytes may be another version; other metadata is one.
func TestVersionTellsTimes(t *testing.T) {
	t.Parallel()
	for name, put := range kinds {
		f := newFake(t)
		put(f, []byte("hello"))
		loc := at("images", "disks/web.raw")
		before := mustOpen(t, f.store(), loc).Version()
		if again := mustOpen(t, f.store(), loc).Version(); again != before {
			t.Errorf("%s: another process sees another version", name)
		}
		put(f, []byte("hello"))
		if mustOpen(t, f.store(), loc).Version() == before {
			t.Errorf("%s: the same version, though it was stored again", name)
		}
	}
}
