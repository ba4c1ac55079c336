package diskimage

import "vmimport/internal/fault"

// What a format's reader has against an image, to be tested with errors.Is. Each
// is given its evidence with Saw; never with text out of the image.
//
// The first four are images that would have their reader open something else, the
// classic attack on image services.
var (
	ErrBackingFile = fault.New(fault.Invalid, "image_backing_file",
		"The image names a backing file, so it is not complete.").
		Try("Flatten it, for example with qemu-img convert, which writes an image without a backing file, and import that.")
	ErrExternalData = fault.New(fault.Invalid, "image_external_data",
		"The image keeps its data in another file.").
		Try("Write it into one file, for example with qemu-img convert, and import that.")
	ErrDifferencing = fault.New(fault.Invalid, "image_differencing",
		"The image holds only the differences to a parent image.").
		Try("Merge it with its parents (consolidate or delete the snapshots, or export the machine again), and import the whole disk.")
	ErrSplit = fault.New(fault.Invalid, "image_split",
		"The image consists of several files.").
		Try("Write the disk into one file, for example with qemu-img convert or ovftool, and import that.")

	ErrEncrypted = fault.New(fault.Invalid, "image_encrypted", "The image is encrypted.").
			Try("Write it without encryption, for example with qemu-img convert, and import that.")
	ErrDirtyLog = fault.New(fault.Invalid, "image_log_not_replayed",
		"The image was not closed cleanly: its log holds changes that are not in the image yet.").
		Try("Open it once on the system that it comes from, or repair it with qemu-img check -r all, and import it then.")
	ErrUnknownFeature = fault.New(fault.Invalid, "image_feature_unknown",
		"The image needs a feature that is not known here.").
		Try("Write the disk into a new image, for example with qemu-img convert, and import that.")
	ErrUnsupported = fault.New(fault.Invalid, "image_variant_unsupported",
		"The image is of a kind of its format that is not supported.").
		Try("Write the disk into a new image, for example with qemu-img convert, and import that.")
	ErrMarkedCorrupt = fault.New(fault.Invalid, "image_marked_corrupt",
		"The image says of itself that it is damaged.").
		Try("Repair it, for example with qemu-img check -r all, look whether the disk is whole, and import it then.")

	ErrCorrupt = fault.New(fault.Invalid, "image_corrupt", "The image is damaged: it breaks the rules of its format.").
			Try("Check the file on the system that it comes from, export it again, and upload it again.")
	ErrTruncated = fault.New(fault.Invalid, "image_truncated", "The image is cut short.").
			Try("Check that the file is complete on the system that it comes from, and upload it again.")
	ErrTrailing = fault.New(fault.Invalid, "image_trailing_data", "The file goes on behind the end of the image.").
			Try("Check that nothing was appended to the file, export it again, and upload it again.")
	ErrShared = fault.New(fault.Invalid, "image_data_shared",
		"Too many parts of the disk share the same data in the image.").
		Try("Write the disk into a new image, for example with qemu-img convert, and import that.")
	ErrFragmented = fault.New(fault.Invalid, "image_too_fragmented",
		"The image's data lies in too many small parts.").
		Try("Write the disk into a new image, for example with qemu-img convert, and import that.")

	ErrEmptyDisk = fault.New(fault.Invalid, "disk_empty", "The disk in the image has a size of zero.").
			Try("Check that the right file was uploaded.")
	ErrTooLarge = fault.New(fault.Invalid, "disk_too_large", "The disk is larger than the region allows.").
			Try("Import a smaller disk, or ask the operator about the limit.")
	ErrBomb = fault.New(fault.Invalid, "image_unpacks_too_large",
		"The file unpacks to more than the disk may have.").
		Try("Import the image without the compression around it.")
	ErrDisguised = fault.New(fault.Invalid, "disk_looks_like_image",
		"The disk in the image is a disk image itself.").
		Try("Import the image that is inside.")
	ErrNested = fault.New(fault.Invalid, "image_nested", "The file is an archive within an archive.").
			Try("Unpack it once, and import what is inside.")
)

// CheckSize fails with ErrEmptyDisk or ErrTooLarge if a disk of size bytes is none
// that any format can hold.
func CheckSize(size int64) error {
	switch {
	case size <= 0:
		return ErrEmptyDisk
	case size > MaxDiskBytes:
		return ErrTooLarge.Saw("%d bytes, at most %d are possible", size, int64(MaxDiskBytes))
	}
	return nil
}
