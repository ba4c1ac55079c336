package client

import (
	"context"
	"errors"
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
	// more often at first and after each change of state, and with events at each.
	Interval time.Duration
	// Trouble, if not nil, is called with each failure after which Watch tries
	// again.
	Trouble func(error)
}

// watched is a task that can be brought up to what an event tells of its progress.
type watched[T any] interface {
	Task
	at(*Event) T
}

// watch looks at a task until it has ended: when an event says that there is something to see,
// and where events are not to be had, again and again. See Client.Watch.
func watch[T watched[T]](ctx context.Context, opt WatchOptions, events iter.Seq2[*Event, error], status func() (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if ended := watchEvents(events, status, yield); !ended {
			poll(ctx, opt, status)(yield)
		}
	}
}

// watchEvents looks whenever the task has come to a state, and now and again while it waits, since
// its place in the queue is in no event. It reports whether the watch has ended; else it
// cannot go on by events.
func watchEvents[T watched[T]](events iter.Seq2[*Event, error], status func() (T, error), yield func(T, error) bool) bool {
	var task, none T
	seen := false
	for e, err := range events {
		switch {
		case errors.Is(err, errNotOffered):
			return false
		case err != nil:
			yield(none, err)
			return true
		case e.Type == EventProgress && seen:
			task = task.at(e)
		case e.Type == EventState, e.Type == eventBeat && seen && task.Summary().State == tasks.Queued:
			if task, err = status(); err != nil {
				return false
			}
			seen = true
		default:
			continue
		}
		if !yield(task, nil) || task.Summary().State.Final() {
			return true
		}
	}
	return false
}

// poll looks by status until a task has ended.
func poll[T Task](ctx context.Context, opt WatchOptions, status func() (T, error)) iter.Seq2[T, error] {
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
