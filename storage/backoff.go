package storage

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is the pause before a failed request is made again: Base at first,
// then twice as long each time, up to Max. Half of each pause is random, so
// that ranges which failed together do not come back together.
type Backoff struct {
	Base time.Duration // default 100 ms
	Max  time.Duration // default 10 s
}

// Wait waits for the pause after that many failures in a row, or fails with the cause of ctx.
func (b Backoff) Wait(ctx context.Context, failures int) error {
	return b.withDefaults().wait(ctx, failures-1)
}

func (b Backoff) withDefaults() Backoff {
	return Backoff{Base: cmp.Or(b.Base, 100*time.Millisecond), Max: cmp.Or(b.Max, 10*time.Second)}
}

// delay returns the pause after the given number of doublings.
func (b Backoff) delay(doublings int) time.Duration {
	d := b.Base
	for range doublings {
		if d >= b.Max {
			break
		}
		d *= 2
	}
	half := min(d, b.Max) / 2
	return half + rand.N(half+1)
}

// wait sleeps for the pause, or fails with the cause of ctx.
func (b Backoff) wait(ctx context.Context, doublings int) error {
	timer := time.NewTimer(b.delay(doublings))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
