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
	ErrTooManyImages   = fault.New(fault.Exhausted, "too_many_images", "The quota of images is used up.").Try("Delete images that are not needed.")
	ErrTooManyDisks    = fault.New(fault.Exhausted, "too_many_disks", "The quota of disks of images is used up.").Try("Delete images that are not needed.")
	ErrImageImporting  = fault.New(fault.Conflict, "image_importing", "The image is still being imported.").Try("Cancel the import, or wait for its end.")
	ErrImageRemoving   = fault.New(fault.Conflict, "image_removing", "The image is being removed.")
	ErrTooManyImports  = fault.New(fault.Exhausted, "too_many_imports", "Too many imports are unfinished.").Try("Wait until some have finished, or cancel them.")
	ErrNameExporting   = fault.New(fault.Conflict, "name_exporting", "An image of that name is being exported to the container already.").Try("Wait until that export has ended.")
	ErrImageExporting  = fault.New(fault.Conflict, "image_exporting", "The image is being exported to the container already.").Try("Wait until that export has ended, or cancel it.")
	ErrNotFailed       = fault.New(fault.Conflict, "not_failed", "Only what has failed can be tried again.")
	ErrCleaning        = fault.New(fault.Conflict, "cleaning_up", "What the failed attempt has kept is being removed.").Try("Try again in a minute.")
	ErrFenced          = fault.New(fault.Fenced, "fenced", "Another worker has the import.")
	ErrNotClaimable    = fault.New(fault.Fenced, "not_claimable", "The import needs no worker.")
	ErrCancelCameFirst = fault.New(fault.Canceled, "cancel_came_first", "The import was canceled before the image was published.")
)

// Limits bound what a tenant may have. Zero means no bound.
type Limits struct {
	Unfinished int // imports in a state that is not final, and images being removed
	Quota
}

// Quota bounds the images of imports with Spec.ListsImage, in each region and dialect:
// those that exist, and those that are being imported. Zero means no bound.
type Quota struct {
	Images int
	Disks  int // of these images
}

// Scope selects records of one region: all of a tenant, or those of one of its
// projects.
type Scope struct {
	Region  string
	Tenant  Tenant
	Project string // empty: every project of the tenant
	Dialect string // that the tasks came in through; List and Find need it, for others it may be empty: any
	Kind    Kind   // empty: KindImport
}

// Query selects records of a Scope. The zero value selects all.
type Query struct {
	Phases []Phase // any of these; none: all
	Images bool    // only those whose image is not deleted
	IDs    []ID    // only these, unless nil
	Name   string  // only those of that name, which have it reserved (Spec.UniqueName); empty: all
	// Match is asked about each record that all of the above leaves; nil: yes. A
	// query that has it takes longer the more records there are, not the further
	// Start is. So does one for a name in phases in which names are given back.
	Match func(*Task) bool

	Start, Limit int // of what is selected, newest first
}

// All times that decide something are read from the store's own clock, so that
// clocks of different machines need not agree.

// Records is the store as the API sees it. Every method is one atomic step.
type Records interface {
	// Create makes spec durable as a Queued import and returns it.
	//
	// A repeated ClientToken returns the first import, with fresh false, if the
	// fingerprint is the same, else ErrTokenMismatch. ErrNameInUse,
	// ErrImageIDInUse, ErrTooManyImports and, of exports, ErrNameExporting and
	// ErrImageExporting name the rule that spec breaks; then nothing was written, and
	// the token is not used up.
	Create(ctx context.Context, spec *Spec, limits Limits) (task *Task, fresh bool, err error)

	// Admit returns what Create would at this moment, and writes nothing: the import
	// of a repeated ClientToken, the error, or nil for a new import.
	Admit(ctx context.Context, spec *Spec, limits Limits) (*Task, error)

	// Get returns ErrUnknown for a record that never was or has expired, and
	// for one outside of scope; callers cannot tell these apart.
	Get(ctx context.Context, scope Scope, id ID) (*Task, error)

	// List returns up to limit records from index start on, newest first.
	// Past the end it returns none.
	List(ctx context.Context, scope Scope, start, limit int) ([]*Task, error)

	// Find returns what q selects of the imports with Spec.ListsImage, newest
	// first and without their attempts, and how many there are without q.Limit.
	Find(ctx context.Context, scope Scope, q Query) (found []*Task, total int, err error)

	// DeleteImage accepts the deletion of an import's image, exactly once. From then
	// on the image is not listed, its name and quota are free, and a worker removes
	// it. ErrImageImporting: the import has not ended. ErrImageRemoving: a worker
	// is at it. ErrUnknown: there is none, or not any more.
	DeleteImage(ctx context.Context, scope Scope, id ID) error

	// Cancel accepts a cancel, exactly once for an import: later calls return
	// ErrCancelRequested. An import that no worker ever had is Canceled at
	// once; otherwise it becomes Cancelling, and a worker cleans up.
	// ErrFinished: it has ended, or its image is being published.
	Cancel(ctx context.Context, scope Scope, id ID) (State, error)

	// Retry makes a Failed task Queued again, exactly once for each failure: it takes its
	// name, its image id and its part of the limits anew, and goes on from its checkpoint
	// if that was kept (Task.KeptUntil). Setbacks and crashes are forgiven. ErrNotFailed:
	// it is in another state. ErrCleaning: what was kept is being removed just now. The
	// errors of Create name a rule that it breaks by now.
	Retry(ctx context.Context, scope Scope, id ID, limits Limits) error

	// Place says where a Queued task stands.
	Place(ctx context.Context, ref Ref) (Place, error)
}

// Progress is what a worker reports with each beat.
type Progress struct {
	Percent int // 0 to 99; the record keeps the highest ever reported
	Stage   Stage
	Counters
}

// Pulse is what a beat brings back.
type Pulse struct {
	State   State // Processing to go on, Cancelling when a cancel was accepted
	Running int   // tasks of the tenant under claims, this one among them
}

// Claims is the store as a worker sees it.
//
// All methods but Claim, Fate and CleanAgain write under held and return ErrFenced, having changed
// nothing, if another claim came after it or the record is gone.
type Claims interface {
	// Claim takes an import that nobody holds, under a new epoch and for the length of
	// lease: a Queued one that is due, or one of which something is to be removed, as it
	// is Cancelling or its image was deleted. ErrNotClaimable: there is nothing to do.
	Claim(ctx context.Context, ref Ref, worker string, lease time.Duration) (*Claimed, error)

	// Fate returns the state of a task, whoever has it. ErrUnknown: its record is gone.
	Fate(ctx context.Context, ref Ref) (State, error)

	// CleanAgain hands a Failed task out for a clean-up, as if something had been kept of it
	// until now: for a worker that has lost it, and has stored something too late. It removes
	// nothing itself, for that may be a Retry's by then. In other states nothing happens.
	CleanAgain(ctx context.Context, ref Ref) error

	// Beat extends the claim by lease from now, stores p, and returns how things stand.
	Beat(ctx context.Context, held Held, p Progress, lease time.Duration) (Pulse, error)

	// SaveCheckpoint stores the point from which the next attempt may go on,
	// opaque to the store. If it lies further than any before, at reached bytes
	// of the whole import, earlier crashes and setbacks are forgiven. An empty
	// checkpoint removes the stored one.
	SaveCheckpoint(ctx context.Context, held Held, checkpoint []byte, reached int64) error

	// Reassign gives the import another image id, before it has begun to publish.
	// ErrImageIDInUse: another import has that one. ErrCancelCameFirst: the import
	// is Cancelling.
	Reassign(ctx context.Context, held Held, imageID string) error

	// BeginPublish is the step that excludes a cancel. ErrCancelCameFirst: the
	// import is Cancelling, and the caller removes what it made.
	BeginPublish(ctx context.Context, held Held, res *Result) error

	// Succeed ends the import, after BeginPublish.
	Succeed(ctx context.Context, held Held, attempt Attempt) error

	// Condemn is the step that excludes a success: from then on all attempts only
	// remove what the import made, and end it by Fail. Nothing may be removed
	// before, for another worker may have published it. ErrCancelCameFirst: the
	// import is Cancelling.
	Condemn(ctx context.Context, held Held, verdict Failure) error

	// Fail ends the import with its cause. If a cancel came first it returns
	// ErrCancelCameFirst and changes nothing. With keep, the checkpoint and what it stands
	// for stay for that long, for a Retry; then the task is handed out for a clean-up,
	// which ends by Removed. Nothing may be kept that has begun to publish.
	Fail(ctx context.Context, held Held, cause Failure, attempt Attempt, keep time.Duration) error

	// Canceled ends a Cancelling import, after everything of it was removed.
	Canceled(ctx context.Context, held Held, attempt Attempt) error

	// Removed ends the removal of a deleted image, or of what was kept of a failed task,
	// after nothing of it is left.
	Removed(ctx context.Context, held Held, attempt Attempt) error

	// Release gives the claim back: a Processing import is Queued again, to be
	// dispatched after pause. OutcomeRetry and OutcomeLeftovers count as a
	// setback. An import that is Cancelling, or whose image was deleted, stays what it is
	// if the outcome is OutcomeLeftovers; for any other one Release returns
	// ErrCancelCameFirst and changes nothing.
	Release(ctx context.Context, held Held, pause time.Duration, attempt Attempt) error
}

// Claimed is what Claim returns: the record, the claim on it, and the last
// checkpoint (nil if there is none).
type Claimed struct {
	Task       *Task
	Held       Held
	Checkpoint []byte
}

// Load is how much of a tenant's work stands where, at one moment.
type Load struct {
	Waiting    int // for dispatch, or for the pause before the next attempt
	Due        int // of those, ready for dispatch
	Dispatched int // given to the queue, not yet claimed
	Running    int // under a claim

	Cleanups  int // of canceled imports and deleted images, to be dispatched now
	Expired   int // of Running, those whose claim has run out
	Unclaimed int // of all tickets, those that nobody claimed for a while
	Ended     int // records whose retention has passed
	Open      int // unfinished imports in all, images being removed, and what was kept of failed ones
	// Oldest is since when the first of Due has been; zero if there is none.
	Oldest time.Time
}

// Ticket is one handing of an import to the queue. Number counts an import's
// tickets, so that each has a queue task of its own; Cleanup marks an import
// that is Cancelling, or whose image was deleted, or that keeps something no longer
// needed, and only has leftovers to remove.
type Ticket struct {
	Ref
	Number  int64
	Cleanup bool
	Trace   string // Spec.Trace
}

// Backlog is the store as the dispatcher sees it. One dispatcher leads at a
// time; every method is safe even if two believe that they do. Times are those
// of the store's clock.
type Backlog interface {
	// Now reads the store's clock.
	Now(ctx context.Context) (time.Time, error)
	// Lead takes or keeps the lead for ttl, and reports whether who has it.
	Lead(ctx context.Context, who string, ttl time.Duration) (bool, error)
	// Resign gives the lead back if who has it.
	Resign(ctx context.Context, who string) error

	// Tenants returns those that may need the dispatcher now.
	Tenants(ctx context.Context, now time.Time) ([]Tenant, error)
	// Survey counts the work of many tenants, in few round trips. A ticket is
	// Unclaimed that was dispatched before a time.
	Survey(ctx context.Context, tenants []Tenant, now, unclaimedBefore time.Time) (map[Tenant]Load, error)

	// Dispatch moves up to n due imports from waiting to dispatched, those due
	// longest first, or (cleanup) canceled ones that need a clean-up, and
	// returns their tickets. The caller enqueues them, also if there is an error.
	Dispatch(ctx context.Context, tenant Tenant, cleanup bool, n int, now time.Time) ([]Ticket, error)
	// Unclaimed returns tickets that were dispatched before a time and are
	// not claimed yet.
	Unclaimed(ctx context.Context, tenant Tenant, before time.Time) ([]Ticket, error)
	// Recall puts a ticket's import back to where it waited. It does nothing
	// if the import has been claimed or dispatched anew.
	Recall(ctx context.Context, t Ticket, now time.Time) error

	// Expired returns the records whose claims ran out before now.
	Expired(ctx context.Context, tenant Tenant, now time.Time) ([]*Task, error)
	// Expire takes the claim from a worker that is taken for dead, counts a
	// crash, and lets the import wait for pause; a Cancelling one does not wait.
	// ErrFenced: the claim is not the current one any more, or was extended.
	Expire(ctx context.Context, held Held, attempt Attempt, pause time.Duration, now time.Time) error

	// Purge removes up to n records whose retention has passed, and forgets a
	// tenant that has nothing left. It returns how many records it removed.
	Purge(ctx context.Context, tenant Tenant, n int, now time.Time) (int, error)

	// Predict stores what the leader makes of the queue, for Records.Place; Outlook returns
	// what was stored last, the zero value if nothing was.
	Predict(ctx context.Context, o Outlook) error
	Outlook(ctx context.Context) (Outlook, error)

	// Unfinished reports whether any tenant has a task of that id that is unfinished, or
	// of which something is kept.
	Unfinished(ctx context.Context, id ID) (bool, error)
}

// Signals carries hints between processes. They may be lost: whoever listens
// must also look at the record from time to time.
type Signals interface {
	// Listen calls onWork when there may be something to dispatch and onCancel
	// when a cancel was accepted, until ctx ends.
	Listen(ctx context.Context, onWork func(), onCancel func(ID)) error
}
