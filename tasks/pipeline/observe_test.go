package pipeline

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"vmimport/storage"
	"vmimport/storage/storagetest"
	"vmimport/tasks"
)

// told is an Observer that adds up what it is told.
type told struct {
	mu                     sync.Mutex
	calls                  int
	bytes, retries, stalls int64
	stages                 []tasks.Stage
	inStages, took         time.Duration
	ends                   int
}

func (o *told) Ended(_ tasks.Kind, _, _ string, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ends++
	o.took += took
}

func (o *told) StageEnded(_ tasks.Kind, _ string, stage tasks.Stage, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stages = append(o.stages, stage)
	o.inStages += took
}

func (o *told) Moved(_ tasks.Kind, _ string, bytes, retries, stalls int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	o.bytes += bytes
	o.retries += retries
	o.stalls += stalls
}

// All that an attempt did is told once, and some of it while it goes on.
func TestObserver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 20e6
		obj := storagetest.Break(storagetest.Paced(size, 0, 1e6), storagetest.StallBody, 5e6, 1, nil)
		obj = storagetest.Break(obj, storagetest.FailBody, 10e6, 2, io.ErrUnexpectedEOF)
		l, o := newLane(obj, 0), &told{}
		l.opt.Observe = o
		r := l.runner()
		go func() { // beats that come from elsewhere
			for range 1000 {
				time.Sleep(10 * time.Millisecond) // of the bubble
				l.nudge(r)
			}
		}()
		if outcome, err := r.Handle(t.Context(), l.spec().Ref()); outcome != string(tasks.Succeeded) || err != nil {
			t.Fatalf("outcome %q, %v", outcome, err)
		}
		if o.bytes != size || o.retries != 2 || o.stalls != 1 || o.calls < 10 {
			t.Errorf("told %d bytes, %d retries and %d stalls in %d calls", o.bytes, o.retries, o.stalls, o.calls)
		}
		want := []tasks.Stage{tasks.StageInspecting, tasks.StageCopying, tasks.StageVerifying, tasks.StagePublishing}
		if !slices.Equal(o.stages, want) {
			t.Errorf("stages %v", o.stages)
		}
		if o.ends != 1 || o.took < 10*time.Second || o.inStages != o.took {
			t.Errorf("%d attempts took %s, their stages %s", o.ends, o.took, o.inStages)
		}
	})
}

// nudge has all attempts beat.
func (l *lane) nudge(r *Runner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.hearts {
		h.nudge()
	}
}

// The stages of a clean-up, and of an attempt that fails.
func TestObserverOfEnds(t *testing.T) {
	r, o := newRig(t), &told{}
	r.opt.Observe = o
	spec := r.accept(disk(1, diskSize))
	r.objects.with(func(o storage.Object) storage.Object { return flipped{o} })
	r.images = &stuck{r.images, 1}
	for range 2 {
		r.handle(spec)
	}
	r.wantNothing(spec, tasks.Failed, "checksum_mismatch")
	want := []tasks.Stage{tasks.StageInspecting, tasks.StageCopying, tasks.StageCleaning, tasks.StageCleaning}
	if !slices.Equal(o.stages, want) || o.ends != 2 {
		t.Errorf("stages %v in %d attempts", o.stages, o.ends)
	}
}

// traced runs an attempt under a span of somebody else, and returns the spans of it.
func (r *rig) traced(spec *tasks.Spec) (parent trace.SpanContext, spans tracetest.SpanStubs) {
	r.t.Helper()
	into := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(into))
	runner := r.runner()
	runner.tracer = provider.Tracer(tracerName)
	parent = trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true,
	})
	ctx := trace.ContextWithRemoteSpanContext(r.t.Context(), parent)
	if _, err := runner.Handle(ctx, spec.Ref()); err != nil {
		r.t.Fatal(err)
	}
	spans = into.GetSpans()
	if err := provider.Shutdown(context.WithoutCancel(ctx)); err != nil {
		r.t.Error(err)
	}
	return parent, spans
}

func TestTrace(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	parent, spans := r.traced(spec)
	var names []string
	attempt := spans[len(spans)-1]
	for _, s := range spans {
		names = append(names, s.Name)
		if s.SpanContext.TraceID() != parent.TraceID() || s.Status.Code != codes.Unset {
			t.Errorf("%s is of trace %s, status %v", s.Name, s.SpanContext.TraceID(), s.Status)
		}
		if want := attempt.SpanContext.SpanID(); s.Name != attempt.Name && s.Parent.SpanID() != want {
			t.Errorf("%s is below %s, not %s", s.Name, s.Parent.SpanID(), want)
		}
	}
	if want := []string{"inspecting", "copying", "verifying", "publishing", "import attempt"}; !slices.Equal(names, want) {
		t.Errorf("spans %v", names)
	}
	if attempt.Parent.SpanID() != parent.SpanID() {
		t.Errorf("the attempt is below %s", attempt.Parent.SpanID())
	}
	want := attribute.NewSet(
		attribute.String("vmimport.id", string(spec.ID)), attribute.String("vmimport.kind", "import"),
		attribute.String("vmimport.region", region), attribute.Int("vmimport.attempt", 1), attribute.String("vmimport.outcome", "succeeded"),
	)
	if got := attribute.NewSet(attempt.Attributes...); !got.Equals(&want) {
		t.Errorf("attributes %v", attempt.Attributes)
	}
}

// A failure has its code in the trace, and nothing of its own words.
func TestTraceOfFailures(t *testing.T) {
	r := newRig(t)
	spec := r.accept(disk(1, diskSize))
	r.breakAt(diskSize / 2)
	r.images = &stuck{r.images, 1}
	_, spans := r.traced(spec)
	status := map[string]string{}
	for _, s := range spans {
		if s.Status.Code == codes.Error {
			status[s.Name] = s.Status.Description
		}
		if said := fmt.Sprintf("%+v", s); strings.Contains(said, errDown.Error()) {
			t.Errorf("%s says %s", s.Name, said)
		}
	}
	if status["cleaning"] != "image_service_unavailable" || status["import attempt"] != "image_service_unavailable" {
		t.Errorf("status is %v", status)
	}
	_, spans = r.traced(spec)
	r.wantNothing(spec, tasks.Failed, "source_unreadable")
	if last := spans[len(spans)-1]; last.Status.Code != codes.Error || last.Status.Description != "source_unreadable" {
		t.Errorf("status is %v", last.Status)
	}
}
