package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

// A mark is the id of a stream entry: a time in Unix milliseconds and a number within it.
// Changes after a mark are complete if the mark's own entry is still there, since only the
// oldest entries are ever dropped. One that is not there was dropped, or lost when a replica
// took over that did not have it, or belongs to a journal that was removed, or never was: for
// none of these can anybody say what came after it. The counters of XINFO STREAM would allow
// for a mark just before the first entry, and for no more.

// Changes implements tasks.Journal.
func (s *Store) Changes(ctx context.Context, tenant tasks.Tenant, after string, limit int) ([]tasks.Change, error) {
	if after != "" && !isMark(after) {
		return nil, tasks.ErrMarkGone
	}
	from, count := "-", int64(max(limit, 0))
	if after != "" {
		from, count = after, count+1
	}
	if count == 0 {
		return nil, nil
	}
	entries, err := s.rdb.XRangeN(ctx, keysOf(tenant).journal(), from, "+", count).Result()
	if err != nil {
		return nil, redisError("read journal", err)
	}
	if after != "" {
		if len(entries) == 0 || entries[0].ID != after {
			return nil, tasks.ErrMarkGone
		}
		entries = entries[1:]
	}
	changes := make([]tasks.Change, len(entries))
	for i, e := range entries {
		if changes[i], err = decodeChange(e); err != nil {
			return nil, err
		}
	}
	return changes, nil
}

// isMark reports whether s is written as Redis writes the id of an entry.
func isMark(s string) bool {
	ms, n, ok := strings.Cut(s, "-")
	return ok && isNumber(ms) && isNumber(n)
}

// isNumber reports whether s is a 64-bit number as it is usually written.
func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// decodeChange reads what the Lua function move has written.
func decodeChange(e redis.XMessage) (tasks.Change, error) {
	r := reader{values: make(map[string]string, len(e.Values))}
	for field, v := range e.Values {
		r.values[field], _ = v.(string)
	}
	dialect, kind, ok := strings.Cut(r.values["api"], "/")
	if !ok {
		kind = string(tasks.KindImport)
	}
	c := tasks.Change{
		Mark:     e.ID,
		ID:       tasks.ID(r.values["id"]),
		Kind:     tasks.Kind(kind),
		Region:   r.values["region"],
		Project:  r.values["project"],
		Dialect:  dialect,
		Name:     r.values["name"],
		State:    tasks.State(r.values["state"]),
		Progress: int(r.int("progress")),
		Epoch:    tasks.Epoch(r.int("epoch")),
		At:       r.time("at_ms"),
	}
	r.json("failure", &c.Failure)
	if r.err != nil {
		return tasks.Change{}, fmt.Errorf("decode journal entry %s: %w", e.ID, r.err)
	}
	return c, nil
}

// Latest implements tasks.Journal.
func (s *Store) Latest(ctx context.Context, tenant tasks.Tenant) (string, error) {
	entries, err := s.rdb.XRevRangeN(ctx, keysOf(tenant).journal(), "+", "-", 1).Result()
	if err != nil {
		return "", redisError("read journal", err)
	}
	if len(entries) == 0 {
		return "", nil
	}
	return entries[0].ID, nil
}

// Running implements tasks.Journal.
func (s *Store) Running(ctx context.Context, tenant tasks.Tenant, limit int) ([]*tasks.Task, error) {
	if limit <= 0 {
		return nil, nil
	}
	k := keysOf(tenant)
	ids, err := s.rdb.ZRange(ctx, k.running(), 0, int64(limit)-1).Result()
	if err != nil {
		return nil, redisError("list running imports", err)
	}
	return s.readMany(ctx, k, ids)
}

// Follow implements tasks.Journal.
func (s *Store) Follow(ctx context.Context, onChange func(tasks.Tenant)) error {
	return s.subscribe(ctx, func(m *redis.Message) {
		if tenant, ok := journalTenant(m.Payload); ok {
			onChange(tenant)
		}
	}, changesChannel)
}
