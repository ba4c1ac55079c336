package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

// counted counts what is read of a file.
type counted struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// scattered is a sparse image with tables anywhere, of which all else is zeros. Each
// table has one grain, its first.
type scattered struct {
	front  []byte // up to the end of the directory
	start  int64  // of the first table in the file
	stride int64  // from one to the next
	grains []uint32
}

// newScattered has table i of the disk at places[i] of the file.
func newScattered(places []int, stride int64) (*counted, *diskimage.File) {
	n := len(places)
	s := scattered{stride: stride, grains: make([]uint32, n)}
	s.front = sized(sparseImage(), int64(n)*tableEntries*128)[:sparseDir*sectorBytes]
	s.front = append(s.front, make([]byte, (n*entryBytes+sectorBytes-1)&^(sectorBytes-1))...)
	s.start = int64(len(s.front))
	for i, place := range places {
		sector := uint32((s.start + int64(place)*stride) / sectorBytes)
		binary.LittleEndian.PutUint32(s.front[sparseDir*sectorBytes+i*entryBytes:], sector)
		s.grains[place] = grainSector(i)
	}
	r := &counted{ReaderAt: s}
	return r, diskimage.NewFile(r, s.start+int64(n)*stride+grainBytes)
}

const grainBytes = 64 << 10

// grainSector is where the grain of table i is. It does not matter what else is there.
func grainSector(i int) uint32 { return uint32(8 + 3*i) }

// ReadAt implements io.ReaderAt.
func (s scattered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(s.front)) {
		copy(p, s.front[off:])
	}
	if len(s.grains) == 0 {
		return len(p), nil
	}
	for i := max(0, (off-s.start+s.stride-1)/s.stride); i < int64(len(s.grains)); i++ {
		at := s.start + i*s.stride - off
		if at+entryBytes > int64(len(p)) {
			break
		}
		binary.LittleEndian.PutUint32(p[at:], s.grains[i])
	}
	return len(p), nil
}

func shuffled(n int) []int { return rand.New(rand.NewPCG(1, 2)).Perm(n) }

func rising(n int) []int {
	places := make([]int, n)
	for i := range places {
		places[i] = i
	}
	return places
}

func falling(n int) []int {
	places := rising(n)
	slices.Reverse(places)
	return places
}

// TestScatteredTables checks that it takes few reads to walk over tables in any order,
// and little memory: the limit is for what is allocated in all, not at a time. It has
// the process for itself.
func TestScatteredTables(t *testing.T) {
	const n = 10240 // 20 MiB of tables
	for _, stride := range []int64{tableBytes, 20 << 10, 200 << 10} {
		for name, places := range map[string][]int{"rising": rising(n), "falling": falling(n), "shuffled": shuffled(n)} {
			r, f := newScattered(places, stride)
			imagetest.Bounded(t, 40<<20, func() {
				i := 0
				for e, err := range mustOpen(t, f).Map.Extents(0) {
					want := diskimage.Extent{Guest: int64(i) * tableEntries * grainBytes, Length: grainBytes, File: int64(grainSector(i)) * sectorBytes, Stored: grainBytes}
					if err != nil || e != want {
						t.Fatalf("%s, %d apart: extent %d is %+v, want %+v (%v)", name, stride, i, e, want, err)
					}
					i++
				}
				if i != n {
					t.Fatalf("%s, %d apart: %d extents, want %d", name, stride, i, n)
				}
			})
			reads, bytes := r.reads.Load(), r.bytes.Load()
			t.Logf("%s, %d apart: %d reads of %d bytes, the file has %d", name, stride, reads, bytes, f.Size())
			if most := 2*(n*tableBytes+f.Size())>>16 + 10; reads > most || bytes > 8*f.Size() {
				t.Errorf("%s, %d apart: %d reads of %d bytes, at most %d were expected", name, stride, reads, bytes, most)
			}
		}
	}
}

// TestTooScattered has more tables than can be put in order, without a grain in them.
func TestTooScattered(t *testing.T) {
	t.Parallel()
	const n = 100 << 10 // 200 MiB of tables
	for _, c := range []struct {
		places []int
		want   error
	}{{rising(n), nil}, {shuffled(n), diskimage.ErrFragmented}} {
		r, f := newScattered(c.places, tableBytes)
		clear(r.ReaderAt.(scattered).grains)
		var got error
		for _, err := range mustOpen(t, f).Map.Extents(0) {
			got = err
		}
		if !errors.Is(got, c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
		if reads, bytes := r.reads.Load(), r.bytes.Load(); reads > 16*f.Size()>>16 || bytes > 17*f.Size() {
			t.Errorf("%d reads of %d bytes, the file has %d", reads, bytes, f.Size())
		}
	}
}

// TestOneLook checks what it takes to look at a single place, and that the directory
// is read once.
func TestOneLook(t *testing.T) {
	t.Parallel()
	r, f := newScattered(shuffled(10240), tableBytes)
	d := mustOpen(t, f)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for e, err := range d.Map.Extents(5000 * tableEntries * grainBytes) {
				if err != nil || e.File != int64(grainSector(5000))*sectorBytes {
					t.Errorf("extent %+v (%v)", e, err)
				}
				break
			}
		})
	}
	wg.Wait()
	if n := r.reads.Load(); n > 2+4*64<<10/tableBytes {
		t.Errorf("%d reads", n)
	}
	for range d.Map.Extents(d.Size) {
		t.Error("an extent behind the disk")
	}
}

// TestTablesOutOfPlace checks that what is wrong with a directory comes from the walk,
// each time.
func TestTablesOutOfPlace(t *testing.T) {
	t.Parallel()
	image := sparseImage()
	for _, c := range []struct {
		sector uint32
		want   error
	}{{1 << 31, diskimage.ErrTruncated}, {2, diskimage.ErrCorrupt}} {
		f := diskimage.NewFile(bytes.NewReader(imagetest.Patched(image, sparseDir*sectorBytes, le32(c.sector)...)), int64(len(image)))
		d := mustOpen(t, f)
		for range 2 {
			for _, err := range d.Map.Extents(0) {
				if !errors.Is(err, c.want) {
					t.Errorf("a table at sector %d: %v, want %v", c.sector, err, c.want)
				}
			}
		}
	}
}
