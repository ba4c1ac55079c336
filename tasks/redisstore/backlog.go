package redisstore

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// Now implements tasks.Backlog.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	if s.opt.Now != nil {
		return s.opt.Now(), nil
	}
	now, err := s.readClock(ctx)
	if err != nil {
		return time.Time{}, redisError("read the clock", err)
	}
	return now, nil
}

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

// forgetAfter is how long after its last announcement a tenant is looked after
// even if it seems to have nothing: longer than a Create takes between announcing
// the tenant and making the record. It also makes up for nodes of a Cluster whose
// clocks differ.
const forgetAfter = time.Minute

// Tenants implements tasks.Backlog.
func (s *Store) Tenants(ctx context.Context, now time.Time) ([]tasks.Tenant, error) {
	names, err := s.rdb.ZRangeByScore(ctx, tenantsKey, dueBy(now.Add(forgetAfter), 0)).Result()
	if err != nil {
		return nil, redisError("list tenants", err)
	}
	tenants := make([]tasks.Tenant, len(names))
	for i, n := range names {
		tenants[i] = tasks.Tenant(n)
	}
	return tenants, nil
}

// surveyBatch is how many tenants are counted in one round trip.
const surveyBatch = 200

// Survey implements tasks.Backlog.
func (s *Store) Survey(ctx context.Context, tenants []tasks.Tenant, now, unclaimedBefore time.Time) (map[tasks.Tenant]tasks.Load, error) {
	loads := make(map[tasks.Tenant]tasks.Load, len(tenants))
	for batch := range slices.Chunk(tenants, surveyBatch) {
		counts := make([]counted, len(batch))
		_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, tenant := range batch {
				counts[i] = count(ctx, p, keysOf(tenant), at(now), at(unclaimedBefore))
			}
			return nil
		})
		if err != nil {
			return nil, redisError("count imports", err)
		}
		for i, tenant := range batch {
			loads[tenant] = counts[i].load(now)
		}
	}
	return loads, nil
}

// counted is what load makes a tenant's Load of.
type counted struct {
	numbers []*redis.IntCmd
	first   *redis.ZSliceCmd // of those waiting
}

func count(ctx context.Context, p redis.Pipeliner, k tenantKeys, now, before string) counted {
	return counted{
		numbers: []*redis.IntCmd{
			p.ZCard(ctx, k.waiting()),
			p.ZCount(ctx, k.waiting(), "-inf", now),
			p.ZCard(ctx, k.dispatched()),
			p.ZCount(ctx, k.dispatched(), "-inf", before),
			p.ZCard(ctx, k.cleanups()),
			p.ZCount(ctx, k.cleanups(), "-inf", now),
			p.ZCard(ctx, k.dispatchedCleanup()),
			p.ZCount(ctx, k.dispatchedCleanup(), "-inf", before),
			p.ZCard(ctx, k.running()),
			p.ZCount(ctx, k.running(), "-inf", now),
			p.ZCount(ctx, k.ended(), "-inf", now),
		},
		first: p.ZRangeWithScores(ctx, k.waiting(), 0, 0),
	}
}

func (c counted) load(now time.Time) tasks.Load {
	n := make([]int, len(c.numbers))
	for i, c := range c.numbers {
		n[i] = int(c.Val())
	}
	load := tasks.Load{
		Waiting: n[0], Due: n[1], Dispatched: n[2], Unclaimed: n[3] + n[7], Cleanups: n[5], Running: n[8], Expired: n[9], Ended: n[10],
		Open: n[0] + n[2] + n[4] + n[6] + n[8],
	}
	if first := c.first.Val(); len(first) > 0 {
		if since := time.UnixMilli(int64(first[0].Score)).UTC(); !since.After(now) {
			load.Oldest = since
		}
	}
	return load
}

// Dispatch implements tasks.Backlog.
func (s *Store) Dispatch(ctx context.Context, tenant tasks.Tenant, cleanup bool, n int, now time.Time) ([]tasks.Ticket, error) {
	k := keysOf(tenant)
	from := k.waiting()
	if cleanup {
		from = k.cleanups()
	}
	ids, err := s.rdb.ZRangeByScore(ctx, from, dueBy(now, n)).Result()
	if err != nil {
		return nil, redisError("list waiting imports", err)
	}
	var tickets []tasks.Ticket
	for _, id := range ids {
		reply, err := s.run(ctx, dispatchCmd, taskKeys(k, tasks.ID(id)), id, at(now), flag(cleanup))
		if err != nil {
			return tickets, redisError("dispatch import", err)
		}
		if number := reply.number(0); number > 0 {
			tickets = append(tickets, tasks.Ticket{
				Ref: tasks.Ref{Tenant: tenant, ID: tasks.ID(id)}, Number: number, Cleanup: cleanup, Trace: reply.word(1),
			})
		}
	}
	return tickets, nil
}

// flag is a boolean as scripts take it.
func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Unclaimed implements tasks.Backlog.
func (s *Store) Unclaimed(ctx context.Context, tenant tasks.Tenant, before time.Time) ([]tasks.Ticket, error) {
	k := keysOf(tenant)
	var tickets []tasks.Ticket
	for _, place := range []struct {
		key     string
		cleanup bool
	}{{k.dispatched(), false}, {k.dispatchedCleanup(), true}} {
		ids, err := s.rdb.ZRangeByScore(ctx, place.key, dueBy(before, 0)).Result()
		if err != nil {
			return nil, redisError("list dispatched imports", err)
		}
		for _, id := range ids {
			var fields struct {
				Tickets int64  `redis:"tickets"`
				Trace   string `redis:"trace"`
			}
			if err := s.rdb.HMGet(ctx, k.record(tasks.ID(id)), "tickets", "trace").Scan(&fields); err != nil {
				return nil, redisError("read ticket", err)
			}
			if fields.Tickets == 0 {
				continue // purged since its id was read
			}
			tickets = append(tickets, tasks.Ticket{
				Ref: tasks.Ref{Tenant: tenant, ID: tasks.ID(id)}, Number: fields.Tickets, Cleanup: place.cleanup, Trace: fields.Trace,
			})
		}
	}
	return tickets, nil
}

// Recall implements tasks.Backlog.
func (s *Store) Recall(ctx context.Context, t tasks.Ticket, now time.Time) error {
	err := recallCmd.Run(ctx, s.rdb, taskKeys(keysOf(t.Tenant), t.ID), string(t.ID), at(now), flag(t.Cleanup), t.Number).Err()
	if err != nil {
		return redisError("recall ticket", err)
	}
	return nil
}

// Expired implements tasks.Backlog.
func (s *Store) Expired(ctx context.Context, tenant tasks.Tenant, now time.Time) ([]*tasks.Task, error) {
	k := keysOf(tenant)
	ids, err := s.rdb.ZRangeByScore(ctx, k.running(), dueBy(now, 0)).Result()
	if err != nil {
		return nil, redisError("list running imports", err)
	}
	return s.readMany(ctx, k, ids)
}

// Expire implements tasks.Backlog.
func (s *Store) Expire(ctx context.Context, held tasks.Held, attempt tasks.Attempt, pause time.Duration, now time.Time) error {
	args := append([]any{pause.Milliseconds(), toJSON(attempt), tasks.MaxAttemptsKept}, sources(tasks.Queued, aWorker)...)
	_, err := s.runHeldBy(ctx, s.run, expireCmd, held, at(now), args...)
	return err
}

// Unfinished implements tasks.Backlog.
func (s *Store) Unfinished(ctx context.Context, id tasks.ID) (bool, error) {
	tenants, err := s.rdb.ZRange(ctx, tenantsKey, 0, -1).Result()
	if err != nil {
		return false, redisError("list tenants", err)
	}
	for batch := range slices.Chunk(tenants, surveyBatch) {
		records := make([]*redis.SliceCmd, len(batch))
		_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, tenant := range batch {
				records[i] = p.HMGet(ctx, keysOf(tasks.Tenant(tenant)).record(id), "state", "kept_until_ms")
			}
			return nil
		})
		if err != nil {
			return false, redisError("look for import", err)
		}
		for _, r := range records {
			state, there := r.Val()[0].(string)
			kept := r.Val()[1] != nil
			if kept || there && !tasks.State(state).Final() {
				return true, nil
			}
		}
	}
	return false, nil
}

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
		err = s.attend(ctx, tenant, seen, now)
	}
	return purged, err
}

func (s *Store) purgeOne(ctx context.Context, k tenantKeys, id tasks.ID, now time.Time) (bool, error) {
	got, err := s.rdb.HMGet(ctx, k.record(id), "region", "dialect", "project").Result()
	if err != nil {
		return false, redisError("read import", err)
	}
	region, _ := got[0].(string)
	dialect, _ := got[1].(string)
	project, _ := got[2].(string)
	keys := append(taskKeys(k, id), k.list(region, dialect), k.listOf(region, dialect, project))
	n, err := purgeCmd.Run(ctx, s.rdb, keys, string(id), at(now), forgetAfter.Milliseconds()).Int()
	if err != nil {
		return false, redisError("purge import", err)
	}
	return n == 1, nil
}

// attendAgain is when a tenant is looked at again of which nothing but images is left. It stays
// known, since its journal may hold what receivers of events were not told yet.
const attendAgain = 24 * time.Hour

// attend notes when a tenant with nothing unfinished needs the dispatcher next:
// when its next record is due for purge, some day while it has images, or never.
func (s *Store) attend(ctx context.Context, tenant tasks.Tenant, seen float64, now time.Time) error {
	k := keysOf(tenant)
	var counts counted
	var first *redis.ZSliceCmd
	// In one transaction: an import that moves between two places while they
	// are counted would be in neither.
	_, err := s.rdb.TxPipelined(ctx, func(p redis.Pipeliner) error {
		counts = count(ctx, p, k, at(now), at(now))
		first = p.ZRangeWithScores(ctx, k.ended(), 0, 0)
		return nil
	})
	if err != nil {
		return redisError("count imports", err)
	}
	if counts.load(now).Open > 0 {
		return nil
	}
	next := ""
	if len(first.Val()) > 0 {
		next = score(first.Val()[0].Score)
	} else if forgot, err := s.forget(ctx, k); err != nil {
		return err
	} else if !forgot {
		next = at(now.Add(attendAgain))
	}
	if err := attendCmd.Run(ctx, s.rdb, []string{tenantsKey}, string(tenant), score(seen), next).Err(); err != nil {
		return redisError("attend tenant", err)
	}
	return nil
}

// forget removes the journal of a tenant that has nothing left, and reports whether it did.
func (s *Store) forget(ctx context.Context, k tenantKeys) (bool, error) {
	keys := []string{k.waiting(), k.dispatched(), k.cleanups(), k.dispatchedCleanup(), k.running(), k.ended(), k.usage(), k.journal(), k.cursors()}
	n, err := forgetCmd.Run(ctx, s.rdb, keys).Int()
	if err != nil {
		return false, redisError("remove journal", err)
	}
	return n == 1, nil
}

// score formats a score, such as a time, as scripts take it.
func score(ms float64) string { return strconv.FormatFloat(ms, 'f', -1, 64) }

// dueBy selects members scored up to t, at most n of them; n 0 is all.
func dueBy(t time.Time, n int) *redis.ZRangeBy {
	return &redis.ZRangeBy{Min: "-inf", Max: at(t), Count: int64(n)}
}
