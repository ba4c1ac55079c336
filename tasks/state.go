package tasks

import "slices"

// State is where an import stands. The words are those of the FJcloud API.
type State string

const (
	// Queued: accepted and durable, and no worker has it. The dispatcher hands
	// it to the queue; a worker's claim moves it to Processing. It comes back
	// here when an attempt fails for a passing reason, when a worker drains, or
	// when a claim runs out.
	Queued State = "queued"

	// Processing: a worker holds the current epoch and beats. If the beats
	// stop, the dispatcher moves the import back to Queued and the old epoch
	// is fenced off.
	Processing State = "processing"

	// Succeeded: the image is published, and every byte of it was verified.
	Succeeded State = "succeeded"

	// Failed: the import ended without an image, and nothing of it is left, or for a
	// while (Task.KeptUntil) no more than a Retry goes on from. The record's Failure says
	// why and what to do. A Retry, and nothing else, makes it Queued again.
	Failed State = "failed"

	// Cancelling: a cancel was accepted, and something may be left to remove.
	// It ends as Canceled and nothing else. If the worker dies, the next claim
	// only cleans up.
	Cancelling State = "cancelling"

	// Canceled: a user stopped the import, and nothing of it is left.
	Canceled State = "canceled"
)

// States lists all states, in the order of an import's life.
var States = []State{Queued, Processing, Succeeded, Failed, Cancelling, Canceled}

// next lists every legal move, and is the only place where they are written:
// the store hands its scripts their source states from here, and the diagram in
// docs/design/state-machine.md is compared with it by a test.
var next = map[State][]State{
	Queued:     {Processing, Cancelling, Canceled},
	Processing: {Queued, Succeeded, Failed, Cancelling},
	Cancelling: {Canceled},
	Failed:     {Queued},
}

// CanBecome reports whether the table allows the move from s to to.
func (s State) CanBecome(to State) bool { return slices.Contains(next[s], to) }

// Final reports whether s is an end: the service does nothing more by itself.
func (s State) Final() bool { return s == Succeeded || s == Failed || s == Canceled }

// Sources returns the states from which the table allows a move to to.
func Sources(to State) []State {
	var from []State
	for _, s := range States {
		if s.CanBecome(to) {
			from = append(from, s)
		}
	}
	return from
}

// Phase is what States come to for somebody who does not care about attempts. An import
// that waits for another attempt is still being worked on.
type Phase string

// The phases.
const (
	PhaseWaiting   Phase = "waiting"   // no worker ever had it
	PhaseWorking   Phase = "working"   // from the first claim to the end
	PhaseSucceeded Phase = "succeeded" // ended as the state of that name
	PhaseFailed    Phase = "failed"
	PhaseCanceled  Phase = "canceled"
)

// Phase returns the phase that the import is in.
func (t *Task) Phase() Phase {
	switch t.State {
	case Succeeded:
		return PhaseSucceeded
	case Failed:
		return PhaseFailed
	case Canceled:
		return PhaseCanceled
	}
	if t.Epoch == 0 {
		return PhaseWaiting
	}
	return PhaseWorking
}

// Stage is what a worker is doing for a Processing import. It is for people;
// nothing is decided from it.
type Stage string

// The stages, in order.
const (
	StageWaiting    Stage = "waiting"    // for its turn, or for the next attempt
	StageInspecting Stage = "inspecting" // header and trailer of the object
	StageCopying    Stage = "copying"    // object to image, hashing on the way
	StageConverting Stage = "converting" // what could not be written as it came is written
	StageVerifying  Stage = "verifying"  // hashes, and the image made durable
	StagePublishing Stage = "publishing" // the image becomes visible
	StageCleaning   Stage = "cleaning"   // what the import made is removed
	StageDone       Stage = "done"
)
