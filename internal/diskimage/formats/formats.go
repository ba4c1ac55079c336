// Package formats opens whatever a customer may bring: it detects what an object
// is, holds that against what it was declared as, and has the format's own package
// read it. It is the one place that knows every format.
package formats

import (
	"errors"
	"fmt"
	"strings"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/gz"
	"vmimport/internal/diskimage/ova"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/diskimage/vdi"
	"vmimport/internal/diskimage/vhd"
	"vmimport/internal/diskimage/vhdx"
	"vmimport/internal/diskimage/vmdk"
	"vmimport/internal/fault"
)

// readers open an image of each format that can be imported and is a disk.
var readers = map[diskimage.Format]func(*diskimage.File) (*diskimage.Disk, error){
	diskimage.Raw:   diskimage.OpenRaw,
	diskimage.QCOW2: qcow2.Open,
	diskimage.VMDK:  vmdk.Open,
	diskimage.VHD:   vhd.Open,
	diskimage.VHDX:  vhdx.Open,
	diskimage.VDI:   vdi.Open,
}

// peekers tell the size of a disk by the first bytes of its image, where these do.
var peekers = map[diskimage.Format]func([]byte) (int64, bool){
	diskimage.QCOW2: qcow2.PeekSize,
	diskimage.VHD:   vhd.PeekSize,
	diskimage.VDI:   vdi.PeekSize,
	diskimage.VMDK:  vmdk.PeekSize,
}

// Source is an object that holds one disk or several.
type Source struct {
	// Format is that of the object: of its disk, or of what is around the disks.
	Format diskimage.Format
	// Disks are in the order of the image, the system disk first.
	Disks    []Disk
	Warnings []string

	file *diskimage.File
}

// Disk is one disk of a Source.
type Disk struct {
	// Disk is what is known of it. In Gzip its Size is 0 if only the end of the
	// file tells it, its Map is always nil, and it has a Parser only if it can be
	// read as it comes; Gzip around any other has to be unpacked first.
	*diskimage.Disk

	Gzip   bool
	Member string // its name in an archive; the customer's, so not for messages

	offset, length int64
	declared       diskimage.Format
}

// String names the object's format, in the form of diskimage.Declared.
func (s *Source) String() string {
	if s.Format == diskimage.Gzip {
		return diskimage.Declared{Format: s.Disks[0].Format, Gzip: true}.String()
	}
	return string(s.Format)
}

// Place is where in the object the disk's file is.
func (d *Disk) Place() (offset, length int64) { return d.offset, d.length }

// File returns the bytes of disk i, packed as they are.
func (s *Source) File(i int) *diskimage.File {
	d := &s.Disks[i]
	return s.file.Section(d.offset, d.length)
}

// Limits are what a disk must keep within.
type Limits struct {
	MaxDisk int64 // bytes; 0: what any format can hold
}

// bytes is MaxDisk, defaulted.
func (l Limits) bytes() int64 {
	if l.MaxDisk <= 0 {
		return diskimage.MaxDiskBytes
	}
	return min(l.MaxDisk, diskimage.MaxDiskBytes)
}

// Check fails with diskimage.ErrTooLarge if a disk of size bytes is not within them.
func (l Limits) Check(size int64) error {
	if size > l.bytes() {
		return diskimage.ErrTooLarge.Saw("%d bytes, at most %d are allowed", size, l.bytes())
	}
	return nil
}

// Open opens the object behind f, which was declared as d. It reads headers, trailers
// and what an archive says of itself, and no tables. It fails with a fault of package
// diskimage that names what is wrong with the object, or with what reading it
// returned.
func Open(f *diskimage.File, d diskimage.Declared, limits Limits) (*Source, error) {
	format, err := diskimage.Detect(f, f.Size())
	if err != nil {
		return nil, err
	}
	if err := d.Check(format); err != nil {
		return nil, err
	}
	src := &Source{Format: format, file: f}
	switch format {
	case diskimage.Gzip:
		err = src.openGzip(d.Format, limits)
	case diskimage.OVA:
		err = src.openArchive(limits)
	default:
		err = src.openPlain(limits)
	}
	if err != nil {
		return nil, err
	}
	return src, nil
}

// OpenDisk opens a file of a format that is a disk.
func OpenDisk(f *diskimage.File, format diskimage.Format) (*diskimage.Disk, error) {
	open, ok := readers[format]
	if !ok {
		return nil, diskimage.Refuse(format)
	}
	d, err := open(f)
	if err != nil {
		return nil, err
	}
	return d, diskimage.CheckSize(d.Size)
}

func (s *Source) openPlain(limits Limits) error {
	disk, err := OpenDisk(s.file, s.Format)
	if err != nil {
		return err
	}
	s.Disks = []Disk{{Disk: disk, length: s.file.Size()}}
	return limits.Check(disk.Size)
}

// headBytes is how much of what is in gzip is looked at: what a VMDK needs, which is
// the most.
const headBytes = vmdk.FrontBytes

// openGzip looks at the front of what is in the object. Only there is no telling a
// fixed VHD from a raw disk, since the one thing that it has is a footer.
func (s *Source) openGzip(declared diskimage.Format, limits Limits) error {
	head, err := gz.Head(s.file, headBytes)
	if err != nil {
		return err
	}
	format, err := diskimage.DetectHead(head)
	if err != nil {
		return err
	}
	if format.Wraps() {
		return diskimage.ErrNested.Saw("%s in gzip", format)
	}
	if !(format == diskimage.Raw && declared == diskimage.VHD) {
		if err := diskimage.Check(declared, format); err != nil {
			return err
		}
	}
	if readers[format] == nil {
		return diskimage.Refuse(format)
	}
	disk := &diskimage.Disk{Format: format}
	if peek := peekers[format]; peek != nil {
		disk.Size, _ = peek(head)
	}
	if format == diskimage.VMDK {
		switch stream, err := vmdk.OpenStream(head); {
		case err == nil:
			disk = stream
		case vmdk.IsStream(head) || !errors.Is(err, diskimage.ErrUnsupported):
			return err
		}
	}
	s.Disks = []Disk{{Disk: disk, Gzip: true, length: s.file.Size(), declared: declared}}
	return limits.Check(disk.Size)
}

// openArchive opens the disks of an OVA.
func (s *Source) openArchive(limits Limits) error {
	archive, err := ova.Open(s.file)
	if err != nil {
		return err
	}
	s.Warnings = archive.Warnings
	if archive.Firmware == "efi" {
		s.Warnings = append(s.Warnings, "The archive's virtual machine boots by UEFI.")
	}
	for i, m := range archive.Disks {
		disk, err := openMember(s.file.Section(m.Offset, m.Size))
		if err == nil {
			err = limits.Check(disk.Size)
		}
		if err != nil {
			return inArchive(i+1, err)
		}
		s.Disks = append(s.Disks, Disk{Disk: disk, Member: m.Name, offset: m.Offset, length: m.Size})
	}
	return nil
}

func openMember(f *diskimage.File) (*diskimage.Disk, error) {
	format, err := diskimage.Detect(f, f.Size())
	if err != nil {
		return nil, err
	}
	if format.Wraps() {
		return nil, diskimage.ErrNested.Saw("%s in an archive", format)
	}
	return OpenDisk(f, format)
}

// inArchive says which disk it was that err is about. A fault says it in its evidence,
// which is what the customer reads.
func inArchive(n int, err error) error {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Invalid {
		return e.Saw("%s", strings.TrimSuffix(fmt.Sprintf("disk %d of the archive: %s", n, e.Evidence), ": "))
	}
	return fmt.Errorf("disk %d of the archive: %w", n, err)
}

// Bound is the size of disk i, or where that is not known yet the largest that it may
// turn out to have.
func (s *Source) Bound(i int, limits Limits) int64 {
	switch d := &s.Disks[i]; {
	case d.Size > 0:
		return d.Size
	case d.Format == diskimage.Raw:
		return min(diskimage.VirtualSize(s.Content(i, limits)), limits.bytes())
	}
	return limits.bytes()
}

// Content bounds what the gzip file of disk i may unpack to: by what DEFLATE can
// do, and by the disk that is allowed, with some room for the tables of its format.
func (s *Source) Content(i int, limits Limits) int64 {
	d := &s.Disks[i]
	size := limits.bytes()
	if d.Size > 0 {
		size = min(size, d.Size)
	}
	if d.Format != diskimage.Raw {
		size += size/16 + 128<<20
	} else {
		size += 2 * diskimage.SectorBytes // the footer of a fixed VHD, and to see that there is more
	}
	return min(size, gz.MaxContent(d.length))
}

// Declared is the format that the disk in a gzip file was declared as.
func (d *Disk) Declared() diskimage.Format { return d.declared }
