// Package redisstore keeps import records in Redis.
//
// Each rule about a record is one Lua script, so that it holds whoever races:
// scripts.go and its like say what each does and answers, keys.go which keys there are,
// codec.go what is in a record. Store implements tasks.Records, tasks.Claims,
// tasks.Backlog, tasks.Signals and tasks.Journal.
//
// A record is as durable as Redis makes it. For the promise that an accepted
// import is never lost, Redis must run with appendonly yes, appendfsync always
// and noeviction; Durability says whether it does.
package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"vmimport/internal/fault"
	"vmimport/tasks"
)

var (
	_ tasks.Records = (*Store)(nil)
	_ tasks.Claims  = (*Store)(nil)
	_ tasks.Backlog = (*Store)(nil)
	_ tasks.Signals = (*Store)(nil)
	_ tasks.Journal = (*Store)(nil)
)

// Store keeps records in one Redis server, Sentinel group or Cluster. It is
// safe for concurrent use.
type Store struct {
	rdb redis.UniversalClient
	opt Options
}

// Options set up a Store.
type Options struct {
	// Retention is how long records of finished imports are kept.
	Retention time.Duration
	// Replicas is how many replicas must have what a customer is promised before the answer.
	Replicas int
	// Now takes the place of Redis's clock, for tests.
	Now func() time.Time
}

// minTokenLife is how long a client token is remembered at least.
const minTokenLife = 24 * time.Hour

// New returns a Store over rdb, which the caller closes.
func New(rdb redis.UniversalClient, opt Options) *Store { return &Store{rdb: rdb, opt: opt} }

// clock is the argument that tells a script the time.
func (s *Store) clock() string {
	if s.opt.Now == nil {
		return ""
	}
	return at(s.opt.Now())
}

// at is a time as scripts take it.
func at(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

// Create implements tasks.Records.
func (s *Store) Create(ctx context.Context, spec *tasks.Spec, limits tasks.Limits) (*tasks.Task, bool, error) {
	// The tenant is announced before the record is made, so that a crash in
	// between does no harm: the dispatcher forgets a tenant without imports. It
	// might do so just before a Create that took very long, so the tenant is
	// announced again before the answer.
	if err := s.announce(ctx, spec.Owner.Tenant); err != nil {
		return nil, false, err
	}
	if task, err := s.create(ctx, spec, limits, false); task != nil || err != nil {
		s.abandon(ctx, spec, err)
		return task, false, err
	}
	if err := s.announce(ctx, spec.Owner.Tenant); err != nil {
		s.abandon(ctx, spec, err)
		return nil, false, err
	}
	s.hint(ctx, workChannel, "")
	task, err := s.Get(ctx, tasks.Scope{Region: spec.Region, Tenant: spec.Owner.Tenant, Kind: spec.Kind()}, spec.ID)
	return task, true, err
}

// Admit implements tasks.Records.
func (s *Store) Admit(ctx context.Context, spec *tasks.Spec, limits tasks.Limits) (*tasks.Task, error) {
	return s.create(ctx, spec, limits, true)
}

// create runs createCmd. It returns the import of a repeated token, nil if the record
// was made or (dry) could be.
func (s *Store) create(ctx context.Context, spec *tasks.Spec, limits tasks.Limits, dry bool) (*tasks.Task, error) {
	k := keysOf(spec.Owner.Tenant)
	disks := 0
	if spec.ListsImage {
		disks = len(spec.Disks)
	}
	image, name := reserved(spec)
	through := api(spec.Dialect, spec.Kind())
	keys := append(taskKeys(k, spec.ID), k.list(spec.Region, through),
		k.listOf(spec.Region, through, spec.Owner.Project), k.seq(), k.token(spec.Region, spec.ClientToken))
	run := s.keep
	if dry && spec.ClientToken == "" { // else the answer may be a task, and so a promise
		run = s.run
	}
	reply, err := run(ctx, createCmd, keys, string(spec.ID), s.clock(), toJSON(spec), spec.Region, spec.Owner.Project,
		image, name, fingerprint(spec), max(s.opt.Retention, minTokenLife).Milliseconds(), limits.Unfinished,
		through, disks, limits.Images, limits.Disks, flag(dry), string(spec.Kind()), spec.Trace)
	if err != nil {
		return nil, redisError("create import", err)
	}
	switch reply.word(0) {
	case "created":
		return nil, nil
	case "repeated":
		return s.Get(ctx, tasks.Scope{Region: spec.Region, Tenant: spec.Owner.Tenant, Kind: spec.Kind()}, tasks.ID(reply.word(1)))
	}
	if err := ruleError(spec.Kind(), reply.word(0)); err != nil {
		return nil, err
	}
	return nil, reply.unexpected("create import")
}

// ruleError returns the error for the word that a script has for a broken rule, nil for any
// other word.
func ruleError(kind tasks.Kind, word string) error {
	if err, ok := exportErrors[word]; ok && kind == tasks.KindExport {
		return err
	}
	return ruleErrors[word]
}

var ruleErrors = map[string]error{
	"token_mismatch":  tasks.ErrTokenMismatch,
	"too_many":        tasks.ErrTooManyImports,
	"too_many_images": tasks.ErrTooManyImages,
	"too_many_disks":  tasks.ErrTooManyDisks,
	"name_in_use":     tasks.ErrNameInUse,
	"image_in_use":    tasks.ErrImageIDInUse,
}

// exportErrors are those that mean something else for an export.
var exportErrors = map[string]error{
	"name_in_use":  tasks.ErrNameExporting,
	"image_in_use": tasks.ErrImageExporting,
}

// fingerprint is what the store keeps with a client token. It is never empty if
// there is a token.
func fingerprint(spec *tasks.Spec) string {
	if spec.ClientToken == "" {
		return ""
	}
	return "of " + spec.Fingerprint
}

// announce has the dispatcher look at a tenant.
func (s *Store) announce(ctx context.Context, tenant tasks.Tenant) error {
	if err := s.runKept(ctx, announceCmd, []string{tenantsKey}, string(tenant), s.clock()).Err(); err != nil {
		return redisError("announce tenant", err)
	}
	return nil
}

// Get implements tasks.Records.
func (s *Store) Get(ctx context.Context, scope tasks.Scope, id tasks.ID) (*tasks.Task, error) {
	task, err := s.read(ctx, tasks.Ref{Tenant: scope.Tenant, ID: id})
	if err != nil {
		return nil, err
	}
	if !within(scope, task) {
		return nil, tasks.ErrUnknown
	}
	return task, nil
}

// within reports whether an import of the scope's tenant is in the scope.
func within(scope tasks.Scope, task *tasks.Task) bool {
	return task.Region == scope.Region && (scope.Project == "" || task.Owner.Project == scope.Project) &&
		(scope.Dialect == "" || task.Dialect == scope.Dialect) && cmp.Or(scope.Kind, tasks.KindImport) == task.Kind()
}

// maxID bounds an import id in bytes; longer ones cannot exist.
const maxID = 128

// read returns a whole record, attempts included.
func (s *Store) read(ctx context.Context, ref tasks.Ref) (*tasks.Task, error) {
	if ref.Tenant == "" || ref.ID == "" || len(ref.ID) > maxID {
		return nil, tasks.ErrUnknown
	}
	k := keysOf(ref.Tenant)
	var fields *redis.SliceCmd
	var attempts *redis.StringSliceCmd
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		fields = p.HMGet(ctx, k.record(ref.ID), readFields...)
		attempts = p.LRange(ctx, k.attempts(ref.ID), 0, -1)
		return nil
	})
	if err != nil {
		return nil, redisError("read import", err)
	}
	task, err := decode(fields.Val())
	if err != nil {
		return nil, err
	}
	if task == nil {
		return nil, tasks.ErrUnknown
	}
	task.Attempts, err = decodeAttempts(attempts.Val())
	return task, err
}

// List implements tasks.Records.
func (s *Store) List(ctx context.Context, scope tasks.Scope, start, limit int) ([]*tasks.Task, error) {
	k := keysOf(scope.Tenant)
	through := api(scope.Dialect, scope.Kind)
	list := k.list(scope.Region, through)
	if scope.Project != "" {
		list = k.listOf(scope.Region, through, scope.Project)
	}
	ids, err := s.rdb.ZRevRange(ctx, list, int64(start), int64(start)+int64(limit)-1).Result()
	if err != nil {
		return nil, redisError("list imports", err)
	}
	return s.readMany(ctx, k, ids)
}

// readMany returns the records of ids that exist, without their attempts.
func (s *Store) readMany(ctx context.Context, k tenantKeys, ids []string) ([]*tasks.Task, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	cmds := make([]*redis.SliceCmd, len(ids))
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			cmds[i] = p.HMGet(ctx, k.record(tasks.ID(id)), readFields...)
		}
		return nil
	})
	if err != nil {
		return nil, redisError("read imports", err)
	}
	imports := make([]*tasks.Task, 0, len(ids))
	for _, c := range cmds {
		task, err := decode(c.Val())
		if err != nil {
			return nil, err
		}
		if task != nil { // nil: purged since its id was read
			imports = append(imports, task)
		}
	}
	return imports, nil
}

// Cancel implements tasks.Records.
func (s *Store) Cancel(ctx context.Context, scope tasks.Scope, id tasks.ID) (tasks.State, error) {
	if scope.Tenant == "" || id == "" || len(id) > maxID {
		return "", tasks.ErrUnknown
	}
	args := append(selecting(scope, id, s.clock()), uuid.NewString(), s.opt.Retention.Milliseconds())
	args = append(args, sources(tasks.Cancelling, anybody)...)
	reply, err := s.keep(ctx, cancelCmd, taskKeys(keysOf(scope.Tenant), id), args...)
	if err != nil {
		return "", redisError("cancel import", err)
	}
	switch reply.word(0) {
	case "accepted":
		if err := s.announce(ctx, scope.Tenant); err != nil {
			return "", err
		}
		s.hint(ctx, cancelChannel, string(id))
		s.hint(ctx, workChannel, "")
		return tasks.State(reply.word(1)), nil
	case "requested":
		return "", tasks.ErrCancelRequested
	case "finished":
		return "", tasks.ErrFinished
	case "missing":
		return "", tasks.ErrUnknown
	}
	return "", reply.unexpected("cancel import")
}

// DeleteImage implements tasks.Records.
func (s *Store) DeleteImage(ctx context.Context, scope tasks.Scope, id tasks.ID) error {
	if scope.Tenant == "" || id == "" || len(id) > maxID {
		return tasks.ErrUnknown
	}
	// Announced before too, as for Create: the removal must be found whatever dies.
	if err := s.announce(ctx, scope.Tenant); err != nil {
		return err
	}
	reply, err := s.keep(ctx, deleteImageCmd, taskKeys(keysOf(scope.Tenant), id),
		string(id), s.clock(), scope.Region, scope.Project, scope.Dialect, uuid.NewString())
	if err != nil {
		return redisError("delete image", err)
	}
	switch reply.word(0) {
	case "accepted":
		if err := s.announce(ctx, scope.Tenant); err != nil {
			return err
		}
		s.hint(ctx, workChannel, "")
		return nil
	case "importing":
		return tasks.ErrImageImporting
	case "removing":
		return tasks.ErrImageRemoving
	case "missing":
		return tasks.ErrUnknown
	}
	return reply.unexpected("delete image")
}

// Listen implements tasks.Signals.
func (s *Store) Listen(ctx context.Context, onWork func(), onCancel func(tasks.ID)) error {
	return s.subscribe(ctx, func(m *redis.Message) {
		if m.Channel == workChannel {
			onWork()
		} else {
			onCancel(tasks.ID(m.Payload))
		}
	}, workChannel, cancelChannel)
}

// subscribe calls on for each message of the channels, until ctx ends.
func (s *Store) subscribe(ctx context.Context, on func(*redis.Message), channels ...string) error {
	sub := s.rdb.Subscribe(ctx, channels...)
	defer sub.Close()
	ch := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case m, ok := <-ch: // which is connected again by itself
			if !ok {
				return redis.ErrClosed
			}
			on(m)
		}
	}
}

// hint publishes what others would find out by themselves a moment later, so
// its failure is no failure of the caller.
func (s *Store) hint(ctx context.Context, channel, payload string) {
	s.rdb.Publish(ctx, channel, payload)
}

// taskKeys returns the keys that scripts about one task share.
func taskKeys(k tenantKeys, id tasks.ID) []string {
	return []string{k.record(id), k.waiting(), k.dispatched(), k.cleanups(), k.dispatchedCleanup(), k.running(),
		k.ended(), k.images(), k.names(), k.attempts(id), k.usage(), k.journal(), k.kept()}
}

// selecting returns the first arguments of a script that finds an import only within a scope.
func selecting(scope tasks.Scope, id tasks.ID, now string) []any {
	return []any{string(id), now, scope.Region, scope.Project, api(scope.Dialect, scope.Kind), string(cmp.Or(scope.Kind, tasks.KindImport))}
}

// sources returns the table's source states of a move as script arguments, those of them from
// which the caller may make it.
func sources(to tasks.State, may func(tasks.State) bool) []any {
	var args []any
	for _, s := range tasks.Sources(to) {
		if may(s) {
			args = append(args, string(s))
		}
	}
	return args
}

// anybody may make a move from any state.
func anybody(tasks.State) bool { return true }

// aWorker makes moves under a claim alone. No claim on a Queued import stands, and one on a
// Failed import is for the clean-up of what was kept.
func aWorker(s tasks.State) bool { return s != tasks.Queued && !s.Final() }

// answer is what a script returned.
type answer []any

func (s *Store) run(ctx context.Context, script *redis.Script, keys []string, args ...any) (answer, error) {
	return script.Run(ctx, s.rdb, keys, args...).Slice()
}

func (a answer) word(i int) string {
	if i < len(a) {
		if w, ok := a[i].(string); ok {
			return w
		}
	}
	return ""
}

func (a answer) number(i int) int64 {
	if i < len(a) {
		if n, ok := a[i].(int64); ok {
			return n
		}
	}
	return 0
}

func (a answer) unexpected(op string) error {
	return fmt.Errorf("%s: script answered %v", op, []any(a))
}

// redisError makes an error of Redis a passing one, but for a caller that gave
// up itself.
func redisError(op string, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, err)
	}
	if errors.Is(err, errNotReplicated) {
		return errNotReplicated
	}
	return fault.Wrap(fmt.Errorf("%s: %w", op, err), fault.Unavailable, "store_unavailable", "The record store is not available.")
}
