package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/fault"
)

// FuzzOpen looks for images that make the reader panic, allocate or work more than
// their size accounts for, break the contract of a map, or give two answers.
//
// Besides the image it changes words of the header, the L1 table and the first L2
// table, which a change of arbitrary bytes would seldom meet.
func FuzzOpen(f *testing.F) {
	images := bases(f)
	delete(images, "guest")
	for _, name := range slices.Sorted(maps.Keys(images)) {
		f.Add(images[name], []byte{})
		f.Add(images[name], []byte{0, 3, 0, 0, 0, 0, 0, 2, 0xff, 0xff, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, image, patches []byte) {
		if len(image) > 1<<20 {
			return
		}
		image = fuzzPatched(image, patches)
		var first, second error
		imagetest.Bounded(t, 64<<20, func() { first = fuzzRead(t, image) })
		second = fuzzRead(t, image)
		if (first == nil) != (second == nil) || first != nil && first.Error() != second.Error() {
			t.Fatalf("two answers: %v, and %v", first, second)
		}
		if _, isFault := errors.AsType[*fault.Error](first); first != nil && !isFault {
			t.Fatalf("error without a code: %v", first)
		}
	})
}

// fuzzPatched applies patches of 10 bytes: a region, the number of a word in it, and
// what to change in that word.
func fuzzPatched(image, patches []byte) []byte {
	if len(image) < 512 {
		return image
	}
	image = bytes.Clone(image)
	at := func(entry uint64) int { return int(entry & offsets % uint64(len(image))) }
	for p := range slices.Chunk(patches, 10) {
		if len(p) < 10 {
			break
		}
		table := at(binary.BigEndian.Uint64(image[40:]))
		region := 0
		switch p[0] % 3 {
		case 1:
			region = table
		case 2:
			if table+8 <= len(image) {
				region = at(binary.BigEndian.Uint64(image[table:]))
			}
		}
		if word := region + 8*int(p[1]); word+8 <= len(image) {
			change64(image[word:], func(e uint64) uint64 { return e ^ binary.BigEndian.Uint64(p[2:]) })
		}
	}
	return image
}

// fuzzRead reads an image as an import does. Of a large disk it only looks at the
// map.
func fuzzRead(t *testing.T, image []byte) error {
	file := imagetest.Of(image)
	d, err := qcow2.Open(file)
	if err != nil {
		return err
	}
	if size, ok := qcow2.PeekSize(image); !ok || size != d.Size {
		t.Fatalf("size is %d, and %d (%v) at a glance", d.Size, size, ok)
	}
	n, end := 0, int64(0)
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			return err
		}
		if e.Guest < end || e.Guest >= d.Size || !file.Has(e.File, e.Stored) {
			t.Fatalf("extent %v after %d, the disk has %d bytes", e, end, d.Size)
		}
		end = e.Guest + e.Length
		n++
	}
	if n > len(image) {
		t.Fatalf("%d extents in %d bytes", n, len(image))
	}
	checkFrom(t, d)
	if d.Size > 4<<20 {
		return nil
	}
	_, err = imagetest.Read(d, file)
	return err
}

// FuzzUnpack looks for packed clusters that make the decoders write, allocate or
// accept what they must not.
func FuzzUnpack(f *testing.F) {
	images := bases(f)
	packed := map[bool]diskimage.Map{false: open(f, imagetest.Of(images["zlib"])).Map, true: open(f, imagetest.Of(images["zstd"])).Map}
	for zstd, name := range map[bool]string{false: "zlib", true: "zstd"} {
		for e, err := range packed[zstd].Extents(0) {
			if err != nil {
				f.Fatal(err)
			}
			f.Add(zstd, images[name][e.File:][:e.Stored])
		}
	}
	f.Fuzz(func(t *testing.T, zstd bool, src []byte) {
		const size = 4 << 10
		dst := make([]byte, size+64)
		err := packed[zstd].Unpack(dst[:size], src)
		if err != nil && !errors.Is(err, diskimage.ErrCorrupt) {
			t.Fatal(err)
		}
		if !bytes.Equal(dst[size:], make([]byte, 64)) {
			t.Fatal("wrote behind the cluster")
		}
		again := make([]byte, size)
		if second := packed[zstd].Unpack(again, src); (err == nil) != (second == nil) || err == nil && !bytes.Equal(again, dst[:size]) {
			t.Fatalf("two answers: %v, and %v", err, second)
		}
	})
}
