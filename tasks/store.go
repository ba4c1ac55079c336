package tasks

import (
	"context"
	"time"

	"vmimport/internal/fault"
)

// Errors that the store returns for a rule broken, to be tested with errors.Is.
var (
	ErrUnknown         = fault.New(fault.NotFound, "import_not_found", "No such import.")
	ErrFinished        = fault.New(fault.Conflict, "import_finished", "The import has already finished.")
	ErrCancelRequested = fault.New(fault.Conflict, "cancel_requested", "A cancel of this import was already accepted.")
	ErrNameInUse       = fault.New(fault.Conflict, "name_in_use", "The image name is already in use.")
	ErrImageIDInUse    = fault.New(fault.Conflict, "image_id_in_use", "The image id is already used by an image or an unfinished import.")
	ErrTokenMismatch   = fault.New(fault.Conflict, "client_token_mismatch", "The client token was used with other parameters.")
	ErrTooManyImports  = fault.New(fault.Exhausted, "too_many_imports", "Too many imports are unfinished.").Try("Wait until some have finished, or cancel them.")
	ErrFenced          = fault.New(fault.Fenced, "fenced", "Another worker has the import.")
	ErrNotClaimable    = fault.New(fault.Fenced, "not_claimable", "The import needs no worker.")
	ErrCancelCameFirst = fault.New(fault.Canceled, "cancel_came_first", "The import was canceled before the image was published.")
)

// Limits bound what a tenant may have. Zero means no bound.
type Limits struct {
	Unfinished int // imports in a state that is not final
}

// Scope selects records of one region: all of a tenant, or those of one of its
// projects.
type Scope struct {
	Region  string
	Tenant  Tenant
	Project string // empty: every project of the tenant
}

// Records is the store as the API sees it. Every method is one atomic step.
type Records interface {
	// Create makes spec durable as a Queued import and returns it.
	//
	// A repeated ClientToken returns the first import, with fresh false, if the
	// fingerprint is the same, else ErrTokenMismatch. ErrNameInUse,
	// ErrImageIDInUse and ErrTooManyImports name the rule that spec breaks;
	// then nothing was written, and the token is not used up.
	Create(ctx context.Context, spec *Spec, limits Limits) (imp *Import, fresh bool, err error)

	// Get returns ErrUnknown for a record that never was or has expired, and
	// for one outside of scope; callers cannot tell these apart.
	Get(ctx context.Context, scope Scope, id ID) (*Import, error)

	// List returns up to limit records from index start on, newest first.
	// Past the end it returns none.
	List(ctx context.Context, scope Scope, start, limit int) ([]*Import, error)

	// Cancel accepts a cancel, exactly once for an import: later calls return
	// ErrCancelRequested. An import that no worker ever had is Canceled at
	// once; otherwise it becomes Cancelling, and a worker cleans up.
	// ErrFinished: it has ended, or its image is being published.
	Cancel(ctx context.Context, scope Scope, id ID, now time.Time) (State, error)
}

// Progress is what a worker reports with each beat.
type Progress struct {
	Percent int // 0 to 99; the record keeps the highest ever reported
	Stage   Stage
	Counters
}

// Claims is the store as a worker sees it.
//
// All methods but Claim write under held and return ErrFenced, having changed
// nothing, if another claim came after it or the record is gone.
type Claims interface {
	// Claim takes a Queued import, or a Cancelling one that nobody holds, under
	// a new epoch, for the length of lease. ErrNotClaimable: it is in another
	// state, or a live claim exists; there is nothing to do.
	Claim(ctx context.Context, ref Ref, worker string, lease time.Duration, now time.Time) (*Claimed, error)

	// Beat extends the claim, stores p, and returns the state: Processing to go
	// on, Cancelling when a cancel was accepted.
	Beat(ctx context.Context, held Held, p Progress, lease time.Duration, now time.Time) (State, error)

	// SaveCheckpoint stores the point from which the next attempt may go on,
	// opaque to the store, and forgives earlier crashes: progress was made.
	// An empty checkpoint removes the stored one, and forgives nothing.
	SaveCheckpoint(ctx context.Context, held Held, checkpoint []byte) error

	// BeginPublish is the step that excludes a cancel. ErrCancelCameFirst: the
	// import is Cancelling, and the caller removes what it made.
	BeginPublish(ctx context.Context, held Held, res *Result, now time.Time) error

	// Succeed ends the import, after BeginPublish.
	Succeed(ctx context.Context, held Held, attempt Attempt) error

	// Fail ends the import with its cause. If a cancel came first it returns
	// ErrCancelCameFirst and changes nothing.
	Fail(ctx context.Context, held Held, cause Failure, attempt Attempt) error

	// Canceled ends a Cancelling import, after everything of it was removed.
	Canceled(ctx context.Context, held Held, attempt Attempt) error

	// Release gives the claim back: a Processing import is Queued again, a
	// Cancelling one stays so, and neither is dispatched before notBefore.
	// Whether the attempt counts as a setback is decided by its Outcome.
	Release(ctx context.Context, held Held, notBefore time.Time, attempt Attempt) error
}

// Claimed is what Claim returns: the record, the claim on it, and the last
// checkpoint (nil if there is none).
type Claimed struct {
	Import     *Import
	Held       Held
	Checkpoint []byte
}

// Load is how much of a tenant's work stands where.
type Load struct {
	Urgent     int // waiting for the clean-up after a cancel
	Due        int // waiting, and due for dispatch; Urgent included
	Waiting    int // waiting in all
	Dispatched int // given to the queue, not yet claimed
	Running    int // under a claim
}

// Ticket is one handing of an import to the queue. Number counts an import's
// tickets, so that each has a queue task of its own; Cleanup marks an import
// that is Cancelling and only has leftovers to remove.
type Ticket struct {
	Ref
	Number  int64
	Cleanup bool
}

// Backlog is the store as the dispatcher sees it. One dispatcher leads at a
// time; every method is safe even if two believe that they do.
type Backlog interface {
	// Lead takes or keeps the lead for ttl, and reports whether who has it.
	Lead(ctx context.Context, who string, ttl time.Duration) (bool, error)
	// Resign gives the lead back if who has it.
	Resign(ctx context.Context, who string) error

	// Tenants returns those that may have unfinished or expired records.
	Tenants(ctx context.Context, now time.Time) ([]Tenant, error)
	// Load counts a tenant's unfinished imports.
	Load(ctx context.Context, tenant Tenant, now time.Time) (Load, error)

	// Dispatch moves up to n due imports from waiting to dispatched, urgent
	// ones first, then those due longest, and returns their tickets. The caller
	// enqueues them.
	Dispatch(ctx context.Context, tenant Tenant, n int, now time.Time) ([]Ticket, error)
	// Unclaimed returns tickets that were dispatched before a time and are
	// not claimed yet.
	Unclaimed(ctx context.Context, tenant Tenant, before time.Time) ([]Ticket, error)
	// Recall moves a ticket's import back to waiting. It does nothing if the
	// import has been claimed or dispatched anew.
	Recall(ctx context.Context, t Ticket, now time.Time) error

	// Expired returns the records whose claims ran out before now.
	Expired(ctx context.Context, tenant Tenant, now time.Time) ([]*Import, error)
	// Expire takes the claim from a worker that is taken for dead, counts a
	// crash, and puts the import back to waiting. ErrFenced: the claim is not
	// the current one any more, or was extended.
	Expire(ctx context.Context, held Held, attempt Attempt, now time.Time) error

	// Unfinished reports whether a tenant has an unfinished import of that id.
	Unfinished(ctx context.Context, ref Ref) (bool, error)

	// Purge removes up to n records whose retention has passed, and forgets a
	// tenant that has nothing left. It returns how many records it removed.
	Purge(ctx context.Context, tenant Tenant, n int, now time.Time) (int, error)
}

// Signals carries hints between processes. They may be lost: whoever listens
// must also look at the record from time to time.
type Signals interface {
	// Listen calls onWork when there may be something to dispatch and onCancel
	// when a cancel was accepted, until ctx ends.
	Listen(ctx context.Context, onWork func(), onCancel func(ID)) error
}
