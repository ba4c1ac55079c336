package vmdk

import (
	"bytes"
	"encoding/binary"
	"iter"
	"slices"
	"sync"

	"vmimport/internal/diskimage"
)

const (
	// minBatch and maxBatch are how many grain tables are read at a time: few for
	// who looks at one place, 8 MiB of them for who goes on.
	minBatch = 128
	maxBatch = 4096
	// maxRun is how many of them that lie in a row are one read.
	maxRun = 512
	// maxReads is how many reads are under way, since each may be a request to an
	// object store.
	maxReads = 16
)

// grains is the map of a sparse image. Its directory has the sector of a table for
// each 512 grains, or 0, and a table that of each grain (Virtual Disk Format 1.1,
// "Hosted Sparse Extent Metadata").
type grains struct {
	file   *diskimage.File
	dir    []uint32
	size   int64 // of the disk
	grain  int64 // bytes
	first  uint32
	zeroed bool
}

// openGrains reads the directory. Its spare copy is not looked at: a reader that
// repairs may find another disk in it.
func openGrains(f *diskimage.File, h header, size int64) (*grains, error) {
	m := &grains{file: f, size: size, grain: h.grainBytes(), first: uint32(h.descAt + h.descSize), zeroed: h.flags&flagZeroed != 0}
	b, err := f.Read("the grain directory", int64(h.gd)*sectorBytes, tables(size, m.grain)*entryBytes)
	if err != nil {
		return nil, err
	}
	m.dir = make([]uint32, len(b)/entryBytes)
	for i := range m.dir {
		m.dir[i] = binary.LittleEndian.Uint32(b[i*entryBytes:])
		if at := int64(m.dir[i]) * sectorBytes; at != 0 && !f.Has(at, tableBytes) {
			return nil, diskimage.ErrTruncated.Saw("grain table %d is at %d, the file ends at %d", i, at, f.Size())
		}
	}
	return m, m.checkDirectory()
}

// tables is how many grain tables a disk of size bytes has.
func tables(size, grain int64) int64 {
	each := grain * tableEntries
	return (size + each - 1) / each
}

// checkDirectory fails if tables overlap. With one table in all entries, a file of a
// few MiB would be hours of work.
func (m *grains) checkDirectory() error {
	sorted := m.dir
	if !slices.IsSorted(sorted) {
		sorted = slices.Sorted(slices.Values(m.dir))
	}
	last := uint64(0) // where the last one ended
	for _, at := range sorted {
		switch {
		case at == 0:
			continue
		case at < m.first:
			return diskimage.ErrCorrupt.Saw("a grain table at sector %d, within the descriptor", at)
		case uint64(at) < last:
			return diskimage.ErrCorrupt.Saw("two grain tables share sector %d", at)
		}
		last = uint64(at) + tableSectors
	}
	return nil
}

// Extents implements diskimage.Map.
func (m *grains) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		var run diskimage.Extent // grows until what follows is no neighbour of it
		for e, err := range m.each(from) {
			if err == nil && e.Guest == run.Guest+run.Length && e.File == run.File+run.Length && run.Length > 0 {
				run.Length += e.Length
				run.Stored = run.Length
				continue
			}
			if run.Length > 0 && !yield(run, nil) {
				return
			}
			if err != nil {
				yield(diskimage.Extent{}, err)
				return
			}
			run = e
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// each yields the grains that end behind from, one by one.
func (m *grains) each(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		var batch []int // entries of the directory that have a table
		var buf []byte  // their tables
		next, want := int(max(0, from)/(m.grain*tableEntries)), minBatch
		for next < len(m.dir) {
			batch = batch[:0]
			for ; next < len(m.dir) && len(batch) < want; next++ {
				if m.dir[next] != 0 {
					batch = append(batch, next)
				}
			}
			buf = slices.Grow(buf[:0], len(batch)*tableBytes)[:len(batch)*tableBytes]
			if err := m.read(batch, buf); err != nil {
				yield(diskimage.Extent{}, err)
				return
			}
			for i, entry := range batch {
				if !m.table(entry, buf[i*tableBytes:][:tableBytes], from, yield) {
					return
				}
			}
			want = min(2*want, maxBatch)
		}
	}
}

// read fills buf with the tables of the directory's entries in batch. Those in a row
// in the file, which is how all programs write them, are read as one.
func (m *grains) read(batch []int, buf []byte) error {
	var runs [][2]int
	for i := range batch {
		if last := len(runs) - 1; last >= 0 && i-runs[last][0] < maxRun &&
			uint64(m.dir[batch[i]]) == uint64(m.dir[batch[i-1]])+tableSectors {
			runs[last][1] = i + 1
		} else {
			runs = append(runs, [2]int{i, i + 1})
		}
	}
	errs := make([]error, len(runs))
	free := make(chan struct{}, maxReads)
	var wg sync.WaitGroup
	for i, run := range runs {
		free <- struct{}{}
		wg.Go(func() {
			at := int64(m.dir[batch[run[0]]]) * sectorBytes
			errs[i] = m.file.ReadInto("grain tables", at, buf[run[0]*tableBytes:run[1]*tableBytes])
			<-free
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err // the first, so that the same image always gets the same answer
		}
	}
	return nil
}

// noGrains is what most tables of a large disk are, and quick to tell.
var noGrains [tableBytes]byte

// table yields the grains of one table, and reports whether to go on.
func (m *grains) table(entry int, table []byte, from int64, yield func(diskimage.Extent, error) bool) bool {
	if bytes.Equal(table, noGrains[:]) {
		return true
	}
	guest := int64(entry) * tableEntries * m.grain
	for ; len(table) > 0 && guest < m.size; table, guest = table[entryBytes:], guest+m.grain {
		sector := binary.LittleEndian.Uint32(table)
		if sector == 0 || sector == 1 && m.zeroed || guest+m.grain <= from {
			continue
		}
		// The last grain may be cut short by the end of the disk.
		n := min(m.grain, m.size-guest)
		e := diskimage.Extent{Guest: guest, Length: n, File: int64(sector) * sectorBytes, Stored: n}
		if err := m.check(e); err != nil {
			yield(diskimage.Extent{}, err)
			return false
		}
		if !yield(e, nil) {
			return false
		}
	}
	return true
}

func (m *grains) check(e diskimage.Extent) error {
	switch {
	case e.File < int64(m.first)*sectorBytes:
		return diskimage.ErrCorrupt.Saw("the grain at %d of the disk is at %d, within the descriptor", e.Guest, e.File)
	case !m.file.Has(e.File, e.Stored):
		return diskimage.ErrTruncated.Saw("the grain at %d of the disk is at %d, the file ends at %d", e.Guest, e.File, m.file.Size())
	}
	return nil
}

// Unpack implements diskimage.Map. A sparse image has no packed extents.
func (m *grains) Unpack([]byte, []byte) error {
	return diskimage.ErrCorrupt.Saw("packed data in a sparse image")
}
