package qcow2

import (
	"encoding/binary"
	"errors"
	"iter"
	"math/bits"
	"sync"

	"vmimport/internal/diskimage"
)

// Entries of the L1 and the L2 tables. Bits that are in none of the masks are
// reserved, and zero.
const (
	entryZero       = 1 << 0                // L2, version 3: the cluster reads as zeros
	offsetMask      = 0x00ff_ffff_ffff_fe00 // of a cluster in the file
	entryCompressed = 1 << 62               // L2
	entryCopied     = 1 << 63               // the reference count is one, which matters to writers
)

// subclusters is how many parts a cluster has that are allocated on their own, in
// an image with extended L2 entries.
const subclusters = 32

// bitmapData is the bitmap of a cluster that the file holds all of.
const bitmapData = 1<<subclusters - 1

// clusterMap is the map of an image: an L1 table that points to L2 tables, which
// point to the clusters that hold the disk.
type clusterMap struct {
	header
	file *diskimage.File

	mu sync.Mutex
	l1 []int64 // what tables returns; nil until it was read
}

// Extents implements diskimage.Map.
func (m *clusterMap) Extents(from int64) iter.Seq2[diskimage.Extent, error] {
	return func(yield func(diskimage.Extent, error) bool) {
		w := walk{clusterMap: m, from: max(from, 0), yield: yield}
		if err := w.all(); err != nil && !errors.Is(err, errStopped) {
			yield(diskimage.Extent{}, err)
		}
	}
}

// errStopped ends a walk whose extents nobody wants any more.
var errStopped = errors.New("stopped")

// walk is one pass over the map.
type walk struct {
	*clusterMap
	from  int64
	yield func(diskimage.Extent, error) bool
	// run is the extent that is being put together, of whole clusters or
	// subclusters. It is checked and cut to the disk when it is flushed.
	run diskimage.Extent
}

func (w *walk) all() error {
	if w.from >= diskimage.VirtualSize(w.size) {
		return nil
	}
	l1, err := w.tables()
	if err != nil {
		return err
	}
	err = w.eachTable(l1, int(w.from/w.tableSpan()), func(i int, table []byte) error {
		guest := int64(i) * w.tableSpan()
		if skip := (w.from - guest) / w.cluster; skip > 0 {
			guest += skip * w.cluster
			table = table[skip*w.entryBytes():]
		}
		return w.table(guest, table)
	})
	if err != nil {
		return err
	}
	return w.flush()
}

// table walks over an L2 table, or the end of one, that maps the disk from guest on.
func (w *walk) table(guest int64, table []byte) error {
	size := int(w.entryBytes())
	for len(table) >= size {
		n := 1
		var err error
		switch e, bitmap := w.decode(table); {
		case e|bitmap == 0: // unallocated: there is no backing file to look into
		case e&entryCompressed != 0:
			err = w.packed(guest, e, bitmap)
		default:
			n, err = w.standard(guest, e, bitmap, table)
		}
		if err != nil {
			return err
		}
		guest += int64(n) * w.cluster
		table = table[n*size:]
	}
	return nil
}

// decode returns the first entry of table and its bitmap, where bit i says that the
// file holds subcluster i, and bit 32+i that it reads as zeros. An entry that has no
// bitmap gets one that says the same of all subclusters.
func (w *walk) decode(table []byte) (e, bitmap uint64) {
	e = binary.BigEndian.Uint64(table)
	switch {
	case w.extendedL2:
		bitmap = binary.BigEndian.Uint64(table[8:])
	case e != 0 && e&(entryZero|entryCompressed) == 0:
		bitmap = bitmapData
	}
	return e, bitmap
}

// standard takes the first entry of table, which is not compressed, and those behind
// it that go on where it ends. It returns how many entries it took.
func (w *walk) standard(guest int64, e, bitmap uint64, table []byte) (int, error) {
	off, data := int64(e&offsetMask), uint32(bitmap)
	switch {
	case e&^(entryZero|offsetMask|entryCopied) != 0, off&(w.cluster-1) != 0,
		e&entryZero != 0 && (w.version == 2 || w.extendedL2),
		data&uint32(bitmap>>subclusters) != 0,
		data != 0 && off == 0: // that would be the header
		return 0, w.refused(guest, e, bitmap)
	case bitmap == bitmapData:
		n := w.neighbours(e, table)
		return n, w.add(guest, off, int64(n)*w.cluster)
	}
	part := w.cluster / subclusters
	for data != 0 {
		first := bits.TrailingZeros32(data)
		n := bits.TrailingZeros32(^(data >> first))
		data &^= uint32(1<<n-1) << first
		if err := w.add(guest+int64(first)*part, off+int64(first)*part, int64(n)*part); err != nil {
			return 0, err
		}
	}
	return 1, nil
}

// neighbours returns how many entries at the front of table, of which e is the first,
// are of neighbours in the file.
func (w *walk) neighbours(e uint64, table []byte) int {
	size, step := int(w.entryBytes()), uint64(w.cluster)
	n := 1
	for rest := table[size:]; len(rest) >= size; rest = rest[size:] {
		e += step
		if binary.BigEndian.Uint64(rest) != e || size == 16 && binary.BigEndian.Uint64(rest[8:]) != bitmapData {
			break
		}
		n++
	}
	return n
}

// refused is the error for an entry that the specification does not allow.
func (w *walk) refused(guest int64, e, bitmap uint64) error {
	if w.extendedL2 {
		return diskimage.ErrCorrupt.Saw("the L2 entry of the disk's offset %d is %#x with the bitmap %#x", guest, e, bitmap)
	}
	return diskimage.ErrCorrupt.Saw("the L2 entry of the disk's offset %d is %#x", guest, e)
}

// add makes a piece of the disk that the file holds a part of the run, or the
// beginning of a new one.
func (w *walk) add(guest, file, length int64) error {
	if guest == w.run.Guest+w.run.Length && file == w.run.File+w.run.Length {
		w.run.Length += length
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	w.run = diskimage.Extent{Guest: guest, Length: length, File: file}
	return nil
}

// flush yields the run, if there is one. The last cluster of the disk may be longer
// than the disk, and the file may end with the disk's last byte.
func (w *walk) flush() error {
	e := w.run
	w.run = diskimage.Extent{}
	e.Length = min(e.Length, w.size-e.Guest)
	e.Stored = e.Length
	switch {
	case e.Length <= 0 || e.Guest+e.Length <= w.from:
		return nil
	case !w.file.Has(e.File, e.Stored):
		return diskimage.ErrTruncated.Saw("data has %d bytes at %d, the file ends at %d", e.Stored, e.File, w.file.Size())
	}
	return w.emit(e)
}

// packed takes the entry of a compressed cluster. The number of sectors that it
// has is rounded up, and so may reach past the end of the file.
func (w *walk) packed(guest int64, e, bitmap uint64) error {
	if err := w.flush(); err != nil {
		return err
	}
	shift := 70 - bits.TrailingZeros64(uint64(w.cluster)) // x of the specification
	descriptor := e &^ (entryCompressed | entryCopied)
	off := int64(descriptor & (1<<shift - 1))
	stored := int64(descriptor>>shift+1)*diskimage.SectorBytes - off%diskimage.SectorBytes
	switch {
	case off > offsetMask|(diskimage.SectorBytes-1), bitmap != 0:
		return w.refused(guest, e, bitmap)
	case off >= w.file.Size():
		return diskimage.ErrTruncated.Saw("compressed data at %d, the file ends at %d", off, w.file.Size())
	}
	return w.emit(diskimage.Extent{
		Guest: guest, Length: w.cluster, File: off, Stored: min(stored, w.file.Size()-off), Packed: true,
	})
}

func (w *walk) emit(e diskimage.Extent) error {
	if !w.yield(e, nil) {
		return errStopped
	}
	return nil
}
