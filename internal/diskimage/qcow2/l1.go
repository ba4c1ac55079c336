package qcow2

import (
	"encoding/binary"
	"slices"

	"vmimport/internal/diskimage"
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

// eachTable calls visit with each L2 table there is, in the order of the disk and
// from entry i of the L1 table on. A table is valid during the call.
func (m *clusterMap) eachTable(l1 []int64, i int, visit func(i int, table []byte) error) error {
	place := func(i int) (off, length int64) {
		if l1[i] == 0 {
			return 0, 0
		}
		return l1[i], m.tableBytes(i)
	}
	return m.file.ReadTables(i, len(l1), place, visit)
}
