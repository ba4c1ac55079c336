package tasks

import (
	"context"
	"time"

	"vmimport/internal/fault"
)

// Change is one move of a task from one state to another, as the journal has it.
type Change struct {
	// Mark is the change's place in the journal of its tenant, 1 to MaxMark characters of
	// which only equality means something to anybody but the store.
	Mark     string
	ID       ID
	Kind     Kind
	Region   string
	Project  string
	Dialect  string
	Name     string // Spec.Name
	State    State  // that it came to
	Progress int
	Epoch    Epoch     // of the last claim then
	At       time.Time // by the store's clock
	Failure  *Failure  // if State is Failed
}

// MaxMark bounds the length of a Mark.
const MaxMark = 64

// ErrMarkGone is the failure of Changes when the journal does not reach back to a mark, or
// the mark is none.
var ErrMarkGone = fault.New(fault.NotFound, "mark_gone", "The events after that one are no longer kept.").Try("Read the list anew.")

// Journal is the history of all tasks of a tenant, as those see it who follow it. Every
// change of a state is written into it in the step that changes the state, so that none can
// be missed; the oldest are dropped beyond some thousands.
type Journal interface {
	// Changes returns up to limit changes that follow the mark, oldest first. An empty mark
	// is before all that is kept.
	Changes(ctx context.Context, tenant Tenant, after string, limit int) ([]Change, error)

	// Latest returns the mark of the tenant's last change; with an empty journal "".
	Latest(ctx context.Context, tenant Tenant) (string, error)

	// Running returns up to limit tasks under a claim, without their attempts.
	Running(ctx context.Context, tenant Tenant, limit int) ([]*Task, error)

	// Follow calls onChange for tenants whose journal has grown, until ctx ends. It is a
	// hint, as those of Signals are: some may be lost. onChange must not block.
	Follow(ctx context.Context, onChange func(Tenant)) error
}
