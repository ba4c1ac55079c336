package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmimport/internal/client"
	"vmimport/internal/client/clienttest"
)

func noise(n int) []byte {
	content := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	return content
}

func TestUpload(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	for _, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 1<<20 + 7} {
		content := noise(size)
		var last client.Transfer
		sum, err := c.Upload(t.Context(), client.Object{Container: "new", Name: "a.vmdk"}, bytes.NewReader(content), int64(size),
			func(tr client.Transfer) {
				if tr.Done <= last.Done || tr.Total != int64(size) || tr.Try != 1 {
					t.Errorf("progress %+v after %+v", tr, last)
				}
				last = tr
			})
		if err != nil {
			t.Fatal(err)
		}
		if kept, _ := s.Object("new", "a.vmdk"); sum != sha1Of(content) || !bytes.Equal(kept, content) || last.Done != int64(size) {
			t.Errorf("%d bytes: sum %s, kept %d bytes, last progress %+v", size, sum, len(kept), last)
		}
	}
	if n := s.Calls(clienttest.Container); n != 1 {
		t.Errorf("the container was created %d times", n)
	}
}

func TestUploadEncodesNamesOnce(t *testing.T) {
	t.Parallel()
	const base = "/v2/AUTH_" + clienttest.Project + "/"
	for _, tt := range []struct{ container, name, target string }{
		{"images", "a.vmdk", "images/a.vmdk"},
		{"my images", "a b.vmdk", "my%20images/a%20b.vmdk"},
		{"images", "100%.vmdk", "images/100%25.vmdk"},
		{"images", "a%20b.vmdk", "images/a%2520b.vmdk"},
		{"images", "a+b&c=d.vmdk", "images/a+b&c=d.vmdk"},
		{"images", "web01/disk;1,2.vmdk", "images/web01/disk%3B1%2C2.vmdk"},
		{"画像", "ディスク.vmdk", "%E7%94%BB%E5%83%8F/%E3%83%87%E3%82%A3%E3%82%B9%E3%82%AF.vmdk"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, c := start(t)
			s.PutObject(tt.container, "other", nil)
			if _, err := c.Upload(t.Context(), client.Object{Container: tt.container, Name: tt.name}, strings.NewReader("x"), 1, nil); err != nil {
				t.Fatal(err)
			}
			if got := s.Targets(); !slices.Equal(got, []string{base + tt.target}) {
				t.Errorf("put %q, want %q", got, base+tt.target)
			}
			if _, ok := s.Object(tt.container, tt.name); !ok {
				t.Error("the object has another name")
			}
		})
	}
}

func TestObjectCheck(t *testing.T) {
	t.Parallel()
	for _, o := range []client.Object{
		{}, {"c", ""}, {"", "o"}, {"c/d", "o"}, {"c", "/o"}, {"c", "o/"}, {"c", "a//b"}, {"c", "../o"}, {"c", "a/./b"},
		{"..", "o"}, {"c", "a?b"}, {"c", "a#b"}, {"c", "a\nb"},
	} {
		if o.Check() == nil {
			t.Errorf("%q was accepted", o)
		}
	}
	if err := (client.Object{Container: "c", Name: "a/b..c/%.vmdk"}).Check(); err != nil {
		t.Error(err)
	}
}

func TestLocation(t *testing.T) {
	t.Parallel()
	o := client.Object{Container: "my images", Name: "a/b+%.vmdk"}
	if got := client.ProfileOf("jp-east-3").Location("p", o); got != "/v2/AUTH_p/my images/a/b+%.vmdk" {
		t.Errorf("gen3: %s", got)
	}
	if got := client.ProfileOf("jp-east-1").Location("p", o); got != "/v1/AUTH_p/my images/a/b+%.vmdk" {
		t.Errorf("classic: %s", got)
	}
}

// brokenFile is a file that cannot be read past a point.
type brokenFile struct {
	io.ReaderAt
	from int64
	err  error
}

func (f brokenFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p[:min(int64(len(p)), f.from-off)], off)
}

func TestUploadAgain(t *testing.T) {
	content := noise(100 << 10)
	reset := errors.New("connection reset")
	busy := func() *http.Response {
		resp := response(503, "")
		resp.Header.Set("Retry-After", "20")
		return resp
	}
	refused := func() *http.Response { return response(403, "") }
	created := func() *http.Response { return response(201, "") }
	for _, tt := range []struct {
		name string
		file io.ReaderAt
		// send is one try: how much is read, and the answer.
		send  func(try int) (n int64, resp *http.Response, err error)
		tries int
		waits time.Duration
		fails bool
	}{
		{"lost connections", nil, func(try int) (int64, *http.Response, error) {
			if try < 4 {
				return int64(try) << 10, nil, reset
			}
			return -1, created(), nil
		}, 4, 7 * time.Second, false},
		{"a busy store", nil, func(try int) (int64, *http.Response, error) {
			if try == 1 {
				return 0, busy(), nil
			}
			return -1, created(), nil
		}, 2, 20 * time.Second, false},
		{"a connection that never holds", nil, func(int) (int64, *http.Response, error) { return 1, nil, reset }, 4, 7 * time.Second, true},
		{"a refusal", nil, func(int) (int64, *http.Response, error) { return 0, refused(), nil }, 1, 0, true},
		{"an answer too early", nil, func(try int) (int64, *http.Response, error) {
			if try == 1 {
				return 5, created(), nil
			}
			return -1, created(), nil
		}, 2, time.Second, false},
		{"a broken file", brokenFile{bytes.NewReader(content), 5000, errors.New("disk failure")},
			func(int) (int64, *http.Response, error) { return -1, nil, reset }, 1, 0, true},
		{"a file cut meanwhile", bytes.NewReader(content[:5000]),
			func(int) (int64, *http.Response, error) { return -1, nil, reset }, 1, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, tries := time.Now(), 0
				c := offline(t, func(r *http.Request) (*http.Response, error) {
					tries++
					n, resp, err := tt.send(tries)
					var sent bytes.Buffer
					if n < 0 {
						_, _ = sent.ReadFrom(r.Body)
					} else {
						_, _ = io.CopyN(&sent, r.Body, n)
					}
					if !bytes.HasPrefix(content, sent.Bytes()) {
						t.Errorf("try %d does not begin at the start", tries)
					}
					return resp, err
				})
				if tt.file == nil {
					tt.file = bytes.NewReader(content)
				}
				var last client.Transfer
				sum, err := c.Upload(t.Context(), client.Object{Container: "c", Name: "o"}, tt.file, int64(len(content)),
					func(tr client.Transfer) { last = tr })
				if (err != nil) != tt.fails {
					t.Errorf("error is %v", err)
				}
				if !tt.fails && (sum != sha1Of(content) || last.Try != tt.tries) {
					t.Errorf("sum is %s, last progress %+v", sum, last)
				}
				if waited := time.Since(began); tries != tt.tries || waited != tt.waits {
					t.Errorf("%d tries, %v of waiting", tries, waited)
				}
			})
		})
	}
}

func TestUploadThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		c := offline(t, func(r *http.Request) (*http.Response, error) {
			tries++
			_, _ = io.CopyN(io.Discard, r.Body, 1)
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		_, err := c.Upload(t.Context(), client.Object{Container: "c", Name: "o"}, strings.NewReader("xyz"), 3, nil)
		if err == nil || !strings.Contains(err.Error(), "nothing moved") || tries != 4 {
			t.Errorf("after %d tries: %v", tries, err)
		}
	})
}

func TestUploadCanceled(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	s.PutObject("images", "other", nil)
	reached, release := s.Hold(clienttest.Object)
	defer release()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	go func() { <-reached; cancel(stop) }()
	content := noise(8 << 20) // more than the buffers of a connection hold
	_, err := c.Upload(ctx, client.Object{Container: "images", Name: "a.vmdk"}, bytes.NewReader(content), int64(len(content)), nil)
	if !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	if n := s.Calls(clienttest.Object); n != 1 {
		t.Errorf("sent %d times", n)
	}
	release()
	s.Close() // waits for the handler
	if _, ok := s.Object("images", "a.vmdk"); ok {
		t.Error("half an object was kept")
	}
}

func TestSHA1(t *testing.T) {
	t.Parallel()
	content := noise(3<<20 + 1)
	var last client.Transfer
	sum, err := client.SHA1(t.Context(), bytes.NewReader(content), int64(len(content)), func(tr client.Transfer) { last = tr })
	if err != nil || sum != sha1Of(content) || last.Done != last.Total || last.Total != int64(len(content)) {
		t.Errorf("sum %s, error %v, last progress %+v", sum, err, last)
	}
	if _, err := client.SHA1(t.Context(), bytes.NewReader(content), int64(len(content))+1, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file cut meanwhile: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.SHA1(ctx, bytes.NewReader(content), int64(len(content)), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
