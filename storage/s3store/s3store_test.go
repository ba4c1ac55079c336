package s3store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"vmimport/internal/fault"
	"vmimport/internal/secret"
	"vmimport/internal/testenv"
	"vmimport/storage"
	"vmimport/storage/s3store"
	"vmimport/storage/storagetest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(t *testing.T, content []byte) storagetest.Subject {
		server := storagetest.NewS3(t)
		loc := at("disks/web.raw")
		server.Put("p1-images", loc.Name, content)
		return storagetest.Subject{
			Store:    open(t, server, nil),
			Location: loc,
			Replace:  func(content []byte) { server.Put("p1-images", loc.Name, content) },
			Remove:   func() { server.Remove("p1-images", loc.Name) },
			Put: func(loc storage.Location, content []byte) error {
				if len(loc.Name) > storage.MaxNameBytes {
					return errors.New("name too long")
				}
				server.Put(loc.Project+"-"+loc.Container, loc.Name, content)
				return nil
			},
			Stall: func() {
				server.Tamper(func(_ *http.Request, a *storagetest.Answer) { a.Silence = make(chan struct{}) })
			},
		}
	})
}

// open returns the server's store as project "p1" and others see it.
func open(t *testing.T, server *storagetest.S3, change func(*s3store.Options)) *s3store.Store {
	t.Helper()
	o := s3store.Options{
		Endpoint: server.URL, Region: server.Region, PathStyle: true,
		AccessKey: server.AccessKey, Secret: secret.New(server.SecretKey),
	}
	if change != nil {
		change(&o)
	}
	store, err := s3store.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// at is a location in the bucket "p1-images".
func at(name string) storage.Location {
	return storage.Location{API: "swift", Project: "p1", Container: "images", Name: name}
}

// Whatever a server or something before it answers, it is either the bytes that
// were pinned or an error of the right kind.
func TestWrongAnswers(t *testing.T) {
	t.Parallel()
	const content = "0123456789"
	status := func(code int) func(*http.Request, *storagetest.Answer) {
		return func(_ *http.Request, a *storagetest.Answer) { a.Status, a.Body, a.Header = code, nil, http.Header{} }
	}
	refusal := func(code int, body string) func(*http.Request, *storagetest.Answer) {
		return func(_ *http.Request, a *storagetest.Answer) {
			a.Status, a.Body, a.Header = code, []byte("<Error><Code>"+body+"</Code></Error>"), http.Header{}
		}
	}
	header := func(name, value string) func(*http.Request, *storagetest.Answer) {
		return func(_ *http.Request, a *storagetest.Answer) {
			if a.Header.Set(name, value); value == "" {
				a.Header.Del(name)
			}
		}
	}
	for name, test := range map[string]struct {
		answer func(*http.Request, *storagetest.Answer)
		want   error
		kind   fault.Kind
	}{
		"cut off":            {answer: func(_ *http.Request, a *storagetest.Answer) { a.Body = a.Body[:2] }, want: io.ErrUnexpectedEOF, kind: fault.Unavailable},
		"cut off before all": {answer: func(_ *http.Request, a *storagetest.Answer) { a.Body = nil }, want: io.ErrUnexpectedEOF, kind: fault.Unavailable},
		"short, and ended well": {
			answer: func(_ *http.Request, a *storagetest.Answer) { a.Body = a.Body[:2]; a.Header.Del("Content-Length") },
			want:   io.ErrUnexpectedEOF, kind: fault.Unavailable,
		},
		"short, and said so": {
			answer: func(_ *http.Request, a *storagetest.Answer) { a.Body = a.Body[:2]; a.Header.Set("Content-Length", "2") },
			want:   storage.ErrUnavailable,
		},
		"long": {
			answer: func(_ *http.Request, a *storagetest.Answer) {
				a.Body = append(a.Body, '!')
				a.Header.Del("Content-Length")
			},
			want: storage.ErrUnavailable,
		},
		"long, and said so": {
			answer: func(_ *http.Request, a *storagetest.Answer) {
				a.Body = append(a.Body, '!')
				a.Header.Set("Content-Length", "5")
			},
			want: storage.ErrUnavailable,
		},
		"whole object": {
			answer: func(_ *http.Request, a *storagetest.Answer) {
				a.Status, a.Body = http.StatusOK, []byte(content)
				a.Header.Del("Content-Range")
				a.Header.Set("Content-Length", "10")
			},
			want: storage.ErrUnavailable,
		},
		"200 of the right length": {
			answer: func(_ *http.Request, a *storagetest.Answer) { a.Status = http.StatusOK; a.Header.Del("Content-Range") },
			want:   storage.ErrUnavailable,
		},
		"other range":       {answer: header("Content-Range", "bytes 4-7/10"), want: storage.ErrUnavailable},
		"other size":        {answer: header("Content-Range", "bytes 3-6/11"), want: storage.ErrUnavailable},
		"unknown size":      {answer: header("Content-Range", "bytes 3-6/*"), want: storage.ErrUnavailable},
		"other ETag":        {answer: header("ETag", `"other"`), want: storage.ErrChanged},
		"no ETag":           {answer: header("ETag", ""), want: storage.ErrChanged},
		"other version id":  {answer: header("X-Amz-Version-Id", "other"), want: storage.ErrChanged},
		"not modified":      {answer: status(http.StatusNotModified), want: storage.ErrUnavailable},
		"redirect":          {answer: header("Location", "http://127.0.0.1:1/"), want: nil},
		"changed":           {answer: status(http.StatusPreconditionFailed), want: storage.ErrChanged},
		"too short by now":  {answer: status(http.StatusRequestedRangeNotSatisfiable), want: storage.ErrChanged},
		"gone":              {answer: refusal(http.StatusNotFound, "NoSuchKey"), want: storage.ErrChanged},
		"bucket gone":       {answer: refusal(http.StatusNotFound, "NoSuchBucket"), want: storage.ErrChanged},
		"right withdrawn":   {answer: refusal(http.StatusForbidden, "AccessDenied"), kind: fault.Denied},
		"archived":          {answer: refusal(http.StatusForbidden, "InvalidObjectState"), kind: fault.Denied},
		"key unknown":       {answer: refusal(http.StatusForbidden, "InvalidAccessKeyId"), want: storage.ErrUnavailable},
		"clock wrong":       {answer: refusal(http.StatusForbidden, "RequestTimeTooSkewed"), want: storage.ErrUnavailable},
		"too many requests": {answer: status(http.StatusTooManyRequests), want: storage.ErrUnavailable},
		"slow down":         {answer: refusal(http.StatusServiceUnavailable, "SlowDown"), want: storage.ErrUnavailable},
		"server error":      {answer: status(http.StatusInternalServerError), want: storage.ErrUnavailable},
		"page, not an object": {
			answer: func(_ *http.Request, a *storagetest.Answer) {
				a.Status, a.Body, a.Header = http.StatusOK, []byte("<html>Please log in"), http.Header{}
			},
			want: storage.ErrUnavailable,
		},
	} {
		if name == "redirect" {
			elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
			t.Cleanup(elsewhere.Close)
			test.want = storage.ErrUnavailable
			test.answer = func(_ *http.Request, a *storagetest.Answer) {
				a.Status, a.Body, a.Header = http.StatusTemporaryRedirect, nil, http.Header{"Location": {elsewhere.URL}}
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storagetest.NewS3(t)
			server.Put("p1-images", "disk", []byte(content))
			obj, err := open(t, server, nil).Open(t.Context(), at("disk"))
			if err != nil {
				t.Fatal(err)
			}
			server.Tamper(test.answer)
			before := server.Requests()
			got, err := read(t.Context(), obj, 3, 4)
			if err == nil {
				t.Fatalf("accepted, and read %q", got)
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
			if test.kind != "" && fault.KindOf(err) != test.kind {
				t.Errorf("%v; want kind %s", err, test.kind)
			}
			if n := server.Requests() - before; n != 1 {
				t.Errorf("%d requests for one range", n)
			}
			server.Tamper(nil)
			if got, err := read(t.Context(), obj, 3, 4); err != nil || string(got) != "3456" {
				t.Errorf("afterwards: %q, %v", got, err)
			}
		})
	}
}

// What a reader sees that knows how much is coming, and never reads to the end.
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

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status int
		code   string // of the GET that follows a forbidden HEAD
		header http.Header
		want   error
	}{
		"missing":          {status: 404, want: storage.ErrNoObject},
		"forbidden":        {status: 403, code: "AccessDenied", want: storage.ErrNoObject},
		"forbidden, empty": {status: 403, want: storage.ErrNoObject},
		"key unknown":      {status: 403, code: "InvalidAccessKeyId", want: storage.ErrUnavailable},
		"key unknown, 404": {status: 404, code: "XAdminUserNotFound", want: storage.ErrUnavailable},
		"missing, said":    {status: 404, code: "NoSuchKey", want: storage.ErrNoObject},
		"signature wrong":  {status: 403, code: "SignatureDoesNotMatch", want: storage.ErrUnavailable},
		"region wrong":     {status: 400, code: "AuthorizationHeaderMalformed", want: storage.ErrUnavailable},
		"redirect":         {status: 301, header: http.Header{"Location": {"http://127.0.0.1:1/"}}, want: storage.ErrUnavailable},
		"name too long":    {status: 400, code: "KeyTooLongError", want: storage.ErrNoObject},
		"server error":     {status: 500, want: storage.ErrUnavailable},
		"no ETag":          {status: 200, header: http.Header{"Last-Modified": {time.Now().UTC().Format(http.TimeFormat)}, "Content-Length": {"5"}}, want: storage.ErrUnavailable},
		"no time":          {status: 200, header: http.Header{"Etag": {`"x"`}, "Content-Length": {"5"}}, want: storage.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := storagetest.NewS3(t)
			server.Put("p1-images", "disk", []byte("hello"))
			server.Tamper(func(_ *http.Request, a *storagetest.Answer) {
				a.Status, a.Header, a.Body = test.status, test.header, nil
				if test.code != "" {
					a.Body = []byte("<Error><Code>" + test.code + "</Code></Error>")
				}
			})
			if _, err := open(t, server, nil).Open(t.Context(), at("disk")); !errors.Is(err, test.want) {
				t.Errorf("%v; want %v", err, test.want)
			}
		})
	}
}

// A tenant sees the same for what is missing and what is forbidden; the log
// sees the difference.
func TestForbiddenLooksMissing(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Put("p1-images", "disk", []byte("hello"))
	server.Tamper(func(_ *http.Request, a *storagetest.Answer) {
		a.Status, a.Header, a.Body = http.StatusForbidden, http.Header{}, []byte("<Error><Code>AccessDenied</Code></Error>")
	})
	_, err := open(t, server, nil).Open(t.Context(), at("disk"))
	got, want := *fault.Of(err), *storage.ErrNoObject
	if got.Err == nil || !strings.Contains(strings.ToLower(got.Err.Error()), "denied") {
		t.Errorf("the cause is %v", got.Err)
	}
	if got.Err = nil; got != want {
		t.Errorf("the tenant sees %+v; want %+v", got, want)
	}
}

// The store, too, is told what was pinned, so that it need not send another
// version's bytes.
func TestRequestHeader(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Put("p1-images", "disk", []byte("hello"))
	obj, err := open(t, server, nil).Open(t.Context(), at("disk"))
	if err != nil {
		t.Fatal(err)
	}
	server.Tamper(func(r *http.Request, _ *storagetest.Answer) {
		const etag = `"5d41402abc4b2a76b9719d911017c592"`
		if h := r.Header; h.Get("Range") != "bytes=1-3" || h.Get("If-Match") != etag {
			t.Errorf("Range: %s, If-Match: %s", h.Get("Range"), h.Get("If-Match"))
		}
	})
	if got, err := read(t.Context(), obj, 1, 3); err != nil || string(got) != "ell" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Put("p1-images", "disk", []byte("hello"))
	store := open(t, server, func(o *s3store.Options) { o.AnswerTimeout = 50 * time.Millisecond })
	obj, err := store.Open(t.Context(), at("disk"))
	if err != nil {
		t.Fatal(err)
	}
	server.Tamper(func(r *http.Request, _ *storagetest.Answer) { <-r.Context().Done() })
	if _, err := read(t.Context(), obj, 0, 5); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("silent server: %v; want ErrUnavailable", err)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	store = open(t, server, func(o *s3store.Options) { o.Endpoint = closed.URL })
	if _, err := store.Open(t.Context(), at("disk")); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("no server: %v; want ErrUnavailable", err)
	}
}

func TestRangeOutsideOfObject(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Put("p1-images", "disk", []byte("content"))
	obj, err := open(t, server, nil).Open(t.Context(), at("disk"))
	if err != nil {
		t.Fatal(err)
	}
	before := server.Requests()
	for _, r := range [][2]int64{{0, 0}, {0, -1}, {-1, 1}, {0, 8}, {6, 2}, {7, 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1}} {
		if _, err := obj.ReadRange(t.Context(), r[0], r[1]); err == nil {
			t.Errorf("range %d+%d of 7 bytes was opened", r[0], r[1])
		}
	}
	if server.Requests() != before {
		t.Error("the server was asked")
	}
}

// A project reads its own buckets and no other's, whichever API it names them in.
func TestProjectsAreApart(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	for _, bucket := range []string{"p1-images", "p2-images", "p1-a-images", "img-p1.images", "images"} {
		server.Put(bucket, "disk", []byte(bucket))
	}
	type opts = s3store.Options
	standard, own := opts{}, opts{BucketPrefix: "img-{project}."}
	shared, sharedPrefix := opts{SharedBuckets: true}, opts{SharedBuckets: true, BucketPrefix: "p1-"}
	for _, test := range []struct {
		opts                    opts
		api, project, container string
		bucket                  string // empty: none, and the server is not even asked
	}{
		{standard, "swift", "p1", "images", "p1-images"},
		{standard, "swift", "p2", "images", "p2-images"},
		{standard, "swift", "p1", "a-images", "p1-a-images"},
		{standard, "swift", "p1-a", "images", ""},
		{standard, "swift", "", "images", ""},
		{standard, "swift", "p1:x", "images", ""},
		{standard, "swift", "p1", "p2:images", ""},
		{standard, "swift", "p1/..", "images", ""},
		{standard, "s3", "p1", "p1-images", "p1-images"},
		{standard, "s3", "p1", "p2-images", ""},
		{standard, "s3", "p1", "images", ""},
		{standard, "s3", "p", "p1-images", ""},
		{standard, "s3", "", "p1-images", ""},
		{standard, "s3", "P1", "p1-images", ""},
		{standard, "", "p1", "p1-images", ""},
		{standard, "http", "p1", "p1-images", ""},
		{own, "swift", "p1", "images", "img-p1.images"},
		{own, "s3", "p1", "img-p1.images", "img-p1.images"},
		{own, "s3", "p1", "p1-images", ""},
		{shared, "swift", "p2", "images", "images"},
		{shared, "s3", "p2", "p1-images", "p1-images"},
		{shared, "s3", "", "p1-images", "p1-images"},
		{sharedPrefix, "swift", "p2", "images", "p1-images"},
		{sharedPrefix, "s3", "p2", "p2-images", ""},
	} {
		store := open(t, server, func(o *s3store.Options) {
			o.BucketPrefix, o.SharedBuckets = test.opts.BucketPrefix, test.opts.SharedBuckets
		})
		loc := storage.Location{API: test.api, Project: test.project, Container: test.container, Name: "disk"}
		before := server.Requests()
		obj, err := store.Open(t.Context(), loc)
		if test.bucket == "" {
			if !errors.Is(err, storage.ErrNoObject) || server.Requests() != before {
				t.Errorf("%+v of %v: %v after %d requests; want ErrNoObject after none", loc, test.opts, err, server.Requests()-before)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v of %v: %v", loc, test.opts, err)
			continue
		}
		if got, err := read(t.Context(), obj, 0, obj.Size()); err != nil || string(got) != test.bucket {
			t.Errorf("%+v of %v: %q, %v; want the object of %s", loc, test.opts, got, err, test.bucket)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := s3store.Options{Endpoint: "https://objects.example.test", AccessKey: "a", Secret: secret.New("s")}
	if _, err := s3store.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*s3store.Options){
		"no endpoint":       func(o *s3store.Options) { o.Endpoint = "" },
		"no scheme":         func(o *s3store.Options) { o.Endpoint = "objects.example.test" },
		"other scheme":      func(o *s3store.Options) { o.Endpoint = "ftp://objects.example.test" },
		"no host":           func(o *s3store.Options) { o.Endpoint = "https://" },
		"path":              func(o *s3store.Options) { o.Endpoint += "/s3" },
		"query":             func(o *s3store.Options) { o.Endpoint += "?x" },
		"user":              func(o *s3store.Options) { o.Endpoint = "https://user:hunter2@objects.example.test" },
		"no key":            func(o *s3store.Options) { o.AccessKey = "" },
		"no secret":         func(o *s3store.Options) { o.Secret = secret.Text{} },
		"prefix for all":    func(o *s3store.Options) { o.BucketPrefix = "images-" },
		"prefix not ended":  func(o *s3store.Options) { o.BucketPrefix = "img-{project}" },
		"prefix badly cut":  func(o *s3store.Options) { o.BucketPrefix = "{project}x" },
		"shared, not ended": func(o *s3store.Options) { o.BucketPrefix, o.SharedBuckets = "{project}", true },
		"two projects":      func(o *s3store.Options) { o.BucketPrefix = "{project}-{project}-" },
		"no CA file":        func(o *s3store.Options) { o.CAFile = empty + ".none" },
		"empty CA file":     func(o *s3store.Options) { o.CAFile = empty },
	} {
		o := good
		change(&o)
		if _, err := s3store.New(o); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// With a CA file the store is reached over TLS, and without it is not trusted.
func TestCAFile(t *testing.T) {
	t.Parallel()
	server := storagetest.NewS3(t)
	server.Put("p1-images", "disk", []byte("hello"))
	front := httptest.NewUnstartedServer(server)
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is refused
	front.StartTLS()
	t.Cleanup(front.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]error{ca: nil, "": storage.ErrUnavailable} {
		store := open(t, server, func(o *s3store.Options) { o.Endpoint, o.CAFile = front.URL, file })
		if _, err := store.Open(t.Context(), at("disk")); !errors.Is(err, want) {
			t.Errorf("CA file %q: %v; want %v", file, err, want)
		}
	}
}

// FuzzNames: whatever a request names, only the project's own bucket is asked,
// for exactly that name.
func FuzzNames(f *testing.F) {
	for _, seed := range [][3]string{
		{"p1", "images", "disk"}, {"p1", "images", "../p2-images/disk"}, {"p1", "images/../p2-images", "disk"}, {"..", "p2-images", "disk"},
		{"p1", "images", "a%2Fb +?#&"}, {"p1", "images?x", "disk"}, {"p1", "images", "日本語\u202e"}, {"p1", "images", "a//b"}, {"p1", "images", "\xff"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	asked := make(chan string, 2) // the object, and why it is not there
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.RequestURI
		w.WriteHeader(http.StatusNotFound)
	}))
	f.Cleanup(server.Close)
	store, err := s3store.New(s3store.Options{Endpoint: server.URL, PathStyle: true, AccessKey: "a", Secret: secret.New("s")})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, project, container, name string) {
		loc := storage.Location{API: "swift", Project: project, Container: container, Name: name}
		if _, err := store.Open(t.Context(), loc); !errors.Is(err, storage.ErrNoObject) {
			t.Fatalf("%q: %v; want ErrNoObject", loc, err)
		}
		for range len(asked) {
			uri := <-asked
			path, err := url.PathUnescape(uri)
			if want := "/" + project + "-" + container + "/" + name; err != nil || path != want || strings.ContainsAny(uri, "?#") {
				t.Fatalf("asked for %q; want %q alone", uri, want)
			}
			if strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./") || strings.Contains(project+container, "/") {
				t.Fatalf("asked for %q, which a proxy may tidy up", uri)
			}
		}
	})
}

// TestGateway holds the adapter against a server that others wrote. It comes
// last, since building that server takes minutes on a new machine.
func TestGateway(t *testing.T) {
	t.Parallel()
	server := testenv.StartS3(t)
	endpoint, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	uploader, err := minio.NewCore(endpoint.Host, &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: server.Region, BucketLookup: minio.BucketLookupPath,
		Transport: &http.Transport{DisableKeepAlives: true}, // the gateway says two things about a name that is too long
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := s3store.New(s3store.Options{
		Endpoint: server.URL, Region: server.Region, PathStyle: true,
		AccessKey: server.AccessKey, Secret: secret.New(server.SecretKey),
	})
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Run(t, func(t *testing.T, content []byte) storagetest.Subject {
		// Tests share the server, so each has a container of its own.
		digest := sha256.Sum256([]byte(t.Name()))
		loc := at("disks/web.raw")
		loc.Container = hex.EncodeToString(digest[:8])
		put := func(loc storage.Location, content []byte) error {
			bucket := loc.Project + "-" + loc.Container
			if ok, err := uploader.BucketExists(t.Context(), bucket); err != nil {
				return err
			} else if !ok {
				if err := uploader.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{Region: server.Region}); err != nil {
					return err
				}
			}
			_, err := uploader.PutObject(t.Context(), bucket, loc.Name, bytes.NewReader(content), int64(len(content)), "", "", minio.PutObjectOptions{})
			return err
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(put(loc, content))
		return storagetest.Subject{
			Store:    store,
			Location: loc,
			Put:      put,
			Replace:  func(content []byte) { t.Helper(); check(put(loc, content)) },
			Remove: func() {
				t.Helper()
				check(uploader.RemoveObject(t.Context(), loc.Project+"-"+loc.Container, loc.Name, minio.RemoveObjectOptions{}))
			},
		}
	})
}
