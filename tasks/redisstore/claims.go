package redisstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Claim implements tasks.Claims.
func (s *Store) Claim(ctx context.Context, ref tasks.Ref, worker string, lease time.Duration) (*tasks.Claimed, error) {
	nonce := uuid.NewString()
	args := append([]any{string(ref.ID), s.clock(), nonce, worker, lease.Milliseconds()}, sources(tasks.Processing, anybody)...)
	reply, err := s.run(ctx, claimCmd, taskKeys(keysOf(ref.Tenant), ref.ID), args...)
	if err != nil {
		return nil, redisError("claim import", err)
	}
	if reply.word(0) == "refused" {
		return nil, tasks.ErrNotClaimable
	}
	if reply.word(0) != "claimed" {
		return nil, reply.unexpected("claim import")
	}
	// From here on there is a claim to be given back, whatever ctx says.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lease)
	defer cancel()
	task, err := s.read(ctx, ref)
	if err != nil {
		return nil, err
	}
	held := tasks.Held{Ref: ref, Epoch: tasks.Epoch(reply.number(1)), Claim: nonce}
	if task.Epoch != held.Epoch {
		return nil, tasks.ErrFenced
	}
	checkpoint, err := s.rdb.HGet(ctx, keysOf(ref.Tenant).record(ref.ID), "checkpoint").Bytes()
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, redisError("read checkpoint", err)
	}
	return &tasks.Claimed{Task: task, Held: held, Checkpoint: checkpoint}, nil
}

// Fate implements tasks.Claims.
func (s *Store) Fate(ctx context.Context, ref tasks.Ref) (tasks.State, error) {
	state, err := s.rdb.HGet(ctx, keysOf(ref.Tenant).record(ref.ID), "state").Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", tasks.ErrUnknown
	case err != nil:
		return "", redisError("read state", err)
	}
	return tasks.State(state), nil
}

// CleanAgain implements tasks.Claims.
func (s *Store) CleanAgain(ctx context.Context, ref tasks.Ref) error {
	// Announced before, as for Create: the tenant may have been forgotten.
	if err := s.announce(ctx, ref.Tenant); err != nil {
		return err
	}
	if err := cleanAgainCmd.Run(ctx, s.rdb, taskKeys(keysOf(ref.Tenant), ref.ID), string(ref.ID), s.clock()).Err(); err != nil {
		return redisError("have import cleaned up", err)
	}
	s.hint(ctx, workChannel, "")
	return nil
}

// Beat implements tasks.Claims.
func (s *Store) Beat(ctx context.Context, held tasks.Held, p tasks.Progress, lease time.Duration) (tasks.Pulse, error) {
	reply, err := s.runHeld(ctx, beatCmd, held, lease.Milliseconds(), min(max(p.Percent, 0), 99), string(p.Stage), toJSON(p.Counters))
	if err != nil {
		return tasks.Pulse{}, err
	}
	return tasks.Pulse{State: tasks.State(reply.word(1)), Running: int(reply.number(2))}, nil
}

// SaveCheckpoint implements tasks.Claims.
func (s *Store) SaveCheckpoint(ctx context.Context, held tasks.Held, checkpoint []byte, reached int64) error {
	_, err := s.runHeld(ctx, checkpointCmd, held, checkpoint, reached)
	return err
}

// Reassign implements tasks.Claims. An import stays in its region.
func (s *Store) Reassign(ctx context.Context, held tasks.Held, imageID string) error {
	reply, err := s.runHeld(ctx, reassignCmd, held, imageID, string(tasks.Processing))
	if err != nil {
		return err
	}
	switch reply.word(0) {
	case "held":
		return nil
	case "canceled":
		return tasks.ErrCancelCameFirst
	case "image_in_use":
		return tasks.ErrImageIDInUse
	}
	return reply.unexpected("reassign image id")
}

// BeginPublish implements tasks.Claims.
func (s *Store) BeginPublish(ctx context.Context, held tasks.Held, res *tasks.Result) error {
	reply, err := s.runHeldBy(ctx, s.secure, publishCmd, held, s.clock(), append([]any{toJSON(res)}, sources(tasks.Succeeded, aWorker)...)...)
	if err != nil {
		return err
	}
	if reply.word(0) == "canceled" {
		return tasks.ErrCancelCameFirst
	}
	return nil
}

// Condemn implements tasks.Claims.
func (s *Store) Condemn(ctx context.Context, held tasks.Held, verdict tasks.Failure) error {
	reply, err := s.runHeld(ctx, condemnCmd, held, append([]any{toJSON(verdict)}, sources(tasks.Failed, aWorker)...)...)
	if err != nil {
		return err
	}
	if reply.word(0) == "canceled" {
		return tasks.ErrCancelCameFirst
	}
	return nil
}

// Succeed implements tasks.Claims.
func (s *Store) Succeed(ctx context.Context, held tasks.Held, attempt tasks.Attempt) error {
	return s.finish(ctx, held, tasks.Succeeded, "", attempt, 0)
}

// Fail implements tasks.Claims.
func (s *Store) Fail(ctx context.Context, held tasks.Held, cause tasks.Failure, attempt tasks.Attempt, keep time.Duration) error {
	return s.finish(ctx, held, tasks.Failed, toJSON(cause), attempt, keep)
}

// Canceled implements tasks.Claims.
func (s *Store) Canceled(ctx context.Context, held tasks.Held, attempt tasks.Attempt) error {
	return s.finish(ctx, held, tasks.Canceled, "", attempt, 0)
}

// Removed implements tasks.Claims.
func (s *Store) Removed(ctx context.Context, held tasks.Held, attempt tasks.Attempt) error {
	_, err := s.runHeld(ctx, removedCmd, held, s.opt.Retention.Milliseconds(), toJSON(attempt), tasks.MaxAttemptsKept)
	return err
}

func (s *Store) finish(ctx context.Context, held tasks.Held, to tasks.State, failure string, attempt tasks.Attempt, keep time.Duration) error {
	args := append([]any{string(to), s.opt.Retention.Milliseconds(), failure, toJSON(attempt), tasks.MaxAttemptsKept, keep.Milliseconds()},
		sources(to, aWorker)...)
	reply, err := s.runHeldBy(ctx, s.secure, finishCmd, held, s.clock(), args...)
	if err != nil {
		return err
	}
	switch {
	case reply.word(0) == "finished":
		s.hint(ctx, workChannel, "") // a slot is free
		return nil
	case reply.word(0) == "refused" && reply.word(1) == string(tasks.Cancelling):
		return tasks.ErrCancelCameFirst
	}
	return reply.unexpected("finish import as " + string(to))
}

// Release implements tasks.Claims.
func (s *Store) Release(ctx context.Context, held tasks.Held, pause time.Duration, attempt tasks.Attempt) error {
	setback, leftovers := 0, 0
	switch attempt.Outcome {
	case tasks.OutcomeRetry:
		setback = 1
	case tasks.OutcomeLeftovers:
		setback, leftovers = 1, 1
	}
	args := append([]any{pause.Milliseconds(), setback, leftovers, toJSON(attempt), tasks.MaxAttemptsKept}, sources(tasks.Queued, aWorker)...)
	reply, err := s.runHeld(ctx, releaseCmd, held, args...)
	if err != nil {
		return err
	}
	if reply.word(0) == "canceled" {
		return tasks.ErrCancelCameFirst
	}
	s.hint(ctx, workChannel, "")
	return nil
}

// runHeld runs a script under a claim.
func (s *Store) runHeld(ctx context.Context, script *redis.Script, held tasks.Held, args ...any) (answer, error) {
	return s.runHeldBy(ctx, s.run, script, held, s.clock(), args...)
}

// runner is run, or one of those that wait for replicas.
type runner func(ctx context.Context, script *redis.Script, keys []string, args ...any) (answer, error)

func (s *Store) runHeldBy(ctx context.Context, run runner, script *redis.Script, held tasks.Held, now string, args ...any) (answer, error) {
	args = append([]any{string(held.ID), now, fmt.Sprintf("%d/%s", held.Epoch, held.Claim)}, args...)
	reply, err := run(ctx, script, taskKeys(keysOf(held.Tenant), held.ID), args...)
	if err != nil {
		return nil, redisError("write import", err)
	}
	if reply.word(0) == "fenced" {
		return nil, tasks.ErrFenced
	}
	return reply, nil
}

func decodeAttempts(list []string) ([]tasks.Attempt, error) {
	attempts := make([]tasks.Attempt, len(list))
	for i, s := range list {
		if err := json.Unmarshal([]byte(s), &attempts[i]); err != nil {
			return nil, fmt.Errorf("decode attempt: %w", err)
		}
	}
	return attempts, nil
}
