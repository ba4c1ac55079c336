package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/rs/zerolog"

	"vmimport/internal/audit"
	"vmimport/internal/fault"
)

// observe gives a request its id and its logger, sees to it that it is answered
// whatever happens inside, and reports it once.
func (f *frontend) observe(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		switch path := c.Path(); {
		case !f.streams[path]:
			f.metrics.inFlight.Inc()
			defer f.metrics.inFlight.Dec()
		case f.owners[path] != f.region.Portal: // which hands on one of ours
			f.metrics.streams.Inc()
			defer f.metrics.streams.Dec()
		}

		req, res := c.Request(), c.Response()
		id := requestID(req.Header.Get(echo.HeaderXRequestID))
		res.Header().Set(echo.HeaderXRequestID, id)
		res.Header().Set(echo.HeaderXContentTypeOptions, "nosniff")
		res.Header().Set(echo.HeaderCacheControl, "no-store")
		ctx := f.opts.Log.With().Str("request_id", id).Logger().WithContext(req.Context())
		ctx, entry := audit.NewContext(ctx)
		ctx, endSpan := f.span(ctx, c, id)
		c.SetRequest(req.WithContext(ctx))

		err := contain(next, c)
		cut := err != nil && res.Committed
		if err != nil && !cut {
			c.Error(err)
		}
		f.metrics.observe(c, time.Since(start), f.streams[c.Path()])
		f.logRequest(c, err, cut, time.Since(start))
		f.audit(c, *entry, err, cut)
		endSpan(err, cut)
		if cut {
			// The answer has begun and cannot be taken back. Ending it in good
			// order would make a part look like the whole.
			panic(http.ErrAbortHandler)
		}
		return nil
	}
}

// contain turns a panic into an error.
func contain(next echo.HandlerFunc, c echo.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Wrap(fmt.Errorf("%v\n%s", p, debug.Stack()), fault.Internal, "panic", "Internal server error.")
		}
	}()
	return next(c)
}

func (f *frontend) logRequest(c echo.Context, err error, cut bool, took time.Duration) {
	log, status := zerolog.Ctx(c.Request().Context()), c.Response().Status
	var line *zerolog.Event
	switch {
	case cut, status >= http.StatusInternalServerError:
		// The text is for the log alone; the client was told nothing of it.
		line = log.Error().Err(err)
	case quiet[c.Path()]:
		line = log.Debug()
	default:
		line = log.Info()
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		line = line.Str("fault", e.Code)
	}
	if f.region.Dialect != nil && f.owners[c.Path()] == f.region.Dialect {
		line = line.Str("region", f.region.ID)
	}
	line.Str("method", method(c)).
		Str("route", route(c)).
		Int("status", status).
		Int64("bytes", c.Response().Size).
		Float64("seconds", took.Seconds()).
		Str("remote", c.RealIP()).
		Msg("request")
}

// quiet are routes that are asked every few seconds by machines.
var quiet = map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true}

// requestID returns the client's id if it is fit for a log, else a new one.
func requestID(asked string) string {
	if asked == "" || len(asked) > 64 {
		return "req-" + uuid.NewString()
	}
	for _, b := range []byte(asked) {
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_', b == '.':
		default:
			return "req-" + uuid.NewString()
		}
	}
	return asked
}

// bound limits what a request may take: size and time of the body, and time to
// answer. Objects are limited in idle time only, and streams in the time to begin.
func (f *frontend) bound(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if allow, known := c.Get(echo.ContextKeyHeaderAllow).(string); known {
			// Echo would answer OPTIONS by itself, which no dialect documents.
			c.Set(echo.ContextKeyHeaderAllow, strings.TrimPrefix(allow, "OPTIONS, "))
			next = echo.MethodNotAllowedHandler
		}
		req, res := c.Request(), c.Response()
		conn := http.NewResponseController(res.Writer)
		if f.opts.Objects != nil && f.owners[c.Path()] == f.opts.Objects {
			req.Body = &timedBody{ReadCloser: req.Body, conn: conn, idle: f.opts.IdleTimeout}
			res.Writer = &timedWriter{ResponseWriter: res.Writer, conn: conn, idle: f.opts.IdleTimeout}
			return next(c)
		}

		stream := f.streams[c.Path()]
		ctx, stop := f.lifetime(c, stream)
		defer stop()
		req = req.WithContext(ctx)
		if req.ContentLength != 0 {
			// Even a body that nobody reads needs its deadline: the server
			// waits for it before it sends the answer.
			deadline := time.Now().Add(f.opts.BodyTimeout)
			_ = conn.SetReadDeadline(deadline) // not supported: by recorders in tests
			body := http.MaxBytesReader(res.Writer, req.Body, f.opts.MaxBodyBytes)
			req.Body = &timedBody{ReadCloser: body, conn: conn}
		}
		if stream {
			defer f.pace(res, conn)()
		} else {
			_ = conn.SetWriteDeadline(time.Now().Add(f.opts.BodyTimeout + f.opts.AnswerTimeout))
		}
		c.SetRequest(req)
		return next(c)
	}
}

// How long a client may take to read what is written to a stream of events, beyond what the
// connection buffers.
const (
	streamTimeout = 10 * time.Second
	finalTimeout  = time.Second // once the server is to stop
)

// pace limits the time of each write to a stream, and returns what does so for the end of the
// answer: the server writes it when the last deadline may be long past.
func (f *frontend) pace(res *echo.Response, conn *http.ResponseController) (end func()) {
	within := func(d time.Duration) { _ = conn.SetWriteDeadline(time.Now().Add(d)) }
	res.Writer = &timedWriter{ResponseWriter: res.Writer, conn: conn, idle: streamTimeout}
	hurried := make(chan struct{})
	attached := context.AfterFunc(f.live, func() {
		within(finalTimeout) // for a write that is under way
		close(hurried)
	})
	return func() {
		if attached() {
			within(streamTimeout)
			return
		}
		<-hurried
		within(finalTimeout)
	}
}

// lifetime returns the context of a request to a dialect. That of a stream has no end of
// its own once the answer has begun, but ends when the server is to stop.
func (f *frontend) lifetime(c echo.Context, stream bool) (context.Context, context.CancelFunc) {
	if !stream {
		return context.WithTimeout(c.Request().Context(), f.opts.AnswerTimeout)
	}
	ctx, cancel := context.WithCancelCause(c.Request().Context())
	late := time.AfterFunc(f.opts.AnswerTimeout, func() { cancel(context.DeadlineExceeded) })
	c.Response().Before(func() { late.Stop() })
	attached := context.AfterFunc(f.live, func() { cancel(errStopping) })
	return ctx, func() {
		late.Stop()
		attached()
		cancel(nil)
	}
}

var errStopping = errors.New("the server is to stop")

// timedBody gives each Read of a body its deadline. At the end it takes the
// deadline back: the server goes on reading in the background, to learn of a
// client that has left, and would take a deadline that passes for one.
type timedBody struct {
	io.ReadCloser
	conn *http.ResponseController
	idle time.Duration // 0: the deadline is set already
}

func (b *timedBody) Read(p []byte) (int, error) {
	if b.idle > 0 {
		_ = b.conn.SetReadDeadline(time.Now().Add(b.idle))
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

// timedWriter gives each Write its deadline.
type timedWriter struct {
	http.ResponseWriter
	conn *http.ResponseController
	idle time.Duration
}

func (w *timedWriter) Write(p []byte) (int, error) {
	_ = w.conn.SetWriteDeadline(time.Now().Add(w.idle))
	return w.ResponseWriter.Write(p)
}

// FlushError is for http.ResponseController.
func (w *timedWriter) FlushError() error {
	_ = w.conn.SetWriteDeadline(time.Now().Add(w.idle))
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// welcome leads who comes to the root of a region to its portal. Calls of the Aliyun dialect,
// which is there too, name an action.
func (f *frontend) welcome(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		if f.region.Portal == nil || r.URL.Path != "/" || !reads || r.URL.Query().Has("Action") || r.Header.Get("X-Acs-Action") != "" {
			return next(c)
		}
		return c.Redirect(http.StatusFound, "/portal/")
	}
}

// writeError answers a request that ended in err.
func (f *frontend) writeError(err error, c echo.Context) {
	owner := f.owners[c.Path()]
	if owner == nil || errors.Is(err, echo.ErrNotFound) { // nobody's, or not its owner's after all
		owner = plain{}
	}
	if err := owner.WriteError(c, err); err != nil {
		zerolog.Ctx(c.Request().Context()).Debug().Err(err).Msg("answer not sent")
	}
}

// plain answers for what belongs to no dialect. The body is that of the FJcloud
// dialect, whose clients are the ones to see it.
type plain struct{}

func (plain) Mount(*echo.Echo) {}

var plainAnswers = map[int][2]string{
	http.StatusUnauthorized:     {"40101", "The operator token is missing or wrong."},
	http.StatusNotFound:         {"40400", "The path does not exist."},
	http.StatusMethodNotAllowed: {"40501", "The method is not allowed."},
}

func (plain) WriteError(c echo.Context, err error) error {
	status := http.StatusInternalServerError
	if e, ok := errors.AsType[*echo.HTTPError](err); ok {
		status = e.Code
	}
	answer, ok := plainAnswers[status]
	if !ok {
		status, answer = http.StatusInternalServerError, [2]string{"50001", "Internal server error."}
	}
	return c.JSON(status, map[string]string{"error_code": answer[0], "message": answer[1], "error_message": answer[1]})
}
