package glance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/imageapi/imageapitest"
	"vmimport/internal/fault"
	"vmimport/internal/openstack"
)

// The whole contract, against a Glance that behaves as the real one.
func TestConformance(t *testing.T) {
	t.Parallel()
	imageapitest.Run(t, func(t *testing.T) imageapitest.Service { return conforming(t, false) })
}

// The same, where it keeps images in a store that can only read from the front.
func TestConformanceStreams(t *testing.T) {
	t.Parallel()
	imageapitest.Run(t, func(t *testing.T) imageapitest.Service { return conforming(t, true) })
}

func conforming(t *testing.T, frontOnly bool) imageapitest.Service {
	g, cloud := newFake(t)
	g.frontOnly = frontOnly
	return imageapitest.Service{
		Images:   open(t, cloud, Options{Patience: time.Second}),
		Another:  func(t *testing.T) imageapi.Images { return open(t, cloud, Options{Patience: time.Second}) },
		ReadDisk: func(_ *testing.T, id string, _ int) []byte { return g.stored(id) },
		Leftovers: func(_ *testing.T, id string) []string {
			if values := g.read(id); values[propAttempt] != nil {
				return []string{fmt.Sprint(values)}
			}
			return nil
		},
		Streams:   true,
		FrontOnly: frontOnly,
	}
}

func (g *fakeGlance) stored(id string) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return bytes.Clone(g.rows[id].data)
}

// open returns a client of the cloud's Glance. Patience is 800 ms unless o has another.
func open(t testing.TB, cloud *openstack.Cloud, o Options) *Images {
	t.Helper()
	o.Cloud = cloud
	if o.Patience == 0 {
		o.Patience = 800 * time.Millisecond
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = 20 * time.Millisecond
	}
	i, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

// rig is one Glance with one client, and an import of one image.
type rig struct {
	*testing.T
	glance *fakeGlance
	cloud  *openstack.Cloud
	images *Images
	spec   imageapi.Spec
}

func newRig(t *testing.T, o Options) *rig {
	t.Helper()
	g, cloud := newFake(t)
	return &rig{t, g, cloud, open(t, cloud, o), imageapi.Spec{
		ImageID: uuid.NewString(), KeepID: true, ImportID: uuid.NewString(), Attempt: 1,
		Name: "web01", Owner: "customer", Format: "raw", MinRAM: 512, MinDisk: 1, OSType: "ubuntu",
		Properties: map[string]string{"vmimport_region": "east"},
	}}
}

// try returns the spec of another attempt.
func (r *rig) try(attempt int64) imageapi.Spec {
	spec := r.spec
	spec.Attempt = attempt
	return spec
}

func (r *rig) begin(spec imageapi.Spec) *upload {
	r.Helper()
	u, err := r.images.Begin(r.Context(), spec)
	if err != nil {
		r.Fatalf("Begin: %v", err)
	}
	r.Cleanup(func() { _ = u.Close() })
	up, ok := u.(*upload)
	if !ok {
		r.Fatalf("Begin returns a %T", u)
	}
	return up
}

// disk opens the disk of an image.
func (r *rig) disk(u *upload, size int64) imageapi.DiskWriter {
	r.Helper()
	w, ok, err := u.Disk(r.Context(), imageapi.DiskSpec{Number: 1, Size: size})
	if err != nil || ok {
		r.Fatalf("Disk: ok %v, %v", ok, err)
	}
	return w
}

// write writes a disk to its end.
func write(w imageapi.DiskWriter, b []byte) error {
	for off := 0; off < len(b); off += 256 << 10 {
		if _, err := w.WriteAt(b[off:min(len(b), off+256<<10)], int64(off)); err != nil {
			return err
		}
	}
	return w.Close()
}

func (r *rig) fill(u *upload, b []byte) {
	r.Helper()
	if err := write(r.disk(u, int64(len(b))), b); err != nil {
		r.Fatalf("write: %v", err)
	}
}

var someFacts = []imageapi.DiskFacts{{VirtualSize: 1, Properties: map[string]string{"source_format": "vmdk"}}}

func (r *rig) publish(u *upload) {
	r.Helper()
	if err := u.Publish(r.Context(), someFacts); err != nil {
		r.Fatalf("Publish: %v", err)
	}
}

// send does all that an import does after Begin.
func (r *rig) send(u *upload, b []byte) error {
	r.Helper()
	if err := write(r.disk(u, int64(len(b))), b); err != nil {
		return err
	}
	return u.Publish(r.Context(), someFacts)
}

func (r *rig) remove() {
	r.Helper()
	if err := r.images.Remove(r.Context(), r.spec.ImportID, r.spec.ImageID); err != nil {
		r.Fatalf("Remove: %v", err)
	}
}

// wantPublished checks that the customer has the image, with nothing about how it was made.
func (r *rig) wantPublished(spec imageapi.Spec, b []byte) {
	r.Helper()
	values := r.glance.read(spec.ImageID)
	if values["owner"] != spec.Owner || values["status"] != active || values[propImport] != spec.ImportID ||
		values[propAttempt] != nil || values[propKeepID] != nil || values[propParked] != nil || values["name"] != spec.Name {
		r.Errorf("the image is %v", values)
	}
	if !bytes.Equal(r.glance.stored(spec.ImageID), b) {
		r.Error("the image has other bytes")
	}
}

func (r *rig) wantState(want string) {
	r.Helper()
	if got := r.glance.state(r.spec.ImageID); got != want {
		r.Errorf("the image is %q, want %q", got, want)
	}
}

func (r *rig) wantAsked(prefix string, want int) {
	r.Helper()
	if n := r.glance.asked(prefix); n != want {
		r.Errorf("%d requests %s, want %d", n, prefix, want)
	}
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
	if err != nil && (strings.Contains(err.Error(), "token-") || len(err.Error()) > 3000) {
		t.Errorf("%s: a secret, or too long: %.4000s", what, err)
	}
}

// What a customer sees, and what is asked for to make it.
func TestPublished(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	b := noise(300_000, 1)
	u := r.begin(r.spec)
	r.fill(u, b)
	r.publish(u)
	r.wantPublished(r.spec, b)
	values := r.glance.read(r.spec.ImageID)
	for name, want := range map[string]any{
		"visibility": "private", "container_format": "bare", "disk_format": "raw", "min_ram": 512.0, "min_disk": 1.0, "os_type": "ubuntu",
		"vmimport_region": "east", "vmimport_source_format": "vmdk", "protected": false,
	} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
	img, err := r.images.Get(t.Context(), r.spec.ImageID)
	if err != nil || *img != (imageapi.Image{ImageID: r.spec.ImageID, ImportID: r.spec.ImportID, Owner: "customer"}) {
		t.Errorf("Get = %v, %v", img, err)
	}
	r.wantAsked("PUT", 1)
	r.wantAsked("PATCH", 1)
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	for name, want := range map[string]error{"web01": nil, "ウェブ\uffff": nil, "": nil, "web\U0001f600": errName, strings.Repeat("é", 255): nil, strings.Repeat("é", 256): errName} {
		spec := r.spec
		spec.Name = name
		wantError(t, name, r.images.Accepts(spec), want)
		if want != nil {
			_, err := r.images.Begin(t.Context(), spec)
			wantError(t, name, err, want)
		}
	}
	spec := r.spec
	spec.Disks = 1
	wantError(t, "one disk", r.images.Accepts(spec), nil)
	spec.Disks = 2
	wantError(t, "two disks", r.images.Accepts(spec), imageapi.ErrOneDisk)
	r.wantAsked("", 0)
}

// Calls in an order that makes no sense change nothing.
func TestMisuse(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{})
	u := r.begin(r.spec)
	for _, d := range []imageapi.DiskSpec{{Number: 1}, {Number: 1, Size: -1}, {Number: 2, Size: 1}, {Number: 0, Size: 1}} {
		if _, _, err := u.Disk(t.Context(), d); err == nil {
			t.Errorf("Disk(%+v) succeeds", d)
		}
	}
	wantError(t, "Publish of nothing", u.Publish(t.Context(), someFacts), errIncomplete)
	w := r.disk(u, 1000)
	if _, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: 1000}); err == nil {
		t.Error("a second Disk succeeds")
	}
	for _, at := range []struct{ n, off int64 }{{1, 1000}, {1001, 0}, {0, 1001}, {1, 1 << 62}, {1, -1}} {
		if _, err := w.WriteAt(make([]byte, at.n), at.off); err == nil {
			t.Errorf("WriteAt(%d bytes, %d) succeeds", at.n, at.off)
		}
	}
	if n, err := w.WriteAt(nil, 1000); n != 0 || err != nil {
		t.Errorf("WriteAt of nothing at the end = %d, %v", n, err)
	}
	if err := w.Resize(500); err == nil {
		t.Error("Resize of a disk whose size is known succeeds")
	}
	wantError(t, "Publish", u.Publish(t.Context(), someFacts), errIncomplete)
	for range 2 {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	wantError(t, "Publish after Close", u.Publish(t.Context(), someFacts), errClosed)
	_, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: 1})
	wantError(t, "Disk after Close", err, errClosed)
	_, err = w.WriteAt([]byte{1}, 0)
	wantError(t, "WriteAt after Close", err, errClosed)
}

// The length is announced if it is known with the first byte.
func TestLength(t *testing.T) {
	t.Parallel()
	b := noise(200_000, 2)
	for _, tt := range []struct {
		name   string
		size   int64
		resize string // when the size is told, if it was a bound
		want   int64
	}{
		{"known", int64(len(b)), "", int64(len(b))},
		{"told in time", 1 << 40, "first", int64(len(b))},
		{"told at the end", 1 << 40, "last", -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			length := make(chan int64, 1)
			r.glance.before = func(_ http.ResponseWriter, req *http.Request) bool {
				if req.Method == http.MethodPut {
					length <- req.ContentLength
				}
				return false
			}
			u := r.begin(r.spec)
			w, _, err := u.Disk(t.Context(), imageapi.DiskSpec{Number: 1, Size: tt.size, AtMost: tt.resize != ""})
			if err != nil {
				t.Fatal(err)
			}
			resize := func(when string) {
				if when != tt.resize {
					return
				}
				for _, size := range []int64{0, -1, 1<<40 + 1} {
					if w.Resize(size) == nil {
						t.Errorf("Resize(%d) succeeds", size)
					}
				}
				if err := w.Resize(int64(len(b))); err != nil {
					t.Error(err)
				}
				if w.Resize(int64(len(b))) == nil {
					t.Error("a second Resize succeeds")
				}
			}
			resize("first")
			if _, err := w.WriteAt(b[:150_000], 0); err != nil {
				t.Fatal(err)
			}
			if tt.resize == "last" {
				if err := w.Close(); !errors.Is(err, errIncomplete) {
					t.Errorf("Close of a disk whose size nobody knows: %v", err)
				}
			}
			resize("last")
			if _, err := w.WriteAt(b[150_000:], 150_000); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			r.publish(u)
			r.wantPublished(r.spec, b)
			if got := <-length; got != tt.want {
				t.Errorf("Content-Length %d, want %d", got, tt.want)
			}
		})
	}
}

// Sweep removes what nobody works on, and nothing else.
func TestSweep(t *testing.T) {
	t.Parallel()
	r := newRig(t, Options{Region: "here"})
	old := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	begun := func(importID string) map[string]any {
		return map[string]any{"owner": own, "status": queued, propImport: importID, propAttempt: "1", "vmimport_region": "here", "created_at": old}
	}
	with := func(values map[string]any, name string, value any) map[string]any {
		values[name] = value
		return values
	}
	rows := map[string]map[string]any{
		"dead":            begun("dead"),
		"dead, active":    with(begun("dead"), "status", active),
		"dead, kept":      with(begun("dead"), propKeepID, yes),
		"alive":           begun("alive"),
		"young":           with(begun("dead"), "created_at", time.Now().UTC().Format(time.RFC3339)),
		"another region":  with(begun("dead"), "vmimport_region", "there"),
		"handed over":     with(begun("dead"), "owner", "customer"),
		"parked":          {"owner": own, "status": queued, propParked: yes, "created_at": old, "os_hidden": true},
		"of the operator": {"owner": own, "created_at": old},
	}
	ids := map[string]string{}
	for name, values := range rows {
		ids[name] = uuid.NewString()
		r.glance.put(ids[name], values)
	}
	alive := func(id string) (bool, error) { return id != "dead", nil }
	if n, err := r.images.Sweep(t.Context(), alive); n != 3 || err != nil {
		t.Errorf("Sweep = %d, %v", n, err)
	}
	var gone []string
	for name, id := range ids {
		if r.glance.state(id) == "" {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	if !slices.Equal(gone, []string{"dead", "dead, active"}) {
		t.Errorf("removed: %q", gone)
	}
	if r.glance.read(ids["dead, kept"])[propParked] != yes {
		t.Error("an id that is to be kept is not")
	}
	cause := errors.New("the store is away")
	r.glance.put(uuid.NewString(), begun("dead"))
	if _, err := r.images.Sweep(t.Context(), func(string) (bool, error) { return false, cause }); !errors.Is(err, cause) {
		t.Errorf("Sweep: %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		images    int
		forbidden bool
		answer    http.HandlerFunc
		want      error
	}{
		{"all is well", 1, false, nil, nil},
		{"no admin", 1, true, nil, errForbidden},
		{"all is well, and no image", 0, false, nil, nil},
		{"no admin, and no image", 0, true, nil, errForbidden},
		{"it makes what it should refuse", 0, false, func(w http.ResponseWriter, r *http.Request) {
			switch r.Method {
			case http.MethodPost:
				w.WriteHeader(http.StatusCreated)
				_, _ = w.Write([]byte(`{"id": "made"}`))
			case http.MethodDelete:
				w.WriteHeader(http.StatusNoContent)
			default:
				_, _ = w.Write([]byte(`{"images": []}`))
			}
		}, nil},
		{"no Glance there", 1, false, http.NotFound, errUnavailable},
		{"something else there", 1, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, errUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Options{})
			r.glance.forbidden = tt.forbidden
			for range tt.images {
				r.glance.put(r.spec.ImageID, map[string]any{"owner": "customer", "name": "theirs"})
			}
			if tt.answer != nil {
				r.glance.before = func(w http.ResponseWriter, req *http.Request) bool { tt.answer(w, req); return true }
			}
			before := fmt.Sprint(r.glance.read(r.spec.ImageID))
			err := r.images.Check(t.Context())
			wantError(t, "Check", err, tt.want)
			if n := r.glance.asked("DELETE /made"); tt.images == 0 && tt.answer != nil && n != 1 {
				t.Errorf("%d requests to delete what was made", n)
			}
			if tt.want == errForbidden && fault.Of(err).Remedy == "" {
				t.Error("no remedy")
			}
			if after := fmt.Sprint(r.glance.read(r.spec.ImageID)); after != before {
				t.Errorf("the image is %s, was %s", after, before)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, Options{})
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		wantError(t, "Check", r.images.Check(ctx), cause)
	})
}
