package vdi_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/vdi"
	"vmimport/internal/fault"
)

// patch is an image that is changed at some places.
type patch []byte

func (p patch) u8(at int, v byte) patch    { p[at] = v; return p }
func (p patch) u32(at int, v uint32) patch { le.PutUint32(p[at:], v); return p }
func (p patch) u64(at int, v uint64) patch { le.PutUint64(p[at:], v); return p }

func TestHostileImages(t *testing.T) {
	t.Parallel()
	// An image of qemu-img: map at 512, blocks at 1024 and 1024 + 1 MiB.
	image := load(t, create(t, "3M", "write -P 1 0 64k", "write -P 2 2M 1M"))
	const table = 512
	if le.Uint32(image[mapAt:]) != table || le.Uint32(image[table+8:]) != 1 || len(image) != 1024+2<<20 {
		t.Fatal("qemu-img laid out the image in another way")
	}
	for _, c := range []struct {
		name  string
		patch func(p patch) patch
		want  *fault.Error
	}{
		{"no signature", func(p patch) patch { return p.u8(67, 0) }, diskimage.ErrCorrupt},
		{"old version", func(p patch) patch { return p.u32(version, 2) }, diskimage.ErrUnsupported},
		{"new version", func(p patch) patch { return p.u32(version, 0x20001) }, diskimage.ErrUnsupported},
		{"type zero", func(p patch) patch { return p.u32(kind, 0) }, diskimage.ErrCorrupt},
		{"undo image", func(p patch) patch { return p.u32(kind, 3) }, diskimage.ErrUnsupported},
		{"differencing image", func(p patch) patch { return p.u32(kind, 4) }, diskimage.ErrDifferencing},
		{"unknown type", func(p patch) patch { return p.u32(kind, 5) }, diskimage.ErrCorrupt},
		{"start of link", func(p patch) patch { return p.u8(link, 1) }, diskimage.ErrDifferencing},
		{"end of parent", func(p patch) patch { return p.u8(parent+15, 1) }, diskimage.ErrDifferencing},

		{"size zero", func(p patch) patch { return p.u64(diskSize, 0) }, diskimage.ErrEmptyDisk},
		{"size over 64 TiB", func(p patch) patch { return p.u64(diskSize, 64<<40+1) }, diskimage.ErrTooLarge},
		{"most bytes", func(p patch) patch { return p.u64(diskSize, math.MaxUint64) }, diskimage.ErrTooLarge},
		{"larger than its blocks", func(p patch) patch { return p.u64(diskSize, 3<<20+1) }, diskimage.ErrCorrupt},
		{"sectors of 4 KiB", func(p patch) patch { return p.u32(sectorBytes, 4096) }, diskimage.ErrUnsupported},
		{"extra bytes", func(p patch) patch { return p.u32(extraBytes, 512) }, diskimage.ErrUnsupported},
		{"blocks of no bytes", func(p patch) patch { return p.u32(blockBytes, 0) }, diskimage.ErrCorrupt},
		{"blocks of 64 KiB", func(p patch) patch { return p.u32(blockBytes, 64<<10) }, diskimage.ErrCorrupt},
		{"blocks of 3 MiB", func(p patch) patch { return p.u32(blockBytes, 3<<20) }, diskimage.ErrCorrupt},
		{"blocks of 2 GiB", func(p patch) patch { return p.u32(blockBytes, 1<<31) }, diskimage.ErrCorrupt},
		{"no blocks", func(p patch) patch { return p.u32(blocks, 0) }, diskimage.ErrCorrupt},
		{"too few blocks", func(p patch) patch { return p.u32(blocks, 2) }, diskimage.ErrCorrupt},
		{"most blocks", func(p patch) patch { return p.u32(blocks, math.MaxUint32) }, diskimage.ErrCorrupt},
		{"more blocks than fit before data", func(p patch) patch { return p.u32(blocks, 129) }, diskimage.ErrCorrupt},
		{"more allocated than there are", func(p patch) patch { return p.u32(allocated, 4) }, diskimage.ErrCorrupt},

		{"short header", func(p patch) patch { return p.u32(length, 383) }, diskimage.ErrCorrupt},
		{"long header", func(p patch) patch { return p.u32(length, math.MaxUint32) }, diskimage.ErrCorrupt},
		{"map in the header", func(p patch) patch { return p.u32(mapAt, 0) }, diskimage.ErrCorrupt},
		{"map behind data", func(p patch) patch { return p.u32(mapAt, 2048) }, diskimage.ErrCorrupt},
		{"map at no sector", func(p patch) patch { return p.u32(mapAt, 516) }, diskimage.ErrUnsupported},
		{"data in the map", func(p patch) patch { return p.u32(dataAt, 512) }, diskimage.ErrCorrupt},
		{"data at no sector", func(p patch) patch { return p.u32(dataAt, 1028) }, diskimage.ErrUnsupported},
		{"data outside", func(p patch) patch { return p.u32(dataAt, 1<<30) }, diskimage.ErrTruncated},
		{"map and data outside", func(p patch) patch { return p.u32(mapAt, 1<<30).u32(dataAt, 1<<31) }, diskimage.ErrTruncated},

		{"block outside", func(p patch) patch { return p.u32(table, 2) }, diskimage.ErrTruncated},
		{"block far outside", func(p patch) patch { return p.u32(table+4, 0xfffffffd) }, diskimage.ErrTruncated},
		{"block half in the file", func(p patch) patch { return p[:len(p)-512] }, diskimage.ErrTruncated},
		{"data alone missing", func(p patch) patch { return p[:1024] }, diskimage.ErrTruncated},
	} {
		err := openAndWalk(imagetest.Of(c.patch(bytes.Clone(image))))
		if !errors.Is(err, c.want) || fault.Of(err).Evidence == "" && c.want != diskimage.ErrEmptyDisk {
			t.Errorf("%s: %v, want %s", c.name, err, c.want.Code)
		}
	}
}

func TestTruncatedImages(t *testing.T) {
	t.Parallel()
	image := small()
	for n := range image {
		if err := openAndWalk(imagetest.Of(image[:n])); !errors.Is(err, diskimage.ErrTruncated) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

// FuzzOpenVDI mutates images, and of each sets the 32 bits at one of the header's
// fields or the map's first entries to a value.
func FuzzOpenVDI(f *testing.F) {
	fields := []int{0, version, length, kind, mapAt, dataAt, sectorBytes, diskSize, diskSize + 4, blockBytes, extraBytes, blocks, allocated, link, parent, 512, 516}
	for i := range fields {
		f.Add(small(), uint(i), uint32(1))
	}
	f.Add(load(f, create(f, "3M")), uint(0), uint32(0))
	f.Add(load(f, create(f, "100G"))[:4096], uint(0), uint32(0))
	f.Add(handMade(256<<10, 128<<10, 512, 0xfffffffe, 0), uint(0), uint32(0))
	f.Fuzz(func(t *testing.T, image []byte, field uint, value uint32) {
		image = bytes.Clone(image)
		if at := fields[field%uint(len(fields))]; len(image) >= at+4 {
			le.PutUint32(image[at:], value)
		}
		file := imagetest.Of(image)
		var first error
		imagetest.Bounded(t, uint64(64<<10+2*len(image)), func() {
			first = openAndWalk(file)
		})
		if second := openAndWalk(file); (first == nil) != (second == nil) || first != nil && first.Error() != second.Error() {
			t.Fatalf("first %v, then %v", first, second)
		}
		if first != nil {
			if fault.KindOf(first) != fault.Invalid {
				t.Fatalf("not a fault of the image: %v", first)
			}
			return
		}
		d, err := vdi.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if size, ok := vdi.PeekSize(image); !ok || size != d.Size {
			t.Fatalf("peeked %d bytes, opened %d", size, d.Size)
		}
		if d.Size <= 1<<20 {
			if _, err := imagetest.Read(d, file); err != nil {
				t.Fatal(err)
			}
		}
	})
}
