package diskimage

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// How tables are read that lie anywhere in the file. Each read may be a request to an
// object store, which takes as long as some 64 KiB more of any other request do.
const (
	// firstBatchBytes is how many bytes of tables are read before the first extent:
	// one who looks at a single place of the disk waits for no more. Each batch has
	// batchGrowth times the bytes of the one before, up to maxBatchBytes. The more
	// there are in a batch, the nearer to each other they lie.
	firstBatchBytes = 64 << 10
	batchGrowth     = 4
	maxBatchBytes   = MaxTableBytes / 2
	// readsAtOnce is how many reads are under way, and maxReadBytes the longest of
	// several tables: all together they need what a batch leaves of MaxTableBytes.
	readsAtOnce  = 16
	maxReadBytes = (MaxTableBytes - maxBatchBytes) / readsAtOnce
	// maxGapBytes is what is read in vain between two tables if that saves a read.
	maxGapBytes = 64 << 10

	// maxWork bounds the cost of a walk in multiples of the file's size. A read costs
	// its bytes, and maxGapBytes for itself; a batch costs at most 5/4 of the file,
	// and so do all batches together where tables come by rising offset. In whatever
	// order they are, neither 64 MiB of tables nor any that come with 4 KiB of data
	// each meet the bound.
	maxWork = 16
	// freeWork is what a file of any size may cost.
	freeWork = 4 << 20
)

// ReadTables calls visit with each table from entry i of a directory of n entries on,
// in the order of the directory. place returns where in the file that of an entry is,
// with offset 0 where there is none; tables lie in the file and do not overlap. A
// table is valid during the call. An error of visit ends it.
//
// The order of the tables in the file may be any, yet they are read in few reads: at
// most maxWork for each 64 KiB of the file, or it fails with ErrFragmented.
func (f *File) ReadTables(i, n int, place func(i int) (off, length int64), visit func(i int, table []byte) error) error {
	b := batch{file: f, work: freeWork + maxWork*min(f.Size(), MaxDiskBytes)}
	for limit := int64(firstBatchBytes); ; limit = min(batchGrowth*limit, maxBatchBytes) {
		i = b.fill(i, n, place, limit)
		if len(b.tables) == 0 {
			return nil
		}
		if err := b.plan(); err != nil {
			return err
		}
		if err := b.read(); err != nil {
			return err
		}
		slices.SortFunc(b.tables, func(x, y table) int { return cmp.Compare(x.entry, y.entry) })
		for _, t := range b.tables {
			if err := visit(t.entry, b.buf[t.at:][:t.length]); err != nil {
				return err
			}
		}
	}
}

// table is a table of a batch.
type table struct {
	entry       int   // of the directory
	off, length int64 // in the file
	at          int64 // in the batch's buf
}

// end is the offset in the file behind the table.
func (t table) end() int64 { return t.off + t.length }

// batch is tables that are read together.
type batch struct {
	file   *File
	work   int64 // that may still be done, see maxWork
	tables []table
	reads  [][2]int            // from and to which of the tables, which lie by rising offset
	buf    []byte              // the tables by rising offset, without the gaps
	gapped [readsAtOnce][]byte // what was read with gaps, of each who reads
}

// fill puts the tables from entry i of n on into b, as long as they have no more
// than limit bytes or are only one, and returns the entry behind them.
func (b *batch) fill(i, n int, place func(int) (off, length int64), limit int64) int {
	b.tables = b.tables[:0]
	for total := int64(0); i < n; i++ {
		off, length := place(i)
		if off == 0 {
			continue
		}
		if total += length; total > limit && len(b.tables) > 0 {
			break
		}
		b.tables = append(b.tables, table{entry: i, off: off, length: length})
	}
	return i
}

// plan sorts the tables by their place, and makes one read of those that are near to
// each other.
func (b *batch) plan() error {
	slices.SortFunc(b.tables, func(x, y table) int { return cmp.Compare(x.off, y.off) })
	b.reads = b.reads[:0]
	at, start := int64(0), int64(0)
	for i := range b.tables {
		t := &b.tables[i]
		t.at = at
		at += t.length
		if i > 0 && t.off-b.tables[i-1].end() <= maxGapBytes && t.end()-start <= maxReadBytes {
			b.reads[len(b.reads)-1][1] = i + 1
			b.work -= t.end() - b.tables[i-1].end()
			continue
		}
		start = t.off
		b.reads = append(b.reads, [2]int{i, i + 1})
		b.work -= t.length + maxGapBytes
	}
	if b.work < 0 {
		return ErrFragmented.Saw("%d tables in %d places", len(b.tables), len(b.reads))
	}
	b.buf = resized(b.buf, at, at)
	return nil
}

// read does the reads, several at a time, until one fails.
func (b *batch) read() error {
	var errs [readsAtOnce]error
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range min(readsAtOnce, len(b.reads)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(b.reads) {
					return
				}
				if errs[w] = b.readPart(b.tables[b.reads[i][0]:b.reads[i][1]], &b.gapped[w]); errs[w] != nil {
					next.Store(int64(len(b.reads)))
					return
				}
			}
		})
	}
	wg.Wait()
	return cmp.Or(errs[:]...)
}

// readPart reads neighbours in the file, by way of gapped if there is something
// between them.
func (b *batch) readPart(part []table, gapped *[]byte) error {
	first, last := part[0], part[len(part)-1]
	into := b.buf[first.at : last.at+last.length]
	n := last.end() - first.off
	if n == int64(len(into)) {
		return b.file.ReadInto("tables", first.off, into)
	}
	*gapped = resized(*gapped, n, min(2*n, maxReadBytes))
	if err := b.file.ReadInto("tables", first.off, *gapped); err != nil {
		return err
	}
	for _, t := range part {
		copy(b.buf[t.at:][:t.length], (*gapped)[t.off-first.off:])
	}
	return nil
}

// resized returns n bytes of any content, those of b if it has room for them, and else
// new ones with room for most.
func resized(b []byte, n, most int64) []byte {
	if int64(cap(b)) < n {
		b = make([]byte, n, most)
	}
	return b[:n]
}
