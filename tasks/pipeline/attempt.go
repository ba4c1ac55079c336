package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/tasks"
)

// attempt is one run on one import.
type attempt struct {
	r      *Runner
	imp    *tasks.Import
	held   tasks.Held
	region Region
	began  time.Time
	heart  *heart
	log    zerolog.Logger

	from int64 // bytes that a checkpoint saved
}

// errPoison ends an import whose attempts did not get to say why.
var errPoison = fault.New(fault.Invalid, "worker_crashed", "The import failed since every worker that ran it stopped.").
	Try("Check that the image file is intact. If it is, report the import to the operator.")

// errDeleted ends an attempt whose work is to remove the image.
var errDeleted = errors.New("the image was deleted")

// run works on the import and brings its record to what the end calls for.
func (a *attempt) run(ctx context.Context, saved []byte) (outcome string, err error) {
	work, stop := context.WithCancelCause(ctx)
	defer stop(context.Canceled)
	// The heart outlives the work: the claim must last until the end is written.
	life, rest := context.WithCancel(context.WithoutCancel(ctx))
	a.heart = newHeart(a, stop)
	go a.heart.run(life)
	a.r.enlist(a)
	defer func() {
		rest()
		<-a.heart.ended
		a.r.dismiss(a)
		a.r.opt.Observe.Ended(a.imp.Region, outcome, a.r.now().Sub(a.began), a.heart.counters(), a.heart.stats.Received.Load())
	}()
	a.log.Info().Str("state", string(a.imp.State)).Msg("attempt begins")
	return a.end(work, a.guard(func() error { return a.work(work, saved) }))
}

func (r *Runner) enlist(a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hearts[a.held.ID] = a.heart
}

func (r *Runner) dismiss(a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hearts[a.held.ID] == a.heart {
		delete(r.hearts, a.held.ID)
	}
}

// guard makes a panic an error, so that the claim is given back and the other
// imports of this worker live on.
func (a *attempt) guard(work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("attempt panicked")
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return work()
}

// work makes and publishes the image. It returns nil only if the image is
// published.
func (a *attempt) work(ctx context.Context, saved []byte) error {
	if a.imp.State == tasks.Cancelling {
		return tasks.ErrUserCanceled
	}
	if !a.imp.DeletedAt.IsZero() {
		return errDeleted
	}
	// The verdict comes first: who found it may be removing the image just now.
	if f := a.imp.Verdict; f != nil {
		return f.Fault()
	}
	if published, err := a.recognise(ctx); published || err != nil {
		return err
	}
	if a.imp.Crashes >= a.r.opt.MaxCrashes {
		return errPoison.Saw("%d times", a.imp.Crashes)
	}
	cp, err := a.loadCheckpoint(ctx, saved)
	if err != nil {
		return err
	}
	upload, err := a.begin(ctx)
	if err != nil {
		return err
	}
	defer upload.Close()
	disks, err := a.copyDisks(ctx, upload, cp)
	if err != nil {
		return err
	}
	a.heart.enter(tasks.StagePublishing)
	a.heart.beat(ctx) // the last figures, for the record of a success
	result := &tasks.Result{Disks: disks}
	if err := a.r.claims.BeginPublish(ctx, a.held, result); err != nil {
		return err
	}
	// A worker that drains does not throw away an image at its last step.
	return upload.Publish(context.WithoutCancel(ctx), factsOf(disks))
}

// recognise looks for the image of an earlier attempt of this import that died
// between publishing and finishing.
func (a *attempt) recognise(ctx context.Context) (published bool, err error) {
	img, err := a.region.Images.Get(ctx, a.imp.ImageID)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return false, nil
	case err != nil:
		return false, err
	case img.ImportID != string(a.imp.ID):
		return false, imageapi.ErrTaken
	case a.imp.Result == nil:
		return false, fmt.Errorf("image %s of this import exists, but its result was never recorded", a.imp.ImageID)
	}
	a.log.Info().Msg("image of an earlier attempt recognised")
	return true, a.r.claims.BeginPublish(ctx, a.held, a.imp.Result)
}

// begin begins the image. If its id is spent and nobody has asked for it, the image
// gets another: that the image service lost an upload is no reason to fail.
func (a *attempt) begin(ctx context.Context) (imageapi.Upload, error) {
	upload, err := a.region.Images.Begin(ctx, a.imageSpec())
	if !errors.Is(err, imageapi.ErrSpent) || a.imp.ImageIDGiven {
		return upload, err
	}
	id := uuid.NewString()
	if err := a.r.claims.Reassign(ctx, a.held, id); err != nil {
		return nil, err
	}
	a.log.Warn().Str("from", a.imp.ImageID).Str("to", id).Msg("the image service does not give out the image id any more; the image gets another")
	a.imp.ImageID = id
	return a.region.Images.Begin(ctx, a.imageSpec())
}

func (a *attempt) imageSpec() imageapi.Spec {
	return imageapi.Spec{
		ImageID:    a.imp.ImageID,
		KeepID:     a.imp.ImageIDGiven,
		ImportID:   string(a.imp.ID),
		Attempt:    int64(a.held.Epoch),
		Name:       a.imp.Name,
		Owner:      a.imp.Owner.Project,
		Format:     a.imp.TargetFormat,
		MinRAM:     a.imp.MinRAMMiB,
		MinDisk:    a.imp.MinDiskGiB,
		OSType:     a.imp.OSType,
		CreatedAt:  a.imp.RequestedAt,
		Properties: map[string]string{"vmimport_region": a.imp.Region, "vmimport_request_id": a.imp.RequestID},
		WellKnown:  a.imp.Properties,
	}
}

// The end of an attempt is written even if the attempt's own context is over,
// with patience for a store or image service that is away for a moment. Clean-up
// and record each have that much.
const (
	endPatience = 20 * time.Second
	endPause    = 200 * time.Millisecond
)

// end decides what becomes of the import. ctx is the context that the work ran
// under; its cause goes before whatever error the work made of it.
func (a *attempt) end(ctx context.Context, err error) (outcome string, _ error) {
	cause := context.Cause(ctx)
	ctx = context.WithoutCancel(ctx)
	switch {
	case err == nil:
		return a.succeed(ctx)
	case errors.Is(err, errDeleted) && !errors.Is(cause, tasks.ErrClaimLost):
		return a.remove(ctx)
	case errors.Is(cause, tasks.ErrClaimLost), fault.KindOf(err) == fault.Fenced:
		a.log.Warn().Err(err).Msg("attempt stops: another worker has the import")
		return tasks.OutcomeLost, nil
	case errors.Is(cause, tasks.ErrUserCanceled), errors.Is(err, tasks.ErrUserCanceled), errors.Is(err, tasks.ErrCancelCameFirst):
		return a.cancel(ctx)
	case errors.Is(cause, tasks.ErrDraining), errors.Is(cause, tasks.ErrTaskLost):
		return a.release(ctx, tasks.OutcomeDrained, nil)
	case errors.Is(err, errNotServed):
		return a.release(ctx, tasks.OutcomeDrained, err)
	case fault.Retryable(err) && a.imp.Setbacks+1 < a.r.opt.MaxSetbacks:
		return a.release(ctx, tasks.OutcomeRetry, err)
	}
	return a.fail(ctx, err)
}

func (a *attempt) succeed(ctx context.Context) (string, error) {
	return a.write(ctx, string(tasks.Succeeded), nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Succeed(ctx, a.held, rec)
	})
}

// cancel removes what was made and ends the import as canceled.
func (a *attempt) cancel(ctx context.Context) (string, error) {
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, nil)
	}
	return a.write(ctx, string(tasks.Canceled), nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Canceled(ctx, a.held, rec)
	})
}

// remove removes a deleted image.
func (a *attempt) remove(ctx context.Context) (string, error) {
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, nil)
	}
	return a.write(ctx, tasks.OutcomeRemoved, nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Removed(ctx, a.held, rec)
	})
}

// fail removes what was made and ends the import as failed. Nothing is removed
// without the store's consent: what this worker takes for its own may be the image
// that another has published since.
func (a *attempt) fail(ctx context.Context, cause error) (string, error) {
	err := a.insist(ctx, func(ctx context.Context) error { return a.r.claims.Condemn(ctx, a.held, failureOf(cause)) })
	switch {
	case errors.Is(err, tasks.ErrCancelCameFirst):
		return a.cancel(ctx)
	case fault.KindOf(err) == fault.Fenced:
		a.log.Warn().AnErr("cause", cause).Msg("attempt stops: another worker has the import")
		return tasks.OutcomeLost, nil
	case err != nil:
		return "", err
	}
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, cause)
	}
	outcome, err := a.write(ctx, string(tasks.Failed), cause, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Fail(ctx, a.held, failureOf(cause), rec)
	})
	if errors.Is(err, tasks.ErrCancelCameFirst) {
		return a.cancel(ctx)
	}
	return outcome, err
}

// release gives the import back to the queue.
func (a *attempt) release(ctx context.Context, outcome string, cause error) (string, error) {
	var pause time.Duration
	if outcome != tasks.OutcomeDrained || cause != nil {
		pause = a.r.opt.Backoff(a.imp.Setbacks + 1)
		// Imports that failed together should not come back together.
		pause += time.Duration(rand.Int64N(int64(pause)/4 + 1))
	}
	outcome, err := a.write(ctx, outcome, cause, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Release(ctx, a.held, pause, rec)
	})
	if errors.Is(err, tasks.ErrCancelCameFirst) {
		return a.cancel(ctx)
	}
	return outcome, err
}

// cleanUp removes all that this import made.
func (a *attempt) cleanUp(ctx context.Context) error {
	a.heart.enter(tasks.StageCleaning)
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	err := a.region.Images.Remove(ctx, string(a.imp.ID), a.imp.ImageID)
	if err != nil {
		a.log.Error().Err(err).Msg("clean-up failed, and will be tried again")
	}
	return err
}

// insist does a step at the end of the attempt, again and again while the store
// is away.
func (a *attempt) insist(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for {
		err := do(ctx)
		if fault.KindOf(err) != fault.Unavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(endPause):
		}
	}
}

// write writes the end of the attempt and logs it. That another worker has the
// import by then is no failure of this one.
func (a *attempt) write(ctx context.Context, outcome string, cause error, do func(context.Context, tasks.Attempt) error) (string, error) {
	err := a.insist(ctx, func(ctx context.Context) error { return do(ctx, a.record(outcome, cause)) })
	switch {
	case err == nil:
		a.log.Info().AnErr("cause", cause).Str("outcome", outcome).Int64("bytes", a.heart.counters().DoneBytes).
			Float64("seconds", a.r.now().Sub(a.began).Seconds()).Msg("attempt ends")
		return outcome, nil
	case fault.KindOf(err) == fault.Fenced:
		a.log.Warn().Err(err).Str("outcome", outcome).Msg("another worker has the import; the end of this attempt is not recorded")
		return tasks.OutcomeLost, nil
	}
	return "", err
}

// record describes this attempt, as ending now.
func (a *attempt) record(outcome string, cause error) tasks.Attempt {
	rec := tasks.Attempt{
		Epoch: a.held.Epoch, Worker: a.r.opt.Worker, StartedAt: a.began.UTC(), EndedAt: a.r.now().UTC(),
		Outcome: outcome, FromBytes: a.from, DoneBytes: a.heart.counters().DoneBytes,
	}
	if cause != nil {
		f := failureOf(cause)
		rec.Cause = &f
	}
	return rec
}

// failureOf puts an error into the customer's words.
func failureOf(err error) tasks.Failure {
	e := fault.Of(err)
	f := tasks.Failure{Code: e.Code, Message: e.Message, Evidence: e.Evidence, Remedy: e.Remedy}
	if d, ok := errors.AsType[*tasks.DiskError](err); ok {
		f.Disk = d.Number
	}
	return f
}
