package qcow2

import (
	"encoding/binary"
	"slices"
	"sync"

	"vmimport/internal/diskimage"
)

// How L2 tables are read. A table of the usual 64 KiB maps 512 MiB of the disk, and
// lies somewhere among the data, or beside the others if they were allocated ahead.
const (
	// firstBatchBytes is how much is read before the first extent: one who looks
	// at a single place of the disk waits for no more. Each batch has twice the
	// bytes of the one before, up to maxBatchBytes.
	firstBatchBytes = 256 << 10
	maxBatchBytes   = 4 << 20
	// maxReadBytes is the longest read of several tables.
	maxReadBytes = 1 << 20
	// maxGapBytes is what is read in vain between two tables if that saves a read:
	// those of small clusters lie as near to each other as that.
	maxGapBytes = 64 << 10
	// readsAtOnce is how many reads are under way: an object store is far away.
	readsAtOnce = 16
)

// tables returns the offsets of the L2 tables, 0 where there is none. They are
// aligned, lie in the file and do not overlap, so that to read all of them is not
// more than to read the file.
func (m *clusterMap) tables() ([]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.l1 != nil {
		return m.l1, nil
	}
	b, err := m.file.Read("the L1 table", m.l1Offset, m.l1Entries()*8)
	if err != nil {
		return nil, err
	}
	l1 := make([]int64, len(b)/8)
	for i := range l1 {
		if l1[i], err = m.tableOffset(i, binary.BigEndian.Uint64(b[8*i:])); err != nil {
			return nil, err
		}
	}
	used := slices.DeleteFunc(slices.Clone(l1), func(off int64) bool { return off == 0 })
	slices.Sort(used)
	for i := 1; i < len(used); i++ {
		if used[i] == used[i-1] {
			return nil, diskimage.ErrCorrupt.Saw("the L2 table at %d is used twice", used[i])
		}
	}
	m.l1 = l1
	return l1, nil
}

// tableOffset returns the offset of an L2 table from entry i of the L1 table.
func (m *clusterMap) tableOffset(i int, e uint64) (int64, error) {
	off := int64(e & offsetMask)
	switch {
	case e&^(offsetMask|entryCopied) != 0 || off%m.cluster != 0:
		return 0, diskimage.ErrCorrupt.Saw("L1 entry %d is %#x", i, e)
	case off == 0:
		return 0, nil
	case off < m.l1Offset+m.l1Entries()*8 && m.l1Offset < off+m.cluster:
		return 0, diskimage.ErrCorrupt.Saw("an L2 table at %d, within the L1 table", off)
	case !m.file.Has(off, m.cluster):
		return 0, diskimage.ErrTruncated.Saw("an L2 table has %d bytes at %d, the file ends at %d", m.cluster, off, m.file.Size())
	}
	return off, nil
}

// tableBytes is the length of as much of L2 table i as maps the disk: of the last
// table, it is often little.
func (m *clusterMap) tableBytes(i int) int64 {
	clusters := (m.size-int64(i)*m.tableSpan()-1)/m.cluster + 1
	return min(m.cluster, clusters*m.entryBytes())
}

// readTables calls visit with each L2 table there is, in the order of the disk and
// from entry i of the L1 table on. A table is valid during the call.
func (m *clusterMap) readTables(l1 []int64, i int, visit func(i int, table []byte) error) error {
	b := batch{gaps: m.file.Size()}
	for limit := int64(firstBatchBytes); ; limit = min(2*limit, maxBatchBytes) {
		i = b.plan(m, l1, i, limit)
		if len(b.tables) == 0 {
			return nil
		}
		if err := b.read(m.file); err != nil {
			return err
		}
		for _, t := range b.tables {
			if err := visit(t.index, b.buf[t.at:][:m.tableBytes(t.index)]); err != nil {
				return err
			}
		}
	}
}

// batch is L2 tables that are read together.
type batch struct {
	tables []batchTable
	reads  []batchRead
	buf    []byte // what is read, one after the other
	gaps   int64  // bytes that may still be read in vain
}

type batchTable struct {
	index int // in the L1 table
	at    int // in buf
}

type batchRead struct {
	off   int64
	at, n int // in buf
}

// plan fills b with the tables from entry i of the L1 table on, as long as they
// have no more than limit bytes or are only one, and returns the entry behind
// them. Neighbours in the file are read together.
func (b *batch) plan(m *clusterMap, l1 []int64, i int, limit int64) int {
	b.tables, b.reads = b.tables[:0], b.reads[:0]
	bytes := int64(0)
	last := &batchRead{}
	for ; i < len(l1); i++ {
		off, n := l1[i], m.tableBytes(i)
		if off == 0 {
			continue
		}
		gap := off - last.off - int64(last.n)
		together := len(b.reads) > 0 && gap >= 0 && gap <= min(maxGapBytes, b.gaps) && int64(last.n)+gap+n <= maxReadBytes
		if !together {
			gap = 0
		}
		if bytes > 0 && bytes+gap+n > limit {
			break
		}
		if !together {
			b.reads = append(b.reads, batchRead{off: off, at: int(bytes)})
			last = &b.reads[len(b.reads)-1]
		}
		b.gaps -= gap
		b.tables = append(b.tables, batchTable{index: i, at: int(bytes + gap)})
		last.n += int(gap + n)
		bytes += gap + n
	}
	b.buf = slices.Grow(b.buf[:0], int(bytes))[:bytes]
	return i
}

func (b *batch) read(f *diskimage.File) error {
	errs := make([]error, len(b.reads))
	free := make(chan struct{}, readsAtOnce)
	var wg sync.WaitGroup
	for i, r := range b.reads {
		free <- struct{}{}
		wg.Go(func() {
			errs[i] = f.ReadInto("the L2 tables", r.off, b.buf[r.at:][:r.n])
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
