package openstacktest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/internal/config"
	"vmimport/internal/diskimage/imagetest"
	programs "vmimport/internal/testenv/service"
	"vmimport/tasks"
)

// guestBytes is the size of the disk that is imported.
var guestBytes = config.ByteSize(2 << 30)

func init() {
	flag.TextVar(&guestBytes, "bench.guest", guestBytes, "size of the disk that benchmarks import")
}

// BenchmarkGlance compares three ways of a raw disk into Glance, in turn: an import by
// this service, from the request until it is recorded as successful; Glance's own
// import of the same object from the same Swift, until the image is active; and a bare
// upload of the same bytes from a file. Only the first hashes the object, and compares
// what Glance stored with it.
//
// x-web-download is how many times as fast as Glance's import ours is, and x-upload as
// the bare upload. All servers are on the same cores as the service.
func BenchmarkGlance(b *testing.B) {
	disk := filepath.Join(b.TempDir(), "disk.raw")
	imagetest.Disk(b, disk, int64(guestBytes))
	r := newRace(b, disk)
	r.once() // warms the caches, of tokens too
	var imports, downloads, uploads, cpu []float64
	for b.Loop() {
		lap := r.once()
		imports = append(imports, lap.imported.Seconds())
		downloads = append(downloads, lap.downloaded.Seconds()/lap.imported.Seconds())
		uploads = append(uploads, lap.uploaded.Seconds()/lap.imported.Seconds())
		cpu = append(cpu, lap.cpu)
		b.Logf("import %s, of which the worker computes %.1f s; web-download %s; upload %s",
			lap.imported.Round(time.Millisecond), lap.cpu, lap.downloaded.Round(time.Millisecond), lap.uploaded.Round(time.Millisecond))
	}
	b.ReportMetric(0, "ns/op") // of all three, and of all around them
	b.ReportMetric(median(downloads), "x-web-download")
	b.ReportMetric(median(uploads), "x-upload")
	b.ReportMetric(median(imports), "s")
	b.ReportMetric(median(cpu), "worker-cpu-s")
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// race has a disk as a file, and as an object that everybody may read.
type race struct {
	b      *testing.B
	in     *installation
	worker *programs.Process
	alice  *customer
	disk   string
	bytes  int64
	sha1   string
}

// lap is how long each way took once, and the CPU time of ours, in seconds.
type lap struct {
	imported, downloaded, uploaded time.Duration
	cpu                            float64
}

func newRace(b *testing.B, disk string) *race {
	b.Helper()
	r := &race{b: b, in: install(b, settings{}), alice: customerOf(b, cloud.Alpha), disk: disk, bytes: int64(guestBytes)}
	r.worker = r.in.start("worker", settings{})
	r.alice.put("", nil, "X-Container-Read", ".r:*")
	f := r.open()
	r.send(http.MethodPut, cloud.AccountURL(cloud.Alpha)+"/"+r.alice.container+"/disk.raw", f, http.StatusCreated)
	sum, err := client.SHA1(b.Context(), r.open(), r.bytes, nil)
	if err != nil {
		b.Fatal(err)
	}
	r.sha1 = sum
	return r
}

func (r *race) open() *os.File {
	r.b.Helper()
	f, err := os.Open(r.disk)
	if err != nil {
		r.b.Fatal(err)
	}
	r.b.Cleanup(func() { _ = f.Close() })
	return f
}

// once goes all three ways. The images are removed, so that none has less room on the
// disk than another.
func (r *race) once() (l lap) {
	cpu := r.cpu()
	var id string
	l.imported = r.timed(func() { id = r.byImport() })
	l.cpu = r.cpu() - cpu
	r.remove(id)
	l.downloaded = r.timed(func() { id = r.byWebDownload() })
	r.remove(id)
	l.uploaded = r.timed(func() { id = r.byUpload() })
	r.remove(id)
	return l
}

func (r *race) timed(do func()) time.Duration {
	syscall.Sync()
	began := time.Now()
	do()
	return time.Since(began)
}

func (r *race) byImport() (imageID string) {
	api := r.in.client(cloud.Alpha)
	request := r.alice.request("disk.raw")
	request.Checksum = r.sha1
	return r.in.wantEnd(api, r.in.register(api, request), 10*time.Minute, tasks.Succeeded, "").ID
}

func (r *race) byWebDownload() (imageID string) {
	r.b.Helper()
	id := r.create()
	r.send(http.MethodPost, cloud.GlanceURL+"/v2/images/"+id+"/import", object{"method": object{
		"name": "web-download", "uri": cloud.AccountURL(cloud.Alpha) + "/" + r.alice.container + "/disk.raw",
	}}, http.StatusAccepted)
	ctx, cancel := context.WithTimeout(r.b.Context(), 10*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var image struct {
			Status string
			Failed string `json:"os_glance_failed_import"`
		}
		body := r.send(http.MethodGet, cloud.GlanceURL+"/v2/images/"+id, nil, http.StatusOK)
		if err := json.Unmarshal(body, &image); err != nil || image.Failed != "" {
			r.b.Fatalf("web-download: %v: %s", err, body)
		}
		if image.Status == "active" {
			return id
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.b.Fatalf("web-download does not end: %s", body)
		}
	}
}

func (r *race) byUpload() (imageID string) {
	r.b.Helper()
	id := r.create()
	r.send(http.MethodPut, cloud.GlanceURL+"/v2/images/"+id+"/file", r.open(), http.StatusNoContent)
	return id
}

// object is a JSON object.
type object map[string]any

func (r *race) create() (imageID string) {
	r.b.Helper()
	id := uuid.NewString()
	r.send(http.MethodPost, cloud.GlanceURL+"/v2/images", object{"id": id, "name": "race", "disk_format": "raw", "container_format": "bare"}, http.StatusCreated)
	return id
}

func (r *race) remove(imageID string) {
	r.b.Helper()
	r.send(http.MethodDelete, cloud.GlanceURL+"/v2/images/"+imageID, nil, http.StatusNoContent)
}

// send makes a request as the customer, with a file or JSON as its body, and returns the
// answer.
func (r *race) send(method, url string, body any, want int) []byte {
	r.b.Helper()
	kind, length, from := "application/json", int64(0), io.Reader(http.NoBody)
	switch body := body.(type) {
	case *os.File:
		kind, length, from = "application/octet-stream", r.bytes, body
	case object:
		b, err := json.Marshal(body)
		if err != nil {
			r.b.Fatal(err)
		}
		length, from = int64(len(b)), bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(r.b.Context(), method, url, from)
	if err != nil {
		r.b.Fatal(err)
	}
	req.ContentLength = length
	req.Header.Set("Content-Type", kind)
	req.Header.Set("X-Auth-Token", r.alice.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.b.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		r.b.Fatalf("%s %s: %s, %v: %s", method, url, resp.Status, err, answer)
	}
	return answer
}

// cpu returns the CPU time that the worker has taken, in seconds.
func (r *race) cpu() (seconds float64) {
	r.b.Helper()
	a := call(r.b, r.worker, http.MethodGet, "/metrics", "", "")
	_, value, _ := strings.Cut(a.body, "\nprocess_cpu_seconds_total ")
	if _, err := fmt.Sscan(value, &seconds); err != nil {
		r.b.Fatalf("metrics have no CPU time: %d, %v", a.status, err)
	}
	return seconds
}
