package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"vmimport/imageapi"
	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// job is the work of an attempt: that of one kind of task.
type job interface {
	// do makes and publishes what the task is for, from where saved, its checkpoint, stands.
	// It returns nil only if that is published.
	do(ctx context.Context, saved []byte) error
	// remove removes all that the task made, by whichever attempt.
	remove(ctx context.Context) error
	// settle is called when the task has succeeded, for what it needed only until then.
	settle(ctx context.Context) error
}

// attempt is one run on one task: its claim, its heart, and its end.
type attempt struct {
	r      *Runner
	job    job
	task   *tasks.Task
	held   tasks.Held
	region Region
	began  time.Time
	heart  *heart
	log    zerolog.Logger
	span   trace.Span
	traced context.Context // has span, for those of the stages

	from int64 // bytes that a checkpoint saved
	// saved is whether the record has a checkpoint, and publishing whether this attempt may have
	// begun to publish, or has found what another has published. Both are for the attempt's
	// goroutine, once its saver has ended.
	saved, publishing bool
}

// errPoison ends a task whose attempts did not get to say why.
var errPoison = fault.New(fault.Invalid, "worker_crashed", "Every worker that ran it stopped.").
	Try("Check that the image file is intact. If it is, report this to the operator.")

// errUnwanted ends an attempt whose work is to remove a deleted image, or what was kept of a
// failed import.
var errUnwanted = errors.New("what there is of it is not wanted any more")

// run works on the task and brings its record to what the end calls for.
func (a *attempt) run(ctx context.Context, saved []byte) (outcome string, err error) {
	ctx = a.startSpan(ctx)
	work, stop := context.WithCancelCause(ctx)
	defer stop(context.Canceled)
	// The heart outlives the work: the claim must last until the end is written.
	life, rest := context.WithCancel(context.WithoutCancel(ctx))
	a.heart = newHeart(a, stop)
	a.heart.enter(a.firstStage())
	go a.heart.run(life)
	a.r.enlist(a)
	var cause error
	defer func() {
		rest()
		<-a.heart.ended
		a.r.dismiss(a)
		a.heart.close()
		a.endSpan(outcome, cause, err)
		a.r.opt.Observe.Ended(a.task.Kind(), a.task.Region, outcome, a.r.now().Sub(a.began))
	}()
	a.log.Info().Str("state", string(a.task.State)).Msg("attempt begins")
	cause = a.guard(func() error { return a.work(work, saved) })
	outcome, err = a.end(work, cause)
	if outcome == tasks.OutcomeLost {
		a.abandon(context.WithoutCancel(ctx))
	}
	return outcome, err
}

// abandon ends an attempt whose task another worker has, or had. Where that has come to nothing,
// what this attempt has stored since the other's clean-up is nobody's, and is removed: by a
// clean-up of its own if a retry may yet come. As long as it may come to something, and be it by
// a retry that goes on from what was kept, all that is there may be the other's.
func (a *attempt) abandon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for {
		state, err := a.r.claims.Fate(ctx, a.held.Ref)
		switch {
		case state == tasks.Failed:
			a.late(a.r.claims.CleanAgain(ctx, a.held.Ref))
			return
		case state == tasks.Canceled:
			a.late(a.job.remove(ctx))
			return
		case err != nil || state != tasks.Cancelling:
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(endPause):
		}
	}
}

// late logs that a lost attempt leaves something of a task that has ended. A sweep finds it.
func (a *attempt) late(err error) {
	if err != nil {
		a.log.Error().Err(err).Msg("what a lost attempt has stored could not be removed")
	}
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

// work does the job, unless all that is left is to remove what was made. It returns nil only
// if what the task is for is published.
func (a *attempt) work(ctx context.Context, saved []byte) error {
	if err := a.over(); err != nil {
		return err
	}
	return a.job.do(ctx, saved)
}

// over returns why nothing is left to do but to remove what there is; nil if there is more.
func (a *attempt) over() error {
	switch {
	case a.task.State == tasks.Cancelling:
		return tasks.ErrUserCanceled
	case a.task.State == tasks.Failed, !a.task.DeletedAt.IsZero():
		return errUnwanted
	case a.task.Verdict != nil: // who found it may be removing the result just now
		return a.task.Verdict.Fault()
	}
	return nil
}

func (a *attempt) firstStage() tasks.Stage {
	if a.over() != nil {
		return tasks.StageCleaning
	}
	return tasks.StageInspecting
}

// endure fails if the task takes workers down.
func (a *attempt) endure() error {
	if a.task.Crashes >= a.r.opt.MaxCrashes {
		return errPoison.Saw("%d times", a.task.Crashes)
	}
	return nil
}

// The end of an attempt is written even if the attempt's own context is over,
// with patience for a store or image service that is away for a moment. Clean-up
// and record each have that much.
const (
	endPatience = 20 * time.Second
	endPause    = 200 * time.Millisecond
)

// end decides what becomes of the task. ctx is the context that the work ran
// under; its cause goes before whatever error the work made of it.
func (a *attempt) end(ctx context.Context, err error) (outcome string, _ error) {
	cause := context.Cause(ctx)
	ctx = context.WithoutCancel(ctx)
	switch {
	case err == nil:
		return a.succeed(ctx)
	case errors.Is(err, errUnwanted) && !errors.Is(cause, tasks.ErrClaimLost):
		return a.remove(ctx)
	case errors.Is(cause, tasks.ErrClaimLost), fault.KindOf(err) == fault.Fenced:
		a.log.Warn().Err(err).Msg("attempt stops: another worker has the task")
		return tasks.OutcomeLost, nil
	case errors.Is(cause, tasks.ErrUserCanceled), errors.Is(err, tasks.ErrUserCanceled), errors.Is(err, tasks.ErrCancelCameFirst):
		return a.cancel(ctx)
	case errors.Is(cause, tasks.ErrDraining), errors.Is(cause, tasks.ErrTaskLost):
		return a.release(ctx, tasks.OutcomeDrained, nil)
	case errors.Is(err, errNotServed):
		return a.release(ctx, tasks.OutcomeDrained, err)
	case fault.Retryable(err) && a.task.Setbacks+1 < a.r.opt.MaxSetbacks:
		return a.release(ctx, tasks.OutcomeRetry, err)
	}
	return a.fail(ctx, err)
}

func (a *attempt) succeed(ctx context.Context) (string, error) {
	outcome, err := a.write(ctx, string(tasks.Succeeded), nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Succeed(ctx, a.held, rec)
	})
	if outcome == string(tasks.Succeeded) {
		a.settle(ctx)
	}
	return outcome, err
}

// settle lets go of what only an unfinished task needs. Where that takes room, a sweep finds it.
func (a *attempt) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	if err := a.job.settle(ctx); err != nil {
		a.log.Warn().Err(err).Msg("what a finished task does not need any more could not be removed")
	}
}

// cancel removes what was made and ends the task as canceled.
func (a *attempt) cancel(ctx context.Context) (string, error) {
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, nil)
	}
	return a.write(ctx, string(tasks.Canceled), nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Canceled(ctx, a.held, rec)
	})
}

// remove removes a deleted image, or what was kept of a failed import.
func (a *attempt) remove(ctx context.Context) (string, error) {
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, nil)
	}
	return a.write(ctx, tasks.OutcomeRemoved, nil, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Removed(ctx, a.held, rec)
	})
}

// fail removes what was made and ends the task as failed. Nothing is removed
// without the store's consent: what this worker takes for its own may be the image
// that another has published since.
//
// Where something is kept for a retry nothing is removed, and no such consent is needed: the claim
// is enough. Nobody who held an earlier one has begun to publish, or the record would have its
// result, or this attempt have found the image; nobody can any more; and this attempt has not.
// So nothing was, or gets, visible. What a worker still writes that was only taken for dead goes
// where that of any lost attempt goes: the retry shuts it out when it begins, as the attempt
// after a crash does.
func (a *attempt) fail(ctx context.Context, cause error) (string, error) {
	if a.keeps(cause) {
		return a.writeFailed(ctx, cause, a.r.opt.Keep)
	}
	err := a.insist(ctx, func(ctx context.Context) error { return a.r.claims.Condemn(ctx, a.held, failureOf(cause)) })
	switch {
	case errors.Is(err, tasks.ErrCancelCameFirst):
		return a.cancel(ctx)
	case fault.KindOf(err) == fault.Fenced:
		a.log.Warn().AnErr("cause", cause).Msg("attempt stops: another worker has the task")
		return tasks.OutcomeLost, nil
	case err != nil:
		return "", err
	}
	if err := a.cleanUp(ctx); err != nil {
		return a.release(ctx, tasks.OutcomeLeftovers, cause)
	}
	return a.writeFailed(ctx, cause, 0)
}

// keeps is whether what the checkpoint stands for is kept for a retry: it was good, and the import
// failed for a reason that may be gone by then. A store that is full would stay so. The API whose
// records stand for images has no retry, so nothing is kept of its imports.
func (a *attempt) keeps(cause error) bool {
	passing := fault.Retryable(cause) && !errors.Is(cause, imageapi.ErrFull) || errors.Is(cause, errPoison)
	retries := a.task.Kind() == tasks.KindImport && !a.task.ListsImage
	return a.r.opt.Keep > 0 && retries && passing && a.saved && !a.publishing && a.task.Result == nil && a.task.Verdict == nil
}

// writeFailed ends the task as failed, and keeps its checkpoint that long.
func (a *attempt) writeFailed(ctx context.Context, cause error, keep time.Duration) (string, error) {
	outcome, err := a.write(ctx, string(tasks.Failed), cause, func(ctx context.Context, rec tasks.Attempt) error {
		return a.r.claims.Fail(ctx, a.held, failureOf(cause), rec, keep)
	})
	if errors.Is(err, tasks.ErrCancelCameFirst) {
		return a.cancel(ctx)
	}
	return outcome, err
}

// release gives the task back to the queue.
func (a *attempt) release(ctx context.Context, outcome string, cause error) (string, error) {
	var pause time.Duration
	if outcome != tasks.OutcomeDrained || cause != nil {
		pause = a.r.opt.Backoff(a.task.Setbacks + 1)
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

// cleanUp removes all that this import made. It ends when the claim is lost: by the time that
// another has failed the task, a retry may be making it anew.
func (a *attempt) cleanUp(ctx context.Context) error {
	a.heart.enter(tasks.StageCleaning)
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	defer context.AfterFunc(a.heart.claim, cancel)()
	err := a.job.remove(ctx)
	if err != nil {
		a.heart.stages.blame(err)
		blame(a.span, err)
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

// saveCheckpoint records a point from which the next attempt can go on, at about so many bytes of
// all that is to be read.
func (a *attempt) saveCheckpoint(ctx context.Context, checkpoint []byte, reached int64) error {
	if err := a.r.claims.SaveCheckpoint(ctx, a.held, checkpoint, reached); err != nil {
		return err
	}
	a.saved = true
	// As in the record: what follows is judged by it.
	if task := a.task; reached > task.Furthest {
		task.Furthest, task.Setbacks, task.Crashes = reached, 0, 0
	}
	return nil
}

// dropCheckpoint removes a checkpoint that is of no use. Of an import it must be gone before
// this attempt's first Sync: after that an image service cannot tell any more that the
// checkpoint is about bytes which an earlier attempt wrote.
func (a *attempt) dropCheckpoint(ctx context.Context) error {
	err := a.r.claims.SaveCheckpoint(ctx, a.held, nil, 0)
	if err == nil {
		a.saved = false
	}
	return err
}

// reading is how an attempt reads, counting in stats.
func (a *attempt) reading(stats *storage.Stats) storage.Options {
	opt := a.r.opt.Fetch
	opt.Stats, opt.Throttle = stats, &a.heart.throttle
	return opt
}

// write writes the end of the attempt and logs it. That another worker has the
// task by then is no failure of this one.
func (a *attempt) write(ctx context.Context, outcome string, cause error, do func(context.Context, tasks.Attempt) error) (string, error) {
	err := a.insist(ctx, func(ctx context.Context) error { return do(ctx, a.record(outcome, cause)) })
	switch {
	case err == nil:
		a.log.Info().AnErr("cause", cause).Str("outcome", outcome).Int64("bytes", a.heart.counters().DoneBytes).
			Float64("seconds", a.r.now().Sub(a.began).Seconds()).Msg("attempt ends")
		return outcome, nil
	case fault.KindOf(err) == fault.Fenced:
		a.log.Warn().Err(err).Str("outcome", outcome).Msg("another worker has the task; the end of this attempt is not recorded")
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
