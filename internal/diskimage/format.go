// Package diskimage is what all readers of disk images have in common: how formats
// are told apart, what a reader says of an image (a Map or a Parser), and what it
// refuses.
//
// A disk image is hostile input. A reader opens nothing that an image names, allocates
// by no number that the image holds before it is checked against the file's length
// and a constant, and refuses a file that is two formats at once, since two readers of
// it need not agree on which one it is. The formats themselves are in packages below,
// and package formats knows all of them.
package diskimage

import "vmimport/internal/fault"

// Format is what the bytes of an object are.
type Format string

// The formats that Detect knows. Many are recognised only so that they can be refused
// by name, and never pass for the contents of a raw disk.
const (
	Raw       Format = "raw" // nothing else matched; the object is the disk
	QCOW2     Format = "qcow2"
	QCOW      Format = "qcow" // version 1 of QCOW2's signature
	VMDK      Format = "vmdk" // hosted sparse and stream-optimised extents
	VMDKText  Format = "vmdk-descriptor"
	COWD      Format = "vmdk-cowd"     // ESX 3 and older
	SESparse  Format = "vmdk-sesparse" // ESXi snapshots
	VHD       Format = "vhd"           // fixed, dynamic and differencing
	VHDX      Format = "vhdx"
	VDI       Format = "vdi"
	QED       Format = "qed"
	LUKS      Format = "luks"
	Parallels Format = "parallels"
	DMG       Format = "dmg"
	Bochs     Format = "bochs"
	Cloop     Format = "cloop"
	OVA       Format = "ova" // a tar whose first member is an .ovf
	Tar       Format = "tar"
	Gzip      Format = "gzip"
	XZ        Format = "xz"
	Zstd      Format = "zstd"
	Bzip2     Format = "bzip2"
	Zip       Format = "zip"
	SevenZip  Format = "7z"
)

const (
	convert = "Convert it, for example with qemu-img convert -O qcow2, and import the result."
	unpack  = "Unpack it and import the disk image inside."
)

// traits is what the package knows of a format besides its signature.
type traits struct {
	label  string // with its article, for messages
	family Format // the name under which the format is declared, if not its own
	remedy string // how to get from the format to one that can be imported
}

var formats = map[Format]traits{
	Raw:       {label: "a raw disk image"},
	QCOW2:     {label: "a QCOW2 image"},
	QCOW:      {label: "a QCOW version 1 image", family: QCOW2, remedy: convert},
	VMDK:      {label: "a VMDK image"},
	VMDKText:  {label: "a VMDK descriptor without the disk's data", family: VMDK, remedy: "Import the data file that belongs to it if that is flat (-flat.vmdk), as a raw disk, or write the whole disk into one file with qemu-img convert."},
	COWD:      {label: "a VMDK image of the ESX sparse kind", family: VMDK, remedy: convert},
	SESparse:  {label: "a VMDK snapshot of the SEsparse kind", family: VMDK, remedy: "Consolidate the snapshots of the virtual machine and export it again."},
	VHD:       {label: "a VHD image"},
	VHDX:      {label: "a VHDX image"},
	VDI:       {label: "a VDI image"},
	QED:       {label: "a QED image", remedy: convert},
	LUKS:      {label: "a LUKS encrypted image", remedy: "Decrypt it and import the raw disk image."},
	Parallels: {label: "a Parallels image", remedy: convert},
	DMG:       {label: "a DMG image", remedy: convert},
	Bochs:     {label: "a Bochs image", remedy: convert},
	Cloop:     {label: "a cloop image", remedy: convert},
	OVA:       {label: "an OVA archive"},
	Tar:       {label: "a tar archive", family: OVA, remedy: unpack},
	Gzip:      {label: "a gzip file"},
	XZ:        {label: "an xz file", remedy: unpack},
	Zstd:      {label: "a Zstandard file", remedy: unpack},
	Bzip2:     {label: "a bzip2 file", remedy: unpack},
	Zip:       {label: "a zip archive", remedy: unpack},
	SevenZip:  {label: "a 7z archive", remedy: unpack},
}

// label names f in a sentence. A name that is none of ours may come from a
// customer and is not repeated.
func (f Format) label() string {
	if t, ok := formats[f]; ok {
		return t.label
	}
	return "an image of an unknown format"
}

// family is the name under which f is declared: all kinds of VMDK are ".vmdk".
func (f Format) family() Format {
	if fam := formats[f].family; fam != "" {
		return fam
	}
	return f
}

// Check compares what was declared, by a parameter or by the object's name,
// with what was detected. Nothing declared agrees with everything. The error
// has the code format_mismatch.
func Check(declared, detected Format) error {
	if declared == "" || declared.family() == detected.family() {
		return nil
	}
	return fault.New(fault.Invalid, "format_mismatch",
		"The object was declared as "+declared.label()+", but is "+detected.label()+".").
		Saw("detected format: %s", detected).
		Try("Give the object the name or the format that its contents have, and import it again.")
}

// Wraps reports whether f holds other files, and is no disk itself.
func (f Format) Wraps() bool {
	switch f {
	case OVA, Tar, Gzip, XZ, Zstd, Bzip2, Zip, SevenZip:
		return true
	}
	return false
}

// Refuse is the error for an object of a format that has no reader. Its code is
// format_unsupported.
func Refuse(f Format) error {
	return fault.New(fault.Invalid, "format_unsupported",
		"The object is "+f.label()+", which cannot be imported.").
		Saw("detected format: %s", f).
		Try(formats[f].remedy)
}
