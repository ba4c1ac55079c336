package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"vmimport/tasks"
)

// Task is an import or an export as it stands.
type Task interface {
	Summary() Summary
}

// Summary is what imports and exports have in common.
type Summary struct {
	Kind         tasks.Kind
	ID           tasks.ID
	State        tasks.State
	Progress     int    // percent; 100 exactly when Succeeded
	ErrorMessage string // see Reason
	Run
}

// Reason is why a task failed: the ErrorMessage without the remedy, with which
// this service ends it for clients that know no Run.
func (s Summary) Reason() string {
	return strings.TrimSuffix(s.ErrorMessage, " "+s.Remedy)
}

// Run is how a task goes on: what this service adds to the status of any. All of it
// is zero elsewhere.
type Run struct {
	Stage          tasks.Stage `json:"stage,omitempty"`
	DoneBytes      int64       `json:"done_bytes,omitempty"` // of all, those from a checkpoint included
	TotalBytes     int64       `json:"total_bytes,omitempty"`
	BytesPerSecond int64       `json:"bytes_per_second,omitempty"`
	Attempt        int64       `json:"attempt,omitempty"` // from 1; 0 before the first
	Retries        int64       `json:"retries,omitempty"` // range requests repeated
	Stalls         int64       `json:"stalls,omitempty"`  // range requests replaced since no byte came
	FailureCode    string      `json:"failure_code,omitempty"`
	Evidence       string      `json:"evidence,omitempty"` // what was seen when it failed
	Remedy         string      `json:"remedy,omitempty"`
	RequestedAt    time.Time   `json:"requested_at,omitzero"`
	FinishedAt     time.Time   `json:"finished_at,omitzero"`

	QueuePosition  int       `json:"queue_position,omitempty"` // from 1, of the tenant's; 0: it does not wait
	EstimatedStart time.Time `json:"estimated_start,omitzero"` // if anything tells
	Attempts       []Attempt `json:"attempts,omitempty"`       // that have ended, oldest first
	KeptUntil      time.Time `json:"kept_until,omitzero"`      // until when a Retry goes on from where it was
	Retried        int       `json:"retried,omitempty"`        // accepted Retries
}

// Attempt is a run of a worker that has ended.
type Attempt struct {
	Attempt     int64     `json:"attempt"`
	StartedAt   time.Time `json:"started_at"`
	EndedAt     time.Time `json:"ended_at"`
	Outcome     string    `json:"outcome"` // a final state, or what tasks.Attempt has besides
	FromBytes   int64     `json:"from_bytes"`
	DoneBytes   int64     `json:"done_bytes"`
	FailureCode string    `json:"failure_code,omitempty"`
	Message     string    `json:"message,omitempty"`
	Evidence    string    `json:"evidence,omitempty"`
	Remedy      string    `json:"remedy,omitempty"`
}

// at brings a task up to what an event tells of its progress.
func (r *Run) at(e *Event, state *tasks.State, progress *int) {
	*state, *progress = e.State, max(*progress, e.Progress)
	r.Stage, r.DoneBytes, r.TotalBytes, r.BytesPerSecond = e.Stage, e.DoneBytes, e.TotalBytes, e.BytesPerSecond
	r.Attempt, r.Retries, r.Stalls = e.Attempt, e.Retries, e.Stalls
}

// ErrUncertain says that a request was sent and no answer came, so that the
// import or export may or may not have been accepted.
var ErrUncertain = errors.New("no answer came, the request may have been accepted")

// begin asks for a task, and returns the id that the answer has.
func (c *Client) begin(ctx context.Context, kind tasks.Kind, path string, request any) (tasks.ID, error) {
	op, member := "register "+string(kind), string(kind)+"_id"
	var out map[string]any
	err := c.call(ctx, op, http.MethodPost, path, request, &out)
	if _, answered := errors.AsType[*Error](err); err != nil && !answered && !neverSent(err) {
		return "", fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	id, _ := out[member].(string)
	if err == nil && id == "" {
		return "", &Error{Op: op, Status: http.StatusOK, Message: "The answer has no " + member + "; check the endpoint."}
	}
	return tasks.ID(id), err
}

// neverSent reports whether no connection was made, so that no one can have
// acted on the request.
func neverSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func taskPath(all string, id tasks.ID) string { return all + "/" + url.PathEscape(string(id)) }

// pages yields the entries of a list, of which page returns at most size at once:
// see Client.List.
func pages[E interface{ Identity() tasks.ID }](size int, page func(window string) ([]E, error)) iter.Seq2[E, error] {
	return func(yield func(E, error) bool) {
		seen := map[tasks.ID]bool{}
		for start := 0; ; start += size {
			entries, err := page(fmt.Sprintf("?start=%d&limit=%d", start, size))
			if err != nil {
				var none E
				yield(none, err)
				return
			}
			for _, e := range entries {
				if !seen[e.Identity()] && !yield(e, nil) {
					return
				}
				seen[e.Identity()] = true
			}
			if len(entries) < size {
				return
			}
		}
	}
}
