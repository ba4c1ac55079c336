// Package vdi reads VirtualBox disk images of version 1.1, both those that grow and
// those of a fixed size.
//
// The format has no specification but its programs: VirtualBox (VDICore.h, VDI.cpp)
// and QEMU (block/vdi.c). Images that depend on others are refused, and so is what
// these two do not agree about.
package vdi

import (
	"bytes"
	"encoding/binary"
	"math"

	"vmimport/internal/diskimage"
)

const (
	readBytes = 512 // of the file's start; the header ends before

	signature   = "\x7f\x10\xda\xbe"
	signatureAt = 64
	version     = 1<<16 | 1

	// headerAt and minHeaderBytes are of the part behind signature and version. It
	// tells its own length. The larger one that VirtualBox writes has a geometry at
	// its end.
	headerAt       = 72
	minHeaderBytes = 384

	// Blocks are 1 MiB unless somebody took pains. What VirtualBox opens has 128 KiB
	// to 128 MiB.
	minBlockBytes = 128 << 10
	maxBlockBytes = 128 << 20
)

// The types of an image.
const (
	typeNormal       = 1
	typeFixed        = 2
	typeUndo         = 3 // was never more than a number
	typeDifferencing = 4
)

// header is what is used of the file's first bytes.
type header struct {
	version     uint32
	length      int64 // of the header itself, from headerAt on
	kind        uint32
	mapAt       int64
	dataAt      int64
	sectorBytes int64
	size        int64 // of the disk
	block       int64 // bytes
	extra       int64 // bytes before each block that are not the disk's
	blocks      int64 // entries of the map
	allocated   int64 // blocks in the file
	dependent   bool  // names another image, or a state of it
}

// parse reads the header in b, the file's first readBytes bytes. It fails only if
// there is none.
func parse(b []byte) (header, error) {
	if !bytes.HasPrefix(b[signatureAt:], []byte(signature)) {
		return header{}, diskimage.ErrCorrupt.Saw("no signature at offset %d", signatureAt)
	}
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(b[at:])) }
	return header{
		version:     uint32(u32(68)),
		length:      u32(headerAt),
		kind:        uint32(u32(76)),
		mapAt:       u32(340),
		dataAt:      u32(344),
		sectorBytes: u32(360),
		size:        int64(min(binary.LittleEndian.Uint64(b[368:]), math.MaxInt64)),
		block:       u32(376),
		extra:       u32(380),
		blocks:      u32(384),
		allocated:   u32(388),
		dependent:   [32]byte(b[424:456]) != [32]byte{}, // the UUIDs of link and parent
	}, nil
}

// PeekSize returns the size of the disk in bytes if head, the first bytes of an
// image, tells it: that does from 512 bytes on. It is a hint, and Open has the last
// word.
func PeekSize(head []byte) (int64, bool) {
	if len(head) < readBytes {
		return 0, false
	}
	h, err := parse(head)
	if err != nil || h.checkKind() != nil || diskimage.CheckSize(h.size) != nil {
		return 0, false
	}
	return diskimage.VirtualSize(h.size), true
}

// Open reads the header of an image. It fails with an error of package diskimage if
// the image breaks a rule or is of a kind that cannot be imported, and with what the
// file's reader returned if that failed.
//
// A disk that is no multiple of a sector is rounded up to one, as by QEMU: nothing
// is lost. VirtualBox, some versions of which wrote such images, rounds down.
func Open(f *diskimage.File) (*diskimage.Disk, error) {
	b, err := f.Read("the header", 0, readBytes)
	if err != nil {
		return nil, err
	}
	h, err := parse(b)
	if err != nil {
		return nil, err
	}
	for _, check := range []func() error{h.checkKind, h.checkBlocks, h.checkPlaces} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	size := diskimage.VirtualSize(h.size)
	m := &blockMap{file: f, at: h.mapAt, dataAt: h.dataAt, block: h.block, size: size, count: (size + h.block - 1) / h.block}
	switch {
	case !f.Has(m.at, m.count*entryBytes):
		return nil, diskimage.ErrTruncated.Saw("the block map has %d bytes at %d, the file ends at %d", m.count*entryBytes, m.at, f.Size())
	case !f.Has(h.dataAt, 0):
		return nil, diskimage.ErrTruncated.Saw("blocks begin at %d, the file ends at %d", h.dataAt, f.Size())
	}
	d := &diskimage.Disk{Format: diskimage.VDI, Variant: "dynamic", Size: size, Map: m}
	if h.kind == typeFixed {
		d.Variant = "fixed"
	}
	// A crash between the write of a block and that of the header leaves such a file,
	// and both programs go on with it.
	if end := h.dataAt + h.allocated*h.block; f.Size() > end {
		d.Warnings = append(d.Warnings, "The file is longer than its header says. It may not have been closed properly; what no block of the disk uses is left out.")
	}
	return d, nil
}

// checkKind refuses what is not a whole disk in a known version of the format.
func (h header) checkKind() error {
	switch {
	case h.version != version:
		return diskimage.ErrUnsupported.Saw("version %d.%d", h.version>>16, h.version&0xffff)
	case h.kind == typeDifferencing:
		return diskimage.ErrDifferencing.Saw("image type %d", h.kind)
	case h.kind == typeUndo:
		return diskimage.ErrUnsupported.Saw("image type %d", h.kind)
	case h.kind != typeNormal && h.kind != typeFixed:
		return diskimage.ErrCorrupt.Saw("image type %d", h.kind)
	case h.dependent:
		return diskimage.ErrDifferencing.Saw("the UUID of a parent image")
	}
	return nil
}

// checkBlocks is about sizes and counts.
func (h header) checkBlocks() error {
	if err := diskimage.CheckSize(h.size); err != nil {
		return err
	}
	switch {
	case h.sectorBytes != diskimage.SectorBytes:
		return diskimage.ErrUnsupported.Saw("sectors of %d bytes", h.sectorBytes)
	case h.extra != 0:
		return diskimage.ErrUnsupported.Saw("%d bytes before each block", h.extra)
	case h.block < minBlockBytes || h.block > maxBlockBytes || h.block&(h.block-1) != 0:
		return diskimage.ErrCorrupt.Saw("blocks of %d bytes", h.block)
	case h.blocks*h.block < h.size:
		return diskimage.ErrCorrupt.Saw("%d blocks of %d bytes for a disk of %d", h.blocks, h.block, h.size)
	case h.allocated > h.blocks:
		return diskimage.ErrCorrupt.Saw("%d of %d blocks allocated", h.allocated, h.blocks)
	}
	return nil
}

// checkPlaces wants header, map and data behind each other, so that blocks, which
// lie at the data offset and behind, cannot be on anything else.
func (h header) checkPlaces() error {
	switch {
	case h.length < minHeaderBytes:
		return diskimage.ErrCorrupt.Saw("a header of %d bytes", h.length)
	case h.mapAt < headerAt+h.length:
		return diskimage.ErrCorrupt.Saw("the block map begins at %d, the header ends at %d", h.mapAt, headerAt+h.length)
	case h.dataAt < h.mapAt+h.blocks*entryBytes:
		return diskimage.ErrCorrupt.Saw("data begins at %d, the block map ends at %d", h.dataAt, h.mapAt+h.blocks*entryBytes)
	case h.mapAt%diskimage.SectorBytes != 0 || h.dataAt%diskimage.SectorBytes != 0:
		return diskimage.ErrUnsupported.Saw("the block map at %d and data at %d, which are no borders of sectors", h.mapAt, h.dataAt)
	}
	return nil
}
