package inspect

import (
	"bytes"
	"errors"
	"io"
	"math"
	"sync/atomic"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/formats"
	"vmimport/internal/diskimage/gz"
	"vmimport/internal/diskimage/partition"
	"vmimport/internal/fault"
)

const (
	// frontBytes is how much is looked at of a disk that can only be read from its
	// front. Partition tables are there.
	frontBytes = 1 << 20
	// enough bounds how much of a file is read to look at the few sectors of its
	// disk. In an image that was made to be slow they lie behind all its tables.
	enough = 32 << 20
)

// lookInside looks at how a disk is divided. f is its file, which is read through
// m. What an import would stumble over is a fault of package diskimage.
func (d *Disk) lookInside(src *formats.Disk, f *diskimage.File, m *meter) error {
	m.limit(enough)
	defer m.limit(unmetered)
	guest, size, reach, err := guestOf(src, f)
	if err == nil && guest == nil {
		return nil
	}
	var table *partition.Table
	if err == nil {
		table, err = partition.Read(guest, size, reach)
	}
	if errors.Is(err, errEnough) {
		d.warn("How the disk is divided was not looked at: too much of the image would have to be read.")
		return nil
	}
	if err != nil {
		return err
	}
	d.PartitionTable = table.Scheme
	d.Partitions = append(d.Partitions, table.Partitions...)
	d.Boot = append(d.Boot, table.Boot...)
	d.Warnings = append(d.Warnings, table.Warnings...)
	return nil
}

// guestOf returns the disk as the guest sees it, its size, which is 0 if it is not
// known, and how much of its front can be read. It returns nil if the disk would
// have to be unpacked first.
func guestOf(src *formats.Disk, f *diskimage.File) (guest io.ReaderAt, size, reach int64, err error) {
	switch {
	case src.Map != nil:
		return src.Guest(f), src.Size, src.Size, nil
	case src.Gzip:
		return guestInGzip(src, f)
	}
	front, err := readFront(src.Disk, f)
	return bytes.NewReader(front), src.Size, int64(len(front)), err
}

// guestInGzip is guestOf for what is in a gzip file, of which the front is known.
func guestInGzip(src *formats.Disk, f *diskimage.File) (io.ReaderAt, int64, int64, error) {
	if src.Format != diskimage.Raw && src.Parser == nil {
		return nil, 0, 0, nil
	}
	head, err := gz.Head(f, frontBytes)
	if err != nil {
		return nil, 0, 0, err
	}
	if src.Format == diskimage.Raw {
		return bytes.NewReader(head), 0, int64(len(head)), nil
	}
	front, err := readFront(src.Disk, diskimage.NewFile(bytes.NewReader(head), int64(len(head))))
	if fault.KindOf(err) == fault.Invalid {
		return nil, 0, 0, nil // that the head ends too early is no fault of the image
	}
	return bytes.NewReader(front), src.Size, int64(len(front)), err
}

// readFront reads the front of a disk that is read from front to back, in one go:
// each read begins at the start of the file.
func readFront(d *diskimage.Disk, f *diskimage.File) ([]byte, error) {
	front := make([]byte, min(frontBytes, d.Size))
	_, err := d.Guest(f).ReadAt(front, 0)
	if errors.Is(err, io.EOF) {
		err = nil // the disk has no more
	}
	return front, err
}

// meter counts what is read of a file, and puts an end to it.
type meter struct {
	r    io.ReaderAt
	left atomic.Int64 // bytes
}

const unmetered = math.MaxInt64

var errEnough = errors.New("more than enough was read")

func newMeter(r io.ReaderAt) *meter {
	m := &meter{r: r}
	m.limit(unmetered)
	return m
}

func (m *meter) limit(n int64) { m.left.Store(n) }

func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	if m.left.Add(-int64(len(p))) < 0 {
		return 0, errEnough
	}
	return m.r.ReadAt(p, off)
}
