package qcow2

import (
	"encoding/binary"
	"io"
	"math/bits"
	"testing"

	"vmimport/internal/diskimage"
)

// denseImage is an image of 64 KiB clusters without a hole, of which only the header
// and the tables exist. The data follows the tables; place says in which order.
type denseImage struct{ metadata []byte }

const denseCluster = 64 << 10

func newDenseImage(size int64, extended bool, place func(cluster, of int64) int64) (*denseImage, *diskimage.File) {
	h := header{version: 3, size: size, cluster: denseCluster, extendedL2: extended}
	tables := h.l1Entries()
	clusters := size / denseCluster
	b := make([]byte, (2+tables)*denseCluster)
	copy(b, magic)
	put32, put64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	put32(b[4:], 3)
	put32(b[20:], uint32(bits.TrailingZeros64(denseCluster)))
	put64(b[24:], uint64(size))
	put32(b[36:], uint32(tables))
	put64(b[40:], denseCluster)
	if extended {
		put64(b[72:], featureExtendedL2)
	}
	put32(b[100:], longHeaderBytes)
	for i := range tables {
		put64(b[denseCluster+8*i:], uint64(2+i)*denseCluster|entryCopied)
	}
	for i := range clusters {
		e := b[2*denseCluster+i*h.entryBytes():]
		put64(e, uint64(2+tables+place(i, clusters))*denseCluster|entryCopied)
		if extended {
			put64(e[8:], 1<<subclusters-1)
		}
	}
	d := &denseImage{b}
	return d, diskimage.NewFile(d, int64(len(b))+size)
}

// ReadAt implements io.ReaderAt.
func (d *denseImage) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(d.metadata)) {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, d.metadata[off:]), nil
}

func inOrder(cluster, _ int64) int64    { return cluster }
func backwards(cluster, of int64) int64 { return of - 1 - cluster }

// TestDenseMap checks that the map of a large disk is as short as it can be.
func TestDenseMap(t *testing.T) {
	t.Parallel()
	const size = 20 << 30
	for _, extended := range []bool{false, true} {
		for want, place := range map[int64]func(int64, int64) int64{1: inOrder, size / denseCluster: backwards} {
			_, f := newDenseImage(size, extended, place)
			d, err := Open(f)
			if err != nil {
				t.Fatal(err)
			}
			n, end := int64(0), int64(0)
			for e, err := range d.Map.Extents(0) {
				if err != nil || e.Guest != end {
					t.Fatalf("extent %v after %d (%v)", e, end, err)
				}
				end += e.Length
				n++
			}
			if n != want || end != size {
				t.Errorf("%d extents of %d bytes, want %d", n, end, want)
			}
		}
	}
}

// BenchmarkMap walks the map of a dense disk of 1 TiB: at its best, as one extent,
// and at its worst, with no two clusters together.
func BenchmarkMap(b *testing.B) {
	const size = 1 << 40
	for _, c := range []struct {
		name     string
		extended bool
		place    func(cluster, of int64) int64
	}{{"dense", false, inOrder}, {"backwards", false, backwards}, {"extended", true, inOrder}} {
		b.Run(c.name, func(b *testing.B) {
			_, f := newDenseImage(size, c.extended, c.place)
			d, err := Open(f)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				end := int64(0)
				for e, err := range d.Map.Extents(0) {
					if err != nil {
						b.Fatal(err)
					}
					end = e.Guest + e.Length
				}
				if end != size {
					b.Fatalf("walk ended at %d", end)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(size/denseCluster), "ns/cluster")
		})
	}
}
