package decode

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/goleak"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// spool is a Spool on a file that tells whether it was closed.
type spool struct {
	*os.File
	bytes int64
	open  *int
}

func (s spool) Close() error {
	*s.open--
	return s.File.Close()
}

// decodeAll imports an object, in chunks of n bytes, to a canvas for each disk.
func decodeAll(t *testing.T, object []byte, declared string, limits formats.Limits, n int) ([]*canvas, []int64, error) {
	t.Helper()
	src, err := formats.Open(imagetest.Of(object), diskimage.ParseDeclared(declared), limits)
	if err != nil {
		return nil, nil, err
	}
	spools := 0
	d, err := New(t.Context(), src, Options{Limits: limits, Spool: func(n int64) (Spool, error) {
		f, err := os.Create(filepath.Join(t.TempDir(), "spool"))
		spools++
		return spool{f, n, &spools}, err
	}})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		d.Close()
		d.Close()
		if spools != 0 {
			t.Errorf("%d spools are open", spools)
		}
	}()
	var outs []io.WriterAt
	var disks []*canvas
	for i := range src.Disks {
		size := src.Disks[i].Size
		if size == 0 {
			size = src.Content(i, limits)
		}
		c := newCanvas(min(size, 64<<20))
		disks, outs = append(disks, c), append(outs, c)
	}
	if err := d.Begin(outs, 0, nil); err != nil {
		return nil, nil, err
	}
	for off := 0; off < len(object); off += n {
		if err := d.Take(int64(off), object[off:min(off+n, len(object))]); err != nil {
			return nil, nil, err
		}
	}
	sizes, err := d.Finish()
	return disks, sizes, err
}

func wantDisk(t *testing.T, c *canvas, size int64, guest string) {
	t.Helper()
	want, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	if size != diskimage.VirtualSize(int64(len(want))) {
		t.Errorf("a disk of %d bytes, want %d", size, len(want))
	}
	if !bytes.Equal(c.data[:len(want)], want) {
		t.Error("the disk differs from the guest")
	}
	if c.twice > 0 {
		t.Errorf("%d bytes were written twice", c.twice)
	}
}

// Every format in gzip, and by itself.
func TestEveryFormat(t *testing.T) {
	t.Parallel()
	for _, guest := range imagetest.Guests(t) {
		for _, f := range []struct{ format, options, declared string }{
			{"raw", "", "raw"},
			{"qcow2", "", "qcow2"},
			{"qcow2", "compression_type=zstd", "qcow2"},
			{"vmdk", "subformat=monolithicSparse", "vmdk"},
			{"vmdk", "subformat=streamOptimized", "vmdk"},
			{"vpc", "subformat=fixed,force_size=on", "vhd"},
			{"vpc", "subformat=dynamic,force_size=on", "vhd"},
			{"vhdx", "", "vhdx"},
			{"vdi", "", "vdi"},
		} {
			t.Run(guest.Name+"/"+f.format+" "+f.options, func(t *testing.T) {
				t.Parallel()
				var more []string
				if f.format == "qcow2" {
					more = append(more, "-c")
				}
				image, err := os.ReadFile(imagetest.Convert(t, guest.Path, f.format, f.options, more...))
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range []int{70_001} {
					disks, sizes, err := decodeAll(t, image, f.declared, formats.Limits{}, n)
					if err != nil {
						t.Fatal(err)
					}
					wantDisk(t, disks[0], sizes[0], guest.Path)
				}
				if guest.Name == "dense" || guest.Name == "text" {
					return // nothing new inside gzip
				}
				packed := gzipped(t, image)
				disks, sizes, err := decodeAll(t, packed, f.declared+".gz", formats.Limits{MaxDisk: 64 << 20}, 70_001)
				if err != nil {
					t.Fatal(err)
				}
				wantDisk(t, disks[0], sizes[0], guest.Path)
				if _, _, err := decodeAll(t, packed[:len(packed)-5], f.declared+".gz", formats.Limits{MaxDisk: 64 << 20}, 1<<20); !errors.Is(err, diskimage.ErrTruncated) {
					t.Errorf("cut short: %v", err)
				}
			})
		}
	}
}

func TestGzipRefuses(t *testing.T) {
	t.Parallel()
	raw := bytes.Repeat([]byte("disk"), 1<<18)
	footer := fixedVHD(t, raw)
	for _, tt := range []struct {
		name     string
		object   []byte
		declared string
		max      int64
		code     string
	}{
		{"raw", gzipped(t, raw), "raw.gz", 1 << 20, ""},
		{"raw of no whole sector", gzipped(t, raw[:1000]), "raw.gz", 1 << 20, ""},
		{"bomb", gzipped(t, make([]byte, 8<<20)), "raw.gz", 1 << 20, "image_unpacks_too_large"},
		{"gzip in gzip", gzipped(t, gzipped(t, raw)), "raw.gz", 1 << 20, "image_nested"},
		{"gzip in gzip, not declared", gzipped(t, gzipped(t, raw)), "", 1 << 20, "image_nested"},
		{"fixed VHD as such", gzipped(t, footer), "vhd.gz", 2 << 20, ""},
		{"fixed VHD, not declared", gzipped(t, footer), "", 2 << 20, ""},
		{"fixed VHD as raw", gzipped(t, footer), "raw.gz", 2 << 20, "format_mismatch"},
		{"raw as VHD", gzipped(t, raw), "vhd.gz", 1 << 20, "format_mismatch"},
		{"raw as QCOW2", gzipped(t, raw), "qcow2.gz", 1 << 20, "format_mismatch"},
		{"no gzip", raw, "raw.gz", 1 << 20, "format_mismatch"},
		{"garbage behind", append(gzipped(t, raw), "garbage"...), "raw.gz", 1 << 20, "image_trailing_data"},
		{"less than a sector", gzipped(t, raw[:100]), "raw.gz", 1 << 20, "object_too_small"},
		{"nothing in it", gzipped(t, nil), "raw.gz", 1 << 20, "object_too_small"},
		{"QCOW2 with a backing file", gzipped(t, backed(t)), "qcow2.gz", 1 << 20, "image_backing_file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := decodeAll(t, tt.object, tt.declared, formats.Limits{MaxDisk: tt.max}, 4096)
			if got := fault.CodeOf(err); got != tt.code {
				t.Errorf("code %q, want %q: %v", got, tt.code, err)
			}
		})
	}
}

func fixedVHD(t *testing.T, raw []byte) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(imagetest.Convert(t, path, "vpc", "subformat=fixed,force_size=on"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func backed(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", base, "1M")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
	b, err := os.ReadFile(top)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A decoder that is given up in the middle leaves nothing behind.
func TestCloseInTheMiddle(t *testing.T) {
	t.Parallel()
	object := gzipped(t, bytes.Repeat([]byte("disk"), 1<<18))
	for stop := range 4 {
		src, err := formats.Open(imagetest.Of(object), diskimage.Declared{}, formats.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		d, err := New(t.Context(), src, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if stop > 0 {
			if err := d.Begin([]io.WriterAt{newCanvas(2 << 20)}, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
		for i := range stop - 1 {
			if err := d.Take(int64(i*100), object[i*100:][:100]); err != nil {
				t.Fatal(err)
			}
		}
		d.Close()
	}
}
