// Package queue brings waiting imports to workers, through asynq.
//
// The record decides when an import may run and whether it runs again; asynq
// only carries it to a free slot. So a message holds nothing but the record's
// address, asynq never retries, and what asynq forgets, repeats or delivers
// late does no harm: a worker that is handed an import first claims it.
//
// The Dispatcher moves due imports from the records to the queue, a few at a
// time and evenly among tenants; the Server takes them from there. Each worker
// process runs both, and one of the Dispatchers leads.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

// Names in asynq. Cleanups are imports that were canceled and only need their
// leftovers removed; they have a queue and slots of their own, so that a cancel
// does not wait behind imports that take hours.
const (
	TaskType     = "vmimport:import"
	ImportQueue  = "imports"
	CleanupQueue = "cleanups"
)

// maxRuntime bounds one attempt for asynq, which knows no "unbounded" (it would
// take 30 minutes instead). An attempt that takes longer is given back, and goes
// on from its checkpoint.
const maxRuntime = 7 * 24 * time.Hour

// retention is how long asynq shows a task that is done.
const retention = 24 * time.Hour

// TaskID is the name of a ticket's task in asynq. Each ticket has its own, since
// asynq keeps the names of ended tasks occupied for a while.
func TaskID(t tasks.Ticket) string { return fmt.Sprintf("%s.%d", t.ID, t.Number) }

func queueOf(t tasks.Ticket) string {
	if t.Cleanup {
		return CleanupQueue
	}
	return ImportQueue
}

// Queue is the sending side of asynq.
type Queue struct {
	client    *asynq.Client
	inspector *asynq.Inspector
}

// New returns a Queue on rdb, which the caller closes.
func New(rdb redis.UniversalClient) *Queue {
	return &Queue{client: asynq.NewClientFromRedisClient(rdb), inspector: asynq.NewInspectorFromRedisClient(rdb)}
}

// traceHeader carries Ticket.Trace, in the form that W3C's Trace Context has.
const traceHeader = "traceparent"

// Enqueue hands a ticket to asynq. A ticket that is already there is no error.
func (q *Queue) Enqueue(ctx context.Context, t tasks.Ticket) error {
	payload, err := json.Marshal(t.Ref)
	if err != nil {
		return fmt.Errorf("encode ticket: %w", err)
	}
	var headers map[string]string
	if t.Trace != "" {
		headers = map[string]string{traceHeader: t.Trace}
	}
	_, err = q.client.EnqueueContext(ctx, asynq.NewTaskWithHeaders(TaskType, payload, headers),
		asynq.TaskID(TaskID(t)), asynq.Queue(queueOf(t)), asynq.MaxRetry(0), asynq.Timeout(maxRuntime), asynq.Retention(retention))
	if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
		return fault.Wrap(fmt.Errorf("enqueue: %w", err), fault.Unavailable, "queue_unavailable", "The queue is not available.")
	}
	return nil
}

// Standing is where a ticket's task is.
type Standing string

// The standings.
const (
	Pending Standing = "pending" // waits for a slot
	Taken   Standing = "taken"   // a worker has it
	Gone    Standing = "gone"    // ended, or unknown
)

// Standing looks a ticket up.
func (q *Queue) Standing(t tasks.Ticket) (Standing, error) {
	info, err := q.inspector.GetTaskInfo(queueOf(t), TaskID(t))
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound):
		return Gone, nil
	case err != nil:
		return "", fault.Wrap(fmt.Errorf("look up task: %w", err), fault.Unavailable, "queue_unavailable", "The queue is not available.")
	case info.State == asynq.TaskStateActive:
		return Taken, nil
	case info.State == asynq.TaskStateCompleted || info.State == asynq.TaskStateArchived:
		return Gone, nil
	}
	return Pending, nil
}

// Slots counts the imports that all live workers together can run at a time.
func (q *Queue) Slots() (int, error) {
	servers, err := q.inspector.Servers()
	if err != nil {
		return 0, fault.Wrap(fmt.Errorf("list workers: %w", err), fault.Unavailable, "queue_unavailable", "The queue is not available.")
	}
	n := 0
	for _, s := range servers {
		if s.Queues[ImportQueue] > 0 && s.Status == "active" {
			n += s.Concurrency
		}
	}
	return n, nil
}
