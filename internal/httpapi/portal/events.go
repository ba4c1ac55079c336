package portal

import (
	"net/http"
	"net/url"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
)

const eventsPath = root + "events"

// Streams reports whether the answers at a route are streams, which the server lets last.
func (p *Portal) Streams(route string) bool { return route == eventsPath }

// events hands on the API's stream of events: of one task if the query has its kind and
// id, else of all that the caller may see of a kind.
func (p *Portal) events(c echo.Context) error {
	token, ok := p.token(c)
	if !ok {
		return c.NoContent(http.StatusUnauthorized)
	}
	api := p.caller(c, token)
	r, err := api.request(http.MethodGet, p.eventsTarget(c.QueryParam("kind"), c.QueryParam("id")), http.NoBody)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "text/event-stream")
	if last := c.Request().Header.Get("Last-Event-ID"); last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	p.opts.API.ServeHTTP(&stream{ResponseWriter: c.Response(), header: http.Header{}}, r)
	return nil
}

// eventsTarget is where the API has the events that are asked for.
func (p *Portal) eventsTarget(asked, id string) string {
	k := imports
	if asked == string(exports.Kind) {
		k = exports
	}
	if one, err := uuid.Parse(id); err == nil {
		return k.api + "/" + one.String() + "/events"
	}
	return p.opts.Events + "?" + url.Values{"kind": {string(k.Kind)}}.Encode()
}

// stream hands on an answer as it comes. Of an answer that is no stream it keeps the
// status alone: browsers show it to nobody.
type stream struct {
	http.ResponseWriter
	header http.Header // the API's, apart from the portal's
	begun  bool
	mute   bool
}

func (s *stream) Header() http.Header { return s.header }

// Unwrap lets http.ResponseController flush, and set deadlines.
func (s *stream) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// FlushError sends the head at least, so that a browser knows that the stream is there.
func (s *stream) FlushError() error {
	s.WriteHeader(http.StatusOK)
	return http.NewResponseController(s.ResponseWriter).Flush()
}

func (s *stream) WriteHeader(status int) {
	if s.begun {
		return
	}
	s.begun, s.mute = true, status != http.StatusOK
	h := s.ResponseWriter.Header()
	for _, name := range []string{echo.HeaderContentType, "X-Accel-Buffering", echo.HeaderRetryAfter} {
		if v := s.header.Get(name); v != "" && (!s.mute || name == echo.HeaderRetryAfter) {
			h.Set(name, v)
		}
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *stream) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	if s.mute {
		return len(b), nil
	}
	return s.ResponseWriter.Write(b)
}
