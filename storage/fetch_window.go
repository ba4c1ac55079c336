package storage

import (
	"context"
	"time"
)

const (
	// firstWindow is how many requests a Fetch begins with. On a near store
	// two are as fast as sixteen; four hide a slow one.
	firstWindow = 4

	// spare buffers beyond the requests in flight: one that is being consumed,
	// and one that waits, so that consuming never holds up reading.
	spare = 2

	// growAfter is how much waiting for data buys one more request. A near
	// store has answered by then. One that is 50 ms away and gives 25 MB/s a
	// connection is read at full width before its first 8 MiB are complete.
	growAfter = 25 * time.Millisecond
)

// window bounds how far a Fetch reads ahead: so many requests in flight, and
// spare more buffers than that.
//
// It begins small and grows while the hash, which consumes in order and sets
// the pace, has nothing to do although every request allowed is in flight and
// bytes arrive. Then the source is far, and only more requests help. A window
// that is held back by a slow consumer or a poor pool has requests to spare and
// stays as it is, and so does that of a store which has fallen silent: it would
// take buffers from others and fill none. It never shrinks: a far source does
// not come nearer.
type window struct {
	slots chan struct{} // a token for each request that may start
	room  chan struct{} // a token for each buffer that may be taken

	// The rest belongs to the one goroutine that calls await.
	size, limit int
	received    func() int64  // bytes that have arrived so far
	seen        int64         // what that was when the window last grew
	patience    time.Duration // what is left of it
	timer       *time.Timer
}

func newWindow(limit int, received func() int64) *window {
	w := &window{
		received: received,
		seen:     received(),
		slots:    make(chan struct{}, limit),
		room:     make(chan struct{}, limit+spare),
		limit:    limit,
		patience: growAfter,
		timer:    time.NewTimer(growAfter),
	}
	w.timer.Stop()
	for range spare {
		w.room <- struct{}{}
	}
	for range min(firstWindow, limit) {
		w.add()
	}
	return w
}

func (w *window) add() {
	w.size++
	w.slots <- struct{}{}
	w.room <- struct{}{}
}

// enter waits until one more request may start and one more buffer be taken.
// The request comes first, so that no buffer lies idle waiting for its request.
func (w *window) enter(ctx context.Context) error {
	for _, tokens := range []chan struct{}{w.slots, w.room} {
		select {
		case <-tokens:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// requestDone and bufferDone undo enter, each its half.
func (w *window) requestDone() { w.slots <- struct{}{} }
func (w *window) bufferDone()  { w.room <- struct{}{} }

// await is chunk.await for the goroutine that sets the pace: the time that it
// waits makes the window grow.
func (w *window) await(ctx context.Context, c *chunk) error {
	if c.isReady() {
		return context.Cause(ctx)
	}
	began := time.Now()
	w.timer.Reset(w.patience)
	for {
		select {
		case <-w.timer.C:
			w.grow()
			began, w.patience = time.Now(), growAfter
			w.timer.Reset(w.patience)
		case <-c.ready:
			w.timer.Stop()
			w.patience = max(0, w.patience-time.Since(began))
			return context.Cause(ctx)
		case <-ctx.Done():
			w.timer.Stop()
			return context.Cause(ctx)
		}
	}
}

func (w *window) grow() {
	if got := w.received(); w.size < w.limit && len(w.slots) == 0 && got > w.seen {
		w.seen = got
		w.add()
	}
}
