package decode

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// groupBytes is how much of the disk is unpacked in one go and written at once.
	groupBytes = 256 << 10
	// maxWorkers bounds the memory of one import: each worker has two buffers of a
	// group, or of a unit if that is larger.
	maxWorkers = 8
)

// part is a piece of the disk and where its bytes are.
type part struct {
	guest  int64
	length int
	data   []byte
	packed bool
}

// writer unpacks parts on all cores, and writes them in the order in which they
// come, from one goroutine.
type writer struct {
	out    io.WriterAt
	size   int64 // of the disk; what lies behind it is dropped
	unpack func(dst, src []byte) error

	groups []group
	slots  chan []byte // buffers of groups
	made   int         // how many there are
}

// group is a row of parts that are unpacked into one buffer, or one part that is
// not packed.
type group struct {
	parts  []part
	length int
	done   chan struct{} // closed when buf or err is set; nil for a plain part
	buf    []byte
	err    error
}

func newWriter(out io.WriterAt, size int64, unpack func(dst, src []byte) error) *writer {
	return &writer{out: out, size: size, unpack: unpack, slots: make(chan []byte, 2*workers())}
}

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// write returns when all parts are written, or with the first error. It keeps
// nothing of what they point to.
func (w *writer) write(parts []part) error {
	packed := w.group(parts)
	quit := make(chan struct{})
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(packed, workers()) {
		wg.Go(func() { w.work(&next, quit) })
	}
	err := w.emit()
	close(quit)
	wg.Wait()
	return err
}

// group cuts parts into groups and returns how many of these are to be unpacked.
func (w *writer) group(parts []part) (packed int) {
	w.groups = w.groups[:0]
	for from := 0; from < len(parts); {
		g := group{parts: parts[from : from+1], length: parts[from].length}
		if parts[from].packed {
			packed++
			g.done = make(chan struct{})
			for to := from + 1; to < len(parts); to++ {
				p := parts[to]
				if !p.packed || p.guest != parts[from].guest+int64(g.length) || g.length+p.length > groupBytes {
					break
				}
				g.parts = parts[from : to+1]
				g.length += p.length
			}
		}
		w.groups = append(w.groups, g)
		from += len(g.parts)
	}
	return packed
}

// work unpacks one group after another.
//
// It takes a buffer first and a group then, so that of the groups which wait to
// be written the first always has a buffer: writing it frees one for the others.
func (w *writer) work(next *atomic.Int64, quit <-chan struct{}) {
	for {
		var buf []byte
		select {
		case buf = <-w.slots:
		case <-quit:
			return
		}
		g := w.claim(next)
		if g == nil {
			w.slots <- buf
			return
		}
		if cap(buf) < g.length {
			buf = make([]byte, max(g.length, groupBytes))
		}
		g.buf, g.err = buf[:g.length], nil
		at := 0
		for _, p := range g.parts {
			if g.err = w.unpack(g.buf[at:at+p.length], p.data); g.err != nil {
				break
			}
			at += p.length
		}
		close(g.done)
	}
}

// claim returns the next group that is to be unpacked, if there is one.
func (w *writer) claim(next *atomic.Int64) *group {
	for {
		i := int(next.Add(1)) - 1
		if i >= len(w.groups) {
			return nil
		}
		if g := &w.groups[i]; g.done != nil {
			return g
		}
	}
}

// emit writes all groups in their order.
func (w *writer) emit() error {
	for ; w.made < cap(w.slots); w.made++ {
		w.slots <- nil // made when it is needed
	}
	var failed error
	for i := range w.groups {
		g := &w.groups[i]
		if g.done == nil {
			if err := w.put(g.parts[0].data, g.parts[0].guest); err != nil {
				return err
			}
			continue
		}
		<-g.done
		if failed = g.err; failed == nil {
			failed = w.put(g.buf, g.parts[0].guest)
		}
		w.slots <- g.buf
		if failed != nil {
			return failed
		}
	}
	return nil
}

func (w *writer) put(p []byte, guest int64) error {
	if over := guest + int64(len(p)) - w.size; over > 0 {
		p = p[:int64(len(p))-over]
	}
	_, err := w.out.WriteAt(p, guest)
	return err
}
