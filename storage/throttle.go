package storage

import (
	"context"
	"io"
	"sync"
	"time"
)

// Throttle bounds how fast bytes are read by all that share it.
//
// Whoever reads waits until all that was taken before is paid for, takes what it is about to
// read, and asks for it. Nobody waits in the middle of a request: a source would take a reader
// that waits for one that is gone.
//
// The zero value bounds nothing, and neither does nil. A Throttle is safe for concurrent use.
type Throttle struct {
	mu      sync.Mutex
	rate    int64         // bytes per second; 0: no bound
	next    time.Time     // when all that was taken is paid for
	changed chan struct{} // closed when those who wait have to look again; nil: nobody waits
}

const (
	// slice is for how long a pace is paid in advance, saved up for, or asked for at once. The
	// average over n seconds is off by 2*slice/n at most, and a source has no more than
	// 1/slice requests in a second on account of a pace.
	slice = time.Second / 8

	// leastBytes is what is asked for at once at the slowest pace: a request for less
	// costs a store as much.
	leastBytes = 64 << 10
)

// Limit sets the pace, from now on and for those who wait already; 0: no bound. What was taken
// stays taken, and is never paid for longer than at the pace that it was taken at.
func (t *Throttle) Limit(bytesPerSecond int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if bytesPerSecond == t.rate {
		return
	}
	now := time.Now()
	if left := t.next.Sub(now); left > 0 && bytesPerSecond > t.rate {
		t.next = now.Add(time.Duration(float64(left) * float64(t.rate) / float64(bytesPerSecond)))
	}
	t.rate = bytesPerSecond
	t.wake()
}

// Wait returns when more may be read, and how much of most that should be at a time: at a slow
// pace little, so that bytes come evenly. It takes nothing. It fails only with the cause of ctx.
func (t *Throttle) Wait(ctx context.Context, most int64) (int64, error) {
	if t == nil {
		return most, context.Cause(ctx)
	}
	for {
		left, n, changed := t.look(most)
		if left <= 0 || ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// look returns for how long nothing may be read, how much of most may be then, and what is
// closed if either changes.
func (t *Throttle) look(most int64) (left time.Duration, n int64, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return 0, most, nil
	}
	n = max(leastBytes, int64(float64(t.rate)*slice.Seconds())/leastBytes*leastBytes)
	if left = time.Until(t.next); left > 0 && t.changed == nil {
		t.changed = make(chan struct{})
	}
	return left, min(n, most), t.changed
}

// Take counts n bytes as read, without waiting. A negative number gives back what was taken and
// not read.
func (t *Throttle) Take(n int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return
	}
	if saved := time.Now().Add(-slice); t.next.Before(saved) {
		t.next = saved
	}
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	if n < 0 {
		t.wake()
	}
}

func (t *Throttle) wake() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// Metered returns obj, of whose bodies each byte is taken from t when it is read. It is for what
// is read by way of another Object, for which the Fetch of that one has Options.Metered.
func Metered(obj Object, t *Throttle) Object { return metered{obj, t} }

type metered struct {
	Object
	throttle *Throttle
}

func (m metered) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := m.Object.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return meteredBody{body, m.throttle}, nil
}

type meteredBody struct {
	io.ReadCloser
	throttle *Throttle
}

func (b meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.throttle.Take(int64(n))
	return n, err
}
