package client

import (
	"context"
	"fmt"
	"iter"
	"time"

	"vmimport/tasks"
)

const (
	firstInterval = 250 * time.Millisecond
	lastInterval  = 2 * time.Second

	// patience is how long Watch goes on without one good answer: longer than
	// a restart of the service or of a proxy before it.
	patience = 3 * time.Minute
)

// WatchOptions change how Watch looks. The zero value is good.
type WatchOptions struct {
	// Interval is the longest time between two looks, 2 s if zero. Watch looks
	// more often at first and after each change of state.
	Interval time.Duration
	// Trouble, if not nil, is called with each failure after which Watch tries
	// again.
	Trouble func(error)
}

// Watch yields an import as it stands, now and again, until its state is final.
// An error is yielded once and ends it; so does the end of ctx, with its cause.
//
// A service that is away or overloaded is asked again for some minutes, not
// before the time that it names in Retry-After. Leaving a Watch does nothing to
// the import.
func (c *Client) Watch(ctx context.Context, id tasks.ID, opt WatchOptions) iter.Seq2[*Import, error] {
	longest := opt.Interval
	if longest <= 0 {
		longest = lastInterval
	}
	return func(yield func(*Import, error) bool) {
		var state tasks.State
		wait := min(firstInterval, longest)
		lastGood := time.Now()
		for {
			imp, err := c.Status(ctx, id)
			var asked time.Duration // by the service
			switch {
			case ctx.Err() != nil:
				yield(nil, context.Cause(ctx))
				return
			case err != nil:
				var again bool
				if again, asked = passing(err); !again {
					yield(nil, err)
					return
				}
				if time.Since(lastGood)+asked > patience {
					yield(nil, fmt.Errorf("watch import: gave up: %w", err))
					return
				}
				if opt.Trouble != nil {
					opt.Trouble(err)
				}
			default:
				lastGood = time.Now()
				if !yield(imp, nil) || imp.State.Final() {
					return
				}
				if imp.State != state {
					state, wait = imp.State, min(firstInterval, longest)
				}
			}
			if err := pause(ctx, max(wait, asked)); err != nil {
				yield(nil, err)
				return
			}
			wait = min(wait*5/4, longest)
		}
	}
}
