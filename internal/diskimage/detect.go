package diskimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"vmimport/internal/fault"
)

// SectorBytes is the unit of a virtual disk's size.
const SectorBytes = 512

// headBytes is how much of the start is looked at. All binary signatures lie in
// the first 512 bytes; a VMDK descriptor may be 64 KiB long, and its comments
// may come first.
const headBytes = 64 << 10

// Detect returns the one format whose signature the size bytes behind r have,
// or Raw if they have none. It reads at most the first 64 KiB and the last 512
// bytes, and only inside of [0, size).
//
// It fails with kind fault.Invalid and one of the codes object_empty,
// object_too_small (under one sector and no format), not_a_disk_image (an HTML
// or XML page) and format_ambiguous (more than one signature). An error of r is
// returned wrapped.
//
// MBR, GPT and ISO 9660 are what a raw disk contains, and so are not looked for.
// A fixed VHD is a raw disk with a footer behind it; it is always VHD here, for
// the footer must not become the last sector of a disk.
func Detect(r io.ReaderAt, size int64) (Format, error) {
	if size <= 0 {
		return "", fault.New(fault.Invalid, "object_empty", "The object is empty.").
			Try("Check that the upload of the image has finished.")
	}
	head, err := readRange(r, 0, min(size, headBytes))
	if err != nil {
		return "", fmt.Errorf("read start of image: %w", err)
	}
	tailAt := max(0, size-SectorBytes)
	tail, err := readRange(r, tailAt, size-tailAt)
	if err != nil {
		return "", fmt.Errorf("read end of image: %w", err)
	}

	return decide(head, atEnd(tail, tailAt), size)
}

// DetectHead is Detect for a file of which only the front is known, up to 64 KiB or
// less if the file is shorter. What tells a fixed VHD or a DMG is at the end: they
// are raw here.
func DetectHead(head []byte) (Format, error) {
	return decide(head, nil, int64(len(head)))
}

// DetectTail returns the format whose trailer the last sector of a file has, if any:
// that of a VHD or a DMG.
func DetectTail(sector []byte) (Format, bool) {
	if found := atEnd(sector, 0); len(found) > 0 {
		return found[0].format, true
	}
	return "", false
}

// CheckGuest fails with ErrDisguised if a disk begins or ends as a disk image does.
// Stored raw it would be taken for that image by whoever guesses, and what that image
// names would be opened. head is up to 64 KiB of the disk's front, tail its last
// sector.
func CheckGuest(head, tail []byte) error {
	for _, m := range append(atStart(head), atEnd(tail, 0)...) {
		if !m.format.Wraps() && m.format != LUKS { // a disk may well be encrypted
			return ErrDisguised.Saw("the disk inside has the signature of %s", m.format)
		}
	}
	return nil
}

// decide finds the one format whose signature is at the start or, as is known
// already, at the end.
func decide(head []byte, found []match, size int64) (Format, error) {
	if isPage(head) {
		return "", fault.New(fault.Invalid, "not_a_disk_image", "The object is an HTML or XML document, not a disk image.").
			Saw("markup at offset 0").
			Try("Look at the object: an error page may have been stored in place of the image. Upload the image again.")
	}
	found = append(atStart(head), found...)
	switch {
	case len(found) == 0 && size < SectorBytes:
		return "", fault.New(fault.Invalid, "object_too_small", "The object is too small to be a disk image.").
			Saw("%d bytes, and a disk has at least %d", size, SectorBytes).
			Try("Check that the upload of the image has finished.")
	case len(found) == 0:
		return Raw, nil
	}
	for _, m := range found[1:] {
		if m.format != found[0].format { // a dynamic VHD has its footer at both ends
			return "", ambiguous(found)
		}
	}
	return found[0].format, nil
}

// VirtualSize returns the size of the disk that a raw image of size bytes is:
// the next multiple of a sector. What is added reads as zeros.
func VirtualSize(size int64) int64 {
	return (size + SectorBytes - 1) &^ (SectorBytes - 1)
}

// match is a signature that was found.
type match struct {
	format Format
	offset int64
}

func ambiguous(found []match) error {
	seen := make([]string, len(found))
	for i, m := range found {
		seen[i] = fmt.Sprintf("%s at offset %d", m.format, m.offset)
	}
	return fault.New(fault.Invalid, "format_ambiguous", "The object is more than one image format at once.").
		Saw("%s", strings.Join(seen, ", ")).
		Try("Write the disk into a new image, for example with qemu-img convert, and import that.")
}

// signatures are the magic numbers at fixed places of the head, with a further
// condition where the number alone is weak or names more than one format. They
// are those of QEMU's block drivers (the probe functions) and of the formats'
// own specifications.
var signatures = []struct {
	format Format
	offset int
	magic  string
	also   func(head []byte) bool
}{
	{QCOW2, 0, "QFI\xfb", not(qcowVersion1)},
	{QCOW, 0, "QFI\xfb", qcowVersion1},
	{VMDK, 0, "KDMV", nil},
	{COWD, 0, "COWD", nil},
	{SESparse, 0, "\xbe\xba\xfe\xca\x00\x00\x00\x00", nil},
	{VMDKText, 0, "", isDescriptor},
	{VHD, 0, "conectix", nil},
	{VHDX, 0, "vhdxfile", nil},
	{VDI, 64, "\x7f\x10\xda\xbe", nil},
	{QED, 0, "QED\x00", nil},
	{LUKS, 0, "LUKS\xba\xbe", nil},
	{Parallels, 0, "WithoutFreeSpace", nil},
	{Parallels, 0, "WithouFreSpacExt", nil},
	{Bochs, 0, "Bochs Virtual HD Image", nil},
	{Cloop, 0, "#!/bin/sh\n#V", nil},
	{OVA, 257, "ustar", startsWithOVF},
	{Tar, 257, "ustar", not(startsWithOVF)},
	{Gzip, 0, "\x1f\x8b\x08", reservedFlagsClear},
	{XZ, 0, "\xfd7zXZ\x00", nil},
	{Zstd, 0, "\x28\xb5\x2f\xfd", nil},
	{Zstd, 1, "\x2a\x4d\x18", skippable},
	{Bzip2, 0, "BZh", bzip2Block},
	{Zip, 0, "PK\x03\x04", nil},
	{Zip, 0, "PK\x05\x06", nil}, // no members
	{Zip, 0, "PK\x07\x08", nil}, // split, or meant to be
	{SevenZip, 0, "7z\xbc\xaf\x27\x1c", nil},
}

func atStart(head []byte) []match {
	var found []match
	for _, s := range signatures {
		if hasAt(head, s.offset, s.magic) && (s.also == nil || s.also(head)) {
			found = append(found, match{s.format, int64(s.offset)})
		}
	}
	return found
}

// atEnd looks for the trailers that only the end of a file has. tail is its
// last 512 bytes, or all of a smaller one, and begins at offset.
func atEnd(tail []byte, offset int64) []match {
	if len(tail) < SectorBytes {
		return nil
	}
	var found []match
	switch {
	case IsVHDFooter(tail):
		found = append(found, match{VHD, offset})
	case IsVHDFooter(tail[1:]): // before Virtual PC 2004 the footer had 511 bytes
		found = append(found, match{VHD, offset + 1})
	}
	// The UDIF trailer: magic, version 4, length 512.
	if bytes.HasPrefix(tail, []byte("koly\x00\x00\x00\x04\x00\x00\x02\x00")) {
		found = append(found, match{DMG, offset})
	}
	return found
}

// IsVHDFooter checks length, cookie and checksum (Virtual Hard Disk Image Format
// Specification 1.0, "Hard Disk Footer Format"). The cookie alone may be the
// data of a disk's last sector; a footer has the ones' complement of the sum of
// its other bytes at 64.
func IsVHDFooter(b []byte) bool {
	if len(b) < SectorBytes-1 || !bytes.HasPrefix(b, []byte("conectix")) {
		return false
	}
	var sum uint32
	for i, c := range b {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	return binary.BigEndian.Uint32(b[64:]) == ^sum
}

func not(f func([]byte) bool) func([]byte) bool {
	return func(head []byte) bool { return !f(head) }
}

func qcowVersion1(head []byte) bool { return hasAt(head, 4, "\x00\x00\x00\x01") }

// isDescriptor reports whether QEMU or VMware would take head for the text of a
// VMDK. QEMU (vmdk_probe) accepts less than the specification's first line:
// after comments and blank lines, a line version=1, 2 or 3. We allow blanks
// where it does not, to stay on the safe side of it.
func isDescriptor(head []byte) bool {
	if first := "# Disk DescriptorFile"; len(head) >= len(first) && bytes.EqualFold(head[:len(first)], []byte(first)) {
		return true
	}
	for line := range bytes.Lines(head) {
		if line[0] == '#' {
			continue
		}
		switch string(bytes.TrimSpace(line)) {
		case "":
		case "version=1", "version=2", "version=3":
			return true
		default:
			return false
		}
	}
	return false
}

// startsWithOVF looks at the name of a tar's first member. An OVA begins with
// its descriptor (DSP0243, 6.1).
func startsWithOVF(head []byte) bool {
	name, _, _ := bytes.Cut(head[:100], []byte{0})
	return bytes.HasSuffix(bytes.ToLower(name), []byte(".ovf"))
}

// reservedFlagsClear makes the three bytes of gzip a little stronger: RFC 1952,
// 2.3.1.2 has reserved flags be zero.
func reservedFlagsClear(head []byte) bool { return len(head) > 3 && head[3]&0xe0 == 0 }

// skippable is the low byte of a Zstandard skippable frame's magic (RFC 8878,
// 3.1.2), with which pzstd begins its files.
func skippable(head []byte) bool { return head[0]&0xf0 == 0x50 }

// bzip2Block wants a level and the magic of a block or, in an empty file, of
// the end of the stream.
func bzip2Block(head []byte) bool {
	return len(head) > 3 && '1' <= head[3] && head[3] <= '9' &&
		(hasAt(head, 4, "\x31\x41\x59\x26\x53\x59") || hasAt(head, 4, "\x17\x72\x45\x38\x50\x90"))
}

// isPage reports whether head is markup: what a browser, a proxy or an object
// store sends in place of an object that it cannot give.
func isPage(head []byte) bool {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
	text = bytes.ToLower(text[:min(len(text), 16)])
	for _, start := range []string{"<!doctype", "<html", "<?xml", "<error"} {
		if bytes.HasPrefix(text, []byte(start)) {
			return true
		}
	}
	return false
}

func hasAt(b []byte, off int, magic string) bool {
	return len(b) >= off && bytes.HasPrefix(b[off:], []byte(magic))
}

// readRange reads the n bytes at off. Fewer are an error: size promised them.
func readRange(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, off)
	switch {
	case int64(got) == n: // io.EOF may come with the last bytes
		return b, nil
	case err == nil || err == io.EOF: // and no error of a connection that has it inside
		return nil, io.ErrUnexpectedEOF
	default:
		return nil, err
	}
}
