package decode

import (
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"vmimport/internal/diskimage"
	"vmimport/internal/fault"
)

const (
	// groupBytes is how much of the disk is unpacked in one go and written at once.
	groupBytes = 256 << 10
	// maxWorkers bounds the memory of one import: each worker has some buffers of a
	// group, or of a unit if that is larger. With four of them it seldom waits for the
	// writing of what it has unpacked.
	maxWorkers  = 8
	buffersEach = 4
)

// part is a piece of the disk and where its bytes are.
type part struct {
	guest  int64
	length int
	data   []byte
	packed bool
}

// buffers are what groups are unpacked into. All disks of a Decoder share them, for
// they are written one after the other.
type buffers struct {
	slots chan []byte
	made  bool
}

func newBuffers() *buffers { return &buffers{slots: make(chan []byte, buffersEach*workers())} }

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// headBytes is how much of a disk's front may tell that it is an image.
const headBytes = 64 << 10

// writer unpacks parts on all cores, and writes them in the order in which they
// come, from one goroutine. It is of no use after an error.
type writer struct {
	*buffers
	ctx    context.Context
	out    io.WriterAt
	size   int64 // of the disk; what lies behind it is dropped
	unpack func(dst, src []byte) error
	groups []group

	// Both ends of the disk, as far as they were written here, for who cannot look
	// at them before. They are nil where nobody wants them.
	head, tail []byte
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

func (b *buffers) writer(ctx context.Context, out io.WriterAt, size int64, unpack func(dst, src []byte) error) *writer {
	if !b.made {
		b.made = true
		for range cap(b.slots) {
			b.slots <- nil // made when it is needed
		}
	}
	return &writer{buffers: b, ctx: ctx, out: out, size: size, unpack: unpack}
}

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
		g.buf = buf[:g.length]
		g.err = w.fill(g)
		close(g.done)
	}
}

// fill unpacks the parts of a group. A panic in there is the end of this import, and
// not of the others that run beside it.
func (w *writer) fill(g *group) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Panicked(p)
		}
	}()
	at := 0
	for _, p := range g.parts {
		if err := w.unpack(g.buf[at:at+p.length], p.data); err != nil {
			return err
		}
		at += p.length
	}
	return nil
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

// emit writes all groups in their order, or as many as there are before the context
// ends: a chunk may unpack to gigabytes.
func (w *writer) emit() error {
	for i := range w.groups {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		g := &w.groups[i]
		if g.done == nil {
			if err := w.put(g.parts[0].data, g.parts[0].guest); err != nil {
				return err
			}
			continue
		}
		<-g.done
		if g.err != nil {
			return g.err
		}
		if err := w.put(g.buf, g.parts[0].guest); err != nil {
			return err
		}
		w.slots <- g.buf
	}
	return nil
}

func (w *writer) put(p []byte, guest int64) error {
	if over := guest + int64(len(p)) - w.size; over > 0 {
		p = p[:int64(len(p))-over]
	}
	if w.head != nil {
		w.note(p, guest)
	}
	_, err := w.out.WriteAt(p, guest)
	return err
}

// watch keeps both ends of the disk as they are written.
func (w *writer) watch() {
	w.head, w.tail = make([]byte, min(headBytes, w.size)), make([]byte, diskimage.SectorBytes)
}

func (w *writer) note(p []byte, guest int64) {
	if guest < int64(len(w.head)) {
		copy(w.head[guest:], p)
	}
	last := w.size - diskimage.SectorBytes
	if end := guest + int64(len(p)); end > last {
		from := max(last, guest)
		copy(w.tail[from-last:], p[from-guest:])
	}
}
