package devstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// made is an image that qemu-img creates, without data.
func made(t *testing.T, format string, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	imagetest.QemuImg(t, slices.Concat([]string{"create", "-q", "-f", format}, args, []string{path, "64M"})...)
	return contents(t, path)
}

// differencing makes a dynamic VHD one: type 4 in both footers, with their checksums.
func differencing(vhd []byte) []byte {
	c := bytes.Clone(vhd)
	for _, footer := range [][]byte{c[:512], c[len(c)-512:]} {
		binary.BigEndian.PutUint32(footer[60:], 4)
		binary.BigEndian.PutUint32(footer[64:], 0)
		var sum uint32
		for _, b := range footer {
			sum += uint32(b)
		}
		binary.BigEndian.PutUint32(footer[64:], ^sum)
	}
	return c
}

// ofTwoFiles adds a second extent, another file, to the descriptor in a VMDK.
func ofTwoFiles(t *testing.T, vmdk []byte) []byte {
	t.Helper()
	descriptor := vmdk[512 : 21*512] // where qemu-img writes it, padded with NULs
	at := bytes.Index(descriptor, []byte("\nRW "))
	text := bytes.TrimRight(descriptor, "\x00")
	if at < 0 || len(text)+64 > len(descriptor) {
		t.Fatal("no descriptor where it was expected")
	}
	return imagetest.Patched(vmdk, 512, slices.Concat(text[:at], []byte("\nRW 64 FLAT \"/etc/passwd\" 0"), text[at:])...)
}

// What can be seen to be wrong is refused when it is asked for, with the words of what
// is wrong.
func TestRefusedImages(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	ext4, _ := guests(t)
	base := filepath.Join(t.TempDir(), "base.raw")
	if err := os.WriteFile(base, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	qcow2, stream, sparse := qemu("qcow2", "")(t, ext4), qemu("vmdk", "subformat=streamOptimized")(t, ext4), qemu("vmdk", "")(t, ext4)
	vhd, vhdx, vdi := qemu("vpc", "")(t, ext4), qemu("vhdx", "")(t, ext4), qemu("vdi", "")(t, ext4)
	mismatch := func(declared, found diskimage.Format) *fault.Error { return fault.Of(diskimage.Check(declared, found)) }
	page := []byte(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code></Error>` + strings.Repeat(" ", 4096))
	notADisk := &fault.Error{Message: "The object is an HTML or XML document, not a disk image."}
	for _, tt := range []struct {
		name, imageFrom string
		object          []byte
		want            *fault.Error
	}{
		{"QCOW2.vmdk", "", qcow2, mismatch(diskimage.VMDK, diskimage.QCOW2)},
		{"QCOW2.img", "kvm", qcow2, mismatch(diskimage.Raw, diskimage.QCOW2)},
		{"VMDK.qcow2", "kvm", stream, mismatch(diskimage.QCOW2, diskimage.VMDK)},
		{"VHD.raw", "", vhd, mismatch(diskimage.Raw, diskimage.VHD)},
		{"VHDX.vhd", "", vhdx, mismatch(diskimage.VHD, diskimage.VHDX)},
		{"raw.vmdk", "", contents(t, ext4), mismatch(diskimage.VMDK, diskimage.Raw)},
		{"QCOW2.raw.gz", "", zipped(qemu("qcow2", ""))(t, ext4), mismatch(diskimage.Raw, diskimage.QCOW2)},
		{"no gzip.vmdk.gz", "", stream, mismatch(diskimage.Gzip, diskimage.VMDK)},
		{"gzip.vmdk", "", zipped(plain)(t, ext4), mismatch(diskimage.VMDK, diskimage.Gzip)},
		{"gzip in gzip.raw.gz", "", zipped(zipped(plain))(t, ext4), diskimage.ErrNested},
		{"archive in gzip.ova.gz", "", zipped(archived)(t, ext4), diskimage.ErrNested},
		{"LUKS.raw", "", slices.Concat([]byte("LUKS\xba\xbe\x00\x01"), make([]byte, 8192)), mismatch(diskimage.Raw, diskimage.LUKS)},
		{"page.raw", "", page, notADisk},
		{"page.vmdk", "", page, notADisk},

		{"backing file.qcow2", "kvm", made(t, "qcow2", "-b", base, "-F", "raw"), diskimage.ErrBackingFile},
		{"data file.qcow2", "kvm", made(t, "qcow2", "-o", "data_file="+filepath.Join(t.TempDir(), "data"), "-o", "data_file_raw=on"), diskimage.ErrExternalData},
		{"encrypted.qcow2", "kvm", made(t, "qcow2", "--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s"), diskimage.ErrEncrypted},
		{"unknown feature.qcow2", "kvm", imagetest.Patched(qcow2, 72, 0x80), diskimage.ErrUnknownFeature},
		{"differencing.vhd", "", differencing(vhd), diskimage.ErrDifferencing},
		{"differencing.vmdk", "", bytes.Replace(sparse, []byte("parentCID=ffffffff"), []byte("parentCID=12345678"), 1), diskimage.ErrDifferencing},
		{"two files.vmdk", "", ofTwoFiles(t, sparse), diskimage.ErrSplit},
		{"two files.vmdk.gz", "", gzipped(t, ofTwoFiles(t, sparse), 1), diskimage.ErrSplit},
		{"text.vmdk", "", made(t, "vmdk", "-o", "subformat=monolithicFlat"), fault.Of(diskimage.Refuse(diskimage.VMDKText))},

		{"header.qcow2", "kvm", qcow2[:64], diskimage.ErrTruncated},
		{"header.vmdk", "", sparse[:300], diskimage.ErrTruncated},
		{"header.vhdx", "", vhdx[:70000], diskimage.ErrTruncated},
		{"half a stream.vmdk", "", stream[:len(stream)/2], diskimage.ErrTruncated},
		{"header.vdi", "", vdi[:100], diskimage.ErrTruncated},
		{"header.vhd", "", vhd[:600], diskimage.ErrTruncated},
		{"header.raw.gz", "", zipped(plain)(t, ext4)[:16], diskimage.ErrTruncated},
	} {
		w.put(tt.name, tt.object)
		a := w.refused("POST", "/v1/imageimport", w.request(tt.name, tt.imageFrom))
		message, _ := a.member(t, "message").(string)
		if a.status != 400 || a.member(t, "error_code") != "40004" ||
			!strings.HasPrefix(message, strings.TrimSuffix(tt.want.Message, ".")) || !strings.HasSuffix(message, tt.want.Remedy) {
			t.Errorf("%s: %d %s, want %q", tt.name, a.status, a.body, tt.want.Message)
		}
		for _, secret := range []string{w.stack.Data, base, "passwd"} {
			if strings.Contains(a.body, secret) {
				t.Errorf("%s: the answer tells too much: %s", tt.name, a.body)
			}
		}
	}
	if a := w.do("GET", "/v1/imageimport", ""); strings.TrimSpace(a.body) != `{"imports":[]}` {
		t.Errorf("something was registered: %s", a.body)
	}
	w.nothingMade()
}

// What is wrong behind the header is found by the import. It fails at once and for good,
// says why, and leaves nothing.
func TestBrokenImages(t *testing.T) {
	t.Parallel()
	w := serve(t, t.TempDir())
	ext4, _ := guests(t)
	qcow2, stream, sparse := qemu("qcow2", "")(t, ext4), qemu("vmdk", "subformat=streamOptimized")(t, ext4), qemu("vmdk", "")(t, ext4)
	packed, gz := qemu("qcow2", "", "-c")(t, ext4), zipped(plain)(t, ext4)
	inner := imagetest.Convert(t, ext4, "qcow2", "")
	half := func(b []byte) []byte { return b[:len(b)/2] }
	spoiled := func(b []byte) []byte {
		c := bytes.Clone(b)
		for i := range 4096 {
			c[len(c)/2+i] ^= 0x55
		}
		return c
	}
	var ends []func()
	for _, tt := range []struct {
		name, imageFrom string
		object          []byte
		want            *fault.Error
	}{
		{"half.qcow2", "kvm", half(qcow2), diskimage.ErrTruncated},
		{"half.vmdk", "", half(sparse), diskimage.ErrTruncated},
		{"half.vhdx", "", half(qemu("vhdx", "")(t, ext4)), diskimage.ErrTruncated},
		{"half.vdi", "", half(qemu("vdi", "")(t, ext4)), diskimage.ErrTruncated},
		{"half.raw.gz", "", half(gz), diskimage.ErrTruncated},
		{"half inside.vmdk.gz", "", gzipped(t, half(stream), 1), diskimage.ErrTruncated},
		{"spoiled.qcow2", "kvm", spoiled(packed), diskimage.ErrCorrupt},
		{"spoiled.vmdk", "", spoiled(stream), diskimage.ErrCorrupt},
		{"spoiled.raw.gz", "", spoiled(gz), diskimage.ErrCorrupt},
		{"spoiled sum.raw.gz", "", imagetest.Patched(gz, len(gz)-8, ^gz[len(gz)-8]), diskimage.ErrCorrupt},
		{"more behind.raw.gz", "", append(bytes.Clone(gz), "more"...), diskimage.ErrTrailing},
		{"image in an image.qcow2", "kvm", qemu("qcow2", "")(t, inner), diskimage.ErrDisguised},
		{"image in a stream.vmdk", "", qemu("vmdk", "subformat=streamOptimized")(t, inner), diskimage.ErrDisguised},
		{"differencing.vhd.gz", "", gzipped(t, differencing(qemu("vpc", "")(t, ext4)), 1), diskimage.ErrDifferencing},
	} {
		w.put(tt.name, tt.object)
		id := w.accepted(w.request(tt.name, tt.imageFrom))
		ends = append(ends, func() { w.failedFor(id, tt.name, tt.want) })
	}
	for _, end := range ends {
		end()
	}
	w.nothingMade()
}

// failedFor fails unless an import ended for that reason, at its first attempt.
func (w *world) failedFor(id tasks.ID, name string, want *fault.Error) {
	w.t.Helper()
	imp := w.ended(id)
	body := w.do("GET", "/v1/imageimport/"+string(id)+"/status", "")
	extra, _ := body.member(w.t, "vmimport").(map[string]any)
	evidence, _ := extra["evidence"].(string)
	sentences := want.Saw("%s", evidence).Sentences()
	if imp.State != tasks.Failed || imp.Progress > 99 || imp.Extra.Attempt != 1 || imp.Extra.FailureCode != want.Code || imp.Extra.Remedy != want.Remedy ||
		evidence == "" || imp.ErrorMessage != sentences {
		w.t.Errorf("%s: %s, want %q", name, body.body, fmt.Sprint(want))
	}
	if extra["source_format"] != nil || extra["virtual_size"] != nil || extra["digests"] != nil {
		w.t.Errorf("%s: the status shows a result: %s", name, body.body)
	}
	if strings.Contains(body.body, w.stack.Data) {
		w.t.Errorf("%s: the status tells too much: %s", name, body.body)
	}
}
