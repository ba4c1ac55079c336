package portal

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
)

const (
	goodToken = "gAAAAABtoken-for_tests~=="
	project   = "6f0b1c2d3e4f5a6b7c8d9e0f1a2b3c4d"
	taskA     = "0d5f3f0e-8a0d-4c0e-9c57-5a1d9a3c7b11"
	taskB     = "7c4b3c59-5b25-4f0f-a2ce-3e3f6a0f0c02"
)

var testNow = time.Date(2026, 3, 6, 17, 30, 0, 0, time.UTC)

var testOffers = Offers{
	LocationVersion: "v2",
	S3Locations:     true,
	Hypervisors: []Hypervisor{
		{"vmware", []string{".vmdk", ".img.gz", ".qcow2.gz"}},
		{"kvm", []string{".qcow2", ".img.gz", ".qcow2.gz"}},
	},
	DiskExtensions: []string{".img.gz", ".qcow2.gz"},
	OSTypes:        []string{"rhel8", "rocky", "ubuntu"},
	CancelImports:  true,
	Exports:        true,
}

// fakeAPI answers as the API does. Answers are by method and path; with none it is 404.
type fakeAPI struct {
	mu      sync.Mutex
	answers map[string]func(http.ResponseWriter, *http.Request)
	calls   []*http.Request
	bodies  []string
}

func (f *fakeAPI) on(route string, status int, body any) *fakeAPI {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	f.answers[route] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set(projectHeader, project)
		w.WriteHeader(status)
		_, _ = w.Write(b)
	}
	return f
}

func said(code, message string) map[string]string {
	return map[string]string{"error_code": code, "message": message, "error_message": message}
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body strings.Builder
	if r.Body != nil {
		b := make([]byte, 1<<16)
		n, _ := r.Body.Read(b)
		body.Write(b[:n])
	}
	f.mu.Lock()
	f.calls, f.bodies = append(f.calls, r), append(f.bodies, body.String())
	answer := f.answers[r.Method+" "+r.URL.Path]
	f.mu.Unlock()
	switch {
	case r.Header.Get("X-Auth-Token") != goodToken:
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(said("40101", "The token is missing, invalid or expired."))
	case answer == nil:
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(said("40401", "Invalid import_id."))
	default:
		answer(w, r)
	}
}

// newAPI returns an API with two imports and an export.
func newAPI() *fakeAPI {
	f := &fakeAPI{answers: map[string]func(http.ResponseWriter, *http.Request){}}
	f.on("GET /v1/imageimport", 200, map[string]any{"imports": []any{
		entryOf("import", taskA, running("web01-system")),
		entryOf("import", taskB, failed("db <script>alert(1)</script>")),
	}})
	f.on("GET /v1/imageexport", 200, map[string]any{"exports": []any{
		entryOf("export", taskA, exported()),
	}})
	f.on("GET /v1/imageimport/"+taskA+"/status", 200, running("web01-system"))
	f.on("GET /v1/imageimport/"+taskB+"/status", 200, failed("db <script>alert(1)</script>"))
	f.on("GET /v1/imageexport/"+taskA+"/status", 200, exported())
	return f
}

// entryOf is a task in a list, by its status.
func entryOf(kind, id string, status map[string]any) map[string]any {
	extra := maps.Clone(status["vmimport"].(map[string]any))
	delete(extra, "attempts")
	extra["name"], extra["progress"] = cmp.Or(status["name"], status["image_name"]), status["progress"]
	if message, ok := status["error_message"]; ok {
		extra["error_message"] = message
	}
	entry := map[string]any{kind + "_id": id, kind + "_status": status[kind+"_status"], "vmimport": extra}
	if image, ok := status["image_id"]; ok {
		entry["image_id"] = image
	}
	return entry
}

func running(name string) map[string]any {
	return map[string]any{
		"import_status": "processing", "progress": 37, "name": name, "disk_format": "raw", "container_format": "bare",
		"location": "/v2/AUTH_" + project + "/vmimages/web01/web01-disk1.vmdk", "id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77",
		"min_ram": 2048, "min_disk": 40, "os_type": "rocky", "conversion": true, "details": map[string]any{"image_from": "vmware"},
		"vmimport": map[string]any{
			"stage": "copying", "done_bytes": 15 << 30, "total_bytes": 40 << 30, "bytes_per_second": 96 << 20, "attempt": 1,
			"retries": 2, "stalls": 1, "requested_at": testNow.Add(-10 * time.Minute),
		},
	}
}

func failed(name string) map[string]any {
	return map[string]any{
		"import_status": "failed", "progress": 61, "name": name, "location": "/v2/AUTH_" + project + "/vmimages/db.vmdk",
		"id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a78", "os_type": "rhel8", "checksum": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
		"error_message": "Checksum of the image file does not match (declared 2fd4, computed 9e1d). Compute the SHA-1 of the file again.",
		"vmimport": map[string]any{
			"stage": "done", "done_bytes": 1 << 30, "total_bytes": 1 << 30, "attempt": 2, "requested_at": testNow.Add(-time.Hour),
			"finished_at": testNow.Add(-20 * time.Minute), "failure_code": "checksum_mismatch", "evidence": "declared 2fd4, computed 9e1d",
			"remedy": "Compute the SHA-1 of the file again.", "kept_until": testNow.Add(23 * time.Hour),
			"attempts": []any{
				map[string]any{"attempt": 1, "started_at": testNow.Add(-50 * time.Minute), "ended_at": testNow.Add(-40 * time.Minute), "outcome": "lost", "done_bytes": 512 << 20},
				map[string]any{"attempt": 2, "started_at": testNow.Add(-30 * time.Minute), "ended_at": testNow.Add(-20 * time.Minute), "outcome": "failed", "from_bytes": 512 << 20, "done_bytes": 1 << 30,
					"failure_code": "checksum_mismatch", "message": "Checksum of the image file does not match.", "evidence": "declared 2fd4, computed 9e1d", "remedy": "Compute."},
			},
		},
	}
}

func exported() map[string]any {
	return map[string]any{
		"export_id": taskA, "export_status": "succeeded", "progress": 100, "image_id": "5b1c1c0e-53a7-4c2a-9a53-2d0f0c1b8a77", "image_name": "web01",
		"storage_container": "/v2/AUTH_" + project + "/backup", "details": map[string]any{"image_to": "vmware"},
		"vmimport": map[string]any{
			"stage": "done", "done_bytes": 1 << 30, "total_bytes": 1 << 30, "attempt": 1, "requested_at": testNow.Add(-time.Hour), "finished_at": testNow,
			"source_format": "qcow2", "virtual_size": 40 << 30,
			"objects": []any{map[string]any{"name": "web01.vmdk", "bytes": 900 << 20, "sha1": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "sha256": strings.Repeat("ab", 32)}},
		},
	}
}

// rig is a portal with its API, as a server has them.
type rig struct {
	api  *fakeAPI
	echo *echo.Echo
}

func newRig(t testing.TB, change ...func(*Options)) *rig {
	api := newAPI()
	opts := Options{Region: "jp-east-3", API: api, Offers: testOffers, Now: func() time.Time { return testNow }}
	for _, f := range change {
		f(&opts)
	}
	p, e := New(opts), echo.New()
	e.HTTPErrorHandler = func(err error, c echo.Context) {
		if err := p.WriteError(c, err); err != nil {
			t.Error(err)
		}
	}
	p.Mount(e)
	return &rig{api, e}
}

// do sends a request as the portal's own pages would. Headers that are "" are removed.
func (r *rig) do(method, target string, form url.Values, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, strings.NewReader(form.Encode()))
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	req.Header.Set("Cookie", tokenCookie+"="+url.QueryEscape(goodToken))
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		}
	}
	w := httptest.NewRecorder()
	r.echo.ServeHTTP(w, req)
	return w
}

func (r *rig) get(target string, headers ...string) *httptest.ResponseRecorder {
	return r.do(http.MethodGet, target, nil, headers...)
}
