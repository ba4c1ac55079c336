package pipeline

import (
	"context"
	"sync/atomic"
	"time"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// heart keeps a claim alive and carries news both ways: progress to the record,
// a cancel or the loss of the claim to the attempt.
//
// An error of the store is no news. The attempt goes on without it, since
// nothing irreversible happens without the store's consent, and the claim may
// well be alive when the store is back.
type heart struct {
	attempt *attempt
	stop    context.CancelCauseFunc // of the attempt
	nudged  chan struct{}
	ended   chan struct{}

	stage atomic.Pointer[tasks.Stage]
	disk  atomic.Int64
	base  atomic.Int64 // bytes that were done before stats began to count
	rate  atomic.Int64 // bytes per second, smoothed
	stats storage.Stats

	// For run's goroutine alone, to measure the rate.
	lastDone int64
	lastAt   time.Time
}

// rateMemory is how much of the old rate a new beat keeps.
const rateMemory = 0.7

func newHeart(a *attempt, stop context.CancelCauseFunc) *heart {
	h := &heart{attempt: a, stop: stop, nudged: make(chan struct{}, 1), ended: make(chan struct{}), lastAt: time.Now()}
	h.enter(tasks.StageInspecting)
	return h
}

// enter says what the attempt does now.
func (h *heart) enter(stage tasks.Stage) { h.stage.Store(&stage) }

// nudge makes the heart beat at once.
func (h *heart) nudge() {
	select {
	case h.nudged <- struct{}{}:
	default: // it is about to
	}
}

// run beats until ctx ends.
func (h *heart) run(ctx context.Context) {
	defer close(h.ended)
	tick := time.NewTicker(h.attempt.r.opt.BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h.measure()
		case <-h.nudged:
		}
		h.beat(ctx)
	}
}

// beat may be called by any goroutine.
func (h *heart) beat(ctx context.Context) {
	r := h.attempt.r
	// A beat that hangs must not stand in the way of the next.
	ctx, cancel := context.WithTimeout(ctx, r.opt.Lease/2)
	defer cancel()
	state, err := r.claims.Beat(ctx, h.attempt.held, h.progress(), r.opt.Lease)
	switch {
	case fault.KindOf(err) == fault.Fenced:
		h.stop(tasks.ErrClaimLost)
	case err != nil:
		if ctx.Err() == nil {
			h.attempt.log.Warn().Err(err).Msg("beat failed")
		}
	case state == tasks.Cancelling:
		h.stop(tasks.ErrUserCanceled)
	}
}

// measure updates the rate.
func (h *heart) measure() {
	now, done := time.Now(), h.stats.Done.Load()
	if d := now.Sub(h.lastAt).Seconds(); d > 0 {
		rate := float64(done-h.lastDone) / d
		if h.lastDone > 0 {
			rate = rateMemory*float64(h.rate.Load()) + (1-rateMemory)*rate
		}
		h.rate.Store(int64(rate))
	}
	h.lastAt, h.lastDone = now, done
}

func (h *heart) counters() tasks.Counters {
	return tasks.Counters{
		Disk:           int(h.disk.Load()),
		DoneBytes:      h.base.Load() + h.stats.Done.Load(),
		BytesPerSecond: h.rate.Load(),
		Retries:        h.stats.Retries.Load(),
		Stalls:         h.stats.Stalls.Load(),
	}
}

func (h *heart) progress() tasks.Progress {
	p := tasks.Progress{Stage: *h.stage.Load(), Counters: h.counters()}
	if total := h.attempt.task.TotalBytes(); total > 0 {
		// 100 is for the record alone to say.
		p.Percent = int(float64(p.DoneBytes) / float64(total) * 99)
	}
	return p
}
