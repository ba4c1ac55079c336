package swiftstore_test

import (
	"bytes"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmimport/internal/openstack"
	"vmimport/internal/secret"
	"vmimport/storage/swiftstore"
)

// fake is a small Keystone and Swift within the process. It knows objects,
// manifests, links and lists as a client sees them, and can be made to answer
// wrongly. It follows no link: that the store never asks for it is tested. Whatever
// an object lies in is a container, though it was never made.
type fake struct {
	t         *testing.T
	url       string
	endpoint  string        // of the catalogue
	service   string        // id of the service's project
	pageLimit int           // of lists
	patience  time.Duration // of its stores, while an object is sent; 0: as usual
	hurry     time.Duration // bound of what else its stores wait for, when they write; 0: as usual

	mu       sync.Mutex
	objects  map[string]*stored     // by account/container/name
	made     map[string]http.Header // containers, by account/container, and accounts, each with a slash at the end
	clock    int
	refuse   func(*http.Request) (status int) // before anything is done; 0: it is done
	tamper   func(*http.Request, *answer)
	requests []*http.Request // for objects and lists
	tokens   int
	refused  map[string]bool
}

// stored is what lies under a name. It never changes.
type stored struct {
	content []byte
	etag    string
	header  http.Header
}

// answer is what the fake is about to say. A shorter body than the header says is
// cut off in transit; silence keeps its second half back.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	silence <-chan struct{}
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, service: "serviceid", pageLimit: 10_000, objects: make(map[string]*stored), made: make(map[string]http.Header), refused: make(map[string]bool)}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.url = server.URL
	f.endpoint = f.url + "/v1/AUTH_" + f.service
	return f
}

// store returns the fake's store, by the catalogue.
func (f *fake) store() *swiftstore.Store { return f.storeAt("") }

func (f *fake) storeAt(accountURL string) *swiftstore.Store {
	f.t.Helper()
	cloud, err := openstack.New(openstack.Options{
		AuthURL: f.url + "/v3", Username: "vmimport", Password: secret.New("the password of the test"), Project: "service",
	})
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := swiftstore.New(swiftstore.Options{Cloud: cloud, AccountURL: accountURL, AnswerTimeout: f.patience})
	if err != nil {
		f.t.Fatal(err)
	}
	if f.hurry > 0 {
		s.Hurry(f.hurry)
	}
	return s
}

// put stores an object in the account of project p1. More of its header comes in
// pairs.
func (f *fake) put(path string, content []byte, header ...string) {
	f.putIn("AUTH_p1", path, content, header...)
}

func (f *fake) putIn(account, path string, content []byte, header ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.newStored(content)
	for pair := range slices.Chunk(header, 2) {
		o.header.Set(pair[0], pair[1])
	}
	f.objects[account+"/"+path] = o
}

// newStored makes what lies under a name. f.mu is held.
func (f *fake) newStored(content []byte) *stored {
	f.clock++
	o := &stored{content: bytes.Clone(content), etag: fmt.Sprintf("%x", md5.Sum(content)), header: http.Header{}}
	o.header.Set("X-Timestamp", fmt.Sprintf("17000%05d.12345", f.clock))
	return o
}

// touch gives an object other metadata and leaves its bytes.
func (f *fake) touch(path string, header ...string) { f.put(path, f.content(path), header...) }

func (f *fake) content(path string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects["AUTH_p1/"+path].content
}

func (f *fake) remove(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.objects, "AUTH_p1/"+path)
}

// removeAll removes all objects whose paths begin so.
func (f *fake) removeAll(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.objects, func(path string, _ *stored) bool { return strings.HasPrefix(path, "AUTH_p1/"+prefix) })
}

// putStatic stores a manifest.
func (f *fake) putStatic(path string, segments ...any) {
	f.t.Helper()
	text, err := json.Marshal(segments)
	if err != nil {
		f.t.Fatal(err)
	}
	f.put(path, text, "X-Static-Large-Object", "True")
}

type fields = map[string]any

// segment describes a stored object as a manifest does; more comes in addition.
func (f *fake) segment(path string, more fields) fields {
	content := f.content(path)
	s := fields{"name": "/" + path, "bytes": len(content), "hash": fmt.Sprintf("%x", md5.Sum(content)), "content_type": "x/y"}
	maps.Copy(s, more)
	return s
}

func (f *fake) setTamper(how func(*http.Request, *answer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tamper = how
}

func (f *fake) setRefuse(how func(*http.Request) int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = how
}

// seen returns the requests that came since it was asked last.
func (f *fake) seen() []*http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.requests
	f.requests = nil
	return r
}

// revoke makes all tokens that were given out so far invalid.
func (f *fake) revoke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.tokens {
		f.refused["token"+strconv.Itoa(i+1)] = true
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v3/auth/tokens" {
		f.authenticate(w)
		return
	}
	token := r.Header.Get("X-Auth-Token")
	f.mu.Lock()
	tamper, refuse, bad := f.tamper, f.refuse, f.refused[token] || token == ""
	f.requests = append(f.requests, r)
	f.mu.Unlock()
	rec := httptest.NewRecorder()
	status := 0
	if bad {
		status = http.StatusUnauthorized
	} else if refuse != nil {
		status = refuse(r)
	}
	if status != 0 {
		rec.WriteHeader(status)
	} else {
		f.serve(rec, r)
	}
	a := &answer{status: rec.Code, header: rec.Header(), body: rec.Body.Bytes()}
	a.header.Set("X-Trans-Id", "tx1")
	if tamper != nil {
		tamper(r, a)
	}
	a.send(w, r)
}

func (a *answer) send(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	// Errors of writing and flushing mean that the client is gone.
	flush := http.NewResponseController(w).Flush
	if a.header.Get("Content-Length") == "" {
		_ = flush() // or the server would count for itself
	}
	rest := a.body
	if a.silence != nil {
		half := len(rest) / 2
		_, _ = w.Write(rest[:half])
		_ = flush()
		rest = rest[half:]
		select {
		case <-a.silence:
		case <-r.Context().Done():
		}
	}
	_, _ = w.Write(rest)
}

func (f *fake) authenticate(w http.ResponseWriter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens++
	w.Header().Set("X-Subject-Token", "token"+strconv.Itoa(f.tokens))
	w.WriteHeader(http.StatusCreated)
	now := time.Now().UTC()
	var catalogue []any
	if f.endpoint != "" {
		catalogue = append(catalogue, fields{"type": "object-store", "endpoints": []any{
			fields{"interface": "public", "region": "r", "region_id": "r", "url": f.endpoint},
		}})
	}
	_ = json.NewEncoder(w).Encode(fields{"token": fields{
		"issued_at":  now.Format("2006-01-02T15:04:05.000000Z"),
		"expires_at": now.Add(time.Hour).Format("2006-01-02T15:04:05.000000Z"),
		"project":    fields{"id": f.service, "name": "service", "domain": fields{"id": "default", "name": "Default"}},
		"catalog":    catalogue,
	}})
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	segments := strings.SplitN(strings.TrimPrefix(r.URL.EscapedPath(), "/v1/"), "/", 3)
	for i, s := range segments {
		var err error
		if segments[i], err = url.PathUnescape(s); err != nil {
			f.t.Errorf("%s: %v", r.RequestURI, err)
		}
	}
	path := strings.Join(segments, "/")
	switch {
	case len(segments) == 1:
		f.describe(w, path+"/")
		w.WriteHeader(http.StatusNoContent)
	case len(segments) == 2 && r.Method == http.MethodGet:
		f.list(w, path+"/", r.URL.Query())
	case len(segments) == 2:
		f.container(w, r, path+"/")
	case r.Method == http.MethodPut:
		f.putObject(w, r, path)
	case r.Method == http.MethodDelete:
		f.deleteObject(w, r, path)
	default:
		f.object(w, r, path)
	}
}

func (f *fake) object(w http.ResponseWriter, r *http.Request, path string) {
	q := r.URL.Query()
	if q.Get("symlink") != "get" {
		f.t.Errorf("%s %s: Swift would follow links", r.Method, r.RequestURI)
	}
	if id := q.Get("version-id"); id != "" {
		path += "@" + id
	}
	f.mu.Lock()
	o := f.objects[path]
	f.mu.Unlock()
	if o == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	defer maps.Copy(w.Header(), o.header) // afterwards: some of it would change what ServeContent does
	if prefix := o.header.Get("X-Object-Manifest"); prefix != "" && q.Get("multipart-manifest") != "get" {
		account, _, _ := strings.Cut(path, "/")
		f.joined(w, r, account+"/", prefix)
		return
	}
	if o.header.Get("X-Static-Large-Object") != "" && q.Get("multipart-manifest") != "get" {
		f.joinedStatic(w, r, o)
		return
	}
	w.Header().Set("ETag", `"`+o.etag+`"`)
	http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), bytes.NewReader(o.content))
	w.Header().Set("ETag", o.etag) // so writes Swift
}

// mustHead fails unless a large object is only looked at.
func (f *fake) mustHead(r *http.Request) {
	if r.Method != http.MethodHead {
		f.t.Errorf("%s %s: Swift would join", r.Method, r.RequestURI)
	}
}

// joinedStatic describes a static large object of plain parts.
func (f *fake) joinedStatic(w http.ResponseWriter, r *http.Request, o *stored) {
	f.mustHead(r)
	size, sum := 0, md5.New()
	for _, s := range o.manifest(f.t) {
		size += s.Bytes
		fmt.Fprint(sum, s.Hash)
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sum.Sum(nil)))
	w.Header().Set("Content-Length", strconv.Itoa(size))
}

// joined describes a dynamic large object.
func (f *fake) joined(w http.ResponseWriter, r *http.Request, account, manifest string) {
	f.mustHead(r)
	manifest, _ = url.PathUnescape(manifest)
	size, sum := 0, md5.New()
	for _, name := range f.names(account + manifest) {
		o := f.objects[name]
		size += len(o.content)
		fmt.Fprint(sum, o.etag)
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sum.Sum(nil)))
	w.Header().Set("Content-Length", strconv.Itoa(size))
}

// names returns the paths that begin so, in their order.
func (f *fake) names(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for path := range f.objects {
		if strings.HasPrefix(path, prefix) && !strings.Contains(path, "@") {
			names = append(names, path)
		}
	}
	slices.Sort(names)
	return names
}

func (f *fake) list(w http.ResponseWriter, container string, q url.Values) {
	page := []any{}
	for _, path := range f.names(container + q.Get("prefix")) {
		name := strings.TrimPrefix(path, container)
		if name <= q.Get("marker") || len(page) == f.pageLimit {
			continue
		}
		f.mu.Lock()
		o := f.objects[path]
		f.mu.Unlock()
		l := fields{"name": name, "hash": o.etag, "bytes": len(o.content), "content_type": "x/y"}
		if o.header.Get("X-Static-Large-Object") != "" {
			l["slo_etag"] = "x"
		}
		if o.header.Get("X-Symlink-Target") != "" {
			l["symlink_path"] = "/v1/x"
		}
		page = append(page, l)
	}
	if q.Get("format") != "json" {
		f.t.Errorf("list asked for as %q", q.Get("format"))
	}
	_ = json.NewEncoder(w).Encode(page)
}
