package redisstore

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Lead implements tasks.Backlog.
func (s *Store) Lead(ctx context.Context, who string, ttl time.Duration) (bool, error) {
	n, err := leadCmd.Run(ctx, s.rdb, []string{leaderKey}, who, ttl.Milliseconds()).Int()
	if err != nil {
		return false, redisError("take the lead", err)
	}
	return n == 1, nil
}

// Resign implements tasks.Backlog.
func (s *Store) Resign(ctx context.Context, who string) error {
	if err := resignCmd.Run(ctx, s.rdb, []string{leaderKey}, who).Err(); err != nil {
		return redisError("resign the lead", err)
	}
	return nil
}

// Tenants implements tasks.Backlog.
func (s *Store) Tenants(ctx context.Context, now time.Time) ([]tasks.Tenant, error) {
	names, err := s.rdb.ZRangeByScore(ctx, tenantsKey, dueBy(now, 0)).Result()
	if err != nil {
		return nil, redisError("list tenants", err)
	}
	tenants := make([]tasks.Tenant, len(names))
	for i, n := range names {
		tenants[i] = tasks.Tenant(n)
	}
	return tenants, nil
}

// Load implements tasks.Backlog.
func (s *Store) Load(ctx context.Context, tenant tasks.Tenant, now time.Time) (tasks.Load, error) {
	k := keysOf(tenant)
	var urgent, due, waiting, dispatched, running *redis.IntCmd
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		urgent = p.ZCount(ctx, k.waiting(), "-inf", "0")
		due = p.ZCount(ctx, k.waiting(), "-inf", score(float64(now.UnixMilli())))
		waiting = p.ZCard(ctx, k.waiting())
		dispatched = p.ZCard(ctx, k.dispatched())
		running = p.ZCard(ctx, k.running())
		return nil
	})
	if err != nil {
		return tasks.Load{}, redisError("count imports", err)
	}
	return tasks.Load{
		Urgent:     int(urgent.Val()),
		Due:        int(due.Val()),
		Waiting:    int(waiting.Val()),
		Dispatched: int(dispatched.Val()),
		Running:    int(running.Val()),
	}, nil
}

// Dispatch implements tasks.Backlog.
func (s *Store) Dispatch(ctx context.Context, tenant tasks.Tenant, n int, now time.Time) ([]tasks.Ticket, error) {
	k := keysOf(tenant)
	ids, err := s.rdb.ZRangeByScore(ctx, k.waiting(), dueBy(now, n)).Result()
	if err != nil {
		return nil, redisError("list waiting imports", err)
	}
	var tickets []tasks.Ticket
	for _, id := range ids {
		reply, err := s.run(ctx, dispatchCmd, importKeys(k, tasks.ID(id)), id, now.UnixMilli())
		if err != nil {
			return tickets, redisError("dispatch import", err)
		}
		if number := reply.number(0); number > 0 {
			tickets = append(tickets, ticket(tenant, id, number, reply.word(1)))
		}
	}
	return tickets, nil
}

// Unclaimed implements tasks.Backlog.
func (s *Store) Unclaimed(ctx context.Context, tenant tasks.Tenant, before time.Time) ([]tasks.Ticket, error) {
	k := keysOf(tenant)
	ids, err := s.rdb.ZRangeByScore(ctx, k.dispatched(), dueBy(before, 0)).Result()
	if err != nil {
		return nil, redisError("list dispatched imports", err)
	}
	var tickets []tasks.Ticket
	for _, id := range ids {
		got, err := s.rdb.HMGet(ctx, k.record(tasks.ID(id)), "tickets", "state").Result()
		if err != nil {
			return nil, redisError("read ticket", err)
		}
		number, ok := got[0].(string)
		state, _ := got[1].(string)
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil {
			continue // purged since its id was read
		}
		tickets = append(tickets, ticket(tenant, id, n, state))
	}
	return tickets, nil
}

func ticket(tenant tasks.Tenant, id string, number int64, state string) tasks.Ticket {
	return tasks.Ticket{
		Ref:     tasks.Ref{Tenant: tenant, ID: tasks.ID(id)},
		Number:  number,
		Cleanup: state == string(tasks.Cancelling),
	}
}

// Recall implements tasks.Backlog.
func (s *Store) Recall(ctx context.Context, t tasks.Ticket, now time.Time) error {
	err := recallCmd.Run(ctx, s.rdb, importKeys(keysOf(t.Tenant), t.ID), string(t.ID), t.Number, now.UnixMilli()).Err()
	if err != nil {
		return redisError("recall ticket", err)
	}
	return nil
}

// Expired implements tasks.Backlog.
func (s *Store) Expired(ctx context.Context, tenant tasks.Tenant, now time.Time) ([]*tasks.Import, error) {
	k := keysOf(tenant)
	ids, err := s.rdb.ZRangeByScore(ctx, k.running(), dueBy(now, 0)).Result()
	if err != nil {
		return nil, redisError("list running imports", err)
	}
	return s.readMany(ctx, k, ids)
}

// Expire implements tasks.Backlog.
func (s *Store) Expire(ctx context.Context, held tasks.Held, attempt tasks.Attempt, now time.Time) error {
	args := append([]any{now.UnixMilli(), toJSON(attempt), tasks.MaxAttemptsKept}, sources(tasks.Queued)...)
	_, err := s.runHeld(ctx, expireCmd, held, args...)
	return err
}

// Unfinished implements tasks.Backlog.
func (s *Store) Unfinished(ctx context.Context, ref tasks.Ref) (bool, error) {
	state, err := s.rdb.HGet(ctx, keysOf(ref.Tenant).record(ref.ID), "state").Result()
	switch {
	case errors.Is(err, redis.Nil):
		return false, nil
	case err != nil:
		return false, redisError("read import", err)
	}
	return !tasks.State(state).Final(), nil
}

// forgetAfter is how long after its last Create a tenant is looked after even
// if it seems to have nothing: longer than a Create may take between announcing
// the tenant and making the record, clocks that disagree included.
const forgetAfter = time.Minute

// Purge implements tasks.Backlog.
func (s *Store) Purge(ctx context.Context, tenant tasks.Tenant, n int, now time.Time) (int, error) {
	seen, err := s.rdb.ZScore(ctx, tenantsKey, string(tenant)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return 0, redisError("read tenant", err)
	}
	k := keysOf(tenant)
	ids, err := s.rdb.ZRangeByScore(ctx, k.ended(), dueBy(now, n)).Result()
	if err != nil {
		return 0, redisError("list ended imports", err)
	}
	purged := 0
	for _, id := range ids {
		did, err := s.purgeOne(ctx, k, tasks.ID(id), now)
		if err != nil {
			return purged, err
		}
		if did {
			purged++
		}
	}
	if now.Sub(time.UnixMilli(int64(seen))) > forgetAfter {
		err = s.attend(ctx, tenant, seen)
	}
	return purged, err
}

func (s *Store) purgeOne(ctx context.Context, k tenantKeys, id tasks.ID, now time.Time) (bool, error) {
	got, err := s.rdb.HMGet(ctx, k.record(id), "region", "project").Result()
	if err != nil {
		return false, redisError("read import", err)
	}
	region, _ := got[0].(string)
	project, _ := got[1].(string)
	keys := append(importKeys(k, id), k.list(region, ""), k.list(region, project))
	n, err := purgeCmd.Run(ctx, s.rdb, keys, string(id), now.UnixMilli()).Int()
	if err != nil {
		return false, redisError("purge import", err)
	}
	return n == 1, nil
}

// attend notes when a tenant with nothing unfinished needs the dispatcher next:
// when its next record is due for purge, or never.
func (s *Store) attend(ctx context.Context, tenant tasks.Tenant, seen float64) error {
	load, err := s.Load(ctx, tenant, time.Time{})
	if err != nil || load.Waiting+load.Dispatched+load.Running > 0 {
		return err
	}
	next := ""
	first, err := s.rdb.ZRangeWithScores(ctx, keysOf(tenant).ended(), 0, 0).Result()
	if err != nil {
		return redisError("list ended imports", err)
	}
	if len(first) > 0 {
		next = score(first[0].Score)
	}
	if err := attendCmd.Run(ctx, s.rdb, []string{tenantsKey}, string(tenant), score(seen), next).Err(); err != nil {
		return redisError("attend tenant", err)
	}
	return nil
}

// dueBy selects members scored up to t, at most n of them; n 0 is all.
func dueBy(t time.Time, n int) *redis.ZRangeBy {
	return &redis.ZRangeBy{Min: "-inf", Max: score(float64(t.UnixMilli())), Count: int64(n)}
}
