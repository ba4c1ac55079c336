package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"vmimport/internal/diskimage"
)

const (
	magic = "QFI\xfb"

	// headBytes bounds what is read of the first cluster, which holds the header
	// and its extensions and may have 2 MiB.
	headBytes       = 64 << 10
	headerBytes     = 72  // of version 2
	longHeaderBytes = 104 // at least, since version 3

	minClusterBits         = 9
	maxClusterBits         = 21 // QEMU's limit, too
	minExtendedClusterBits = 14 // a cluster has 32 subclusters of at least a sector

	// maxClaim is the largest size that is taken for what it says; it is far
	// beyond what can be imported, and can be rounded up to a sector.
	maxClaim = math.MaxInt64 &^ (diskimage.SectorBytes - 1)
)

// Incompatible features: an image must not be read by who does not know them.
const (
	featureDirty       = 1 << iota // reference counts are stale, which matters to writers
	featureCorrupt                 //
	featureDataFile                // guest data lies in another file
	featureCompression             // compression is not zlib
	featureExtendedL2              // L2 entries have a bitmap of subclusters

	featuresKnown = 1<<iota - 1
)

// Types of header extensions that matter. All others can be ignored, as can the
// feature bits that are not incompatible.
const (
	extensionEnd        = 0
	extensionDataFile   = 0x44415441
	extensionEncryption = 0x0537be77
)

// header is what the first cluster of an image says, checked.
type header struct {
	version    uint32
	size       int64 // of the disk as claimed, not rounded to sectors
	cluster    int64 // bytes of a cluster
	extendedL2 bool
	zstd       bool // compressed clusters are Zstandard, not deflate
	l1Offset   int64
	snapshots  uint32
}

// PeekSize returns the size of the disk in bytes that a QCOW2 file claims to hold,
// from the first bytes of it, of which 72 are enough: the next multiple of a
// sector. It is not checked. PeekSize reports false if head does not begin like a
// QCOW2 file.
func PeekSize(head []byte) (int64, bool) {
	if len(head) < headerBytes || !bytes.HasPrefix(head, []byte(magic)) {
		return 0, false
	}
	if v := binary.BigEndian.Uint32(head[4:]); v != 2 && v != 3 {
		return 0, false
	}
	return diskimage.VirtualSize(claimedSize(head)), true
}

func claimedSize(head []byte) int64 {
	return int64(min(binary.BigEndian.Uint64(head[24:]), maxClaim))
}

// variant describes the image for people.
func (h header) variant() string {
	v := fmt.Sprintf("version %d, zlib", h.version)
	if h.zstd {
		v = fmt.Sprintf("version %d, zstd", h.version)
	}
	if h.extendedL2 {
		v += ", extended L2"
	}
	return v
}

// entryBytes is the length of an L2 entry.
func (h header) entryBytes() int64 {
	if h.extendedL2 {
		return 16
	}
	return 8
}

// tableSpan is how much of the disk an L2 table maps, which has one cluster.
func (h header) tableSpan() int64 { return h.cluster / h.entryBytes() * h.cluster }

// l1Entries is how many entries of the L1 table map the disk. There may be more of
// them: for the state of a virtual machine, or for a larger disk.
func (h header) l1Entries() int64 { return (h.size-1)/h.tableSpan() + 1 }

// readHeader reads the header and its extensions and checks all of it. What
// would have a reader open something else is looked for first.
func readHeader(f *diskimage.File) (header, error) {
	head, err := f.Read("the header", 0, max(1<<minClusterBits, min(f.Size(), headBytes)))
	if err != nil {
		return header{}, err
	}
	h := header{
		version:   binary.BigEndian.Uint32(head[4:]),
		size:      claimedSize(head),
		snapshots: binary.BigEndian.Uint32(head[60:]),
	}
	switch {
	case !bytes.HasPrefix(head, []byte(magic)):
		return header{}, diskimage.ErrCorrupt.Saw("no signature of QCOW2")
	case h.version != 2 && h.version != 3:
		return header{}, diskimage.ErrUnsupported.Saw("QCOW version %d", h.version)
	case binary.BigEndian.Uint64(head[8:]) != 0:
		return header{}, diskimage.ErrBackingFile.Saw("a name at offset %d", binary.BigEndian.Uint64(head[8:]))
	case binary.BigEndian.Uint32(head[32:]) != 0:
		return header{}, diskimage.ErrEncrypted.Saw("method %d", binary.BigEndian.Uint32(head[32:]))
	}
	length := uint32(headerBytes)
	if h.version == 3 {
		length = binary.BigEndian.Uint32(head[100:])
		if err := h.readFeatures(head, length); err != nil {
			return header{}, err
		}
	}
	if err := h.readLayout(f, head); err != nil {
		return header{}, err
	}
	if length < headerBytes || int64(length) > min(h.cluster, headBytes) || length%8 != 0 {
		return header{}, diskimage.ErrCorrupt.Saw("a header of %d bytes", length)
	}
	return h, h.checkExtensions(head[:min(int64(len(head)), h.cluster)], length)
}

// readFeatures reads the fields of version 3.
func (h *header) readFeatures(head []byte, length uint32) error {
	features := binary.BigEndian.Uint64(head[72:])
	switch {
	case length < longHeaderBytes:
		return diskimage.ErrCorrupt.Saw("a header of %d bytes", length)
	case features&featureDataFile != 0:
		return diskimage.ErrExternalData.Saw("incompatible features %#x", features)
	case features&^featuresKnown != 0:
		return diskimage.ErrUnknownFeature.Saw("incompatible features %#x", features&^featuresKnown)
	case features&featureCorrupt != 0:
		return diskimage.ErrMarkedCorrupt.Saw("incompatible features %#x", features)
	}
	h.extendedL2 = features&featureExtendedL2 != 0
	compression := byte(0)
	if length > longHeaderBytes {
		compression = head[longHeaderBytes]
	}
	switch {
	case features&featureCompression != 0 != (compression != 0):
		return diskimage.ErrCorrupt.Saw("compression type %d with incompatible features %#x", compression, features)
	case compression > 1:
		return diskimage.ErrUnknownFeature.Saw("compression type %d", compression)
	}
	h.zstd = compression == 1
	if order := binary.BigEndian.Uint32(head[96:]); order > 6 {
		return diskimage.ErrCorrupt.Saw("a reference count order of %d", order)
	}
	return nil
}

// readLayout reads what says where things are.
func (h *header) readLayout(f *diskimage.File, head []byte) error {
	bits := binary.BigEndian.Uint32(head[20:])
	switch {
	case bits < minClusterBits || h.extendedL2 && bits < minExtendedClusterBits:
		return diskimage.ErrCorrupt.Saw("clusters of 2^%d bytes", bits)
	case bits > maxClusterBits:
		return diskimage.ErrUnsupported.Saw("clusters of 2^%d bytes", bits)
	}
	h.cluster = 1 << bits
	if err := diskimage.CheckSize(h.size); err != nil {
		return err
	}

	need, have := h.l1Entries(), int64(binary.BigEndian.Uint32(head[36:]))
	offset := binary.BigEndian.Uint64(head[40:])
	h.l1Offset = int64(offset & offsetMask)
	switch {
	case have < need:
		return diskimage.ErrCorrupt.Saw("an L1 table of %d entries, the disk needs %d", have, need)
	case need*8 > diskimage.MaxTableBytes:
		// QEMU allows twice as much. Only a disk of more than 64 GiB in clusters of
		// 512 bytes, or of more than 4 TiB in those of 4 KiB, gets here.
		return diskimage.ErrUnsupported.Saw("an L1 table of %d bytes", need*8)
	case offset == 0 || offset&^offsetMask != 0 || h.l1Offset%h.cluster != 0:
		return diskimage.ErrCorrupt.Saw("an L1 table at %d", offset)
	case !f.Has(h.l1Offset, need*8):
		return diskimage.ErrTruncated.Saw("the L1 table has %d bytes at %d, the file ends at %d", need*8, h.l1Offset, f.Size())
	}
	return nil
}

// checkExtensions looks through the header extensions, which begin at offset from
// of head, the first cluster or as much as was read of it, and refuses those that
// keep the disk from being read.
func (h header) checkExtensions(head []byte, from uint32) error {
	for rest := head[from:]; len(rest) >= 8; {
		length := int64(binary.BigEndian.Uint32(rest[4:]))
		switch binary.BigEndian.Uint32(rest) {
		case extensionEnd:
			return nil
		case extensionDataFile:
			return diskimage.ErrExternalData.Saw("a header extension names one")
		case extensionEncryption:
			return diskimage.ErrEncrypted.Saw("a header extension of encryption")
		}
		padded := 8 + (length+7)&^7
		switch {
		case padded <= int64(len(rest)):
			rest = rest[padded:]
		case int64(len(head)) < h.cluster:
			return diskimage.ErrUnsupported.Saw("header extensions of more than %d bytes", headBytes)
		default:
			return diskimage.ErrCorrupt.Saw("a header extension of %d bytes", length)
		}
	}
	return nil
}
