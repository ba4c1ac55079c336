package vdi_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/vdi"
	"vmimport/internal/fault"
)

func TestImagesOfQemuImg(t *testing.T) {
	t.Parallel()
	for _, guest := range imagetest.Guests(t) {
		for _, c := range []struct{ variant, options string }{{"dynamic", ""}, {"fixed", "static=on"}} {
			t.Run(guest.Name+" "+c.variant, func(t *testing.T) {
				t.Parallel()
				f := imagetest.Open(t, imagetest.Convert(t, guest.Path, "vdi", c.options))
				d, err := vdi.Open(f)
				if err != nil {
					t.Fatal(err)
				}
				if d.Format != diskimage.VDI || d.Variant != c.variant || len(d.Warnings) != 0 {
					t.Errorf("opened as %s %s, warnings %q", d.Format, d.Variant, d.Warnings)
				}
				imagetest.Equal(t, d, f, guest.Path)
				if n := len(extents(t, d, 0)); c.variant == "fixed" && n != 1 {
					t.Errorf("a fixed disk of %d extents", n)
				}
			})
		}
	}
}

func extents(t testing.TB, d *diskimage.Disk, from int64) (all []diskimage.Extent) {
	t.Helper()
	for e, err := range d.Map.Extents(from) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func TestBlocksOutOfOrder(t *testing.T) {
	t.Parallel()
	path := create(t, "21M",
		"write -P 1 20M 1M", "write -P 2 12345k 7k", "write -P 3 0 512", "write -P 4 4095k 2k", "write -P 5 1M 2M")
	f := imagetest.Open(t, path)
	d, err := vdi.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	imagetest.Equal(t, d, f, toRaw(t, path))
	// In the file: 20, 12, 0, 3 with 4, 1 with 2.
	const mib = 1 << 20
	want := []diskimage.Extent{
		{Guest: 0, Length: mib, File: 1024 + 2*mib, Stored: mib},
		{Guest: 1 * mib, Length: 2 * mib, File: 1024 + 5*mib, Stored: 2 * mib},
		{Guest: 3 * mib, Length: 2 * mib, File: 1024 + 3*mib, Stored: 2 * mib},
		{Guest: 12 * mib, Length: mib, File: 1024 + 1*mib, Stored: mib},
		{Guest: 20 * mib, Length: mib, File: 1024 + 0*mib, Stored: mib},
	}
	if got := extents(t, d, 0); !slices.Equal(got, want) {
		t.Errorf("extents %v", got)
	}
}

func TestImageOfVirtualBox(t *testing.T) {
	t.Parallel()
	image := handMade(5<<20, 1<<20, 1<<20, 2, 0xfffffffe, 0, 0xffffffff, 1)
	f := imagetest.Of(image)
	d, err := vdi.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	imagetest.Equal(t, d, f, toRaw(t, store(t, image)))
}

func TestBlockSizes(t *testing.T) {
	t.Parallel()
	for _, block := range []int{128 << 10, 512 << 10, 8 << 20} {
		f := imagetest.Of(handMade(2*block+512, block, 4096, 0, 0xffffffff, 1))
		d, err := vdi.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := imagetest.Read(d, f)
		want := slices.Concat(bytes.Repeat([]byte("0"), block), make([]byte, block), bytes.Repeat([]byte("1"), 512))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("blocks of %d bytes: wrong disk, %v", block, err)
		}
	}
}

func TestOddSizeIsRoundedUp(t *testing.T) {
	t.Parallel()
	image := handMade(1<<20+700, 1<<20, 512, 0, 1)
	f := imagetest.Of(image)
	d, err := vdi.Open(f)
	if err != nil || d.Size != 1<<20+1024 {
		t.Fatal(d, err)
	}
	imagetest.Equal(t, d, f, toRaw(t, store(t, image)))
}

func TestTheEndOfTheLastBlockMayBeMissing(t *testing.T) {
	t.Parallel()
	f := imagetest.Of(small())
	d, err := vdi.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	got, err := imagetest.Read(d, f)
	if err != nil || !bytes.Equal(got, append(make([]byte, 128<<10), bytes.Repeat([]byte("0"), 1024)...)) {
		t.Errorf("wrong disk, %v", err)
	}
}

// TestHugeDisk is not parallel, for it counts what is allocated.
func TestHugeDisk(t *testing.T) {
	file, err := os.Open(create(t, "5T", "write -P 1 0 4k", "write -P 2 5242878M 2M"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{ReaderAt: file}
	imagetest.Bounded(t, 5<<20, func() {
		d, err := vdi.Open(diskimage.NewFile(r, fi.Size()))
		if err != nil || d.Size != 5<<40 {
			t.Fatal(d, err)
		}
		if all := extents(t, d, 0); len(all) != 2 || all[1].Guest != 5<<40-2<<20 || all[1].Length != 2<<20 {
			t.Errorf("extents %v", all)
		}
	})
	if reads, n := r.reads.Load(), r.bytes.Load(); reads > 6 || n > 20<<20+512 {
		t.Errorf("%d reads of %d bytes for a map of 20 MiB", reads, n)
	}
}

func TestExtentsFromAPlace(t *testing.T) {
	t.Parallel()
	const block = 128 << 10
	d, err := vdi.Open(imagetest.Of(handMade(4*block, block, 512, 1, 2, 0xffffffff, 0)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from int64
		want []int64
	}{{0, []int64{0, 3 * block}}, {block, []int64{block, 3 * block}}, {2 * block, []int64{3 * block}}, {4*block - 1, []int64{3 * block}}, {4 * block, nil}, {1 << 50, nil}} {
		var got []int64
		for _, e := range extents(t, d, c.from) {
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
	for _, c := range []struct {
		name string
		head []byte
		want int64
	}{
		{"image", small(), 129 << 10},
		{"header only", small()[:512], 129 << 10},
		{"odd size", handMade(1000, 128<<10, 512, 0), 1024},
		{"too little", small()[:511], 0},
		{"nothing", nil, 0},
		{"no signature", imagetest.Patched(small(), 64, 0), 0},
		{"size zero", handMade(0, 128<<10, 512, 0), 0},
		{"negative size", imagetest.Patched(small(), diskSize+7, 0xff), 0},
		{"differencing", imagetest.Patched(small(), kind, 4), 0},
	} {
		if got, ok := vdi.PeekSize(c.head); got != c.want || ok != (c.want > 0) {
			t.Errorf("%s: %d %t, want %d", c.name, got, ok, c.want)
		}
	}
}

func TestLongerFiles(t *testing.T) {
	t.Parallel()
	for _, more := range []int{1, 512, 1 << 20} {
		f := imagetest.Of(append(handMade(1<<20, 1<<20, 512, 0), make([]byte, more)...))
		d, err := vdi.Open(f)
		if err != nil || len(d.Warnings) != 1 {
			t.Errorf("%d bytes more: %+v %v", more, d, err)
		}
	}
}

func TestReadErrorsAreTheReaders(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	image := small()
	for _, at := range []int64{0, 512} {
		f := diskimage.NewFile(&reader{ReaderAt: bytes.NewReader(image), failAt: at, err: broken}, int64(len(image)))
		if err := openAndWalk(f); !errors.Is(err, broken) || fault.KindOf(err) == fault.Invalid {
			t.Errorf("reading byte %d: %v", at, err)
		}
	}
}

// openAndWalk does what an import does with tables, and checks what a Map promises.
func openAndWalk(f *diskimage.File) error {
	d, err := vdi.Open(f)
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
