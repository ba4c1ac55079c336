package encode

import (
	"context"
	"runtime"
	"sync"

	"vmimport/internal/fault"
)

const (
	// MaxBytes bounds what an encoder keeps in memory, whatever its Options are. It is
	// what some workers need to be busy while the caller fetches and hashes more, and does not
	// grow with the cores, of which several encoders have their share.
	MaxBytes = 16 << 20

	// maxWorkers is how many there are by default. So many compress 1.5 GB/s, which is more
	// than an image is fetched with.
	maxWorkers = 8
	// queueBytes is how many buffers of units, in bytes, a worker gets at most.
	queueBytes = 5 << 20
	// deflaterBytes is what a deflater was measured to hold, rounded up.
	deflaterBytes = 832 << 10
	// otherBytes is for tables of layouts and for what is smaller.
	otherBytes = 512 << 10
	// pageBytes is what the allocator rounds large buffers up to.
	pageBytes = 8 << 10
)

// crewSize bounds how many workers there are, and how many units with their buffers: those of
// all workers, which wait, are in work, or wait for their turn in the file, and the one
// that is being filled. A worker has a buffer of its own, and two units or more.
func crewSize(workers int, bufferBytes int64) (_ int, units int) {
	const most = MaxBytes - otherBytes
	if workers <= 0 {
		workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	buffer := divide(bufferBytes, pageBytes) * pageBytes
	workers = min(workers, int(most/(deflaterBytes+3*buffer)))
	left := most - int64(workers)*(deflaterBytes+buffer)
	return workers, int(min(left, int64(workers)*queueBytes) / buffer)
}

// unit is a part of the disk on its way into the file.
type unit struct {
	number int64
	data   []byte     // of the disk, as much as has come; then packed
	done   chan error // one of them for each time in a crew's work
}

// packer compresses: it appends src to dst.
type packer func(dst, src []byte) []byte

// crew compresses units side by side, and has them come back in the order in which they
// were given. One goroutine uses it.
type crew struct {
	ctx         context.Context
	wg          sync.WaitGroup
	bufferBytes int64 // of each unit
	work        chan *unit
	queue       []*unit // that are in work or were, the oldest first
	limit       int     // of the queue
}

// newCrew starts goroutines, at most that many, or as Options.Workers says if it is 0.
// They end with ctx. No unit has more than bufferBytes, packed or not.
func newCrew(ctx context.Context, workers int, bufferBytes int64, newPacker func() packer) *crew {
	workers, limit := crewSize(workers, bufferBytes)
	c := &crew{ctx: ctx, bufferBytes: bufferBytes, work: make(chan *unit, limit), limit: limit}
	for range workers {
		c.wg.Go(func() { c.labor(newPacker()) })
	}
	return c
}

// labor packs units into a buffer that it has to spare, and leaves that to the unit for the
// one which the unit had.
func (c *crew) labor(pack packer) {
	spare := make([]byte, 0, c.bufferBytes)
	for {
		select {
		case u := <-c.work:
			packed, err := guarded(pack, spare[:0], u.data)
			if err == nil {
				u.data, spare = packed, u.data
			}
			u.done <- err
		case <-c.ctx.Done():
			return
		}
	}
}

// guarded makes a panic of a packer the error of its unit.
func guarded(pack packer, dst, src []byte) (packed []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Panicked(p)
		}
	}()
	return pack(dst, src), nil
}

// full reports whether one must be fetched before another is given.
func (c *crew) full() bool { return len(c.queue) == c.limit }

// give puts a unit to work.
func (c *crew) give(u *unit) {
	c.queue = append(c.queue, u)
	c.work <- u // has room for the queue
}

// fetch waits for the oldest unit.
func (c *crew) fetch() (*unit, error) {
	u := c.queue[0]
	c.queue = c.queue[1:]
	select {
	case err := <-u.done:
		return u, err
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}
