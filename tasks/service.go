package tasks

import (
	"context"
	"time"

	"vmimport/internal/fault"
)

// Preflight checks the outside world before an import is accepted.
type Preflight interface {
	// Check looks at every source object of spec and fills in its length,
	// version, format and virtual size. It fails, without side effects, if an object is
	// missing, unreadable or in a format that cannot be imported, or if the
	// image id is taken.
	//
	// Of an export it looks at image and container, and fills in the image's name and
	// what Export has of it. It fails if either is missing or not the owner's, the
	// image cannot be exported, or an object of its name is there.
	Check(ctx context.Context, spec *Spec) error

	// ReadObject returns the content of a small object that says something about
	// a source, such as metadata beside it. It fails as Check does if the object
	// is missing or unreadable, and with ErrObjectTooLarge, unread, if it has
	// more than limit bytes.
	ReadObject(ctx context.Context, region string, o Object, limit int64) ([]byte, error)
}

// ErrObjectTooLarge is the failure of a ReadObject beyond its limit.
var ErrObjectTooLarge = fault.New(fault.Invalid, "object_too_large", "The object is too large.")

// Service holds the rules that are the same for every dialect.
type Service struct {
	records   Records
	preflight Preflight
	policy    Policy
	now       func() time.Time
}

// NewService returns a Service. now is time.Now outside of tests.
func NewService(records Records, preflight Preflight, policy Policy, now func() time.Time) *Service {
	return &Service{records: records, preflight: preflight, policy: policy, now: now}
}

// limits are those of a tenant.
func (s *Service) limits(tenant Tenant, quota Quota) Limits {
	return Limits{s.policy.For(tenant).Unfinished, quota}
}

// Register accepts an import: when it returns, the import is durable and will
// reach a final state. fresh is false for the repetition of a client token.
//
// A repetition is answered before the preflight: by then the image may exist,
// and the source be gone.
func (s *Service) Register(ctx context.Context, spec *Spec) (task *Task, fresh bool, err error) {
	if len(spec.Disks) == 0 && spec.Export == nil {
		return nil, false, fault.New(fault.Invalid, "no_disk", "An import needs at least one disk.")
	}
	if spec.ClientToken != "" {
		if task, err := s.Admit(ctx, spec, Quota{}); task != nil || err != nil {
			return task, false, err
		}
	}
	if err := s.Inspect(ctx, spec); err != nil {
		return nil, false, err
	}
	return s.Accept(ctx, spec, Quota{})
}

// Admit, Inspect and Accept are the steps of Register, for dialects with checks of
// their own between them. Admit returns the import of a repeated client token, or the
// rule that spec breaks at present.
func (s *Service) Admit(ctx context.Context, spec *Spec, quota Quota) (*Task, error) {
	return s.records.Admit(ctx, spec, s.limits(spec.Owner.Tenant, quota))
}

// Inspect looks at the objects. See Preflight.Check.
func (s *Service) Inspect(ctx context.Context, spec *Spec) error {
	return s.preflight.Check(ctx, spec)
}

// Accept makes the import durable. See Records.Create.
func (s *Service) Accept(ctx context.Context, spec *Spec, quota Quota) (task *Task, fresh bool, err error) {
	spec.RequestedAt = s.now().UTC()
	return s.records.Create(ctx, spec, s.limits(spec.Owner.Tenant, quota))
}

// ReadObject reads a small object of a region. See Preflight.ReadObject.
func (s *Service) ReadObject(ctx context.Context, region string, o Object, limit int64) ([]byte, error) {
	return s.preflight.ReadObject(ctx, region, o, limit)
}

// Get returns an import that scope may see, else ErrUnknown.
func (s *Service) Get(ctx context.Context, scope Scope, id ID) (*Task, error) {
	return s.records.Get(ctx, scope, id)
}

// List returns up to limit imports from index start on, newest first.
func (s *Service) List(ctx context.Context, scope Scope, start, limit int) ([]*Task, error) {
	return s.records.List(ctx, scope, start, limit)
}

// Find selects imports. See Records.Find.
func (s *Service) Find(ctx context.Context, scope Scope, q Query) (found []*Task, total int, err error) {
	return s.records.Find(ctx, scope, q)
}

// DeleteImage has the image of an import removed. See Records.DeleteImage.
func (s *Service) DeleteImage(ctx context.Context, scope Scope, id ID) error {
	return s.records.DeleteImage(ctx, scope, id)
}

// Cancel asks for an import to stop. See Records.Cancel.
func (s *Service) Cancel(ctx context.Context, scope Scope, id ID) (State, error) {
	return s.records.Cancel(ctx, scope, id)
}

// Retry has a failed task tried again. See Records.Retry.
func (s *Service) Retry(ctx context.Context, scope Scope, id ID) error {
	return s.records.Retry(ctx, scope, id, s.limits(scope.Tenant, Quota{}))
}

// Position says where a task that waits for a worker stands, and about when it starts; nil
// for a task in any other state.
func (s *Service) Position(ctx context.Context, t *Task) (*Position, error) {
	if t.State != Queued {
		return nil, nil
	}
	place, err := s.records.Place(ctx, t.Ref())
	if err != nil {
		return nil, err
	}
	pos := place.position(t, s.now())
	if most := s.policy.For(t.Owner.Tenant).Running; most > 0 && !place.Dispatched && place.Ahead+place.Running >= most {
		pos.Start = time.Time{}
	}
	return &pos, nil
}
