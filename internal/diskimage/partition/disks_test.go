package partition_test

import (
	"encoding/binary"
	"hash/crc32"
)

// slot is an entry of a boot record.
type slot struct {
	active      bool
	kind        byte
	start, size uint32 // in sectors
}

// mbr is a disk with a boot record without code.
func mbr(size int, slots ...slot) []byte {
	d := make([]byte, size)
	record(d, 0, slots...)
	return d
}

// record writes a boot record into a sector.
func record(d []byte, sector int64, slots ...slot) {
	b := d[sector*512:][:512]
	for i, s := range slots {
		e := b[446+16*i:][:16]
		if s.active {
			e[0] = 0x80
		}
		e[4] = s.kind
		binary.LittleEndian.PutUint32(e[8:], s.start)
		binary.LittleEndian.PutUint32(e[12:], s.size)
	}
	b[510], b[511] = 0x55, 0xaa
}

// GUIDs as they are on the disk.
var (
	efi      = [16]byte([]byte("\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"))
	linux    = [16]byte([]byte("\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4"))
	biosBoot = [16]byte([]byte("Hah!IdontNeedEFI"))
)

// part is an entry of a GPT.
type part struct {
	guid        [16]byte
	first, last uint64
	attributes  uint64
}

// gpt is a disk with a protective MBR and a GPT at both ends.
func gpt(size, sector int64, parts ...part) []byte {
	d := make([]byte, size)
	record(d, 0, slot{kind: 0xee, start: 1, size: uint32(size/512 - 1)})
	count := max(128, len(parts))
	entries := make([]byte, count*128)
	for i, p := range parts {
		e := entries[i*128:]
		copy(e, p.guid[:])
		e[16] = byte(i + 1) // of its own GUID
		binary.LittleEndian.PutUint64(e[32:], p.first)
		binary.LittleEndian.PutUint64(e[40:], p.last)
		binary.LittleEndian.PutUint64(e[48:], p.attributes)
		copy(e[56:], "n\x00a\x00m\x00e\x00")
	}
	last := uint64(size/sector - 1)
	taken := (uint64(len(entries)) + uint64(sector) - 1) / uint64(sector)
	for _, at := range []struct{ lba, alternate, entries uint64 }{{1, last, 2}, {last, 1, last - taken}} {
		copy(d[int64(at.entries)*sector:], entries)
		h := d[int64(at.lba)*sector:][:sector]
		copy(h, "EFI PART\x00\x00\x01\x00\x5c")
		binary.LittleEndian.PutUint64(h[24:], at.lba)
		binary.LittleEndian.PutUint64(h[32:], at.alternate)
		binary.LittleEndian.PutUint64(h[40:], 2+taken)
		binary.LittleEndian.PutUint64(h[48:], last-taken-1)
		h[56] = 0xdd // of the disk's GUID
		binary.LittleEndian.PutUint64(h[72:], at.entries)
		binary.LittleEndian.PutUint32(h[80:], uint32(count))
		binary.LittleEndian.PutUint32(h[84:], 128)
		signEntries(h, entries)
		sign(h)
	}
	return d
}

func signEntries(h, entries []byte) {
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
}

// sign makes a header's own checksum right, if its length is one.
func sign(h []byte) {
	if n := binary.LittleEndian.Uint32(h[12:]); int64(n) <= int64(len(h)) && n >= 20 {
		clear(h[16:20])
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
	}
}
