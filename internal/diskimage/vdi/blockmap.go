package vdi

import (
	"encoding/binary"
	"iter"

	"vmimport/internal/diskimage"
)

const (
	entryBytes = 4
	// free is the first of the two entries of a block that is not in the file: what
	// was never written, and what was and is zeros. The former "may return any
	// random data"; it has to be zeros here as it is in both programs.
	free = 0xfffffffe
	// walkBytes is how much of the map is read at a time: that of 1 TiB of disk. The
	// map is one run, so that several reads at once gain little.
	walkBytes = 4 << 20
)

// blockMap is the map of an image: for each block of the disk the number of a block
// in the file.
type blockMap struct {
	file   *diskimage.File
	at     int64 // where the map is
	dataAt int64 // where block 0 of the file is
	block  int64 // bytes
	size   int64 // of the disk
	count  int64 // of its blocks
}

// Extents implements diskimage.Map.
func (m *blockMap) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		var run diskimage.Extent // not yielded yet
		for e, err := range m.each(from) {
			switch {
			case err != nil:
				yield(diskimage.Extent{}, err)
				return
			case run.Length > 0 && e.Guest == run.Guest+run.Length && e.File == run.End():
				run.Length += e.Length
				run.Stored += e.Stored
				continue
			case run.Length > 0 && !yield(run, nil):
				return
			}
			run = e
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// each yields the blocks that are in the file one by one.
func (m *blockMap) each(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		i := from / m.block
		var buf []byte
		for i < m.count {
			n := min(m.count-i, walkBytes/entryBytes)
			if buf == nil {
				buf = make([]byte, n*entryBytes)
			}
			piece := buf[:n*entryBytes]
			if err := m.file.ReadInto("the block map", m.at+i*entryBytes, piece); err != nil {
				yield(diskimage.Extent{}, err)
				return
			}
			for ; len(piece) > 0; i, piece = i+1, piece[entryBytes:] {
				entry := binary.LittleEndian.Uint32(piece)
				if entry >= free {
					continue
				}
				if e, err := m.extent(i, entry); !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// extent is block i of the disk, which is block n of the file. What of it is behind
// the end of the disk need not exist.
func (m *blockMap) extent(i int64, n uint32) (diskimage.Extent, error) {
	guest := i * m.block
	length := min(m.block, m.size-guest)
	off := m.dataAt + int64(n)*m.block
	if !m.file.Has(off, length) {
		return diskimage.Extent{}, diskimage.ErrTruncated.Saw("block %d has %d bytes at %d, the file ends at %d", i, length, off, m.file.Size())
	}
	return diskimage.Extent{Guest: guest, Length: length, File: off, Stored: length}, nil
}

// Unpack implements diskimage.Map.
func (*blockMap) Unpack([]byte, []byte) error {
	return diskimage.ErrCorrupt.Saw("packed data in a VDI")
}
