package portal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"vmimport/internal/secret"
	"vmimport/tasks"
)

// apiError is an answer of the API that is not success.
type apiError struct {
	Status     int
	Code       string
	Message    string
	RetryAfter string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("the api answered %d %s: %s", e.Status, e.Code, e.Message)
}

// caller calls the API for whom a request comes from, with their token. It is safe for
// concurrent use.
type caller struct {
	api    http.Handler
	ctx    context.Context
	header http.Header
	host   string
	remote string
}

// caller returns the one of a request.
func (p *Portal) caller(c echo.Context, token secret.Text) *caller {
	r := c.Request()
	h := http.Header{}
	// Log and audit are to name who asks. Nothing else of the browser's is passed on: the trace,
	// for one, goes on by the context.
	if from := r.Header.Values(echo.HeaderXForwardedFor); from != nil {
		h[echo.HeaderXForwardedFor] = from
	}
	if id := c.Response().Header().Get(echo.HeaderXRequestID); id != "" {
		h.Set(echo.HeaderXRequestID, id)
	}
	h.Set("X-Auth-Token", token.Reveal())
	return &caller{api: p.opts.API, ctx: r.Context(), header: h, host: r.Host, remote: r.RemoteAddr}
}

// request returns one to the API.
func (a *caller) request(method, target string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(a.ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("call the api: %w", err)
	}
	// What a server sees of a request, and not what a client sends.
	r.Header, r.Host, r.RemoteAddr, r.RequestURI = a.header.Clone(), a.host, a.remote, target
	return r, nil
}

// maxAnswer is far more than a list or a record.
const maxAnswer = 4 << 20

// answer keeps what the API answers. It implements http.ResponseWriter.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
}

func (w *answer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.body.Len()+len(b) > maxAnswer {
		return 0, fmt.Errorf("the answer is longer than %d bytes", maxAnswer)
	}
	return w.body.Write(b)
}

// serve has the handler answer. A handler that breaks off says so by a panic.
func (a *caller) serve(r *http.Request) (w *answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the api broke off: %v", p)
		}
	}()
	w = &answer{header: http.Header{}}
	a.api.ServeHTTP(w, r)
	return w, nil
}

// call sends in as JSON, if it is not nil, and reads a successful answer into out, if
// that is not nil.
func (a *caller) call(method, target string, in, out any) error {
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call the api: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := a.request(method, target, body)
	if err != nil {
		return err
	}
	if in != nil {
		r.Header.Set(echo.HeaderContentType, echo.MIMEApplicationJSON)
	}
	w, err := a.serve(r)
	if err != nil {
		return err
	}
	if w.status/100 != 2 {
		return errorOf(w)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(w.body.Bytes(), out); err != nil {
		return fmt.Errorf("read the answer of the api: %w", err)
	}
	return nil
}

func (a *caller) get(target string, out any) error { return a.call(http.MethodGet, target, nil, out) }

func errorOf(w *answer) *apiError {
	e := &apiError{Status: w.status, RetryAfter: w.header.Get(echo.HeaderRetryAfter)}
	var said struct {
		Code    string `json:"error_code"`
		Message string `json:"message"`
	}
	if json.Unmarshal(w.body.Bytes(), &said) == nil {
		e.Code, e.Message = said.Code, said.Message
	}
	if e.Status < http.StatusBadRequest {
		e.Status = http.StatusBadGateway // nothing that this API answers
	}
	return e
}

// entry is one line of a list, of either kind.
type entry struct {
	ImportID tasks.ID    `json:"import_id"`
	ExportID tasks.ID    `json:"export_id"`
	Import   tasks.State `json:"import_status"`
	Export   tasks.State `json:"export_status"`
	Image    string      `json:"image_id"` // of an export
	Extra    struct {
		Name         string `json:"name"`
		Progress     int    `json:"progress"`
		ErrorMessage string `json:"error_message"`
		run
	} `json:"vmimport"`
}

// record is what the entry says of its task.
func (e *entry) record(k kind) *record {
	r := &record{
		ImportState: e.Import, ExportState: e.Export, ImportName: e.Extra.Name, ExportImage: e.Image,
		Progress: e.Extra.Progress, ErrorMessage: e.Extra.ErrorMessage, Extra: e.Extra.run,
	}
	r.settle(k, e.ImportID+e.ExportID)
	return r
}

// list returns up to limit tasks of a kind from start on, newest first.
func (a *caller) list(k kind, start, limit int) ([]*record, error) {
	var all map[string]json.RawMessage
	if err := a.get(fmt.Sprintf("%s?start=%d&limit=%d", k.api, start, limit), &all); err != nil {
		return nil, err
	}
	var entries []entry
	if err := json.Unmarshal(all[k.all], &entries); err != nil {
		return nil, fmt.Errorf("read the list of the api: %w", err)
	}
	records := make([]*record, len(entries))
	for i := range entries {
		records[i] = entries[i].record(k)
	}
	return records, nil
}

// status returns a task as it stands.
func (a *caller) status(k kind, id tasks.ID) (*record, error) {
	r := &record{}
	if err := a.get(taskPath(k, id)+"/status", r); err != nil {
		return nil, err
	}
	r.settle(k, id)
	return r, nil
}

// taskPath is the path of one task in the API.
func taskPath(k kind, id tasks.ID) string { return k.api + "/" + string(id) }

// project returns the project that the token is for, "" if the API does not say. It
// fails if the token is no good.
func (a *caller) project() (string, error) {
	r, err := a.request(http.MethodGet, imports.api+"?limit=1", http.NoBody)
	if err != nil {
		return "", err
	}
	w, err := a.serve(r)
	if err != nil {
		return "", err
	}
	if w.status != http.StatusOK {
		return "", errorOf(w)
	}
	return w.header.Get(projectHeader), nil
}

// projectHeader is where the API's answers name the project of the token.
const projectHeader = "X-Project-Id"

// taskID returns the id that the path names.
func taskID(c echo.Context) (tasks.ID, error) {
	id, err := uuid.Parse(c.Param("id"))
	if err != nil || len(c.Param("id")) != len(id.String()) { // Parse also knows other forms
		return "", errNoPage
	}
	return tasks.ID(id.String()), nil
}
