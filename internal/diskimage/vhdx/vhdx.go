// Package vhdx reads VHDX disk images, fixed and dynamic, as MS-VHDX ("Virtual Hard
// Disk v2 (VHDX) File Format") describes them; comments cite its sections.
//
// An image whose log holds changes is refused, not replayed, and so is one that has
// a parent or that requires what is not known here.
package vhdx

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"vmimport/internal/diskimage"
)

// mib is the unit of places in the file, and of the lengths of regions.
const mib = 1 << 20

// The header section is the first MiB; what it has lies in the first 320 KiB
// (section 2.2).
const (
	sectionBytes = 320 << 10
	headerBytes  = 4 << 10
	tableBytes   = 64 << 10 // of a region table, and of the metadata table
	header1At    = 64 << 10
	header2At    = 128 << 10
	regions1At   = 192 << 10
	regions2At   = 256 << 10
)

// Both tables of 64 KiB have entries of 32 bytes behind something shorter.
const (
	entryBytes = 32
	maxEntries = tableBytes/entryBytes - 1
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Open opens a VHDX image. It reads the header section and the metadata; the block
// allocation table is read by the Map, a part at a time.
//
// It fails with ErrDirtyLog, ErrDifferencing, ErrUnknownFeature, ErrUnsupported (a
// later version of the format), ErrEmptyDisk, ErrTooLarge, ErrTruncated or
// ErrCorrupt, or with what the file's reader returned.
func Open(f *diskimage.File) (*diskimage.Disk, error) {
	section, err := f.Read("the header section", 0, sectionBytes)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(section, []byte("vhdxfile")) {
		return nil, diskimage.ErrCorrupt.Saw("no file type identifier")
	}
	var warnings []string

	headers := intact(section, "head", headerBytes, header1At, header2At)
	log, err := findLog(headers)
	if err != nil {
		return nil, err
	}
	if len(headers) == 1 {
		warnings = append(warnings, "One of the two headers of the image is damaged; the other one was used.")
	}

	tables := intact(section, "regi", tableBytes, regions1At, regions2At)
	bat, metadata, err := findRegions(f, tables, log)
	if err != nil {
		return nil, err
	}
	if len(tables) == 1 {
		warnings = append(warnings, "One of the two region tables of the image is damaged; the other one was used.")
	}

	p, err := readParameters(f, metadata)
	if err != nil {
		return nil, err
	}
	if p.sector != diskimage.SectorBytes {
		warnings = append(warnings, "The disk has sectors of 4096 bytes; its partition table and boot loader only work on a disk that has such sectors too.")
	}
	blocks, err := newBlockMap(f, p, bat, metadata, log)
	if err != nil {
		return nil, err
	}
	variant := "dynamic"
	if p.fixed {
		variant = "fixed"
	}
	return &diskimage.Disk{Format: diskimage.VHDX, Variant: variant, Size: p.size, Map: blocks, Warnings: warnings}, nil
}

// intact returns those of the two copies of a structure of n bytes that have its
// signature and a correct checksum: CRC-32C of all n bytes, with zeros in place of
// the checksum itself (sections 2.2.2 and 2.2.3.1).
func intact(section []byte, signature string, n int, places ...int) [][]byte {
	var good [][]byte
	for _, at := range places {
		b := section[at : at+n]
		sum := crc32.Checksum(b[:4], castagnoli)
		sum = crc32.Update(sum, castagnoli, make([]byte, 4))
		sum = crc32.Update(sum, castagnoli, b[8:])
		if bytes.HasPrefix(b, []byte(signature)) && le.Uint32(b[4:]) == sum {
			good = append(good, b)
		}
	}
	return good
}

// findLog takes the current one of the intact headers, which is that of the higher
// sequence number, and returns where the log is (section 2.2.2). It fails with
// ErrDirtyLog if the log has to be replayed: without its changes the tables may be
// of any age.
func findLog(headers [][]byte) (span, error) {
	if len(headers) == 0 {
		return span{}, diskimage.ErrCorrupt.Saw("both headers are damaged")
	}
	sequence := func(h []byte) uint64 { return le.Uint64(h[8:]) }
	current := headers[0]
	if other := headers[len(headers)-1]; sequence(other) > sequence(current) {
		current = other
	} else if sequence(other) == sequence(current) && !bytes.Equal(other, current) {
		// Equal ones are two identical copies, as Disk2vhd writes them.
		return span{}, diskimage.ErrCorrupt.Saw("two different headers with sequence number %d", sequence(current))
	}

	if v := le.Uint16(current[66:]); v != 1 {
		return span{}, diskimage.ErrUnsupported.Saw("version %d of the format", v)
	}
	if v := le.Uint16(current[64:]); v != 0 {
		return span{}, diskimage.ErrUnsupported.Saw("version %d of the log", v)
	}
	if guid := current[48:64]; !bytes.Equal(guid, make([]byte, len(guid))) {
		return span{}, diskimage.ErrDirtyLog
	}
	return span{int64(le.Uint64(current[72:])), int64(le.Uint32(current[68:]))}, nil
}

// The regions that are known (section 2.2.3.2), as GUIDs are stored.
const (
	batRegion      = "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08" // 2DC27766-F623-4200-9D64-115E9BFD4A08
	metadataRegion = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e" // 8B7CA206-4790-4B9A-B8FE-575F050F886E
)

// findRegions returns where the block allocation table and the metadata are. Both
// are there once, and no two of all regions and the log overlap.
func findRegions(f *diskimage.File, tables [][]byte, log span) (bat, metadata span, err error) {
	if len(tables) == 0 {
		return bat, metadata, diskimage.ErrCorrupt.Saw("both region tables are damaged")
	}
	table := tables[0]
	count := le.Uint32(table[8:])
	if count > maxEntries {
		return bat, metadata, diskimage.ErrCorrupt.Saw("%d regions", count)
	}
	used := 16 + entryBytes*int(count)
	if other := tables[len(tables)-1]; !bytes.Equal(other[8:used], table[8:used]) {
		return bat, metadata, diskimage.ErrCorrupt.Saw("two different region tables")
	}

	spans := []span{log}
	for entry := range slices.Chunk(table[16:used], entryBytes) {
		region := span{int64(le.Uint64(entry[16:])), int64(le.Uint32(entry[24:]))}
		spans = append(spans, region)
		switch required := le.Uint32(entry[28:]) != 0; string(entry[:16]) {
		case batRegion:
			err = setOnce(&bat, region)
		case metadataRegion:
			err = setOnce(&metadata, region)
		default:
			if required {
				err = diskimage.ErrUnknownFeature.Saw("a region of an unknown kind")
			}
		}
		if err != nil {
			return bat, metadata, err
		}
	}
	if bat.length == 0 || metadata.length == 0 {
		return bat, metadata, diskimage.ErrCorrupt.Saw("no block allocation table, or no metadata")
	}
	return bat, metadata, checkRegions(f, spans)
}

func setOnce(region *span, s span) error {
	if region.length > 0 || s.length == 0 {
		return diskimage.ErrCorrupt.Saw("two regions of the same kind, or an empty one")
	}
	*region = s
	return nil
}

// checkRegions fails unless all regions are aligned, behind the header section, in the
// file and apart.
func checkRegions(f *diskimage.File, regions []span) error {
	for _, r := range regions {
		if uint64(r.offset) < mib || r.offset%mib != 0 || r.length%mib != 0 {
			return diskimage.ErrCorrupt.Saw("a region of %d bytes at %d", r.length, uint64(r.offset))
		}
		if !f.Has(r.offset, r.length) {
			return diskimage.ErrTruncated.Saw("a region has %d bytes at %d, the file ends at %d", r.length, uint64(r.offset), f.Size())
		}
	}
	if overlap(regions) {
		return diskimage.ErrCorrupt.Saw("overlapping regions")
	}
	return nil
}

// span is a run of bytes. One of no length is nowhere.
type span struct{ offset, length int64 }

func (s span) end() int64 { return s.offset + s.length }

func (s span) overlaps(o span) bool {
	return s.length > 0 && o.length > 0 && s.offset < o.end() && o.offset < s.end()
}

// overlap reports whether any two spans have bytes in common. It sorts them.
func overlap(spans []span) bool {
	spans = slices.DeleteFunc(spans, func(s span) bool { return s.length == 0 })
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(spans); i++ {
		if spans[i-1].overlaps(spans[i]) {
			return true
		}
	}
	return false
}
