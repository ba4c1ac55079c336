package fjcloud

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"vmimport/internal/events"
	"vmimport/tasks"
)

// stateFrame is the data of an event that says to which state a task came.
type stateFrame struct {
	Kind     tasks.Kind     `json:"kind"`
	ID       tasks.ID       `json:"id"`
	Name     string         `json:"name"`
	State    tasks.State    `json:"state"`
	Progress int            `json:"progress"`
	Attempt  tasks.Epoch    `json:"attempt"`
	At       time.Time      `json:"at"`
	Failure  *tasks.Failure `json:"failure,omitempty"`
}

func newStateFrame(c *tasks.Change) stateFrame {
	f := stateFrame{c.Kind, c.ID, c.Name, c.State, c.Progress, c.Epoch, c.At.UTC(), nil}
	if c.State == tasks.Failed {
		f.Failure = c.Failure
	}
	return f
}

// changeOf returns the change that brought a task to its present state, but for its mark.
func changeOf(t *tasks.Task) *tasks.Change {
	at := t.UpdatedAt
	switch {
	case t.State.Final():
		at = t.FinishedAt
	case t.State == tasks.Processing:
		at = t.ClaimedAt
	}
	if at.IsZero() {
		at = t.RequestedAt
	}
	return &tasks.Change{
		ID: t.ID, Kind: t.Kind(), Region: t.Region, Project: t.Owner.Project, Dialect: t.Dialect, Name: t.Name,
		State: t.State, Progress: t.Progress, Epoch: t.Epoch, At: at, Failure: t.Failure,
	}
}

// progressFrame is the data of an event that says how far a task is.
type progressFrame struct {
	Kind           tasks.Kind  `json:"kind"`
	ID             tasks.ID    `json:"id"`
	State          tasks.State `json:"state"`
	Stage          tasks.Stage `json:"stage"`
	Progress       int         `json:"progress"`
	DoneBytes      int64       `json:"done_bytes"`
	TotalBytes     int64       `json:"total_bytes"`
	BytesPerSecond int64       `json:"bytes_per_second"`
	Attempt        tasks.Epoch `json:"attempt"`
	Retries        int64       `json:"retries"`
	Stalls         int64       `json:"stalls"`
}

func newProgressFrame(p *events.Progress) progressFrame {
	return progressFrame{p.Kind, p.ID, p.State, p.Stage, p.Percent, p.DoneBytes, p.TotalBytes, p.BytesPerSecond, p.Attempt, p.Retries, p.Stalls}
}

// reconnect is when a client whose stream was cut comes back, in milliseconds.
const reconnect = 2000

// frames writes events as WHATWG HTML, section 9.2, has them.
type frames struct {
	res  *echo.Response
	buf  bytes.Buffer
	told string // mark that the client has
}

// begin opens the answer.
func (f *frames) begin() {
	h := f.res.Header()
	h.Set(echo.HeaderContentType, "text/event-stream; charset=utf-8")
	h.Set(echo.HeaderCacheControl, "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies hand it on as it comes
	f.res.WriteHeader(http.StatusOK)
}

// add adds an event. Without a mark the client comes back after the event before it.
func (f *frames) add(event, mark string, data any) {
	f.intro()
	fmt.Fprintf(&f.buf, "event: %s\n", event)
	if mark != "" {
		fmt.Fprintf(&f.buf, "id: %s\n", mark)
		f.told = mark
	}
	f.buf.WriteString("data: ")
	_ = json.NewEncoder(&f.buf).Encode(data) // plain members; ends the line
	f.buf.WriteByte('\n')
}

// intro writes what a stream begins with.
func (f *frames) intro() {
	if f.res.Size == 0 && f.buf.Len() == 0 {
		fmt.Fprintf(&f.buf, "retry: %d\n\n", reconnect)
	}
}

// beat shows that the stream is alive. If it stands further on than the client knows, since
// nothing of late was for it, the client learns where: otherwise that might be forgotten when
// it comes back.
func (f *frames) beat(mark string) {
	f.buf.WriteString(": beat\n")
	if mark != f.told {
		fmt.Fprintf(&f.buf, "id: %s\n", mark)
		f.told = mark
	}
	f.buf.WriteByte('\n')
}

// send writes what was added, so that the client has it at once.
func (f *frames) send() error {
	f.intro()
	if f.buf.Len() == 0 {
		return nil
	}
	_, err := f.buf.WriteTo(f.res)
	if err != nil {
		return err
	}
	return http.NewResponseController(f.res.Writer).Flush()
}
