package qcow2

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
)

const (
	tinyCluster = 512
	tinySpan    = tinyCluster / 8 * tinyCluster
)

// scattered is an image of 512-byte clusters with tables anywhere, of which all else
// is zeros. Each table has one cluster, its first. It counts what is read of it.
type scattered struct {
	front        []byte // up to the end of the L1 table
	stride       int64  // from one table to the next
	clusters     []int64
	reads, bytes atomic.Int64
}

// newScattered has table i of the disk at places[i] of the file.
func newScattered(places []int, stride int64) (*scattered, *diskimage.File) {
	n := len(places)
	l1 := (n*8 + tinyCluster - 1) &^ (tinyCluster - 1)
	s := &scattered{front: make([]byte, tinyCluster+l1), stride: stride, clusters: make([]int64, n)}
	copy(s.front, magic)
	put32, put64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	put32(s.front[4:], 2)
	put32(s.front[20:], minClusterBits)
	put64(s.front[24:], uint64(n)*tinySpan)
	put32(s.front[36:], uint32(n))
	put64(s.front[40:], tinyCluster)
	for i, place := range places {
		put64(s.front[tinyCluster+8*i:], uint64(int64(len(s.front))+int64(place)*stride)|entryCopied)
		s.clusters[place] = firstCluster(i)
	}
	return s, diskimage.NewFile(s, int64(len(s.front))+int64(n)*stride)
}

// firstCluster is where the cluster of table i is. It does not matter what else is there.
func firstCluster(i int) int64 { return int64(1+i) * tinyCluster }

// ReadAt implements io.ReaderAt.
func (s *scattered) ReadAt(p []byte, off int64) (int, error) {
	s.reads.Add(1)
	s.bytes.Add(int64(len(p)))
	clear(p)
	start := int64(len(s.front))
	if off < start {
		copy(p, s.front[off:])
	}
	for i := max(0, (off-start+s.stride-1)/s.stride); i < int64(len(s.clusters)); i++ {
		at := start + i*s.stride - off
		if at+8 > int64(len(p)) {
			break
		}
		binary.BigEndian.PutUint64(p[at:], uint64(s.clusters[i]))
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
	const n = 32 << 10 // 16 MiB of tables
	for _, stride := range []int64{tinyCluster, 5 << 10, 130 << 10} {
		for name, places := range map[string][]int{"rising": rising(n), "falling": falling(n), "shuffled": shuffled(n)} {
			s, f := newScattered(places, stride)
			imagetest.Bounded(t, 40<<20, func() {
				d, err := Open(f)
				if err != nil {
					t.Fatal(err)
				}
				i := 0
				for e, err := range d.Map.Extents(0) {
					want := diskimage.Extent{Guest: int64(i) * tinySpan, Length: tinyCluster, File: firstCluster(i), Stored: tinyCluster}
					if err != nil || e != want {
						t.Fatalf("%s, %d apart: extent %d is %+v, want %+v (%v)", name, stride, i, e, want, err)
					}
					i++
				}
				if i != n {
					t.Fatalf("%s, %d apart: %d extents, want %d", name, stride, i, n)
				}
			})
			reads, bytes := s.reads.Load(), s.bytes.Load()
			t.Logf("%s, %d apart: %d reads of %d bytes, the file has %d", name, stride, reads, bytes, f.Size())
			if most := 2*(n*tinyCluster+f.Size())>>16 + 10; reads > most || bytes > 8*f.Size() {
				t.Errorf("%s, %d apart: %d reads of %d bytes, at most %d were expected", name, stride, reads, bytes, most)
			}
		}
	}
}

// TestTooScattered has more tables than can be put in order.
func TestTooScattered(t *testing.T) {
	t.Parallel()
	const n = 256 << 10 // 128 MiB of tables
	for _, c := range []struct {
		places []int
		want   error
	}{{rising(n), nil}, {shuffled(n), diskimage.ErrFragmented}} {
		s, f := newScattered(c.places, tinyCluster)
		d, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		var got error
		for _, err := range d.Map.Extents(0) {
			got = err
		}
		if !errors.Is(got, c.want) {
			t.Errorf("got %v, want %v", got, c.want)
		}
		if reads, bytes := s.reads.Load(), s.bytes.Load(); reads > 16*f.Size()>>16 || bytes > 17*f.Size() {
			t.Errorf("%d reads of %d bytes, the file has %d", reads, bytes, f.Size())
		}
	}
}
