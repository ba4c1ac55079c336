package redisstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Place implements tasks.Records.
func (s *Store) Place(ctx context.Context, ref tasks.Ref) (tasks.Place, error) {
	k := keysOf(ref.Tenant)
	var rank, dispatched, running *redis.IntCmd
	// In one transaction: one that is dispatched meanwhile would be counted twice, or not at all.
	_, err := s.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		rank = p.ZRank(ctx, k.waiting(), string(ref.ID))
		dispatched = p.ZCard(ctx, k.dispatched())
		running = p.ZCard(ctx, k.running())
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return tasks.Place{}, redisError("read place", err)
	}
	outlook, err := s.Outlook(ctx)
	if err != nil {
		return tasks.Place{}, err
	}
	if rank.Err() != nil {
		// It was handed out, if it was not even claimed since its caller read it. In what
		// order workers take what was handed out is not known.
		return tasks.Place{Dispatched: true, Outlook: outlook}, nil
	}
	return tasks.Place{Ahead: int(dispatched.Val() + rank.Val()), Running: int(running.Val()), Outlook: outlook}, nil
}

// Predict implements tasks.Backlog.
func (s *Store) Predict(ctx context.Context, o tasks.Outlook) error {
	if err := s.rdb.Set(ctx, outlookKey, toJSON(o), 0).Err(); err != nil {
		return redisError("store outlook", err)
	}
	return nil
}

// Outlook implements tasks.Backlog.
func (s *Store) Outlook(ctx context.Context) (tasks.Outlook, error) {
	var o tasks.Outlook
	b, err := s.rdb.Get(ctx, outlookKey).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return o, nil
	case err != nil:
		return o, redisError("read outlook", err)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return tasks.Outlook{}, fmt.Errorf("decode outlook: %w", err)
	}
	return o, nil
}
