package pipeline

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/diskimage/imagetest"
	"vmimport/storage"
	"vmimport/tasks"
)

// acceptImage registers the import of one object of a declared format.
func (r *rig) acceptImage(format string, object []byte) *tasks.Spec {
	r.t.Helper()
	spec := r.specOf(format, object)
	service := tasks.NewService(r.store, NewPreflight(r.runner().regions), tasks.Policy{}, time.Now)
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
	task := r.get(spec)
	if task.State != tasks.Succeeded || len(task.Result.Disks) != 1 || len(task.Result.Disks[0].VirtualSizes) != len(guests) {
		r.t.Fatalf("import is %s, failure %+v, result %+v", task.State, task.Failure, task.Result)
	}
	if got, want := task.Result.Disks[0].Digests["sha1"], spec.Disks[0].SHA1; got != want {
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
		if rounded := (len(want) + 511) &^ 511; len(got) != rounded || task.Result.Disks[0].VirtualSizes[i] != int64(rounded) {
			r.t.Errorf("disk %d has %d bytes, want %d; the record says %v", i+1, len(got), rounded, task.Result.Disks[0].VirtualSizes)
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
	var writes []string
	for off := (len(b) - 1) / unit * unit; off >= 0; off -= unit {
		p := b[off:min(off+unit, len(b))]
		if len(bytes.TrimLeft(p, "\x00")) == 0 {
			continue
		}
		name := fmt.Sprint(piece, off)
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
		writes = append(writes, fmt.Sprintf("write -q -s %s %d %d", name, off, len(p)))
	}
	imagetest.QemuIO(t, path, "qcow2", writes...)
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
				r.until(spec, "a checkpoint", func(i *tasks.Task) bool { return i.Furthest > int64(at-4*chunk) })
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
