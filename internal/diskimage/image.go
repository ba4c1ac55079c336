package diskimage

import (
	"iter"
)

// Bounds of what is read of an image at a time. They hold whatever its header says.
const (
	// MaxUnitBytes is the most guest bytes of a compressed extent or piece. It is
	// the largest cluster of QCOW2; grains of VMDK are smaller.
	MaxUnitBytes = 2 << 20
	// MaxPackedBytes is the most bytes that such a unit takes in the file: what the
	// length field of QCOW2's largest cluster can say.
	MaxPackedBytes = 4<<20 + SectorBytes
	// MaxTableBytes bounds one read of tables, and with it what a reader keeps of
	// them. It is the map of a disk of 2 TiB in a VDI of 1 MiB blocks, twice.
	MaxTableBytes = 16 << 20
	// MaxDiskBytes is the largest disk of any format: the limit of VHDX.
	MaxDiskBytes = 64 << 40
)

// Disk is an opened disk image: what its header says, checked. Exactly one of Map
// and Parser is set.
type Disk struct {
	Format Format
	// Variant is the kind of the format in the words of its specification, such
	// as "dynamic", for people and for the record.
	Variant string
	// Size is what the guest sees, in bytes: more than zero, and a multiple of
	// SectorBytes.
	Size int64
	// Map tells where in the file each part of the disk is.
	Map Map
	// Parser is for an image that is read from its front to its end, and that
	// way alone. It returns a parser that goes on at a position which an earlier
	// one has told; the zero Position is the start.
	Parser func(Position) Parser
	// Warnings are about what does not hinder an import, for people.
	Warnings []string
}

// Extent is a run of the disk that the file holds. What no extent covers reads as
// zeros.
type Extent struct {
	Guest  int64 // offset on the disk
	Length int64 // bytes of the disk, more than zero
	File   int64 // offset in the file
	Stored int64 // bytes in the file; equal to Length unless Packed
	Packed bool  // compressed, see Map.Unpack; Length is at most MaxUnitBytes, Stored at most MaxPackedBytes
}

// End is the offset in the file behind the extent.
func (e Extent) End() int64 { return e.File + e.Stored }

// Map is the map of an image whose tables say where everything is. It is safe for
// concurrent use.
type Map interface {
	// Extents yields the extents that end behind the disk's offset from, by
	// rising Guest and without overlap on the disk; the first may begin before
	// from, and the last may end behind the disk. It reads tables as it goes, at
	// most MaxTableBytes of them at a time, and yields neighbours both on the disk
	// and in the file as one. Extents lie in the file. Two of them may share
	// bytes of it.
	//
	// An error is yielded last, with an Extent of no meaning: a fault of this
	// package if the image is to blame, else what the file's reader returned.
	Extents(from int64) iter.Seq2[Extent, error]

	// Unpack decompresses src, the stored bytes of a packed extent, and fills dst,
	// of the extent's length. src may go on behind the compressed data. Whatever
	// else src holds is an error of code image_corrupt.
	Unpack(dst, src []byte) error
}

// Position is a place in a file between two steps of a Parser. It survives JSON.
type Position struct {
	Offset int64  `json:"offset"`
	State  uint64 `json:"state"` // the parser's own
}

// Parser takes a forward-only image apart. It keeps no bytes of it: whoever drives
// it keeps those that it has not consumed.
type Parser interface {
	// Next looks at b, the bytes of the file from Position on, or as many of them
	// as have come.
	Next(b []byte) (Step, error)

	// End is called when the file is over and rest bytes of it, which are fewer
	// than Next has asked for, were not consumed. It fails if the image is
	// incomplete or if rest has no place in it.
	End(rest []byte) error

	// Position is where the next call of Next begins.
	Position() Position

	// Unpack is that of Map, and safe for concurrent use.
	Unpack(dst, src []byte) error
}

// Checked is a Parser whose packed pieces have checksums of their own, which Unpack
// looks at. UnpackUnchecked does not: for files that are known to be whole.
type Checked interface {
	Parser
	UnpackUnchecked(dst, src []byte) error
}

// Step is what a Parser found.
type Step struct {
	// Need, if not zero, is how many bytes Next has to see before it can tell
	// more. It is more than it saw, and at most MaxPackedBytes. Nothing was
	// consumed.
	Need int
	// Used is how many bytes were consumed. It may be more than Next saw: those
	// to come are skipped.
	Used int64
	// Piece is what they hold of the disk. Its Length may be 0.
	Piece Piece
}

// Piece is a run of the disk with its bytes. Pieces come by rising Guest and do
// not overlap; what none covers reads as zeros.
type Piece struct {
	Guest  int64
	Length int64  // bytes of the disk; at most MaxUnitBytes if Packed, else len(Data)
	Data   []byte // a part of what Next was given
	Packed bool
}

// Linear is the map of a disk that lies in the file as it is, from offset start on,
// length bytes long.
func Linear(start, length int64) Map { return linear{start, length} }

type linear struct{ start, length int64 }

func (l linear) Extents(from int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if from < l.length {
			yield(Extent{Length: l.length, File: l.start, Stored: l.length}, nil)
		}
	}
}

func (linear) Unpack([]byte, []byte) error { return ErrCorrupt.Saw("packed data in a linear image") }

// OpenRaw opens a file that is the disk itself.
func OpenRaw(f *File) (*Disk, error) {
	d := &Disk{Format: Raw, Variant: "raw", Size: VirtualSize(f.Size()), Map: Linear(0, f.Size())}
	return d, CheckSize(d.Size)
}
