package redisstore

import (
	"cmp"
	"context"

	"github.com/google/uuid"

	"vmimport/tasks"
)

// Retry implements tasks.Records. ErrUnknown is also the answer for an import whose image was
// deleted: its record is left for the history alone.
func (s *Store) Retry(ctx context.Context, scope tasks.Scope, id tasks.ID, limits tasks.Limits) error {
	if scope.Tenant == "" || id == "" || len(id) > maxID {
		return tasks.ErrUnknown
	}
	// Announced before too, as for Create: a tenant with nothing unfinished may have been
	// forgotten.
	if err := s.announce(ctx, scope.Tenant); err != nil {
		return err
	}
	args := append(selecting(scope, id, s.clock()), uuid.NewString(), limits.Unfinished, limits.Images, limits.Disks)
	args = append(args, sources(tasks.Queued, tasks.State.Final)...)
	reply, err := s.keep(ctx, retryCmd, taskKeys(keysOf(scope.Tenant), id), args...)
	if err != nil {
		return redisError("retry import", err)
	}
	switch word := reply.word(0); word {
	case "accepted":
		if err := s.announce(ctx, scope.Tenant); err != nil {
			return err
		}
		s.hint(ctx, workChannel, "")
		return nil
	case "missing":
		return tasks.ErrUnknown
	case "not_failed":
		return tasks.ErrNotFailed
	case "cleaning":
		return tasks.ErrCleaning
	default:
		return cmp.Or(ruleError(scope.Kind, word), reply.unexpected("retry import"))
	}
}
