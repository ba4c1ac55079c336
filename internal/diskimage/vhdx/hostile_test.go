package vhdx

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

// small makes an image of a disk of 5 MiB less a sector in blocks of 1 MiB, of which
// those that are written have data. Its blocks lie at dataAt and behind.
func small(t testing.TB) *diskimage.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.vhdx")
	imagetest.QemuImg(t, "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "5242368")
	imagetest.QemuIO(t, path, "vhdx", "write -P 1 0 1M", "write -P 2 2M 1M", "write -P 3 4M 1048064")
	return imagetest.Open(t, path)
}

// isFault reports whether err is the fault and says what was seen where that helps.
func isFault(err, want error) bool {
	if !errors.Is(err, want) {
		return false
	}
	f := fault.Of(err)
	return f.Evidence != "" || errors.Is(want, diskimage.ErrDirtyLog) || errors.Is(want, diskimage.ErrDifferencing) || errors.Is(want, diskimage.ErrEmptyDisk)
}

var unknownGUID = bytes.Repeat([]byte{0xee}, 16)

// addRegion adds a third region to both tables.
func addRegion(guid []byte, at uint64, length, required uint32) func(*image) {
	entry := slices.Clone(guid)
	entry = le.AppendUint64(entry, at)
	entry = le.AppendUint32(entry, length)
	entry = le.AppendUint32(entry, required)
	return func(m *image) {
		m.regions(8, []byte{3})
		m.regions(16+2*entryBytes, entry)
	}
}

// addItem adds a sixth item to the metadata.
func addItem(guid []byte, at, length, flags uint32) func(*image) {
	return func(m *image) {
		m.put16(tableAt+10, 6)
		m.put(tableAt+6*entryBytes, guid)
		m.put32(tableAt+6*entryBytes+16, at)
		m.put32(tableAt+6*entryBytes+20, length)
		m.put32(tableAt+6*entryBytes+24, flags)
	}
}

func put(at int64, b ...byte) func(*image)     { return func(m *image) { m.put(at, b) } }
func put16(at int64, v uint16) func(*image)    { return func(m *image) { m.put16(at, v) } }
func put32(at int64, v uint32) func(*image)    { return func(m *image) { m.put32(at, v) } }
func put64(at int64, v uint64) func(*image)    { return func(m *image) { m.put64(at, v) } }
func regions(at int64, b ...byte) func(*image) { return func(m *image) { m.regions(at, b) } }

// headers puts b at the same place of both headers.
func headers(at int64, b ...byte) func(*image) {
	return both(put(header1At+at, b...), put(header2At+at, b...))
}

func both(a, b func(*image)) func(*image) { return func(m *image) { a(m); b(m) } }

// entry is the place of a field of an item's entry in the metadata table.
func entry(i, field int64) int64 { return tableAt + entryBytes*(1+i) + field }

// block sets the i'th entry of the block allocation table.
func block(i, at int64, state uint64) func(*image) { return put64(batAt+8*i, uint64(at)|state) }

// Each of these is one change to a good image, with all checksums right again.
var hostile = []struct {
	name   string
	change func(*image)
	want   error // nil if the image is still good
}{
	{"no change", put(0), nil},
	{"identifier", put(0, 'V'), diskimage.ErrCorrupt},

	{"header version 0", headers(66, 0), diskimage.ErrUnsupported},
	{"header version 2", headers(66, 2), diskimage.ErrUnsupported},
	{"log version", headers(64, 1), diskimage.ErrUnsupported},
	{"log GUID", headers(48, 1), diskimage.ErrDirtyLog},
	{"end of log GUID", headers(63, 1), diskimage.ErrDirtyLog},
	{"log GUID in the current header", both(put64(header2At+8, math.MaxUint64), put(header2At+50, 7)), diskimage.ErrDirtyLog},
	{"log GUID in the old header", both(both(put64(header1At+8, 8), put64(header2At+8, 9)), put(header1At+50, 7)), nil},
	{"header signatures", headers(0, 'H'), diskimage.ErrCorrupt},
	{"same sequence number", headers(8, 1, 0, 0, 0, 0, 0, 0, 0), diskimage.ErrCorrupt},
	{"log out of the file", headers(72, 0, 0, 0, 0, 0, 1), diskimage.ErrTruncated},
	{"log at 2^63", headers(72, 0, 0, 0, 0, 0, 0, 0, 0x80), diskimage.ErrTruncated},
	{"log off the grid", headers(72, 0, 0x10), diskimage.ErrCorrupt},
	{"log of odd length", headers(68, 1), diskimage.ErrCorrupt},
	{"log in the header section", headers(72, 0, 0, 0), diskimage.ErrCorrupt},
	{"log over the table", headers(72, 0, 0, 0x20), diskimage.ErrCorrupt},
	{"log over a block", headers(72, 0, 0, dataAt>>16), diskimage.ErrCorrupt},
	{"no log", headers(68, make([]byte, 12)...), diskimage.ErrCorrupt},
	{"empty log", headers(68, make([]byte, 4)...), nil},
	{"empty log in a block", headers(68, 0, 0, 0, 0, 0, 0, dataAt>>16), nil},

	{"region signatures", regions(0, 'R'), diskimage.ErrCorrupt},
	{"no regions", regions(8, 0), diskimage.ErrCorrupt},
	{"one region", regions(8, 1), diskimage.ErrCorrupt},
	{"2048 regions", regions(8, 0, 8), diskimage.ErrCorrupt},
	{"2^32-1 regions", regions(8, 0xff, 0xff, 0xff, 0xff), diskimage.ErrCorrupt},
	{"2047 empty regions", regions(8, 0xff, 7), diskimage.ErrCorrupt},
	{"different region tables", put(regions1At+16+16+2, 0x50), diskimage.ErrCorrupt},
	{"garbage behind one region table", put(regions1At+tableBytes-1, 1), nil},
	{"unknown region", addRegion(unknownGUID, 7*mib, mib, 0), nil},
	{"unknown required region", addRegion(unknownGUID, 7*mib, mib, 1), diskimage.ErrUnknownFeature},
	{"two tables", addRegion([]byte(batRegion), 7*mib, mib, 1), diskimage.ErrCorrupt},
	{"two metadata regions", addRegion([]byte(metadataRegion), 7*mib, mib, 1), diskimage.ErrCorrupt},
	{"empty second table", addRegion([]byte(batRegion), 0, 0, 1), diskimage.ErrCorrupt},
	{"region behind the file", addRegion(unknownGUID, 1<<40, mib, 0), diskimage.ErrTruncated},
	{"region at 2^63", addRegion(unknownGUID, 1<<63, mib, 0), diskimage.ErrTruncated},
	{"region at the end of offsets", addRegion(unknownGUID, math.MaxInt64&^(mib-1), mib, 0), diskimage.ErrTruncated},
	{"region of 4 GiB", addRegion(unknownGUID, 4*mib, 0xfff00000, 0), diskimage.ErrTruncated},
	{"region off the grid", addRegion(unknownGUID, 4*mib+512, mib, 0), diskimage.ErrCorrupt},
	{"region of odd length", addRegion(unknownGUID, 4*mib, mib-1, 0), diskimage.ErrCorrupt},
	{"region in the header section", addRegion(unknownGUID, 0, mib, 0), diskimage.ErrCorrupt},
	{"region over the log", addRegion(unknownGUID, 1*mib, mib, 0), diskimage.ErrCorrupt},
	{"region over the table", addRegion(unknownGUID, 2*mib, mib, 0), diskimage.ErrCorrupt},
	{"region over all others", addRegion(unknownGUID, 1*mib, 4*mib, 0), diskimage.ErrCorrupt},
	{"table at the place of a block", regions(16+16, 0, 0, dataAt>>16), diskimage.ErrCorrupt},

	{"metadata signature", put(tableAt, 'M'), diskimage.ErrCorrupt},
	{"no items", put16(tableAt+10, 0), diskimage.ErrCorrupt},
	{"four items", put16(tableAt+10, 4), diskimage.ErrCorrupt},
	{"2047 items", put16(tableAt+10, 2047), diskimage.ErrCorrupt},
	{"2048 items", put16(tableAt+10, 2048), diskimage.ErrCorrupt},
	{"unknown item", addItem(unknownGUID, 128<<10, 100, 0), nil},
	{"unknown empty item", addItem(unknownGUID, 0, 0, 3), nil},
	{"unknown empty item somewhere", addItem(unknownGUID, 128<<10, 0, 0), diskimage.ErrCorrupt},
	{"unknown required item", addItem(unknownGUID, 128<<10, 100, 4), diskimage.ErrUnknownFeature},
	{"item in the table", addItem(unknownGUID, 64<<10-1, 100, 0), diskimage.ErrCorrupt},
	{"item over another", addItem(unknownGUID, 64<<10+39, 1, 0), diskimage.ErrCorrupt},
	{"item at the end", addItem(unknownGUID, mib-100, 100, 0), nil},
	{"item over the end", addItem(unknownGUID, mib-100, 101, 0), diskimage.ErrCorrupt},
	{"item at 2^32", addItem(unknownGUID, math.MaxUint32, math.MaxUint32, 0), diskimage.ErrCorrupt},
	{"second disk size", func(m *image) { m.put(entry(5, 0), guid(diskSize)); addItem(guid(diskSize), 128<<10, 8, 6)(m) }, diskimage.ErrCorrupt},
	{"second disk size of the user", addItem(guid(diskSize), 128<<10, 8, 1), diskimage.ErrCorrupt},
	{"disk size of the user", put32(entry(1, 24), 7), diskimage.ErrCorrupt},
	{"disk size of 4 bytes", put32(entry(1, 20), 4), diskimage.ErrCorrupt},
	{"disk size of the end of the region", put32(entry(1, 16), mib-8), diskimage.ErrEmptyDisk},
	{"disk size over the end of the region", put32(entry(1, 16), mib-7), diskimage.ErrCorrupt},
	{"disk size unknown", put(entry(1, 0), 0), diskimage.ErrUnknownFeature},
	{"disk size unknown and optional", both(put(entry(1, 0), 0), put32(entry(1, 24), 0)), diskimage.ErrCorrupt},
	{"parent locator", addItem(guid(parentLocator), 128<<10, 100, 4), diskimage.ErrDifferencing},
	{"empty parent locator", addItem(guid(parentLocator), 0, 0, 0), diskimage.ErrDifferencing},

	{"has a parent", put32(itemsAt+4, 2), diskimage.ErrDifferencing},
	{"fixed", put32(itemsAt+4, 1), nil},
	{"unknown parameter", put32(itemsAt+4, 4), diskimage.ErrUnknownFeature},
	{"blocks of 0", put32(itemsAt, 0), diskimage.ErrCorrupt},
	{"blocks of 512 KiB", put32(itemsAt, 512<<10), diskimage.ErrCorrupt},
	{"blocks of 3 MiB", put32(itemsAt, 3<<20), diskimage.ErrCorrupt},
	{"blocks of 512 MiB", put32(itemsAt, 512<<20), diskimage.ErrCorrupt},
	{"blocks of 256 MiB", put32(itemsAt, 256<<20), diskimage.ErrTruncated},
	{"sectors of 0", put32(logicalAt, 0), diskimage.ErrCorrupt},
	{"sectors of 1024", put32(logicalAt, 1024), diskimage.ErrCorrupt},
	{"physical sectors of 0", put32(physicalAt, 0), diskimage.ErrCorrupt},
	{"physical sectors of 512", put32(physicalAt, 512), nil},
	{"disk of nothing", put64(sizeAt, 0), diskimage.ErrEmptyDisk},
	{"disk of half a sector", put64(sizeAt, 256), diskimage.ErrCorrupt},
	{"disk of one sector", put64(sizeAt, 512), nil},
	{"disk of 64 TiB and a sector", put64(sizeAt, 64<<40+512), diskimage.ErrTooLarge},
	{"disk of 2^64 less a sector", put64(sizeAt, math.MaxUint64-511), diskimage.ErrTooLarge},
	{"disk of 64 TiB in 1 MiB of table", put64(sizeAt, 64<<40), diskimage.ErrCorrupt},
	{"all that the table holds", put64(sizeAt, (mib/8-31)*mib), nil},
	{"one block more than the table holds", put64(sizeAt, (mib/8-30)*mib), diskimage.ErrCorrupt},

	{"state 0 with a place", block(0, 1<<50, 0), nil},
	{"state 1 with a place", block(0, 1<<50, 1), nil},
	{"state 2 with a place", block(0, 1<<50, 2), nil},
	{"state 3 with a place", block(0, 1<<50, 3), nil},
	{"state 4", block(0, dataAt, 4), diskimage.ErrCorrupt},
	{"state 5", block(0, dataAt, 5), diskimage.ErrCorrupt},
	{"state 7", block(0, dataAt, 7), diskimage.ErrDifferencing},
	{"reserved bit of a block", block(0, dataAt, 6|8), diskimage.ErrCorrupt},
	{"reserved bit of a missing block", block(1, 0, 1<<19), diskimage.ErrCorrupt},
	{"shared block", block(1, dataAt, 6), nil},
	{"block at 0", block(0, 0, 6), diskimage.ErrCorrupt},
	{"block in the log", block(0, mib, 6), diskimage.ErrCorrupt},
	{"block in the table", block(0, batAt, 6), diskimage.ErrCorrupt},
	{"block in the metadata", block(4, tableAt, 6), diskimage.ErrCorrupt},
	{"block behind the file", block(0, dataAt+3*mib, 6), diskimage.ErrTruncated},
	{"block at 2^63", block(0, math.MinInt64, 6), diskimage.ErrTruncated},
	{"block at the end of offsets", block(0, math.MaxInt64&^(mib-1), 6), diskimage.ErrTruncated},
	{"block behind the disk", block(5, 0, 7), nil},
	{"sector bitmap", both(put64(sizeAt, 5<<30), block(4096, dataAt, 6)), diskimage.ErrCorrupt},
	{"place of an absent sector bitmap", both(put64(sizeAt, 5<<30), block(4096, dataAt, 0)), nil},
	{"no sector bitmap behind the last chunk", both(put64(sizeAt, 4<<30), block(4096, dataAt, 6)), nil},
}

// guid returns the GUID of a known item.
func guid(i item) []byte {
	for id, known := range knownItems {
		if known.item == i {
			return []byte(id)
		}
	}
	return nil
}

func TestHostile(t *testing.T) {
	t.Parallel()
	base := small(t)
	for _, tt := range hostile {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := over(base)
			tt.change(m)
			m.seal()
			if err := verdict(m.file()); tt.want != nil || err != nil {
				if !isFault(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
				return
			}
			sameForQemu(t, m)
		})
	}
}

// sameForQemu checks that qemu-img takes an image for the same disk.
func sameForQemu(t *testing.T, m *image) {
	t.Helper()
	d := mustOpen(t, m.file())
	path := m.save(t)
	if d.Size > 16*mib {
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		out := imagetest.QemuImg(t, "info", "--output=json", "-f", "vhdx", path)
		if err := json.Unmarshal(out, &info); err != nil || info.Size != d.Size {
			t.Errorf("disk has %d bytes, qemu-img says %d, %v", d.Size, info.Size, err)
		}
		return
	}
	raw := filepath.Join(t.TempDir(), "raw")
	imagetest.QemuImg(t, "convert", "-f", "vhdx", "-O", "raw", path, raw)
	imagetest.Equal(t, d, m.file(), raw)
}

// Of what is there twice, one damaged copy is replaced by the other.
func TestDamagedCopies(t *testing.T) {
	t.Parallel()
	base := small(t)
	for _, tt := range []struct {
		name   string
		places []int64
		warns  int
		want   error
	}{
		{"none", nil, 0, nil},
		{"header 1", []int64{header1At + 3000}, 1, nil},
		{"header 2", []int64{header2At}, 1, nil},
		{"both headers", []int64{header1At + 5, header2At + 70}, 0, diskimage.ErrCorrupt},
		{"region table 1", []int64{regions1At + 17}, 1, nil},
		{"region table 2", []int64{regions2At + tableBytes - 1}, 1, nil},
		{"both region tables", []int64{regions1At + 8, regions2At + 33}, 0, diskimage.ErrCorrupt},
		{"one of each", []int64{header1At + 8, regions2At + 8}, 2, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := over(base)
			for _, at := range tt.places {
				b := make([]byte, 1)
				if _, err := m.ReadAt(b, at); err != nil {
					t.Fatal(err)
				}
				m.put(at, []byte{^b[0]})
			}
			d, err := Open(m.file())
			switch {
			case tt.want != nil:
				if !isFault(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
			case err != nil:
				t.Error(err)
			case len(d.Warnings) != tt.warns:
				t.Errorf("warnings %q, want %d", d.Warnings, tt.warns)
			}
		})
	}
}

// Disk2vhd writes the same header twice.
func TestIdenticalHeaders(t *testing.T) {
	t.Parallel()
	m := over(small(t))
	h := make([]byte, headerBytes)
	if _, err := m.ReadAt(h, header1At); err != nil {
		t.Fatal(err)
	}
	m.put(header2At, h)
	if d := mustOpen(t, m.file()); len(d.Warnings) > 0 {
		t.Errorf("warnings %q", d.Warnings)
	}
}

func TestTruncated(t *testing.T) {
	t.Parallel()
	base := small(t)
	if base.Size() != dataAt+3*mib {
		t.Fatalf("image has %d bytes", base.Size())
	}
	for _, size := range []int64{0, 1, 8, header1At, header2At + 100, regions1At, regions2At + 64, sectionBytes - 1, sectionBytes,
		mib, batAt, batAt + 8, tableAt, tableAt + 32, itemsAt, itemsAt + 39, tableAt + mib, dataAt, dataAt + 1, dataAt + mib, dataAt + 2*mib, base.Size() - 513} {
		m := over(base)
		m.size = size
		if err := verdict(m.file()); !isFault(err, diskimage.ErrTruncated) {
			t.Errorf("cut to %d bytes: %v", size, err)
		}
	}
	// Behind the disk's end nothing of its last block is needed.
	m := over(base)
	m.size -= 512
	if err := verdict(m.file()); err != nil {
		t.Errorf("cut at the end of the disk: %v", err)
	}
}

var errCut = errors.New("connection reset")

// breaking fails from a number of reads on.
type breaking struct {
	r    io.ReaderAt
	left atomic.Int64
}

func (b *breaking) ReadAt(p []byte, off int64) (int, error) {
	if b.left.Add(-1) < 0 {
		return 0, errCut
	}
	return b.r.ReadAt(p, off)
}

// An error of the reader is never the image's fault.
func TestReaderFails(t *testing.T) {
	t.Parallel()
	base := small(t)
	const reads = 1 + 1 + 6 + 1 // the header section, the metadata's table and words, the block allocation table
	for n := range int64(reads + 1) {
		r := &breaking{r: base}
		r.left.Store(n)
		err := verdict(diskimage.NewFile(r, base.Size()))
		if n == reads && err != nil {
			t.Errorf("%d reads should be enough: %v", n, err)
		}
		if n < reads && (!errors.Is(err, errCut) || fault.KindOf(err) != fault.Internal) {
			t.Errorf("failing after %d reads: %v", n, err)
		}
	}
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	if err := mustOpen(t, small(t)).Map.Unpack(nil, nil); !errors.Is(err, diskimage.ErrCorrupt) {
		t.Error(err)
	}
}
