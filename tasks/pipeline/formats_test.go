package pipeline

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/imageapi"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
	"vmimport/internal/scratch"
	"vmimport/storage"
	"vmimport/tasks"
)

// acceptImage registers the import of one object of a declared format.
func (r *rig) acceptImage(format string, object []byte) *tasks.Spec {
	r.t.Helper()
	spec := r.specOf(format, object)
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Limits{}, time.Now)
	if _, _, err := service.Register(r.t.Context(), spec); err != nil {
		r.t.Fatal(err)
	}
	return spec
}

func (r *rig) specOf(format string, object []byte) *tasks.Spec {
	spec := &tasks.Spec{
		ID: tasks.ID(uuid.NewString()), Owner: tasks.Owner{Tenant: "d1", Project: "alpha"}, Dialect: "fjcloud", Region: region,
		Name: "web01", ImageID: uuid.NewString(), TargetFormat: r.target,
	}
	o := tasks.Object{API: "swift", Project: "alpha", Container: string(spec.ID), Name: "disk." + format}
	r.memory.Put(storage.Location(o), object)
	spec.Disks = []tasks.Disk{{Object: o, Format: format, SHA1: sha1Hex(object)}}
	return spec
}

// wantGuests checks that an import succeeded, and that its disks are those guests: the
// same bytes, and the same holes as qemu-img makes.
func (r *rig) wantGuests(spec *tasks.Spec, guests ...string) {
	r.t.Helper()
	imp := r.get(spec)
	if imp.State != tasks.Succeeded || len(imp.Result.Disks) != 1 || len(imp.Result.Disks[0].VirtualSizes) != len(guests) {
		r.t.Fatalf("import is %s, failure %+v, result %+v", imp.State, imp.Failure, imp.Result)
	}
	if got, want := imp.Result.Disks[0].Digests["sha1"], spec.Disks[0].SHA1; got != want {
		r.t.Errorf("SHA-1 %s, want %s", got, want)
	}
	for i, guest := range guests {
		want, err := os.ReadFile(guest)
		if err != nil {
			r.t.Fatal(err)
		}
		path := filepath.Join(r.dir, spec.ImageID, fmt.Sprintf("disk-%d.%s", i+1, spec.TargetFormat))
		if spec.TargetFormat == "qcow2" {
			imagetest.QemuImg(r.t, "check", "-q", "-f", "qcow2", path)
			raw := filepath.Join(r.t.TempDir(), "raw")
			imagetest.QemuImg(r.t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
			path = raw
		}
		got, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		if rounded := (len(want) + 511) &^ 511; len(got) != rounded || imp.Result.Disks[0].VirtualSizes[i] != int64(rounded) {
			r.t.Errorf("disk %d has %d bytes, want %d; the record says %v", i+1, len(got), rounded, imp.Result.Disks[0].VirtualSizes)
		}
		if !bytes.Equal(got[:len(want)], want) {
			r.t.Errorf("disk %d differs from the guest", i+1)
		}
		oracle := filepath.Join(r.t.TempDir(), "oracle")
		imagetest.QemuImg(r.t, "convert", "-f", "raw", "-O", "raw", guest, oracle)
		if have, most := used(r.t, path), used(r.t, oracle); have > most+most/20+64<<10 {
			r.t.Errorf("disk %d takes %d bytes, and %d when qemu-img writes it", i+1, have, most)
		}
	}
	r.made = append(r.made, spec.ImageID)
	r.wantClean(r.made...)
}

// used is what a file takes on disk.
func used(t *testing.T, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil { // until then blocks are only promised
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

// variant is a way to pack a guest, and what it is declared as.
type variant struct {
	name     string
	declared string
	pack     func(t *testing.T, guest string) []byte
}

func byQemu(format, options string, args ...string) func(*testing.T, string) []byte {
	return func(t *testing.T, guest string) []byte {
		t.Helper()
		return read(t, imagetest.Convert(t, guest, format, options, args...))
	}
}

func inGzip(pack func(*testing.T, string) []byte) func(*testing.T, string) []byte {
	return func(t *testing.T, guest string) []byte {
		t.Helper()
		return zipped(t, pack(t, guest))
	}
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err == nil {
		_, err = z.Write(b)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func plain(t *testing.T, guest string) []byte { return read(t, guest) }

// inArchive puts the guest, and a second disk, into an OVA.
func inArchive(t *testing.T, disks ...[]byte) []byte {
	t.Helper()
	var refs, list, items strings.Builder
	for i, d := range disks {
		fmt.Fprintf(&refs, `<File ovf:id="file%d" ovf:href="disk%d.vmdk" ovf:size="%d"/>`, i, i, len(d))
		fmt.Fprintf(&list, `<Disk ovf:diskId="d%d" ovf:fileRef="file%d" ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30"/>`, i, i)
		fmt.Fprintf(&items, `<Item><rasd:AddressOnParent>%d</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d%d</rasd:HostResource>`+
			`<rasd:InstanceID>%d</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>`, i, i, 10+i)
	}
	envelope := `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"` +
		` xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"><References>` + refs.String() +
		`</References><DiskSection><Info/>` + list.String() + `</DiskSection><VirtualSystem ovf:id="vm"><Info/><VirtualHardwareSection><Info/>` +
		`<Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>` +
		items.String() + `</VirtualHardwareSection></VirtualSystem></Envelope>`
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, body []byte) {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR})
		if err == nil {
			_, err = w.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("vm.ovf", []byte(envelope))
	for i, d := range disks {
		add(fmt.Sprintf("disk%d.vmdk", i), d)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// shuffled is a QCOW2 whose clusters are not in the disk's order: qemu-io wrote the
// guest from its end to its front.
func shuffled(t *testing.T, guest string) []byte {
	t.Helper()
	b := read(t, guest)
	path := filepath.Join(t.TempDir(), "shuffled.qcow2")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", path, fmt.Sprint(len(b)))
	piece := filepath.Join(t.TempDir(), "piece")
	const unit = 192 << 10
	args := []string{"-f", "qcow2"}
	for off := (len(b) - 1) / unit * unit; off >= 0; off -= unit {
		p := b[off:min(off+unit, len(b))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		name := fmt.Sprint(piece, off)
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-c", fmt.Sprintf("write -q -s %s %d %d", name, off, len(p)))
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	return read(t, path)
}

var variants = []variant{
	{"raw", "raw", plain},
	{"raw in gzip", "raw.gz", inGzip(plain)},
	{"VHD fixed", "vhd", byQemu("vpc", "subformat=fixed,force_size=on")},
	{"VHD dynamic", "vhd", byQemu("vpc", "subformat=dynamic,force_size=on")},
	{"VHDX fixed", "vhdx", byQemu("vhdx", "subformat=fixed")},
	{"VHDX dynamic", "vhdx", byQemu("vhdx", "subformat=dynamic")},
	{"VDI static", "vdi", byQemu("vdi", "static=on")},
	{"VDI dynamic", "vdi", byQemu("vdi", "")},
	{"VMDK sparse", "vmdk", byQemu("vmdk", "subformat=monolithicSparse")},
	{"VMDK stream-optimised", "vmdk", byQemu("vmdk", "subformat=streamOptimized")},
	{"VMDK stream-optimised in gzip", "vmdk.gz", inGzip(byQemu("vmdk", "subformat=streamOptimized"))},
	{"QCOW2", "qcow2", byQemu("qcow2", "")},
	{"QCOW2 version 2", "qcow2", byQemu("qcow2", "compat=0.10")},
	{"QCOW2 compressed", "qcow2", byQemu("qcow2", "", "-c")},
	{"QCOW2 zstd", "qcow2", byQemu("qcow2", "compression_type=zstd", "-c")},
	{"QCOW2 extended L2", "qcow2", byQemu("qcow2", "extended_l2=on,cluster_size=128k")},
	{"QCOW2 preallocated", "qcow2", byQemu("qcow2", "preallocation=metadata")},
	{"QCOW2 in no order", "qcow2", shuffled},
	{"QCOW2 in gzip", "qcow2.gz", inGzip(byQemu("qcow2", ""))},
	{"VHDX in gzip", "vhdx.gz", inGzip(byQemu("vhdx", ""))},
	{"VDI in gzip", "vdi.gz", inGzip(byQemu("vdi", ""))},
	{"VHD dynamic in gzip", "vhd.gz", inGzip(byQemu("vpc", "subformat=dynamic,force_size=on"))},
	{"VHD fixed in gzip", "vhd.gz", inGzip(byQemu("vpc", "subformat=fixed,force_size=on"))},
	{"VMDK sparse in gzip", "vmdk.gz", inGzip(byQemu("vmdk", "subformat=monolithicSparse"))},
}

// Every variant becomes the guest that it was made of, in every target format.
func TestVariants(t *testing.T) {
	r := newRig(t)
	for _, guest := range imagetest.Guests(t) {
		for i, v := range variants {
			r.target = []string{"raw", "raw", "qcow2"}[i%3]
			t.Logf("%s, %s to %s", guest.Name, v.name, r.target)
			spec := r.acceptImage(v.declared, v.pack(t, guest.Path))
			r.handle(spec)
			r.wantGuests(spec, guest.Path)
		}
	}
}

func TestArchive(t *testing.T) {
	r := newRig(t)
	guests := imagetest.Guests(t)
	system, data := guests[4].Path, guests[1].Path
	stream := byQemu("vmdk", "subformat=streamOptimized")
	spec := r.acceptImage("ova", inArchive(t, stream(t, system), stream(t, data), plain(t, guests[2].Path)))
	r.handle(spec)
	r.wantGuests(spec, system, data, guests[2].Path)
}

// Where a worker stops in the middle, the next goes on, whatever the format.
func TestVariantsGoOn(t *testing.T) {
	r := newRig(t)
	guests := imagetest.Guests(t)
	dense, text := guests[2].Path, guests[3].Path
	stream := byQemu("vmdk", "subformat=streamOptimized")
	r.opt.Fetch.MarkEvery = chunk
	for _, tt := range []struct {
		variant
		guests []string
	}{
		{variant{"QCOW2 compressed", "qcow2", byQemu("qcow2", "", "-c")}, []string{text}},
		{variant{"QCOW2 in no order", "qcow2", shuffled}, []string{dense}},
		{variant{"VHD dynamic", "vhd", byQemu("vpc", "subformat=dynamic,force_size=on")}, []string{dense}},
		{variant{"VMDK stream-optimised", "vmdk", stream}, []string{text}},
		{variant{"OVA", "ova", func(t *testing.T, guest string) []byte {
			t.Helper()
			return inArchive(t, stream(t, guest), stream(t, dense))
		}}, []string{text, dense}},
	} {
		t.Log(tt.name)
		object := tt.pack(t, tt.guests[0])
		spec := r.acceptImage(tt.declared, object)
		for _, at := range []int{len(object) / 2, len(object) * 4 / 5} {
			r.objects.with(stallAt(int64(at)))
			ctx, stop := context.WithCancelCause(t.Context())
			go func() {
				r.until(spec, "a checkpoint", func(i *tasks.Import) bool { return i.Furthest > int64(at-4*chunk) })
				stop(tasks.ErrDraining)
			}()
			if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
				t.Fatalf("outcome %q, %v, %+v", outcome, err, r.get(spec).Attempts[0].Cause)
			}
			stop(nil)
		}
		r.objects.with(func(o storage.Object) storage.Object { return o })
		r.handle(spec)
		r.wantGuests(spec, tt.guests...)
		attempts := r.get(spec).Attempts
		if from := attempts[len(attempts)-1].FromBytes; from < int64(len(object)/2) {
			t.Errorf("the last attempt began at %d of %d: %+v", from, len(object), attempts)
		}
	}
}

// ordered is an image service that wants each disk from its front to its end.
type ordered struct{ imageapi.Images }

type orderedUpload struct{ imageapi.Upload }

type orderedDisk struct {
	imageapi.DiskWriter
	end int64
}

func (o ordered) Begin(ctx context.Context, spec imageapi.Spec) (imageapi.Upload, error) {
	u, err := o.Images.Begin(ctx, spec)
	if err != nil {
		return nil, err
	}
	return orderedUpload{u}, nil
}

func (orderedUpload) Ordered() bool { return true }

func (u orderedUpload) Disk(ctx context.Context, n int, size, resume int64) (imageapi.DiskWriter, bool, error) {
	w, ok, err := u.Upload.Disk(ctx, n, size, resume)
	return &orderedDisk{DiskWriter: w}, ok, err
}

func (d *orderedDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < d.end {
		return 0, fmt.Errorf("a write at %d behind one to %d", off, d.end)
	}
	d.end = off + int64(len(p))
	return d.DiskWriter.WriteAt(p, off)
}

// A service that needs order gets it, with a spool only where there is none.
func TestOrderedService(t *testing.T) {
	r := newRig(t)
	r.images = ordered{r.images}
	guests := imagetest.Guests(t)
	spools := 0
	reserve := r.opt.Spool
	r.opt.Spool = func(n int64) (Spool, error) {
		spools++
		return reserve(n)
	}
	for _, v := range variants {
		for _, target := range []string{"raw", "qcow2"} {
			r.target, spools = target, 0
			t.Logf("%s to %s", v.name, target)
			spec := r.acceptImage(v.declared, v.pack(t, guests[1].Path))
			r.handle(spec)
			r.wantGuests(spec, guests[1].Path)
			want := 0
			spooled := slices.Contains([]string{"QCOW2 in gzip", "VHDX in gzip", "VDI in gzip", "VHD dynamic in gzip", "VMDK sparse in gzip"}, v.name)
			if target == "qcow2" || v.name == "QCOW2 in no order" || spooled {
				want++
			}
			if spooled {
				want++
			}
			// qemu-img compresses on all cores and writes what is ready first.
			if anyOrder := v.name == "QCOW2 compressed" || v.name == "QCOW2 zstd"; spools != want && !anyOrder {
				t.Errorf("%s to %s: %d spools, want %d", v.name, target, spools, want)
			}
		}
	}
}

// Without scratch space an import waits for some, having read nothing of its body.
func TestNoScratch(t *testing.T) {
	r := newRig(t)
	guest := imagetest.Guests(t)[2].Path
	reserve := r.opt.Spool
	r.opt.Spool = func(int64) (Spool, error) { return nil, scratch.ErrFull }
	counted := &counter{}
	r.opt.Observe = counted
	object := inGzip(byQemu("qcow2", ""))(t, guest)
	spec := r.acceptImage("qcow2.gz", object)
	if outcome := r.handle(spec); outcome != tasks.OutcomeRetry {
		t.Fatalf("outcome %q", outcome)
	}
	if counted.received > 0 {
		t.Errorf("%d bytes of the object were read", counted.received)
	}
	if cause := r.get(spec).Attempts[0].Cause; cause.Code != "scratch_full" || cause.Remedy == "" {
		t.Errorf("cause %+v", cause)
	}
	r.opt.Spool = reserve
	r.handle(spec)
	r.wantGuests(spec, guest)
}

// A huge disk with little in it takes seconds, wherever that little is.
func TestHugeDisks(t *testing.T) {
	r := newRig(t)
	for _, f := range []struct{ format, declared, size string }{
		{"qcow2", "qcow2", "3T"}, {"vhdx", "vhdx", "3T"}, {"vdi", "vdi", "3T"}, {"vmdk", "vmdk", "3T"}, {"vpc", "vhd", "2000G"},
	} {
		path := filepath.Join(t.TempDir(), "huge")
		imagetest.QemuImg(t, "create", "-q", "-f", f.format, path, f.size)
		out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", f.format, "-c", "write -q -P 7 1900G 1M", path).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-io: %v\n%s", err, out)
		}
		began := time.Now()
		spec := r.acceptImage(f.declared, read(t, path))
		r.handle(spec)
		imp := r.get(spec)
		if imp.State != tasks.Succeeded {
			t.Fatalf("%s: %s, %+v", f.format, imp.State, imp.Failure)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s took %s", f.format, took)
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
		service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Limits{}, time.Now)
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
	if out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "vhdx", "-c", "write -q -P 7 90G 1M", path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	for _, target := range []string{"raw", "qcow2"} {
		r.target = target
		spec := r.acceptImage("vhdx.gz", zipped(t, read(t, path)))
		r.handle(spec)
		imp := r.get(spec)
		if imp.State != tasks.Succeeded || imp.Result.Disks[0].VirtualSizes[0] != 100<<30 {
			t.Fatalf("%s: %s, %+v, %+v", target, imp.State, imp.Failure, imp.Result)
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
			service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Limits{}, time.Now)
			if _, _, err := service.Register(t.Context(), spec); err != nil {
				t.Logf("%s: refused as %s", v.name, fault.CodeOf(err))
				continue
			}
			r.handle(spec)
			imp := r.get(spec)
			if imp.Failure == nil || imp.Failure.Code != "disk_looks_like_image" && imp.Failure.Code != "format_ambiguous" {
				t.Errorf("%s: %s, %+v", v.name, imp.State, imp.Failure)
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
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Limits{}, time.Now)
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
		r.until(spec, "most of the second disk", func(i *tasks.Import) bool { return i.DoneBytes > spec.TotalBytes()-4*chunk })
		stop(tasks.ErrDraining)
	}()
	if outcome, err := r.runner().Handle(ctx, spec.Ref()); outcome != tasks.OutcomeDrained || err != nil {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	if imp := r.get(spec); imp.Furthest > 0 {
		t.Errorf("a checkpoint at %d stands on gzip", imp.Furthest)
	}
	r.objects.with(func(o storage.Object) storage.Object { return o })
	r.handle(spec)
	if imp := r.get(spec); imp.State != tasks.Succeeded || len(imp.Result.Disks) != 2 {
		t.Errorf("import is %s, %+v", imp.State, imp.Failure)
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
	r.until(spec, "the copy", func(i *tasks.Import) bool { return i.Stage == tasks.StageCopying })
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
