package tasks

import (
	"context"
	"time"

	"vmimport/internal/fault"
)

// Cursor is how far a receiver of events has come in the journal of one tenant, and what
// became of the change that is next.
type Cursor struct {
	// Mark is that of the last change that is done with; empty: before all that is kept.
	Mark string
	// Tries counts the deliveries of the next change that have failed, and Refusals those of
	// them that the receiver refused for good.
	Tries, Refusals int
	// Since is when the first of them failed, and NotBefore when the next may begin, both
	// in whole milliseconds. Zero: none has failed.
	Since, NotBefore time.Time
}

// ErrCursorMoved is the failure of MoveCursor when somebody else has moved the cursor.
var ErrCursorMoved = fault.New(fault.Fenced, "cursor_moved", "Another process delivers these events.")

// Outbox is the store as the sender of events sees it, beside Journal. Receivers are known
// by names that the configuration gives them. What a receiver has not been told of it can
// be told later, as long as the journal keeps it; a receiver that nobody leads for is
// forgotten some weeks after the records.
type Outbox interface {
	// Now reads the store's clock.
	Now(ctx context.Context) (time.Time, error)

	// LeadReceiver takes or keeps for ttl the right to send to a receiver, and reports
	// whether who has it. The first time that it is taken is where a receiver begins: it is
	// told of all changes that come after, and of none that came a second before.
	LeadReceiver(ctx context.Context, receiver, who string, ttl time.Duration) (bool, error)
	// ResignReceiver gives that right back if who has it.
	ResignReceiver(ctx context.Context, receiver, who string) error

	// Behind returns the tenants with changes that are not done with, in few round trips.
	Behind(ctx context.Context, receiver string) ([]Tenant, error)
	// Cursor returns where a receiver is; that is where it begins if no cursor was moved.
	Cursor(ctx context.Context, receiver string, tenant Tenant) (Cursor, error)
	// MoveCursor moves the cursor on, if it still is where its mover believes it to be:
	// else ErrCursorMoved.
	MoveCursor(ctx context.Context, receiver string, tenant Tenant, from, to Cursor) error
}
