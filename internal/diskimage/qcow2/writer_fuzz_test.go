package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
)

// FuzzWriter writes a disk, each of whose parts the fuzzer describes with two bytes,
// in shuffled pieces, and compares what two readers see with it: this package's, and
// one that knows nothing but what a Writer may write.
func FuzzWriter(f *testing.F) {
	f.Add(uint64(1), uint8(0), []byte{})
	f.Add(uint64(2), uint8(1), []byte{0, 1, 255, 0, 3, 2})
	f.Add(uint64(3), uint8(5), []byte{9, 0, 9, 3, 200, 1, 200, 2, 1, 0})
	f.Add(uint64(4), uint8(0), bytes.Repeat([]byte{31, 1, 77, 0, 5, 2, 16, 3}, 8))
	f.Fuzz(func(t *testing.T, seed uint64, larger uint8, plan []byte) {
		rng := rand.New(rand.NewPCG(seed, 0))
		guest := writerGuest(rng, plan)
		size := int64(len(guest))
		maxSize := size
		if larger > 0 { // clusters of 64 KiB to 2 MiB
			maxSize = 512 << 30 << (larger % 6)
		}
		var out writerMemory
		n := writerRun(t, &out, maxSize, guest, writerShatter(rng, size))
		if int64(len(out.b)) != n {
			t.Fatalf("image has %d bytes, want %d", len(out.b), n)
		}
		got, err := writerStrictRead(out.b)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, guest) {
			t.Fatal("the image is another disk")
		}
		image := imagetest.Of(out.b)
		disk, err := qcow2.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		if got, err = imagetest.Read(disk, image); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, guest) {
			t.Fatal("the reader sees another disk")
		}
	})
}

// writerGuest makes a disk: of each two bytes, the first is the length of a part in
// units of a prime number, the second what it holds.
func writerGuest(rng *rand.Rand, plan []byte) []byte {
	var guest []byte
	for part := range slices.Chunk(plan[:min(len(plan), 128)], 2) {
		b := make([]byte, 1+int(part[0])*509)
		switch part[len(part)-1] % 4 {
		case 1:
			_, _ = rand.NewChaCha8([32]byte{part[0]}).Read(b)
		case 2:
			b[rng.IntN(len(b))] = 1
		case 3:
			for range len(b)/4096 + 1 {
				b[rng.IntN(len(b))] = 2
			}
		}
		guest = append(guest, b...)
	}
	return append(guest, make([]byte, max(512, diskimage.VirtualSize(int64(len(guest))))-int64(len(guest)))...)
}

// writerStrictRead returns the disk in an image, all of whose clusters must be used
// exactly once, and counted so.
func writerStrictRead(image []byte) ([]byte, error) {
	be := binary.BigEndian
	head := bytes.Clone(image[:112])
	cluster := uint64(1) << be.Uint32(head[20:])
	size, l1Entries, l1 := be.Uint64(head[24:]), uint64(be.Uint32(head[36:])), be.Uint64(head[40:])
	refcounts := be.Uint64(head[48:])
	uses := make([]int, uint64(len(image))/cluster)
	var failed error
	use := func(off uint64) []byte {
		if off%cluster != 0 || off+cluster > uint64(len(image)) {
			failed = fmt.Errorf("cluster at %d", off)
			return make([]byte, cluster)
		}
		uses[off/cluster]++
		return image[off : off+cluster]
	}
	follow := func(entry uint64) []byte {
		if entry>>63 == 0 {
			failed = fmt.Errorf("entry %x is without the flag of its refcount", entry)
		}
		return use(entry &^ (1 << 63))
	}

	use(0)
	disk := make([]byte, size)
	for i, l2 := range writerEntries(use(l1)[:8*l1Entries]) {
		for j, data := range writerEntries(follow(l2)) {
			at := (uint64(i)*cluster/8 + uint64(j)) * cluster
			if at >= size {
				return nil, fmt.Errorf("data behind the end of the disk")
			}
			copy(disk[at:], follow(data))
		}
	}
	var counts []byte
	for _, block := range writerEntries(use(refcounts)) {
		counts = append(counts, use(block)...)
	}
	for i, n := range uses {
		if n != 1 || be.Uint16(counts[2*i:]) != 1 {
			return nil, fmt.Errorf("cluster %d is used %d times", i, n)
		}
	}
	if slices.Max(append(counts[2*len(uses):], 0)) != 0 {
		return nil, fmt.Errorf("clusters behind the end of the image are counted")
	}
	for _, at := range []int{20, 24, 36, 40, 48} {
		clear(head[at:min(at+8, len(head))])
	}
	want := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 104)...)
	want[59], want[99], want[103] = 1, 4, 104
	if !bytes.Equal(head, want) {
		return nil, fmt.Errorf("header %x", head)
	}
	return disk, failed
}

// writerEntries yields the entries of a table that are not zero.
func writerEntries(table []byte) func(func(int, uint64) bool) {
	return func(yield func(int, uint64) bool) {
		for i := range len(table) / 8 {
			if v := binary.BigEndian.Uint64(table[8*i:]); v != 0 && !yield(i, v) {
				return
			}
		}
	}
}

// writerNowhere takes everything at no cost.
type writerNowhere struct{}

func (writerNowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// BenchmarkWriter writes disks of 1 GiB in pieces of 4 MiB to nowhere: what the
// format costs. What raw costs, the search for zeros alone, is beside it.
func BenchmarkWriter(b *testing.B) {
	const size, chunk = 1 << 30, 4 << 20
	random, half := make([]byte, chunk), make([]byte, chunk)
	_, _ = rand.NewChaCha8([32]byte{}).Read(random)
	for at := 0; at < chunk; at += 8 << 10 {
		copy(half[at:], random[:4<<10])
	}
	for _, data := range []struct {
		name  string
		chunk []byte
	}{{"random", random}, {"every other block", half}, {"zeros", make([]byte, chunk)}} {
		b.Run(data.name+"/qcow2", func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				writerDiskOf(b, data.chunk, size)
			}
		})
		b.Run(data.name+"/raw", func(b *testing.B) {
			b.SetBytes(size)
			zeros := make([]byte, 4<<10)
			var out io.WriterAt = writerNowhere{}
			for b.Loop() {
				for at := int64(0); at < size; at += chunk {
					for block := range slices.Chunk(data.chunk, len(zeros)) {
						if !bytes.Equal(block, zeros) {
							_, _ = out.WriteAt(block, at)
						}
					}
				}
			}
		})
	}
}

func writerDiskOf(b *testing.B, chunk []byte, size int64) {
	w, err := qcow2.NewWriter(writerNowhere{}, size)
	if err != nil {
		b.Fatal(err)
	}
	for at := int64(0); at < size; at += int64(len(chunk)) {
		writerAt(b, w, chunk, at)
	}
	if _, err := w.Finish(size); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWriterGiantDisk is the largest disk with one sector of data.
func BenchmarkWriterGiantDisk(b *testing.B) {
	f := writerFile(b)
	b.ReportAllocs()
	for b.Loop() {
		w, err := qcow2.NewWriter(f, qcow2.MaxWriteBytes)
		if err != nil {
			b.Fatal(err)
		}
		writerAt(b, w, bytes.Repeat([]byte{1}, 512), qcow2.MaxWriteBytes/2)
		if _, err := w.Finish(qcow2.MaxWriteBytes); err != nil {
			b.Fatal(err)
		}
	}
}
