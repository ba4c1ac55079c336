package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"sync"

	"vmimport/internal/diskimage"
)

// grains is the map of a sparse image. Its directory has the sector of a table for
// each 512 grains, or 0, and a table that of each grain (Virtual Disk Format 1.1,
// "Hosted Sparse Extent Metadata").
type grains struct {
	file   *diskimage.File
	size   int64 // of the disk
	grain  int64 // bytes
	gd     int64 // where the directory is
	first  uint32
	zeroed bool

	mu  sync.Mutex
	dir directory // nil until it was read
}

// directory is a grain directory as it is in the file.
type directory []byte

func (d directory) len() int { return len(d) / entryBytes }

// sector is where the table of entry i is, or 0.
func (d directory) sector(i int) uint32 { return binary.LittleEndian.Uint32(d[i*entryBytes:]) }

// openGrains looks whether the directory can be there, and leaves it to who wants an
// extent to read it.
func openGrains(f *diskimage.File, h header, size int64) (*grains, error) {
	m := &grains{file: f, size: size, grain: h.grainBytes(), gd: int64(h.gd) * sectorBytes,
		first: uint32(h.descAt + h.descSize), zeroed: h.flags&flagZeroed != 0}
	switch n := m.directoryBytes(); {
	case !f.Has(m.gd, n):
		return nil, diskimage.ErrTruncated.Saw("the grain directory has %d bytes at %d, the file ends at %d", n, m.gd, f.Size())
	case n > diskimage.MaxTableBytes:
		return nil, diskimage.ErrUnsupported.Saw("a grain directory of %d bytes", n)
	}
	return m, nil
}

func (m *grains) directoryBytes() int64 { return tables(m.size, m.grain) * entryBytes }

// directory returns the directory, whose tables lie in the file and do not overlap.
// Its spare copy is not looked at: a reader that repairs may find another disk in it.
func (m *grains) directory() (directory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dir != nil {
		return m.dir, nil
	}
	b, err := m.file.Read("the grain directory", m.gd, m.directoryBytes())
	if err != nil {
		return nil, err
	}
	if err := m.check(b); err != nil {
		return nil, err
	}
	m.dir = b
	return m.dir, nil
}

// tables is how many grain tables a disk of size bytes has.
func tables(size, grain int64) int64 {
	each := grain * tableEntries
	return (size + each - 1) / each
}

// check fails if a table is not in the file, or if tables overlap. With one table in
// all entries, a file of a few MiB would be hours of work.
func (m *grains) check(dir directory) error {
	rising, last := true, uint32(0)
	for i := range dir.len() {
		sector := dir.sector(i)
		at := int64(sector) * sectorBytes
		switch {
		case sector == 0:
			continue
		case !m.file.Has(at, tableBytes):
			return diskimage.ErrTruncated.Saw("grain table %d is at %d, the file ends at %d", i, at, m.file.Size())
		case sector < m.first:
			return diskimage.ErrCorrupt.Saw("a grain table at sector %d, within the descriptor", sector)
		}
		rising = rising && (last == 0 || uint64(sector) >= uint64(last)+tableSectors)
		last = sector
	}
	if rising { // as all programs write them
		return nil
	}
	sorted := make([]uint32, 0, dir.len())
	for i := range dir.len() {
		if sector := dir.sector(i); sector != 0 {
			sorted = append(sorted, sector)
		}
	}
	slices.Sort(sorted)
	for i := 1; i < len(sorted); i++ {
		if sorted[i]-sorted[i-1] < tableSectors {
			return diskimage.ErrCorrupt.Saw("two grain tables share sector %d", sorted[i])
		}
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

// errStopped ends a walk whose extents nobody wants any more.
var errStopped = errors.New("stopped")

// each yields the grains that end behind from, one by one.
func (m *grains) each(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		if from >= m.size {
			return
		}
		dir, err := m.directory()
		if err == nil {
			place := func(i int) (off, length int64) { return int64(dir.sector(i)) * sectorBytes, tableBytes }
			err = m.file.ReadTables(int(max(0, from)/(m.grain*tableEntries)), dir.len(), place, func(i int, table []byte) error {
				return m.table(i, table, from, yield)
			})
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(diskimage.Extent{}, err)
		}
	}
}

// noGrains is what most tables of a large disk are, and quick to tell.
var noGrains [tableBytes]byte

// table yields the grains of one table.
func (m *grains) table(entry int, table []byte, from int64, yield func(diskimage.Extent, error) bool) error {
	if bytes.Equal(table, noGrains[:]) {
		return nil
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
		if err := m.checkGrain(e); err != nil {
			return err
		}
		if !yield(e, nil) {
			return errStopped
		}
	}
	return nil
}

func (m *grains) checkGrain(e diskimage.Extent) error {
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
