package vhd

import (
	"bytes"
	"encoding/binary"
	"math"

	"vmimport/internal/diskimage"
)

// The disk types of a footer. The specification has 1, 5 and 6 as "reserved
// (deprecated)".
const (
	typeFixed        = 2
	typeDynamic      = 3
	typeDifferencing = 4
	typeMax          = 6
)

const (
	footerBytes  = 512
	footerCookie = "conectix"
	footerSum    = 64 // where the checksum is

	// version is the major version of footer and dynamic header: "incremented only
	// when the file format is modified in such a way that it is no longer
	// compatible".
	version = 1

	// maxGeometry is the size of the largest geometry, 65535 cylinders of 16 heads
	// of 255 sectors. Larger disks have it too, so that it says nothing of them.
	maxGeometry = 65535 * 16 * 255 * diskimage.SectorBytes
)

// footer is what is used of the structure that ends an image, and begins a dynamic
// one ("Hard Disk Footer Format").
type footer struct {
	identity
	geometry   int64 // bytes that cylinders, heads and sectors make
	creator    [4]byte
	savedState bool
}

// identity is what the copies of a footer have to agree in. In the rest writers do
// differ: some update time stamp and state at one place only.
type identity struct {
	kind       uint32
	size       int64
	dataOffset uint64
	uuid       [16]byte
}

// parseFooter checks and reads the footer in b, its 512 bytes. where is for people.
func parseFooter(where string, b []byte) (footer, error) {
	switch {
	case !bytes.HasPrefix(b, []byte(footerCookie)):
		return footer{}, diskimage.ErrCorrupt.Saw("no footer at the %s of the file", where)
	case !sumMatches(b, footerSum):
		return footer{}, diskimage.ErrCorrupt.Saw("wrong checksum of the footer at the %s of the file", where)
	case binary.BigEndian.Uint16(b[12:]) != version:
		return footer{}, diskimage.ErrUnsupported.Saw("version %d", binary.BigEndian.Uint16(b[12:]))
	}
	geometry := int64(binary.BigEndian.Uint16(b[56:])) * int64(b[58]) * int64(b[59])
	return footer{
		identity: identity{
			kind: binary.BigEndian.Uint32(b[60:]),
			// The current size, not the original size at 40: disks grow.
			size:       int64(min(binary.BigEndian.Uint64(b[48:]), math.MaxInt64)),
			dataOffset: binary.BigEndian.Uint64(b[16:]),
			uuid:       [16]byte(b[68:84]),
		},
		geometry:   geometry * diskimage.SectorBytes,
		creator:    [4]byte(b[28:32]),
		savedState: b[84] != 0,
	}, nil
}

// check refuses what cannot be read whatever else is in the image.
func (t footer) check() error {
	switch {
	case t.kind == typeDifferencing:
		return diskimage.ErrDifferencing.Saw("disk type %d", t.kind)
	case t.kind > typeMax:
		return diskimage.ErrCorrupt.Saw("disk type %d", t.kind)
	case t.kind != typeFixed && t.kind != typeDynamic:
		return diskimage.ErrUnsupported.Saw("disk type %d", t.kind)
	case t.size%diskimage.SectorBytes != 0:
		return diskimage.ErrCorrupt.Saw("a size of %d bytes, which are no whole sectors", t.size)
	}
	return diskimage.CheckSize(t.size)
}

// warnings are about what an import loses, or sees otherwise than other programs.
//
// Virtual PC cut a disk to its geometry, which is a little smaller than the current
// size unless the writer rounded that; for images of Virtual PC and of itself, QEMU
// still does. Hyper-V, Azure and VirtualBox go by the current size. So do we: it
// loses nothing.
func (t footer) warnings() []string {
	var w []string
	byGeometry := string(t.creator[:]) == "vpc " || string(t.creator[:]) == "qemu"
	if byGeometry && 0 < t.geometry && t.geometry < min(t.size, maxGeometry) {
		w = append(w, "The disk's size is larger than its geometry. Virtual PC and QEMU go by the geometry and leave out the end; here it is a part of the disk.")
	}
	if t.savedState {
		w = append(w, "The virtual machine was suspended when the image was made. Its memory is not in the image, so its file systems may need a repair.")
	}
	return w
}

// sumMatches reports whether b holds at sum the ones' complement of the sum of all
// its other bytes.
func sumMatches(b []byte, sum int) bool {
	var n uint32
	for _, c := range b[:sum] {
		n += uint32(c)
	}
	for _, c := range b[sum+4:] {
		n += uint32(c)
	}
	return binary.BigEndian.Uint32(b[sum:]) == ^n
}
