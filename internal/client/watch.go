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

// watch looks by status until a task has ended: see Client.Watch.
func watch[T Task](ctx context.Context, opt WatchOptions, status func() (T, error)) iter.Seq2[T, error] {
	longest := opt.Interval
	if longest <= 0 {
		longest = lastInterval
	}
	return func(yield func(T, error) bool) {
		var none T
		var state tasks.State
		wait := min(firstInterval, longest)
		lastGood := time.Now()
		for {
			task, err := status()
			var asked time.Duration // by the service
			switch {
			case ctx.Err() != nil:
				yield(none, context.Cause(ctx))
				return
			case err != nil:
				var again bool
				if again, asked = passing(err); !again {
					yield(none, err)
					return
				}
				if time.Since(lastGood)+asked > patience {
					yield(none, fmt.Errorf("watch: gave up: %w", err))
					return
				}
				tell(opt.Trouble, err)
			default:
				lastGood = time.Now()
				now := task.Summary().State
				if !yield(task, nil) || now.Final() {
					return
				}
				if now != state {
					state, wait = now, min(firstInterval, longest)
				}
			}
			if err := pause(ctx, max(wait, asked)); err != nil {
				yield(none, err)
				return
			}
			wait = min(wait*5/4, longest)
		}
	}
}

// toEnd tells changed of all that is seen, and returns the last of it, with the
// error that ended the looking.
func toEnd[T Task](seen iter.Seq2[T, error], changed func(T)) (last T, err error) {
	for task, err := range seen {
		if err != nil {
			return last, err
		}
		last = task
		tell(changed, task)
	}
	return last, nil
}

func tell[T any](f func(T), v T) {
	if f != nil {
		f(v)
	}
}
