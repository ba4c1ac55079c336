// Package imagetest checks readers of disk images: it makes guest disks, has
// qemu-img pack them, and compares what a reader makes of the result with them.
package imagetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"vmimport/internal/diskimage"
)

// QemuImg runs qemu-img. It is a part of the test suite: where it is missing, the
// tests fail.
func QemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, "qemu-img", args...)
}

// QemuIO runs commands of qemu-io on the disk in the image at path, such as "write -P 7
// 0 1M". A command that fails does not end qemu-io, and ends the test.
func QemuIO(t testing.TB, path, format string, commands ...string) {
	t.Helper()
	args := []string{"-f", format, "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("rror")) || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io %q: %v\n%s", args, err, out)
	}
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, &stderr)
	}
	return out
}

// Convert packs the raw file at path into format with qemu-img, with the given -o
// options if not empty and further arguments, and returns the new file's path.
func Convert(t testing.TB, path, format, options string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image."+format)
	all := append([]string{"convert", "-f", "raw", "-O", format}, args...)
	if options != "" {
		all = append(all, "-o", options)
	}
	QemuImg(t, append(all, path, out)...)
	return out
}

// Guest is a disk to pack.
type Guest struct {
	Name string
	Path string // of the raw file, which is sparse
}

// Guests makes one disk of each kind that readers are known to stumble over. They
// are small, and the same each time.
func Guests(t testing.TB) []Guest {
	t.Helper()
	dir := t.TempDir()
	return []Guest{
		{"empty", sparse(t, dir, "empty", 3<<20, nil)},
		{"sparse", sparse(t, dir, "sparse", 12<<20+512, oddPieces(12<<20+512))},
		{"dense", sparse(t, dir, "dense", 5<<20, []piece{{0, random(1, 5<<20)}})},
		{"text", sparse(t, dir, "text", 7<<20-1024, []piece{{0, text(7<<20 - 1024)}})},
		{"ext4", ext4(t, dir)},
	}
}

type piece struct {
	off  int64
	data []byte
}

// oddPieces uses both ends of the disk, and the borders of sectors, clusters and
// blocks in between.
func oddPieces(size int64) []piece {
	pieces := []piece{
		{0, random(2, 700)},
		{size - 512, random(3, 512)},
		{64<<10 - 512, random(4, 1024)},
		{1<<20 - 1, random(5, 2)},
		{2<<20 + 4096, text(300 << 10)},
		{4<<20 + 512, random(6, 130<<10)},
	}
	for i := range int64(20) {
		pieces = append(pieces, piece{6<<20 + i*200<<10, random(uint64(10+i), int(i)*1024+1)})
	}
	return pieces
}

func sparse(t testing.TB, dir, name string, size int64, pieces []piece) string {
	t.Helper()
	path := filepath.Join(dir, name+".raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, p := range pieces {
		if _, err := f.WriteAt(p.data, p.off); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// ext4 is a disk with a boot sector, a partition table and a file system with files
// in it.
func ext4(t testing.TB, dir string) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"etc/hostname": []byte("guest\n"), "kernel": text(2 << 20), "noise": random(7, 1<<20)} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const start, size = 1 << 20, 16 << 20
	fs := filepath.Join(dir, "fs")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", tree, "-E", "hash_seed=00000000-0000-0000-0000-000000000001",
		"-U", "00000000-0000-0000-0000-000000000002", fs, "16M")
	data, err := os.ReadFile(fs)
	if err != nil {
		t.Fatal(err)
	}
	return sparse(t, dir, "ext4", start+size+1<<20, []piece{{0, BootSector(start/512, size/512)}, {start, data}})
}

// BootSector is a master boot record with code in it and one active Linux partition.
func BootSector(firstLBA, sectors uint32) []byte {
	b := make([]byte, 512)
	copy(b, "\xeb\x63\x90boot")
	entry := b[446:]
	entry[0], entry[4] = 0x80, 0x83
	for i := range 4 {
		entry[8+i], entry[12+i] = byte(firstLBA>>(8*i)), byte(sectors>>(8*i))
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = rng.Read(b)
	return b
}

// text is data that packs about as well as files of an operating system do.
func text(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 400)
	for i := range words {
		words[i] = random(uint64(100+i), 2+rng.IntN(9))
	}
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[rng.IntN(len(words))]...)
		b = append(b, ' ')
	}
	return b[:n]
}

// Open opens a file for reading, until the test ends.
func Open(t testing.TB, path string) *diskimage.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return diskimage.NewFile(f, fi.Size())
}

// Equal checks that a disk has the size and the bytes of the raw file at path, the
// former rounded up to a sector, the way that an import reads it: all extents or
// pieces once.
func Equal(t testing.TB, d *diskimage.Disk, f *diskimage.File, path string) {
	t.Helper()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if size := diskimage.VirtualSize(int64(len(want))); d.Size != size {
		t.Fatalf("disk has %d bytes, want %d", d.Size, size)
	}
	got, err := Read(d, f)
	if err != nil {
		t.Fatalf("read disk: %v", err)
	}
	if !bytes.Equal(got[:len(want)], want) {
		t.Fatalf("disk differs from the guest at byte %d", differ(got, want))
	}
	// The same through the reader of single places.
	guest := d.Guest(f)
	for _, off := range []int64{0, 511, int64(len(want))/2 - 77, max(0, int64(len(want))-100)} {
		p := make([]byte, 1000)
		n, err := guest.ReadAt(p, off)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read guest at %d: %v", off, err)
		}
		if m := min(n, len(want)-int(off)); !bytes.Equal(p[:m], want[off:int(off)+m]) {
			t.Fatalf("guest differs at %d", off)
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// maxRead is the largest disk that Read holds in memory.
const maxRead = 256 << 20

// Read returns all of a small disk. It checks what a Map or a Parser promises: order,
// bounds, sizes.
func Read(d *diskimage.Disk, f *diskimage.File) ([]byte, error) {
	if d.Size > maxRead {
		return nil, errors.New("disk is too large for this test")
	}
	out := make([]byte, d.Size)
	if d.Map == nil {
		return out, readForward(d, f, out)
	}
	end := int64(0)
	for e, err := range d.Map.Extents(0) {
		if err != nil {
			return nil, err
		}
		if err := checkExtent(d, f, e, end); err != nil {
			return nil, err
		}
		end = e.Guest + e.Length
		into := out[e.Guest:min(end, d.Size)]
		src, err := readAll(f, e.File, e.Stored)
		if err != nil {
			return nil, err
		}
		if e.Packed {
			unit := make([]byte, e.Length)
			if err := d.Map.Unpack(unit, src); err != nil {
				return nil, err
			}
			src = unit
		}
		copy(into, src)
	}
	return out, nil
}

func checkExtent(d *diskimage.Disk, f *diskimage.File, e diskimage.Extent, end int64) error {
	switch {
	case e.Length <= 0 || e.Stored <= 0 || !e.Packed && e.Length != e.Stored:
		return errors.New("extent with impossible lengths")
	case e.Packed && (e.Length > diskimage.MaxUnitBytes || e.Stored > diskimage.MaxPackedBytes):
		return errors.New("packed extent is too long")
	case e.Guest < end:
		return errors.New("extents overlap, or are out of order")
	case e.Guest >= d.Size:
		return errors.New("extent behind the end of the disk")
	case !f.Has(e.File, e.Stored):
		return errors.New("extent lies outside of the file")
	}
	return nil
}

func readAll(f *diskimage.File, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	return b, f.ReadInto("data", off, b)
}

func readForward(d *diskimage.Disk, f *diskimage.File, out []byte) error {
	end := int64(0)
	parser := d.Parser(diskimage.Position{})
	return diskimage.Walk(f, parser, func(p diskimage.Piece) error {
		switch {
		case p.Guest < end:
			return errors.New("pieces overlap, or are out of order")
		case p.Guest >= d.Size:
			return errors.New("piece behind the end of the disk")
		case p.Packed && p.Length > diskimage.MaxUnitBytes, !p.Packed && p.Length != int64(len(p.Data)):
			return errors.New("piece with impossible lengths")
		}
		end = p.Guest + p.Length
		data := p.Data
		if p.Packed {
			data = make([]byte, p.Length)
			if err := parser.Unpack(data, p.Data); err != nil {
				return err
			}
		}
		copy(out[p.Guest:min(end, d.Size)], data)
		return nil
	})
}

// Bounded runs f and fails if it allocates more than limit bytes in all. Tests that
// run beside it must allocate little.
func Bounded(t testing.TB, limit uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > limit {
		t.Fatalf("allocated %d bytes, at most %d are allowed", n, limit)
	}
}

// Patched returns a copy of image with b at off: what a fuzzer would need long to
// find.
func Patched(image []byte, off int, b ...byte) []byte {
	c := bytes.Clone(image)
	copy(c[off:], b)
	return c
}

// Of returns bytes as a file.
func Of(b []byte) *diskimage.File {
	return diskimage.NewFile(bytes.NewReader(b), int64(len(b)))
}
