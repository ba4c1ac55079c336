package vhdx

import (
	"iter"

	"vmimport/internal/diskimage"
)

// The states of a block (section 2.5.1.1). Those up to stateUnmapped have no data;
// of them the specification allows a reader to return zeros.
const (
	stateUnmapped         = 3
	statePresent          = 6
	statePartiallyPresent = 7
)

// stateMask is the state with the reserved bits above it, which are zero; the bits
// above these are the place in the file in MiB (section 2.5.1).
const stateMask = mib - 1

// The table is read in parts: one at first, since whoever walks may look at a place
// only, and then ever more at a time.
const (
	partBytes = 1 << 20
	maxParts  = diskimage.MaxTableBytes / partBytes
)

// blockMap is the map of the disk: the block allocation table (section 2.5).
//
// Behind the entries of each chunk of blocks the table has an entry for a bitmap of
// their sectors, which only differencing images use. There is none behind the last
// chunk.
type blockMap struct {
	parameters
	file    *diskimage.File
	table   span    // of as many entries as the disk needs
	chunk   int64   // blocks
	regions [3]span // where no block is
}

func newBlockMap(f *diskimage.File, p parameters, bat, metadata, log span) (*blockMap, error) {
	m := &blockMap{
		parameters: p,
		file:       f,
		chunk:      (1 << 23) * p.sector / p.block, // a bitmap has 1 MiB
		regions:    [3]span{bat, metadata, log},
	}
	last := (p.size - 1) / p.block
	m.table = span{bat.offset, 8 * (m.index(last) + 1)}
	if m.table.length > bat.length {
		return nil, diskimage.ErrCorrupt.Saw("a block allocation table of %d bytes for a disk of %d", bat.length, p.size)
	}
	return m, nil
}

// index is the place in the table of a block's entry.
func (m *blockMap) index(block int64) int64 { return block + block/m.chunk }

// Extents implements diskimage.Map.
func (m *blockMap) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		if from >= m.size {
			return
		}
		block := from / m.block
		w := walk{m, block * m.block, m.chunk - block%m.chunk}
		var run diskimage.Extent
		for part, err := range m.parts(m.index(block)) {
			for err == nil && len(part) > 0 {
				var e diskimage.Extent
				e, part, err = w.next(part)
				switch {
				case e.Length == 0:
				case run.Length > 0 && run.Guest+run.Length == e.Guest && run.End() == e.File:
					run.Length += e.Length
					run.Stored += e.Stored
				case run.Length > 0 && !yield(run, nil):
					return
				default:
					run = e
				}
			}
			if err != nil {
				yield(diskimage.Extent{}, err)
				return
			}
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// walk is a place in the table.
type walk struct {
	*blockMap
	guest       int64 // offset on the disk of the next block
	untilBitmap int64 // entries of blocks
}

// next returns the extent of the next block with data that part has an entry of, and
// the rest of part. If there is none, the extent has no length.
func (w *walk) next(part []byte) (e diskimage.Extent, rest []byte, err error) {
	for ; len(part) > 0; part = part[8:] {
		entry := le.Uint64(part)
		if w.untilBitmap == 0 {
			// A writer that counts wrong has put a block here (section 2.5.1.2).
			if entry&stateMask != 0 {
				return e, nil, diskimage.ErrCorrupt.Saw("a sector bitmap before %d of the disk", w.guest)
			}
			w.untilBitmap = w.chunk
			continue
		}
		guest := w.guest
		w.guest += w.block
		w.untilBitmap--
		if entry&stateMask > stateUnmapped {
			e, err = w.extent(guest, entry)
			return e, part[8:], err
		}
	}
	return e, nil, nil
}

// extent returns where the block at guest is, whose entry says that it has data. Of
// the last block only the part on the disk has to be there.
func (m *blockMap) extent(guest int64, entry uint64) (diskimage.Extent, error) {
	place := span{int64(entry &^ stateMask), min(m.block, m.size-guest)}
	switch entry & stateMask {
	case statePresent:
	case statePartiallyPresent:
		return diskimage.Extent{}, diskimage.ErrDifferencing
	default:
		return diskimage.Extent{}, diskimage.ErrCorrupt.Saw("state %#x of the block at %d of the disk", entry&stateMask, guest)
	}
	if !m.file.Has(place.offset, place.length) {
		return diskimage.Extent{}, diskimage.ErrTruncated.Saw("a block has %d bytes at %d, the file ends at %d", place.length, uint64(place.offset), m.file.Size())
	}
	taken := place.offset < mib // the header section
	for _, r := range m.regions {
		taken = taken || place.overlaps(r)
	}
	if taken {
		return diskimage.Extent{}, diskimage.ErrCorrupt.Saw("a block at %d, where the image has its tables", place.offset)
	}
	return diskimage.Extent{Guest: guest, Length: place.length, File: place.offset, Stored: place.length}, nil
}

// parts yields the table from the entry at index on, whole entries at a time.
func (m *blockMap) parts(index int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		at := m.table.offset + 8*index
		for ahead := int64(1); at < m.table.end(); ahead = min(2*ahead, maxParts) {
			left := m.table.end() - at
			n := min(left, partBytes)
			offs := make([]int64, min(left/n, ahead))
			for i := range offs {
				offs[i] = at
				at += n
			}
			parts, err := m.file.ReadEach("the block allocation table", offs, n)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, part := range parts {
				if !yield(part, nil) {
					return
				}
			}
		}
	}
}

// Unpack implements diskimage.Map. No extent of a VHDX is packed.
func (m *blockMap) Unpack([]byte, []byte) error {
	return diskimage.ErrCorrupt.Saw("packed data in a VHDX")
}
