// Package qcow2 reads and writes QCOW2 disk images, versions 2 and 3, as QEMU's
// docs/interop/qcow2 specifies them.
//
// The reader opens no other file, whatever the image names: images with a backing
// file or an external data file are refused, and so are encrypted ones, those
// marked corrupt, and those that need a feature which it does not know. It follows
// the active tables only; internal snapshots and bitmaps are not looked at, and
// neither are reference counts, so that an image that was not closed cleanly
// reads as well as any.
package qcow2

import (
	"fmt"

	"vmimport/internal/diskimage"
)

// Open opens the QCOW2 image in f. It reads the header and its extensions alone,
// at most 64 KiB; the tables are read and checked by the map of the disk.
//
// It fails with a fault of package diskimage if the image cannot be imported, and
// else with what the file's reader returned.
func Open(f *diskimage.File) (*diskimage.Disk, error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	d := &diskimage.Disk{
		Format:  diskimage.QCOW2,
		Variant: h.variant(),
		Size:    diskimage.VirtualSize(h.size),
		Map:     &clusterMap{header: h, file: f},
	}
	if h.snapshots > 0 {
		d.Warnings = []string{fmt.Sprintf("The image holds %d internal snapshots. They are left out: the disk is imported as it is now.", h.snapshots)}
	}
	return d, nil
}
