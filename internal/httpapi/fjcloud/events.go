package fjcloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"vmimport/internal/auth"
	"vmimport/internal/events"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// beatEvery is how often a stream shows that it is alive, and asks whether its token still
// opens it.
const beatEvery = 15 * time.Second

// unsureFor is how long a stream goes on while the identity service does not answer.
const unsureFor = 5 * time.Minute

const eventsPath = "/v1/events"

var streams = []string{eventsPath, importsPath + "/:import_id/events", exportsPath + "/:export_id/events"}

// Streams implements httpapi.Streamer.
func (d *Dialect) Streams(route string) bool { return slices.Contains(streams, route) }

// stream is a client's stream of events.
type stream struct {
	*events.Stream
	d     *Dialect
	c     echo.Context
	who   *auth.Identity
	scope tasks.Scope
	id    tasks.ID // of the one task that it is about; "": about all in scope
	// resumed is set if the client named the event that it had last.
	resumed bool
	known   time.Time // when the token was last known to be good
	out     frames
}

// open subscribes to what scope has, or to one task in it.
func (d *Dialect) open(c echo.Context, who *auth.Identity, scope tasks.Scope, id tasks.ID) (*stream, error) {
	if d.opts.Events == nil {
		return nil, echo.ErrNotFound
	}
	after := cmp.Or(c.Request().Header.Get("Last-Event-ID"), c.QueryParam("last_event_id"))
	subscribed, err := d.opts.Events.Subscribe(c.Request().Context(), scope.Tenant, events.Filter{
		Region: scope.Region, Dialect: scope.Dialect, Project: scope.Project, Kind: scope.Kind, ID: id,
	}, after)
	if err != nil {
		return nil, fmt.Errorf("open event stream: %w", err)
	}
	return &stream{Stream: subscribed, d: d, c: c, who: who, scope: scope, id: id, resumed: after != "", known: time.Now(), out: frames{res: c.Response(), told: after}}, nil
}

// allEvents streams what happens to all that the caller may see.
func (d *Dialect) allEvents(c echo.Context, who *auth.Identity) error {
	kind := tasks.Kind(c.QueryParam("kind"))
	if kind != "" && kind != tasks.KindImport && kind != tasks.KindExport {
		return errKind
	}
	s, err := d.open(c, who, d.visible(who, kind), "")
	if err != nil {
		return err
	}
	defer s.Close()
	if !s.resumed {
		s.ready()
		return s.run(nil)
	}
	missed, err := s.missed()
	if err != nil {
		return err
	}
	return s.run(missed)
}

func (d *Dialect) importEvents(c echo.Context, who *auth.Identity) error {
	return d.taskEvents(c, who, d.visible(who, tasks.KindImport))
}

func (d *Dialect) exportEvents(c echo.Context, who *auth.Identity) error {
	return d.taskEvents(c, who, d.visible(who, tasks.KindExport))
}

// taskEvents streams what happens to the task that the path names, until it has ended.
func (d *Dialect) taskEvents(c echo.Context, who *auth.Identity, scope tasks.Scope) error {
	task, err := d.find(c, scope)
	if err != nil {
		return err
	}
	s, err := d.open(c, who, scope, task.ID)
	if err != nil {
		return err
	}
	defer s.Close()
	if !s.resumed {
		present, err := s.present()
		if err != nil {
			return err
		}
		s.ready()
		return s.run(present)
	}
	missed, err := s.missed()
	switch {
	case err != nil:
		return err
	case len(missed) == 0 && task.State.Final():
		return c.NoContent(http.StatusNoContent) // there is nothing to come back for
	case len(missed) > 0 && missed[0].Reset:
		present, err := s.present()
		if err != nil {
			return err
		}
		missed = append(missed, present...)
	}
	return s.run(missed)
}

// missed returns the first of what has happened since the client was here.
func (s *stream) missed() ([]events.Event, error) {
	list, err := s.Pending(s.c.Request().Context())
	if err != nil {
		return nil, fmt.Errorf("resume event stream: %w", err)
	}
	return list, nil
}

// present returns the event that brought the task to its present state. The record is read
// after the stream has begun, and what the stream has by then is in the record: so nothing
// that follows is missing, or told twice.
func (s *stream) present() ([]events.Event, error) {
	ctx := s.c.Request().Context()
	task, err := s.d.service.Get(ctx, s.scope, s.id)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", s.scope.Kind, err)
	}
	state := changeOf(task)
	for {
		list, err := s.Pending(ctx)
		if err != nil {
			return nil, fmt.Errorf("begin event stream: %w", err)
		}
		fresh := false
		for _, e := range list {
			if e.Change != nil {
				state, fresh = e.Change, true
			}
		}
		if !fresh {
			return append([]events.Event{{Mark: s.Mark(), Change: state}}, list...), nil
		}
	}
}

// ready tells the client where the stream begins.
func (s *stream) ready() { s.out.add("ready", s.markBefore(s.Mark()), struct{}{}) }

// markBefore returns the mark of an event that the present state follows, if it is about one
// task: none, since who comes back with a mark has that state.
func (s *stream) markBefore(mark string) string {
	if s.id != "" {
		return ""
	}
	return mark
}

// run tells list, and all that follows, until client, server or token are gone, or the one task
// that the stream is about has ended. A client that was left before that comes back.
func (s *stream) run(list []events.Event) error {
	ctx := s.c.Request().Context()
	s.out.begin()
	beat := time.Now().Add(beatEvery)
	for {
		ended := s.tell(list)
		if s.out.send() != nil || ended {
			return nil
		}
		var err error
		if list, err = s.nextBefore(ctx, beat); err != nil {
			return nil
		}
		if now := time.Now(); !now.Before(beat) {
			if !s.admitted(ctx) {
				return nil
			}
			s.out.beat(s.heard(list))
			beat = now.Add(beatEvery)
		}
	}
}

// heard returns the mark that a client may come back with who does not have list yet.
func (s *stream) heard(list []events.Event) string {
	if slices.ContainsFunc(list, func(e events.Event) bool { return e.Mark != "" }) {
		return s.out.told
	}
	return s.Mark()
}

// nextBefore returns what comes next, or nothing if that is not before the beat.
func (s *stream) nextBefore(ctx context.Context, beat time.Time) ([]events.Event, error) {
	waiting, stop := context.WithDeadline(ctx, beat)
	defer stop()
	list, err := s.Next(waiting)
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, nil
	}
	return list, err
}

// admitted reports whether the token still opens the stream. While nobody can tell, it does, but
// not for ever: a token that has ended opens nothing.
func (s *stream) admitted(ctx context.Context) bool {
	now, err := s.d.identify(ctx, s.c.Request().Header.Get(tokenHeader))
	if err != nil {
		return fault.KindOf(err) == fault.Unavailable && time.Since(s.known) < unsureFor
	}
	s.known = time.Now()
	return now.ProjectID == s.who.ProjectID && now.DomainID == s.who.DomainID
}

// tell writes events, and reports whether they end the stream.
func (s *stream) tell(list []events.Event) (ended bool) {
	for _, e := range list {
		switch {
		case e.Reset:
			s.out.add("reset", s.markBefore(e.Mark), struct{}{})
		case e.Progress != nil:
			s.out.add("progress", "", newProgressFrame(e.Progress))
		default:
			s.out.add("state", e.Mark, newStateFrame(e.Change))
			if s.id != "" && e.Change.State.Final() {
				return true
			}
		}
	}
	return false
}
