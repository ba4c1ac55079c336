package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/fault"
)

// patch changes an image in place.
type patch func(b []byte)

func put8(off int, v byte) patch { return func(b []byte) { b[off] = v } }
func put32(off int, v uint32) patch {
	return func(b []byte) { binary.BigEndian.PutUint32(b[off:], v) }
}
func put64(off int, v uint64) patch {
	return func(b []byte) { binary.BigEndian.PutUint64(b[off:], v) }
}

const offsets = 0x00fffffffffffe00

func l1At(b []byte) int { return int(binary.BigEndian.Uint64(b[40:])) }
func l2At(b []byte) int { return int(binary.BigEndian.Uint64(b[l1At(b):]) & offsets) }

// l1 changes an entry of the L1 table.
func l1(i int, change func(uint64) uint64) patch {
	return func(b []byte) { change64(b[l1At(b)+8*i:], change) }
}

// l2 changes an 8-byte word of the first L2 table.
func l2(i int, change func(uint64) uint64) patch {
	return func(b []byte) { change64(b[l2At(b)+8*i:], change) }
}

func change64(b []byte, change func(uint64) uint64) {
	binary.BigEndian.PutUint64(b, change(binary.BigEndian.Uint64(b)))
}

func set(v uint64) func(uint64) uint64  { return func(uint64) uint64 { return v } }
func or(v uint64) func(uint64) uint64   { return func(e uint64) uint64 { return e | v } }
func plus(v uint64) func(uint64) uint64 { return func(e uint64) uint64 { return e + v } }

func patched(b []byte, patches ...patch) []byte {
	b = bytes.Clone(b)
	for _, p := range patches {
		p(b)
	}
	return b
}

// bases are small images to be spoilt, of the same disk: 160 KiB of text, zeros, and
// something in its last sector.
func bases(t testing.TB) map[string][]byte {
	t.Helper()
	guest := bytes.Repeat([]byte("All work and no play makes a dull disk. "), 4096)
	guest = append(guest, make([]byte, 50<<10)...)
	guest = append(guest, bytes.Repeat([]byte{7}, 512)...)
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := os.WriteFile(path, guest, 0o600); err != nil {
		t.Fatal(err)
	}
	images := map[string][]byte{"guest": guest}
	for name, args := range map[string][]string{
		"v2":       {"compat=0.10,cluster_size=1k"},
		"v3":       {"cluster_size=1k"},
		"zlib":     {"cluster_size=4k", "-c"},
		"zstd":     {"cluster_size=4k,compression_type=zstd", "-c"},
		"extended": {"cluster_size=16k,extended_l2=on"},
		"both":     {"cluster_size=16k,extended_l2=on", "-c"},
	} {
		b, err := os.ReadFile(imagetest.Convert(t, path, "qcow2", args[0], args[1:]...))
		if err != nil {
			t.Fatal(err)
		}
		images[name] = b
	}
	return images
}

// read opens an image and reads all of it.
func read(b []byte) ([]byte, error) {
	f := imagetest.Of(b)
	d, err := qcow2.Open(f)
	if err != nil {
		return nil, err
	}
	return imagetest.Read(d, f)
}

func TestHostileImages(t *testing.T) {
	t.Parallel()
	images := bases(t)
	for _, c := range []struct {
		name  string
		base  string
		patch patch
		want  *fault.Error
	}{
		{"signature", "v3", put8(0, 'q'), diskimage.ErrCorrupt},
		{"version 1", "v3", put32(4, 1), diskimage.ErrUnsupported},
		{"version 4", "v3", put32(4, 4), diskimage.ErrUnsupported},
		{"backing file", "v3", put64(8, 512), diskimage.ErrBackingFile},
		{"backing file of version 2", "v2", put64(8, 1<<63), diskimage.ErrBackingFile},
		{"AES", "v2", put32(32, 1), diskimage.ErrEncrypted},
		{"LUKS", "v3", put32(32, 2), diskimage.ErrEncrypted},
		{"clusters of 256 bytes", "v3", put32(20, 8), diskimage.ErrCorrupt},
		{"clusters of a byte", "v3", put32(20, 0), diskimage.ErrCorrupt},
		{"clusters of 4 MiB", "v3", put32(20, 22), diskimage.ErrUnsupported},
		{"clusters of 2^64", "v3", put32(20, 64), diskimage.ErrUnsupported},
		{"clusters of 2^2^32", "v3", put32(20, 1<<32-1), diskimage.ErrUnsupported},
		{"size 0", "v3", put64(24, 0), diskimage.ErrEmptyDisk},
		{"size over the limit", "v3", put64(24, 64<<40+1), diskimage.ErrTooLarge},
		{"size 2^63", "v3", put64(24, 1<<63), diskimage.ErrTooLarge},
		{"size 2^64 - 1", "v3", put64(24, 1<<64-1), diskimage.ErrTooLarge},
		{"size over the L1 table", "v3", put64(24, 1<<30), diskimage.ErrCorrupt},
		{"no L1 entries", "v3", put32(36, 0), diskimage.ErrCorrupt},
		{"L1 at 0", "v3", put64(40, 0), diskimage.ErrCorrupt},
		{"L1 between clusters", "v3", put64(40, 512), diskimage.ErrCorrupt},
		{"L1 at a reserved bit", "v3", put64(40, 1<<56), diskimage.ErrCorrupt},
		{"L1 at 2^63", "v3", put64(40, 1<<63), diskimage.ErrCorrupt},
		{"L1 behind the file", "v3", put64(40, 1<<40), diskimage.ErrTruncated},
		{"L1 of the limit", "v3", func(b []byte) {
			put64(24, 128<<30)(b)
			put32(36, 1<<20)(b)
		}, diskimage.ErrTruncated},
		{"L1 over the limit", "v3", func(b []byte) {
			put64(24, 64<<40)(b)
			put32(36, 1<<32-1)(b)
		}, diskimage.ErrUnsupported},

		{"corrupt", "v3", put64(72, 1<<1), diskimage.ErrMarkedCorrupt},
		{"external data file", "v3", put64(72, 1<<2), diskimage.ErrExternalData},
		{"external data file and more", "v3", put64(72, 1<<63|1<<2), diskimage.ErrExternalData},
		{"compression bit alone", "v3", put64(72, 1<<3), diskimage.ErrCorrupt},
		{"compression type alone", "v3", put8(104, 1), diskimage.ErrCorrupt},
		{"compression type without its field", "zstd", put32(100, 104), diskimage.ErrCorrupt},
		{"compression type 2", "zstd", put8(104, 2), diskimage.ErrUnknownFeature},
		{"zlib as zstd", "zlib", func(b []byte) {
			put64(72, 1<<3)(b)
			put8(104, 1)(b)
		}, diskimage.ErrCorrupt},
		{"extended L2 of small clusters", "v3", put64(72, 1<<4), diskimage.ErrCorrupt},
		{"feature bit 5", "v3", put64(72, 1<<5), diskimage.ErrUnknownFeature},
		{"feature bit 63", "v3", put64(72, 1<<63), diskimage.ErrUnknownFeature},
		{"reference count order", "v3", put32(96, 7), diskimage.ErrCorrupt},
		{"header of 0 bytes", "v3", put32(100, 0), diskimage.ErrCorrupt},
		{"header of 72 bytes", "v3", put32(100, 72), diskimage.ErrCorrupt},
		{"header of 105 bytes", "v3", put32(100, 105), diskimage.ErrCorrupt},
		{"header over the cluster", "v3", put32(100, 1032), diskimage.ErrCorrupt},
		{"header of 2^32 bytes", "v3", put32(100, 1<<32-8), diskimage.ErrCorrupt},
		{"data file name", "v3", put32(112, 0x44415441), diskimage.ErrExternalData},
		{"encryption header", "v3", put32(112, 0x0537be77), diskimage.ErrEncrypted},
		{"encryption header of version 2", "v2", put32(72, 0x0537be77), diskimage.ErrEncrypted},
		{"encryption header behind another extension", "v3", func(b []byte) {
			put64(112, 99<<32|5)(b)
			put64(128, 0x0537be77<<32)(b)
		}, diskimage.ErrEncrypted},
		{"extension over the cluster", "v3", put64(112, 99<<32|1000), diskimage.ErrCorrupt},
		{"extension of 2^32 bytes", "v3", put64(112, 99<<32|0xffffffff), diskimage.ErrCorrupt},

		{"L1 bit 0", "v3", l1(0, or(1)), diskimage.ErrCorrupt},
		{"L1 bit 56", "v3", l1(0, or(1<<56)), diskimage.ErrCorrupt},
		{"L1 bit 62", "v3", l1(0, or(1<<62)), diskimage.ErrCorrupt},
		{"L2 between clusters", "v3", l1(0, plus(512)), diskimage.ErrCorrupt},
		{"L2 behind the file", "v3", l1(0, set(1<<40)), diskimage.ErrTruncated},
		{"L2 used twice", "v3", func(b []byte) { l1(1, set(binary.BigEndian.Uint64(b[l1At(b):])))(b) }, diskimage.ErrCorrupt},
		{"L2 used twice, with and without its flag", "v3", func(b []byte) { l1(1, set(uint64(l2At(b))))(b) }, diskimage.ErrCorrupt},
		{"L2 in L1", "v3", func(b []byte) { l1(0, set(uint64(l1At(b))))(b) }, diskimage.ErrCorrupt},

		{"L2 bit 1", "v3", l2(3, or(1<<1)), diskimage.ErrCorrupt},
		{"L2 bit 8", "v3", l2(3, or(1<<8)), diskimage.ErrCorrupt},
		{"L2 bit 56", "v3", l2(3, or(1<<56)), diskimage.ErrCorrupt},
		{"L2 bit 61", "v3", l2(3, or(1<<61)), diskimage.ErrCorrupt},
		{"data between clusters", "v3", l2(3, plus(512)), diskimage.ErrCorrupt},
		{"data behind the file", "v3", l2(3, set(1<<50)), diskimage.ErrTruncated},
		{"data in no file", "v3", l2(3, set(1<<63)), diskimage.ErrCorrupt},
		{"zeros in version 2", "v2", l2(3, or(1)), diskimage.ErrCorrupt},
		{"zeros in an extended entry", "extended", l2(0, or(1)), diskimage.ErrCorrupt},
		{"zeros between clusters", "v3", l2(3, set(512|1)), diskimage.ErrCorrupt},
		{"subcluster of data and zeros", "extended", l2(1, or(1<<35)), diskimage.ErrCorrupt},
		{"subcluster without a cluster", "extended", l2(0, set(0)), diskimage.ErrCorrupt},
		{"subcluster of a compressed cluster", "both", l2(1, or(1)), diskimage.ErrCorrupt},
		{"zero subcluster of a compressed cluster", "both", l2(1, or(1<<40)), diskimage.ErrCorrupt},

		{"compressed behind the file", "zlib", l2(3, plus(1<<40)), diskimage.ErrTruncated},
		{"compressed at a reserved bit", "zlib", l2(3, or(1<<56)), diskimage.ErrCorrupt},
		{"compressed is not", "v3", l2(3, or(1<<62)), diskimage.ErrCorrupt},
		{"compressed cut at a sector", "zlib", func(b []byte) { l2(3, set(1<<62|uint64(len(b)-700)))(b) }, diskimage.ErrCorrupt},
		{"compressed at the wrong byte", "zlib", l2(3, plus(1)), diskimage.ErrCorrupt},
		{"zstd at the wrong byte", "zstd", l2(3, plus(1)), diskimage.ErrCorrupt},
		{"zstd of zeros", "zstd", func(b []byte) { l2(3, set(1<<62|16<<10))(b) }, diskimage.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := patched(images[c.base], c.patch)
			_, err := read(b)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want.Code)
			}
			if _, again := read(b); again.Error() != err.Error() {
				t.Fatalf("got %v, and then %v", err, again)
			}
		})
	}
}

// TestHarmlessImages changes what must not matter.
func TestHarmlessImages(t *testing.T) {
	t.Parallel()
	images := bases(t)
	for _, c := range []struct {
		name  string
		base  string
		patch patch
	}{
		{"nothing", "v3", put8(0, 'Q')},
		{"dirty", "v3", put64(72, 1)},
		{"compatible and autoclear features", "v3", func(b []byte) {
			put64(80, 1<<64-1)(b)
			put64(88, 1<<64-1)(b)
		}},
		{"length of no backing file", "v3", put32(16, 77)},
		{"unknown extension", "v3", put64(112, 0xfeed<<32|3)},
		{"unknown extensions up to the end of the cluster", "v3", func(b []byte) {
			for at := 112; at < 1<<10; at += 8 {
				put64(at, 0xfeed<<32)(b)
			}
		}},
		{"header of 104 bytes", "v3", func(b []byte) {
			put32(100, 104)(b)
			put64(104, 0)(b)
		}},
		{"no reference counts", "v3", func(b []byte) {
			put64(48, 0)(b)
			put32(56, 0)(b)
		}},
		{"table without its flag", "v3", l1(0, func(e uint64) uint64 { return e & offsets })},
		{"data without its flag", "v3", l2(3, func(e uint64) uint64 { return e & offsets })},
		{"extended data without its flag", "extended", l2(0, func(e uint64) uint64 { return e & offsets })},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := read(patched(images[c.base], c.patch))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, images["guest"]) {
				t.Fatal("disk differs from the guest")
			}
		})
	}
}

// TestHandMadeEntries checks entries that qemu-img does not write on its own.
func TestHandMadeEntries(t *testing.T) {
	t.Parallel()
	images := bases(t)
	zero := func(from, n int) []byte {
		guest := bytes.Clone(images["guest"])
		clear(guest[from:][:n])
		return guest
	}
	for _, c := range []struct {
		name  string
		base  string
		patch patch
		want  []byte
	}{
		{"zeros", "v3", l2(3, set(1)), zero(3<<10, 1<<10)},
		{"zeros with space", "v3", l2(3, or(1)), zero(3<<10, 1<<10)},
		{"zeros with space behind the file", "v3", l2(3, set(1<<50|1)), zero(3<<10, 1<<10)},
		{"unallocated", "v2", l2(3, set(0)), zero(3<<10, 1<<10)},
		{"no table", "v3", l1(0, set(0)), zero(0, 128<<10)},
		{"unallocated subclusters", "extended", l2(1, set(0xfffffff0)), zero(0, 2<<10)},
		{"zero subclusters", "extended", l2(1, set(0xf0<<32|0xffffff0f)), zero(2<<10, 2<<10)},
		{"every other subcluster", "extended", l2(1, set(0xaaaaaaaa)), func() []byte {
			guest := bytes.Clone(images["guest"])
			for i := 0; i < 32; i += 2 {
				clear(guest[i*512:][:512])
			}
			return guest
		}()},
		{"only the last subcluster", "extended", l2(1, set(1<<31)), zero(0, 31*512)},
		{"zero subclusters without a cluster", "extended", func(b []byte) {
			l2(0, set(0))(b)
			l2(1, set(0xffffffff<<32))(b)
		}, zero(0, 16<<10)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := patched(images[c.base], c.patch)
			got, err := read(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, c.want) {
				t.Fatal("disk differs from what was made")
			}
			path := filepath.Join(t.TempDir(), "image.qcow2")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if raw, err := os.ReadFile(toRaw(t, path)); err != nil || !bytes.Equal(got, raw) {
				t.Fatalf("qemu-img reads another disk (%v)", err)
			}
		})
	}
}

// TestOddSizes checks disks that end within a sector, which other tools than QEMU
// may make, and files that end with the disk.
func TestOddSizes(t *testing.T) {
	t.Parallel()
	images := bases(t)
	size := len(images["guest"])
	for _, base := range []string{"v2", "v3", "extended"} {
		for _, less := range []int{1, 300, 511, 512, 513, 1024} {
			b := patched(images[base], put64(24, uint64(size-less)))
			want := append(bytes.Clone(images["guest"][:size-less]), make([]byte, less%512)...)
			got, err := read(b)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: disk of %d bytes: %d bytes that are not the guest's (%v)", base, size-less, len(got), err)
			}
		}
	}

	// The last byte of the disk may be the last one of the file.
	b := images["v3"]
	end := bytes.LastIndexByte(b, 7) + 1
	for cut, want := range map[int]error{end: nil, end - 1: diskimage.ErrTruncated} {
		got, err := read(b[:cut])
		if !errors.Is(err, want) || err == nil && !bytes.Equal(got, images["guest"]) {
			t.Errorf("file of %d bytes: %v, want %v", cut, err, want)
		}
	}
}

// TestTruncation cuts files everywhere. A part of an image never reads as another
// disk.
func TestTruncation(t *testing.T) {
	t.Parallel()
	images := bases(t)
	for name, b := range images {
		if name == "guest" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := len(b) - 1; n >= 0; n -= 507 {
				got, err := read(b[:n])
				switch {
				case err == nil && bytes.Equal(got, images["guest"]): // what is missing is not the disk's
				case errors.Is(err, diskimage.ErrTruncated):
				case errors.Is(err, diskimage.ErrCorrupt) && (name == "zlib" || name == "zstd" || name == "both"): // within a stream
				default:
					t.Fatalf("%d of %d bytes: %v", n, len(b), err)
				}
			}
		})
	}
}

// TestBounds checks that small files get no large amount of memory. It has the
// process for itself.
func TestBounds(t *testing.T) {
	images := bases(t)
	for name, p := range map[string]patch{
		"nothing": func([]byte) {},
		"L1 of 16 MiB": func(b []byte) {
			put64(24, 256<<30)(b)
			put32(36, 2<<20)(b)
		},
		"L1 over the limit": func(b []byte) {
			put64(24, 64<<40)(b)
			put32(36, 1<<32-1)(b)
		},
		"large extension": put64(112, 99<<32|0xffffffff),
		"large header":    put32(100, 1<<32-8),
	} {
		b := patched(images["v3"], p)
		imagetest.Bounded(t, 2<<20, func() {
			if d, err := qcow2.Open(imagetest.Of(b)); err == nil {
				for _, err := range d.Map.Extents(0) {
					if err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		})
	}
}

// TestLongExtensions checks that no more than the first 64 KiB of a large first cluster
// are looked through, and that nothing is taken for good that was not.
func TestLongExtensions(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(create(t, "cluster_size=2M", "1M"))
	if err != nil {
		t.Fatal(err)
	}
	for length, want := range map[uint64]error{
		60 << 10:  nil,
		100 << 10: diskimage.ErrUnsupported,
		3 << 20:   diskimage.ErrUnsupported,
	} {
		if _, err := read(patched(b, put64(112, 99<<32|length), put64(120+60<<10, 0))); !errors.Is(err, want) {
			t.Errorf("extension of %d bytes: %v, want %v", length, err, want)
		}
	}
}

// TestSharedClusters checks that clusters may share bytes of the file: whoever
// reads them counts.
func TestSharedClusters(t *testing.T) {
	t.Parallel()
	b := bases(t)["v3"]
	all := patched(b)
	for i := range 128 {
		l2(i, set(binary.BigEndian.Uint64(b[l2At(b):])))(all)
	}
	got, err := read(all)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 128 {
		if !bytes.Equal(got[i<<10:][:1<<10], got[:1<<10]) {
			t.Fatalf("cluster %d differs", i)
		}
	}
}

func ExampleOpen() {
	_, err := qcow2.Open(imagetest.Of(make([]byte, 4096)))
	fmt.Println(err)
	// Output: image_corrupt: The image is damaged: it breaks the rules of its format. (no signature of QCOW2)
}
