package storage

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vmimport/internal/fault"
)

// Consumer takes one piece of an object: the bytes p at off. A Fetch calls each
// of its consumers from one goroutine, with all pieces in the object's order. p
// is shared with the others and valid only during the call; it must not be
// changed. An error ends the Fetch.
//
// A Fetch ends only after its consumers' calls have returned, so one that may
// block has to obey the context that was given to Fetch.
type Consumer func(off int64, p []byte) error

// Mark is a point from which a later Fetch of the same version can go on. It
// survives JSON.
type Mark struct {
	Offset int64             `json:"offset"` // bytes below it are done
	States map[string][]byte `json:"states"` // of the digests at Offset, by name
}

// Stats counts what happens, live. Several Fetches may share one.
type Stats struct {
	Received atomic.Int64 // bytes that came from the source, dropped ones too
	Done     atomic.Int64 // bytes that all consumers have taken
	Retries  atomic.Int64 // requests made again since they failed
	Stalls   atomic.Int64 // requests made again since no byte came
}

// Options say how to fetch. All but Pool may be left zero.
type Options struct {
	// Pool is where the buffers come from. Its chunk size is the length of a
	// range request, if Throttle asks for no shorter ones.
	Pool *Pool

	// Parallel is the most range requests in flight, 16 by default. A Fetch
	// begins with 4, and adds one whenever it has waited for data for a while,
	// until its buffers are half of the pool.
	Parallel int

	// StallAfter is how long a request may go without a byte before it is
	// replaced, 10 s by default.
	StallAfter time.Duration

	// Attempts is how many requests in a row may fail without one new byte, 6
	// by default. Backoff is the pause between them.
	Attempts int
	Backoff  Backoff

	// Digests are computed besides SHA-1: "md5", "sha256", "sha512".
	Digests []string

	// Resume is where to begin, if not at the start. The chunk size may differ
	// from that of the earlier Fetch, and the digests may be fewer.
	Resume *Mark

	// Throttle bounds the pace; nil: nothing does. A request waits for it before it takes a
	// buffer, and is as short as the pace wants it. Metered says that what a range costs is not
	// its length, and that the object takes from Throttle what it reads; a whole chunk is
	// taken then, and given back when it has come.
	Throttle *Throttle
	Metered  bool

	// OnMark is called whenever all consumers have taken MarkEvery more bytes,
	// 64 MiB by default, rounded up to the end of a request. The calls never
	// overlap, come in order, and hold up the data: they must not block.
	OnMark    func(Mark)
	MarkEvery int64

	// Stats is where to count, if anybody wants to know.
	Stats *Stats
}

const defaultStallAfter = 10 * time.Second

func (o Options) withDefaults() Options {
	o.Parallel = cmp.Or(o.Parallel, 16)
	o.StallAfter = cmp.Or(o.StallAfter, defaultStallAfter)
	o.Attempts = cmp.Or(o.Attempts, 6)
	o.Backoff = o.Backoff.withDefaults()
	o.MarkEvery = cmp.Or(o.MarkEvery, 64<<20)
	o.Stats = cmp.Or(o.Stats, new(Stats))
	if o.Pool != nil {
		o.Parallel = min(o.Parallel, o.Pool.most())
	}
	return o
}

// Fetch reads obj once, with several range requests at a time, and gives every
// byte to every consumer in the object's order. It returns the digests of the
// whole object in lower-case hex, by name; "sha1" is always among them.
//
// SHA-1, each further digest and each consumer have their own goroutine over
// the same buffers, so the slowest of them sets the pace. A Fetch holds at most
// Parallel + 2 buffers, and makes progress with one.
//
// A request that fails or stalls is made again for the bytes that are missing.
// ErrChanged, ErrNoObject and errors of kind fault.Denied or fault.Invalid end
// the Fetch at once; Options.Attempts barren requests in a row for one chunk end
// it with ErrUnreadable. It also ends with the first error of a consumer, with
// the cause of ctx when that is done, and with ErrBadMark for a Resume that does
// not fit. When it returns, all its goroutines have ended, all bodies are closed
// and all buffers are back in the pool.
func Fetch(ctx context.Context, obj Object, opt Options, consumers ...Consumer) (map[string]string, error) {
	opt = opt.withDefaults()
	digests, err := newDigests(opt.Digests, opt.Resume)
	if err != nil {
		return nil, err
	}
	var start int64
	if opt.Resume != nil {
		start = opt.Resume.Offset
	}
	if start < 0 || start > obj.Size() {
		return nil, fmt.Errorf("resume at byte %d of %d: %w", start, obj.Size(), ErrBadMark)
	}

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	f := &fetcher{obj: obj, opt: opt, digests: digests, window: newWindow(opt.Parallel, opt.Stats.Received.Load), fail: fail}
	for i, d := range digests {
		f.openLane(func(c *chunk) error { return d.take(c, i) })
	}
	for _, consume := range consumers {
		f.openLane(func(c *chunk) error { return consume(c.off, c.data) })
	}
	f.run(ctx, start)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return sums(digests), nil
}

// fetcher is one Fetch:
//
//	feed: window, pace, buffer ──> fill (one goroutine a chunk) ──> lane: SHA-1, digests
//	      in chunk order     requests, retries, watchdog  └─> lane: consumers
//	        ^                                                   │ in chunk order
//	        └────────────── retire: buffer, Done, Mark <────────┘
type fetcher struct {
	obj     Object
	opt     Options
	digests []digest
	window  *window
	lanes   []lane                  // of the digests, then of the consumers
	fail    context.CancelCauseFunc // ends the Fetch; the first error wins
	wg      sync.WaitGroup
}

// lane brings all chunks to one taker, in the object's order.
type lane struct {
	queue chan *chunk
	take  func(*chunk) error
}

func (f *fetcher) openLane(take func(*chunk) error) {
	// A chunk in a queue holds a buffer, so no queue can overflow.
	queue := make(chan *chunk, f.opt.Parallel+spare)
	f.lanes = append(f.lanes, lane{queue, take})
}

// run returns when all goroutines of the Fetch have ended.
func (f *fetcher) run(ctx context.Context, start int64) {
	for i, l := range f.lanes {
		await := func(c *chunk) error { return c.await(ctx) }
		if i == 0 { // SHA-1
			await = func(c *chunk) error { return f.window.await(ctx, c) }
		}
		f.wg.Go(func() { f.drain(ctx, l, await) })
	}
	if err := f.feed(ctx, start); err != nil {
		f.fail(err)
	}
	for _, l := range f.lanes {
		close(l.queue)
	}
	f.wg.Wait()
}

// feed starts a request for each chunk, as window, pace and pool allow.
//
// The pace comes before the buffer, which others can use while this Fetch waits, and behind
// the window, so that nothing which may be read now waits for its request.
//
// It takes buffers strictly in chunk order. So the chunk that everybody waits
// for always has its buffer, and goes through without needing another: Fetches
// that share a pool cannot deadlock.
func (f *fetcher) feed(ctx context.Context, start int64) error {
	for off := start; off < f.obj.Size(); {
		if err := f.window.enter(ctx); err != nil {
			return err
		}
		n, err := f.pace(ctx, off)
		if err != nil {
			return err
		}
		buf, err := f.opt.Pool.Get(ctx)
		if err != nil {
			return err
		}
		f.opt.Throttle.Take(n)
		c := f.newChunk(off, n, buf)
		off = c.end()
		for _, l := range f.lanes {
			l.queue <- c
		}
		f.wg.Go(func() {
			err := f.fill(ctx, c)
			if f.opt.Metered {
				f.opt.Throttle.Take(-n)
			}
			f.window.requestDone()
			f.release(ctx, c)
			if err != nil {
				f.fail(err)
				return
			}
			close(c.ready)
		})
	}
	return nil
}

// pace waits until a chunk at off may be asked for, and returns how long it is to be. It ends where
// one of a Fetch from the start would, or before that, so that marks are in the same places
// whatever the chunk size of an earlier Fetch was.
func (f *fetcher) pace(ctx context.Context, off int64) (int64, error) {
	size := f.opt.Pool.ChunkSize()
	whole := min(size-off%size, f.obj.Size()-off)
	n, err := f.opt.Throttle.Wait(ctx, whole)
	if f.opt.Metered {
		n = whole
	}
	return n, err
}

func (f *fetcher) newChunk(off, n int64, buf []byte) *chunk {
	c := &chunk{off: off, buf: buf, data: buf[:n], ready: make(chan struct{})}
	c.refs.Store(int32(len(f.lanes) + 1))
	if f.opt.OnMark != nil && off/f.opt.MarkEvery < c.end()/f.opt.MarkEvery {
		c.states = make([][]byte, len(f.digests))
	}
	return c
}

// drain hands a lane's chunks to its taker. After the end of a Fetch it goes on
// only to release them.
func (f *fetcher) drain(ctx context.Context, l lane, await func(*chunk) error) {
	for c := range l.queue {
		err := await(c)
		if err == nil {
			err = l.guarded(c)
		}
		if err != nil {
			f.fail(err) // before release, so that the chunk does not count as done
		}
		f.release(ctx, c)
	}
}

// guarded makes a panic of the taker an error of this Fetch alone.
func (l lane) guarded(c *chunk) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Panicked(p)
		}
	}()
	return l.take(c)
}

// release is called once by the filler of c and once by each lane.
//
// Each lane goes in order, and the filler lets go before c is ready. So chunks
// are retired in order, and one at a time: the lane that retires c has yet to
// release the next.
func (f *fetcher) release(ctx context.Context, c *chunk) {
	if c.refs.Add(-1) > 0 {
		return
	}
	f.opt.Pool.Put(c.buf)
	f.window.bufferDone()
	if ctx.Err() != nil {
		return // perhaps some lane did not take it
	}
	f.opt.Stats.Done.Add(int64(len(c.data)))
	if c.states != nil {
		f.opt.OnMark(f.mark(c))
	}
}

// mark is called after each digest has left its state in c.
func (f *fetcher) mark(c *chunk) Mark {
	m := Mark{Offset: c.end(), States: make(map[string][]byte, len(f.digests))}
	for i, d := range f.digests {
		m.States[d.name] = c.states[i]
	}
	return m
}
