package redisstore

import "github.com/redis/go-redis/v9"

// The scripts of tasks.Claims, but for the one about deleted images. They begin as scripts.go
// says.

// claimCmd gives the import to a worker under a new epoch.
//
// ARGV[3] -> nonce of this claim
// ARGV[4] -> worker
// ARGV[5] -> lease, ms
// ARGV[6...] -> states that may become processing
//
// Returns
//
//	{"claimed", epoch}
//	{"refused"} another state, not due, or held by another worker
//
// A second run finds its own nonce and answers as the first.
var claimCmd = redis.NewScript(luaLib + `
load("state", "epoch", "claim", "claim_until", "not_before_ms", "started_ms", "deleted_by", "removed", "kept_until_ms")
if not rec.state then return {"refused"} end
if rec.claim_until ~= "0" then
  if rec.claim == ARGV[3] then return {"claimed", tonumber(rec.epoch)} end
  return {"refused"}
end
local turn = among(rec.state, 6)
-- A ticket of an earlier turn must not cut a pause short.
if turn and tonumber(rec.not_before_ms) > now then return {"refused"} end
if not turn and not clearing() then return {"refused"} end
local epoch = redis.call("HINCRBY", KEYS[1], "epoch", 1)
local till = now + tonumber(ARGV[5])
redis.call("HSET", KEYS[1], "claim", ARGV[3], "worker", ARGV[4], "claimed_ms", stamp(now),
  "claim_until", stamp(till), "updated_ms", stamp(now), "stage", turn and "inspecting" or "cleaning")
if not rec.started_ms then redis.call("HSET", KEYS[1], "started_ms", stamp(now)) end
if turn then
  move("processing")
  enter("working")
elseif rec.kept_until_ms then
  -- From now on some of it may be gone, so that none of it is good for a retry.
  redis.call("HSET", KEYS[1], "kept_until_ms", 0)
  redis.call("HDEL", KEYS[1], "checkpoint")
end
place(6, till)
return {"claimed", epoch}
`)

// beatCmd extends a claim and stores the worker's figures.
//
// ARGV[4] -> lease, ms
// ARGV[5] -> percent
// ARGV[6] -> stage
// ARGV[7] -> counters, JSON
//
// Returns {"held", state, running imports} or {"fenced"}. Running twice does no harm.
var beatCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
load("progress")
local percent = math.max(tonumber(rec.progress), tonumber(ARGV[5]))
local till = now + tonumber(ARGV[4])
redis.call("HSET", KEYS[1], "claim_until", stamp(till), "updated_ms", stamp(now),
  "progress", percent, "stage", ARGV[6], "counters", ARGV[7])
place(6, till)
return {"held", rec.state, redis.call("ZCARD", KEYS[6])}
`)

// checkpointCmd stores where the next attempt may go on.
//
// ARGV[4] -> checkpoint, or "" to remove it
// ARGV[5] -> bytes of the whole import that it stands for
//
// Returns {"held"} or {"fenced"}. Running twice does no harm.
var checkpointCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if ARGV[4] == "" then
  redis.call("HDEL", KEYS[1], "checkpoint")
  return {"held"}
end
redis.call("HSET", KEYS[1], "checkpoint", ARGV[4])
load("furthest")
if tonumber(ARGV[5]) > tonumber(rec.furthest) then
  redis.call("HSET", KEYS[1], "furthest", ARGV[5], "crashes", 0, "setbacks", 0)
end
return {"held"}
`)

// reassignCmd gives the import another image id.
//
// ARGV[4] -> image id
// ARGV[5] -> state in which it may get one
//
// Returns {"held"}, {"image_in_use"}, {"canceled"} or {"fenced"}. A second run finds
// the id in place.
var reassignCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if rec.state ~= ARGV[5] then return {"canceled"} end
load("region")
local image = rec.region .. "/" .. ARGV[4]
if rec.image == image then return {"held"} end
if redis.call("HEXISTS", KEYS[8], image) == 1 then return {"image_in_use"} end
redis.call("HSET", KEYS[8], image, id)
if redis.call("HGET", KEYS[8], rec.image) == id then redis.call("HDEL", KEYS[8], rec.image) end
redis.call("HSET", KEYS[1], "image", image, "updated_ms", stamp(now))
redis.call("HDEL", KEYS[1], "checkpoint")
return {"held"}
`)

// publishCmd excludes a cancel from now on.
//
// ARGV[4] -> result, JSON
// ARGV[5...] -> states that may become succeeded
//
// Returns {"held"}, {"canceled"} or {"fenced"}. Running twice does no harm.
var publishCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if not among(rec.state, 5) then return {"canceled"} end
redis.call("HSET", KEYS[1], "publishing", 1, "result", ARGV[4], "stage", "publishing", "updated_ms", stamp(now))
return {"held"}
`)

// condemnCmd excludes a success from now on.
//
// ARGV[4] -> verdict, JSON
// ARGV[5...] -> states that may become failed
//
// Returns {"held"}, {"canceled"} or {"fenced"}. Running twice does no harm.
var condemnCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if not among(rec.state, 5) then return {"canceled"} end
redis.call("HSET", KEYS[1], "verdict", ARGV[4], "updated_ms", stamp(now))
return {"held"}
`)

// finishCmd ends the import.
//
// ARGV[4] -> final state
// ARGV[5] -> retention of the record, ms
// ARGV[6] -> failure, JSON, or ""
// ARGV[7] -> attempt, JSON
// ARGV[8] -> attempts to keep
// ARGV[9] -> how long the checkpoint is kept of one that failed, ms; 0: not at all
// ARGV[10...] -> states from which a worker may bring it to the final one
//
// Returns
//
//	{"finished"}
//	{"refused", state} the table does not allow the move, or a success was not
//	                   preceded by publishCmd
//	{"fenced"}
//
// A second run finds the state reached under its own epoch.
var finishCmd = redis.NewScript(luaLib + luaHeld + `
local to = ARGV[4]
if rec.state == to then return {"finished"} end
if not held then return {"fenced"} end
if not among(rec.state, 10) then return {"refused", rec.state} end
if to == "succeeded" then
  if rec.publishing ~= "1" then return {"refused", rec.state} end
  redis.call("HSET", KEYS[1], "progress", 100)
else
  redis.call("HDEL", KEYS[1], "result")
end
if ARGV[6] ~= "" then redis.call("HSET", KEYS[1], "failure", ARGV[6]) end
remember(ARGV[7], ARGV[8])
finish(to, tonumber(ARGV[5]), tonumber(ARGV[9]))
return {"finished"}
`)

// releaseCmd gives a claim back.
//
// ARGV[4] -> pause, ms
// ARGV[5] -> 1 to count a setback, else 0
// ARGV[6] -> 1 if only leftovers are still to be removed, else 0
// ARGV[7] -> attempt, JSON
// ARGV[8] -> attempts to keep
// ARGV[9...] -> states from which a worker may bring it back to queued
//
// Returns {"released"}, {"fenced"}, or {"canceled"} if the caller does not know
// yet that the import is cancelling. A second run finds the claim given back.
var releaseCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"released"} end
local to = rec.state
if among(rec.state, 9) then
  to = "queued"
elseif not clearing() then
  return {"fenced"}
elseif ARGV[6] ~= "1" then
  return {"canceled"}
end
redis.call("HINCRBY", KEYS[1], "setbacks", ARGV[5])
giveback(to, now + tonumber(ARGV[4]))
remember(ARGV[7], ARGV[8])
return {"released"}
`)

// cleanAgainCmd has a failed import handed out for a clean-up, unless one is still to come. It may
// have been purged.
//
// Returns 1 if it did.
var cleanAgainCmd = redis.NewScript(luaLib + `
load("state", "kept_until_ms")
if rec.state ~= "failed" or rec.kept_until_ms then return 0 end
redis.call("HSET", KEYS[1], "kept_until_ms", stamp(now))
redis.call("HDEL", KEYS[1], "removed") -- of a deleted one, until it is so again
redis.call("SADD", KEYS[13], id)
place(4, now)
return 1
`)
