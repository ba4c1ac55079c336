package redisstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Claim implements tasks.Claims.
func (s *Store) Claim(ctx context.Context, ref tasks.Ref, worker string, lease time.Duration, now time.Time) (*tasks.Claimed, error) {
	args := append([]any{string(ref.ID), uuid.NewString(), worker, now.UnixMilli(), now.Add(lease).UnixMilli()},
		sources(tasks.Processing)...)
	reply, err := s.run(ctx, claimCmd, importKeys(keysOf(ref.Tenant), ref.ID), args...)
	if err != nil {
		return nil, redisError("claim import", err)
	}
	if reply.word(0) == "refused" {
		return nil, tasks.ErrNotClaimable
	}
	if reply.word(0) != "claimed" {
		return nil, reply.unexpected("claim import")
	}
	imp, err := s.read(ctx, ref)
	if err != nil {
		return nil, err
	}
	held := tasks.Held{Ref: ref, Epoch: tasks.Epoch(reply.number(1))}
	if imp.Epoch != held.Epoch {
		return nil, tasks.ErrFenced
	}
	checkpoint, err := s.rdb.HGet(ctx, keysOf(ref.Tenant).record(ref.ID), "checkpoint").Bytes()
	if err != nil && err != redis.Nil {
		return nil, redisError("read checkpoint", err)
	}
	return &tasks.Claimed{Import: imp, Held: held, Checkpoint: checkpoint}, nil
}

// Beat implements tasks.Claims.
func (s *Store) Beat(ctx context.Context, held tasks.Held, p tasks.Progress, lease time.Duration, now time.Time) (tasks.State, error) {
	reply, err := s.runHeld(ctx, beatCmd, held, now.UnixMilli(), now.Add(lease).UnixMilli(),
		min(max(p.Percent, 0), 99), string(p.Stage), toJSON(p.Counters))
	if err != nil {
		return "", err
	}
	return tasks.State(reply.word(1)), nil
}

// SaveCheckpoint implements tasks.Claims.
func (s *Store) SaveCheckpoint(ctx context.Context, held tasks.Held, checkpoint []byte) error {
	_, err := s.runHeld(ctx, checkpointCmd, held, checkpoint)
	return err
}

// BeginPublish implements tasks.Claims.
func (s *Store) BeginPublish(ctx context.Context, held tasks.Held, res *tasks.Result, now time.Time) error {
	args := append([]any{now.UnixMilli(), toJSON(res)}, sources(tasks.Succeeded)...)
	reply, err := s.runHeld(ctx, publishCmd, held, args...)
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
	return s.finish(ctx, held, tasks.Succeeded, "", attempt)
}

// Fail implements tasks.Claims.
func (s *Store) Fail(ctx context.Context, held tasks.Held, cause tasks.Failure, attempt tasks.Attempt) error {
	return s.finish(ctx, held, tasks.Failed, toJSON(cause), attempt)
}

// Canceled implements tasks.Claims.
func (s *Store) Canceled(ctx context.Context, held tasks.Held, attempt tasks.Attempt) error {
	return s.finish(ctx, held, tasks.Canceled, "", attempt)
}

func (s *Store) finish(ctx context.Context, held tasks.Held, to tasks.State, failure string, attempt tasks.Attempt) error {
	now := attempt.EndedAt
	args := append([]any{string(to), now.UnixMilli(), now.Add(s.retention).UnixMilli(), failure, toJSON(attempt), tasks.MaxAttemptsKept},
		finishSources(to)...)
	reply, err := s.runHeld(ctx, finishCmd, held, args...)
	if err != nil {
		return err
	}
	switch {
	case reply.word(0) == "finished":
		return nil
	case reply.word(0) == "refused" && reply.word(1) == string(tasks.Cancelling):
		return tasks.ErrCancelCameFirst
	}
	return reply.unexpected("finish import as " + string(to))
}

// finishSources are the states in which a worker may end an import. A Queued
// import becomes Canceled too, but never by a worker, which holds no claim on it.
func finishSources(to tasks.State) []any {
	var args []any
	for _, s := range tasks.Sources(to) {
		if s != tasks.Queued {
			args = append(args, string(s))
		}
	}
	return args
}

// Release implements tasks.Claims.
func (s *Store) Release(ctx context.Context, held tasks.Held, notBefore time.Time, attempt tasks.Attempt) error {
	setback := 0
	if attempt.Outcome == tasks.OutcomeRetry {
		setback = 1
	}
	args := append([]any{attempt.EndedAt.UnixMilli(), notBefore.UnixMilli(), setback, toJSON(attempt), tasks.MaxAttemptsKept},
		sources(tasks.Queued)...)
	_, err := s.runHeld(ctx, releaseCmd, held, args...)
	if err == nil {
		s.hint(ctx, workChannel, "")
	}
	return err
}

// runHeld runs a script under a claim.
func (s *Store) runHeld(ctx context.Context, script *redis.Script, held tasks.Held, args ...any) (answer, error) {
	args = append([]any{string(held.ID), int64(held.Epoch)}, args...)
	reply, err := s.run(ctx, script, importKeys(keysOf(held.Tenant), held.ID), args...)
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
