package pipeline

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"vmimport/internal/fault"
	"vmimport/storage"
	"vmimport/tasks"
)

// heart keeps a claim alive and carries news both ways: progress to the record,
// a cancel, the loss of the claim or another share of the bandwidth to the attempt.
//
// An error of the store is no news. The attempt goes on without it, since
// nothing irreversible happens without the store's consent, and the claim may
// well be alive when the store is back.
type heart struct {
	attempt *attempt
	stop    context.CancelCauseFunc // of the attempt
	nudged  chan struct{}
	ended   chan struct{}

	disk  atomic.Int64
	base  atomic.Int64 // bytes that were done before stats began to count
	rate  atomic.Int64 // bytes per second, smoothed
	stats storage.Stats

	allowance int64 // bytes per second of all of the tenant's tasks together; 0: no bound
	throttle  storage.Throttle

	stages stages
	moved  moved

	claim context.Context // ends when the claim is known to be lost
	lose  context.CancelFunc

	// For run's goroutine alone, to measure the rate.
	lastDone int64
	lastSeen int64 // done and received
	lastAt   time.Time
	quiet    int // measures since anything came
}

const (
	// rateMemory is how much of the old rate a new beat keeps.
	rateMemory = 0.7
	// quietBeats is how many beats without a byte are a standstill, and no slow source.
	quietBeats = 5
)

func newHeart(a *attempt, stop context.CancelCauseFunc) *heart {
	h := &heart{
		attempt: a, stop: stop, nudged: make(chan struct{}, 1), ended: make(chan struct{}), lastAt: time.Now(),
		allowance: a.r.opt.Policy.For(a.task.Owner.Tenant).BytesPerSecond,
	}
	h.claim, h.lose = context.WithCancel(context.Background())
	if h.allowance > 0 {
		h.share(1)
		h.nudge() // the first beat tells who else reads
	}
	return h
}

// enter says what the attempt does now.
func (h *heart) enter(stage tasks.Stage) { h.stages.enter(h.attempt, stage) }

// share sets the pace, while that many of the tenant's tasks run.
func (h *heart) share(running int) {
	if h.allowance > 0 {
		h.throttle.Limit(max(1, h.allowance/int64(max(1, running))))
	}
}

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
	h.moved.tell(h.attempt)
	// A beat that hangs must not stand in the way of the next.
	ctx, cancel := context.WithTimeout(ctx, r.opt.Lease/2)
	defer cancel()
	pulse, err := r.claims.Beat(ctx, h.attempt.held, h.progress(), r.opt.Lease)
	switch {
	case fault.KindOf(err) == fault.Fenced:
		h.lose()
		h.stop(tasks.ErrClaimLost)
	case err != nil:
		if ctx.Err() == nil {
			h.attempt.log.Warn().Err(err).Msg("beat failed")
		}
	case pulse.State == tasks.Cancelling:
		h.stop(tasks.ErrUserCanceled)
	default:
		h.share(pulse.Running)
	}
}

// close tells what has not been told yet. It is called when the work and run have ended.
func (h *heart) close() {
	h.moved.tell(h.attempt)
	h.stages.enter(h.attempt, "")
	h.lose()
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
	// What comes to nothing comes to it slowly. Somebody who looks wants to see a standstill.
	seen := done + h.stats.Received.Load()
	if h.quiet++; seen > h.lastSeen {
		h.quiet, h.lastSeen = 0, seen
	}
	if h.quiet >= quietBeats {
		h.rate.Store(0)
	}
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
	p := tasks.Progress{Stage: h.stages.now(), Counters: h.counters()}
	if total := h.attempt.task.TotalBytes(); total > 0 {
		// 100 is for the record alone to say.
		p.Percent = int(float64(p.DoneBytes) / float64(total) * 99)
	}
	return p
}

// moved is what the observer was told of an attempt's figures. Beats come from several
// goroutines, and each byte is told once.
type moved struct {
	mu                     sync.Mutex
	bytes, retries, stalls int64
}

func (m *moved) tell(a *attempt) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &a.heart.stats
	bytes, retries, stalls := s.Received.Load(), s.Retries.Load(), s.Stalls.Load()
	a.r.opt.Observe.Moved(a.task.Kind(), a.task.Region, bytes-m.bytes, retries-m.retries, stalls-m.stalls)
	m.bytes, m.retries, m.stalls = bytes, retries, stalls
}
