package qcow2

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"vmimport/internal/diskimage"
)

// MaxWriteBytes is the largest disk that a Writer takes: 16 TiB, which the largest
// cluster of the format maps with writerMaxClusters.
const MaxWriteBytes = writerMaxClusters * diskimage.MaxUnitBytes

const (
	// writerMinCluster is what qemu-img uses, 64 KiB.
	writerMinCluster = 64 << 10
	// writerMaxClusters bounds what a Writer keeps of a disk to 32 MiB, four bytes
	// a cluster. Disks of more than 512 GiB get larger clusters for it.
	//
	// With it, any L1 table and any refcount table fit into one cluster: at 64 KiB
	// those have room for 8192 entries, and hold 1024 and 257 at most.
	writerMaxClusters = 8 << 20
	// writerBlockBytes is the unit of the search for zeros: a page, and so the
	// smallest hole of a file.
	writerBlockBytes = 4 << 10
	// writerTableBytes is how much of the tables is written at a time.
	writerTableBytes = 1 << 20
	// writerCopied is the flag of table entries whose cluster has a refcount of
	// one, as all have here.
	writerCopied = 1 << 63
)

var (
	writerZeros [writerBlockBytes]byte

	errWriterFinished = errors.New("write qcow2 image: it is finished already")
)

// Writer writes a QCOW2 image of version 3 (QEMU, docs/interop/qcow2) in one pass,
// while the bytes of the disk come in any order. Data clusters are appended as the
// first byte comes for them that is not zero; Finish puts all tables behind them.
// It is for one goroutine.
//
// A writer that fails goes on failing: no image is made of a disk with a gap.
type Writer struct {
	out     io.WriterAt
	maxSize int64
	cluster int64 // bytes

	// tables are the L2 tables by their place in the L1 table, nil until they are
	// used. They hold numbers of clusters in the image; zero, where the header is,
	// is none.
	tables [][]uint32
	used   int64 // clusters of the image up to now: the header, and data
	end    int64 // of what was written of the disk
	err    error // the first, for good
}

// NewWriter returns a Writer to out, a file that is empty, or reads as zeros. The
// disk has maxSize bytes, or fewer where its size is not known before its end. The
// error is that of diskimage.CheckSize, or diskimage.ErrTooLarge if maxSize is more
// than MaxWriteBytes.
//
// Clusters have 64 KiB, and twice that for each doubling of maxSize above 512 GiB.
// The writer keeps four bytes for each cluster of those parts of the disk that hold
// data, at most 32 MiB.
func NewWriter(out io.WriterAt, maxSize int64) (*Writer, error) {
	if err := checkWriteSize(maxSize); err != nil {
		return nil, err
	}
	cluster := ClusterBytes(maxSize)
	return &Writer{
		out:     out,
		maxSize: maxSize,
		cluster: cluster,
		tables:  make([][]uint32, writerDivide(maxSize, cluster*cluster/8)),
		used:    1,
	}, nil
}

// checkWriteSize fails with the errors of NewWriter.
func checkWriteSize(size int64) error {
	if size > MaxWriteBytes && size <= diskimage.MaxDiskBytes {
		return diskimage.ErrTooLarge.Saw("%d bytes, and QCOW2 images are limited to %d (16 TiB) here", size, int64(MaxWriteBytes))
	}
	return diskimage.CheckSize(size)
}

// MaxFileBytes is the most that the image of a disk of up to maxSize bytes can take,
// for any maxSize that NewWriter accepts: that of a disk without zeros.
func MaxFileBytes(maxSize int64) int64 {
	cluster := ClusterBytes(maxSize)
	data := writerDivide(maxSize, cluster)
	return newWriterLayout(cluster, 1+data, writerDivide(data, cluster/8)).clusters * cluster
}

// ClusterBytes is the cluster size that a Writer uses for a disk of up to maxSize bytes.
func ClusterBytes(maxSize int64) int64 {
	cluster := int64(writerMinCluster)
	for cluster < diskimage.MaxUnitBytes && cluster*writerMaxClusters < maxSize {
		cluster *= 2
	}
	return cluster
}

// writerDivide is n / by, rounded up.
func writerDivide(n, by int64) int64 { return (n-1)/by + 1 }

// WriteAt writes p to the disk at off. Pieces may have any size and come in any
// order, each byte of the disk at most once: what does not come is zeros, and zeros
// that come are not written. What lies together in p and in the image is one write,
// but for blocks of 4 KiB that are zeros, which are left out.
//
// It fails if p does not lie in the disk, and with the wrapped error of the file.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if off < 0 || off > w.maxSize || int64(len(p)) > w.maxSize-off {
		return 0, w.fail(fmt.Errorf("write qcow2 image: %d bytes at %d, the disk has at most %d", len(p), off, w.maxSize))
	}
	w.end = max(w.end, off+int64(len(p)))

	from, to := 0, 0 // p[from:to] goes to host, as soon as its end is known
	var host int64
	for at := 0; at < len(p); {
		next := min(len(p), at+writerBlockBytes-int((off+int64(at))%writerBlockBytes))
		if !bytes.Equal(p[at:next], writerZeros[:next-at]) {
			place := w.place(off + int64(at))
			if at != to || place != host+int64(to-from) {
				if err := w.writeData(p[from:to], host); err != nil {
					return from, err
				}
				from, host = at, place
			}
			to = next
		}
		at = next
	}
	if err := w.writeData(p[from:to], host); err != nil {
		return from, err
	}
	return len(p), nil
}

// place is where in the image the byte at off of the disk is. Its cluster is
// allocated if it has none yet.
func (w *Writer) place(off int64) int64 {
	number, perTable := off/w.cluster, w.cluster/8
	table := &w.tables[number/perTable]
	if *table == nil {
		*table = make([]uint32, perTable)
	}
	entry := &(*table)[number%perTable]
	if *entry == 0 {
		*entry = uint32(w.used)
		w.used++
	}
	return int64(*entry)*w.cluster + off%w.cluster
}

func (w *Writer) writeData(p []byte, host int64) error {
	if len(p) == 0 {
		return nil
	}
	if _, err := w.out.WriteAt(p, host); err != nil {
		return w.fail(fmt.Errorf("write qcow2 data: %w", err))
	}
	return nil
}

// Finish writes the tables, and the header last: a file that was not finished is no
// image. size is the size of the disk, a multiple of diskimage.SectorBytes behind
// all that was written and at most the maxSize of NewWriter. It returns the length
// that the file must have. Nothing is synced. The writer is of no use afterwards.
func (w *Writer) Finish(size int64) (fileBytes int64, err error) {
	if w.err != nil {
		return 0, w.err
	}
	if size <= 0 || size > w.maxSize || size%diskimage.SectorBytes != 0 || size < w.end {
		return 0, w.fail(fmt.Errorf("finish qcow2 image: a disk of %d bytes, written up to %d, at most %d", size, w.end, w.maxSize))
	}
	var tables int64
	for _, t := range w.tables {
		if t != nil {
			tables++
		}
	}
	layout := newWriterLayout(w.cluster, w.used, tables)
	if err := w.writeTables(layout); err != nil {
		return 0, w.fail(fmt.Errorf("write qcow2 tables: %w", err))
	}
	if _, err := w.out.WriteAt(writerHeader(layout, w.cluster, size), 0); err != nil {
		return 0, w.fail(fmt.Errorf("write qcow2 header: %w", err))
	}
	w.err = errWriterFinished
	return layout.clusters * w.cluster, nil
}

func (w *Writer) fail(err error) error {
	w.err = err
	return err
}

// writerLayout says which cluster of the image each table begins at. They follow
// each other, the L2 tables first.
type writerLayout struct {
	l2, l1, refcountTable, refcountBlocks int64

	clusters int64 // of the image
}

// newWriterLayout puts the tables behind the first used clusters.
func newWriterLayout(cluster, used, l2Tables int64) writerLayout {
	l := writerLayout{l2: used, l1: used + l2Tables}
	l.refcountTable = l.l1 + 1
	l.refcountBlocks = l.refcountTable + 1
	l.clusters = l.refcountBlocks + writerRefcountBlocks(l.refcountBlocks, cluster)
	return l
}

// writerRefcountBlocks is how many refcount blocks follow the first used clusters. A block
// counts cluster/2 clusters ("Refcount blocks", 16 bits each): itself, and one fewer of
// those in front of all blocks.
func writerRefcountBlocks(used, cluster int64) int64 { return writerDivide(used, cluster/2-1) }

// writerHeader is the header, up to and with the end of its extensions. There is no
// compression type in it: by its length of 104 it is the one for zlib.
func writerHeader(l writerLayout, cluster, size int64) []byte {
	h := make([]byte, 104+8)
	be := binary.BigEndian
	copy(h, "QFI\xfb")
	be.PutUint32(h[4:], 3) // version
	be.PutUint32(h[20:], uint32(bits.TrailingZeros64(uint64(cluster))))
	be.PutUint64(h[24:], uint64(size))
	be.PutUint32(h[36:], uint32(writerDivide(size, cluster*cluster/8))) // entries of the L1 table
	be.PutUint64(h[40:], uint64(l.l1*cluster))
	be.PutUint64(h[48:], uint64(l.refcountTable*cluster))
	be.PutUint32(h[56:], 1)    // clusters of the refcount table
	be.PutUint32(h[96:], 4)    // refcounts have 1 << 4 bits
	be.PutUint32(h[100:], 104) // bytes of the header
	return h
}

// writeTables writes all clusters from layout.l2 on, in order.
func (w *Writer) writeTables(l writerLayout) error {
	out := writerEncoder{
		w:       bufio.NewWriterSize(io.NewOffsetWriter(w.out, l.l2*w.cluster), writerTableBytes),
		cluster: w.cluster,
	}
	for _, table := range w.tables {
		for _, number := range table {
			out.entry(int64(number), writerCopied)
		}
	}
	l2 := l.l2
	for _, table := range w.tables {
		if table == nil {
			out.entry(0, 0)
			continue
		}
		out.entry(l2, writerCopied)
		l2++
	}
	out.pad()
	for block := l.refcountBlocks; block < l.clusters; block++ {
		out.entry(block, 0)
	}
	out.pad()
	for range l.clusters {
		out.uint16(1)
	}
	out.pad()
	return out.w.Flush()
}

// writerEncoder writes tables one after the other. Errors of w stay until Flush.
type writerEncoder struct {
	w       *bufio.Writer
	cluster int64
	n       int64 // bytes so far
}

// entry writes a reference to a cluster of the image, with flags; zeros for cluster
// 0.
func (e *writerEncoder) entry(cluster int64, flags uint64) {
	v := uint64(0)
	if cluster != 0 {
		v = uint64(cluster*e.cluster) | flags
	}
	e.write(binary.BigEndian.AppendUint64(e.w.AvailableBuffer(), v))
}

func (e *writerEncoder) uint16(v uint16) {
	e.write(binary.BigEndian.AppendUint16(e.w.AvailableBuffer(), v))
}

// pad writes zeros up to the next cluster.
func (e *writerEncoder) pad() {
	for e.n%e.cluster != 0 {
		e.write(writerZeros[:min(writerBlockBytes, e.cluster-e.n%e.cluster)])
	}
}

func (e *writerEncoder) write(b []byte) {
	_, _ = e.w.Write(b)
	e.n += int64(len(b))
}
