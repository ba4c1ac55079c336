package redisstore

import "github.com/redis/go-redis/v9"

// retryCmd makes a failed import queued again, once for each failure.
//
// ARGV[3] -> region that the record must be in
// ARGV[4] -> project that it must be of, or "" for any
// ARGV[5] -> api that it must have come in through, or "" for any
// ARGV[6] -> kind that it must be of
// ARGV[7] -> nonce of this request
// ARGV[8] -> most unfinished imports, 0 for no bound
// ARGV[9] -> most images, 0 for no bound
// ARGV[10] -> most disks of images, 0 for no bound
// ARGV[11...] -> states that may become queued but by a worker
//
// Returns
//
//	{"accepted"}
//	{"missing"}    also if the image that the record stands for was deleted
//	{"not_failed"}
//	{"cleaning"}   what was kept is being removed
//	a broken rule, as createCmd
//
// A second run finds its own nonce and answers as the first.
//
// A clean-up that was dispatched counts as begun, or else the import would be claimed with a
// ticket that is for slots of clean-ups.
var retryCmd = redis.NewScript(luaLib + luaRules + `
load("state", "region", "project", "dialect", "kind", "image", "name", "usage", "disks", "deleted_by", "kept_until_ms",
  "retried_by")
if hidden() then return {"missing"} end
if rec.retried_by == ARGV[7] then return {"accepted"} end
if rec.deleted_by then return {"missing"} end
if not among(rec.state, 11) then return {"not_failed"} end
if rec.kept_until_ms == "0" or redis.call("ZSCORE", KEYS[5], id) then return {"cleaning"} end
local rule = broken(rec.image, rec.name, rec.usage, rec.disks, ARGV[8], ARGV[9], ARGV[10])
if rule then return {rule} end

reserve(rec.image, rec.name)
redis.call("SREM", KEYS[13], id)
redis.call("ZREM", KEYS[7], id)
redis.call("HDEL", KEYS[1], "verdict", "failure", "finished_ms", "kept_until_ms")
redis.call("HSET", KEYS[1], "retried_by", ARGV[7], "setbacks", 0, "crashes", 0)
redis.call("HINCRBY", KEYS[1], "retried", 1)
-- Without a checkpoint it gets further than ever once it has begun.
if redis.call("HEXISTS", KEYS[1], "checkpoint") == 0 then redis.call("HSET", KEYS[1], "furthest", 0) end
giveback("queued", now)
enter("working")
count(1)
return {"accepted"}
`)
