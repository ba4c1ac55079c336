package pipeline

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

func TestImport(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{512, 513, chunk - 1, chunk, chunk + 1, diskSize} {
		b := disk(1, size)
		spec := r.accept(b)
		if got := r.handle(spec); got != "succeeded" {
			t.Errorf("size %d: outcome %q", size, got)
		}
		padded := append(slices.Clone(b), make([]byte, (512-size%512)%512)...)
		task := r.get(spec)
		if task.State != tasks.Succeeded || task.Result.Disks[0].Digests["sha1"] != sha1Hex(b) || len(task.Attempts) != 1 {
			t.Errorf("size %d: %+v", size, task)
		}
		got, err := os.ReadFile(filepath.Join(r.dir, spec.ImageID, "disk-1.raw"))
		if err != nil || !bytes.Equal(got, padded) {
			t.Errorf("size %d: image differs, %v", size, err)
		}
	}
	if got := r.handle(&tasks.Spec{ID: "unknown", Owner: tasks.Owner{Tenant: "d1"}}); got != "" {
		t.Errorf("unknown import: outcome %q", got)
	}
}

func TestSeveralDisks(t *testing.T) {
	r := newRig(t)
	a, b, c := disk(1, diskSize), disk(2, 512), disk(3, 1<<20)
	spec := r.accept(a, b, c)
	r.handle(spec)
	r.wantImage(spec, a, b, c)
}

func TestWrongChecksum(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	r.handle(spec)
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
	if f := r.get(spec).Failure; !strings.Contains(f.Evidence, spec.Disks[0].SHA1) || f.Remedy == "" {
		t.Errorf("failure %+v", f)
	}
}

// flipped is an object with one wrong bit.
type flipped struct{ storage.Object }

func (f flipped) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := f.Object.ReadRange(ctx, off, n)
	if err != nil || off > diskSize/2 || off+n <= diskSize/2 {
		return body, err
	}
	return &flippedBody{body, diskSize/2 - off}, nil
}

type flippedBody struct {
	io.ReadCloser
	at int64
}

func (f *flippedBody) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

func TestObjectReplaced(t *testing.T) {
	r := newRig(t)
	early := r.accept(disk(1, diskSize))
	r.memory.Put(storage.Location(early.Disks[0].Object), disk(2, diskSize))
	r.handle(early)
	r.wantNothing(early, tasks.Failed, "object_changed")

	late := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object {
		return replacing{o, func(context.Context) { r.memory.Put(storage.Location(late.Disks[0].Object), disk(2, diskSize)) }}
	})
	r.handle(late)
	r.wantNothing(late, tasks.Failed, "object_changed")

	gone := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.memory.Remove(storage.Location(gone.Disks[0].Object))
	r.handle(gone)
	r.wantNothing(gone, tasks.Failed, "object_not_found")
}

func TestImageIDOfAnother(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	first, second := r.accept(b), r.accept(disk(2, diskSize))
	second.ImageID = first.ImageID
	second.Owner.Tenant = "d2" // another tenant's reservation is not seen in advance
	second.ID = tasks.ID(uuid.NewString())
	second.RequestedAt = time.Now()
	if _, _, err := r.store.Create(t.Context(), second, tasks.Limits{}); err != nil {
		t.Fatal(err)
	}
	r.handle(first)
	r.handle(second)
	task, err := r.store.Get(t.Context(), tasks.Scope{Region: region, Tenant: "d2"}, second.ID)
	if err != nil || task.State != tasks.Failed || task.Failure.Code != "image_id_in_use" {
		t.Errorf("%+v, %v", task, err)
	}
	r.wantImage(first, b)
}

func TestRegionThatIsNotServed(t *testing.T) {
	r := newRig(t)
	b := disk(1, diskSize)
	spec, canceled := r.accept(b), r.accept(b)
	elsewhere := New(r.claims, nil, r.opt)
	for range 2 * New(nil, nil, Options{}).opt.MaxSetbacks {
		if outcome, err := elsewhere.Handle(t.Context(), spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
			t.Errorf("outcome %q, %v", outcome, err)
		}
	}
	if c := r.get(spec).Attempts[0].Cause; c == nil || c.Code != "region_not_served" {
		t.Errorf("cause %+v", c)
	}
	r.cancel(canceled)
	r.handle(spec)
	r.wantImage(spec, b)
}

func TestPreflight(t *testing.T) {
	r := newRig(t)
	good := r.accept(disk(1, diskSize))
	r.handle(good)
	loc := storage.Location(good.Disks[0].Object)
	qcow2 := loc
	qcow2.Name = "disk.qcow2"
	r.memory.Put(qcow2, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 4096)...))
	empty := loc
	empty.Name = "empty.raw"
	r.memory.Put(empty, nil)
	missing := loc
	missing.Name = "missing.raw"
	for name, c := range map[string]struct {
		loc    storage.Location
		format string
		max    int64
		image  string
		region string
		code   string
	}{
		"good":            {loc: loc, format: "raw", region: region},
		"not declared":    {loc: loc, region: region},
		"missing":         {loc: missing, region: region, code: "object_not_found"},
		"empty":           {loc: empty, region: region, code: "object_empty"},
		"damaged":         {loc: qcow2, format: "qcow2", region: region, code: "image_corrupt"},
		"lying extension": {loc: qcow2, format: "raw", region: region, code: "format_mismatch"},
		"too large":       {loc: loc, region: region, max: diskSize - 1, code: "disk_too_large"},
		"image exists":    {loc: loc, region: region, image: good.ImageID, code: "image_id_in_use"},
		"no such region":  {loc: loc, region: "elsewhere", code: "internal_error"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &tasks.Spec{Region: c.region, ImageID: c.image, Disks: []tasks.Disk{{Object: tasks.Object(c.loc), Format: c.format}}}
			if spec.ImageID == "" {
				spec.ImageID = uuid.NewString()
			}
			limited := map[string]Region{region: {Objects: r.objects, Images: r.images, MaxDisk: c.max}}
			err := NewPreflight(limited).Check(t.Context(), spec)
			if got := fault.CodeOf(err); got != c.code {
				t.Errorf("code %q, want %q: %v", got, c.code, err)
			}
			if c.code == "" && (spec.Disks[0].Bytes != diskSize || spec.Disks[0].Version == "") {
				t.Errorf("disk %+v", spec.Disks[0])
			}
		})
	}
}
