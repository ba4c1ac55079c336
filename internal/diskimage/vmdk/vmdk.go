// Package vmdk reads VMDK images of one file (VMware, Virtual Disk Format 1.1): sparse
// ones, whose tables say where each grain of the disk is, and stream-optimised ones,
// which are read as they come.
//
// A VMDK carries a text that may name any other file of the reader's machine as a
// part of the disk, or as its parent. The package opens none, and refuses each image
// whose text asks for one.
package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"

	"vmimport/internal/diskimage"
)

// FrontBytes is how much of an image's front tells all that OpenStream has to know:
// the header, and a descriptor that is no longer than maxDescriptorBytes. All writers
// put it right behind the header, and most give it 10 KiB.
const FrontBytes = 128 << 10

// Open opens an image of which any part can be read. It reads the front of it, and of
// a stream-optimised one the footer or, if the tables are in front, the end of these:
// less than 200 KiB in all. The tables of a sparse image are read and checked by the
// map of the disk.
//
// It fails with a fault of package diskimage that says what is wrong with the image,
// or with what the file's reader returned.
func Open(f *diskimage.File) (*diskimage.Disk, error) {
	front, err := f.Read("the front", 0, min(f.Size(), FrontBytes))
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(front, []byte(magic)) {
		return nil, refuse(front)
	}
	h, disk, err := open(front)
	if err != nil {
		return nil, err
	}
	if h.stream() {
		var s *stream
		if s, err = newStream(h, disk.Size); err == nil {
			disk.Parser, err = s.parser, s.checkFile(f)
		}
	} else {
		disk.Map, err = openGrains(f, h, disk.Size)
	}
	if err != nil {
		return nil, err
	}
	return disk, nil
}

// OpenStream opens a stream-optimised image of which only the first bytes are known,
// such as one that comes out of gzip: FrontBytes of them, or all if there are fewer.
// A sparse image is an ErrUnsupported, for it cannot be read as it comes; IsStream tells
// whether that is why.
func OpenStream(head []byte) (*diskimage.Disk, error) {
	h, disk, err := open(head)
	switch {
	case err != nil:
		return nil, err
	case !h.stream():
		return nil, diskimage.ErrUnsupported.Saw("a sparse image cannot be read from front to end")
	}
	s, err := newStream(h, disk.Size)
	if err != nil {
		return nil, err
	}
	disk.Parser = s.parser
	return disk, nil
}

// IsStream reports whether head begins with a header that says it is that of a
// stream-optimised image, be it one that OpenStream takes or not.
func IsStream(head []byte) bool {
	return len(head) >= headerBytes && bytes.HasPrefix(head, []byte(magic)) &&
		header{flags: binary.LittleEndian.Uint32(head[8:])}.stream()
}

// PeekSize returns the size of the disk in bytes if head begins with the header of a
// sparse or stream-optimised image. It is a hint: VirtualBox rounds it up to a grain,
// and only the descriptor has the size itself.
func PeekSize(head []byte) (int64, bool) {
	h, err := parseHeader(head)
	if err != nil || diskimage.CheckSize(h.bytes()) != nil {
		return 0, false
	}
	return h.bytes(), true
}

// open reads what both kinds of image begin with.
func open(front []byte) (header, *diskimage.Disk, error) {
	h, err := parseHeader(front)
	if err != nil {
		return h, nil, err
	}
	from, to := h.descriptor()
	if to > int64(len(front)) {
		return h, nil, diskimage.ErrTruncated.Saw("the descriptor ends at %d, after %d bytes of the file", to, len(front))
	}
	if front[from] == 0 {
		// QEMU writes the extents of a disk in several files like this.
		return h, nil, diskimage.ErrSplit.Saw("an empty descriptor")
	}
	desc, err := parseDescriptor(front[from:to])
	if err != nil {
		return h, nil, err
	}
	size, err := desc.size(h)
	if err != nil {
		return h, nil, err
	}
	disk := &diskimage.Disk{Format: diskimage.VMDK, Variant: desc.createType, Size: size}
	if h.unclean {
		disk.Warnings = append(disk.Warnings, "The image was not closed cleanly; the last writes to it may be missing.")
	}
	if desc.tracked {
		disk.Warnings = append(disk.Warnings, "The image names a file of changed blocks, which was not looked at.")
	}
	return h, disk, nil
}

// refuse says why a file without the header of a sparse extent is none of ours. A
// text is a descriptor whose disk is in other files: no program puts both into one.
func refuse(front []byte) error {
	if bytes.HasPrefix(front, []byte("COWD")) {
		return diskimage.ErrUnsupported.Saw("a sparse extent of ESX")
	}
	if bytes.HasPrefix(front, []byte("\xbe\xba\xfe\xca\x00\x00\x00\x00")) {
		return diskimage.ErrUnsupported.Saw("an SEsparse extent")
	}
	_, err := parseDescriptor(front[:min(len(front), maxDescriptorBytes)])
	if err == nil || errors.Is(err, diskimage.ErrSplit) {
		return diskimage.ErrSplit.Saw("a descriptor without the data of the disk").
			Try("Import the data file that belongs to it as a raw image if that is flat (-flat.vmdk), or write the disk into one file, for example with qemu-img convert or ovftool, and import that.")
	}
	return err
}
