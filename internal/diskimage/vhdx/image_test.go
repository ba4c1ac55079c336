package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vmimport/internal/diskimage"
)

// Where qemu-img puts things, as long as the block allocation table fits in 1 MiB.
const (
	batAt   = 2 * mib
	tableAt = 3 * mib
	itemsAt = tableAt + tableBytes
	dataAt  = 8 * mib

	sizeAt     = itemsAt + 8
	logicalAt  = itemsAt + 32
	physicalAt = itemsAt + 36
)

// image is a file with changes that are kept apart from it, so that it can be of any
// size, and shared.
type image struct {
	base    io.ReaderAt // nil is zeros
	size    int64
	changes []change // later ones win
}

type change struct {
	at int64
	b  []byte
}

func over(f *diskimage.File) *image { return &image{base: f, size: f.Size()} }

func (m *image) put(at int64, b []byte) { m.changes = append(m.changes, change{at, b}) }

func (m *image) put16(at int64, v uint16) { m.put(at, le.AppendUint16(nil, v)) }
func (m *image) put32(at int64, v uint32) { m.put(at, le.AppendUint32(nil, v)) }
func (m *image) put64(at int64, v uint64) { m.put(at, le.AppendUint64(nil, v)) }

// regions puts b at the same place of both region tables.
func (m *image) regions(at int64, b []byte) { m.put(regions1At+at, b); m.put(regions2At+at, b) }

// seal corrects all checksums.
func (m *image) seal() {
	for at, n := range map[int64]int64{header1At: headerBytes, header2At: headerBytes, regions1At: tableBytes, regions2At: tableBytes} {
		m.put32(at+4, 0)
		b := make([]byte, n)
		if _, err := m.ReadAt(b, at); err != nil {
			continue // the file is too short
		}
		m.put32(at+4, crc32.Checksum(b, castagnoli))
	}
}

func (m *image) file() *diskimage.File { return diskimage.NewFile(m, m.size) }

// save writes the image into a sparse file.
func (m *image) save(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.vhdx")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(m.size); err != nil {
		t.Fatal(err)
	}
	page, zeros := make([]byte, 4096), make([]byte, 4096)
	for at := int64(0); at < m.size; at += int64(len(page)) {
		n, err := m.ReadAt(page, at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if bytes.Equal(page[:n], zeros[:n]) {
			continue
		}
		if _, err := f.WriteAt(page[:n], at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// ReadAt implements io.ReaderAt.
func (m *image) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if m.base != nil {
		if _, err := m.base.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
	}
	for _, c := range m.changes {
		from, to := max(off, c.at), min(off+int64(len(p)), c.at+int64(len(c.b)))
		if from < to {
			copy(p[from-off:to-off], c.b[from-c.at:])
		}
	}
	if off+int64(len(p)) > m.size {
		return int(max(0, m.size-off)), io.EOF
	}
	return len(p), nil
}

// verdict is what an import says to the file.
func verdict(f *diskimage.File) error {
	d, err := Open(f)
	if err != nil {
		return err
	}
	_, err = extents(d, f, 0)
	return err
}

// extents returns the extents of a disk from an offset on, without what lies before
// it. Its errors but those of the image are about a contract that was broken.
func extents(d *diskimage.Disk, f *diskimage.File, from int64) ([]diskimage.Extent, error) {
	var all []diskimage.Extent
	end := int64(0)
	for e, err := range d.Map.Extents(from) {
		if err != nil {
			return nil, err
		}
		joined := len(all) > 0 && all[len(all)-1].End() == e.File
		switch {
		case e.Packed || e.Length <= 0 || e.Length != e.Stored:
			return nil, fmt.Errorf("extent %+v", e)
		case e.Guest < end || e.Guest >= d.Size || e.Guest+e.Length <= from:
			return nil, fmt.Errorf("extent %+v behind one that ends at %d, from %d", e, end, from)
		case e.Guest == end && joined:
			return nil, fmt.Errorf("extent %+v was not joined", e)
		case !f.Has(e.File, e.Stored):
			return nil, fmt.Errorf("extent %+v is not in the file", e)
		}
		end = e.Guest + e.Length
		if before := from - e.Guest; before > 0 {
			e = diskimage.Extent{Guest: from, Length: e.Length - before, File: e.File + before, Stored: e.Stored - before}
		}
		all = append(all, e)
	}
	return all, nil
}

// mustOpen opens an image that is good.
func mustOpen(t testing.TB, f *diskimage.File) *diskimage.Disk {
	t.Helper()
	d, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if d.Format != diskimage.VHDX || d.Map == nil || d.Parser != nil {
		t.Fatalf("not a disk with a map: %+v", d)
	}
	return d
}
