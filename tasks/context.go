package tasks

import (
	"context"
	"errors"
)

// Why an attempt is told to stop. The reason travels as the cause of its
// context (context.Cause), so that every layer below sees plain cancellation.
var (
	// ErrDraining: this worker shuts down. The import goes back to the queue
	// and the attempt costs it nothing.
	ErrDraining = errors.New("worker is draining")
	// ErrUserCanceled: a cancel was accepted. What was made is removed.
	ErrUserCanceled = errors.New("import was canceled by a user")
	// ErrTaskLost: the queue has given the attempt up, most likely since it could
	// not reach Redis for a while. The claim may well be alive, so the import is
	// given back as by a worker that drains.
	ErrTaskLost = errors.New("queue gave the task up")
	// ErrClaimLost: another worker has the task, or is about to. Stop
	// without writing.
	ErrClaimLost = errors.New("claim on the import was lost")
)

// Handler runs one attempt on an import, from claim to the end. It returns the
// attempt's outcome, or "" if there was nothing to do.
//
// An error means that the record could not be brought to what the attempt's end
// calls for; the dispatcher will find it by its claim running out.
type Handler func(ctx context.Context, ref Ref) (outcome string, err error)
