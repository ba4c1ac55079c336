package pipeline

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// cpuTime is what this process has used of the processors: what a test that runs alone in it takes,
// whatever else the machine is busy with.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// A huge disk with little in it takes seconds, wherever that little is, and not the hours of
// all of it.
func TestHugeDisks(t *testing.T) {
	r := newLoneRig(t)
	for _, f := range []struct{ format, declared, size string }{
		{"qcow2", "qcow2", "3T"}, {"vhdx", "vhdx", "3T"}, {"vdi", "vdi", "3T"}, {"vmdk", "vmdk", "3T"}, {"vpc", "vhd", "2000G"},
	} {
		path := filepath.Join(t.TempDir(), "huge")
		imagetest.QemuImg(t, "create", "-q", "-f", f.format, path, f.size)
		imagetest.QemuIO(t, path, f.format, "write -q -P 7 1900G 1M")
		began := cpuTime(t)
		spec := r.acceptImage(f.declared, read(t, path))
		r.handle(spec)
		task := r.get(spec)
		if task.State != tasks.Succeeded {
			t.Fatalf("%s: %s, %+v", f.format, task.State, task.Failure)
		}
		if took := cpuTime(t) - began; took > 20*time.Second {
			t.Errorf("%s took %s of the processor", f.format, took)
		}
		disk, err := os.Open(filepath.Join(r.dir, spec.ImageID, "disk-1.raw"))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<20)
		if _, err := disk.ReadAt(b, 1900<<30); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{7}, 1<<20)) {
			t.Errorf("%s: the data is not where it was: %v", f.format, err)
		}
		disk.Close()
		r.made = append(r.made, spec.ImageID)
		r.wantClean(r.made...)
	}
}

// What is wrong behind the header ends an import with its own reason, and nothing is
// left.
func TestHostileImages(t *testing.T) {
	r := newRig(t)
	r.maxDisk = 64 << 20
	guest := imagetest.Guests(t)[2].Path
	qcow2 := byQemu("qcow2", "")(t, guest)
	stream := byQemu("vmdk", "subformat=streamOptimized")(t, guest)
	packed := byQemu("qcow2", "", "-c")(t, imagetest.Guests(t)[3].Path)
	spoiled := slices.Clone(packed)
	for i := len(spoiled) / 2; i < len(spoiled)/2+4096; i++ {
		spoiled[i] ^= 0x55
	}
	for _, tt := range []struct {
		name     string
		declared string
		object   []byte
		code     string
	}{
		{"cut short", "qcow2", qcow2[:len(qcow2)/2], "image_truncated"},
		{"stream cut short", "vmdk", stream[:len(stream)/2&^511], "image_truncated"},
		{"spoiled cluster", "qcow2", spoiled, "image_corrupt"},
		{"bomb", "raw.gz", zipped(t, make([]byte, 65<<20)), "image_unpacks_too_large"},
		{"backing file inside gzip", "qcow2.gz", zipped(t, imagetest.Patched(qcow2, 8, 0, 0, 0, 0, 0, 0, 4)), "image_backing_file"},
	} {
		t.Log(tt.name)
		spec := r.specOf(tt.declared, tt.object)
		service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
		if _, _, err := service.Register(t.Context(), spec); err != nil {
			if got := fault.CodeOf(err); got != tt.code {
				t.Errorf("%s: refused with %q, want %q", tt.name, got, tt.code)
			}
			continue
		}
		r.handle(spec)
		r.wantNothing(spec, tasks.Failed, tt.code)
	}
}

// The size of a disk inside gzip has nothing to do with how well it packs.
func TestHugeInGzip(t *testing.T) {
	r := newRig(t)
	r.maxDisk = 200 << 30 // what is reserved for it must be there
	path := filepath.Join(t.TempDir(), "huge")
	imagetest.QemuImg(t, "create", "-q", "-f", "vhdx", path, "100G")
	imagetest.QemuIO(t, path, "vhdx", "write -q -P 7 90G 1M")
	for _, target := range []string{"raw", "qcow2"} {
		r.target = target
		spec := r.acceptImage("vhdx.gz", zipped(t, read(t, path)))
		r.handle(spec)
		task := r.get(spec)
		if task.State != tasks.Succeeded || task.Result.Disks[0].VirtualSizes[0] != 100<<30 {
			t.Fatalf("%s: %s, %+v, %+v", target, task.State, task.Failure, task.Result)
		}
	}
}

// A raw disk inside gzip that may be of any size fits into a QCOW2.
func TestUnboundedInGzip(t *testing.T) {
	r := newRig(t)
	r.target = "qcow2"
	guest := imagetest.Guests(t)[0].Path
	spec := r.acceptImage("raw.gz", append(zipped(t, read(t, guest)), zipped(t, make([]byte, 0))...))
	r.handle(spec)
	r.wantGuests(spec, guest)
}

// A disk that is an image itself would be taken for one by who comes next.
func TestDisguised(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner.qcow2")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", inner, "1M")
	if err := os.Truncate(inner, 1<<20); err != nil {
		t.Fatal(err)
	}
	footer := filepath.Join(dir, "footer")
	vhd := read(t, imagetest.Convert(t, imagetest.Guests(t)[0].Path, "vpc", "subformat=fixed,force_size=on"))
	if err := os.WriteFile(footer, append(make([]byte, 1<<20-512), vhd[len(vhd)-512:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range variants {
		if v.declared == "raw" || v.declared == "raw.gz" || v.name == "QCOW2 in no order" {
			continue // raw itself is refused when it is registered
		}
		for _, guest := range []string{inner, footer} {
			spec := r.specOf(v.declared, v.pack(t, guest))
			service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
			if _, _, err := service.Register(t.Context(), spec); err != nil {
				t.Logf("%s: refused as %s", v.name, fault.CodeOf(err))
				continue
			}
			r.handle(spec)
			task := r.get(spec)
			if task.Failure == nil || task.Failure.Code != "disk_looks_like_image" && task.Failure.Code != "format_ambiguous" {
				t.Errorf("%s: %s, %+v", v.name, task.State, task.Failure)
			}
			r.wantNothing(spec, tasks.Failed, "")
		}
	}
}

// An object that cannot be gone on with is not built upon.
func TestNothingStandsOnGzip(t *testing.T) {
	r := newRig(t)
	guest := imagetest.Guests(t)[3].Path
	r.opt.Fetch.MarkEvery = chunk
	spec := r.specOf("raw.gz", zipped(t, read(t, guest)))
	plain := r.specOf("raw", read(t, guest))
	spec.Disks = append(spec.Disks, plain.Disks[0])
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
	if _, _, err := service.Register(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	second := plain.Disks[0].Object
	r.objects.with(func(o storage.Object) storage.Object {
		if want, err := r.memory.Open(t.Context(), storage.Location(second)); err == nil && want.Version() == o.Version() {
			return stallAt(o.Size() - chunk)(o)
		}
		return o
	})
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	go func() {
		r.until(spec, "most of the second disk", func(i *tasks.Task) bool { return i.DoneBytes > spec.TotalBytes()-4*chunk })
		stop(tasks.ErrDraining)
	}()
	if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	if task := r.get(spec); task.Furthest > 0 {
		t.Errorf("a checkpoint at %d stands on gzip", task.Furthest)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	if task := r.get(spec); task.State != tasks.Succeeded || len(task.Result.Disks) != 2 {
		t.Errorf("import is %s, %+v", task.State, task.Failure)
	}
}

// A cancel is quick also where little of an object is much of a disk.
func TestCancelOfMuchFromLittle(t *testing.T) {
	r := newRig(t)
	r.maxDisk = 64 << 30
	var members []byte // zeros would not be written
	block := zipped(t, bytes.Repeat([]byte{1}, 64<<20))
	for range 600 {
		members = append(members, block...)
	}
	spec := r.acceptImage("raw.gz", members)
	ended := make(chan string, 1)
	runner := r.runner()
	go func() {
		outcome, err := runner.Handle(t.Context(), spec.Ref())
		if err != nil {
			t.Error(err)
		}
		ended <- outcome
	}()
	r.until(spec, "the copy", func(i *tasks.Task) bool { return i.Stage == tasks.StageCopying })
	r.cancel(spec)
	runner.Cancel(spec.ID)
	began := time.Now()
	if outcome := <-ended; outcome != string(tasks.Canceled) {
		t.Errorf("outcome %q", outcome)
	}
	if took := time.Since(began); took > 5*time.Second { // 2 on a machine that does nothing else
		t.Errorf("it took %s", took)
	}
	r.wantNothing(spec, tasks.Canceled, "")
}
