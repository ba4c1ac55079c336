package servers

import (
	"cmp"
	"context"
	"time"
)

// Phase is what is going on, in a word.
type Phase string

// The phases.
const (
	Stopping Phase = "stopping" // a server
	Starting Phase = "starting" // a server
	Waiting  Phase = "waiting"  // until the cloud makes another image of this project
	Imaging  Phase = "imaging"  // an image is being made
)

// State is how far something is at one moment.
type State struct {
	Phase    Phase
	ServerID string
	ImageID  string    // once it is known
	Status   string    // of the server, or in Imaging of the image, as the cloud says
	Task     string    // the server's task
	Until    time.Time // in Waiting
	Trouble  string    // why there is no newer state; it is asked again. Mostly empty.
}

// pace is how long to wait between two looks: more and more, but soon again after a
// change.
type pace struct {
	wait time.Duration
	seen State
}

const (
	firstWait = time.Second
	lastWait  = 10 * time.Second
)

// pause waits before the next look, and not less than atLeast. It returns the cause of
// ctx's end.
func (p *pace) pause(ctx context.Context, atLeast time.Duration) error {
	p.wait = min(cmp.Or(p.wait*3/2, firstWait), lastWait)
	return sleep(ctx, max(p.wait, atLeast))
}

// look reports a state, after a change of which the looks are frequent again.
func (p *pace) look(s State, report func(State)) {
	if s != p.seen {
		p.seen, p.wait = s, 0
	}
	report(s)
}

// hold is how long to hold back before the next request, and why; zero if there is no
// reason to.
type hold struct {
	atLeast time.Duration
	trouble string
}

// again tells the errors after which the same is tried again from those that are
// final, which it returns as faults.
func again(err error) (hold, error) {
	if f, ok := err.(*failure); ok && f.passing() { // one that is wrapped has a meaning already
		return hold{f.retryAfter, f.Error()}, nil
	}
	return hold{}, meaning(err)
}

// patience is how long a service that gives no good answer is asked again.
const patience = 15 * time.Minute

// insist does something that may be done twice, again and again while it fails for a
// passing reason. Its errors are faults.
func insist(ctx context.Context, now State, report func(State), do func() error) error {
	var pace pace
	began := time.Now()
	for {
		failed := do()
		wait, err := again(failed)
		if err != nil || wait.trouble == "" {
			return err
		}
		if time.Since(began)+wait.atLeast > patience {
			return meaning(failed)
		}
		now.Trouble = wait.trouble
		pace.look(now, report)
		if err := pace.pause(ctx, wait.atLeast); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
