package vdi_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage/imagetest"
)

// create has qemu-img make an empty image of the size, and qemu-io run the commands
// on it.
func create(t testing.TB, size string, commands ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.vdi")
	imagetest.QemuImg(t, "create", "-q", "-f", "vdi", path, size)
	imagetest.QemuIO(t, path, "vdi", commands...)
	return path
}

// toRaw has qemu-img unpack the image at path.
func toRaw(t testing.TB, path string) (raw string) {
	t.Helper()
	raw = filepath.Join(t.TempDir(), "disk.raw")
	imagetest.QemuImg(t, "convert", "-f", "vdi", "-O", "raw", path, raw)
	return raw
}

func load(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func store(t testing.TB, b []byte) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.vdi")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var le = binary.LittleEndian

// Where fields are in an image.
const (
	version     = 68
	length      = 72
	kind        = 76
	mapAt       = 340
	dataAt      = 344
	sectorBytes = 360
	diskSize    = 368
	blockBytes  = 376
	extraBytes  = 380
	blocks      = 384
	allocated   = 388
	link        = 424
	parent      = 440
)

// handMade is an image of a disk, with the long header and the map entries of
// VirtualBox. Data begins behind the map and a gap, and is all the numbers of blocks
// in the file. align is where map and data may begin.
func handMade(size, block, align int, entries ...uint32) []byte {
	used := 0
	for _, e := range entries {
		if e < 0xfffffffe {
			used = max(used, int(e)+1)
		}
	}
	b := make([]byte, 2*align+used*block)
	copy(b, "<<< Oracle VM VirtualBox Disk Image >>>\n")
	copy(b[64:], "\x7f\x10\xda\xbe")
	le.PutUint32(b[version:], 0x00010001)
	le.PutUint32(b[length:], 400)
	le.PutUint32(b[kind:], 1)
	le.PutUint32(b[mapAt:], uint32(align))
	le.PutUint32(b[dataAt:], uint32(2*align))
	le.PutUint32(b[sectorBytes:], 512)
	le.PutUint64(b[diskSize:], uint64(size))
	le.PutUint32(b[blockBytes:], uint32(block))
	le.PutUint32(b[blocks:], uint32(len(entries)))
	le.PutUint32(b[allocated:], uint32(used))
	copy(b[392:], "0123456789abcdef0123456789ABCDEF")
	for i, e := range entries {
		le.PutUint32(b[align+4*i:], e)
	}
	for i := range used {
		copy(b[2*align+i*block:][:block], bytes.Repeat([]byte{'0' + byte(i)}, block))
	}
	return b
}

// small is an image of 2 KiB whose second and last block has two sectors on the disk
// and in the file.
func small() []byte {
	return handMade(128<<10+1024, 128<<10, 512, 0xffffffff, 0)[:2048]
}

// reader counts what is read of b, and can fail.
type reader struct {
	io.ReaderAt
	reads, bytes atomic.Int64
	failAt       int64 // a read of this byte fails with err, unless that is nil
	err          error
}

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	r.reads.Add(1)
	r.bytes.Add(int64(len(p)))
	if r.err != nil && off <= r.failAt && r.failAt < off+int64(len(p)) {
		return 0, r.err
	}
	return r.ReaderAt.ReadAt(p, off)
}
