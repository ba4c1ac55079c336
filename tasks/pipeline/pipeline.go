// Package pipeline runs imports and exports: from the claim on a record to an image, or
// objects, that are published, or to nothing left.
//
// One attempt is one call of Runner.Handle:
//
//	claim -> inspect -> copy, hashing -> verify -> exclude a cancel -> publish -> finish
//	   \_____________\________________\________/
//	    on any failure or cancel: remove what was made, then finish or give back
//
// What is between claim and finish is the task's job, importing or exporting. Of an import that
// fails for a passing reason, what its checkpoint stands for may be kept for a retry (Options.Keep).
//
// Beside it the heart beats: once a second it stores progress, extends the
// claim and brings back the cancel. When it learns that the attempt must stop,
// it ends the attempt's context with the reason as its cause; the layers below
// see plain cancellation, and the reason is read once, at the end.
package pipeline

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// Region is where tasks of one region read from and write to.
type Region struct {
	Objects storage.Store
	Images  imageapi.Images
	Target  storage.Target // where exports write to; nil: the region has none
	MaxDisk int64          // bytes of the largest disk; 0: what any format can hold
}

// Options set up a Runner. All but Worker may be left zero.
type Options struct {
	// Worker is this process's name in records and logs.
	Worker string
	// Lease is how long a claim lasts without a beat, 8 s by default; BeatEvery
	// is the time between beats, 1 s by default. Some beats may be lost before
	// a live worker is taken for dead.
	Lease     time.Duration
	BeatEvery time.Duration
	// Fetch is handed to storage.Fetch; its Pool is shared by all imports.
	Fetch storage.Options
	// Spool returns a file with room for that many bytes, or fails if there is none:
	// for images that cannot be written as they come.
	Spool func(bytes int64) (Spool, error)
	// MaxSetbacks is after how many passing failures without having got further
	// an import fails, 12 by default: with the pauses between them about an hour.
	MaxSetbacks int
	// MaxCrashes is how many workers an import may take down without having
	// got further, 5 by default.
	MaxCrashes int
	// Backoff is the pause after the n-th setback, from 1 on.
	Backoff func(n int) time.Duration
	Observe Observer
	// Policy bounds what tenants read at a time. Each of a tenant's tasks has an even share of
	// BytesPerSecond, which follows how many run with every beat.
	Policy tasks.Policy
	// Keep is how long the checkpoint of an import that failed for a passing reason is kept
	// for a retry; 0: not at all.
	Keep time.Duration
	Log  zerolog.Logger
}

// Observer is told what metrics count. Its methods must not block.
type Observer interface {
	// Ended is called once for each attempt, with the attempt's outcome and its duration.
	Ended(kind tasks.Kind, region, outcome string, took time.Duration)
	// StageEnded is called when an attempt leaves a stage, with how long it was in it.
	StageEnded(kind tasks.Kind, region string, stage tasks.Stage, took time.Duration)
	// Moved is called with every beat and at the end of an attempt, with what it read since
	// the last call, and what of its counters has grown since.
	Moved(kind tasks.Kind, region string, bytes, retries, stalls int64)
}

type nobody struct{}

func (nobody) Ended(tasks.Kind, string, string, time.Duration)           {}
func (nobody) StageEnded(tasks.Kind, string, tasks.Stage, time.Duration) {}
func (nobody) Moved(tasks.Kind, string, int64, int64, int64)             {}

// Lease is the default of Options.Lease.
const Lease = 8 * time.Second

// Runner runs attempts. It is safe for concurrent use.
type Runner struct {
	claims  tasks.Claims
	regions map[string]Region
	opt     Options
	now     func() time.Time
	tracer  trace.Tracer

	mu     sync.Mutex
	hearts map[tasks.ID]*heart // of the attempts that run here
}

// New returns a Runner for the given regions.
func New(claims tasks.Claims, regions map[string]Region, opt Options) *Runner {
	defaultTo(&opt.Lease, Lease)
	defaultTo(&opt.BeatEvery, time.Second)
	defaultTo(&opt.MaxSetbacks, 12)
	defaultTo(&opt.MaxCrashes, 5)
	if opt.Backoff == nil {
		opt.Backoff = backoff
	}
	if opt.Observe == nil {
		opt.Observe = nobody{}
	}
	return &Runner{
		claims: claims, regions: regions, opt: opt, now: time.Now, tracer: otel.Tracer(tracerName), hearts: map[tasks.ID]*heart{},
	}
}

func defaultTo[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// backoff doubles from 5 s up to 10 minutes.
func backoff(n int) time.Duration {
	return min(5*time.Second<<min(n-1, 10), 10*time.Minute)
}

// Handle is a tasks.Handler.
func (r *Runner) Handle(ctx context.Context, ref tasks.Ref) (outcome string, err error) {
	claimed, err := r.claims.Claim(ctx, ref, r.opt.Worker, r.opt.Lease)
	switch {
	case fault.KindOf(err) == fault.Fenced:
		return "", nil // an old ticket; somebody else has it, or it has ended
	case err != nil:
		return "", err
	}
	a := &attempt{
		r:      r,
		task:   claimed.Task,
		held:   claimed.Held,
		began:  r.now(),
		saved:  len(claimed.Checkpoint) > 0,
		region: r.regions[claimed.Task.Region],
		log: r.opt.Log.With().Str(string(claimed.Task.Kind())+"_id", string(ref.ID)).Int64("epoch", int64(claimed.Held.Epoch)).
			Str("request_id", claimed.Task.RequestID).Logger(),
	}
	if _, ok := r.regions[a.task.Region]; !ok {
		a.region = Region{Images: unserved{a.task.Region}}
	}
	a.job = importing{a}
	if a.task.Kind() == tasks.KindExport {
		a.job = &exporting{attempt: a}
	}
	return a.run(ctx, claimed.Checkpoint)
}

// unserved is the image service of a region that this worker's configuration
// lacks. Imports of it wait for a worker that has it, also with their clean-up.
// Waiting costs them nothing: most workers of a fleet may lack a region.
type unserved struct{ region string }

var errNotServed = fault.New(fault.Unavailable, "region_not_served", "The region is not served at present.")

func (u unserved) err() error { return errNotServed.Saw("region %s", u.region) }

func (u unserved) Get(context.Context, string) (*imageapi.Image, error) { return nil, u.err() }

func (u unserved) Open(context.Context, string) (imageapi.File, error) { return nil, u.err() }

func (u unserved) Accepts(imageapi.Spec) error { return u.err() }

func (u unserved) Begin(context.Context, imageapi.Spec) (imageapi.Upload, error) { return nil, u.err() }

func (u unserved) Remove(context.Context, string, string) error { return u.err() }

// Cancel tells the Runner that a cancel was accepted. If the task runs here
// its heart beats at once, and so learns of it; else nothing happens.
func (r *Runner) Cancel(id tasks.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.hearts[id]; h != nil {
		h.nudge()
	}
}

// Running counts the attempts that run here now.
func (r *Runner) Running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.hearts)
}
