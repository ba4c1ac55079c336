package vmdk

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"vmimport/internal/diskimage"
)

// The kinds of image that are one file (Virtual Disk Format 1.1, "The Header").
const (
	monolithicSparse = "monolithicSparse"
	streamOptimized  = "streamOptimized"
)

// descriptor is what matters of an image's text.
type descriptor struct {
	createType string
	sectors    uint64 // of the one extent
	tracked    bool   // it names a file of changed blocks

	extents   int
	hasParent bool // a parentCID was seen; it says that there is none
}

// parseDescriptor reads the text of an image, which ends with the first zero byte. It
// understands each line or refuses the text: comments, extents, and key = value, with
// any key that does not change what the disk is. Line ends may be those of Windows,
// and lines may be indented.
func parseDescriptor(text []byte) (descriptor, error) {
	var d descriptor
	text, _, _ = bytes.Cut(text, []byte{0})
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if bytes.IndexFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) >= 0 {
			return d, diskimage.ErrCorrupt.Saw("control characters in line %d of the descriptor", n)
		}
		if err := d.line(n, line); err != nil {
			return d, err
		}
	}
	return d, d.check()
}

// check says what the text as a whole lacks.
func (d *descriptor) check() error {
	switch {
	case d.createType == "":
		return diskimage.ErrCorrupt.Saw("no createType in the descriptor")
	case !d.hasParent:
		return diskimage.ErrCorrupt.Saw("no parentCID in the descriptor")
	case d.extents == 0:
		return diskimage.ErrCorrupt.Saw("no extent in the descriptor")
	}
	return nil
}

// size is the size of the disk in bytes by the header and the extent. They agree,
// but that VirtualBox has the header's count whole grains (vmdkAddFileBackedExtent).
func (d *descriptor) size(h header) (int64, error) {
	whole := (d.sectors + h.grain - 1) &^ (h.grain - 1)
	size := h.bytes()
	switch {
	case (d.createType == streamOptimized) != h.stream():
		return 0, diskimage.ErrCorrupt.Saw("the descriptor and the header disagree about compression")
	case h.capacity == d.sectors:
	case h.capacity == whole && d.sectors > 0 && whole > d.sectors:
		size = int64(min(d.sectors, maxSector)) * sectorBytes
	default:
		return 0, diskimage.ErrCorrupt.Saw("a disk of %d sectors in the header, %d in the descriptor", h.capacity, d.sectors)
	}
	return size, diskimage.CheckSize(size)
}

func (d *descriptor) line(n int, line []byte) error {
	word, _, _ := bytes.Cut(line, []byte{' '})
	word, _, _ = bytes.Cut(word, []byte{'\t'})
	if sameWord(word, "RW") || sameWord(word, "RDONLY") || sameWord(word, "NOACCESS") {
		return d.extent(n, line)
	}
	key, value, ok := bytes.Cut(line, []byte{'='})
	key = bytes.TrimSpace(key)
	if !ok || !isKey(key) {
		return diskimage.ErrCorrupt.Saw("line %d of the descriptor is not understood", n)
	}
	return d.set(strings.ToLower(string(key)), unquote(value))
}

func isKey(key []byte) bool {
	for _, c := range key {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-', c == ':':
		default:
			return false
		}
	}
	return len(key) > 0
}

func unquote(value []byte) string {
	s := strings.TrimSpace(string(value))
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = strings.TrimSpace(s[1 : len(s)-1])
	}
	return s
}

// set takes a line key = value. Keys are in lower case.
func (d *descriptor) set(key, value string) error {
	switch key {
	case "version":
		if value != "1" && value != "2" && value != "3" {
			return diskimage.ErrUnknownFeature.Saw("a descriptor of another version than 1, 2 and 3")
		}
	case "createtype":
		return d.setType(value)
	case "parentcid":
		if !sameWord(value, "ffffffff") {
			return diskimage.ErrDifferencing.Saw("the descriptor has a parent's content ID")
		}
		d.hasParent = true
	case "parentfilenamehint", "ddb.nativeparenthint":
		return diskimage.ErrDifferencing.Saw("the descriptor names a parent")
	case "ddb.uuid.parent": // VirtualBox; in a disk without a parent it is zero
		if strings.Trim(value, "0-{}") != "" {
			return diskimage.ErrDifferencing.Saw("the descriptor has a parent's UUID")
		}
	case "changetrackpath":
		d.tracked = true
	case "ddb.iofilters": // vSphere encrypts in such a filter
		if strings.Contains(strings.ToLower(value), "crypt") {
			return diskimage.ErrEncrypted.Saw("an encryption filter in the descriptor")
		}
	default:
		// encryption.keySafe and encryption.data of Workstation, encryptionKeys of vSphere
		if strings.HasPrefix(key, "encryption") || strings.Contains(key, "keysafe") {
			return diskimage.ErrEncrypted.Saw("encryption keys in the descriptor")
		}
	}
	return nil
}

func (d *descriptor) setType(value string) error {
	if d.createType != "" {
		return diskimage.ErrCorrupt.Saw("more than one createType in the descriptor")
	}
	for _, t := range []string{monolithicSparse, streamOptimized} {
		if sameWord(value, t) {
			d.createType = t
			return nil
		}
	}
	for _, t := range []string{"monolithicFlat", "2GbMaxExtentSparse", "2GbMaxExtentFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
		"vmfs", "vmfsPreallocated", "vmfsEagerZeroedThick", "vmfsThin", "vmfsSparse", "vmfsRaw", "vmfsRDM", "vmfsRDMP",
		"vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap", "seSparse", "fullDevice", "partitionedDevice"} {
		if sameWord(value, t) {
			return diskimage.ErrSplit.Saw("a disk of the kind %s", t)
		}
	}
	return diskimage.ErrUnsupported.Saw("an unknown createType")
}

// extent takes a line such as RW 4192256 SPARSE "disk.vmdk". The name would be that
// of the file itself, and is empty in what FreeBSD's mkimg writes.
func (d *descriptor) extent(n int, line []byte) error {
	if d.extents++; d.extents > 1 {
		return diskimage.ErrSplit.Saw("more than one extent")
	}
	head, name, quoted := bytes.Cut(line, []byte{'"'})
	name, behind, closed := bytes.Cut(name, []byte{'"'})
	fields := bytes.Fields(head)
	if len(fields) != 3 {
		return diskimage.ErrCorrupt.Saw("line %d of the descriptor is not understood", n)
	}
	sectors, err := strconv.ParseUint(string(fields[1]), 10, 64)
	switch {
	case err != nil:
		return diskimage.ErrCorrupt.Saw("line %d of the descriptor has no size", n)
	case !sameWord(fields[2], "SPARSE"):
		return diskimage.ErrSplit.Saw("an extent that is not sparse")
	case sameWord(fields[0], "NOACCESS"):
		return diskimage.ErrUnsupported.Saw("an extent without access")
	case !quoted || !closed || len(behind) > 0 || len(bytes.TrimSpace(head)) == len(head):
		return diskimage.ErrCorrupt.Saw("line %d of the descriptor is not understood", n)
	}
	if isPath(name) {
		return diskimage.ErrSplit.Saw("an extent in another place")
	}
	d.sectors = sectors
	return nil
}

// sameWord compares words of a descriptor, which VMware takes in any case.
func sameWord[T string | []byte](word T, known string) bool {
	return strings.EqualFold(string(word), known)
}

// isPath reports whether a name is more than that of a file. In GBK, Shift JIS and
// Big5, which VMware writes on such systems, the second byte of a character may be a
// backslash.
func isPath(name []byte) bool {
	wide := !utf8.Valid(name)
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '/', c == '\\', c == ':':
			return true
		case wide && c >= 0x81:
			i++
		}
	}
	return false
}
