package devstack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1" // the API's choice of hash
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"vmimport/internal/client"
	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/tasks"
)

// The disks that are packed: one with a file system, and one of odd length with data at
// odd places.
func guests(t *testing.T) (ext4, sparse string) {
	t.Helper()
	for _, g := range imagetest.Guests(t) {
		switch g.Name {
		case "ext4":
			ext4 = g.Path
		case "sparse":
			sparse = g.Path
		}
	}
	return ext4, sparse
}

// packer packs a guest, given as the path of a raw file.
type packer func(t *testing.T, guest string) []byte

func qemu(format, options string, args ...string) packer {
	return func(t *testing.T, guest string) []byte {
		t.Helper()
		return contents(t, imagetest.Convert(t, guest, format, options, args...))
	}
}

func plain(t *testing.T, guest string) []byte {
	t.Helper()
	return contents(t, guest)
}

func zipped(pack packer) packer {
	return func(t *testing.T, guest string) []byte {
		t.Helper()
		return gzipped(t, pack(t, guest), gzip.BestSpeed)
	}
}

func gzipped(t *testing.T, content []byte, level int) []byte {
	t.Helper()
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, level)
	if err == nil {
		_, err = z.Write(content)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// archived is an OVA of the guest and a second disk, which is empty.
func archived(t *testing.T, guest string) []byte {
	t.Helper()
	stream := qemu("vmdk", "subformat=streamOptimized")
	empty := filepath.Join(t.TempDir(), "empty")
	imagetest.QemuImg(t, "create", "-q", "-f", "raw", empty, "3M")
	const descriptor = `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
		<References><File ovf:id="f1" ovf:href="1.vmdk"/><File ovf:id="f2" ovf:href="2.vmdk"/></References>
		<DiskSection><Info/><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="1"/><Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="1"/></DiskSection>
		<VirtualSystem ovf:id="web01"><Info/></VirtualSystem></Envelope>`
	var b bytes.Buffer
	archive := tar.NewWriter(&b)
	for _, member := range []struct {
		name    string
		content []byte
	}{{"web01.ovf", []byte(descriptor)}, {"1.vmdk", stream(t, guest)}, {"2.vmdk", stream(t, empty)}} {
		err := archive.WriteHeader(&tar.Header{Name: member.name, Mode: 0o644, Size: int64(len(member.content)), Format: tar.FormatUSTAR})
		if err == nil {
			_, err = archive.Write(member.content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// request is the body of a registration: what a client has to send, and details.
func (w *world) request(name, imageFrom string) string {
	body := fmt.Sprintf(`{"name": "web01", "os_type": "ubuntu", "location": %q`, w.location(name))
	if imageFrom != "" {
		body += fmt.Sprintf(`, "details": {"image_from": %q}`, imageFrom)
	}
	return body + "}"
}

// accepted sends a registration, which must be accepted.
func (w *world) accepted(body string) tasks.ID {
	w.t.Helper()
	a := w.do("POST", "/v1/imageimport", body)
	id, _ := a.member(w.t, "import_id").(string)
	if a.status != 201 || id == "" {
		w.t.Fatalf("%s: %d %s", body, a.status, a.body)
	}
	return tasks.ID(id)
}

// holds fails unless an import has ended with an image of these disks, and says so in
// its status and in the image's record.
func (w *world) holds(id tasks.ID, format string, object []byte, disks ...string) {
	w.t.Helper()
	imp := w.ended(id)
	sum := sha1.Sum(object)
	first := diskimage.VirtualSize(int64(len(w.read(disks[0]))))
	switch {
	case imp.State != tasks.Succeeded || imp.Progress != 100 || imp.DiskFormat != "raw":
		w.t.Errorf("%s: %+v", format, imp)
		return
	case imp.Extra.SourceFormat != format || imp.Extra.VirtualSize != first || imp.Extra.TotalBytes != int64(len(object)):
		w.t.Errorf("%s: status says %+v, want virtual size %d", format, imp.Extra, first)
	case imp.Extra.Disks != len(disks) && !(imp.Extra.Disks == 0 && len(disks) == 1):
		w.t.Errorf("%s: %d disks, want %d", format, imp.Extra.Disks, len(disks))
	case imp.Extra.Digests["sha1"] != hex.EncodeToString(sum[:]):
		w.t.Errorf("%s: SHA-1 %s, want %x", format, imp.Extra.Digests["sha1"], sum)
	}
	dir := filepath.Join(w.stack.Images, imp.ID)
	var record map[string]any
	if err := json.Unmarshal(w.read(filepath.Join(dir, "image.json")), &record); err != nil {
		w.t.Fatal(err)
	}
	if record["virtual_size"] != float64(first) || record["size"] != float64(first) || record["disk_format"] != "raw" {
		w.t.Errorf("%s: image.json %v", format, record)
	}
	for i, disk := range disks {
		want := w.read(disk)
		got := w.read(diskPath(dir, i))
		size := diskimage.VirtualSize(int64(len(want)))
		if int64(len(got)) != size || !bytes.Equal(got[:len(want)], want) || len(bytes.Trim(got[len(want):], "\x00")) > 0 {
			w.t.Errorf("%s: disk %d has %d bytes, and is not the guest of %d", format, i+1, len(got), len(want))
		}
		of := fmt.Sprintf("vmimport_disk_%d_", i+1)
		if record[of+"source_format"] != format || record[of+"virtual_size"] != fmt.Sprint(size) || record[of+"source_sha1"] != hex.EncodeToString(sum[:]) {
			w.t.Errorf("%s: disk %d in image.json: %v", format, i+1, record)
		}
	}
}

func (w *world) read(path string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// nothingMade fails if there is anything of an image, or on the way to one.
func (w *world) nothingMade() {
	w.t.Helper()
	for _, dir := range []string{w.stack.Images, filepath.Join(w.stack.Data, "scratch")} {
		for _, name := range files(w.t, dir) {
			if name != "" && name != "/.staging" {
				w.t.Errorf("left in %s: %s", filepath.Base(dir), name)
			}
		}
	}
}

// Each format is declared as the API has it, and becomes the disk that is in it.
func TestFormats(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	ext4, sparse := guests(t)
	empty := filepath.Join(t.TempDir(), "empty.raw")
	if err := os.WriteFile(empty, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	stream, hosted := qemu("vmdk", "subformat=streamOptimized"), qemu("vmdk", "subformat=monolithicSparse")
	fixed := qemu("vpc", "subformat=fixed,force_size=on")
	for n, guest := range []string{ext4, sparse} {
		ends := []func(){}
		for i, tt := range []struct {
			extension, imageFrom, format string
			pack                         packer
		}{
			{".vmdk", "", "vmdk", stream},
			{".vmdk", "vmware", "vmdk", hosted},
			{".qcow2", "kvm", "qcow2", qemu("qcow2", "")},
			{".qcow2", "kvm", "qcow2", qemu("qcow2", "", "-c")},
			{".raw", "", "raw", plain},
			{".img", "kvm", "raw", plain},
			{".vhd", "", "vhd", qemu("vpc", "subformat=dynamic,force_size=on")},
			{".vhd", "kvm", "vhd", fixed},
			{".vhdx", "", "vhdx", qemu("vhdx", "")},
			{".vdi", "", "vdi", qemu("vdi", "")},
			{".ova", "", "ova", archived},
			{".vmdk.gz", "", "vmdk.gz", zipped(stream)},
			{".vmdk.gz", "vmware", "vmdk.gz", zipped(hosted)},
			{".raw.gz", "", "raw.gz", zipped(plain)},
			{".vhd.gz", "", "vhd.gz", zipped(fixed)},
		} {
			name := fmt.Sprintf("%d-%d%s", n, i, tt.extension)
			object := tt.pack(t, guest)
			w.put(name, object)
			id := w.accepted(w.request(name, tt.imageFrom))
			disks := []string{guest}
			if tt.format == "ova" {
				disks = append(disks, empty)
			}
			ends = append(ends, func() { w.holds(id, tt.format, object, disks...) })
		}
		for _, end := range ends {
			end()
		}
	}
	w.nothingStaged()
}

// An exported image needs its location only, and its disk may be a QCOW2.
func TestExportedQCOW2(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	guest, _ := guests(t)
	object := zipped(qemu("qcow2", ""))(t, guest)
	w.put("web01.qcow2.gz", object)
	request := fmt.Sprintf(`{"location": %q}`, w.location("web01.qcow2.gz"))
	if a := w.refused("POST", "/v1/imageimport", request); a.status != 400 || a.member(t, "error_code") != "40017" {
		t.Fatalf("without metadata: %d %s", a.status, a.body)
	}
	original := uuid.NewString()
	w.put("web01.json", []byte(`{"id": "`+original+`", "name": "web01", "disk_format": "raw", "os_type": "rhel8", "base_image_id": "b-1"}`))
	id := w.accepted(request)
	w.holds(id, "qcow2.gz", object, guest)
	if imp := w.ended(id); imp.ID != original || imp.BillingInfo == nil || imp.BillingInfo.OSType != "rhel8" {
		t.Errorf("%+v", imp)
	}
}

// A disk of terabytes with little in it takes seconds, and little space.
func TestHugeDisk(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	const size, at, length = 3 << 40, 2900 << 30, 1 << 20
	for format, imageFrom := range map[string]string{"qcow2": "kvm", "vhdx": ""} {
		name := "huge." + format
		imagetest.QemuImg(t, "create", "-q", "-f", format, w.file(name), "3T")
		imagetest.QemuIO(t, w.file(name), format, fmt.Sprintf("write -q -P 7 %d %d", int64(at), length))
		began := time.Now()
		imp := w.ended(w.accepted(w.request(name, imageFrom)))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s took %s", format, took)
		}
		if imp.State != tasks.Succeeded || imp.Extra.VirtualSize != size {
			t.Fatalf("%s: %+v", format, imp)
		}
		disk, err := os.Open(w.image(imp.ID))
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		got := make([]byte, length)
		if _, err := disk.ReadAt(got, at); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, length)) {
			t.Errorf("%s: the data is not where it was: %v", format, err)
		}
		if info, err := disk.Stat(); err != nil || info.Size() != size || blocks(t, w.image(imp.ID)) > 2*length {
			t.Errorf("%s: the disk takes %d bytes, %v", format, blocks(t, w.image(imp.ID)), err)
		}
		w.equal(name, imp.ID) // which finds the data by the reader of the format
	}
}

// A cancel stops an import also in the middle of a few bytes that make gigabytes.
func TestCancelUnpacking(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	// A file of several members is the same as one, RFC 1952, 2.2.
	member := gzipped(t, make([]byte, 4<<20), gzip.BestCompression)
	w.put("web01.raw.gz", bytes.Repeat(member, 16<<10))
	id := w.accepted(w.request("web01.raw.gz", ""))
	w.until(id, func(imp *client.Import) bool { return imp.Extra.Stage == tasks.StageCopying })
	if err := w.api.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	accepted := time.Now()
	imp := w.until(id, func(imp *client.Import) bool { return imp.State.Final() })
	if took := time.Since(accepted); imp.State != tasks.Canceled || took > 2*time.Second {
		t.Errorf("%s after %s", imp.State, took)
	}
	w.nothingMade()
}

// What an object's name has to say of it.
func TestExtensions(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	ext4, _ := guests(t)
	disk := contents(t, ext4)
	for _, tt := range []struct{ name, imageFrom string }{
		{"web01.qcow2", ""}, {"web01.qcow2", "vmware"}, {"web01.vmdk", "kvm"}, {"web01.vmdk.gz", "kvm"}, {"web01.VMDK", ""}, {"web01", ""}, {"vmdk", ""},
		{"web01.raw.bz2", ""}, {"web01.iso", ""}, {"web01.raw.gz.gz", ""}, {"web01.gz", ""}, {"web01.ovf", ""}, {"web01.vmdk ", ""}, {"web01.vmdk.", ""},
	} {
		w.put(tt.name, disk)
		a := w.refused("POST", "/v1/imageimport", w.request(tt.name, tt.imageFrom))
		if message, _ := a.member(t, "message").(string); a.status != 400 || a.member(t, "error_code") != "40004" || !strings.Contains(message, "extension of the image file is not supported") {
			t.Errorf("%q from %q: %d %s", tt.name, tt.imageFrom, a.status, a.body)
		}
	}
}
