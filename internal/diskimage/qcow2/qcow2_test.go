package qcow2_test

import (
	"bytes"
	"errors"
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
	"vmimport/internal/diskimage/qcow2"
)

// open opens an image that must be a good one.
func open(t testing.TB, f *diskimage.File) *diskimage.Disk {
	t.Helper()
	d, err := qcow2.Open(f)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return d
}

// checkFrom checks that the extents from any place of the disk on are those of the
// whole disk, as far as the first few of them show.
func checkFrom(t testing.TB, d *diskimage.Disk) {
	t.Helper()
	const few = 20
	all := extents(t, d)
	places := []int64{-1, 1, d.Size / 3, d.Size/2 + 511, d.Size - 1, d.Size, d.Size + 1}
	for _, e := range all[:min(len(all), few)] {
		places = append(places, e.Guest, e.Guest+1, e.Guest+e.Length-1, e.Guest+e.Length)
	}
	for _, from := range places {
		var want, got []diskimage.Extent
		for _, e := range all {
			if e.Guest+e.Length > from && from < d.Size && len(want) < few {
				want = append(want, cutFront(e, from))
			}
		}
		for e, err := range d.Map.Extents(from) {
			if err != nil {
				t.Fatalf("extents from %d: %v", from, err)
			}
			if got = append(got, cutFront(e, from)); len(got) == few {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("extents from %d are %v, want %v", from, got, want)
		}
	}
}

// cutFront takes what is before from off an extent that is not packed.
func cutFront(e diskimage.Extent, from int64) diskimage.Extent {
	if cut := from - e.Guest; cut > 0 && !e.Packed {
		return diskimage.Extent{Guest: from, Length: e.Length - cut, File: e.File + cut, Stored: e.Stored - cut}
	}
	return e
}

func extents(t testing.TB, d *diskimage.Disk) []diskimage.Extent {
	t.Helper()
	var all []diskimage.Extent
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			t.Fatalf("extents: %v", err)
		}
		all = append(all, e)
	}
	return all
}

// TestConvertedImages reads what qemu-img writes, in every variant that it knows.
func TestConvertedImages(t *testing.T) {
	t.Parallel()
	guests := imagetest.Guests(t)
	for _, v := range []struct {
		options string
		packed  bool
		variant string
	}{
		{"compat=0.10", false, "version 2, zlib"},
		{"compat=0.10", true, "version 2, zlib"},
		{"compat=0.10,cluster_size=512", true, "version 2, zlib"},
		{"compat=1.1", false, "version 3, zlib"},
		{"compat=1.1", true, "version 3, zlib"},
		{"cluster_size=512", false, "version 3, zlib"},
		{"cluster_size=512", true, "version 3, zlib"},
		{"cluster_size=4k", false, "version 3, zlib"},
		{"cluster_size=4k", true, "version 3, zlib"},
		{"cluster_size=2M", false, "version 3, zlib"},
		{"cluster_size=2M", true, "version 3, zlib"},
		{"compression_type=zstd", false, "version 3, zstd"},
		{"compression_type=zstd", true, "version 3, zstd"},
		{"compression_type=zstd,cluster_size=512", true, "version 3, zstd"},
		{"compression_type=zstd,cluster_size=2M", true, "version 3, zstd"},
		{"extended_l2=on,cluster_size=16k", false, "version 3, zlib, extended L2"},
		{"extended_l2=on,cluster_size=64k", false, "version 3, zlib, extended L2"},
		{"extended_l2=on,cluster_size=128k", false, "version 3, zlib, extended L2"},
		{"extended_l2=on,cluster_size=64k", true, "version 3, zlib, extended L2"},
		{"extended_l2=on,compression_type=zstd", true, "version 3, zstd, extended L2"},
		{"preallocation=metadata", false, "version 3, zlib"},
		{"preallocation=metadata,extended_l2=on", false, "version 3, zlib, extended L2"},
		{"preallocation=falloc,cluster_size=4k", false, "version 3, zlib"},
		{"preallocation=full", false, "version 3, zlib"},
		{"lazy_refcounts=on", false, "version 3, zlib"},
		{"refcount_bits=1", false, "version 3, zlib"},
		{"refcount_bits=64", false, "version 3, zlib"},
	} {
		t.Run(fmt.Sprintf("%s,packed=%v", v.options, v.packed), func(t *testing.T) {
			t.Parallel()
			for _, g := range guests {
				if strings.Contains(v.options, "=512") && g.Name != "sparse" {
					continue // slow for qemu-img, and more of the same
				}
				var args []string
				if v.packed {
					args = append(args, "-c")
				}
				f := imagetest.Open(t, imagetest.Convert(t, g.Path, "qcow2", v.options, args...))
				d := open(t, f)
				if d.Format != diskimage.QCOW2 || d.Variant != v.variant || d.Warnings != nil {
					t.Errorf("%s: format %q, variant %q, want %q; warnings %q", g.Name, d.Format, d.Variant, v.variant, d.Warnings)
				}
				imagetest.Equal(t, d, f, g.Path)
				checkFrom(t, d)
			}
		})
	}
}

// TestImagesInUse reads images as they are after machines have run on them.
func TestImagesInUse(t *testing.T) {
	t.Parallel()
	for _, layout := range []string{
		"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=4k,lazy_refcounts=on", "cluster_size=2M",
		"extended_l2=on", "extended_l2=on,cluster_size=128k,compression_type=zstd", "preallocation=metadata",
	} {
		for name, use := range map[string]func(t *testing.T, path string){
			"out of order": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 7M 300k", "write -P 2 5M 64k", "write -P 3 5184k 64k", "write -P 4 0 100k",
					"write -P 5 3M 1k", "write -P 6 3080k 3k", "write -P 7 1M 512")
			},
			"discarded": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 0 4M", "discard 64k 128k", "write -z 1M 256k", "write -z -u 2M 300k", "write -z 3M 1k",
					"write -P 2 1100k 4k", "discard 0 512", "write -z 6M 1M")
			},
			"compressed in part": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -c -P 1 0 4M", "write -P 2 3k 1k", "write -P 3 2M 130k", "discard 3M 512k", "write -c -P 4 6M 2M")
			},
			"snapshots": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 0 2M", "write -P 2 6M 64k")
				imagetest.QemuImg(t, "snapshot", "-c", "one", path)
				imagetest.QemuIO(t, path, "qcow2", "write -P 3 1M 2M", "discard 0 512k")
				imagetest.QemuImg(t, "snapshot", "-c", "two", path)
				imagetest.QemuIO(t, path, "qcow2", "write -P 4 6M 1k", "write -P 5 7M 4k")
			},
			"bitmaps": func(t *testing.T, path string) {
				imagetest.QemuImg(t, "bitmap", "--add", path, "changes")
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 1M 2M")
			},
			"grown": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 7M 1M")
				imagetest.QemuImg(t, "resize", path, "40000512")
				imagetest.QemuIO(t, path, "qcow2", "write -P 2 39999488 1k")
			},
			"shrunk": func(t *testing.T, path string) {
				imagetest.QemuIO(t, path, "qcow2", "write -P 1 1M 7M")
				imagetest.QemuImg(t, "resize", "--shrink", path, "3000320")
			},
		} {
			if name == "bitmaps" && layout == "compat=0.10" || name == "compressed in part" && layout == "preallocation=metadata" {
				continue // version 2 has no bitmaps, and clusters that have a place are not compressed
			}
			t.Run(layout+" "+name, func(t *testing.T) {
				t.Parallel()
				path := create(t, layout, "8M")
				use(t, path)
				f := imagetest.Open(t, path)
				d := open(t, f)
				if warned := d.Warnings != nil; warned != (name == "snapshots") {
					t.Errorf("warnings: %q", d.Warnings)
				}
				imagetest.Equal(t, d, f, toRaw(t, path))
				checkFrom(t, d)
			})
		}
	}
}

func create(t testing.TB, options, size string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	imagetest.QemuImg(t, "create", "-f", "qcow2", "-o", options, path, size)
	return path
}

func toRaw(t testing.TB, path string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "guest.raw")
	imagetest.QemuImg(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	return raw
}

// counted counts what is read of a file.
type counted struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// TestLargeSparseDisk checks that a walk costs by the tables that there are, not by
// the size of the disk.
func TestLargeSparseDisk(t *testing.T) {
	t.Parallel()
	path := create(t, "compat=1.1", "3T")
	imagetest.QemuIO(t, path, "qcow2", "write -P 1 0 512", "write -P 2 1500G 64k", "write -P 3 3221225000k 472k")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &counted{ReaderAt: bytes.NewReader(b)}
	f := diskimage.NewFile(r, int64(len(b)))
	d := open(t, f)
	if n := r.bytes.Load(); n > 64<<10 {
		t.Errorf("open read %d bytes", n)
	}
	if all := extents(t, d); len(all) > 4 {
		t.Errorf("extents %v", all)
	}
	if n, bytes := r.reads.Load(), r.bytes.Load(); n > 6 || bytes > 512<<10 {
		t.Errorf("%d reads of %d bytes", n, bytes)
	}
	guest := d.Guest(f)
	for off, want := range map[int64]byte{0: 1, 1500 << 30: 2, 1500<<30 - 1: 0, d.Size / 2: 0, 3221225000 << 10: 3} {
		p := make([]byte, 1)
		if _, err := guest.ReadAt(p, off); err != nil || p[0] != want {
			t.Errorf("byte at %d is %d, want %d (%v)", off, p[0], want, err)
		}
	}
}

// TestNeighboursAreOne checks that what lies together is one extent, over the
// borders of clusters and of tables, and that the tables are read in few pieces.
func TestNeighboursAreOne(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"preallocation=full", "preallocation=full,cluster_size=4k", "preallocation=full,cluster_size=16k,extended_l2=on"} {
		b, err := os.ReadFile(create(t, options, "40M"))
		if err != nil {
			t.Fatal(err)
		}
		r := &counted{ReaderAt: bytes.NewReader(b)}
		all := extents(t, open(t, diskimage.NewFile(r, int64(len(b)))))
		if len(all) > 25 {
			t.Errorf("%s: %d extents", options, len(all))
		}
		if n := r.reads.Load(); n > 25 {
			t.Errorf("%s: %d reads", options, n)
		}
	}
}

// TestSmallClusters checks that tables of small clusters are not read one by one,
// although there is data between them.
func TestSmallClusters(t *testing.T) {
	t.Parallel()
	path := create(t, "cluster_size=512", "8M")
	imagetest.QemuIO(t, path, "qcow2", "write -P 1 0 8M")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &counted{ReaderAt: bytes.NewReader(b)}
	extents(t, open(t, diskimage.NewFile(r, int64(len(b)))))
	if n, bytes := r.reads.Load(), r.bytes.Load(); n > 30 || bytes > int64(2*len(b)) {
		t.Errorf("%d reads of %d bytes, the file has %d", n, bytes, len(b))
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	images := bases(t)
	for _, base := range []string{"v3", "zlib", "zstd"} {
		f := imagetest.Of(images[base])
		d := open(t, f)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if got, err := imagetest.Read(d, f); err != nil || !bytes.Equal(got, images["guest"]) {
					t.Errorf("%s: disk differs from the guest (%v)", base, err)
				}
			})
		}
		wg.Wait()
	}
}

// TestWalkStops checks that a walk ends when nobody wants more of it.
func TestWalkStops(t *testing.T) {
	t.Parallel()
	d := open(t, imagetest.Of(bases(t)["zlib"]))
	for limit := range len(extents(t, d)) {
		n := 0
		for range d.Map.Extents(0) {
			if n++; n == limit+1 {
				break
			}
		}
		if n != limit+1 {
			t.Fatalf("%d extents, want %d", n, limit+1)
		}
	}
}

func TestPeekSize(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"compat=0.10", "compat=1.1"} {
		b, err := os.ReadFile(create(t, options, "5000192"))
		if err != nil {
			t.Fatal(err)
		}
		if size, ok := qcow2.PeekSize(b[:104]); !ok || size != 5000192 {
			t.Errorf("%s: size %d, %v", options, size, ok)
		}
		if size, ok := qcow2.PeekSize(patched(b, put32(24, 1<<31), put32(28, 77))); !ok || size <= diskimage.MaxDiskBytes || size%512 != 0 {
			t.Errorf("%s: giant size %d, %v", options, size, ok)
		}
		for _, bad := range [][]byte{nil, b[:71], patched(b, put32(0, 7)), patched(b, put32(4, 1)), patched(b, put32(4, 4))} {
			if size, ok := qcow2.PeekSize(bad); ok {
				t.Errorf("%s: size %d of a head that is none", options, size)
			}
		}
	}
}

var errBroken = errors.New("broken")

// broken fails from its nth read on.
type broken struct {
	io.ReaderAt
	left atomic.Int64
}

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	if b.left.Add(-1) < 0 {
		return 0, errBroken
	}
	return b.ReaderAt.ReadAt(p, off)
}

// TestFailingReader checks that an error of the source is not taken for a fault of
// the image, wherever it happens, and that the next try may succeed.
func TestFailingReader(t *testing.T) {
	t.Parallel()
	images := bases(t)
	b := images["v3"]
	r := &broken{ReaderAt: bytes.NewReader(b)}
	f := diskimage.NewFile(r, int64(len(b)))
	if _, err := qcow2.Open(f); !errors.Is(err, errBroken) {
		t.Fatalf("open: %v", err)
	}
	r.left.Store(1)
	d := open(t, f)
	for reads := int64(0); ; reads++ {
		r.left.Store(reads)
		got, err := imagetest.Read(d, f)
		if err == nil {
			if reads < 3 || !bytes.Equal(got, images["guest"]) {
				t.Errorf("after %d reads: disk differs from the guest", reads)
			}
			break
		}
		if !errors.Is(err, errBroken) || reads > 1000 {
			t.Fatalf("after %d reads: %v", reads, err)
		}
	}
}
