package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"vmimport/internal/diskimage"
	"vmimport/internal/diskimage/imagetest"
	"vmimport/internal/diskimage/qcow2"
	"vmimport/internal/fault"
)

func TestWriterGuests(t *testing.T) {
	t.Parallel()
	orders := map[string]func(size int64) []writerPiece{
		"at once": func(size int64) []writerPiece { return writerCut(size, size) },
		"chunks":  func(size int64) []writerPiece { return writerCut(size, 4<<20) },
		"sectors": func(size int64) []writerPiece { return writerCut(size, 512) },
		"reverse": func(size int64) []writerPiece {
			pieces := writerCut(size, 100_001)
			slices.Reverse(pieces)
			return pieces
		},
		"shuffled": func(size int64) []writerPiece { return writerShatter(rand.New(rand.NewPCG(1, 2)), size) },
	}
	for _, g := range imagetest.Guests(t) {
		guest, err := os.ReadFile(g.Path)
		if err != nil {
			t.Fatal(err)
		}
		peerEnd, peerAllocated := writerCheckPath(t, imagetest.Convert(t, g.Path, "qcow2", ""))
		for name, order := range orders {
			t.Run(g.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				f := writerFile(t)
				n := writerRun(t, f, int64(len(guest)), guest, order(int64(len(guest))))
				allocated := writerCheck(t, f, n)
				if allocated > peerAllocated || n > peerEnd {
					t.Errorf("%d clusters, %d bytes; those of qemu-img: %d, %d", allocated, n, peerAllocated, peerEnd)
				}
				writerSame(t, f.Name(), g.Path)
			})
		}
	}
}

// Sizes at the borders of sectors, clusters and L2 tables, with data in the first
// and in the last sector or none at all.
func TestWriterSizes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		size, maxSize int64
		empty         bool
	}{
		{name: "one sector", size: 512, maxSize: 512},
		{name: "one empty sector", size: 512, maxSize: 512, empty: true},
		{name: "a cluster less a sector", size: 64<<10 - 512, maxSize: 64<<10 - 512},
		{name: "one cluster", size: 64 << 10, maxSize: 64 << 10},
		{name: "a cluster and a sector", size: 64<<10 + 512, maxSize: 64<<10 + 512},
		{name: "one L2 table", size: 512 << 20, maxSize: 512 << 20},
		{name: "a second L2 table", size: 512<<20 + 512, maxSize: 512<<20 + 512},
		{name: "empty", size: 1 << 30, maxSize: 1 << 30, empty: true},
		{name: "smaller than feared", size: 3<<20 + 512, maxSize: 100 << 30},
		{name: "much smaller than feared", size: 3<<20 + 512, maxSize: qcow2.MaxWriteBytes},
		{name: "one sector of the largest", size: 512, maxSize: qcow2.MaxWriteBytes},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, raw := writerFile(t), writerFile(t)
			if err := raw.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			w, err := qcow2.NewWriter(f, c.maxSize)
			if err != nil {
				t.Fatal(err)
			}
			if !c.empty {
				for _, disk := range []io.WriterAt{w, raw} {
					writerAt(t, disk, []byte{1}, 0)
					writerAt(t, disk, []byte{2}, c.size-1)
				}
			}
			n, err := w.Finish(c.size)
			if err != nil {
				t.Fatal(err)
			}
			if allocated := writerCheck(t, f, n); c.empty && allocated != 0 {
				t.Errorf("%d clusters of an empty disk", allocated)
			}
			writerSame(t, f.Name(), raw.Name())
		})
	}
}

// A giant disk with little in it costs little: memory for three L2 tables, and a
// few clusters of the file.
func TestWriterGiantDisks(t *testing.T) {
	for _, c := range []struct{ size, cluster int64 }{
		{512 << 30, 64 << 10},
		{512<<30 + 512, 128 << 10},
		{4 << 40, 512 << 10},
		{qcow2.MaxWriteBytes, 2 << 20},
	} {
		f := writerFile(t)
		data := bytes.Repeat([]byte("data"), 128)
		places := []int64{0, 256<<30 - 256, c.size - 512} // the second takes two clusters
		var n int64
		imagetest.Bounded(t, 6<<20, func() {
			w, err := qcow2.NewWriter(f, c.size)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range places {
				writerAt(t, w, data, off)
			}
			if n, err = w.Finish(c.size); err != nil {
				t.Fatal(err)
			}
		})
		if allocated := writerCheck(t, f, n); allocated != 4 || n > 14*c.cluster {
			t.Errorf("disk of %d bytes: %d clusters are allocated, the file has %d bytes", c.size, allocated, n)
		}
		image := imagetest.Open(t, f.Name())
		disk, err := qcow2.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		if disk.Size != c.size {
			t.Errorf("disk of %d bytes has %d", c.size, disk.Size)
		}
		guest := disk.Guest(image)
		for _, off := range places {
			got := make([]byte, len(data)+512)
			n, err := guest.ReadAt(got, off)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			want := append(bytes.Clone(data), make([]byte, n-len(data))...)
			if !bytes.Equal(got[:n], want) {
				t.Errorf("disk of %d bytes: not what was written at %d", c.size, off)
			}
		}
	}
}

// writerTablesOnly writes nothing to a file until it is switched on, for images
// whose data does not matter, only how much of it there is.
type writerTablesOnly struct {
	io.WriterAt
	on bool
}

func (w *writerTablesOnly) WriteAt(p []byte, off int64) (int, error) {
	if !w.on {
		return len(p), nil
	}
	return w.WriterAt.WriteAt(p, off)
}

// The refcount blocks count themselves. 32760 data clusters of 64 KiB are the most
// that one block holds together with header, four L2 tables, L1 table, refcount
// table and itself.
func TestWriterRefcounts(t *testing.T) {
	t.Parallel()
	const cluster = 64 << 10
	for _, c := range []struct{ clusters, image int64 }{
		{32759, 32767},
		{32760, 32768},
		{32761, 32770},
		{65523, 65536},
		{65524, 65538},
	} {
		t.Run(fmt.Sprint(c.clusters), func(t *testing.T) {
			t.Parallel()
			f := writerFile(t)
			out := &writerTablesOnly{WriterAt: f}
			w, err := qcow2.NewWriter(out, c.clusters*cluster)
			if err != nil {
				t.Fatal(err)
			}
			for i := range c.clusters {
				if _, err := w.WriteAt([]byte{1}, i*cluster); err != nil {
					t.Fatal(err)
				}
			}
			out.on = true
			n, err := w.Finish(c.clusters * cluster)
			if err != nil {
				t.Fatal(err)
			}
			if n != c.image*cluster || n != qcow2.MaxFileBytes(c.clusters*cluster) {
				t.Errorf("%d clusters, want %d; at most %d were promised",
					n/cluster, c.image, qcow2.MaxFileBytes(c.clusters*cluster)/cluster)
			}
			if allocated := writerCheck(t, f, n); allocated != c.clusters {
				t.Errorf("%d clusters are allocated, want %d", allocated, c.clusters)
			}
		})
	}
}

func TestMaxFileBytes(t *testing.T) {
	t.Parallel()
	const kib, mib = 1 << 10, 1 << 20
	for size, want := range map[int64]int64{
		512:                 64 * kib * (1 + 1 + 1 + 1 + 2), // header, data, L2, L1, refcounts
		64 * kib:            64 * kib * (1 + 1 + 1 + 1 + 2),
		64*kib + 512:        64 * kib * (1 + 2 + 1 + 1 + 2),
		512*mib + 512:       64 * kib * (1 + 8193 + 2 + 1 + 2),
		512 << 30:           64 * kib * (1 + 8*mib + 1024 + 1 + 1 + 257),
		512<<30 + 512:       128 * kib * (1 + 4*mib + 1 + 257 + 1 + 1 + 65),
		qcow2.MaxWriteBytes: 2 * mib * (1 + 8*mib + 32 + 1 + 1 + 9),
	} {
		if got := qcow2.MaxFileBytes(size); got != want {
			t.Errorf("disk of %d bytes: %d, want %d", size, got, want)
		}
	}
}

// The most memory is what data all over the disk takes.
func TestWriterMemory(t *testing.T) {
	data := []byte{1}
	for _, size := range []int64{512 << 30, qcow2.MaxWriteBytes} {
		imagetest.Bounded(t, 33<<20, func() {
			w, err := qcow2.NewWriter(writerNowhere{}, size)
			if err != nil {
				t.Fatal(err)
			}
			for off := int64(0); off < size; off += 128 << 20 {
				if _, err := w.WriteAt(data, off); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// writerMemory is a file in memory that logs what it is written, and fails from one
// write on, if that is not zero.
type writerMemory struct {
	b      []byte
	writes []writerPiece
	failAt int
}

var errWriterDiskFull = errors.New("disk full")

func (m *writerMemory) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	m.writes = append(m.writes, writerPiece{off, end})
	if m.failAt > 0 && len(m.writes) >= m.failAt {
		return 0, errWriterDiskFull
	}
	if end > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func TestWriterWritesInRuns(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	guest := bytes.Repeat([]byte{7}, 12*mib)
	clear(guest[5*mib : 6*mib])
	clear(guest[9*mib+8<<10 : 9*mib+12<<10])
	var out writerMemory
	n := writerRun(t, &out, int64(len(guest)), guest, []writerPiece{{8 * mib, 12 * mib}, {0, 4 * mib}, {4 * mib, 8 * mib}})
	const data = 64 << 10
	want := []writerPiece{
		{data, data + mib + 8<<10},
		{data + mib + 12<<10, data + 4*mib},
		{data + 4*mib, data + 8*mib},
		{data + 8*mib, data + 9*mib},
		{data + 9*mib, data + 11*mib},
		{data + 11*mib, n}, // all the tables
		{0, 112},
	}
	if !slices.Equal(out.writes, want) {
		t.Errorf("writes %v, want %v", out.writes, want)
	}
}

// A file whose writing was interrupted anywhere is no image.
func TestWriterInterrupted(t *testing.T) {
	t.Parallel()
	guest := writerGuest(rand.New(rand.NewPCG(1, 2)), []byte{200, 1, 250, 0, 250, 3, 99, 1, 255, 3})
	pieces := writerCut(int64(len(guest)), 100_000)
	var whole writerMemory
	writerRun(t, &whole, int64(len(guest)), guest, pieces)
	if f, err := diskimage.Detect(bytes.NewReader(whole.b), int64(len(whole.b))); f != diskimage.QCOW2 || err != nil {
		t.Fatalf("the whole image is %q, %v", f, err)
	}
	last := len(whole.writes)
	for failAt := 1; failAt <= last; failAt++ {
		out := writerMemory{failAt: failAt}
		if err := writerTry(&out, guest, pieces); !errors.Is(err, errWriterDiskFull) {
			t.Fatalf("write %d of %d failed, and so the writer should: %v", failAt, last, err)
		}
		if len(out.writes) != failAt {
			t.Fatalf("%d writes, %d of them after a failed one", len(out.writes), len(out.writes)-failAt)
		}
		if bytes.HasPrefix(out.b, []byte("QFI")) {
			t.Fatalf("write %d of %d failed, but there is a header", failAt, last)
		}
	}
}

// writerTry ignores errors until Finish.
func writerTry(out io.WriterAt, guest []byte, pieces []writerPiece) error {
	w, err := qcow2.NewWriter(out, int64(len(guest)))
	if err != nil {
		return err
	}
	for _, p := range pieces {
		_, _ = w.WriteAt(guest[p.from:p.to], p.from)
	}
	_, err = w.Finish(int64(len(guest)))
	return err
}

func TestWriterMisuse(t *testing.T) {
	t.Parallel()
	const maxSize = 1 << 20
	write := func(n int, off int64) func(*qcow2.Writer) error {
		return func(w *qcow2.Writer) error {
			_, err := w.WriteAt(make([]byte, n), off)
			return err
		}
	}
	finish := func(size int64) func(*qcow2.Writer) error {
		return func(w *qcow2.Writer) error {
			_, err := w.Finish(size)
			return err
		}
	}
	for name, misuse := range map[string]func(*qcow2.Writer) error{
		"write in front of the disk": write(1, -1),
		"write over the end":         write(2, maxSize-1),
		"write behind the end":       write(1, maxSize),
		"write far behind the end":   write(2, 1<<63-1),
		"finish without a size":      finish(0),
		"finish before the data":     finish(512),
		"finish within a sector":     finish(2000),
		"finish too late":            finish(maxSize + 512),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out writerMemory
			w, err := qcow2.NewWriter(&out, maxSize)
			if err != nil {
				t.Fatal(err)
			}
			writerAt(t, w, make([]byte, 1000), 0)
			if err := misuse(w); fault.KindOf(err) != fault.Internal {
				t.Errorf("got %v", err)
			}
			if _, err := w.Finish(maxSize); err == nil || len(out.writes) != 0 {
				t.Errorf("finished after it was misused: %v", err)
			}
		})
	}
}

func TestWriterIsFinishedOnce(t *testing.T) {
	t.Parallel()
	var out writerMemory
	w, err := qcow2.NewWriter(&out, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(1 << 20); err != nil {
		t.Fatal(err)
	}
	writes := len(out.writes)
	if _, err := w.WriteAt([]byte{1}, 0); fault.KindOf(err) != fault.Internal {
		t.Errorf("write after the end: %v", err)
	}
	if _, err := w.Finish(1 << 20); fault.KindOf(err) != fault.Internal {
		t.Errorf("finish after the end: %v", err)
	}
	if len(out.writes) != writes {
		t.Error("the image was changed after its end")
	}
}

func TestNewWriterRefuses(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]error{
		-1:                           diskimage.ErrEmptyDisk,
		0:                            diskimage.ErrEmptyDisk,
		qcow2.MaxWriteBytes + 1:      diskimage.ErrTooLarge,
		diskimage.MaxDiskBytes + 512: diskimage.ErrTooLarge,
	} {
		if _, err := qcow2.NewWriter(&writerMemory{}, size); !errors.Is(err, want) {
			t.Errorf("disk of %d bytes: %v, want %v", size, err, want)
		}
	}
	if _, err := qcow2.NewWriter(&writerMemory{}, qcow2.MaxWriteBytes); err != nil {
		t.Error(err)
	}
}
