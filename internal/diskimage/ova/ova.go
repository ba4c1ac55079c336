// Package ova finds the disks in an OVA, the archive form of the Open
// Virtualization Format (DMTF DSP0243, ISO/IEC 17203): a tar that holds a
// descriptor of a virtual machine, its disks and, perhaps, a manifest.
//
// Nothing is unpacked. The package hops from one header of the archive to the next
// by small reads, reads the descriptor and the manifest, and tells where the disks
// are. Their bytes are for the reader of their own format, which has no reason to
// trust them more for where they lay.
//
// The archive and all its texts are hostile. Names are compared and never opened,
// and what the descriptor refers to must be a member of the archive.
package ova

import (
	"strings"

	"vmimport/internal/diskimage"
)

// Bounds of an archive. Real ones have three to ten members, and descriptors of
// some ten KiB.
const (
	maxMembers         = 64
	maxNameBytes       = 255
	maxDescriptorBytes = 1 << 20
	maxManifestBytes   = 64 << 10
)

// Archive is what an OVA holds.
type Archive struct {
	// Name is that of the virtual machine, of a stranger's choice: without
	// control characters, at most 255 bytes, perhaps empty.
	Name string
	// Firmware is "efi" or "bios", or empty if the descriptor does not say.
	Firmware string
	// Disks are those with data, at least one, the system disk first.
	Disks []Member
	// Warnings are about what does not hinder an import, for people.
	Warnings []string
}

// Member is a disk in an archive. Its format is the business of whoever reads it.
type Member struct {
	Name         string // for logs; printable, at most 255 bytes, no path
	Offset, Size int64  // of its bytes in the archive, which holds them
	Capacity     int64  // bytes of the disk as the descriptor has it, 0 if unknown: a hint
	Digest       Digest // as the manifest has it; nothing here has checked it
}

// Digest is a line of the manifest. The zero Digest is that of a member of which
// the manifest says nothing.
type Digest struct {
	Algorithm string // "SHA1", "SHA256" or "SHA512"
	Hex       string // in lower case, of the algorithm's length
}

// Open finds the disks in an OVA. The system disk is the one that a virtual
// machine's firmware tries first: one that the descriptor marks for it, else the
// first unit of the first controller of the first machine. Disks that no hardware
// uses come last.
//
// It fails with diskimage.ErrTruncated if the archive ends early; ErrCorrupt if
// archive, descriptor or manifest break their rules; ErrTrailing if data follows
// the archive; ErrUnsupported for what is legal but not read here, such as
// compressed disks, and if there is no descriptor or no disk; ErrSplit if data
// lies outside of the archive or in chunks; ErrDifferencing for a disk with a
// parent; and ErrEncrypted. An error of f's reader is returned wrapped.
func Open(f *diskimage.File) (*Archive, error) {
	dir, err := readDirectory(f)
	if err != nil {
		return nil, err
	}
	descriptor, err := dir.descriptor(f)
	if err != nil {
		return nil, err
	}
	digests, err := dir.manifest(f)
	if err != nil {
		return nil, err
	}
	env, err := parseEnvelope(descriptor)
	if err != nil {
		return nil, err
	}
	a := &Archive{Name: env.name(), Firmware: env.firmware(), Warnings: env.warnings()}
	for _, d := range env.disksInOrder() {
		m, err := dir.disk(env, d)
		if err != nil {
			return nil, err
		}
		a.Disks = append(a.Disks, Member{
			Name: m.name, Offset: m.offset, Size: m.size,
			Capacity: d.capacity(), Digest: digests[m.name],
		})
	}
	if len(a.Disks) == 0 {
		return nil, diskimage.ErrUnsupported.Saw("no disk with data among %d in the descriptor", len(env.Disks))
	}
	return a, nil
}

// descriptor is the content of the one member whose name ends with .ovf. It should
// be the first (DSP0243, "Distribution as a single file"), which matters only to
// those who read the archive as a stream.
func (dir *directory) descriptor(f *diskimage.File) ([]byte, error) {
	found := dir.withSuffix(".ovf")
	if len(found) != 1 {
		return nil, diskimage.ErrUnsupported.Saw("%d OVF descriptors in the archive, not one", len(found))
	}
	if size := found[0].size; size > maxDescriptorBytes {
		return nil, diskimage.ErrUnsupported.Saw("an OVF descriptor of %d bytes, at most %d are read", size, maxDescriptorBytes)
	}
	return f.Read("the OVF descriptor", found[0].offset, found[0].size)
}

// manifest is what the archive's manifest says, if it has one.
func (dir *directory) manifest(f *diskimage.File) (map[string]Digest, error) {
	found := dir.withSuffix(".mf")
	if len(found) == 0 {
		return nil, nil
	}
	if len(found) > 1 {
		return nil, diskimage.ErrUnsupported.Saw("%d manifests in the archive", len(found))
	}
	if size := found[0].size; size > maxManifestBytes {
		return nil, diskimage.ErrUnsupported.Saw("a manifest of %d bytes, at most %d are read", size, maxManifestBytes)
	}
	text, err := f.Read("the manifest", found[0].offset, found[0].size)
	if err != nil {
		return nil, err
	}
	return parseManifest(text)
}

// disk is the member that holds a disk of the descriptor.
func (dir *directory) disk(env *envelope, d *disk) (member, error) {
	ref, ok := env.file(d.FileRef)
	if !ok {
		return member{}, diskimage.ErrCorrupt.Saw("disk %d refers to no file of the descriptor", d.number)
	}
	switch {
	case d.ParentRef != "":
		return member{}, diskimage.ErrDifferencing.Saw("disk %d has a parent", d.number)
	case ref.ChunkSize != "":
		return member{}, diskimage.ErrSplit.Saw("disk %d is stored in chunks", d.number)
	case ref.Compression != "" && !strings.EqualFold(ref.Compression, "identity"):
		return member{}, diskimage.ErrUnsupported.Saw("disk %d is compressed within the archive", d.number)
	case d.shared:
		return member{}, diskimage.ErrUnsupported.Saw("disk %d has the same file as another one", d.number)
	}
	for _, name := range ref.names() {
		if !sibling(name) {
			return member{}, diskimage.ErrSplit.Saw("disk %d lies outside of the archive", d.number)
		}
		if m, ok := dir.find(name); ok {
			return m, nil
		}
	}
	if !dir.closed {
		return member{}, diskimage.ErrTruncated.Saw("disk %d is missing, and so is the end of the archive", d.number)
	}
	return member{}, diskimage.ErrSplit.Saw("disk %d is not in the archive", d.number)
}
