package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"vmimport/tasks"
)

var _ tasks.Outbox = (*Store)(nil)

// Keys about the receivers of events. They share a hash tag of their own.
const (
	// receiversKey (HASH) holds since when each receiver is known, in Unix ms.
	receiversKey = "vmimport:{receivers}:since"
	// receiversSeenKey (ZSET) holds when somebody last led for each.
	receiversSeenKey = "vmimport:{receivers}:seen"
)

// receiverLeader (STRING, expiring) holds the name of who sends to a receiver.
func receiverLeader(receiver string) string {
	return "vmimport:{receivers}:leader:" + escape(receiver)
}

// cursors (HASH) holds the cursor of each receiver, as encodeCursor has it.
func (k tenantKeys) cursors() string { return k.prefix + "cursors" }

// receiverLife is how long after anybody led for a receiver it is forgotten.
const receiverLife = 30 * 24 * time.Hour

// leadReceiverCmd takes or keeps the lead for a receiver, and forgets those that nobody leads
// for any more. Times are those of this Redis, as those in the ids of journals are.
//
// KEYS[1] -> leader (STRING)
// KEYS[2] -> receivers (HASH)
// KEYS[3] -> receivers by when they were seen (ZSET)
// --
// ARGV[1] -> who
// ARGV[2] -> for how long, ms
// ARGV[3] -> receiver
// ARGV[4] -> how long a receiver is remembered, ms
// ARGV[5] -> how long before now a new one begins, ms
//
// Returns 1 if who leads.
var leadReceiverCmd = redis.NewScript(`
local leads = redis.call("GET", KEYS[1])
if leads and leads ~= ARGV[1] then return 0 end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
local t = redis.call("TIME")
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call("HSETNX", KEYS[2], ARGV[3], string.format("%.0f", now - ARGV[5]))
redis.call("ZADD", KEYS[3], string.format("%.0f", now), ARGV[3])
for _, r in ipairs(redis.call("ZRANGEBYSCORE", KEYS[3], "-inf", string.format("%.0f", now - ARGV[4]))) do
  redis.call("HDEL", KEYS[2], r)
  redis.call("ZREM", KEYS[3], r)
end
return 1
`)

// moveCursorCmd moves a cursor that is where it is believed to be. If it already is where it
// is to go, the command ran before.
//
// KEYS[1] -> cursors (HASH)
// --
// ARGV[1] -> receiver
// ARGV[2] -> from
// ARGV[3] -> to
//
// Returns 1 if it is there.
var moveCursorCmd = redis.NewScript(`
local at = redis.call("HGET", KEYS[1], ARGV[1])
if at == ARGV[3] then return 1 end
if at and at ~= ARGV[2] then return 0 end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
return 1
`)

// beginsBefore is how long before now a new receiver begins. It must not miss what a node of a
// Cluster writes whose clock is behind that of the receivers' node.
func (s *Store) beginsBefore() time.Duration {
	if _, ok := s.rdb.(*redis.ClusterClient); ok {
		return time.Second
	}
	return 0
}

// LeadReceiver implements tasks.Outbox.
func (s *Store) LeadReceiver(ctx context.Context, receiver, who string, ttl time.Duration) (bool, error) {
	n, err := leadReceiverCmd.Run(ctx, s.rdb, []string{receiverLeader(receiver), receiversKey, receiversSeenKey},
		who, ttl.Milliseconds(), receiver, receiverLife.Milliseconds(), s.beginsBefore().Milliseconds()).Int()
	if err != nil {
		return false, redisError("lead for receiver", err)
	}
	return n == 1, nil
}

// ResignReceiver implements tasks.Outbox.
func (s *Store) ResignReceiver(ctx context.Context, receiver, who string) error {
	if err := resignCmd.Run(ctx, s.rdb, []string{receiverLeader(receiver)}, who).Err(); err != nil {
		return redisError("resign for receiver", err)
	}
	return nil
}

// Behind implements tasks.Outbox.
func (s *Store) Behind(ctx context.Context, receiver string) ([]tasks.Tenant, error) {
	all, err := s.rdb.ZRange(ctx, tenantsKey, 0, -1).Result()
	if err != nil {
		return nil, redisError("list tenants", err)
	}
	var behind []tasks.Tenant
	for batch := range slices.Chunk(all, surveyBatch) {
		found, err := s.behind(ctx, receiver, batch)
		if err != nil {
			return nil, err
		}
		behind = append(behind, found...)
	}
	return behind, nil
}

// standing is a tenant's journal and the receivers' places in it.
type standing struct {
	cursors *redis.MapStringStringCmd
	latest  *redis.XMessageSliceCmd
	begin   *redis.XMessageSliceCmd // nil if there is a cursor
}

// behind is Behind for some tenants. It also removes the cursors of forgotten receivers.
func (s *Store) behind(ctx context.Context, receiver string, tenants []string) ([]tasks.Tenant, error) {
	stands := make([]standing, len(tenants))
	_, err := s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, t := range tenants {
			k := keysOf(tasks.Tenant(t))
			stands[i] = standing{cursors: p.HGetAll(ctx, k.cursors()), latest: p.XRevRangeN(ctx, k.journal(), "+", "-", 1)}
		}
		return nil
	})
	if err != nil {
		return nil, redisError("look for events", err)
	}
	// Read after the cursors: whoever has moved one was known by then.
	known, err := s.rdb.HGetAll(ctx, receiversKey).Result()
	if err != nil {
		return nil, redisError("read receivers", err)
	}
	before, err := beginOf(known[receiver])
	if err != nil {
		return nil, err
	}
	_, err = s.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, t := range tenants {
			k := keysOf(tasks.Tenant(t))
			cursors := stands[i].cursors.Val()
			if _, ok := cursors[receiver]; !ok {
				stands[i].begin = p.XRevRangeN(ctx, k.journal(), before, "-", 1)
			}
			for r := range cursors {
				if _, ok := known[r]; !ok {
					p.HDel(ctx, k.cursors(), r)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, redisError("look for events", err)
	}
	var behind []tasks.Tenant
	for i, t := range tenants {
		at := firstMark(stands[i].begin)
		if c, ok := stands[i].cursors.Val()[receiver]; ok {
			at, _, _ = strings.Cut(c, " ")
		}
		if latest := firstMark(stands[i].latest); latest != "" && latest != at {
			behind = append(behind, tasks.Tenant(t))
		}
	}
	return behind, nil
}

// firstMark returns the mark of the first entry that a command brought, "" if none did.
func firstMark(cmd *redis.XMessageSliceCmd) string {
	if cmd == nil || len(cmd.Val()) == 0 {
		return ""
	}
	return cmd.Val()[0].ID
}

// beginOf returns the last id in a journal that a receiver, known since then, is not told of.
func beginOf(since string) (string, error) {
	ms, err := strconv.ParseInt(since, 10, 64)
	if err != nil {
		return "", errors.New("nobody has led for the receiver")
	}
	return fmt.Sprintf("%d-%d", max(ms-1, 0), uint64(math.MaxUint64)), nil
}

// Cursor implements tasks.Outbox.
func (s *Store) Cursor(ctx context.Context, receiver string, tenant tasks.Tenant) (tasks.Cursor, error) {
	k := keysOf(tenant)
	stored, err := s.rdb.HGet(ctx, k.cursors(), receiver).Result()
	if err == nil {
		return decodeCursor(stored)
	}
	if !errors.Is(err, redis.Nil) {
		return tasks.Cursor{}, redisError("read cursor", err)
	}
	since, err := s.rdb.HGet(ctx, receiversKey, receiver).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return tasks.Cursor{}, redisError("read receiver", err)
	}
	before, err := beginOf(since)
	if err != nil {
		return tasks.Cursor{}, err
	}
	begin := s.rdb.XRevRangeN(ctx, k.journal(), before, "-", 1)
	if err := begin.Err(); err != nil {
		return tasks.Cursor{}, redisError("read journal", err)
	}
	return tasks.Cursor{Mark: firstMark(begin)}, nil
}

// MoveCursor implements tasks.Outbox.
func (s *Store) MoveCursor(ctx context.Context, receiver string, tenant tasks.Tenant, from, to tasks.Cursor) error {
	n, err := moveCursorCmd.Run(ctx, s.rdb, []string{keysOf(tenant).cursors()}, receiver, encodeCursor(from), encodeCursor(to)).Int()
	switch {
	case err != nil:
		return redisError("move cursor", err)
	case n == 0:
		return tasks.ErrCursorMoved
	}
	return nil
}

// noMark stands for an empty mark, which would not be seen among spaces.
const noMark = "-"

// encodeCursor writes a cursor as mark, tries, refusals, and since and not before in Unix ms.
func encodeCursor(c tasks.Cursor) string {
	ms := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	return fmt.Sprintf("%s %d %d %d %d", cmp.Or(c.Mark, noMark), c.Tries, c.Refusals, ms(c.Since), ms(c.NotBefore))
}

func decodeCursor(s string) (tasks.Cursor, error) {
	fields := strings.Fields(s)
	if len(fields) != 5 {
		return tasks.Cursor{}, fmt.Errorf("decode cursor: %d fields", len(fields))
	}
	var n [4]int64
	for i := range n {
		var err error
		if n[i], err = strconv.ParseInt(fields[i+1], 10, 64); err != nil {
			return tasks.Cursor{}, fmt.Errorf("decode cursor: %w", err)
		}
	}
	moment := func(ms int64) time.Time {
		if ms == 0 {
			return time.Time{}
		}
		return time.UnixMilli(ms).UTC()
	}
	c := tasks.Cursor{Mark: fields[0], Tries: int(n[0]), Refusals: int(n[1]), Since: moment(n[2]), NotBefore: moment(n[3])}
	if c.Mark == noMark {
		c.Mark = ""
	}
	return c, nil
}
