package storagetest

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// S3 is a small S3 server within the process. It checks Signature Version 4,
// addresses buckets by path, and serves HEAD, GET and PUT of objects and HEAD
// and PUT of buckets, with ranges and conditions as RFC 9110 has them. It can be
// made to answer wrongly. It is safe for concurrent use.
type S3 struct {
	URL       string // without a path
	Region    string
	AccessKey string
	SecretKey string

	mu       sync.Mutex
	buckets  map[string]map[string]*s3Object
	tamper   func(*http.Request, *Answer)
	requests int
}

type s3Object struct {
	content []byte // never changed; a replacement is another s3Object
	etag    string
	stored  time.Time
}

// Answer is what S3 is about to say, for Tamper to change. Header has the length
// of the untouched Body: a shorter Body is cut off in transit, and for a longer
// one Content-Length must be set or deleted.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte

	// Silence keeps the second half of Body back until it is closed, or the
	// client is gone. Nil: no silence.
	Silence <-chan struct{}
}

// NewS3 starts a server that lives as long as the test.
func NewS3(t testing.TB) *S3 {
	s := &S3{
		Region:    "test-region-1",
		AccessKey: "AKTEST",
		SecretKey: "the secret of the test",
		buckets:   make(map[string]map[string]*s3Object),
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Put stores an object, and its bucket.
func (s *S3) Put(bucket, key string, content []byte) {
	sum := md5.Sum(content)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = make(map[string]*s3Object)
	}
	s.buckets[bucket][key] = &s3Object{
		content: bytes.Clone(content),
		etag:    `"` + hex.EncodeToString(sum[:]) + `"`,
		stored:  time.Now(),
	}
}

// Remove removes an object.
func (s *S3) Remove(bucket, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.buckets[bucket], key)
}

// Tamper lets f change every answer to a request that was signed rightly. If f
// waits, the answer does. Nil ends it.
func (s *S3) Tamper(f func(*http.Request, *Answer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tamper = f
}

// Requests counts the requests that came, refused ones included.
func (s *S3) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// ServeHTTP implements http.Handler.
func (s *S3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	tamper := s.tamper
	s.mu.Unlock()

	if status, code := s.verify(r, time.Now()); code != "" {
		refuse(w, status, code)
		return
	}
	if tamper == nil {
		s.serve(w, r)
		return
	}
	rec := httptest.NewRecorder()
	s.serve(rec, r)
	a := &Answer{Status: rec.Code, Header: rec.Header(), Body: rec.Body.Bytes()}
	tamper(r, a)
	a.send(w, r)
}

func (a *Answer) send(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), a.Header)
	w.WriteHeader(a.Status)
	// Errors of writing and flushing mean that the client is gone.
	flush := http.NewResponseController(w).Flush
	if a.Header.Get("Content-Length") == "" {
		_ = flush() // or the server would count for itself
	}
	rest := a.Body
	if a.Silence != nil {
		half := len(rest) / 2
		_, _ = w.Write(rest[:half])
		_ = flush()
		rest = rest[half:]
		select {
		case <-a.Silence:
		case <-r.Context().Done():
		}
	}
	_, _ = w.Write(rest)
}

func (s *S3) serve(w http.ResponseWriter, r *http.Request) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	s.mu.Lock()
	objects, ok := s.buckets[bucket]
	object := objects[key]
	s.mu.Unlock()
	switch {
	case r.Method == http.MethodPut && key == "":
		s.makeBucket(bucket)
	case !ok:
		refuse(w, http.StatusNotFound, "NoSuchBucket")
	case r.Method == http.MethodPut:
		s.receive(w, r, bucket, key)
	case r.Method != http.MethodGet && r.Method != http.MethodHead, key == "" && r.Method == http.MethodGet:
		refuse(w, http.StatusNotImplemented, "NotImplemented")
	case key == "":
	case object == nil:
		refuse(w, http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("ETag", object.etag)
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", object.stored, bytes.NewReader(object.content))
	}
}

func (s *S3) makeBucket(bucket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = make(map[string]*s3Object)
	}
}

func (s *S3) receive(w http.ResponseWriter, r *http.Request, bucket, key string) {
	content, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "IncompleteBody")
		return
	}
	sum := sha256.Sum256(content)
	switch declared := r.Header.Get("X-Amz-Content-Sha256"); {
	case strings.HasPrefix(declared, "STREAMING-"): // signed in chunks, which are not understood here
		refuse(w, http.StatusNotImplemented, "NotImplemented")
		return
	case declared != "UNSIGNED-PAYLOAD" && declared != hex.EncodeToString(sum[:]):
		refuse(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	s.Put(bucket, key, content)
	etag := md5.Sum(content)
	w.Header().Set("ETag", `"`+hex.EncodeToString(etag[:])+`"`)
}

// refuse answers with an error document.
func refuse(w http.ResponseWriter, status int, code string) {
	body, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
	}{Code: code})
	if err != nil {
		panic(err) // two strings can always be marshalled
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // errors: the client is gone
}
