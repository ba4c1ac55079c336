// Package partition tells how a disk is divided and how it can boot, by a few of its
// sectors: the master boot record, the GUID partition table, and the records of
// logical partitions.
//
// A disk is hostile input. Whatever is strange about it is a warning and never an
// error, all that is read is bounded by constants, and no text of the disk, such as a
// partition's name, is passed on.
package partition

import (
	"errors"
	"fmt"
	"io"
)

// Scheme is how a disk is divided.
type Scheme string

// The schemes that are known. A disk that is one file system as a whole has none.
const (
	None Scheme = "none"
	MBR  Scheme = "mbr"
	GPT  Scheme = "gpt"
)

// Firmware is what can start a guest from a disk.
type Firmware string

// The kinds of firmware.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Table is what a disk says of its parts.
type Table struct {
	Scheme Scheme
	// SectorBytes is the unit of the table: 512, or 4096 if a GPT has it.
	SectorBytes int64
	// Partitions are in the order of the table, logical ones behind the others.
	// They need not make sense: they may overlap, and end behind the disk.
	Partitions []Partition
	// Boot lists the firmware that finds something to start; empty if none does.
	// Whether that is of use is not looked at.
	Boot []Firmware
	// Warnings are sentences about what is strange, for people.
	Warnings []string
}

// Partition is one part of a disk.
type Partition struct {
	Number int   `json:"number"`
	Start  int64 `json:"start"` // in bytes from the start of the disk
	Size   int64 `json:"size"`  // in bytes
	// Type is the GUID in a GPT, and in an MBR the byte, as in "0x83".
	Type string `json:"type"`
	// TypeName is what the type is commonly called; empty if it is not known here.
	TypeName string `json:"type_name,omitempty"`
	// Bootable is the mark for a BIOS: the active partition of an MBR, the
	// attribute "legacy BIOS bootable" in a GPT.
	Bootable bool `json:"bootable"`
}

const (
	// frontBytes is read in any case. It holds both boot records, the GPT that
	// most tools write, for either size of sectors, and the mark of ISO 9660.
	frontBytes = 64 << 10
	// sectorBytes is the unit of an MBR, which does not say.
	sectorBytes = 512
	// maxPartitions is how many a GPT has room for in practice.
	maxPartitions = 128
)

// Read looks at the disk of size bytes behind r, of which it reads the first reach
// bytes alone: the rest may be far away. With size 0 the size is not known. It
// fails only with what r returned.
func Read(r io.ReaderAt, size, reach int64) (*Table, error) {
	if size > 0 {
		reach = min(reach, size)
	}
	d := &disk{r: r, size: size, reach: reach}
	front, _, err := d.read(0, min(reach, frontBytes))
	if err != nil {
		return nil, err
	}
	d.front = front

	t := &Table{Scheme: None, SectorBytes: sectorBytes}
	rec := parseRecord(front)
	found := false
	if rec.protective() {
		if found, err = t.readGPT(d); err != nil {
			return nil, err
		}
	} else if hasGPT(front, sectorBytes) || hasGPT(front, 4096) {
		t.warn("A GUID partition table without its protective MBR is ignored.")
	}
	if !found && rec.divides() {
		if err := t.readMBR(d, rec); err != nil {
			return nil, err
		}
	}
	if isISO9660(front) {
		t.warn("The disk is a medium such as a CD (ISO 9660), from which systems are installed.")
	}
	t.Boot = t.boot(rec)
	return t, nil
}

// isISO9660 looks for the volume descriptors, which begin in sector 16 of 2048
// bytes (ECMA-119, 8.1).
func isISO9660(front []byte) bool {
	const at = 16*2048 + 1
	return len(front) >= at+5 && string(front[at:at+5]) == "CD001"
}

// boot tells who could start from the disk. A BIOS runs the code of the MBR, also
// that of a GPT's protective one; UEFI looks for its own partition (UEFI
// Specification 2.10, 13.3.3).
func (t *Table) boot(rec record) []Firmware {
	bios, uefi := rec.signed && rec.code, false
	for _, p := range t.Partitions {
		switch p.Type {
		case typeEFI, typeMBREFI:
			uefi = true
		case typeBIOSBoot:
			bios = true
		}
	}
	var boot []Firmware
	if bios {
		boot = append(boot, BIOS)
	}
	if uefi {
		boot = append(boot, UEFI)
	}
	return boot
}

func (t *Table) warn(format string, args ...any) {
	t.Warnings = append(t.Warnings, fmt.Sprintf(format, args...))
}

// add adds a partition of the disk.
func (t *Table) add(d *disk, p Partition) {
	p.TypeName = typeNames[p.Type]
	t.Partitions = append(t.Partitions, p)
	if d.size > 0 && p.Start+p.Size > d.size {
		t.warn("Partition %d ends behind the end of the disk.", p.Number)
	}
}

// disk is what can be read of a disk.
type disk struct {
	r           io.ReaderAt
	size, reach int64
	front       []byte
}

// whole reports whether the end of the disk can be read.
func (d *disk) whole() bool { return d.size > 0 && d.reach == d.size }

// read returns the n bytes at off, and false if they are out of reach. Neither has
// to make sense.
func (d *disk) read(off, n int64) ([]byte, bool, error) {
	if off < 0 || n < 0 || off > d.reach || n > d.reach-off {
		return nil, false, nil
	}
	if off+n <= int64(len(d.front)) {
		return d.front[off : off+n], true, nil
	}
	b := make([]byte, n)
	got, err := d.r.ReadAt(b, off)
	if int64(got) == n { // io.EOF may come with the last bytes
		return b, true, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, false, fmt.Errorf("read partition table: %w", err)
}
