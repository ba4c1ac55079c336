package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/fault"
)

// FuzzOpen has images of both kinds. Whatever is refused is refused with a fault, and
// what is accepted keeps what a Map or a Parser promises, and is the same twice.
func FuzzOpen(f *testing.F) {
	guest := make([]byte, 200<<10+sectorBytes)
	copy(guest, "some data")
	copy(guest[len(guest)-9:], "more data")
	f.Add(sparsePack(guest))
	for _, d := range dialects {
		d.overHead, d.fill = 21, 2*min(d.fill, 1)
		f.Add(pack(guest, d))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		file := imagetest.Of(image)
		d, err := Open(file)
		if err != nil {
			mustBeFault(t, err)
			return
		}
		if size, ok := PeekSize(image); !ok || size < d.Size || size-d.Size >= maxGrain*sectorBytes {
			t.Fatalf("peeked %d bytes, %t: the disk has %d", size, ok, d.Size)
		}
		if d.Size > 64<<20 {
			walk(t, d, file)
			return
		}
		first, err := imagetest.Read(d, file)
		again, errAgain := imagetest.Read(d, file)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || !bytes.Equal(first, again) {
			t.Fatalf("once %v, then %v", err, errAgain)
		}
		if err != nil {
			mustBeFault(t, err)
		}
	})
}

func mustBeFault(t *testing.T, err error) {
	t.Helper()
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Invalid {
		t.Fatalf("no fault: %v", err)
	}
}

// walk goes through a disk that is too large to be read. The work is in proportion
// to the file: a table for each 512 entries that it has room for.
func walk(t *testing.T, d *diskimage.Disk, f *diskimage.File) {
	t.Helper()
	if d.Map == nil {
		if err := diskimage.Walk(f, d.Parser(diskimage.Position{}), func(diskimage.Piece) error { return nil }); err != nil {
			mustBeFault(t, err)
		}
		return
	}
	n, end := int64(0), int64(0)
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			mustBeFault(t, err)
			return
		}
		if e.Guest < end || e.Length <= 0 || e.Guest+e.Length > d.Size || !f.Has(e.File, e.Length) {
			t.Fatalf("extent %+v after %d", e, end)
		}
		end = e.Guest + e.Length
		if n++; n > f.Size()/entryBytes {
			t.Fatalf("%d extents in a file of %d bytes", n, f.Size())
		}
	}
}

// FuzzParser has the part of a stream behind its header and descriptor, in the way of
// VMware and in that of QEMU.
func FuzzParser(f *testing.F) {
	guest := make([]byte, 100<<10)
	for i := range 20 {
		copy(guest[i*5000:], "some data")
	}
	heads := make(map[bool][]byte)
	for _, front := range []bool{false, true} {
		image := pack(guest, dialect{grain: 8, front: front, overHead: 21})
		heads[front] = image[:21*sectorBytes]
		f.Add(front, image[21*sectorBytes:])
	}
	f.Fuzz(func(t *testing.T, front bool, stream []byte) {
		image := append(bytes.Clone(heads[front]), stream...)
		d, err := OpenStream(image)
		if err != nil {
			t.Fatal(err) // the head is sound
		}
		got, err := imagetest.Read(d, imagetest.Of(image))
		if err != nil {
			mustBeFault(t, err)
		}
		if slowly, errSlowly := readSlowly(d, image); (err == nil) != (errSlowly == nil) || err == nil && !bytes.Equal(got, slowly) {
			t.Fatalf("at once: %v, step by step: %v", err, errSlowly)
		}
	})
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(sound))
	f.Add(fmt.Appendf(nil, vmwareText, 100))
	f.Add(fmt.Appendf(nil, virtualBoxText, 100))
	f.Add([]byte("# Disk DescriptorFile\r\nRW 1 FLAT \"/etc/passwd\" 0\r\nencoding=\"Shift_JIS\"\r\nRW 1 SPARSE \"\x95\x5c\"\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseDescriptor(text)
		if err != nil {
			mustBeFault(t, err)
			return
		}
		text, _, _ = bytes.Cut(text, []byte{0})
		if d.createType != monolithicSparse && d.createType != streamOptimized || !bytes.Contains(bytes.ToLower(text), []byte("parentcid")) {
			t.Fatalf("accepted as %+v", d)
		}
		// No line may be left in which another reader sees a part of the disk.
		for line := range bytes.Lines(text) {
			words := strings.Fields(strings.ToLower(string(line)))
			if len(words) > 2 && (words[0] == "rw" || words[0] == "rdonly") && words[2] != "sparse" {
				t.Fatalf("accepted %q", line)
			}
			if strings.HasPrefix(strings.Join(words, ""), "parentfilenamehint=") {
				t.Fatalf("accepted %q", line)
			}
		}
	})
}
