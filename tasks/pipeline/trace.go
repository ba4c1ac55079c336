package pipeline

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

// tracerName is who the spans are from.
const tracerName = "vmimport/pipeline"

// startSpan begins the span of the attempt. Its parent is the one of ctx, which may be remote.
func (a *attempt) startSpan(ctx context.Context) context.Context {
	ctx, a.span = a.r.tracer.Start(ctx, string(a.task.Kind())+" attempt")
	if a.span.IsRecording() {
		a.span.SetAttributes(
			attribute.String("vmimport.id", string(a.task.ID)),
			attribute.String("vmimport.kind", string(a.task.Kind())),
			attribute.String("vmimport.region", a.task.Region),
			attribute.Int64("vmimport.attempt", int64(a.held.Epoch)),
		)
	}
	a.traced = ctx
	return ctx
}

// endSpan ends the span of the attempt: cause is why the work ended, and err that its end could not
// be written.
func (a *attempt) endSpan(outcome string, cause, err error) {
	a.span.SetAttributes(attribute.String("vmimport.outcome", outcome))
	switch {
	case err != nil:
		blame(a.span, err)
	case outcome == string(tasks.Failed), outcome == tasks.OutcomeRetry:
		blame(a.span, cause)
	}
	a.span.End()
}

// blame marks a span as failed. The words of an error are for the log: a span may be sent to
// anywhere.
func blame(span trace.Span, err error) { span.SetStatus(codes.Error, fault.CodeOf(err)) }

// stages follows what an attempt does, for the record, the observer and the trace. It is safe for
// concurrent use: some of what an attempt does is done in the background.
type stages struct {
	mu    sync.Mutex
	stage tasks.Stage
	since time.Time
	span  trace.Span
}

// enter begins a stage and ends the one before; "" begins none.
func (s *stages) enter(a *attempt, stage tasks.Stage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stage == s.stage {
		return
	}
	now := a.r.now()
	if s.stage != "" {
		a.r.opt.Observe.StageEnded(a.task.Kind(), a.task.Region, s.stage, now.Sub(s.since))
		s.span.End()
	}
	s.stage, s.since = stage, now
	if stage != "" {
		_, s.span = a.r.tracer.Start(a.traced, string(stage))
	}
}

func (s *stages) now() tasks.Stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stage
}

// blame marks the stage that the attempt is in as failed.
func (s *stages) blame(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blame(s.span, err)
}
