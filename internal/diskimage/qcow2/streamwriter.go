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

// What a StreamWriter writes, in clusters (QEMU, docs/interop/qcow2):
//
//	at  clusters  what                                  section
//	0   1         header                                "Header"
//	1   1         L1 table                              "Cluster mapping"
//	2   1         refcount table                        "Host cluster management"
//	3             for each L2 table's part of the disk that is not all zeros:
//	    1..         each cluster that is not all zeros  "Guest Cluster"
//	    1           L2 table                            "Cluster mapping"
//	    1..       refcount blocks                       "Refcount blocks"
//
// The first three are the head, which is known last. A Writer says why one cluster is
// enough for each of its tables.
const (
	streamL1 = 1 + iota
	streamRefcountTable
	streamData
)

// ErrStreamState is the failure of ResumeStreamWriter.
var ErrStreamState = errors.New("qcow2: not a state of a stream writer")

// StreamWriter writes a QCOW2 image of version 3 in one pass, while the disk's clusters come
// in order; those that do not come are zeros. It keeps a bit for each cluster of an L2
// table, 32 KiB at most, and the place of each table. It is for one goroutine, and of no use
// after an error.
type StreamWriter struct {
	out     io.Writer
	size    int64 // of the disk, in bytes
	cluster int64 // bytes
	used    int64 // clusters of the image up to now

	// places are those of the L2 tables so far, in clusters of the image, 0 where there is none.
	// The one behind them is growing: data has a bit for each of its entries, and
	// the clusters of those that are set lie in a row before used.
	places []int64
	data   []byte
}

// NewStreamWriter returns a StreamWriter of a disk of size bytes, a multiple of 512. Its
// clusters have ClusterBytes(size). What is behind the head goes to out. The error is that
// of NewWriter.
func NewStreamWriter(out io.Writer, size int64) (*StreamWriter, error) {
	if err := checkWriteSize(size); err != nil {
		return nil, err
	}
	if size%diskimage.SectorBytes != 0 {
		return nil, fmt.Errorf("write qcow2 image: a disk of %d bytes, which are not whole sectors", size)
	}
	cluster := ClusterBytes(size)
	return &StreamWriter{out: out, size: size, cluster: cluster, used: streamData, data: make([]byte, cluster/8/8)}, nil
}

// StreamHeadBytes is the length of what comes before the first cluster of data, and is known
// last.
func StreamHeadBytes(size int64) int64 { return streamData * ClusterBytes(size) }

// MaxStreamFileBytes bounds what a StreamWriter writes for clusters clusters of data in
// a row, and what Finish adds for a disk of size bytes, without the head.
func MaxStreamFileBytes(size, clusters int64) int64 {
	cluster := ClusterBytes(size)
	tables := clusters/(cluster/8) + 2 // the first and the last may have a part of these clusters
	all := writerDivide(size, cluster)
	used := streamData + all + writerDivide(all, cluster/8)
	return (clusters + tables + writerRefcountBlocks(used, cluster)) * cluster
}

// Put writes the cluster of that number of the disk, all of its bytes. Numbers rise.
func (w *StreamWriter) Put(number int64, data []byte) error {
	if err := w.reach(number); err != nil {
		return err
	}
	if _, err := w.out.Write(data); err != nil {
		return err
	}
	entry := number % (w.cluster / 8)
	w.data[entry/8] |= 1 << (entry % 8)
	w.used++
	return nil
}

// reach writes the L2 tables that come before the cluster of that number of the disk.
func (w *StreamWriter) reach(number int64) error {
	for int64(len(w.places)) < number/(w.cluster/8) {
		place := int64(0)
		if count := w.count(); count > 0 {
			if err := w.writeTable(w.used - count); err != nil {
				return err
			}
			place = w.used
			w.used++
			clear(w.data)
		}
		w.places = append(w.places, place)
	}
	return nil
}

// count is how many clusters of data the growing table has.
func (w *StreamWriter) count() (n int64) {
	for _, b := range w.data {
		n += int64(bits.OnesCount8(b))
	}
	return n
}

// writeTable writes the growing table, whose data begins at cluster from of the image.
func (w *StreamWriter) writeTable(from int64) error {
	out := w.encoder(w.out)
	for entry := range w.cluster / 8 {
		if w.data[entry/8]&(1<<(entry%8)) == 0 {
			out.entry(0, 0)
			continue
		}
		out.entry(from, writerCopied)
		from++
	}
	return out.w.Flush()
}

func (w *StreamWriter) encoder(out io.Writer) writerEncoder {
	return writerEncoder{w: bufio.NewWriterSize(out, int(w.cluster)), cluster: w.cluster}
}

// Finish writes what is left, the last L2 table and the refcount blocks, and returns the head.
func (w *StreamWriter) Finish() (head []byte, err error) {
	perTable := w.cluster / 8
	tables := writerDivide(w.size, w.cluster*perTable)
	if err := w.reach(tables * perTable); err != nil {
		return nil, err
	}
	l := writerLayout{l1: streamL1, refcountTable: streamRefcountTable, refcountBlocks: w.used}
	l.clusters = w.used + writerRefcountBlocks(w.used, w.cluster)
	blocks := w.encoder(w.out)
	for range l.clusters {
		blocks.uint16(1)
	}
	blocks.pad()
	if err := blocks.w.Flush(); err != nil {
		return nil, err
	}
	return w.head(l), nil
}

func (w *StreamWriter) head(l writerLayout) []byte {
	var b bytes.Buffer
	out := w.encoder(&b)
	out.write(writerHeader(l, w.cluster, w.size))
	out.pad()
	for _, place := range w.places {
		out.entry(place, writerCopied)
	}
	out.pad()
	for block := l.refcountBlocks; block < l.clusters; block++ {
		out.entry(block, 0)
	}
	out.pad()
	_ = out.w.Flush() // a buffer takes all
	return b.Bytes()
}

// State writes what comes before the cluster of that number of the disk, which is not lower
// than that of any cluster that was put, and returns what ResumeStreamWriter needs to go on
// with it: for each earlier L2 table how many clusters of data it has, as varints, and the
// bits of the one that is growing. It has 35 KiB at most.
func (w *StreamWriter) State(number int64) ([]byte, error) {
	if err := w.reach(number); err != nil {
		return nil, err
	}
	var state []byte
	at := int64(streamData)
	for _, place := range w.places {
		count := int64(0)
		if place != 0 {
			count = place - at
			at = place + 1
		}
		state = binary.AppendUvarint(state, uint64(count))
	}
	return append(state, w.data[:streamBitmap(number%(w.cluster/8))]...), nil
}

// streamBitmap is how many bytes n bits take.
func streamBitmap(n int64) int64 { return (n + 7) / 8 }

// ResumeStreamWriter returns a StreamWriter that goes on with the cluster of that number of
// the disk, behind the first offset bytes of the file, the head included. It fails as
// NewStreamWriter, and with ErrStreamState if no StreamWriter can have had the state there.
func ResumeStreamWriter(out io.Writer, size, number, offset int64, state []byte) (*StreamWriter, error) {
	w, err := NewStreamWriter(out, size)
	if err != nil {
		return nil, err
	}
	if number < 0 || number > writerDivide(size, w.cluster) {
		return nil, ErrStreamState
	}
	perTable := w.cluster / 8
	for range number / perTable {
		count, n := binary.Uvarint(state)
		if n <= 0 || count > uint64(perTable) {
			return nil, ErrStreamState
		}
		place := int64(0)
		if count > 0 {
			place = w.used + int64(count)
			w.used = place + 1
		}
		w.places = append(w.places, place)
		state = state[n:]
	}
	growing := number % perTable
	if int64(len(state)) != streamBitmap(growing) {
		return nil, ErrStreamState
	}
	copy(w.data, state)
	if growing%8 != 0 && w.data[growing/8]>>(growing%8) != 0 {
		return nil, ErrStreamState // bits of clusters that have not come
	}
	w.used += w.count()
	if w.used*w.cluster != offset {
		return nil, ErrStreamState
	}
	return w, nil
}
