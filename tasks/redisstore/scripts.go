package redisstore

import "github.com/redis/go-redis/v9"

// Scripts about one import share their first keys, so that the pieces below can
// be written once:
//
//	KEYS[1]  -> record              (HASH)
//	KEYS[2]  -> waiting             (ZSET)
//	KEYS[3]  -> dispatched          (ZSET)
//	KEYS[4]  -> cleanups            (ZSET)
//	KEYS[5]  -> dispatched-cleanups (ZSET)
//	KEYS[6]  -> running             (ZSET)
//	KEYS[7]  -> ended               (ZSET)
//	KEYS[8]  -> images              (HASH)
//	KEYS[9]  -> names               (HASH)
//	KEYS[10] -> attempts            (LIST)
//	KEYS[11] -> usage               (HASH)
//
// Their first arguments are
//
//	ARGV[1] -> import id
//	ARGV[2] -> now, Unix ms, or "" for the time of this Redis
//
// Legal source states of a move come from the table in package tasks, as the
// last arguments.
//
// The lists of an import with ListsImage go by the record's own list field. They have
// the hash tag of all the others, so that a Cluster has them in the same place.
//
// Every script may run twice, when a connection broke after the first run and
// before its answer. Each says how it tells that case.

// luaLib is the beginning of those scripts.
const luaLib = `
local id, now = ARGV[1], ARGV[2]
if now == "" then
  local t = redis.call("TIME")
  now = t[1] * 1000 + math.floor(t[2] / 1000)
else
  now = tonumber(now)
end
local function stamp(ms) return string.format("%.0f", ms) end
local rec = {}
local function load(...)
  local got = redis.call("HMGET", KEYS[1], ...)
  for i, f in ipairs({...}) do rec[f] = got[i] end
end
-- among tells whether state is one of ARGV[first...].
local function among(state, first)
  for i = first, #ARGV do
    if ARGV[i] == state then return true end
  end
  return false
end
-- place puts the import into KEYS[at], and out of the other places.
local function place(at, score)
  for i = 2, 6 do
    if i ~= at then redis.call("ZREM", KEYS[i], id) end
  end
  if at > 0 then redis.call("ZADD", KEYS[at], stamp(score), id) end
end
-- clearing tells whether all that is left to do is to remove what there is. rec needs
-- state, deleted_by and removed.
local function clearing()
  return rec.state == "cancelling" or (rec.deleted_by and not rec.removed)
end
-- enter moves the import to the lists of a phase, and takes note of it.
local function enter(to)
  load("list", "phase", "seq")
  if not rec.list or rec.phase == to then return end
  for _, list in ipairs({rec.list, rec.list .. ":images"}) do
    if rec.phase then redis.call("ZREM", list .. ":" .. rec.phase, id) end
    redis.call("ZADD", list .. ":" .. to, rec.seq, id)
  end
  redis.call("HSET", KEYS[1], "phase", to)
end
-- unname gives the name back, if it is reserved for this import. rec needs name.
local function unname()
  if rec.name and rec.name ~= "" and redis.call("HGET", KEYS[9], rec.name) == id then
    redis.call("HDEL", KEYS[9], rec.name)
  end
end
-- count adds the import to the usage, or (-1) takes it off.
local function count(by)
  load("usage", "disks")
  if not rec.usage then return end
  redis.call("HINCRBY", KEYS[11], rec.usage .. "/images", by)
  redis.call("HINCRBY", KEYS[11], rec.usage .. "/disks", by * rec.disks)
end
-- giveback ends the claim, if there is one, and lets the import wait until due.
local function giveback(state, due)
  rec.state = state
  redis.call("HSET", KEYS[1], "state", state, "stage", "waiting", "claim_until", 0, "publishing", 0,
    "not_before_ms", stamp(due), "updated_ms", stamp(now))
  redis.call("HDEL", KEYS[1], "counters")
  if clearing() then place(4, due) else place(2, due) end
end
-- finish moves the import to a final state, whose phase has the same name. A record that
-- stands for an image stays. rec needs image and name.
local function finish(to, retention)
  redis.call("HSET", KEYS[1], "state", to, "stage", "done", "finished_ms", stamp(now), "updated_ms", stamp(now),
    "claim_until", 0, "publishing", 0)
  redis.call("HDEL", KEYS[1], "checkpoint")
  place(0)
  enter(to)
  if redis.call("HGET", KEYS[8], rec.image) == id then redis.call("HDEL", KEYS[8], rec.image) end
  load("kind")
  if to ~= "succeeded" then
    unname()
    count(-1)
  elseif rec.kind == "export" then
    unname() -- from now on its objects tell that the name is taken
  end
  if to ~= "succeeded" or not rec.list then
    redis.call("ZADD", KEYS[7], stamp(now + retention), id)
  end
end
-- remember keeps an ended attempt.
local function remember(attempt, keep)
  redis.call("RPUSH", KEYS[10], attempt)
  redis.call("LTRIM", KEYS[10], -tonumber(keep), -1)
end
`

// luaHeld follows luaLib in scripts that a worker runs under its claim.
//
// ARGV[3] -> epoch that the caller holds
//
// It returns {"fenced"} out of the script if there is a later claim or no
// record. held then tells whether the claim still stands: it may have been given
// back, by its worker or by the dispatcher, and not been claimed anew.
const luaHeld = `
load("state", "epoch", "claim_until", "publishing", "image", "name", "deleted_by", "removed")
if not rec.state or rec.epoch ~= ARGV[3] then return {"fenced"} end
local held = rec.claim_until ~= "0"
`

// createCmd makes a queued import.
//
// KEYS[1...11] as above
// KEYS[12] -> list                (ZSET)
// KEYS[13] -> list of the project (ZSET)
// KEYS[14] -> seq                 (STRING)
// KEYS[15] -> client token        (HASH)
// --
// ARGV[3]  -> spec, JSON
// ARGV[4]  -> region
// ARGV[5]  -> project
// ARGV[6]  -> field in images
// ARGV[7]  -> field in names, or "" to reserve no name
// ARGV[8]  -> fingerprint of the client token, or "" for no token
// ARGV[9]  -> time to live of the token, ms
// ARGV[10] -> most unfinished imports, 0 for no bound
// ARGV[11] -> dialect, and kind if that is not import: see api
// ARGV[12] -> disks if the record stands for the image, else 0
// ARGV[13] -> most images, 0 for no bound
// ARGV[14] -> most disks of images, 0 for no bound
// ARGV[15] -> 1 to make nothing and only answer, else 0
// ARGV[16] -> kind
//
// Returns
//
//	{"created"}
//	{"repeated", id}   the token was used before with the same fingerprint
//	{"token_mismatch"} the token was used before with another one
//	{"too_many"}, {"too_many_images"}, {"too_many_disks"}
//	{"name_in_use"}
//	{"image_in_use"}
//
// A second run finds its own spec under the id and answers as the first.
var createCmd = redis.NewScript(luaLib + `
if redis.call("HGET", KEYS[1], "spec") == ARGV[3] then return {"created"} end
if ARGV[8] ~= "" then
  local t = redis.call("HMGET", KEYS[15], "id", "fingerprint")
  if t[1] then
    if t[2] == ARGV[8] then return {"repeated", t[1]} end
    return {"token_mismatch"}
  end
end
if ARGV[7] ~= "" and redis.call("HEXISTS", KEYS[9], ARGV[7]) == 1 then return {"name_in_use"} end
if redis.call("HEXISTS", KEYS[8], ARGV[6]) == 1 then return {"image_in_use"} end
local most = tonumber(ARGV[10])
if most > 0 then
  local open = 0
  for i = 2, 6 do open = open + redis.call("ZCARD", KEYS[i]) end
  if open >= most then return {"too_many"} end
end
local disks = tonumber(ARGV[12])
local usage = ARGV[4] .. "/" .. ARGV[11]
if disks > 0 then
  local function exceeds(what, by, limit)
    local has = tonumber(redis.call("HGET", KEYS[11], usage .. "/" .. what) or 0)
    return limit > 0 and has + by > limit
  end
  if exceeds("images", 1, tonumber(ARGV[13])) then return {"too_many_images"} end
  if exceeds("disks", disks, tonumber(ARGV[14])) then return {"too_many_disks"} end
end
if ARGV[15] == "1" then return {"created"} end

redis.call("HSET", KEYS[8], ARGV[6], id)
if ARGV[7] ~= "" then redis.call("HSET", KEYS[9], ARGV[7], id) end
if ARGV[8] ~= "" then
  redis.call("HSET", KEYS[15], "id", id, "fingerprint", ARGV[8])
  redis.call("PEXPIRE", KEYS[15], ARGV[9])
end
redis.call("HSET", KEYS[1], "spec", ARGV[3], "region", ARGV[4], "project", ARGV[5], "dialect", ARGV[11], "kind", ARGV[16],
  "image", ARGV[6], "name", ARGV[7], "epoch", 0, "tickets", 0, "progress", 0,
  "setbacks", 0, "crashes", 0, "furthest", 0)
giveback("queued", now)
local n = redis.call("INCR", KEYS[14])
redis.call("ZADD", KEYS[12], n, id)
redis.call("ZADD", KEYS[13], n, id)
if disks > 0 then
  redis.call("ZADD", KEYS[12] .. ":images", n, id)
  redis.call("HSET", KEYS[1], "list", KEYS[12], "seq", n, "usage", usage, "disks", disks)
  enter("waiting")
  count(1)
end
return {"created"}
`)

// cancelCmd accepts a cancel once.
//
// ARGV[3] -> region that the record must be in
// ARGV[4] -> project that it must be of, or "" for any
// ARGV[5] -> api that it must have come in through, or "" for any
// ARGV[6] -> retention of the record, ms
// ARGV[7] -> nonce of this request
// ARGV[8] -> kind that it must be of
// ARGV[9...] -> states that may become cancelling
//
// Returns
//
//	{"accepted", new state}
//	{"requested"} a cancel was accepted before
//	{"finished"}  it ended otherwise, or is being published
//	{"missing"}
//
// A second run finds its own nonce and answers as the first.
var cancelCmd = redis.NewScript(luaLib + `
load("state", "epoch", "publishing", "region", "project", "dialect", "kind", "image", "name", "canceled_by")
if not rec.state or rec.region ~= ARGV[3] or (rec.kind or "import") ~= ARGV[8] then return {"missing"} end
if ARGV[4] ~= "" and rec.project ~= ARGV[4] then return {"missing"} end
if ARGV[5] ~= "" and rec.dialect ~= ARGV[5] then return {"missing"} end
if rec.canceled_by == ARGV[7] then return {"accepted", rec.state} end
if rec.canceled_by then return {"requested"} end
if rec.publishing == "1" or not among(rec.state, 9) then return {"finished"} end

redis.call("HSET", KEYS[1], "canceled_by", ARGV[7])
if rec.state == "queued" and rec.epoch == "0" then
  finish("canceled", tonumber(ARGV[6]))
  return {"accepted", "canceled"}
end
if rec.state == "queued" then
  -- An earlier attempt may have left something. If the import has a ticket, it
  -- gets another, which does not wait behind imports.
  giveback("cancelling", now)
else
  redis.call("HSET", KEYS[1], "state", "cancelling", "updated_ms", stamp(now))
end
return {"accepted", "cancelling"}
`)

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
load("state", "epoch", "claim", "claim_until", "not_before_ms", "started_ms", "deleted_by", "removed")
if not rec.state then return {"refused"} end
if rec.claim_until ~= "0" then
  if rec.claim == ARGV[3] then return {"claimed", tonumber(rec.epoch)} end
  return {"refused"}
end
if among(rec.state, 6) then
  -- A ticket of an earlier turn must not cut a pause short.
  if tonumber(rec.not_before_ms) > now then return {"refused"} end
  redis.call("HSET", KEYS[1], "state", "processing", "stage", "inspecting")
  enter("working")
elseif clearing() then
  redis.call("HSET", KEYS[1], "stage", "cleaning")
else
  return {"refused"}
end
local epoch = redis.call("HINCRBY", KEYS[1], "epoch", 1)
local till = now + tonumber(ARGV[5])
redis.call("HSET", KEYS[1], "claim", ARGV[3], "worker", ARGV[4], "claimed_ms", stamp(now),
  "claim_until", stamp(till), "updated_ms", stamp(now))
if not rec.started_ms then redis.call("HSET", KEYS[1], "started_ms", stamp(now)) end
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
// Returns {"held", state} or {"fenced"}. Running twice does no harm.
var beatCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
load("progress")
local percent = math.max(tonumber(rec.progress), tonumber(ARGV[5]))
local till = now + tonumber(ARGV[4])
redis.call("HSET", KEYS[1], "claim_until", stamp(till), "updated_ms", stamp(now),
  "progress", percent, "stage", ARGV[6], "counters", ARGV[7])
place(6, till)
return {"held", rec.state}
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
// ARGV[9...] -> states that may become the final one
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
if not among(rec.state, 9) then return {"refused", rec.state} end
if to == "succeeded" then
  if rec.publishing ~= "1" then return {"refused", rec.state} end
  redis.call("HSET", KEYS[1], "progress", 100)
else
  redis.call("HDEL", KEYS[1], "result")
end
if ARGV[6] ~= "" then redis.call("HSET", KEYS[1], "failure", ARGV[6]) end
remember(ARGV[7], ARGV[8])
finish(to, tonumber(ARGV[5]))
return {"finished"}
`)

// releaseCmd gives a claim back.
//
// ARGV[4] -> pause, ms
// ARGV[5] -> 1 to count a setback, else 0
// ARGV[6] -> 1 if only leftovers are still to be removed, else 0
// ARGV[7] -> attempt, JSON
// ARGV[8] -> attempts to keep
// ARGV[9...] -> states that may become queued
//
// Returns {"released"}, {"fenced"}, or {"canceled"} if the caller does not know
// yet that the import is cancelling. A second run finds the claim given back.
var releaseCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"released"} end
if among(rec.state, 9) then
  rec.state = "queued"
elseif not clearing() then
  return {"fenced"}
elseif ARGV[6] ~= "1" then
  return {"canceled"}
end
redis.call("HINCRBY", KEYS[1], "setbacks", ARGV[5])
giveback(rec.state, now + tonumber(ARGV[4]))
remember(ARGV[7], ARGV[8])
return {"released"}
`)
