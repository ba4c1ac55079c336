package inspect_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/inspect"
)

// guest makes a disk with a boot record and one partition, full of noise, and returns
// its path.
func guest(t *testing.T, size int) string {
	t.Helper()
	disk := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(disk[1<<20:])
	copy(disk, imagetest.BootSector(2048, uint32(size-1<<20)/512))
	path := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zip(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const descriptor = `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1">
  <References><File id="f1" href="disk-1"/><File id="f2" href="disk-2"/></References>
  <DiskSection><Disk diskId="d1" fileRef="f1" capacity="1"/><Disk diskId="d2" fileRef="f2" capacity="1"/></DiskSection>
  <VirtualSystem id="vm"/>
</Envelope>`

// archive is an OVA of two disks.
func archive(t *testing.T, disk1, disk2 []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []struct {
		name string
		data []byte
	}{{"vm.ovf", []byte(descriptor)}, {"disk-1", disk1}, {"disk-2", disk2}} {
		err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.data)), Format: tar.FormatUSTAR})
		if err == nil {
			_, err = w.Write(m.data)
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

func look(t *testing.T, image []byte, opt inspect.Options) *inspect.Report {
	t.Helper()
	r, err := inspect.Inspect(t.Context(), imagetest.Of(image), opt)
	if err != nil {
		t.Fatal(err)
	}
	if r.FileSize != int64(len(image)) || r.Importable != (r.Refusal == nil) {
		t.Errorf("report is %+v", r)
	}
	return r
}

// summary is a report as one line.
func summary(r *inspect.Report) string {
	s := r.Format + " " + r.Wrapper
	for _, d := range r.Disks {
		size := "?"
		if d.VirtualSize != nil {
			size = fmt.Sprint(*d.VirtualSize)
		}
		s += fmt.Sprintf("; %s/%s %s %s: %s %v", d.Format, d.Variant, size, d.Reads, d.PartitionTable, d.Boot)
		for _, p := range d.Partitions {
			s += fmt.Sprintf(" %d %s %d+%d", p.Number, p.TypeName, p.Start, p.Size)
		}
	}
	return s
}

func TestFormats(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	path := guest(t, size)
	const table = "mbr [bios] 1 Linux 1048576+2097152"
	convert := func(format, options string, args ...string) func(*testing.T) []byte {
		return func(t *testing.T) []byte { return load(t, imagetest.Convert(t, path, format, options, args...)) }
	}
	raw := func(t *testing.T) []byte { return load(t, path) }
	stream := convert("vmdk", "subformat=streamOptimized")
	for _, tt := range []struct {
		name    string
		image   func(*testing.T) []byte
		want    string // of the disk, with the size for %d
		gzipped string // the same in gzip
	}{
		{"raw", raw, "raw ; raw/raw %d any order: " + table, "raw.gz gzip; raw/ ? front to back: " + table},
		{"qcow2", convert("qcow2", ""), "qcow2 ; qcow2/version 3, zlib %d any order: " + table, "qcow2.gz gzip; qcow2/ %d needs scratch space:  []"},
		{"qcow2 compressed", convert("qcow2", "compat=0.10", "-c"), "qcow2 ; qcow2/version 2, zlib %d any order: " + table, "qcow2.gz gzip; qcow2/ %d needs scratch space:  []"},
		{"vmdk sparse", convert("vmdk", ""), "vmdk ; vmdk/monolithicSparse %d any order: " + table, "vmdk.gz gzip; vmdk/ %d needs scratch space:  []"},
		{"vmdk stream", stream, "vmdk ; vmdk/streamOptimized %d front to back: " + table, "vmdk.gz gzip; vmdk/streamOptimized %d front to back: " + table},
		{"vhd dynamic", convert("vpc", "force_size=on"), "vhd ; vhd/dynamic %d any order: " + table, "vhd.gz gzip; vhd/ %d needs scratch space:  []"},
		{"vhd fixed", convert("vpc", "subformat=fixed,force_size=on"), "vhd ; vhd/fixed %d any order: " + table, "raw.gz gzip; raw/ ? front to back: " + table},
		{"vhdx", convert("vhdx", ""), "vhdx ; vhdx/dynamic %d any order: " + table, "vhdx.gz gzip; vhdx/ ? needs scratch space:  []"},
		{"vdi", convert("vdi", ""), "vdi ; vdi/dynamic %d any order: " + table, "vdi.gz gzip; vdi/ %d needs scratch space:  []"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			image := tt.image(t)
			for want, image := range map[string][]byte{tt.want: image, tt.gzipped: zip(t, image)} {
				r := look(t, image, inspect.Options{})
				if got, want := summary(r), strings.Replace(want, "%d", fmt.Sprint(size), 1); !r.Importable || got != want {
					t.Errorf("got  %s\nwant %s\nrefusal %+v", got, want, r.Refusal)
				}
				for _, d := range r.Disks {
					if len(d.Warnings) > 0 {
						t.Errorf("warnings %q", d.Warnings)
					}
				}
			}
		})
	}
	t.Run("ova", func(t *testing.T) {
		t.Parallel()
		r := look(t, archive(t, stream(t), make([]byte, 1<<20)), inspect.Options{})
		want := fmt.Sprintf("ova ova; vmdk/streamOptimized %d front to back: %s; raw/raw 1048576 any order: none []", size, table)
		if got := summary(r); !r.Importable || got != want || r.Disks[0].Member != "disk-1" {
			t.Errorf("got  %s\nwant %s\nrefusal %+v", got, want, r.Refusal)
		}
		if w := r.Disks[1].Warnings; len(w) > 0 {
			t.Errorf("a data disk needs nothing to start from: %q", w)
		}
	})
}

func TestBootWarnings(t *testing.T) {
	t.Parallel()
	disk := make([]byte, 1<<20)
	copy(disk, imagetest.BootSector(8, 8))
	for name, tt := range map[string]struct {
		image []byte
		want  string
	}{
		"bios":    {disk, ""},
		"uefi":    {imagetest.Patched(imagetest.Patched(disk, 450, 0xef), 0, make([]byte, 16)...), "UEFI only"},
		"both":    {imagetest.Patched(disk, 450, 0xef), ""},
		"neither": {make([]byte, 1<<20), "Nothing to start from"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := look(t, tt.image, inspect.Options{}).Disks[0].Warnings
			if (tt.want == "") != (len(w) == 0) || tt.want != "" && !strings.Contains(w[0], tt.want) {
				t.Errorf("warnings %q, want %q", w, tt.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	path := guest(t, 3<<20)
	image, raw := load(t, imagetest.Convert(t, path, "qcow2", "")), load(t, path)
	for name, tt := range map[string]struct {
		image  []byte
		opt    inspect.Options
		code   string
		format string
		disks  int // that the report describes all the same
	}{
		"empty":           {nil, inspect.Options{}, "object_empty", "", 0},
		"a page":          {[]byte("<!DOCTYPE html>" + strings.Repeat(" ", 600)), inspect.Options{}, "not_a_disk_image", "", 0},
		"another format":  {[]byte("7z\xbc\xaf\x27\x1c" + strings.Repeat("x", 600)), inspect.Options{}, "format_unsupported", "7z", 0},
		"not as declared": {image, inspect.Options{Declared: diskimage.ParseDeclared("vmdk")}, "format_mismatch", "qcow2", 0},
		"not compressed":  {image, inspect.Options{Declared: diskimage.ParseDeclared("qcow2.gz")}, "format_mismatch", "qcow2", 0},
		"too large":       {image, inspect.Options{Limits: formats.Limits{MaxDisk: 1 << 20}}, "disk_too_large", "qcow2", 0},
		"backing file":    {imagetest.Patched(image, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 4), inspect.Options{}, "image_backing_file", "qcow2", 0},
		// Only the tables tell.
		"truncated":        {image[:len(image)/2], inspect.Options{}, "image_truncated", "qcow2", 1},
		"nested":           {zip(t, zip(t, raw[:1<<20])), inspect.Options{}, "image_nested", "gzip", 0},
		"truncated gzip":   {zip(t, raw)[:20], inspect.Options{}, "image_truncated", "gzip", 0},
		"truncated in OVA": {archive(t, raw[:1<<20], image[:len(image)/2]), inspect.Options{}, "image_truncated", "ova", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := look(t, tt.image, tt.opt)
			if r.Importable || r.Refusal.Code != tt.code || r.Refusal.Message == "" || r.Refusal.Remedy == "" {
				t.Fatalf("refusal is %+v", r.Refusal)
			}
			if r.Format != tt.format || len(r.Disks) != tt.disks {
				t.Errorf("format %q, %d disks", r.Format, len(r.Disks))
			}
		})
	}
}

// What stands in a report is for programs too.
func TestJSON(t *testing.T) {
	t.Parallel()
	disk := make([]byte, 1<<20)
	copy(disk, imagetest.BootSector(8, 8))
	for name, tt := range map[string]struct {
		image []byte
		want  string
	}{
		"importable": {disk, `{"importable":true,"format":"raw","file_size":1048576,"disks":[` +
			`{"format":"raw","variant":"raw","virtual_size":1048576,"reads":"any order","partition_table":"mbr",` +
			`"partitions":[{"number":1,"start":4096,"size":4096,"type":"0x83","type_name":"Linux","bootable":true}],` +
			`"boot":["bios"],"warnings":[]}],"warnings":[]}`},
		"refused": {nil, `{"importable":false,"refusal":{"code":"object_empty","message":"The object is empty.",` +
			`"remedy":"Check that the upload of the image has finished."},"file_size":0,"disks":[],"warnings":[]}`},
		"compressed": {zip(t, disk[:512]), `{"importable":true,"format":"raw.gz","file_size":` + fmt.Sprint(len(zip(t, disk[:512]))) +
			`,"wrapper":"gzip","disks":[{"format":"raw","virtual_size":null,"reads":"front to back","partition_table":"mbr",` +
			`"partitions":[{"number":1,"start":4096,"size":4096,"type":"0x83","type_name":"Linux","bootable":true}],` +
			`"boot":["bios"],"warnings":[]}],"warnings":[]}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := json.Marshal(look(t, tt.image, inspect.Options{}))
			if err != nil || string(got) != tt.want {
				t.Errorf("got  %s\nwant %s\n%v", got, tt.want, err)
			}
		})
	}
}

// counting counts what is read.
type counting struct {
	io.ReaderAt
	bytes atomic.Int64
	fail  int64 // how many may be read
}

var errBroken = errors.New("broken")

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	if n := c.bytes.Add(int64(len(p))); c.fail > 0 && n > c.fail {
		return 0, errBroken
	}
	return c.ReaderAt.ReadAt(p, off)
}

func TestReads(t *testing.T) {
	t.Parallel()
	path := guest(t, 16<<20)
	for _, tt := range []struct{ format, options string }{{"raw", ""}, {"qcow2", ""}, {"vmdk", "subformat=streamOptimized"}} {
		t.Run(tt.format, func(t *testing.T) {
			t.Parallel()
			image := load(t, imagetest.Convert(t, path, tt.format, tt.options))
			c := &counting{ReaderAt: bytes.NewReader(image)}
			if _, err := inspect.Inspect(t.Context(), diskimage.NewFile(c, int64(len(image))), inspect.Options{}); err != nil || c.bytes.Load() > 4<<20 {
				t.Errorf("%d of %d bytes were read, %v", c.bytes.Load(), len(image), err)
			}
			for fail := int64(1); fail < c.bytes.Load(); fail += c.bytes.Load() / 10 {
				c := &counting{ReaderAt: bytes.NewReader(image), fail: fail}
				if r, err := inspect.Inspect(t.Context(), diskimage.NewFile(c, int64(len(image))), inspect.Options{}); !errors.Is(err, errBroken) {
					t.Errorf("a reader that fails after %d bytes: %+v, %v", fail, r, err)
				}
			}
		})
	}
}

// An image whose first sectors lie behind all its tables, of which there are many:
// they are read once, as for an import, and not again to look at the disk.
func TestTablesWithoutEnd(t *testing.T) {
	t.Parallel()
	const cluster, tables = 2 << 20, 20
	path := filepath.Join(t.TempDir(), "image")
	imagetest.QemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "20T")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 48)
	_, err = f.ReadAt(header, 0)
	next := (info.Size() + cluster - 1) / cluster * cluster
	l1 := make([]byte, 8*tables)
	for i := range int64(tables) { // each an L2 table without an entry
		binary.BigEndian.PutUint64(l1[8*i:], 1<<63|uint64(next+i*cluster))
	}
	_, err1 := f.WriteAt(l1, int64(binary.BigEndian.Uint64(header[40:])))
	size := next + tables*cluster
	if err := errors.Join(err, err1, f.Truncate(size)); err != nil {
		t.Fatal(err)
	}
	c := &counting{ReaderAt: f}
	r, err := inspect.Inspect(t.Context(), diskimage.NewFile(c, size), inspect.Options{})
	if err != nil || !r.Importable {
		t.Fatalf("%+v, %v", r, err)
	}
	d := r.Disks[0]
	if d.PartitionTable != "" || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "too much of the image") {
		t.Errorf("disk is %+v", d)
	}
	if n := c.bytes.Load(); n > size+(32+8)<<20 {
		t.Errorf("%d bytes of %d were read", n, size)
	}
}
