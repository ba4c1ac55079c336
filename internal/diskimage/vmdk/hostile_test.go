package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// verdict opens an image and reads all of its disk.
func verdict(image []byte) error {
	f := imagetest.Of(image)
	d, err := Open(f)
	if err == nil {
		_, err = imagetest.Read(d, f)
	}
	return err
}

func le64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }
func le32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
func le16(n uint16) []byte { return binary.LittleEndian.AppendUint16(nil, n) }

func TestHostileHeaders(t *testing.T) {
	t.Parallel()
	sparse, stream := sparseImage(), pack(guestBytes(), dialect{})
	for _, c := range []struct {
		name  string
		image []byte
		off   int
		with  []byte
		want  error
	}{
		{"sparse", sparse, 0, nil, nil},
		{"stream", stream, 0, nil, nil},
		{"version 0", sparse, 4, le32(0), diskimage.ErrUnsupported},
		{"version 2", sparse, 4, le32(2), nil},
		{"version 4", sparse, 4, le32(4), diskimage.ErrUnsupported},
		{"flags that can be ignored", sparse, 8, le32(0x8001), nil},
		{"flags that cannot", sparse, 8, le32(0x40001), diskimage.ErrUnknownFeature},
		{"compressed, no markers", sparse, 8, le32(0x10001), diskimage.ErrUnsupported},
		{"markers, not compressed", sparse, 8, le32(0x20001), diskimage.ErrUnsupported},
		{"line ends changed", sparse, 73, []byte("\n \n\n"), diskimage.ErrCorrupt},
		{"line ends not told", imagetest.Patched(sparse, 8, 0), 73, []byte{0, 0, 0, 0}, nil},
		{"a stream that says it is sparse", stream, 8, le32(1), diskimage.ErrCorrupt},
		{"a sparse that says it is a stream", imagetest.Patched(sparse, 77, 1), 8, le32(0x30001), diskimage.ErrCorrupt},
		{"compression of what is not compressed", sparse, 77, le16(1), diskimage.ErrCorrupt},
		{"no compression", stream, 77, le16(0), diskimage.ErrUnsupported},
		{"another compression", stream, 77, le16(2), diskimage.ErrUnsupported},
		{"no disk", sparse, 12, le64(0), diskimage.ErrCorrupt},
		{"another size", sparse, 12, le64(6145 + 128), diskimage.ErrCorrupt},
		{"a huge disk", sparse, 12, le64(1 << 63), diskimage.ErrCorrupt},
		{"tiny grains", sparse, 20, le64(4), diskimage.ErrCorrupt},
		{"no grains", sparse, 20, le64(0), diskimage.ErrCorrupt},
		{"odd grains", sparse, 20, le64(127), diskimage.ErrCorrupt},
		{"huge grains", sparse, 20, le64(4096), diskimage.ErrCorrupt},
		{"no descriptor", sparse, 28, le64(0), diskimage.ErrSplit},
		{"a descriptor of nothing", sparse, 36, le64(0), diskimage.ErrSplit},
		{"an empty descriptor", sparse, 28, le64(4), diskimage.ErrCorrupt}, // the directory
		{"a descriptor of zeros", sparse, 28, le64(5), diskimage.ErrSplit},
		{"a long descriptor", sparse, 36, le64(129), diskimage.ErrCorrupt},
		{"a descriptor far away", sparse, 28, le64(1 << 20), diskimage.ErrUnsupported},
		{"a descriptor beyond all", sparse, 28, le64(1<<64 - 1), diskimage.ErrUnsupported},
		{"a descriptor beyond the file", sparse[:4096], 36, le64(100), diskimage.ErrTruncated},
		{"tables of other sizes", sparse, 44, le32(1024), diskimage.ErrUnsupported},
		{"no directory", sparse, 56, le64(0), diskimage.ErrCorrupt},
		{"a directory at the end of a sparse image", sparse, 56, le64(gdAtEnd), diskimage.ErrCorrupt},
		{"a directory beyond the file", sparse, 56, le64(1 << 40), diskimage.ErrTruncated},
		{"a directory beyond all", sparse, 56, le64(1 << 60), diskimage.ErrCorrupt},
		{"a directory in the descriptor", sparse, 56, le64(1), diskimage.ErrTruncated}, // text is far away
		{"a directory in front of it all", stream, 56, le64(1), diskimage.ErrCorrupt},
		{"a directory that is not that of the footer", stream, 56, le64(500), diskimage.ErrCorrupt},
		{"grains over the descriptor", stream, 64, le64(20), diskimage.ErrCorrupt},
		{"grains beyond the file", stream, 64, le64(1 << 30), diskimage.ErrTruncated},
		{"grains beyond all", stream, 64, le64(1 << 60), diskimage.ErrCorrupt},
	} {
		if err := verdict(imagetest.Patched(c.image, c.off, c.with...)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	image := imagetest.Patched(sparseImage(), 72, 1)
	image = bytes.Replace(image, []byte("encoding=\"windows-1252\""), []byte("changeTrackPath=\"a.vmdk\""), 1)
	image = slices.Delete(image, 4*sectorBytes-1, 4*sectorBytes) // the text has become longer by one
	d := mustOpen(t, imagetest.Of(image))
	if len(d.Warnings) != 2 || !strings.Contains(d.Warnings[0], "cleanly") || !strings.Contains(d.Warnings[1], "changed blocks") {
		t.Errorf("warnings %q", d.Warnings)
	}
}

func TestHostileTables(t *testing.T) {
	t.Parallel()
	// Two tables, and grains that both know.
	guest := make([]byte, 40<<20)
	copy(guest, "first")
	copy(guest[len(guest)-4:], "last")
	image := sparsePack(guest)
	dir := sparseDir * sectorBytes
	table := int(binary.LittleEndian.Uint32(image[dir:])) * sectorBytes
	zeroed := imagetest.Patched(image, 8, flagNewlines|flagZeroed)
	for _, c := range []struct {
		name  string
		image []byte
		off   int
		with  []byte
		want  error
	}{
		{"sound", image, 0, nil, nil},
		{"no table", image, dir, le32(0), nil},
		{"a table twice", image, dir + 4, le32(uint32(table / sectorBytes)), diskimage.ErrCorrupt},
		{"tables that overlap", image, dir + 4, le32(uint32(table/sectorBytes) + 3), diskimage.ErrCorrupt},
		{"tables in another order", image, dir, slices.Concat(image[dir+4:dir+8], image[dir:dir+4]), nil},
		{"a table in the header", image, dir, le32(1), diskimage.ErrCorrupt},
		{"a table beyond the file", image, dir, le32(1<<32 - 1), diskimage.ErrTruncated},
		{"a table half in the file", image, dir + 4, le32(uint32(len(image)/sectorBytes) - 3), diskimage.ErrTruncated},
		{"a grain of zeros", zeroed, table, le32(1), nil},
		{"a grain of zeros, not told", image, table, le32(1), diskimage.ErrCorrupt},
		{"a grain in the header", zeroed, table, le32(3), diskimage.ErrCorrupt},
		{"a grain beyond the file", image, table, le32(1<<32 - 1), diskimage.ErrTruncated},
		{"a grain half in the file", image, table, le32(uint32(len(image)/sectorBytes) - 127), diskimage.ErrTruncated},
		{"a grain twice", image, table + 4, image[table : table+4], nil}, // whoever reads it limits that
		{"a grain behind the disk", image, len(image) - 4, le32(1<<32 - 1), nil},
	} {
		if err := verdict(imagetest.Patched(c.image, c.off, c.with...)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

// TestHostileMarkers builds streams of one table out of parts.
func TestHostileMarkers(t *testing.T) {
	t.Parallel()
	const grains = 16 // of 4 KiB
	whole := pack(make([]byte, grains*4096), dialect{grain: 8, overHead: 21})
	start := 21 * sectorBytes
	head, end := whole[:start], whole[start:] // table, directory, footer, end-of-stream
	tables := end[:len(end)-3*sectorBytes]
	grain := func(lba int64, n int) []byte {
		b := grainOf(lba, bytes.Repeat([]byte{7}, n))
		return append(b, make([]byte, -len(b)&(sectorBytes-1))...)
	}
	// foot is the end of a stream with sectors before it; its header has the flaw.
	foot := func(before int, off int, with ...byte) []byte {
		b := imagetest.Patched(end[len(end)-3*sectorBytes:], sectorBytes+off, with...)
		if off != 56 {
			copy(b[sectorBytes+56:], le64(uint64(start+before)/sectorBytes))
		}
		return b
	}
	sized := func(lba uint64, size uint32) []byte {
		return append(append(le64(lba), le32(size)...), make([]byte, sectorBytes-12)...)
	}
	zero := make([]byte, sectorBytes)
	sound := foot(sectorBytes, 0)
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  error
	}{
		{"nothing but an end", [][]byte{end}, nil},
		{"two grains", [][]byte{grain(0, 4096), grain(120, 4096), end}, nil},
		{"no tables", [][]byte{grain(0, 4096), sound}, nil},
		{"padding", [][]byte{grain(0, 4096), sound, zero, zero}, nil},
		{"an unknown marker with a number", [][]byte{mark(77, markUnknown), grain(0, 4096), sound}, nil},
		{"zeros before the tables", [][]byte{grain(0, 4096), zero, zero, tables, foot(sectorBytes, 0)}, nil},

		{"grains twice", [][]byte{grain(8, 4096), grain(8, 4096), sound}, diskimage.ErrUnsupported},
		{"grains in another order", [][]byte{grain(16, 4096), grain(8, 4096), sound}, diskimage.ErrUnsupported},
		{"a grain behind the disk", [][]byte{grain(8*grains, 4096), sound}, diskimage.ErrCorrupt},
		{"a grain beyond all", [][]byte{sized(1<<64-8, 100), sound}, diskimage.ErrCorrupt},
		{"a grain between grains", [][]byte{grain(4, 4096), sound}, diskimage.ErrCorrupt},
		{"a huge grain", [][]byte{sized(0, 1<<32-1), sound}, diskimage.ErrCorrupt},
		{"a grain of twice its size", [][]byte{sized(0, 8193), sound}, diskimage.ErrCorrupt},
		{"a grain beyond the file", [][]byte{grain(0, 4096), foot(sectorBytes, 0)[:2*sectorBytes], sized(0, 8192)}, diskimage.ErrTruncated},
		{"a grain of garbage", [][]byte{sized(0, 100), sound}, diskimage.ErrCorrupt},
		{"a short grain", [][]byte{grain(0, 4095), sound}, diskimage.ErrCorrupt},
		{"a long grain", [][]byte{grain(0, 4097), sound}, diskimage.ErrCorrupt},
		{"a bomb", [][]byte{grain(0, 1<<20), sound}, diskimage.ErrCorrupt},
		{"a marker of another type", [][]byte{mark(0, 5), sound}, diskimage.ErrCorrupt},
		{"endless tables", [][]byte{mark(1<<63, markTable), sound}, diskimage.ErrCorrupt},
		{"tables over the end", [][]byte{mark(4, markTable), sound}, diskimage.ErrTruncated},
		{"tables that wrap", [][]byte{mark(1<<64-1, markDirectory), sound}, diskimage.ErrCorrupt},

		{"a grain behind the end", [][]byte{zero, grain(0, 4096), sound}, diskimage.ErrTrailing},
		{"a grain behind the footer", [][]byte{grain(0, 4096), sound[:2*sectorBytes], grain(8, 4096), sound}, diskimage.ErrTrailing},
		{"two footers", [][]byte{grain(0, 4096), sound, sound}, diskimage.ErrTrailing},
		{"data behind", [][]byte{sound, grain(0, 4096)}, diskimage.ErrTruncated}, // no footer where it belongs
		{"a byte behind", [][]byte{sound, {1}}, diskimage.ErrTruncated},
		{"long padding", [][]byte{sound, make([]byte, 2*maxTail)}, diskimage.ErrTruncated},

		{"no end", [][]byte{grain(0, 4096)}, diskimage.ErrTruncated},
		{"no footer", [][]byte{grain(0, 4096), zero}, diskimage.ErrTruncated},
		{"nothing", nil, diskimage.ErrTruncated},
		{"no end behind the footer", [][]byte{grain(0, 4096), sound[:2*sectorBytes]}, diskimage.ErrTruncated},
		{"a footer of another disk", [][]byte{grain(0, 4096), foot(sectorBytes, 12, 127)}, diskimage.ErrCorrupt},
		{"a footer with another descriptor", [][]byte{grain(0, 4096), foot(sectorBytes, 28, 2)}, diskimage.ErrCorrupt},
		{"a footer of another image", [][]byte{grain(0, 4096), foot(sectorBytes, 4, 9)}, diskimage.ErrUnsupported},
		{"a footer without a directory", [][]byte{grain(0, 4096), foot(sectorBytes, 56, le64(gdAtEnd)...)}, diskimage.ErrCorrupt},
		{"a footer with its directory behind", [][]byte{grain(0, 4096), foot(sectorBytes, 56, le64(1000)...)}, diskimage.ErrCorrupt},
		{"a footer without its signature", [][]byte{grain(0, 4096), foot(sectorBytes, 0, 'k')}, diskimage.ErrCorrupt},
	} {
		image := slices.Concat(append([][]byte{head}, c.parts...)...)
		if err := verdict(image); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
		// The footer at the file's end is a courtesy of Open: a stream is held to
		// all of it, too.
		if err := streamVerdict(image); (err == nil) != (c.want == nil) && c.name != "long padding" {
			t.Errorf("%s, as a stream: %v", c.name, err)
		}
	}
}

// streamVerdict is verdict for who sees the front alone.
func streamVerdict(image []byte) error {
	d, err := OpenStream(image[:min(len(image), FrontBytes)])
	if err == nil {
		_, err = imagetest.Read(d, imagetest.Of(image))
	}
	return err
}

func TestHostileFrontTables(t *testing.T) {
	t.Parallel()
	image := pack(guestBytes(), dialect{front: true, grain: 8})
	dir := 21 * sectorBytes
	tables := dir + sectorBytes
	last := bytes.LastIndex(image, []byte("\x78\x01")) - grainMarkBytes
	for _, c := range []struct {
		name  string
		image []byte
		want  error
	}{
		{"sound", image, nil},
		{"no end-of-stream marker", image[:len(image)-sectorBytes], nil},
		{"padding", append(bytes.Clone(image), make([]byte, 700)...), nil},
		{"more entries than grains", imagetest.Patched(image, tables+3*4, 1, 1), diskimage.ErrTruncated},
		{"an entry of zeros", imagetest.Patched(image, tables+3*4, 1), nil},
		{"more grains than entries", imagetest.Patched(image, tables, 0, 0), diskimage.ErrCorrupt},
		{"tables in another order", imagetest.Patched(image, dir, image[dir+4]), diskimage.ErrUnsupported},
		{"a table left out", imagetest.Patched(image, dir+4, 0, 0, 0, 0), diskimage.ErrUnsupported},
		{"tables over the grains", imagetest.Patched(image, 64, 25), diskimage.ErrCorrupt},
		{"without the last grain", image[:last], diskimage.ErrTruncated},
		{"zeros for the last grain", append(bytes.Clone(image[:last]), make([]byte, len(image)-last)...), diskimage.ErrTruncated},
		{"data behind", append(bytes.Clone(image), 1), diskimage.ErrTrailing},
		{"a grain behind", append(bytes.Clone(image), image[last:]...), diskimage.ErrTrailing},
		{"a table behind", append(bytes.Clone(image), mark(4, markTable)...), diskimage.ErrTrailing},
	} {
		for _, err := range []error{verdict(c.image), streamVerdict(c.image)} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s: got %v, want %v", c.name, err, c.want)
			}
		}
	}
}

// TestTruncated cuts images everywhere. Nothing of the disk may be missing without
// notice.
func TestTruncated(t *testing.T) {
	t.Parallel()
	guest := guestBytes()
	images := map[string][]byte{"sparse": sparseImage()}
	for name, d := range dialects {
		images[name] = pack(guest, d)
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := imagetest.Of(image)
			whole, err := imagetest.Read(mustOpen(t, f), f)
			if err != nil {
				t.Fatal(err)
			}
			for n := len(image) - 1; n >= len(magic); n -= 1 + min(n, len(image)-n)/5 {
				f := imagetest.Of(image[:n])
				d, err := Open(f)
				var got []byte
				if err == nil {
					got, err = imagetest.Read(d, f)
				}
				if err == nil && !bytes.Equal(got, whole) {
					t.Fatalf("cut to %d of %d bytes: a disk with holes", n, len(image))
				}
				if err != nil && !errors.Is(err, diskimage.ErrTruncated) {
					t.Fatalf("cut to %d of %d bytes: %v", n, len(image), err)
				}
			}
		})
	}
}

// TestBounded has headers of disks that are larger than their files by far.
func TestBounded(t *testing.T) {
	huge := sized(sparseImage(), diskimage.MaxDiskBytes/sectorBytes)
	stream := imagetest.Patched(pack(guestBytes(), dialect{}), 12, le64(diskimage.MaxDiskBytes/sectorBytes)...)
	stream = bytes.Replace(stream, []byte("4699 SPARSE \"call-me"), []byte("137438953472 SPARSE \""), 1)
	imagetest.Bounded(t, 2<<20, func() {
		if _, err := Open(imagetest.Of(huge)); !errors.Is(err, diskimage.ErrTruncated) {
			t.Errorf("sparse: %v", err)
		}
		d, err := OpenStream(stream)
		if err != nil || d.Size != diskimage.MaxDiskBytes {
			t.Errorf("stream: %v", err)
		}
		small := imagetest.Patched(stream, 20, 64)
		if _, err := OpenStream(small); !errors.Is(err, diskimage.ErrUnsupported) {
			t.Errorf("stream of small grains: %v", err)
		}
	})
}

// sized makes the disk of sparseImage one of so many sectors, of which there are at
// least 100 million.
func sized(image []byte, sectors int64) []byte {
	image = imagetest.Patched(image, 12, le64(uint64(sectors))...)
	line := fmt.Sprintf("RW %d SPARSE \"\"", sectors)
	return bytes.Replace(image, []byte("RW 6145 SPARSE \"disk.vmdk\""), fmt.Appendf(nil, "%-26s", line), 1)
}

// TestOpenIsCheap opens disks whose directories are as large as can be, and are in the
// file. Their tables are not looked at before somebody wants an extent.
func TestOpenIsCheap(t *testing.T) {
	streams := make(map[bool][]byte)
	for _, front := range []bool{false, true} {
		streams[front] = pack(guestBytes(), dialect{front: front})
	}
	largest := imagetest.Patched(sized(sparseImage(), 8<<40/sectorBytes), 20, 8)
	for _, c := range []struct {
		name  string
		image []byte
		size  int64
		want  error
	}{
		{"sparse", sized(sparseImage(), diskimage.MaxDiskBytes/sectorBytes), 1 << 30, nil},
		{"the largest directory", largest, 1 << 30, nil},
		{"a directory cut short", largest, sparseDir*sectorBytes + 16<<20 - 1, diskimage.ErrTruncated},
		{"too large a directory", imagetest.Patched(sized(sparseImage(), 8<<40/sectorBytes+4096), 20, 8), 1 << 30, diskimage.ErrUnsupported},
		{"stream", streams[false], int64(len(streams[false])), nil},
		{"stream with tables in front", streams[true], int64(len(streams[true])), nil},
	} {
		r := &counted{ReaderAt: scattered{front: c.image}}
		f := diskimage.NewFile(r, c.size)
		var err error
		imagetest.Bounded(t, 1<<20, func() { _, err = Open(f) })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if n := r.bytes.Load(); n > 200<<10 {
			t.Errorf("%s: %d bytes read", c.name, n)
		}
	}
}
