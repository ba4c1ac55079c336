package partition

import (
	"encoding/binary"
	"fmt"
)

// A boot record: code, four entries, and a signature. The layout is that of the
// first PCs; UEFI Specification 2.10, 5.2.1 has it in writing.
const (
	codeBytes   = 440
	entriesAt   = 446
	entryBytes  = 16
	signatureAt = 510
)

// maxLogical bounds how many records of logical partitions are followed.
const maxLogical = 64

// record is a boot record: the disk's, or that of a logical partition.
type record struct {
	signed  bool // ends with 55 AA
	code    bool // has something to run
	entries [4]entry
}

type entry struct {
	status, kind byte
	start, size  int64 // in bytes
}

func parseRecord(b []byte) record {
	var rec record
	if len(b) < sectorBytes || b[signatureAt] != 0x55 || b[signatureAt+1] != 0xaa {
		return rec
	}
	rec.signed = true
	for _, c := range b[:codeBytes] {
		rec.code = rec.code || c != 0
	}
	for i := range rec.entries {
		e := b[entriesAt+i*entryBytes:]
		rec.entries[i] = entry{
			status: e[0], kind: e[4],
			start: int64(binary.LittleEndian.Uint32(e[8:])) * sectorBytes,
			size:  int64(binary.LittleEndian.Uint32(e[12:])) * sectorBytes,
		}
	}
	return rec
}

func (e entry) used() bool { return e.kind != 0 && e.size > 0 }

// extended reports whether e holds logical partitions.
func (e entry) extended() bool {
	return e.used() && (e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85)
}

func (e entry) partition(number int, start int64) Partition {
	return Partition{Number: number, Start: start, Size: e.size, Type: fmt.Sprintf("0x%02X", e.kind), Bootable: e.status == 0x80}
}

// divides reports whether rec is that of a divided disk. The first sector of a file
// system has the same signature, and something else for entries: text or code, of
// which the first byte is not one of the two that a status can have.
func (rec record) divides() bool {
	used := false
	for _, e := range rec.entries {
		if e.status != 0 && e.status != 0x80 {
			return false
		}
		used = used || e.used()
	}
	return used
}

// protective reports whether rec announces a GPT (UEFI Specification 2.10, 5.2.3).
func (rec record) protective() bool {
	for _, e := range rec.entries {
		if e.kind == 0xee {
			return rec.divides()
		}
	}
	return false
}

func (t *Table) readMBR(d *disk, rec record) error {
	t.Scheme = MBR
	for i, e := range rec.entries {
		if e.used() {
			t.add(d, e.partition(i+1, e.start))
		}
	}
	logical := chain{t: t, d: d, number: len(rec.entries) + 1}
	for _, e := range rec.entries {
		if e.extended() {
			if err := logical.follow(e.start); err != nil {
				return err
			}
		}
	}
	return nil
}

// chain reads logical partitions. Each has a record of its own, whose first entry is
// the partition, counted from the record, and whose second one leads to the next
// record, counted from the start of the extended partition.
type chain struct {
	t       *Table
	d       *disk
	number  int // of the next partition
	records int // that were read
}

// follow reads the logical partitions of the extended one that starts at base.
func (c *chain) follow(base int64) error {
	seen := map[int64]bool{}
	for at := base; ; {
		if seen[at] {
			c.t.warn("The chain of logical partitions is a circle.")
			return nil
		}
		if c.records == maxLogical {
			c.t.warn("There are more than %d records of logical partitions.", maxLogical)
			return nil
		}
		seen[at] = true
		c.records++
		b, reached, err := c.d.read(at, sectorBytes)
		if err != nil {
			return err
		}
		if !reached {
			c.t.warn("Logical partitions from number %d on are not known: what describes them was out of reach.", c.number)
			return nil
		}
		rec := parseRecord(b)
		if !rec.signed {
			c.t.warn("The chain of logical partitions is broken before number %d.", c.number)
			return nil
		}
		if e := rec.entries[0]; e.used() {
			c.t.add(c.d, e.partition(c.number, at+e.start))
			c.number++
		}
		next := rec.entries[1]
		if !next.extended() {
			return nil
		}
		at = base + next.start
	}
}
