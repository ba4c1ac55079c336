package vmdk

import (
	"bytes"
	"encoding/binary"

	"vmimport/internal/diskimage"
)

const (
	magic       = "KDMV"
	sectorBytes = diskimage.SectorBytes
	headerBytes = sectorBytes

	// Flags of the header. Of those that are not listed the lower 16 can be ignored
	// and the upper 16 cannot (open-vmdk, vmware_vmdk.h).
	flagNewlines   = 1 << 0  // the bytes at 73 tell whether line ends were changed
	flagZeroed     = 1 << 2  // the entry 1 of a grain table stands for zeros
	flagCompressed = 1 << 16 // grains are compressed
	flagMarkers    = 1 << 17 // whatever is in the file is preceded by a marker
	flagsRequired  = 0xffff0000

	compressionDeflate = 1

	minGrain, maxGrain = 8, 2048 // sectors; 128 is what is in use

	tableEntries = 512
	entryBytes   = 4
	tableBytes   = tableEntries * entryBytes
	tableSectors = tableBytes / sectorBytes

	// gdAtEnd is the place of the directory in the header of a file that was written
	// without going back. A copy of the header near the end has the real one.
	gdAtEnd = 1<<64 - 1

	// maxSector keeps offsets in bytes within 63 bits, with room to add to them.
	maxSector = 1 << 53

	maxDescriptorBytes = 64 << 10
)

// header is the SparseExtentHeader (Virtual Disk Format 1.1, "Hosted Sparse Extent
// Header"). Places and sizes are in sectors.
type header struct {
	flags       uint32
	capacity    uint64
	grain       uint64
	descAt      uint64
	descSize    uint64
	rgd         uint64 // the spare directory, which is never looked at
	gd          uint64
	overHead    uint64 // where the grains begin
	unclean     bool
	compression uint16
}

// parseHeader reads the header at the start of b and checks all that can be checked
// without the rest of the file.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerBytes {
		return header{}, diskimage.ErrTruncated.Saw("%d bytes, the header has %d", len(b), headerBytes)
	}
	le := binary.LittleEndian
	h := header{
		flags:       le.Uint32(b[8:]),
		capacity:    le.Uint64(b[12:]),
		grain:       le.Uint64(b[20:]),
		descAt:      le.Uint64(b[28:]),
		descSize:    le.Uint64(b[36:]),
		rgd:         le.Uint64(b[48:]),
		gd:          le.Uint64(b[56:]),
		overHead:    le.Uint64(b[64:]),
		unclean:     b[72] != 0,
		compression: le.Uint16(b[77:]),
	}
	version, entries := le.Uint32(b[4:]), le.Uint32(b[44:])
	switch {
	case !bytes.HasPrefix(b, []byte(magic)):
		return h, diskimage.ErrCorrupt.Saw("no header of a sparse extent")
	case version < 1 || version > 3:
		return h, diskimage.ErrUnsupported.Saw("version %d", version)
	case h.flags&flagNewlines != 0 && string(b[73:77]) != "\n \r\n":
		return h, diskimage.ErrCorrupt.Saw("the file was transferred as text, which changed its line ends")
	case entries != tableEntries:
		return h, diskimage.ErrUnsupported.Saw("grain tables of %d entries", entries)
	}
	if err := h.checkFlags(); err != nil {
		return h, err
	}
	return h, h.checkPlaces()
}

func (h header) checkFlags() error {
	unknown := h.flags & flagsRequired &^ (flagCompressed | flagMarkers)
	compressed, markers := h.flags&flagCompressed != 0, h.flags&flagMarkers != 0
	switch {
	case unknown != 0:
		return diskimage.ErrUnknownFeature.Saw("flags %#x", unknown)
	case compressed != markers:
		return diskimage.ErrUnsupported.Saw("compressed grains %t, markers %t", compressed, markers)
	case compressed && h.compression != compressionDeflate:
		return diskimage.ErrUnsupported.Saw("compression %d", h.compression)
	case !compressed && h.compression != 0:
		return diskimage.ErrCorrupt.Saw("compression %d of grains that are not compressed", h.compression)
	}
	return nil
}

func (h header) checkPlaces() error {
	switch {
	case h.grain < minGrain || h.grain > maxGrain || h.grain&(h.grain-1) != 0:
		return diskimage.ErrCorrupt.Saw("grains of %d sectors", h.grain)
	case h.descAt == 0 || h.descSize == 0:
		// Extents of a disk in several files have the header, and no descriptor.
		return diskimage.ErrSplit.Saw("no descriptor in the file")
	case h.descSize > maxDescriptorBytes/sectorBytes:
		return diskimage.ErrCorrupt.Saw("a descriptor of %d sectors", h.descSize)
	case h.descAt > FrontBytes/sectorBytes-h.descSize:
		return diskimage.ErrUnsupported.Saw("the descriptor is at sector %d", h.descAt)
	case h.gd == 0, h.gd > maxSector && !(h.gd == gdAtEnd && h.stream()):
		return diskimage.ErrCorrupt.Saw("the grain directory is at sector %d", h.gd)
	case h.stream() && (h.overHead < h.descAt+h.descSize || h.overHead > maxSector):
		return diskimage.ErrCorrupt.Saw("grains begin at sector %d", h.overHead)
	}
	return nil
}

// stream reports whether the image is stream-optimised.
func (h header) stream() bool { return h.flags&flagMarkers != 0 }

// tablesAtEnd reports whether the tables of a stream-optimised image are between and
// behind its grains, so that a footer and an end-of-stream marker close it. Some
// writers go back and put the place of the directory into the header (vmdktool).
func (h header) tablesAtEnd() bool { return h.gd >= h.overHead }

// descriptor returns where in the file the descriptor begins and ends, in bytes.
func (h header) descriptor() (from, to int64) {
	return int64(h.descAt) * sectorBytes, int64(h.descAt+h.descSize) * sectorBytes
}

// bytes is the size of the disk, or a number that CheckSize refuses.
func (h header) bytes() int64 { return int64(min(h.capacity, maxSector)) * sectorBytes }

// grainBytes is the bytes of the disk that an entry of a grain table stands for.
func (h header) grainBytes() int64 { return int64(h.grain) * sectorBytes }

// checkFooter reads the copy of the header that closes a stream, and begins at the
// offset at. It is the header's equal but for the places of the directories, and for
// the mark of an open image, which VirtualBox clears in the footer alone.
func (h header) checkFooter(b []byte, at int64) error {
	f, err := parseHeader(b)
	if err != nil {
		return err
	}
	if f.gd < h.overHead || f.gd >= uint64(at/sectorBytes) || h.gd != gdAtEnd && h.gd != f.gd {
		return diskimage.ErrCorrupt.Saw("the footer has the grain directory at sector %d", f.gd)
	}
	f.gd, f.rgd, f.unclean = h.gd, h.rgd, h.unclean
	if f != h {
		return diskimage.ErrCorrupt.Saw("the footer is not a copy of the header")
	}
	return nil
}
