package vhdx

import (
	"math/bits"
	"slices"

	"vmimport/internal/diskimage"
)

// parameters is what the metadata says about the disk.
type parameters struct {
	size   int64 // of the disk in bytes
	block  int64 // bytes; a power of two from 1 to 256 MiB
	sector int64 // 512 or 4096 bytes
	fixed  bool
}

// item is a metadata item that is known.
type item int

const (
	fileParameters item = iota
	diskSize
	diskID
	logicalSector
	physicalSector
	parentLocator
	itemCount
)

// knownItems are the items by their GUIDs, with their lengths. All are required but
// the last, whose length varies (section 2.6.2).
var knownItems = map[string]struct {
	item   item
	length int64
}{
	"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b": {fileParameters, 8}, // CAA16737-FA36-4D43-B3B6-33F0AA44E76B
	"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8": {diskSize, 8},       // 2FA54224-CD1B-4876-B211-5DBED83BF4B8
	"\xab\x12\xca\xbe\xe6\xb2\x23\x45\x93\xef\xc3\x09\xe0\x00\xc7\x46": {diskID, 16},        // BECA12AB-B2E6-4523-93EF-C309E000C746
	"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f": {logicalSector, 4},  // 8141BF1D-A96F-4709-BA47-F233A8FAAB5F
	"\xc7\x48\xa3\xcd\x5d\x44\x71\x44\x9c\xc9\xe9\x88\x52\x51\xc5\x56": {physicalSector, 4}, // CDA348C7-445D-4471-9CC9-E9885251C556
	"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c": {parentLocator, 0},  // A8D35F2D-B30B-454D-ABF7-D3D84834AB0C
}

// The flags of an item (section 2.6.1.2) and of the file parameters (2.6.2.1).
const (
	flagUser     = 1 << 0
	flagRequired = 1 << 2

	flagLeaveAllocated = 1 << 0
	flagHasParent      = 1 << 1
)

func readParameters(f *diskimage.File, region span) (parameters, error) {
	at, err := findItems(f, region)
	if err != nil {
		return parameters{}, err
	}
	words, err := f.ReadEach("the metadata", []int64{
		at[fileParameters], at[fileParameters] + 4,
		at[diskSize], at[diskSize] + 4,
		at[logicalSector], at[physicalSector],
	}, 4)
	if err != nil {
		return parameters{}, err
	}
	word := func(i int) uint32 { return le.Uint32(words[i]) }
	block, flags := word(0), word(1)
	size := uint64(word(3))<<32 | uint64(word(2))
	logical, physical := word(4), word(5)

	switch {
	case flags&flagHasParent != 0:
		return parameters{}, diskimage.ErrDifferencing
	case flags&^flagLeaveAllocated != 0:
		return parameters{}, diskimage.ErrUnknownFeature.Saw("file parameters %#x", flags)
	case block < mib || block > 256*mib || bits.OnesCount32(block) != 1:
		return parameters{}, diskimage.ErrCorrupt.Saw("blocks of %d bytes", block)
	case logical != 512 && logical != 4096 || physical != 512 && physical != 4096:
		return parameters{}, diskimage.ErrCorrupt.Saw("sectors of %d and %d bytes", logical, physical)
	case size > diskimage.MaxDiskBytes:
		return parameters{}, diskimage.ErrTooLarge.Saw("%d bytes, at most %d are possible", size, int64(diskimage.MaxDiskBytes))
	case size%uint64(logical) != 0:
		return parameters{}, diskimage.ErrCorrupt.Saw("a disk of %d bytes with sectors of %d", size, logical)
	}
	return parameters{int64(size), int64(block), int64(logical), flags&flagLeaveAllocated != 0}, diskimage.CheckSize(int64(size))
}

// findItems returns where in the file the known items are.
//
// The specification lets one of the user's items have the GUID of one of the
// system's. Readers do not agree on that, so here GUIDs are unique.
func findItems(f *diskimage.File, region span) (at [itemCount]int64, err error) {
	table, err := f.Read("the metadata table", region.offset, tableBytes)
	if err != nil {
		return at, err
	}
	count := le.Uint16(table[10:])
	if string(table[:8]) != "metadata" || count > maxEntries {
		return at, diskimage.ErrCorrupt.Saw("no metadata table, or one of %d items", count)
	}
	seen := make(map[string]bool, count)
	spans := make([]span, 0, count)
	for entry := range slices.Chunk(table[entryBytes:entryBytes*(1+int(count))], entryBytes) {
		id := string(entry[:16])
		if seen[id] {
			return at, diskimage.ErrCorrupt.Saw("two metadata items of the same kind")
		}
		seen[id] = true
		place, flags := span{int64(le.Uint32(entry[16:])), int64(le.Uint32(entry[20:]))}, le.Uint32(entry[24:])
		spans = append(spans, place)
		known, ok := knownItems[id]
		switch {
		case !ok && flags&flagRequired != 0:
			return at, diskimage.ErrUnknownFeature.Saw("a metadata item of an unknown kind")
		case ok && known.item == parentLocator:
			return at, diskimage.ErrDifferencing
		case !placed(place, region), ok && (place.length != known.length || flags&flagUser != 0):
			return at, diskimage.ErrCorrupt.Saw("a metadata item of %d bytes at %d", place.length, place.offset)
		case ok:
			at[known.item] = region.offset + place.offset
		}
	}
	if overlap(spans) {
		return at, diskimage.ErrCorrupt.Saw("overlapping metadata items")
	}
	if slices.Contains(at[:parentLocator], 0) {
		return at, diskimage.ErrCorrupt.Saw("a required metadata item is missing")
	}
	return at, nil
}

// placed reports whether an item lies behind the table and in the region, or is empty
// and nowhere (section 2.6.1.2).
func placed(place, region span) bool {
	if place.length == 0 {
		return place.offset == 0
	}
	return place.offset >= tableBytes && place.length <= mib && place.end() <= region.length
}
