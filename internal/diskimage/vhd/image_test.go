package vhd_test

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

// create has qemu-img make an empty dynamic image of the size, and qemu-io run the
// commands on it.
func create(t testing.TB, size string, commands ...string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "image.vhd")
	imagetest.QemuImg(t, "create", "-q", "-f", "vpc", "-o", "force_size=on", path, size)
	imagetest.QemuIO(t, path, "vpc", commands...)
	return path
}

// toRaw has qemu-img unpack the image at path.
func toRaw(t testing.TB, path string) (raw string) {
	t.Helper()
	raw = filepath.Join(t.TempDir(), "disk.raw")
	imagetest.QemuImg(t, "convert", "-f", "vpc", "-O", "raw", path, raw)
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
	path = filepath.Join(t.TempDir(), "image.vhd")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

var be = binary.BigEndian

// handMade is a dynamic image of three blocks of 4 KiB as no writer here makes one:
// the last block of the disk is the first in the file, the second is a hole, and
// the table is behind them. Bitmaps are empty.
func handMade() []byte {
	const header, last, first, table, end = 512, 1536, 6144, 10752, 11264
	b := make([]byte, end+512)
	copy(b[last+512:], bytes.Repeat([]byte("last "), 800))
	copy(b[first+512:], bytes.Repeat([]byte("first"), 800))
	footer := b[:512]
	copy(footer, "conectix\x00\x00\x00\x02\x00\x01\x00\x00")
	be.PutUint64(footer[16:], header)
	copy(footer[28:], "win ")
	be.PutUint64(footer[40:], 4096) // the disk grew since
	be.PutUint64(footer[48:], 3*4096)
	be.PutUint32(footer[60:], 3)
	copy(footer[68:], "0123456789abcdef")
	copy(b[end:], footer)
	h := b[header:]
	copy(h, "cxsparse\xff\xff\xff\xff\xff\xff\xff\xff")
	be.PutUint64(h[16:], table)
	be.PutUint32(h[24:], 0x00010000)
	be.PutUint32(h[28:], 3)
	be.PutUint32(h[32:], 4096)
	be.PutUint32(b[table:], first/512)
	be.PutUint32(b[table+4:], 0xffffffff)
	be.PutUint32(b[table+8:], last/512)
	return resum(b)
}

// fixedImage is a fixed disk of n bytes.
func fixedImage(n int) []byte {
	b := make([]byte, n+512)
	copy(b, imagetest.BootSector(1, 2))
	copy(b[n:], handMade()[:512])
	be.PutUint64(b[n+16:], 1<<64-1)
	be.PutUint64(b[n+48:], uint64(n))
	be.PutUint32(b[n+60:], 2)
	return resum(b)
}

// resum sets all checksums of an image right, where there are such structures.
func resum(b []byte) []byte {
	for _, at := range []int{0, len(b) - 512} {
		if at >= 0 && len(b) >= 512 && bytes.HasPrefix(b[at:], []byte("conectix")) {
			sum(b[at:at+512], 64)
		}
	}
	if len(b) < 512 {
		return b
	}
	if at := be.Uint64(b[len(b)-512+16:]); at < uint64(len(b)) && len(b)-int(at) >= 1024 {
		sum(b[at:at+1024], 36)
	}
	return b
}

func sum(b []byte, at int) {
	be.PutUint32(b[at:], 0)
	var n uint32
	for _, c := range b {
		n += uint32(c)
	}
	be.PutUint32(b[at:], ^n)
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
