package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"time"

	"vmimport/tasks"
)

const (
	// silence is after what time a stream counts as lost: two of the signs of life that
	// the service sends every 15 s, and a half.
	silence = 40 * time.Second

	firstReturn = 2 * time.Second // unless the service asks for another
	lastReturn  = 30 * time.Second
)

// Types of events.
const (
	EventReady    = "ready"    // a stream begins, from here on
	EventState    = "state"    // a task has come to a state
	EventProgress = "progress" // a task that runs has got further
	EventReset    = "reset"    // events are missing before this: read the list anew

	eventBeat = "" // a sign of life
)

// Event is one thing that happened to a task.
type Event struct {
	Type string `json:"event"`
	// Mark is for EventsOptions.After, to go on behind the event; empty with EventProgress.
	Mark string `json:"mark,omitempty"`

	Kind     tasks.Kind     `json:"kind,omitempty"`
	ID       tasks.ID       `json:"id,omitempty"`
	Name     string         `json:"name,omitempty"` // of the image; only with EventState
	State    tasks.State    `json:"state,omitempty"`
	Progress int            `json:"progress"` // percent
	Attempt  int64          `json:"attempt"`
	At       time.Time      `json:"at,omitzero"`       // only with EventState, as the next
	Failure  *tasks.Failure `json:"failure,omitempty"` // if State is Failed

	// Only with EventProgress.
	Stage          tasks.Stage `json:"stage,omitempty"`
	DoneBytes      int64       `json:"done_bytes,omitempty"`
	TotalBytes     int64       `json:"total_bytes,omitempty"`
	BytesPerSecond int64       `json:"bytes_per_second,omitempty"`
	Retries        int64       `json:"retries,omitempty"`
	Stalls         int64       `json:"stalls,omitempty"`
}

// EventsOptions select events. The zero value selects all that happen from now on.
type EventsOptions struct {
	Kind  tasks.Kind // empty: imports and exports
	After string     // the Mark of the last event that was seen
	// Trouble, if not nil, is called with each failure after which Events tries again.
	Trouble func(error)
}

// Events yields what happens to all imports and exports that are visible, as it happens,
// until ctx ends. A stream that is lost is taken up where it was, so that no state is missing.
// An error is yielded once and ends it; so does the end of ctx, with its cause. A service that
// is away is asked again for some minutes.
func (c *Client) Events(ctx context.Context, opt EventsOptions) iter.Seq2[*Event, error] {
	path := "/v1/events"
	if opt.Kind != "" {
		path += "?kind=" + url.QueryEscape(string(opt.Kind))
	}
	return withoutBeats(c.follow(ctx, path, opt.After, opt.Trouble))
}

// EventsOf yields what happens to one import or export, as Events does, beginning with the
// state that it has, and ends with its end.
func (c *Client) EventsOf(ctx context.Context, kind tasks.Kind, id tasks.ID, trouble func(error)) iter.Seq2[*Event, error] {
	return withoutBeats(c.follow(ctx, eventsPath(kind, id), "", trouble))
}

func eventsPath(kind tasks.Kind, id tasks.ID) string {
	all := importsPath
	if kind == tasks.KindExport {
		all = exportsPath
	}
	return taskPath(all, id) + "/events"
}

func withoutBeats(all iter.Seq2[*Event, error]) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		for e, err := range all {
			if (err != nil || e.Type != eventBeat) && !yield(e, err) {
				return
			}
		}
	}
}

// errNotOffered says that the service has no such streams, or none to spare.
var errNotOffered = errors.New("the service offers no stream of events")

// follow yields the events of a stream, signs of life among them, and takes it up again when
// it is lost. It ends where the service says so by 204, which it does when a task has ended.
func (c *Client) follow(ctx context.Context, path, after string, trouble func(error)) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		last, wait, lastGood := after, firstReturn, time.Now()
		for {
			s, err := c.openEvents(ctx, path, last)
			if err == nil && s == nil {
				return
			}
			left := false
			if err == nil {
				lastGood = time.Now()
				var heard bool
				heard, err = s.read(func(e *Event) bool { left = !yield(e, nil); return !left })
				s.close()
				if left {
					return
				}
				last = s.frames.id
				if heard {
					lastGood, wait = time.Now(), firstReturn
				}
				wait = max(wait, min(s.frames.retry, lastReturn))
			}
			if ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			again, asked := passing(err)
			if err != nil && (!again || errors.Is(err, errNotOffered)) {
				yield(nil, err)
				return
			}
			if time.Since(lastGood)+asked > patience {
				yield(nil, fmt.Errorf("follow events: gave up: %w", err))
				return
			}
			if err != nil {
				tell(trouble, err)
			}
			if err := pause(ctx, max(wait, asked)); err != nil {
				yield(nil, err)
				return
			}
			wait = min(wait*3/2, lastReturn)
		}
	}
}

// eventStream is one connection that events come over.
type eventStream struct {
	frames *frameReader
	body   io.Closer
	cancel context.CancelCauseFunc
	ctx    context.Context
}

var errSilent = errors.New("the stream of events fell silent")

// openEvents connects to a stream. It returns nil if there is nothing to come.
func (c *Client) openEvents(ctx context.Context, path, after string) (*eventStream, error) {
	const op = "follow events"
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.endpoint+path, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set("X-Auth-Token", c.token.Reveal())
	req.Header.Set("Accept", "text/event-stream")
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	late := time.AfterFunc(callTimeout, func() { cancel(context.DeadlineExceeded) })
	resp, err := c.http.Do(req)
	late.Stop()
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode == http.StatusOK && kind == "text/event-stream" {
		return &eventStream{frames: newFrameReader(resp.Body, after), body: resp.Body, cancel: cancel, ctx: ctx}, nil
	}
	defer cancel(nil)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return nil, nil
	}
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: read answer: %w", op, err)
	}
	answer := answerError(op, resp, said)
	if offersNoEvents(answer) {
		return nil, fmt.Errorf("%w: %w", errNotOffered, answer)
	}
	return nil, answer
}

// offersNoEvents reports whether an answer comes from a service without events, or from one
// that has no stream to spare: what can be asked can still be asked.
func offersNoEvents(e *Error) bool {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout:
		return false
	case http.StatusNotFound:
		return e.Code != CodeUnknownImport
	case http.StatusNotImplemented:
		return true
	}
	return e.Status < http.StatusInternalServerError
}

// read passes on events until the stream ends, in good order or not, or yield wants no more. It
// reports whether there were any.
func (s *eventStream) read(yield func(*Event) bool) (heard bool, err error) {
	quiet := time.AfterFunc(silence, func() { s.cancel(errSilent) })
	defer quiet.Stop()
	for {
		f, err := s.frames.next()
		switch {
		case err == io.EOF:
			return heard, nil
		case err != nil && errors.Is(context.Cause(s.ctx), errSilent):
			return heard, errSilent
		case err != nil:
			return heard, fmt.Errorf("follow events: %w", err)
		}
		heard = true
		quiet.Reset(silence)
		e := &Event{}
		if len(f.data) > 0 {
			if err := json.Unmarshal(f.data, e); err != nil {
				return heard, fmt.Errorf("follow events: an event is not what this API sends: %w", err)
			}
			if e.Type = f.event; e.Type == "" {
				e.Type = "message"
			}
		} else {
			e.Type = eventBeat
		}
		e.Mark = ""
		if e.Type != EventProgress {
			e.Mark = f.id
		}
		if !yield(e) {
			return heard, nil
		}
	}
}

func (s *eventStream) close() {
	s.cancel(nil)
	_ = s.body.Close()
}
