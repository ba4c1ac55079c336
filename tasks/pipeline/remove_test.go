package pipeline

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmimport/imageapi"
	"vmimport/storage"
	"vmimport/tasks"
)

func (r *rig) deleteImage(spec *tasks.Spec) {
	r.t.Helper()
	if err := r.store.DeleteImage(r.t.Context(), scopeOf(spec), spec.ID); err != nil {
		r.t.Fatal(err)
	}
}

// A deleted image is removed by a worker, however often that takes.
func TestDeletedImageIsRemoved(t *testing.T) {
	r := newRig(t)
	r.edit = func(s *tasks.Spec) { s.ListsImage = true }
	b := disk(1, diskSize)
	spec := r.accept(b)
	r.handle(spec)
	r.wantImage(spec, b)
	r.made = nil

	r.deleteImage(spec)
	r.objects.with(func(storage.Object) storage.Object { panic("nothing is read for a removal") })
	r.images = &stuck{r.images, 2}
	for range 2 {
		if got := r.handle(spec); got != tasks.OutcomeLeftovers {
			t.Errorf("outcome %q", got)
		}
	}
	if got := r.handle(spec); got != tasks.OutcomeRemoved {
		t.Errorf("outcome %q", got)
	}
	r.wantClean()
	if task := r.get(spec); task.State != tasks.Succeeded || !task.Removed || task.Progress != 100 {
		t.Errorf("%+v", task)
	}
	if got := r.handle(spec); got != "" {
		t.Errorf("another attempt: %q", got)
	}
}

// A worker that is told to stop in the middle of a removal ends it, and one that died
// leaves it to the next.
func TestRemovalOutlivesWorkers(t *testing.T) {
	r := newRig(t)
	r.edit = func(s *tasks.Spec) { s.ListsImage = true }
	spec := r.accept(disk(1, diskSize))
	r.handle(spec)
	r.deleteImage(spec)
	if _, err := r.store.Claim(t.Context(), spec.Ref(), "w0", Lease); err != nil {
		t.Fatal(err)
	}
	r.expire(spec)
	if got := r.handle(spec); got != tasks.OutcomeRemoved {
		t.Errorf("outcome %q", got)
	}
	r.wantClean()
}

func TestDiskLimitOfARequest(t *testing.T) {
	r := newRig(t)
	b, tooLarge := disk(1, diskSize), disk(2, 2*diskSize)
	spec := &tasks.Spec{Region: region, TargetFormat: "raw", ImageID: "i"}
	for i, content := range [][]byte{b, tooLarge} {
		object := tasks.Object{API: "swift", Container: "c", Name: strings.Repeat("x", i+1)}
		r.memory.Put(storage.Location(object), content)
		spec.Disks = append(spec.Disks, tasks.Disk{Object: object, MaxBytes: diskSize})
	}
	err := NewPreflight(r.runner().regions).Check(t.Context(), spec)
	if d, ok := errors.AsType[*tasks.DiskError](err); !ok || d.Number != 2 || failureOf(err).Code != "disk_too_large" {
		t.Errorf("a disk beyond the limit: %v", err)
	}
	spec.Disks[1].MaxBytes = 0
	if err := NewPreflight(r.runner().regions).Check(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{diskSize, 2 * diskSize} {
		if d := spec.Disks[i]; d.Detected != "raw" || d.VirtualBytes != want || d.Bytes != want {
			t.Errorf("disk %d: %+v", i+1, d)
		}
	}
}

// one is an image service whose images have one disk.
type one struct{ imageapi.Images }

func (one) Accepts(s imageapi.Spec) error {
	if s.Disks > 1 {
		return imageapi.ErrOneDisk
	}
	return nil
}

func TestTooManyDisksAreRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	r.images = one{r.images}
	spec := &tasks.Spec{Region: region, TargetFormat: "raw", ImageID: "i"}
	for range 2 {
		object := tasks.Object{API: "swift", Container: "c", Name: "disk"}
		r.memory.Put(storage.Location(object), disk(1, diskSize))
		spec.Disks = append(spec.Disks, tasks.Disk{Object: object})
	}
	if err := NewPreflight(r.runner().regions).Check(t.Context(), spec); !errors.Is(err, imageapi.ErrOneDisk) {
		t.Errorf("two disks: %v", err)
	}
}

// What the dialect has to say of an image is kept with it, and a failure says which disk it
// is about.
func TestPropertiesAndTheFailingDisk(t *testing.T) {
	r := newRig(t)
	r.edit = func(s *tasks.Spec) { s.Properties = map[string]string{"hw_firmware_type": "uefi"} }
	a, b := disk(1, diskSize), disk(2, diskSize)
	spec := r.accept(a, b)
	r.handle(spec)
	r.wantImage(spec, a, b)
	record, err := os.ReadFile(filepath.Join(r.dir, spec.ImageID, "image.json"))
	if err != nil || !strings.Contains(string(record), `"hw_firmware_type": "uefi"`) {
		t.Errorf("%s, %v", record, err)
	}

	r.edit = func(s *tasks.Spec) { s.Disks[1].SHA1 = strings.Repeat("0", 40) }
	bad := r.accept(a, b)
	r.handle(bad)
	if f := r.get(bad).Failure; f == nil || f.Code != "checksum_mismatch" || f.Disk != 2 {
		t.Errorf("%+v", f)
	}
}
