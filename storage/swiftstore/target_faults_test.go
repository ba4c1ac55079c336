package swiftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// If an answer is lost, doing it again succeeds, and nothing is sent again.
func TestTargetAnswerLost(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	f.makeContainer("images_segments")
	for _, step := range steps {
		f.setTamper(func(r *http.Request, _ *answer) {
			if isPut(r) {
				panic(http.ErrAbortHandler)
			}
		})
		if err := step.do(t.Context(), s); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("%s: %v", step.name, err)
		}
		f.setTamper(nil)
		if err := step.do(t.Context(), s); err != nil {
			t.Errorf("%s, again: %v", step.name, err)
		}
		if n := len(f.puts()); n != 1 {
			t.Errorf("%s: put %d times", step.name, n)
		}
	}
	// It is the announced bytes that must be there.
	err := s.PutPart(t.Context(), upload, "disk", partOf(0, "hello"), strings.NewReader("HELLO"))
	if !errors.Is(err, storage.ErrPart) {
		t.Errorf("another body: %v", err)
	}
}

// The token ends with the request; the body that came by then comes again, if it can.
func TestTargetTokenRefused(t *testing.T) {
	t.Parallel()
	for _, step := range steps {
		f, s := writable(t)
		f.makeContainer("images_segments")
		if step.name == "join" {
			_ = steps[0].do(t.Context(), s)
		}
		var first sync.Once
		f.setRefuse(func(r *http.Request) (status int) {
			if isPut(r) {
				first.Do(func() { _, _ = io.Copy(io.Discard, r.Body); status = http.StatusUnauthorized })
			}
			return status
		})
		if err := step.do(t.Context(), s); err != nil || f.tokens != 2 {
			t.Errorf("%s: %d tokens, %v", step.name, f.tokens, err)
		}
	}
	for _, read := range []bool{false, true} {
		f, s := writable(t)
		f.makeContainer("images_segments")
		var first sync.Once
		f.setRefuse(func(r *http.Request) (status int) {
			if isPut(r) {
				first.Do(func() {
					if status = http.StatusUnauthorized; read {
						_, _ = io.Copy(io.Discard, r.Body)
					}
				})
			}
			return status
		})
		err := s.PutPart(t.Context(), upload, "disk", partOf(0, "hello"), once("hello"))
		if read != errors.Is(err, storage.ErrUnavailable) || !read && err != nil {
			t.Errorf("a body that comes once, read: %v: %v", read, err)
		}
	}
}

func TestTargetRefused(t *testing.T) {
	t.Parallel()
	status := func(code int) func(*answer) {
		return func(a *answer) { a.status, a.body, a.header = code, nil, http.Header{} }
	}
	text := func(code int, body string) func(*answer) {
		return func(a *answer) { a.status, a.body, a.header = code, []byte(body), http.Header{} }
	}
	late := func(status, problems string) func(*answer) {
		return text(202, " \r\n\r\n"+`{"Response Status": "`+status+`", "Response Body": "", "Errors": [`+problems+`]}`)
	}
	for name, test := range map[string]struct {
		answer func(*answer)
		want   string
	}{
		"no right":          {status(403), "swift_right_missing"},
		"token refused":     {status(401), "object_store_unavailable"},
		"container gone":    {status(404), "container_not_found"},
		"quota":             {text(413, "Upload exceeds quota."), "object_store_quota"},
		"too large":         {text(413, "Your request is too large."), "object_store_limit"},
		"other hash":        {status(422), "part_damaged"},
		"full":              {status(507), "object_store_full"},
		"bad request":       {status(400), "object_store_unavailable"},
		"client disconnect": {status(499), "object_store_unavailable"},
		"server error":      {status(500), "object_store_unavailable"},
		"slow down":         {status(503), "object_store_unavailable"},
		"too many requests": {status(429), "object_store_unavailable"},
		"redirect": {func(a *answer) {
			a.status, a.body, a.header = 307, nil, http.Header{"Location": {"http://127.0.0.1:1/"}}
		}, "object_store_unavailable"},
		"a page":             {text(200, "<html>"), "object_store_unavailable"},
		"other ETag":         {func(a *answer) { a.status, a.body, a.header = 201, nil, http.Header{"Etag": {"x"}} }, "part_damaged"},
		"no ETag":            {status(201), "part_damaged"},
		"late, cut off":      {text(202, "  \r\n\r\n{"), ""}, // it is there
		"late, quota":        {late("413 Request Entity Too Large", ""), "object_store_limit"},
		"late, no right":     {late("403 Forbidden", ""), "swift_right_missing"},
		"late, server error": {late("503 Service Unavailable", ""), "object_store_unavailable"},
		"late, a part":       {late("400 Bad Request", `["/c/a", "Etag Mismatch"]`), "part_damaged"},
		"late, parts":        {late("400 Bad Request", `["/c/a", "503 Service Unavailable"], ["/c/b", "404 Not Found"]`), "part_damaged"},
		"late, unknown":      {late("400 Bad Request", `["/c/a", "503 Service Unavailable"]`), "object_store_unavailable"},
		"late, token":        {late("400 Bad Request", `["/c/a", "401 Unauthorized"]`), "object_store_unavailable"},
		"parts, not late":    {text(400, `{"Errors": [["/c/a", "Size Mismatch"]]}`), "part_damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, s := writable(t)
			if err := steps[0].do(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			f.setTamper(func(r *http.Request, a *answer) {
				if isPut(r) {
					test.answer(a)
				}
			})
			err := steps[1].do(t.Context(), s)
			if fault.CodeOf(err) != test.want {
				t.Errorf("%v; want %s", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "token1") {
				t.Errorf("it tells a secret: %v", err)
			}
		})
	}
}

// Swift can say of a new object that it has a later one, and of two at the same time that
// both are there.
func TestTargetAtTheSameTime(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status int
		leave  func(*fake)
		want   error
	}{
		"overtaken by another": {http.StatusCreated, func(f *fake) { f.put("images/disk", []byte("x")) }, storage.ErrObjectExists},
		"another is later":     {http.StatusAccepted, func(f *fake) { f.put("images/disk", []byte("x")) }, storage.ErrObjectExists},
		"its own is later":     {http.StatusAccepted, func(*fake) {}, nil},
		"its own is there":     {http.StatusPreconditionFailed, func(*fake) {}, nil},
		"its own small object": {http.StatusPreconditionFailed, func(f *fake) { f.touchMark("images/disk") }, storage.ErrObjectExists},
		"its own of other parts": {http.StatusPreconditionFailed, func(f *fake) {
			f.putStatic("images/disk", f.segment("images_segments/disk/"+upload.ID+"/00000000-"+md5Hex("hello"), fields{"hash": md5Hex("HELLO")}))
			f.touch("images/disk", "X-Static-Large-Object", "True", "X-Object-Meta-Vmimport-Upload", upload.ID)
		}, storage.ErrObjectExists},
		"a removal is later":    {http.StatusAccepted, func(f *fake) { f.remove("images/disk") }, storage.ErrUnavailable},
		"it was there just now": {http.StatusPreconditionFailed, func(f *fake) { f.remove("images/disk") }, storage.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, s := writable(t)
			if err := steps[0].do(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			f.setTamper(func(r *http.Request, a *answer) {
				if isPut(r) {
					test.leave(f)
					a.body = fmt.Appendf(nil, `{"Response Status": "%d x", "Etag": "%s"}`, test.status, md5Hex(md5Hex("hello")))
				}
			})
			if err := steps[1].do(t.Context(), s); !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
		})
	}
}

// touchMark makes an object a plain one of the upload's.
func (f *fake) touchMark(path string) {
	f.put(path, []byte("x"), "X-Object-Meta-Vmimport-Upload", upload.ID)
}

// A worker that was taken for dead stores a part of other bytes, while its successor joins.
// At whatever moment that is, the object stays whole.
func TestTargetPartBesideJoin(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		f, s := writable(t)
		if err := steps[0].do(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		asked := 0
		f.setTamper(func(*http.Request, *answer) {
			if asked++; asked == at {
				f.setTamper(nil)
				if err := steps[1].do(t.Context(), s); err != nil {
					t.Errorf("join beside request %d: %v", at, err)
				}
			}
		})
		if err := f.store().PutPart(t.Context(), upload, "disk", partOf(0, "HELLO"), strings.NewReader("HELLO")); err != nil {
			t.Errorf("part with a join beside request %d: %v", at, err)
		}
		f.setTamper(nil)
		if asked < at {
			if asked < 3 {
				t.Errorf("a part takes %d requests", asked)
			}
			return
		}
		if got, _ := f.download("images/disk"); string(got) != "hello" {
			t.Errorf("join beside request %d: the object is %q", at, got)
		}
		if err := s.Settle(t.Context(), upload, "disk"); err != nil || len(f.leftovers()) > 0 {
			t.Errorf("settle: %v, and there are still %q", err, f.leftovers())
		}
	}
}

// Proxies remember that there was no container; and somebody may remove one that was just made.
func TestTargetContainerLags(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	f.setRefuse(func(r *http.Request) int {
		if isPut(r) {
			return http.StatusNotFound
		}
		return 0
	})
	if err := steps[0].do(t.Context(), s); errors.Is(err, storage.ErrNoContainer) || !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("the container was made: %v", err)
	}
	f.setRefuse(nil)
	if err := steps[0].do(t.Context(), s); err != nil {
		t.Errorf("later: %v", err)
	}
	f, s = writable(t)
	f.setTamper(func(r *http.Request, _ *answer) {
		if isPut(r) {
			f.removeContainer("images")
		}
	})
	if err := steps[0].do(t.Context(), s); !errors.Is(err, storage.ErrNoContainer) {
		t.Errorf("the container of the object is gone: %v", err)
	}
}

// Swift stores what it has wholly got, though nobody waits for it any more. So somebody does,
// for a while: a Discard that comes next must find it.
func TestTargetLeftBehindBody(t *testing.T) {
	t.Parallel()
	for _, step := range steps {
		f, s := writable(t)
		f.makeContainer("images_segments", "X-Container-Meta-Vmimport-Upload", upload.ID)
		if step.name == "join" {
			_ = steps[0].do(t.Context(), s)
		}
		left := errors.New("the user left")
		ctx, cancel := context.WithCancelCause(t.Context())
		discarded, stored := make(chan struct{}), make(chan struct{})
		f.setRefuse(func(r *http.Request) int {
			if isPut(r) {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				cancel(left)
				select {
				case <-discarded:
				case <-time.After(100 * time.Millisecond):
				}
			}
			return 0
		})
		f.setTamper(func(r *http.Request, _ *answer) {
			if isPut(r) {
				close(stored)
			}
		})
		if err := step.do(ctx, s); !errors.Is(err, left) {
			t.Errorf("%s: %v", step.name, err)
		}
		if err := s.Discard(t.Context(), upload, "disk", "disk.json"); err != nil {
			t.Error(err)
		}
		close(discarded)
		<-stored
		if names := f.names("AUTH_p1/"); len(names) > 0 {
			t.Errorf("%s: there are still %q", step.name, names)
		}
	}
}

// Of an object without bytes all is sent with the header.
func TestTargetLeftBehindNoBody(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	left := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	f.setTamper(func(r *http.Request, _ *answer) {
		if isPut(r) {
			cancel(left)
			select {
			case <-r.Context().Done():
				t.Error("nobody waits for the answer")
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	if err := s.PutNew(ctx, upload, "empty", nil); !errors.Is(err, left) {
		t.Error(err)
	}
}

// A worker that was stopped between its look at an object and the removal does not remove
// what has come in its place.
func TestTargetRemovalTooLate(t *testing.T) {
	t.Parallel()
	f, s := writable(t)
	if err := steps[2].do(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f.hurry = 50 * time.Millisecond
	f.setTamper(func(r *http.Request, _ *answer) {
		if r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/disk.json") {
			f.put("images/disk.json", []byte("the customer's"))
			<-time.After(2 * f.hurry)
		}
	})
	err := f.store().Discard(t.Context(), upload, "disk.json")
	if !errors.Is(err, storage.ErrUnavailable) || !fault.Retryable(err) {
		t.Errorf("discard: %v", err)
	}
	if got, _ := f.download("images/disk.json"); string(got) != "the customer's" {
		t.Errorf("the object is now %q", got)
	}
}

// Whoever waits for Swift does not wait longer than it was told, or than its caller does.
func TestTargetStalls(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 16<<20) // more than connections hold
	for name, hang := range map[string]func(f *fake){
		"no answer": func(f *fake) {
			f.setTamper(func(r *http.Request, _ *answer) {
				if isPut(r) {
					<-r.Context().Done()
				}
			})
		},
		"takes nothing": func(f *fake) {
			f.setRefuse(func(r *http.Request) int {
				if isPut(r) {
					_, _ = io.CopyN(io.Discard, r.Body, 1)
					<-f.t.Context().Done()
					return http.StatusRequestTimeout
				}
				return 0
			})
		},
		"half an answer": func(f *fake) {
			f.setTamper(func(r *http.Request, a *answer) {
				if isPut(r) {
					a.body, a.silence = []byte("  "), make(chan struct{})
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.makeContainer("images")
			f.makeContainer("images_segments")
			f.patience = 100 * time.Millisecond
			hang(f)
			err := f.store().PutPart(t.Context(), upload, "disk", partOf(0, large), strings.NewReader(large))
			if !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%v", err)
			}
			f.patience, f.hurry = 0, 100*time.Millisecond
			left := errors.New("the user left")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(50*time.Millisecond, func() { cancel(left) })
			if err := f.store().PutPart(ctx, upload, "disk", partOf(0, large), strings.NewReader(large)); !errors.Is(err, left) {
				t.Errorf("canceled: %v", err)
			}
		})
	}
}

// A body may take its time, which Swift's patience is not for.
func TestTargetSlowBody(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.makeContainer("images")
	f.makeContainer("images_segments")
	f.patience = time.Second
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write([]byte("he"))
		<-time.After(1500 * time.Millisecond)
		_, _ = w.Write([]byte("llo"))
		_ = w.Close()
	}()
	if err := f.store().PutPart(t.Context(), upload, "disk", partOf(0, "hello"), r); err != nil {
		t.Error(err)
	}
	f.patience = 0
	r, w = io.Pipe()
	defer r.Close()
	left := errors.New("the user left")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		_, _ = w.Write([]byte("he"))
		cancel(left)
		_, _ = w.Write([]byte("l"))
		_ = w.Close()
	}()
	if err := f.store().PutPart(ctx, upload, "disk", partOf(1, "hello"), r); !errors.Is(err, left) {
		t.Errorf("canceled: %v", err)
	}
}
