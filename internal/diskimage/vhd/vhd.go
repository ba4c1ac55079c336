// Package vhd reads Virtual Hard Disks (Microsoft, Virtual Hard Disk Image Format
// Specification 1.0), fixed and dynamic ones.
//
// Every byte of structure that decides what the disk holds has to be right: all
// checksums, both copies of the footer, each entry of the block allocation table.
// Programs that are more forgiving do not agree on what such an image is.
// Differencing images are refused, and nothing that an image names is looked at.
package vhd

import (
	"bytes"
	"encoding/binary"

	"vmimport/internal/diskimage"
)

const (
	headerBytes  = 1024
	headerCookie = "cxsparse"
	headerSum    = 36 // where the checksum is

	parentLocators = 576
	locators       = 8
	locatorBytes   = 24

	// Blocks are 2 MiB "by default". The bounds leave room for all that was seen,
	// and none for a bitmap or a block that is out of proportion.
	minBlockBytes = 4 << 10
	maxBlockBytes = 256 << 20
	// maxBlocks is the disk of 2040 GiB, the largest that the specification has, in
	// blocks of 512 KiB. Their table has MaxTableBytes.
	maxBlocks = 1 << 22
)

// PeekSize returns the size of the disk in bytes if head, the first bytes of an
// image, tells it: that of a dynamic image does from 512 bytes on. It is a hint,
// and Open has the last word.
func PeekSize(head []byte) (int64, bool) {
	if len(head) < footerBytes {
		return 0, false
	}
	t, err := parseFooter("start", head[:footerBytes])
	if err != nil || t.kind != typeDynamic || t.check() != nil {
		return 0, false
	}
	return t.size, true
}

// Open reads the footer of an image and, if it is dynamic, its header. It fails with
// an error of package diskimage if the image breaks a rule or is of a kind that
// cannot be imported, and with what the file's reader returned if that failed.
func Open(f *diskimage.File) (*diskimage.Disk, error) {
	if f.Size() < footerBytes {
		return nil, diskimage.ErrTruncated.Saw("%d bytes, a footer alone has %d", f.Size(), footerBytes)
	}
	ends, err := f.ReadEach("the footer", []int64{0, f.Size() - footerBytes}, footerBytes)
	if err != nil {
		return nil, err
	}
	head, tail := ends[0], ends[1]
	switch cookie := []byte(footerCookie); {
	case bytes.HasPrefix(tail[1:], cookie):
		return nil, diskimage.ErrUnsupported.Saw("a footer of 511 bytes, as it was before Virtual PC 2004")
	case !bytes.HasPrefix(tail, cookie):
		return nil, diskimage.ErrTruncated.Saw("no footer at the end of the file")
	}
	t, err := parseFooter("end", tail)
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return nil, err
	}
	d := &diskimage.Disk{Format: diskimage.VHD, Variant: "dynamic", Size: t.size, Warnings: t.warnings()}
	if t.kind == typeFixed {
		d.Variant = "fixed"
		d.Map, err = openFixed(f, t, head)
	} else {
		d.Map, err = openDynamic(f, t, head)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openFixed checks that the image is the disk and a footer behind it.
func openFixed(f *diskimage.File, t footer, head []byte) (diskimage.Map, error) {
	switch data := f.Size() - footerBytes; {
	case data < t.size:
		return nil, diskimage.ErrTruncated.Saw("%d bytes before the footer, the disk has %d", data, t.size)
	case data > t.size:
		return nil, diskimage.ErrTrailing.Saw("%d bytes before the footer, the disk has %d", data, t.size)
	case bytes.HasPrefix(head, []byte(footerCookie)):
		// QEMU would believe the footer at the start, others the one at the end.
		return nil, diskimage.ErrCorrupt.Saw("a fixed disk that starts with a footer")
	}
	return diskimage.Linear(0, t.size), nil
}

// openDynamic reads the header that the footer points to ("Dynamic Disk Header
// Format").
func openDynamic(f *diskimage.File, t footer, head []byte) (diskimage.Map, error) {
	first, err := parseFooter("start", head)
	if err != nil {
		return nil, err
	}
	if first.identity != t.identity {
		return nil, diskimage.ErrCorrupt.Saw("the footer and its copy at the start of the file differ")
	}
	m := &blocks{file: f, size: t.size}
	if m.header, err = m.place("the dynamic disk header", t.dataOffset, headerBytes); err != nil {
		return nil, err
	}
	h, err := f.Read("the dynamic disk header", m.header.start, headerBytes)
	if err != nil {
		return nil, err
	}
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	m.block = int64(binary.BigEndian.Uint32(h[32:]))
	entries := int64(binary.BigEndian.Uint32(h[28:]))
	m.count = (m.size + m.block - 1) / m.block
	if entries < m.count || entries > maxBlocks {
		return nil, diskimage.ErrCorrupt.Saw("%d table entries for %d blocks of %d bytes", entries, m.count, m.block)
	}
	if m.table, err = m.place("the block allocation table", binary.BigEndian.Uint64(h[16:]), entries*entryBytes); err != nil {
		return nil, err
	}
	if m.table.overlaps(m.header) {
		return nil, diskimage.ErrCorrupt.Saw("the block allocation table lies in the dynamic disk header")
	}
	// A bit for each sector, "extended to the nearest sector boundary".
	const bitsPerSector = diskimage.SectorBytes * 8
	bitmapSectors := (m.block/diskimage.SectorBytes + bitsPerSector - 1) / bitsPerSector
	m.bitmap = bitmapSectors * diskimage.SectorBytes
	return m, nil
}

func checkHeader(h []byte) error {
	switch block := binary.BigEndian.Uint32(h[32:]); {
	case !bytes.HasPrefix(h, []byte(headerCookie)):
		return diskimage.ErrCorrupt.Saw("no dynamic disk header where the footer says that it is")
	case !sumMatches(h, headerSum):
		return diskimage.ErrCorrupt.Saw("wrong checksum of the dynamic disk header")
	case binary.BigEndian.Uint16(h[24:]) != version:
		return diskimage.ErrUnsupported.Saw("version %d of the dynamic disk header", binary.BigEndian.Uint16(h[24:]))
	case block < minBlockBytes || block > maxBlockBytes || block&(block-1) != 0:
		return diskimage.ErrCorrupt.Saw("blocks of %d bytes", block)
	case [16]byte(h[40:56]) != [16]byte{}:
		return diskimage.ErrDifferencing.Saw("a parent in the dynamic disk header")
	}
	for i := range locators {
		if binary.BigEndian.Uint32(h[parentLocators+i*locatorBytes:]) != 0 {
			return diskimage.ErrDifferencing.Saw("a parent locator in the dynamic disk header")
		}
	}
	return nil
}
