package vhd_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/vhd"
	"vmimport/internal/fault"
)

// patch is an image that is changed at some places, for both copies of the footer
// if it says so. Checksums are right after it.
type patch []byte

func (p patch) u8(at int, v byte) patch    { p[at] = v; return p }
func (p patch) u32(at int, v uint32) patch { be.PutUint32(p[at:], v); return p }
func (p patch) u64(at int, v uint64) patch { be.PutUint64(p[at:], v); return p }

func (p patch) footers32(at int, v uint32) patch { return p.u32(at, v).u32(len(p)-512+at, v) }
func (p patch) footers64(at int, v uint64) patch { return p.u64(at, v).u64(len(p)-512+at, v) }

func TestHostileDynamicImages(t *testing.T) {
	t.Parallel()
	// An image of qemu-img: header at 512, table of 3 entries at 1536, blocks at 2048
	// and 2048 + 512 + 2 MiB, footer behind them.
	image := load(t, create(t, "6M", "write -P 1 0 64k", "write -P 2 4M 1M"))
	const header, table, second = 512, 1536, 2048 + 512 + 2<<20
	end := len(image) - 512
	if be.Uint32(image[table:]) != 2048/512 || be.Uint32(image[table+8:]) != second/512 {
		t.Fatal("qemu-img laid out the image in another way")
	}
	for _, c := range []struct {
		name  string
		patch func(p patch) patch
		want  *fault.Error
	}{
		{"differencing", func(p patch) patch { return p.footers32(60, 4) }, diskimage.ErrDifferencing},
		{"no type", func(p patch) patch { return p.footers32(60, 0) }, diskimage.ErrUnsupported},
		{"reserved type", func(p patch) patch { return p.footers32(60, 5) }, diskimage.ErrUnsupported},
		{"unknown type", func(p patch) patch { return p.footers32(60, 7) }, diskimage.ErrCorrupt},
		{"fixed type", func(p patch) patch { return p.footers32(60, 2) }, diskimage.ErrTruncated},
		{"new version", func(p patch) patch { return p.footers32(12, 0x20000) }, diskimage.ErrUnsupported},
		{"copy of another type", func(p patch) patch { return p.u32(60, 2) }, diskimage.ErrCorrupt},
		{"copy of another size", func(p patch) patch { return p.u64(48, 4<<20) }, diskimage.ErrCorrupt},
		{"copy of another header", func(p patch) patch { return p.u64(16, 1024) }, diskimage.ErrCorrupt},
		{"copy of another disk", func(p patch) patch { return p.u8(83, ^p[83]) }, diskimage.ErrCorrupt},
		{"no copy", func(p patch) patch { return p.u8(0, 0) }, diskimage.ErrCorrupt},
		{"no sectors", func(p patch) patch { return p.footers64(48, 6<<20-1) }, diskimage.ErrCorrupt},
		{"size zero", func(p patch) patch { return p.footers64(48, 0) }, diskimage.ErrEmptyDisk},
		{"size of 64 TiB and more", func(p patch) patch { return p.footers64(48, 64<<40+512) }, diskimage.ErrTooLarge},
		{"negative size", func(p patch) patch { return p.footers64(48, math.MaxUint64-511) }, diskimage.ErrCorrupt},
		{"larger than its table", func(p patch) patch { return p.footers64(48, 100<<20) }, diskimage.ErrCorrupt},

		{"header outside", func(p patch) patch { return p.footers64(16, uint64(len(p))) }, diskimage.ErrTruncated},
		{"header at the end", func(p patch) patch { return p.footers64(16, math.MaxUint64-1023) }, diskimage.ErrTruncated},
		{"no header", func(p patch) patch { return p.footers64(16, math.MaxUint64) }, diskimage.ErrTruncated},
		{"header in the first footer", func(p patch) patch { return p.footers64(16, 0) }, diskimage.ErrCorrupt},
		{"header in the last footer", func(p patch) patch { return p.footers64(16, uint64(end-512)) }, diskimage.ErrCorrupt},
		{"header elsewhere", func(p patch) patch { return p.footers64(16, 4096) }, diskimage.ErrCorrupt},
		{"header without cookie", func(p patch) patch { return p.u8(header, 0) }, diskimage.ErrCorrupt},
		{"new header version", func(p patch) patch { return p.u32(header+24, 0x20000) }, diskimage.ErrUnsupported},
		{"parent", func(p patch) patch { return p.u8(header+55, 1) }, diskimage.ErrDifferencing},
		{"first locator", func(p patch) patch { return p.u32(header+576, 0x57326b75) }, diskimage.ErrDifferencing},
		{"last locator", func(p patch) patch { return p.u32(header+576+7*24, 0x57326b75) }, diskimage.ErrDifferencing},

		{"block of no bytes", func(p patch) patch { return p.u32(header+32, 0) }, diskimage.ErrCorrupt},
		{"block of a sector", func(p patch) patch { return p.u32(header+32, 512) }, diskimage.ErrCorrupt},
		{"block of 3 MiB", func(p patch) patch { return p.u32(header+32, 3<<20) }, diskimage.ErrCorrupt},
		{"block of 2 GiB", func(p patch) patch { return p.u32(header+32, 1<<31) }, diskimage.ErrCorrupt},
		{"table with too few entries", func(p patch) patch { return p.u32(header+28, 2) }, diskimage.ErrCorrupt},
		{"table with too many entries", func(p patch) patch { return p.u32(header+28, 1<<22+1) }, diskimage.ErrCorrupt},
		{"table with most entries", func(p patch) patch { return p.u32(header+28, math.MaxUint32) }, diskimage.ErrCorrupt},
		{"table beyond the file", func(p patch) patch { return p.u32(header+28, 1<<22) }, diskimage.ErrTruncated},
		{"table at the end", func(p patch) patch { return p.u64(header+16, math.MaxUint64-3) }, diskimage.ErrTruncated},
		{"table in the first footer", func(p patch) patch { return p.u64(header+16, 0) }, diskimage.ErrCorrupt},
		{"table in the header", func(p patch) patch { return p.u64(header+16, 1532) }, diskimage.ErrCorrupt},
		{"table in the last footer", func(p patch) patch { return p.u64(header+16, uint64(end-11)) }, diskimage.ErrCorrupt},

		{"block in the first footer", func(p patch) patch { return p.u32(table, 0) }, diskimage.ErrCorrupt},
		{"block in the header", func(p patch) patch { return p.u32(table, 2) }, diskimage.ErrCorrupt},
		{"block in the table", func(p patch) patch { return p.u32(table, 3) }, diskimage.ErrCorrupt},
		{"block in the last footer", func(p patch) patch { return p.u32(table+8, second/512+1) }, diskimage.ErrCorrupt},
		{"block half in the file", func(p patch) patch { return p.u32(table+8, second/512+2) }, diskimage.ErrTruncated},
		{"block outside", func(p patch) patch { return p.u32(table, 0xfffffffe) }, diskimage.ErrTruncated},
	} {
		err := openAndWalk(imagetest.Of(resum(c.patch(bytes.Clone(image)))))
		if !errors.Is(err, c.want) || fault.Of(err).Evidence == "" && c.want != diskimage.ErrEmptyDisk {
			t.Errorf("%s: %v, want %s", c.name, err, c.want.Code)
		}
	}
}

func TestWrongChecksums(t *testing.T) {
	t.Parallel()
	image := handMade()
	for _, at := range []int{8, 64, 511, 512 + 8, 512 + 36, 512 + 1023, len(image) - 500, len(image) - 1} {
		err := openAndWalk(imagetest.Of(imagetest.Patched(image, at, image[at]+1)))
		if !errors.Is(err, diskimage.ErrCorrupt) {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

func TestHostileFixedImages(t *testing.T) {
	t.Parallel()
	const size = 8192
	image := fixedImage(size)
	inside := bytes.Clone(image)
	copy(inside, handMade()[:512])
	short := bytes.Clone(image[:len(image)-1]) // as before Virtual PC 2004
	for _, c := range []struct {
		name  string
		image []byte
		want  *fault.Error
	}{
		{"cut in front", image[512:], diskimage.ErrTruncated},
		{"longer in front", append(make([]byte, 512), image...), diskimage.ErrTrailing},
		{"longer behind", append(bytes.Clone(image), make([]byte, 512)...), diskimage.ErrTruncated},
		{"no footer", image[:size], diskimage.ErrTruncated},
		{"footer alone", image[size:], diskimage.ErrTruncated},
		{"half a footer", image[size+256:], diskimage.ErrTruncated},
		{"nothing", nil, diskimage.ErrTruncated},
		{"short footer", short, diskimage.ErrUnsupported},
		{"footers at both ends", inside, diskimage.ErrCorrupt},
		{"wrong checksum", imagetest.Patched(image, size+100, 1), diskimage.ErrCorrupt},
		{"no sectors", resum(patch(bytes.Clone(image[1:])).u64(size-1+48, size-1)), diskimage.ErrCorrupt},
		{"size zero", resum(patch(bytes.Clone(image)).u64(size+48, 0)), diskimage.ErrEmptyDisk},
		{"giant", resum(patch(bytes.Clone(image)).u64(size+48, 1<<50)), diskimage.ErrTooLarge},
		{"differencing", resum(patch(bytes.Clone(image)).u32(size+60, 4)), diskimage.ErrDifferencing},
	} {
		if err := openAndWalk(imagetest.Of(c.image)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want.Code)
		}
	}
}

func TestTruncatedImages(t *testing.T) {
	t.Parallel()
	image := handMade()
	// The footer at the end is lost, and the one at the start must not stand in for it.
	for n := range len(image) - 1 {
		if err := openAndWalk(imagetest.Of(image[:n])); !errors.Is(err, diskimage.ErrTruncated) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	// A footer that lacks its last byte is one of Virtual PC before 2004.
	if err := openAndWalk(imagetest.Of(image[:len(image)-1])); !errors.Is(err, diskimage.ErrUnsupported) {
		t.Errorf("without the last byte: %v", err)
	}
}

// fields are where a mutation means something, in images of the layout of handMade.
var fields = []func(p patch, v uint64) patch{
	func(p patch, _ uint64) patch { return p },
	func(p patch, v uint64) patch { return p.footers64(16, v) },
	func(p patch, v uint64) patch { return p.footers64(48, v) },
	func(p patch, v uint64) patch { return p.footers64(48, v<<9) },
	func(p patch, v uint64) patch { return p.footers32(60, uint32(v)) },
	func(p patch, v uint64) patch { return p.u64(512+16, v) },
	func(p patch, v uint64) patch { return p.u32(512+28, uint32(v)) },
	func(p patch, v uint64) patch { return p.u32(512+32, 1<<(v%32)) },
	func(p patch, v uint64) patch { return p.u32(10752, uint32(v)) },
	func(p patch, v uint64) patch { return p.u32(10752+4, uint32(v)) },
	func(p patch, v uint64) patch { return p.u32(10752+8, uint32(v)) },
}

// FuzzOpenVHD mutates images, and of each sets one field to a value and the checksums
// right if it is to, without which little gets past the footer.
func FuzzOpenVHD(f *testing.F) {
	for i := range fields {
		f.Add(handMade(), uint(i), uint64(3), true)
	}
	f.Add(handMade(), uint(0), uint64(0), false)
	f.Add(fixedImage(4096), uint(0), uint64(0), true)
	f.Add(load(f, create(f, "64k")), uint(0), uint64(0), true)
	f.Add(load(f, create(f, "1G")), uint(0), uint64(0), true)
	f.Fuzz(func(t *testing.T, image []byte, field uint, value uint64, fix bool) {
		image = bytes.Clone(image)
		if len(image) == len(handMade()) {
			fields[field%uint(len(fields))](image, value)
		}
		if fix {
			resum(image)
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
		d, err := vhd.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if size, ok := vhd.PeekSize(image); ok && size != d.Size {
			t.Fatalf("peeked %d bytes, opened %d", size, d.Size)
		}
		if d.Size <= 1<<20 {
			if _, err := imagetest.Read(d, file); err != nil {
				t.Fatal(err)
			}
		}
	})
}
