package events

import (
	"cmp"
	"context"
	"errors"
	"sync"

	"vmimport/tasks"
)

// pageOfStream is how many changes of the past a stream reads at once: what many streams
// hold together when all come back at a time.
const pageOfStream = 64

// Event is one thing that happened. Of Change, Progress and Reset one is set.
type Event struct {
	// Mark is where a stream goes on that comes back after the event; empty with Progress,
	// which is not kept.
	Mark     string
	Change   *tasks.Change
	Progress *Progress
	// Reset says that the journal does not reach back to the mark that the stream had, so
	// that changes are missing before this.
	Reset bool
}

// Progress is how a task that runs stands.
type Progress struct {
	ID         tasks.ID
	Kind       tasks.Kind
	State      tasks.State
	Stage      tasks.Stage
	Percent    int
	TotalBytes int64
	Attempt    tasks.Epoch
	tasks.Counters
}

func progressOf(t *tasks.Task) Progress {
	return Progress{t.ID, t.Kind(), t.State, t.Stage, t.Progress, t.TotalBytes(), t.Epoch, t.Counters}
}

// Stream tells what happens to the tasks that its filter selects. Only one goroutine may
// use it; Close may be called twice.
type Stream struct {
	hub    *Hub
	feed   *feed
	filter Filter
	mark   string
	round  uint64 // of the progress told last
	leave  sync.Once
}

// Close ends the stream.
func (s *Stream) Close() { s.leave.Do(func() { s.hub.leave(s.feed) }) }

// Mark returns where the stream stands: behind all that it has told, and all that its filter
// left out since.
func (s *Stream) Mark() string { return cmp.Or(s.mark, Origin) }

// Next waits for events and returns them, oldest first: at most some dozens at a time, and
// at least one. It fails with ErrClosed, or when ctx ends or the journal cannot be read, and
// may be called again after that.
func (s *Stream) Next(ctx context.Context) ([]Event, error) {
	for {
		news := s.feed.next()
		events, err := s.Pending(ctx)
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.hub.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// Pending returns what Next would, and nothing instead of waiting.
func (s *Stream) Pending(ctx context.Context) ([]Event, error) {
	for {
		if s.hub.ctx.Err() != nil {
			return nil, ErrClosed
		}
		changes, live := s.feed.after(s.mark)
		if !live {
			var err error
			changes, err = s.past(ctx)
			if errors.Is(err, tasks.ErrMarkGone) {
				return s.reset(ctx)
			}
			if err != nil {
				return nil, err
			}
		}
		if events := s.pass(changes); len(events) > 0 {
			return events, nil
		}
		if live || len(changes) < pageOfStream {
			return s.moved(), nil
		}
	}
}

// past reads what follows from the journal.
func (s *Stream) past(ctx context.Context) ([]tasks.Change, error) {
	if len(s.mark) > tasks.MaxMark {
		return nil, tasks.ErrMarkGone // not one of ours
	}
	return s.hub.journal.Changes(ctx, s.feed.tenant, s.mark, pageOfStream)
}

// pass moves the stream over changes, and returns those that the filter selects.
func (s *Stream) pass(changes []tasks.Change) []Event {
	var events []Event
	for i := range changes {
		c := &changes[i]
		s.mark = c.Mark
		if s.filter.selects(subject{c.Region, c.Dialect, c.Project, c.Kind, c.ID}) {
			events = append(events, Event{Mark: c.Mark, Change: c})
		}
	}
	return events
}

// reset lets the stream begin anew.
func (s *Stream) reset(ctx context.Context) ([]Event, error) {
	mark, err := s.hub.journal.Latest(ctx, s.feed.tenant)
	if err != nil {
		return nil, err
	}
	s.mark = mark
	return []Event{{Mark: s.Mark(), Reset: true}}, nil
}

// moved returns the progress that is new to the stream.
func (s *Stream) moved() []Event {
	var list []Progress
	list, s.round = s.feed.movedSince(s.round, s.filter, s.mark)
	events := make([]Event, len(list))
	for i := range list {
		events[i].Progress = &list[i]
	}
	return events
}
