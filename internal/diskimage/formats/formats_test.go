package formats

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// archived is an OVA of one disk.
func archived(t *testing.T, disk []byte) []byte {
	t.Helper()
	const envelope = `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">` +
		`<References><File ovf:id="f" ovf:href="disk"/></References><DiskSection><Info/><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="1"/></DiskSection>` +
		`<VirtualSystem ovf:id="vm"><Info/></VirtualSystem></Envelope>`
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []struct {
		name string
		body []byte
	}{{"vm.ovf", []byte(envelope)}, {"disk", disk}} {
		err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.body)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write(m.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestOpen(t *testing.T) {
	t.Parallel()
	guest := imagetest.Guests(t)[1].Path // 12 MiB and a sector
	raw := read(t, guest)
	size := int64(len(raw))
	qcow2 := read(t, imagetest.Convert(t, guest, "qcow2", ""))
	stream := read(t, imagetest.Convert(t, guest, "vmdk", "subformat=streamOptimized"))
	vhd := read(t, imagetest.Convert(t, guest, "vpc", "subformat=dynamic,force_size=on"))
	backed := imagetest.Patched(qcow2, 8, 0, 0, 0, 0, 0, 0, 4)
	for _, tt := range []struct {
		name     string
		object   []byte
		declared string
		max      int64
		is       string // the source
		size     int64
		code     string
	}{
		{name: "raw", object: raw, declared: "raw", is: "raw", size: size},
		{name: "raw that says nothing", object: raw, is: "raw", size: size},
		{name: "QCOW2", object: qcow2, declared: "qcow2", is: "qcow2", size: size},
		{name: "QCOW2 as VMDK", object: qcow2, declared: "vmdk", code: "format_mismatch"},
		{name: "QCOW2 as raw", object: qcow2, declared: "raw", code: "format_mismatch"},
		{name: "QCOW2 as QCOW2 in gzip", object: qcow2, declared: "qcow2.gz", code: "format_mismatch"},
		{name: "disk at its limit", object: qcow2, max: size, is: "qcow2", size: size},
		{name: "disk above its limit", object: qcow2, max: size - 1, code: "disk_too_large"},
		{name: "backing file", object: backed, code: "image_backing_file"},
		{name: "cut header", object: qcow2[:80], code: "image_truncated"},
		{name: "QED", object: []byte("QED\x00" + strings.Repeat("x", 600)), code: "format_unsupported"},
		{name: "bzip2", object: []byte("BZh91AY&SY" + strings.Repeat("x", 600)), code: "format_unsupported"},
		{name: "page", object: []byte("<html>" + strings.Repeat("x", 600)), code: "not_a_disk_image"},
		{name: "nothing", object: nil, code: "object_empty"},

		{name: "raw in gzip", object: zipped(t, raw), declared: "raw.gz", is: "raw.gz"},
		{name: "gzip as raw", object: zipped(t, raw), declared: "raw", code: "format_mismatch"},
		{name: "QCOW2 in gzip", object: zipped(t, qcow2), declared: "qcow2.gz", is: "qcow2.gz", size: size},
		{name: "QCOW2 in gzip, above its limit", object: zipped(t, qcow2), declared: "qcow2.gz", max: size - 1, code: "disk_too_large"},
		{name: "QCOW2 in gzip as raw in gzip", object: zipped(t, qcow2), declared: "raw.gz", code: "format_mismatch"},
		{name: "VHD in gzip", object: zipped(t, vhd), declared: "vhd.gz", is: "vhd.gz", size: size},
		{name: "VMDK in gzip", object: zipped(t, stream), declared: "vmdk.gz", is: "vmdk.gz", size: size},
		{name: "descriptor with a parent in gzip", object: zipped(t, bytes.Replace(stream, []byte("parentCID=ffffffff"), []byte("parentCID=12345678"), 1)), code: "image_differencing"},
		{name: "gzip in gzip", object: zipped(t, zipped(t, raw)), code: "image_nested"},
		{name: "archive in gzip", object: zipped(t, archived(t, stream)), code: "image_nested"},
		{name: "QED in gzip", object: zipped(t, []byte("QED\x00"+strings.Repeat("x", 600))), code: "format_unsupported"},

		{name: "archive", object: archived(t, stream), declared: "ova", is: "ova", size: size},
		{name: "archive, above its limit", object: archived(t, stream), max: size - 1, code: "disk_too_large"},
		{name: "archive as VMDK", object: archived(t, stream), declared: "vmdk", code: "format_mismatch"},
		{name: "QCOW2 in an archive", object: archived(t, qcow2), is: "ova", size: size},
		{name: "backing file in an archive", object: archived(t, backed), code: "image_backing_file"},
		{name: "gzip in an archive", object: archived(t, zipped(t, raw)), code: "image_nested"},
		{name: "archive in an archive", object: archived(t, archived(t, raw)), code: "image_nested"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			limits := Limits{MaxDisk: tt.max}
			src, err := Open(imagetest.Of(tt.object), diskimage.ParseDeclared(tt.declared), limits)
			if got := fault.CodeOf(err); got != tt.code {
				t.Fatalf("code %q, want %q: %v", got, tt.code, err)
			}
			if err != nil {
				if kind := fault.KindOf(err); kind != fault.Invalid {
					t.Errorf("kind %s", kind)
				}
				if strings.HasSuffix(tt.name, "in an archive") && !strings.Contains(fault.Of(err).Evidence, "disk 1 of the archive") {
					t.Errorf("evidence %q", fault.Of(err).Evidence)
				}
				return
			}
			if src.String() != tt.is || len(src.Disks) != 1 || src.Disks[0].Size != tt.size {
				t.Errorf("%s with %d disks, the first of %d bytes; want %s of %d", src, len(src.Disks), src.Disks[0].Size, tt.is, tt.size)
			}
			if src.Format == diskimage.Gzip {
				if n := src.Content(0, Limits{MaxDisk: 64 << 20}); n < size || n > 64<<20*17/16+128<<20 {
					t.Errorf("content of up to %d bytes", n)
				}
				return
			}
			out := make([]byte, size)
			if _, err := src.Disks[0].Guest(src.File(0)).ReadAt(out, 0); err != nil || !bytes.Equal(out, raw) {
				t.Errorf("the disk differs from the guest: %v", err)
			}
		})
	}
}

var errStore = fault.New(fault.Unavailable, "object_store_unavailable", "The object store did not answer as it should.")

type failing struct {
	image []byte
	after atomic.Int64
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.after.Add(-1) < 0 {
		return 0, errStore
	}
	return bytes.NewReader(f.image).ReadAt(p, off)
}

// A store that fails is never the image's fault.
func TestStoreFails(t *testing.T) {
	t.Parallel()
	guest := imagetest.Guests(t)[0].Path
	for name, object := range map[string][]byte{
		"raw":   read(t, guest),
		"qcow2": read(t, imagetest.Convert(t, guest, "qcow2", "")),
		"vhd":   read(t, imagetest.Convert(t, guest, "vpc", "subformat=dynamic")),
		"vhdx":  read(t, imagetest.Convert(t, guest, "vhdx", "")),
		"vdi":   read(t, imagetest.Convert(t, guest, "vdi", "")),
		"vmdk":  read(t, imagetest.Convert(t, guest, "vmdk", "")),
		"gz":    zipped(t, read(t, guest)),
		"ova":   archived(t, read(t, guest)),
	} {
		for after := int64(0); ; after++ {
			f := &failing{image: object}
			f.after.Store(after)
			_, err := Open(diskimage.NewFile(f, int64(len(object))), diskimage.Declared{}, Limits{})
			if err == nil {
				break
			}
			if !errors.Is(err, errStore) || fault.KindOf(err) != fault.Unavailable {
				t.Errorf("%s, after %d reads: %v", name, after, err)
			}
		}
	}
}
