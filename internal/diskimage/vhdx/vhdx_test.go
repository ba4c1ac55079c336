package vhdx

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// The table of the largest disk in blocks of 8 MiB has 64 MiB: it is read once, and not
// at all in front of where a walk begins. (Not parallel: it counts what is allocated.)
func TestLargestDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vhdx")
	imagetest.QemuImg(t, "create", "-q", "-f", "vhdx", "-o", "block_size=8M,block_state_zero=off", path, "64T")
	real := imagetest.Open(t, path)
	const blocks, chunk, size = diskimage.MaxDiskBytes / (8 * mib), 512, 8 * mib
	const table = 8 * (blocks + blocks/chunk - 1)

	m := over(real)
	m.size += 2 * size
	m.put64(batAt, uint64(real.Size()+size)|statePresent)
	m.put64(batAt+table-16, uint64(real.Size())|statePresent)
	m.put64(batAt+table-8, uint64(real.Size()+size)|statePresent)
	counted := &counter{r: m}
	f := diskimage.NewFile(counted, m.size)

	var d *diskimage.Disk
	imagetest.Bounded(t, 1<<20, func() { d = mustOpen(t, f) })
	if d.Size != diskimage.MaxDiskBytes {
		t.Fatalf("disk has %d bytes", d.Size)
	}
	want := []diskimage.Extent{
		{Guest: 0, Length: size, File: real.Size() + size, Stored: size},
		{Guest: d.Size - 2*size, Length: 2 * size, File: real.Size(), Stored: 2 * size},
	}
	var got []diskimage.Extent
	imagetest.Bounded(t, table+1<<20, func() {
		var err error
		if got, err = extents(d, f, 0); err != nil {
			t.Fatal(err)
		}
	})
	if !slices.Equal(got, want) {
		t.Fatalf("extents %+v, want %+v", got, want)
	}

	before := counted.n.Load()
	got, err := extents(d, f, d.Size-size)
	if err != nil || len(got) != 1 {
		t.Fatalf("extents %+v of the last block, %v", got, err)
	}
	if n := counted.n.Load() - before; n > 8 {
		t.Fatalf("read %d bytes to find the last block", n)
	}
}

type counter struct {
	r io.ReaderAt
	n atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(int64(len(p)))
	return c.r.ReadAt(p, off)
}

// Every variant that qemu-img writes.
func TestImagesOfQemu(t *testing.T) {
	t.Parallel()
	for _, g := range imagetest.Guests(t) {
		for options, variant := range map[string]string{
			"":                                   "dynamic",
			"subformat=dynamic,block_size=1M":    "dynamic",
			"block_size=1M,block_state_zero=off": "dynamic",
			"block_size=2M,log_size=3M":          "dynamic",
			"block_size=32M":                     "dynamic",
			"subformat=fixed":                    "fixed",
			"subformat=fixed,block_size=1M,block_state_zero=off,log_size=16M": "fixed",
			"subformat=fixed,block_size=32M,block_state_zero=off":             "fixed",
		} {
			t.Run(g.Name+"/"+options, func(t *testing.T) {
				t.Parallel()
				f := imagetest.Open(t, imagetest.Convert(t, g.Path, "vhdx", options))
				d := mustOpen(t, f)
				if d.Variant != variant || len(d.Warnings) > 0 {
					t.Errorf("variant %s, warnings %q", d.Variant, d.Warnings)
				}
				imagetest.Equal(t, d, f, g.Path)
			})
		}
	}
}

// Blocks lie in the file in the order in which they were written.
func TestBlocksOutOfOrder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image.vhdx")
	imagetest.QemuImg(t, "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "12M")
	imagetest.QemuIO(t, path, "vhdx", "write -P 1 9M 1M", "write -P 2 1M 3M", "write -P 3 5000k 100k", "write -P 4 0 3k", "write -P 5 11M 1M")
	raw := filepath.Join(t.TempDir(), "raw")
	imagetest.QemuImg(t, "convert", "-f", "vhdx", "-O", "raw", path, raw)

	f := imagetest.Open(t, path)
	d := mustOpen(t, f)
	imagetest.Equal(t, d, f, raw)

	all, err := extents(d, f, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 { // 0; 1 to 4, which were written one after the other; 9; 11
		t.Errorf("%d extents: %+v", len(all), all)
	}
	sameFromEverywhere(t, d, f)
}

// sameFromEverywhere checks that a walk from anywhere sees what one from the start
// sees there, also while others walk.
func sameFromEverywhere(t *testing.T, d *diskimage.Disk, f *diskimage.File) {
	t.Helper()
	var wg sync.WaitGroup
	for from := int64(0); from <= d.Size; from += d.Size/40 + 511 {
		wg.Go(func() {
			if err := sameFrom(d, f, from); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func sameFrom(d *diskimage.Disk, f *diskimage.File, from int64) error {
	all, err := extents(d, f, 0)
	if err != nil {
		return err
	}
	rest, err := extents(d, f, from)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(e diskimage.Extent) bool { return e.Guest+e.Length <= from })
	if len(all) > 0 {
		before := max(0, from-all[0].Guest)
		all[0].Guest += before
		all[0].File += before
		all[0].Length -= before
		all[0].Stored -= before
	}
	if !slices.Equal(rest, all) {
		return fmt.Errorf("from %d extents are %+v, from 0 on they are %+v", from, rest, all)
	}
	return nil
}

// With sectors of 512 bytes the table has an entry that belongs to no block for each
// 4 GiB of the disk.
func TestSectorBitmaps(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	const size = 9 * gib
	raw := filepath.Join(t.TempDir(), "raw")
	file, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	places := []int64{0, 4*gib - mib, 4*gib - 4096, 4 * gib, 4*gib + mib, 8*gib - 700, 8*gib + 300, 8*gib + 2*mib, size - 512}
	for i, at := range places {
		if _, err := file.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 512), at); err != nil {
			t.Fatal(err)
		}
	}

	want := imagetest.Open(t, raw)

	for _, options := range []string{"block_size=1M", "block_size=1M,block_state_zero=off", "block_size=32M", "block_size=256M", "subformat=fixed,block_size=1M,block_state_zero=off"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			f := imagetest.Open(t, imagetest.Convert(t, raw, "vhdx", options))
			d := mustOpen(t, f)
			if d.Size != size {
				t.Fatalf("disk has %d bytes", d.Size)
			}
			sameFromEverywhere(t, d, f)
			all, err := extents(d, f, 0)
			if err != nil {
				t.Fatal(err)
			}
			if full := strings.HasPrefix(options, "subformat=fixed"); full && (len(all) != 1 || all[0].Length != size) {
				t.Fatalf("a fixed disk has extents %+v", all)
			} else if !full {
				for _, e := range all {
					sameBytes(t, e, f, want)
				}
			}
			for i, at := range places {
				p := make([]byte, 512)
				if _, err := d.Guest(f).ReadAt(p, at); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{byte(i + 1)}, 512)) {
					t.Errorf("at %d: %v, or other data", at, err)
				}
			}
		})
	}
}

// sameBytes checks that an extent is what the raw disk has there. Of each MiB it looks
// at both ends, where the data is.
func sameBytes(t *testing.T, e diskimage.Extent, f, raw *diskimage.File) {
	t.Helper()
	const window = 4096
	for at := int64(0); at < e.Length; at += mib {
		for _, at := range []int64{at, at + mib - window} {
			n := min(window, e.Length-at)
			if n <= 0 {
				break
			}
			got, err := f.Read("data", e.File+at, n)
			if err != nil {
				t.Fatal(err)
			}
			want, err := raw.Read("data", e.Guest+at, n)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("the disk differs within the %d bytes at %d", n, e.Guest+at)
			}
		}
	}
}

// With sectors of 4096 bytes a chunk has 32 GiB. qemu-img does not write these.
func TestLargeSectors(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image.vhdx")
	imagetest.QemuImg(t, "create", "-q", "-f", "vhdx", "-o", "block_size=1M,block_state_zero=off", path, "33G")
	m := over(imagetest.Open(t, path))
	end := m.size
	m.size += 3 * mib
	m.put32(logicalAt, 4096)
	m.put32(physicalAt, 4096)
	const chunk = 32768
	for i, block := range []int64{0, chunk - 1, chunk} {
		m.put64(batAt+8*(block+block/chunk), uint64(end+int64(i)*mib)|statePresent)
		m.put(end+int64(i)*mib, []byte{byte(i + 1)})
	}
	f := m.file()
	d := mustOpen(t, f)
	if len(d.Warnings) != 1 || d.Size != 33<<30 {
		t.Errorf("%d bytes, warnings %q", d.Size, d.Warnings)
	}
	for i, at := range []int64{0, 32<<30 - mib, 32 << 30} {
		p := make([]byte, 1)
		if _, err := d.Guest(f).ReadAt(p, at); err != nil || p[0] != byte(i+1) {
			t.Errorf("at %d: %v, %v", at, p, err)
		}
	}
	sameFromEverywhere(t, d, f)

	m.put64(sizeAt, 33<<30+512)
	if err := verdict(f); !isFault(err, diskimage.ErrCorrupt) {
		t.Errorf("half a sector: %v", err)
	}
}
