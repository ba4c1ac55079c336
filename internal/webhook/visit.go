package webhook

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"vmimport/tasks"
)

const (
	// batch is how many changes are read at a time: those that are sent by all visits of
	// all receivers are in memory together.
	batch = 50
	// maxRefusals is how often an event is sent that its receiver refuses for good: who
	// puts a new receiver into service may be late with it.
	maxRefusals = 5
)

// A visit delivers what there is of one tenant, in order.
type visit struct {
	*courier
	tenant tasks.Tenant
	stored tasks.Cursor // as it is in the store
	at     tasks.Cursor // where the visit is: changes between the two are of no interest
}

// visit delivers up to a batch, or until a delivery fails.
func (c *courier) visit(ctx context.Context, t tasks.Tenant) outcome {
	v := visit{courier: c, tenant: t}
	o, err := v.run(ctx)
	o.tenant = t
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, tasks.ErrCursorMoved): // the lead is elsewhere, or will soon be here again
		o.more, o.wait = true, c.timing.renew
	default:
		o.more, o.wait = true, c.timing.storeWait
		c.log.Warn().Err(err).Str("tenant", string(t)).Msg("webhooks cannot be sent")
	}
	return o
}

func (v *visit) run(ctx context.Context) (outcome, error) {
	var err error
	if v.stored, err = v.outbox.Cursor(ctx, v.ID, v.tenant); err != nil {
		return outcome{}, err
	}
	v.at = v.stored
	if !v.at.NotBefore.IsZero() {
		now, err := v.outbox.Now(ctx)
		if err != nil {
			return outcome{}, err
		}
		if wait := v.at.NotBefore.Sub(now); wait > 0 {
			return outcome{more: true, wait: wait, since: v.at.Since}, nil
		}
	}
	changes, err := v.journal.Changes(ctx, v.tenant, v.at.Mark, batch)
	if errors.Is(err, tasks.ErrMarkGone) {
		// Whatever is kept comes after the gap.
		wait, err := v.offer(ctx, resetEvent(v.tenant, v.at.Mark), "")
		return outcome{more: true, wait: wait}, err
	}
	if err != nil {
		return outcome{}, err
	}
	for i := range changes {
		c := &changes[i]
		if !v.wants(c) {
			v.at = tasks.Cursor{Mark: c.Mark}
			continue
		}
		if wait, err := v.offer(ctx, stateEvent(v.tenant, c), c.Mark); wait > 0 || err != nil {
			return outcome{more: true, wait: wait, since: c.At}, err
		}
	}
	if v.at != v.stored {
		if err := v.move(ctx, v.at); err != nil {
			return outcome{}, err
		}
	}
	if len(changes) < batch {
		return outcome{}, nil
	}
	return outcome{more: true, since: changes[len(changes)-1].At}, nil
}

// offer makes one delivery, and moves the cursor: to mark if nothing remains to be done for
// the event, else to when it is tried again, which is after wait.
func (v *visit) offer(ctx context.Context, e event, mark string) (wait time.Duration, err error) {
	body, err := e.body()
	if err != nil {
		return 0, err
	}
	bounded, cancel := context.WithTimeout(ctx, v.timing.deliver)
	failure := v.endpoint.deliver(bounded, e.ID, body)
	cancel()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if failure == nil {
		v.observe.Tried(v.ID, Delivered)
		return 0, v.move(ctx, tasks.Cursor{Mark: mark})
	}
	now, err := v.outbox.Now(ctx)
	if err != nil {
		return 0, err
	}
	next := v.again(failure, now)
	log := v.log.Warn().Err(failure).Str("tenant", string(v.tenant)).Str("event", e.ID).Int("tries", next.Tries)
	if e.change != nil {
		log = log.Str("task", string(e.TaskID)).Str("state", string(e.State))
	}
	if next.Refusals >= maxRefusals || now.Sub(next.Since) >= v.timing.giveUp {
		v.observe.Tried(v.ID, GivenUp)
		log.Msg("webhook given up")
		return 0, v.move(ctx, tasks.Cursor{Mark: mark})
	}
	v.observe.Tried(v.ID, Failed)
	wait = next.NotBefore.Sub(now)
	log.Dur("again_after", wait).Msg("webhook failed")
	return wait, v.move(ctx, next)
}

// again returns the cursor after a delivery has failed.
func (v *visit) again(failure error, now time.Time) tasks.Cursor {
	next := v.at
	next.Tries++
	if next.Since.IsZero() {
		next.Since = now.Truncate(time.Millisecond)
	}
	wait := v.timing.backoff(next.Tries)
	if r, ok := errors.AsType[*refusal](failure); ok {
		wait = max(wait, min(r.retryAfter, v.timing.lastWait))
		if r.final() {
			next.Refusals++
		}
	}
	next.NotBefore = now.Add(wait).Truncate(time.Millisecond)
	return next
}

func (v *visit) move(ctx context.Context, to tasks.Cursor) error {
	if err := v.outbox.MoveCursor(ctx, v.ID, v.tenant, v.stored, to); err != nil {
		return err
	}
	v.stored, v.at = to, to
	return nil
}

// backoff returns the pause after so many failed tries. It doubles, from firstWait to
// lastWait, and is up to half as short, so that those who failed together do not come back
// together.
func (t *timing) backoff(tries int) time.Duration {
	wait := t.lastWait
	if tries <= 30 { // more would overflow
		wait = min(wait, 2*t.firstWait<<(tries-1))
	}
	return wait/2 + rand.N(wait/2+1)
}
