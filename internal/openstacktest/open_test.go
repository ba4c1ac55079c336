package openstacktest

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"vmimport/imageapi"
	"vmimport/imageapi/glance"
	"vmimport/internal/openstack"
	env "vmimport/internal/testenv/openstack"
	"vmimport/storage"
)

// asUser makes a request to Glance for a user, with a body of that type.
func asUser(t testing.TB, user *env.User, method, path, contentType string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, cloud.GlanceURL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", tokenOf(t, user, env.ProjectScope))
	req.Header.Set("Content-Type", contentType)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// uploaded returns the id of an image that a customer has made without the service. It
// has no data yet if data is nil.
func uploaded(t testing.TB, user *env.User, data []byte) string {
	t.Helper()
	resp, b := asUser(t, user, http.MethodPost, "/v2/images", "application/json",
		[]byte(`{"name": "snap <1>", "disk_format": "raw", "container_format": "bare", "min_ram": 512, "min_disk": 1, "os_type": "linux", "hw_machine_type": "q35", "base_image_id": "b"}`))
	var image struct{ ID string }
	if err := json.Unmarshal(b, &image); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("create image: %d, %v: %s", resp.StatusCode, err, b)
	}
	if data != nil {
		if resp, b := asUser(t, user, http.MethodPut, "/v2/images/"+image.ID+"/file", "application/octet-stream", data); resp.StatusCode != http.StatusNoContent {
			t.Fatalf("upload image: %d: %s", resp.StatusCode, b)
		}
	}
	return image.ID
}

// What an export reads of Glance: sixteen ranges at a time, through the eight threads
// that its uwsgi has here, of an image that the service has not made.
func TestOpenReadsInParallel(t *testing.T) {
	t.Parallel()
	data := random(7, 96<<20+12_345)
	id := uploaded(t, cloud.Alpha, data)
	images := openGlance(t)
	f, err := images.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, parallel := range []int{1, 4, 16} {
		got := make([]byte, len(data))
		began := time.Now()
		stats := &storage.Stats{}
		sums, err := storage.Fetch(t.Context(), f, storage.Options{
			Pool: storage.NewPool(64<<20, 1<<20), Parallel: parallel, Digests: []string{f.Facts().HashName}, Stats: stats,
		}, func(off int64, p []byte) error { copy(got[off:], p); return nil })
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d ranges at a time: %d bytes in %s, %d retries, %d stalls", parallel, len(got), time.Since(began).Round(time.Millisecond), stats.Retries.Load(), stats.Stalls.Load())
		if !bytes.Equal(got, data) || sums[f.Facts().HashName] != f.Facts().Hash {
			t.Fatalf("other bytes were read, %s %s of %s", f.Facts().HashName, sums[f.Facts().HashName], f.Facts().Hash)
		}
	}
	var wg sync.WaitGroup
	for i := range int64(16) { // all are open before any is read
		body, err := f.ReadRange(t.Context(), i<<20, 6<<20)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data[i<<20:][:6<<20]) {
				t.Errorf("range %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
}

// What is known of a customer's own image, and what of it is kept.
func TestOpenKnowsTheImage(t *testing.T) {
	t.Parallel()
	data := random(8, 12_345)
	id := uploaded(t, cloud.Alpha, data)
	f, err := openGlance(t).Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	got := f.Facts()
	var record map[string]any
	if err := json.Unmarshal(got.Record, &record); err != nil {
		t.Fatal(err)
	}
	got.Record = nil
	sum := sha512.Sum512(data)
	want := imageapi.Facts{
		ImageID: id, Name: "snap <1>", Owner: cloud.Alpha.ProjectID, Format: "raw", ContainerFormat: "bare",
		MinRAM: 512, MinDisk: 1, OSType: "linux", HashName: "sha512", Hash: hex.EncodeToString(sum[:]),
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w || f.Size() != int64(len(data)) {
		t.Errorf("got  %s with %d bytes\nwant %s", g, f.Size(), w)
	}
	// Glance shows the administrator, whom the service is one of, what it shows its owner.
	shown := show(t, id)
	for name, value := range shown {
		_, kept := record[name]
		switch name {
		case "self", "file", "schema", "stores", "locations", "direct_url":
			if kept {
				t.Errorf("record: it has %s", name)
			}
		default:
			if fmt.Sprint(record[name]) != fmt.Sprint(value) {
				t.Errorf("record: %s is %v, and shown as %v", name, record[name], value)
			}
		}
	}
}

// An image is opened only while it is active, and what is left of it after its end is
// ErrGone.
func TestOpenOfImagesThatAreNotActive(t *testing.T) {
	t.Parallel()
	images := openGlance(t)
	wantError := func(what, id string, want error) {
		t.Helper()
		if f, err := images.Open(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v; want %v", what, f, err, want)
		}
	}
	wantError("without data", uploaded(t, cloud.Alpha, nil), imageapi.ErrNotReady)

	id := uploaded(t, cloud.Alpha, random(9, 12<<20))
	f, err := images.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	body, err := f.ReadRange(t.Context(), 1, 11<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if resp, b := asUser(t, cloud.Admin, http.MethodPost, "/v2/images/"+id+"/actions/deactivate", "application/json", nil); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("deactivate: %d: %s", resp.StatusCode, b)
	}
	wantError("deactivated", id, imageapi.ErrNotReady)
	if resp, b := asUser(t, cloud.Alpha, http.MethodDelete, "/v2/images/"+id, "application/json", nil); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("delete: %d: %s", resp.StatusCode, b)
	}
	wantError("deleted", id, imageapi.ErrNoImage)
	if _, err := f.ReadRange(t.Context(), 1, 1); !errors.Is(err, imageapi.ErrGone) {
		t.Errorf("range of a deleted image: %v", err)
	}
	// Glance has the file open still.
	if n, err := io.Copy(io.Discard, body); n != 11<<20 || err != nil {
		t.Errorf("range opened before the image was deleted: %d bytes, %v", n, err)
	}
}

// How Glance answers ranges, as glance.File relies on it.
func TestOpenRelyingOnRanges(t *testing.T) {
	t.Parallel()
	data := random(10, 1000)
	path := "/v2/images/" + uploaded(t, cloud.Alpha, data) + "/file"
	for _, tt := range []struct {
		span   string
		status int
		given  string // Content-Range
		want   []byte
	}{
		{"bytes=0-0", 206, "bytes 0-0/1000", data[:1]},
		{"bytes=10-19", 206, "bytes 10-19/1000", data[10:20]},
		{"bytes=990-999", 206, "bytes 990-999/1000", data[990:]},
		{"bytes=0-999", 206, "bytes 0-999/1000", data},
		{"bytes=990-5000", 206, "bytes 990-999/1000", data[990:]},
		{"bytes=1000-1000", 416, "", nil},
		{"bytes=0-1,5-6", 400, "", nil},
	} {
		resp, b := asUser(t, cloud.Service, http.MethodGet, path, "", nil, "Range", tt.span)
		if resp.StatusCode != tt.status || resp.Header.Get("Content-Range") != tt.given || tt.want != nil && (!bytes.Equal(b, tt.want) || resp.ContentLength != int64(len(b))) {
			t.Errorf("%s: %d with %q, Content-Length %d, %d bytes; want %d with %q, %d bytes",
				tt.span, resp.StatusCode, resp.Header.Get("Content-Range"), resp.ContentLength, len(b), tt.status, tt.given, len(tt.want))
		}
	}
}

// A Glance that keeps an image in a store that can only be read from the front, as Ceph,
// Swift and S3 are for Glance. This one is a web server.
func TestOpenStreams(t *testing.T) {
	t.Parallel()
	data := random(11, 24<<20+12_345)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(web.Close)
	url, err := cloud.StartWebGlance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := uploaded(t, cloud.Alpha, nil)
	located := fmt.Appendf(nil, `[{"op": "add", "path": "/locations/-", "value": {"url": "%s/image", "metadata": {}}}]`, web.URL)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, url+"/v2/images/"+id, bytes.NewReader(located))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", tokenOf(t, cloud.Alpha, env.ProjectScope))
	req.Header.Set("Content-Type", "application/openstack-images-v2.1-json-patch")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("add location: %d, %v: %s", resp.StatusCode, err, b)
	}

	images, err := glance.New(glance.Options{Cloud: service(t, func(o *openstack.Options) {
		o.Endpoints = map[string]string{openstack.Image: url}
	})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = images.Close() })
	f, err := images.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !f.Facts().Streams || f.Size() != int64(len(data)) {
		t.Fatalf("Streams is %v, with %d bytes", f.Facts().Streams, f.Size())
	}
	for _, span := range [][2]int64{{0, 72}, {0, 64 << 10}, {20 << 20, 1000}} {
		body, err := f.ReadRange(t.Context(), span[0], span[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || !bytes.Equal(got, data[span[0]:][:span[1]]) {
			t.Errorf("%d+%d: %d bytes, %v", span[0], span[1], len(got), err)
		}
	}
	seq := storage.Sequential(f, 0)
	defer seq.Close()
	got := make([]byte, len(data))
	_, err = storage.Fetch(t.Context(), seq, storage.Options{Pool: storage.NewPool(16<<20, 1<<20), Parallel: 1, StallAfter: time.Hour},
		func(off int64, p []byte) error { copy(got[off:], p); return nil })
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
