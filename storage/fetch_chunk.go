package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"vmimport/internal/fault"
)

// chunk is one range of the object on its way through a Fetch.
type chunk struct {
	off  int64
	buf  []byte // from the pool; data is its beginning
	data []byte

	// ready is closed when data is complete. It stays open if that fails; then
	// the Fetch is over.
	ready chan struct{}

	// refs counts who may still touch data: the goroutine that fills it, and
	// each lane. The last one to let go retires the chunk.
	refs atomic.Int32

	// states has a place for each digest if the end of the chunk is a Mark,
	// else it is nil.
	states [][]byte
}

func (c *chunk) end() int64 { return c.off + int64(len(c.data)) }

func (c *chunk) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// await waits until data is complete. It fails with the cause of ctx, also if
// data is complete by then: after the end of a Fetch nothing new begins.
func (c *chunk) await(ctx context.Context) error {
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// ErrUnreadable means that a Fetch has given up on its source for now.
var ErrUnreadable = fault.New(fault.Unavailable, "source_unreadable",
	"The object could not be read from the object store.").
	Try("Nothing about the request is wrong: check that the object can be downloaded, and ask again later.")

// fill reads what belongs into c. A request that fails is made again for the
// rest, until Attempts of them in a row brought nothing.
func (f *fetcher) fill(ctx context.Context, c *chunk) error {
	for got, barren := 0, 0; ; {
		n, err := f.request(ctx, c.off+int64(got), c.data[got:])
		got += n
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if permanent(err) {
			return fmt.Errorf("read the object at byte %d: %w", c.off+int64(got), err)
		}
		if barren++; n > 0 {
			barren = 0
		}
		if barren == f.opt.Attempts {
			return ErrUnreadable.Saw("%d requests in a row gave no data at byte %d", barren, c.off+int64(got)).Because(err)
		}
		if errors.Is(err, errStalled) {
			f.opt.Stats.Stalls.Add(1)
		} else {
			f.opt.Stats.Retries.Add(1)
		}
		if err := f.opt.Backoff.wait(ctx, barren); err != nil {
			return err
		}
	}
}

// permanent reports whether an object's error will be the same next time.
func permanent(err error) bool {
	if errors.Is(err, ErrChanged) || errors.Is(err, ErrNoObject) {
		return true
	}
	kind := fault.KindOf(err)
	return kind == fault.Denied || kind == fault.Invalid
}

// request asks once for the len(p) bytes at off. It returns how many of them
// came, and an error unless all did.
func (f *fetcher) request(ctx context.Context, off int64, p []byte) (n int, err error) {
	ctx, dog := watch(ctx, f.opt.StallAfter)
	defer dog.stop()
	defer func() {
		// The adapter reports that its context ended, in words of its own.
		if err != nil && context.Cause(ctx) == errStalled {
			err = errStalled
		}
	}()
	body, err := f.obj.ReadRange(ctx, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return readExactly(ctx, body, p, func(n int) {
		dog.feed()
		f.opt.Stats.Received.Add(int64(n))
	})
}

// errLong means that a range had more bytes than were asked for.
var errLong = errors.New("the range is longer than asked for")

// readExactly fills p from body, calling got after each piece.
//
// It reads on to the end of body: only then can a connection be used again,
// and a body that is too long be told. Such a body is not the range that was
// asked for, so none of its bytes count; those before any other error do.
func readExactly(ctx context.Context, body io.Reader, p []byte, got func(n int)) (n int, err error) {
	var extra [1]byte
	for ctx.Err() == nil { // a body may read nothing, without error, for ever
		into := p[n:]
		if n == len(p) {
			into = extra[:]
		}
		k, err := body.Read(into)
		if k > 0 {
			got(k)
			if n == len(p) {
				return 0, errLong
			}
			n += k
		}
		switch {
		case err == nil:
		case n < len(p) && err == io.EOF:
			return n, io.ErrUnexpectedEOF
		case n < len(p) || permanent(err):
			return n, err
		default:
			return n, nil
		}
	}
	if n == len(p) {
		return n, nil
	}
	return n, context.Cause(ctx)
}

var errStalled = errors.New("no data came for too long")

// watchdog cancels a request with errStalled if it is not fed.
type watchdog struct {
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelCauseFunc
}

// watch starts a watchdog over the returned context.
func watch(ctx context.Context, after time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(after, func() { cancel(errStalled) })
	return ctx, &watchdog{timer: timer, after: after, cancel: cancel}
}

func (d *watchdog) feed() { d.timer.Reset(d.after) }

// rest keeps it quiet until it is fed again.
func (d *watchdog) rest() { d.timer.Stop() }

func (d *watchdog) stop() {
	d.timer.Stop()
	d.cancel(nil)
}
