package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/testenv"
	"vmimport/tasks"
)

// serve runs a Server until the returned function is called, which waits for it.
func serve(t *testing.T, rdb redis.UniversalClient, slots int, handle tasks.Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s := NewServer(rdb, ServerOptions{Concurrency: slots, DrainTimeout: 20 * time.Second, Log: zerolog.Nop()})
	go func() { ended <- s.Run(ctx, handle) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func newTicket(cleanup bool) tasks.Ticket {
	return tasks.Ticket{Ref: tasks.Ref{Tenant: "a", ID: tasks.ID(uuid.NewString())}, Number: 1, Cleanup: cleanup}
}

func wantStanding(t *testing.T, q *Queue, tk tasks.Ticket, want Standing) {
	t.Helper()
	if got, err := q.Standing(tk); got != want || err != nil {
		t.Errorf("standing %s, %v; want %s", got, err, want)
	}
}

func TestTicketReachesAHandlerOnce(t *testing.T) {
	t.Parallel()
	rdb := testenv.StartRedis(t).Client()
	q := New(rdb)
	got := make(chan tasks.Ref, 10)
	first, cleanup := newTicket(false), newTicket(true)
	wantStanding(t, q, first, Gone)
	for _, tk := range []tasks.Ticket{first, first, cleanup} {
		if err := q.Enqueue(t.Context(), tk); err != nil {
			t.Fatal(err)
		}
	}
	wantStanding(t, q, first, Pending)
	stop := serve(t, rdb, 1, func(_ context.Context, ref tasks.Ref) (string, error) {
		got <- ref
		return "succeeded", nil
	})
	seen := map[tasks.Ref]int{}
	for range 2 {
		seen[<-got]++
	}
	stop()
	if seen[first.Ref] != 1 || seen[cleanup.Ref] != 1 || len(got) != 0 {
		t.Errorf("handled %v, and %d more", seen, len(got))
	}
	wantStanding(t, q, first, Gone)
	if err := q.Enqueue(t.Context(), first); err != nil {
		t.Errorf("an ended ticket again: %v", err)
	}
}

// TestDrain stops a worker under two attempts. Both are told why, end by
// themselves, and are not run again by asynq.
func TestDrain(t *testing.T) {
	t.Parallel()
	rdb := testenv.StartRedis(t).Client()
	q := New(rdb)
	running := make(chan struct{})
	var causes [2]error
	var n atomic.Int32
	stop := serve(t, rdb, 2, func(ctx context.Context, _ tasks.Ref) (string, error) {
		i := n.Add(1) - 1
		running <- struct{}{}
		<-ctx.Done()
		causes[i] = context.Cause(ctx)
		return tasks.OutcomeDrained, nil
	})
	tickets := []tasks.Ticket{newTicket(false), newTicket(false), newTicket(false)}
	for _, tk := range tickets {
		if err := q.Enqueue(t.Context(), tk); err != nil {
			t.Fatal(err)
		}
	}
	<-running
	<-running
	if slots, err := q.Slots(); slots != 2 || err != nil {
		t.Errorf("%d slots, %v", slots, err)
	}
	stop()
	for _, c := range causes {
		if !errors.Is(c, tasks.ErrDraining) {
			t.Errorf("cause %v", c)
		}
	}
	pending := 0
	for _, tk := range tickets {
		if s, err := q.Standing(tk); s == Pending && err == nil {
			pending++
		}
	}
	if pending != 1 || n.Load() != 2 {
		t.Errorf("%d pending, %d handled", pending, n.Load())
	}
	if slots, err := q.Slots(); slots != 0 || err != nil {
		t.Errorf("%d slots after the drain, %v", slots, err)
	}
}

// TestTraceOfARequest: an attempt goes on with the trace of the request that asked for
// it. The payload is the record's address and no more.
func TestTraceOfARequest(t *testing.T) {
	t.Parallel()
	rdb := testenv.StartRedis(t).Client()
	q := New(rdb)
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	want := map[tasks.ID]string{}
	for _, tt := range []struct{ trace, want string }{
		{"00-" + traceID + "-" + spanID + "-01", traceID + " " + spanID + " true"},
		{"00-" + traceID + "-" + spanID + "-00", traceID + " " + spanID + " false"},
		{"", ""},
		{"no trace at all", ""},
		{"00-00000000000000000000000000000000-" + spanID + "-01", ""},
		{strings.Repeat("0", 1<<16), ""},
	} {
		tk := newTicket(false)
		tk.Trace = tt.trace
		want[tk.ID] = tt.want
		if err := q.Enqueue(t.Context(), tk); err != nil {
			t.Fatal(err)
		}
		info, err := q.inspector.GetTaskInfo(ImportQueue, TaskID(tk))
		if err != nil {
			t.Fatal(err)
		}
		var payload map[string]string
		if err := json.Unmarshal(info.Payload, &payload); err != nil || len(payload) != 2 {
			t.Errorf("payload %s, %v", info.Payload, err)
		}
	}
	type seen struct {
		id   tasks.ID
		span trace.SpanContext
	}
	got := make(chan seen, len(want))
	stop := serve(t, rdb, 1, func(ctx context.Context, ref tasks.Ref) (string, error) {
		got <- seen{ref.ID, trace.SpanContextFromContext(ctx)}
		return "", nil
	})
	for range len(want) {
		s := <-got
		text := ""
		if s.span.IsValid() {
			text = fmt.Sprintf("%s %s %v", s.span.TraceID(), s.span.SpanID(), s.span.IsSampled())
		}
		if text != want[s.id] || s.span.IsValid() != s.span.IsRemote() {
			t.Errorf("trace %q, want %q", text, want[s.id])
		}
	}
	stop()
}

func TestBadTasksDoNoHarm(t *testing.T) {
	t.Parallel()
	rdb := testenv.StartRedis(t).Client()
	q := New(rdb)
	panics, fails, good := newTicket(false), newTicket(false), newTicket(false)
	done := make(chan struct{})
	stop := serve(t, rdb, 1, func(_ context.Context, ref tasks.Ref) (string, error) {
		switch ref.ID {
		case panics.ID:
			panic("boom")
		case fails.ID:
			return "", errors.New("store is away")
		}
		close(done)
		return "succeeded", nil
	})
	for _, tk := range []tasks.Ticket{panics, fails, good} {
		if err := q.Enqueue(t.Context(), tk); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	stop()
	for _, tk := range []tasks.Ticket{panics, fails, good} {
		wantStanding(t, q, tk, Gone)
	}
}

// TestEndToEnd runs a Dispatcher and a Server over a real store: what is created
// is handled within moments, and the lead is given back at the end.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	f := &fixture{t: t, clock: time.Now()}
	rdb := testenv.StartRedis(t).Client()
	f.store = newStore(rdb, nil)
	f.Dispatcher = NewDispatcher(f.store, f.store, New(rdb), DispatcherOptions{Who: "d1", Lease: lease, Log: zerolog.Nop()})
	canceled := make(chan tasks.ID, 1)
	f.OnCancel = func(id tasks.ID) { canceled <- id }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	handled := make(chan tasks.Ref, 100)
	stop := serve(t, rdb, 4, func(ctx context.Context, ref tasks.Ref) (string, error) {
		_, err := f.store.Claim(ctx, ref, "w1", time.Minute)
		handled <- ref
		return "", err
	})
	want := map[tasks.ID]bool{}
	for _, tenant := range []tasks.Tenant{"a", "b", "c"} {
		for range 5 {
			want[f.create(tenant).ID] = true
		}
	}
	var last tasks.Ref
	for range 15 {
		last = <-handled
		delete(want, last.ID)
	}
	if len(want) != 0 || len(handled) != 0 {
		t.Errorf("not handled: %v; handled twice: %d", want, len(handled))
	}
	if _, err := f.store.Cancel(t.Context(), tasks.Scope{Region: region, Tenant: last.Tenant}, last.ID); err != nil {
		t.Fatal(err)
	}
	if id := <-canceled; id != last.ID {
		t.Errorf("heard of a cancel of %s", id)
	}
	stop()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if lead, err := f.store.Lead(t.Context(), "d2", time.Second); !lead || err != nil {
		t.Errorf("the lead was not given back: %v", err)
	}
}
