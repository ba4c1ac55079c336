package vhd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/vhd"
	"vmimport/internal/fault"
)

func TestImagesOfQemuImg(t *testing.T) {
	t.Parallel()
	for _, guest := range imagetest.Guests(t) {
		for _, c := range []struct{ name, variant, options string }{
			{"dynamic", "dynamic", "force_size=on"},
			{"dynamic rounded", "dynamic", ""},
			{"fixed", "fixed", "subformat=fixed,force_size=on"},
			{"fixed rounded", "fixed", "subformat=fixed"},
		} {
			t.Run(guest.Name+" "+c.name, func(t *testing.T) {
				t.Parallel()
				path := imagetest.Convert(t, guest.Path, "vpc", c.options)
				f := imagetest.Open(t, path)
				d, err := vhd.Open(f)
				if err != nil {
					t.Fatal(err)
				}
				if d.Format != diskimage.VHD || d.Variant != c.variant || len(d.Warnings) != 0 {
					t.Errorf("opened as %s %s, warnings %q", d.Format, d.Variant, d.Warnings)
				}
				imagetest.Equal(t, d, f, padded(t, guest.Path, d.Size))
				imagetest.Equal(t, d, f, toRaw(t, path))
			})
		}
	}
}

// padded is the disk at path as qemu-img packs it: it may round the size up to what
// a geometry can say, by less than a cylinder of 16 heads of 63 sectors.
func padded(t *testing.T, path string, size int64) string {
	t.Helper()
	b := load(t, path)
	more := size - int64(len(b))
	if more < 0 || more >= 16*63*512 {
		t.Fatalf("disk has %d bytes, the guest %d", size, len(b))
	}
	padded := filepath.Join(t.TempDir(), "padded.raw")
	if err := os.WriteFile(padded, append(b, make([]byte, more)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return padded
}

func TestBlocksOutOfOrder(t *testing.T) {
	t.Parallel()
	path := create(t, "21M",
		"write -P 1 20M 1M", "write -P 2 12345k 7k", "write -P 3 0 512", "write -P 4 4095k 2k", "write -P 5 2M 2M")
	f := imagetest.Open(t, path)
	d, err := vhd.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	imagetest.Equal(t, d, f, toRaw(t, path))
	var places []int64
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, e.File)
	}
	if len(places) != 5 || slices.IsSorted(places) {
		t.Errorf("blocks at %d, want five that are out of order", places)
	}
}

func TestHandMade(t *testing.T) {
	t.Parallel()
	for _, image := range [][]byte{handMade(), fixedImage(4096)} {
		f := imagetest.Of(image)
		d, err := vhd.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		raw := toRaw(t, store(t, image))
		imagetest.Equal(t, d, f, raw)
	}
}

// TestTheEndOfTheLastBlockMayBeMissing has the last block of the disk be the last of
// the file, cut where the disk ends.
func TestTheEndOfTheLastBlockMayBeMissing(t *testing.T) {
	t.Parallel()
	b := handMade()
	last := slices.Concat(b[1536:1536+512+1024], b[len(b)-512:])
	b = append(b[:len(b)-512], last...)
	be.PutUint32(b[10752+8:], 11264/512)
	for _, at := range []int{0, len(b) - 512} {
		be.PutUint64(b[at+48:], 2*4096+1024)
	}
	f := imagetest.Of(resum(b))
	d, err := vhd.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := imagetest.Read(d, f)
	if want := bytes.Repeat([]byte("last "), 205)[:1024]; err != nil || len(got) != 9216 || !bytes.Equal(got[8192:], want) {
		t.Errorf("disk of %d bytes with a wrong end, %v", len(got), err)
	}
}

// TestHugeDisk is not parallel, for it counts what is allocated.
func TestHugeDisk(t *testing.T) {
	file, err := os.Open(create(t, "2040G", "write -P 1 0 4k", "write -P 2 2088959M 1M"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{ReaderAt: file}
	var extents []diskimage.Extent
	imagetest.Bounded(t, 5<<20, func() {
		d, err := vhd.Open(diskimage.NewFile(r, fi.Size()))
		if err != nil || d.Size != 2040<<30 {
			t.Fatal(d, err)
		}
		for e, err := range d.Map.Extents(0) {
			if err != nil {
				t.Fatal(err)
			}
			extents = append(extents, e)
		}
	})
	if len(extents) != 2 || extents[1].Guest != 2040<<30-2<<20 {
		t.Errorf("extents %v", extents)
	}
	if reads, n := r.reads.Load(), r.bytes.Load(); reads > 4 || n > 4<<20+4096 {
		t.Errorf("%d reads of %d bytes for a table of 4 MiB", reads, n)
	}
}

func TestExtentsFromAPlace(t *testing.T) {
	t.Parallel()
	d, err := vhd.Open(imagetest.Of(handMade()))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from int64
		want []int64
	}{{0, []int64{0, 8192}}, {4095, []int64{0, 8192}}, {4096, []int64{8192}}, {12287, []int64{8192}}, {12288, nil}, {1 << 40, nil}} {
		var got []int64
		for e, err := range d.Map.Extents(c.from) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Guest)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("extents from %d on begin at %d, want %d", c.from, got, c.want)
		}
	}
	for range d.Map.Extents(0) {
		break // and nothing is yielded after it
	}
	if err := d.Map.Unpack(nil, nil); !errors.Is(err, diskimage.ErrCorrupt) {
		t.Errorf("unpacked: %v", err)
	}
}

func TestPeekSize(t *testing.T) {
	t.Parallel()
	differencing := handMade()
	be.PutUint32(differencing[60:], 4)
	for _, c := range []struct {
		name string
		head []byte
		want int64
	}{
		{"dynamic", handMade(), 12288},
		{"footer only", handMade()[:512], 12288},
		{"too little", handMade()[:511], 0},
		{"nothing", nil, 0},
		{"fixed", fixedImage(4096), 0},
		{"footer of a fixed disk", fixedImage(0), 0},
		{"wrong checksum", imagetest.Patched(handMade(), 50, 1), 0},
		{"differencing", resum(differencing), 0},
	} {
		if got, ok := vhd.PeekSize(c.head); got != c.want || ok != (c.want > 0) {
			t.Errorf("%s: %d %t, want %d", c.name, got, ok, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		patch    func(footer []byte)
		warnings int
	}{
		{"none", func([]byte) {}, 0},
		{"saved state", func(b []byte) { b[84] = 1 }, 1},
		{"Virtual PC, smaller geometry", func(b []byte) { copy(b[28:], "vpc \x00\x05\x00\x00Wi2k"); b[57], b[58], b[59] = 1, 4, 5 }, 1},
		{"QEMU, smaller geometry", func(b []byte) { copy(b[28:], "qemu"); b[57], b[58], b[59] = 1, 4, 5 }, 1},
		{"Hyper-V, smaller geometry", func(b []byte) { b[57], b[58], b[59] = 1, 4, 5 }, 0},
		{"QEMU, same geometry", func(b []byte) { copy(b[28:], "qemu"); b[57], b[58], b[59] = 1, 4, 6 }, 0},
		{"QEMU, no geometry", func(b []byte) { copy(b[28:], "qemu") }, 0},
	} {
		b := handMade()
		c.patch(b)
		c.patch(b[len(b)-512:])
		d, err := vhd.Open(imagetest.Of(resum(b)))
		if err != nil || d.Size != 12288 || len(d.Warnings) != c.warnings {
			t.Errorf("%s: %+v %v, want %d warnings", c.name, d, err, c.warnings)
		}
	}
}

func TestReadErrorsAreTheReaders(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	image := handMade()
	for _, at := range []int64{0, 600, 10752, int64(len(image)) - 1} {
		f := diskimage.NewFile(&reader{ReaderAt: bytes.NewReader(image), failAt: at, err: broken}, int64(len(image)))
		err := openAndWalk(f)
		if !errors.Is(err, broken) || fault.KindOf(err) == fault.Invalid {
			t.Errorf("reading byte %d: %v", at, err)
		}
	}
}

// openAndWalk does what an import does with tables, and checks what a Map promises.
func openAndWalk(f *diskimage.File) error {
	d, err := vhd.Open(f)
	if err != nil {
		return err
	}
	end := int64(0)
	for e, err := range d.Map.Extents(0) {
		switch {
		case err != nil:
			return err
		case e.Guest < end || e.Length <= 0 || e.Length > d.Size-e.Guest || e.Stored != e.Length || !f.Has(e.File, e.Stored):
			return fmt.Errorf("unsound extent %+v behind %d", e, end)
		}
		end = e.Guest + e.Length
	}
	return nil
}
