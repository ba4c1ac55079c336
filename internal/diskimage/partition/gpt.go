package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
)

// The header of a GUID partition table and its entries (UEFI Specification 2.10,
// 5.3.2 and 5.3.3).
const (
	gptSignature    = "EFI PART"
	minHeaderBytes  = 92
	minEntryBytes   = 128
	maxEntryBytes   = 4096
	maxEntriesBytes = maxPartitions * maxEntryBytes

	attributeBIOSBootable = 1 << 2
)

// guidTable is a GPT whose checksums are right.
type guidTable struct {
	alternate  uint64 // LBA of the other one
	entryBytes int64
	entries    []byte
}

func hasGPT(b []byte, off int) bool {
	return len(b) > off && bytes.HasPrefix(b[off:], []byte(gptSignature))
}

// readGPT adds what the disk's GPT has, and reports false if there is no valid one.
func (t *Table) readGPT(d *disk) (bool, error) {
	for _, sector := range []int64{sectorBytes, 4096} {
		g, err := d.guidTable(sector, sector)
		if err != nil {
			return false, err
		}
		if g != nil {
			t.addGPT(d, g, sector)
			return true, t.checkBackup(d, g)
		}
	}
	for _, sector := range []int64{sectorBytes, 4096} {
		if !d.whole() {
			break
		}
		g, err := d.guidTable(d.lastSector(sector), sector)
		if err != nil {
			return false, err
		}
		if g != nil {
			t.warn("The GUID partition table at the start of the disk is damaged. What is shown is its backup.")
			t.addGPT(d, g, sector)
			return true, nil
		}
	}
	t.warn("The GUID partition table that the MBR announces is missing or damaged.")
	return false, nil
}

// lastSector is where the last whole sector of the disk begins.
func (d *disk) lastSector(sector int64) int64 { return (d.size/sector - 1) * sector }

// guidTable reads the GPT with its header in the sector at off. It returns nil if
// there is none, or not a valid one, within reach.
func (d *disk) guidTable(off, sector int64) (*guidTable, error) {
	b, reached, err := d.read(off, sector)
	if err != nil || !reached || !hasGPT(b, 0) {
		return nil, err
	}
	headerBytes := binary.LittleEndian.Uint32(b[12:])
	if headerBytes < minHeaderBytes || int64(headerBytes) > sector {
		return nil, nil
	}
	head := bytes.Clone(b[:headerBytes])
	clear(head[16:20]) // where the sum itself is
	if crc32.ChecksumIEEE(head) != binary.LittleEndian.Uint32(b[16:]) ||
		binary.LittleEndian.Uint64(b[24:]) != uint64(off/sector) {
		return nil, nil
	}
	var (
		entriesLBA = binary.LittleEndian.Uint64(b[72:])
		count      = int64(binary.LittleEndian.Uint32(b[80:]))
		size       = int64(binary.LittleEndian.Uint32(b[84:]))
	)
	if size < minEntryBytes || size > maxEntryBytes || size&(size-1) != 0 ||
		count > maxEntriesBytes/size || entriesLBA > uint64(math.MaxInt64/sector) {
		return nil, nil
	}
	entries, reached, err := d.read(int64(entriesLBA)*sector, count*size)
	if err != nil || !reached || crc32.ChecksumIEEE(entries) != binary.LittleEndian.Uint32(b[88:]) {
		return nil, err
	}
	return &guidTable{alternate: binary.LittleEndian.Uint64(b[32:]), entryBytes: size, entries: entries}, nil
}

func (t *Table) addGPT(d *disk, g *guidTable, sector int64) {
	t.Scheme, t.SectorBytes = GPT, sector
	number := 0
	for b := range slices.Chunk(g.entries, int(g.entryBytes)) {
		number++
		if [16]byte(b) == [16]byte{} {
			continue
		}
		if len(t.Partitions) == maxPartitions {
			t.warn("There are more than %d partitions.", maxPartitions)
			return
		}
		first, last := binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])
		if last < first || last >= uint64(math.MaxInt64/sector) {
			t.warn("Partition %d has no place that a disk could have.", number)
			continue
		}
		t.add(d, Partition{
			Number: number, Start: int64(first) * sector, Size: int64(last-first+1) * sector, Type: guid(b),
			Bootable: binary.LittleEndian.Uint64(b[48:])&attributeBIOSBootable != 0,
		})
	}
}

// checkBackup says where the other GPT is, if it is not where it belongs. It is at
// the end of the disk that the table was made for.
func (t *Table) checkBackup(d *disk, g *guidTable) error {
	if !d.whole() {
		return nil
	}
	at := d.lastSector(t.SectorBytes)
	switch last := uint64(at / t.SectorBytes); {
	case g.alternate > last:
		t.warn("The backup of the GUID partition table would be behind the end of the disk, which was cut.")
	case g.alternate < last:
		t.warn("The backup of the GUID partition table is not at the end of the disk, which was grown.")
	default:
		backup, err := d.guidTable(at, t.SectorBytes)
		if err != nil {
			return err
		}
		if backup == nil {
			t.warn("The backup of the GUID partition table, at the end of the disk, is missing or damaged.")
		}
	}
	return nil
}

// guid is the text of the GUID that b begins with (UEFI Specification 2.10,
// appendix A): the first three fields are little endian, the rest are bytes.
func guid(b []byte) string {
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", binary.LittleEndian.Uint32(b),
		binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}
