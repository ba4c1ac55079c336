package glance

import (
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vmimport/internal/openstack"
	"vmimport/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// own is the service's project.
const own = "service-project"

// image is a row of Glance's database: values as the API shows them, and the data.
type image struct {
	values  map[string]any
	deleted bool
	data    []byte
}

// fakeGlance behaves as Glance does where that matters here. Rows are never removed.
// A change reads a row, and later writes all of it back; an upload does so at its
// beginning and at its end, and asks only then for a state.
type fakeGlance struct {
	t         testing.TB
	hasher    func() hash.Hash
	algo      string
	forbidden bool // the service's user is no admin
	frontOnly bool // the store cannot read from the middle
	cap       int64

	mu       sync.Mutex
	rows     map[string]*image
	refused  map[string]bool // tokens
	tokens   int
	requests []string

	uploads sync.WaitGroup
	over    chan struct{} // closed with the test: for handlers that hang

	// before is called before a request is looked at; true: it has answered. amid is
	// called between the reading and the writing of a change, starting between those of an
	// upload's beginning, and taking with how much of a body was read.
	before   func(w http.ResponseWriter, r *http.Request) bool
	amid     func(id string)
	starting func()
	taking   func(r *http.Request, n int64)
}

// newFake starts a Glance and a Keystone that says where it is.
func newFake(t testing.TB) (*fakeGlance, *openstack.Cloud) {
	t.Helper()
	g := &fakeGlance{t: t, hasher: sha512.New, algo: "sha512", cap: 1 << 40, rows: map[string]*image{}, refused: map[string]bool{}, over: make(chan struct{})}
	server := httptest.NewServer(g)
	keystone := httptest.NewServer(g.keystone(server.URL))
	t.Cleanup(func() {
		close(g.over)
		server.Close()
		keystone.Close()
	})
	cloud, err := openstack.New(openstack.Options{
		AuthURL: keystone.URL + "/v3", Username: "vmimport", Password: secret.New("password"), Project: "service",
	})
	if err != nil {
		t.Fatal(err)
	}
	return g, cloud
}

func (g *fakeGlance) keystone(glance string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.tokens++
		now := time.Now().UTC()
		w.Header().Set("X-Subject-Token", fmt.Sprintf("token-%d", g.tokens))
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"token":{"project":{"id":%q},"issued_at":%q,"expires_at":%q,"catalog":[{"type":"image","endpoints":[{"interface":"public","url":%q}]}]}}`,
			own, now.Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339), glance)
	}
}

func (g *fakeGlance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.requests = append(g.requests, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v2/images"))
	refused, before := g.refused[r.Header.Get("X-Auth-Token")], g.before
	g.mu.Unlock()
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/json")
	if before != nil && before(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/images")
	id, file, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch {
	case refused || r.Header.Get("X-Auth-Token") == "":
		say(w, http.StatusUnauthorized, "Authentication required")
	case !ok:
		say(w, http.StatusNotFound, "The resource could not be found.")
	case id == "" && r.Method == http.MethodPost:
		g.create(w, r)
	case id == "" && r.Method == http.MethodGet:
		g.list(w, r)
	case file == "file" && r.Method == http.MethodPut:
		g.upload(w, r, id)
	case file == "file" && r.Method == http.MethodGet:
		g.download(w, r, id)
	case file == "" && r.Method == http.MethodGet:
		g.show(w, id)
	case file == "" && r.Method == http.MethodPatch:
		g.patch(w, r, id)
	case file == "" && r.Method == http.MethodDelete:
		g.delete(w, id)
	default:
		g.t.Errorf("%s %s", r.Method, r.URL)
	}
}

// say answers as Glance does when something is wrong.
func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html>\n <head>\n  <title>%d %s</title>\n </head>\n <body>\n  %s<br /><br />\n </body>\n</html>", status, http.StatusText(status), text)
}

// read returns a copy of a row's values, nil if there is none.
func (g *fakeGlance) read(id string) map[string]any {
	g.mu.Lock()
	defer g.mu.Unlock()
	if row := g.rows[id]; row != nil && !row.deleted {
		return maps.Clone(row.values)
	}
	return nil
}

// save writes all values back, if the row has that state, or in any case if from is
// empty. An administrator's changes find rows that were deleted.
func (g *fakeGlance) save(id string, values map[string]any, from string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	row := g.rows[id]
	if from != "" && (row.deleted || row.values["status"] != from) {
		return false
	}
	row.values = maps.Clone(values)
	return true
}

func (g *fakeGlance) create(w http.ResponseWriter, r *http.Request) {
	var values map[string]any
	if err := json.NewDecoder(r.Body).Decode(&values); err != nil {
		g.t.Error(err)
	}
	id, _ := values["id"].(string)
	owner, given := values["owner"]
	minDisk, _ := values["min_disk"].(float64)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case given && owner != own && g.forbidden:
		say(w, http.StatusForbidden, "You are not permitted to create images owned by others.")
		return
	case minDisk < 0:
		say(w, http.StatusBadRequest, "Invalid value for option min_disk: Cannot be a negative value")
		return
	case g.rows[id] != nil:
		say(w, http.StatusConflict, "Image ID "+id+" already exists!")
		return
	case !given:
		values["owner"] = own
	}
	values["status"], values["size"], values["os_hash_algo"], values["os_hash_value"] = "queued", nil, nil, nil
	values["created_at"] = time.Now().UTC().Format(time.RFC3339)
	if _, ok := values["protected"]; !ok {
		values["protected"] = false
	}
	values["self"], values["file"], values["schema"] = "/v2/images/"+id, "/v2/images/"+id+"/file", "/v2/schemas/image"
	g.rows[id] = &image{values: values}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(values)
}

func (g *fakeGlance) show(w http.ResponseWriter, id string) {
	values := g.read(id)
	if values == nil {
		say(w, http.StatusNotFound, "No image found with ID "+id)
		return
	}
	_ = json.NewEncoder(w).Encode(values)
}

// list shows one image a page.
func (g *fakeGlance) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(g.rows)) {
		row := g.rows[id]
		if row.deleted || id <= q.Get("marker") || row.values["os_hidden"] == true ||
			q.Has("owner") && q.Get("owner") != row.values["owner"] || q.Has("visibility") && q.Get("visibility") != row.values["visibility"] {
			continue
		}
		q.Set("marker", id)
		_ = json.NewEncoder(w).Encode(map[string]any{"images": []any{row.values}, "next": "/v2/images?" + q.Encode()})
		return
	}
	_, _ = io.WriteString(w, `{"images": []}`)
}

func (g *fakeGlance) patch(w http.ResponseWriter, r *http.Request, id string) {
	values := g.read(id)
	if values == nil {
		say(w, http.StatusNotFound, "No image found with ID "+id)
		return
	}
	var changes []struct {
		Op, Path string
		Value    any
	}
	if err := json.NewDecoder(r.Body).Decode(&changes); err != nil {
		g.t.Error(err)
	}
	for _, c := range changes {
		name := strings.TrimPrefix(c.Path, "/")
		_, there := values[name]
		switch {
		case name == "owner" && g.forbidden:
			say(w, http.StatusForbidden, "Owner can't be updated by non admin.")
			return
		case name == "disk_format" && values["status"] != "queued":
			say(w, http.StatusForbidden, "Attribute disk_format can be only replaced for a queued image.")
			return
		case c.Op != "add" && !there && name != "os_hidden":
			say(w, http.StatusConflict, "Property "+name+" does not exist.")
			return
		case c.Op == "remove":
			delete(values, name)
		default:
			values[name] = c.Value
		}
	}
	if g.amid != nil {
		g.amid(id)
	}
	g.save(id, values, "")
	_ = json.NewEncoder(w).Encode(values)
}

func (g *fakeGlance) delete(w http.ResponseWriter, id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	row := g.rows[id]
	switch {
	case row == nil || row.deleted:
		say(w, http.StatusNotFound, "Failed to find image "+id+" to delete")
	case row.values["protected"] == true:
		say(w, http.StatusForbidden, "Image "+id+" is protected and cannot be deleted.")
	default:
		row.deleted, row.data, row.values["status"] = true, nil, "deleted"
		w.WriteHeader(http.StatusNoContent)
	}
}

// download answers a range as glance/api/v2/image_data.py does, also when the store can
// only read from the front, or has lost the data.
func (g *fakeGlance) download(w http.ResponseWriter, r *http.Request, id string) {
	g.mu.Lock()
	row := g.rows[id]
	if row == nil || row.deleted {
		g.mu.Unlock()
		say(w, http.StatusNotFound, "No image found with ID "+id)
		return
	}
	data, status, span := row.data, http.StatusOK, r.Header.Get("Range")
	g.mu.Unlock()
	if span != "" {
		var first, last int
		if n, err := fmt.Sscanf(span, "bytes=%d-%d", &first, &last); n != 2 || err != nil || first > last {
			g.t.Errorf("Range: %s", span)
		}
		if first >= len(data) {
			say(w, http.StatusRequestedRangeNotSatisfiable, "Invalid start position in Range header.")
			return
		}
		if g.frontOnly {
			say(w, http.StatusBadRequest, "Getting images randomly from this store is not supported.")
			return
		}
		last = min(last, len(data)-1)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		data, status = data[first:last+1], http.StatusPartialContent
	}
	if data == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (g *fakeGlance) upload(w http.ResponseWriter, r *http.Request, id string) {
	g.uploads.Add(1)
	defer g.uploads.Done()
	values := g.read(id)
	switch {
	case r.Header.Get("Content-Type") != "application/octet-stream":
		say(w, http.StatusUnsupportedMediaType, "Unsupported Content-Type")
		return
	case values == nil:
		say(w, http.StatusNotFound, "No image found with ID "+id)
		return
	case values["status"] != queued:
		say(w, http.StatusConflict, fmt.Sprintf("Image status transition from %s to saving is not allowed", values["status"]))
		return
	}
	if g.starting != nil {
		g.starting()
	}
	values["status"] = saving
	if !g.save(id, values, queued) {
		say(w, http.StatusGone, "Image could not be found after upload.")
		return
	}
	data, err := g.take(r)
	if err != nil {
		values["status"] = queued
		g.save(id, values, "")
		say(w, http.StatusRequestEntityTooLarge, "The provided image is too large.")
		return
	}
	sum := g.hasher()
	sum.Write(data)
	values["status"], values["size"] = active, len(data)
	values["os_hash_algo"], values["os_hash_value"] = g.algo, hex.EncodeToString(sum.Sum(nil))
	values["checksum"] = fmt.Sprintf("%x", md5.Sum(data))
	if !g.save(id, values, saving) {
		say(w, http.StatusGone, "Image could not be found after upload.")
		return
	}
	g.mu.Lock()
	g.rows[id].data = data
	g.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// take reads a body.
func (g *fakeGlance) take(r *http.Request) ([]byte, error) {
	data, buf := make([]byte, 0, max(r.ContentLength, 64<<10)), make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		data = append(data, buf[:n]...)
		if g.taking != nil {
			g.taking(r, int64(len(data)))
		}
		switch {
		case int64(len(data)) > g.cap:
			return nil, fmt.Errorf("%d bytes", len(data))
		case err == io.EOF:
			return data, nil
		case err != nil:
			return nil, err
		}
	}
}

// state returns the state of an image, "" if there is none.
func (g *fakeGlance) state(id string) string {
	s, _ := g.read(id)["status"].(string)
	return s
}

// set changes values of an image as its owner, or the cloud's administrator, can.
func (g *fakeGlance) set(id, name string, value any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rows[id].values[name] = value
}

// put makes an image as somebody else does.
func (g *fakeGlance) put(id string, values map[string]any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := map[string]any{
		"id": id, "name": "", "status": active, "protected": false, "visibility": "private",
		"min_ram": 0, "min_disk": 0, "created_at": time.Now().UTC().Format(time.RFC3339),
	}
	maps.Copy(all, values)
	g.rows[id] = &image{values: all}
}

// asked returns the requests that begin like that.
func (g *fakeGlance) asked(prefix string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, r := range g.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// hashing makes Glance use another algorithm.
func (g *fakeGlance) hashing(algo string) {
	g.algo, g.hasher = algo, map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New, "blake": md5.New}[algo]
}
