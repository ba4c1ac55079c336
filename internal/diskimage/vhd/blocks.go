package vhd

import (
	"encoding/binary"
	"iter"

	"vmimport/internal/diskimage"
)

const (
	entryBytes = 4
	// unused is the entry of a block that is not in the file, and reads as zeros.
	unused = 0xffffffff
	// walkBytes is how much of the table is read at a time: 2 TiB of disk in blocks
	// of 2 MiB. The table is one run, so that several reads at once gain little.
	walkBytes = 4 << 20
)

// blocks is the map of a dynamic disk ("Block Allocation Table and Data Blocks").
//
// A block in the file is a bitmap with a bit for each sector, and behind it the
// data. The bitmap is not looked at, as in QEMU: of a disk without a parent it says
// which sectors were written, and writers clear a block before they write into it,
// so that the others are zeros already. Reading it would cost a request to the
// store for each 2 MiB.
type blocks struct {
	file          *diskimage.File
	header, table span
	size          int64 // of the disk
	count         int64 // of its blocks
	block, bitmap int64 // bytes of a block's data, and of what is before them
}

// span is a part of the file.
type span struct{ start, end int64 }

func (s span) overlaps(o span) bool { return s.start < o.end && o.start < s.end }

// place returns the n bytes at off, which have to lie between the two footers.
func (m *blocks) place(what string, off uint64, n int64) (span, error) {
	s := span{int64(off), int64(off) + n}
	switch {
	case !m.file.Has(s.start, n):
		return span{}, diskimage.ErrTruncated.Saw("%s has %d bytes at %d, the file ends at %d", what, n, off, m.file.Size())
	case s.start < footerBytes || s.end > m.file.Size()-footerBytes:
		return span{}, diskimage.ErrCorrupt.Saw("%s has %d bytes at %d, where a footer is", what, n, off)
	}
	return s, nil
}

// Extents implements diskimage.Map. There is nothing to join: a bitmap lies between
// the data of any two blocks.
func (m *blocks) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		i := from / m.block
		var buf []byte
		for i < m.count {
			n := min(m.count-i, walkBytes/entryBytes)
			if buf == nil {
				buf = make([]byte, n*entryBytes)
			}
			piece := buf[:n*entryBytes]
			if err := m.file.ReadInto("the block allocation table", m.table.start+i*entryBytes, piece); err != nil {
				yield(diskimage.Extent{}, err)
				return
			}
			for ; len(piece) > 0; i, piece = i+1, piece[entryBytes:] {
				entry := binary.BigEndian.Uint32(piece)
				if entry == unused {
					continue
				}
				if e, err := m.extent(i, entry); !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// extent is block i of the disk, which is at a sector of the file. What of it is
// behind the end of the disk need not exist.
//
// It may lie anywhere between the footers but on the structures there: a program
// that enlarges a disk may move the table behind the blocks.
func (m *blocks) extent(i int64, sector uint32) (diskimage.Extent, error) {
	guest := i * m.block
	n := min(m.block, m.size-guest)
	at := int64(sector) * diskimage.SectorBytes
	s, err := m.place("a block", uint64(at), m.bitmap+n)
	if err != nil {
		return diskimage.Extent{}, err
	}
	if s.overlaps(m.header) || s.overlaps(m.table) {
		return diskimage.Extent{}, diskimage.ErrCorrupt.Saw("block %d at %d, where the image's tables are", i, at)
	}
	return diskimage.Extent{Guest: guest, Length: n, File: at + m.bitmap, Stored: n}, nil
}

// Unpack implements diskimage.Map.
func (*blocks) Unpack([]byte, []byte) error {
	return diskimage.ErrCorrupt.Saw("packed data in a VHD")
}
