package redisstore

import "github.com/redis/go-redis/v9"

// Scripts about one import share their first keys, so that the pieces below can
// be written once:
//
//	KEYS[1] -> record     (HASH)
//	KEYS[2] -> waiting    (ZSET)
//	KEYS[3] -> dispatched (ZSET)
//	KEYS[4] -> running    (ZSET)
//	KEYS[5] -> ended      (ZSET)
//	KEYS[6] -> images     (HASH)
//	KEYS[7] -> names      (HASH)
//	KEYS[8] -> attempts   (LIST)
//
// Their first argument is always the import id. Legal source states of a move
// come from the table in package tasks, as the last arguments.
//
// Every script may run twice, when a connection broke after the first run and
// before its answer. Each says how it tells that case.

// luaLib is the beginning of those scripts.
const luaLib = `
local id = ARGV[1]
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
-- unheld marks the claim as given back and puts the import into one index.
local function unheld()
  redis.call("HSET", KEYS[1], "claim_until", 0, "publishing", 0)
  redis.call("ZREM", KEYS[4], id)
end
-- finish moves the import to a final state. rec needs image and name.
local function finish(to, now, purge)
  redis.call("HSET", KEYS[1], "state", to, "stage", "done", "finished_ms", now, "updated_ms", now,
    "claim_until", 0, "publishing", 0)
  redis.call("HDEL", KEYS[1], "checkpoint")
  for i = 2, 4 do redis.call("ZREM", KEYS[i], id) end
  redis.call("ZADD", KEYS[5], purge, id)
  if redis.call("HGET", KEYS[6], rec.image) == id then redis.call("HDEL", KEYS[6], rec.image) end
  if to ~= "succeeded" and rec.name ~= "" and redis.call("HGET", KEYS[7], rec.name) == id then
    redis.call("HDEL", KEYS[7], rec.name)
  end
end
-- remember keeps an ended attempt.
local function remember(attempt, keep)
  redis.call("RPUSH", KEYS[8], attempt)
  redis.call("LTRIM", KEYS[8], -tonumber(keep), -1)
end
`

// luaHeld follows luaLib in scripts that a worker runs under its claim.
//
// ARGV[2] -> epoch that the caller holds
//
// It returns {"fenced"} out of the script if that is not the live claim.
const luaHeld = `
load("state", "epoch", "claim_until", "publishing", "image", "name")
if not rec.state or rec.epoch ~= ARGV[2] then return {"fenced"} end
local held = rec.claim_until ~= "0"
`

// createCmd makes a queued import.
//
// KEYS[1...7] as above
// KEYS[8]  -> list of the region  (ZSET)
// KEYS[9]  -> list of the project (ZSET)
// KEYS[10] -> seq                 (STRING)
// KEYS[11] -> client token        (HASH)
// --
// ARGV[1]  -> import id
// ARGV[2]  -> now, Unix ms
// ARGV[3]  -> spec, JSON
// ARGV[4]  -> region
// ARGV[5]  -> project
// ARGV[6]  -> field in images
// ARGV[7]  -> field in names, or "" to reserve no name
// ARGV[8]  -> fingerprint of the client token, or "" for no token
// ARGV[9]  -> time to live of the token, ms
// ARGV[10] -> most unfinished imports, 0 for no bound
//
// Returns
//
//	{"created"}
//	{"repeated", id}   the token was used before with the same fingerprint
//	{"token_mismatch"} the token was used before with another one
//	{"too_many"}
//	{"name_in_use"}
//	{"image_in_use"}
//
// A second run finds its own spec under the id and answers as the first.
var createCmd = redis.NewScript(`
if redis.call("HGET", KEYS[1], "spec") == ARGV[3] then return {"created"} end
if ARGV[8] ~= "" then
  local t = redis.call("HMGET", KEYS[11], "id", "fingerprint")
  if t[1] then
    if t[2] == ARGV[8] then return {"repeated", t[1]} end
    return {"token_mismatch"}
  end
end
local most = tonumber(ARGV[10])
if most > 0 then
  local open = 0
  for i = 2, 4 do open = open + redis.call("ZCARD", KEYS[i]) end
  if open >= most then return {"too_many"} end
end
if ARGV[7] ~= "" and redis.call("HEXISTS", KEYS[7], ARGV[7]) == 1 then return {"name_in_use"} end
if redis.call("HEXISTS", KEYS[6], ARGV[6]) == 1 then return {"image_in_use"} end

redis.call("HSET", KEYS[6], ARGV[6], ARGV[1])
if ARGV[7] ~= "" then redis.call("HSET", KEYS[7], ARGV[7], ARGV[1]) end
if ARGV[8] ~= "" then
  redis.call("HSET", KEYS[11], "id", ARGV[1], "fingerprint", ARGV[8])
  redis.call("PEXPIRE", KEYS[11], ARGV[9])
end
redis.call("HSET", KEYS[1], "spec", ARGV[3], "region", ARGV[4], "project", ARGV[5],
  "image", ARGV[6], "name", ARGV[7], "state", "queued", "stage", "waiting",
  "epoch", 0, "claim_until", 0, "tickets", 0, "progress", 0, "publishing", 0,
  "setbacks", 0, "crashes", 0, "not_before_ms", ARGV[2], "updated_ms", ARGV[2])
local n = redis.call("INCR", KEYS[10])
redis.call("ZADD", KEYS[8], n, ARGV[1])
redis.call("ZADD", KEYS[9], n, ARGV[1])
redis.call("ZADD", KEYS[2], ARGV[2], ARGV[1])
return {"created"}
`)

// cancelCmd accepts a cancel once.
//
// ARGV[2] -> region that the record must be in
// ARGV[3] -> project that it must be of, or "" for any
// ARGV[4] -> now, Unix ms
// ARGV[5] -> time of the purge, Unix ms
// ARGV[6] -> nonce of this request
// ARGV[7...] -> states that may become cancelling
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
load("state", "epoch", "publishing", "region", "project", "image", "name", "canceled_by")
if not rec.state or rec.region ~= ARGV[2] then return {"missing"} end
if ARGV[3] ~= "" and rec.project ~= ARGV[3] then return {"missing"} end
if rec.canceled_by == ARGV[6] then return {"accepted", rec.state} end
if rec.canceled_by then return {"requested"} end
if rec.publishing == "1" or not among(rec.state, 7) then return {"finished"} end

redis.call("HSET", KEYS[1], "canceled_by", ARGV[6])
if rec.state == "queued" and rec.epoch == "0" then
  finish("canceled", ARGV[4], ARGV[5])
  return {"accepted", "canceled"}
end
redis.call("HSET", KEYS[1], "state", "cancelling", "updated_ms", ARGV[4])
if rec.state == "queued" then
  -- An earlier attempt may have left something: a new ticket, due before all
  -- others, for the queue of clean-ups, whether or not it already had one.
  redis.call("ZREM", KEYS[3], id)
  redis.call("ZADD", KEYS[2], 0, id)
end
return {"accepted", "cancelling"}
`)

// claimCmd gives the import to a worker under a new epoch.
//
// ARGV[2] -> nonce of this claim
// ARGV[3] -> worker
// ARGV[4] -> now, Unix ms
// ARGV[5] -> end of the claim, Unix ms
// ARGV[6...] -> states that may become processing
//
// Returns
//
//	{"claimed", epoch}
//	{"refused"} another state, or held by another worker
//
// A second run finds its own nonce and answers as the first.
var claimCmd = redis.NewScript(luaLib + `
load("state", "epoch", "claim", "claim_until", "started_ms")
if not rec.state then return {"refused"} end
if rec.claim_until ~= "0" then
  if rec.claim == ARGV[2] then return {"claimed", tonumber(rec.epoch)} end
  return {"refused"}
end
if among(rec.state, 6) then
  redis.call("HSET", KEYS[1], "state", "processing", "stage", "inspecting")
elseif rec.state == "cancelling" then
  redis.call("HSET", KEYS[1], "stage", "cleaning")
else
  return {"refused"}
end
local epoch = redis.call("HINCRBY", KEYS[1], "epoch", 1)
redis.call("HSET", KEYS[1], "claim", ARGV[2], "worker", ARGV[3], "claimed_ms", ARGV[4],
  "claim_until", ARGV[5], "updated_ms", ARGV[4], "publishing", 0)
if not rec.started_ms then redis.call("HSET", KEYS[1], "started_ms", ARGV[4]) end
redis.call("ZREM", KEYS[2], id)
redis.call("ZREM", KEYS[3], id)
redis.call("ZADD", KEYS[4], ARGV[5], id)
return {"claimed", epoch}
`)

// beatCmd extends a claim and stores the worker's figures.
//
// ARGV[3] -> now, Unix ms
// ARGV[4] -> new end of the claim, Unix ms
// ARGV[5] -> percent
// ARGV[6] -> stage
// ARGV[7] -> counters, JSON
//
// Returns {"held", state} or {"fenced"}. Running twice does no harm.
var beatCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
load("progress")
local percent = math.max(tonumber(rec.progress), tonumber(ARGV[5]))
redis.call("HSET", KEYS[1], "claim_until", ARGV[4], "updated_ms", ARGV[3],
  "progress", percent, "stage", ARGV[6], "counters", ARGV[7])
redis.call("ZADD", KEYS[4], ARGV[4], id)
return {"held", rec.state}
`)

// checkpointCmd stores where the next attempt may go on.
//
// ARGV[3] -> checkpoint, or "" to remove it
//
// Returns {"held"} or {"fenced"}. Running twice does no harm.
var checkpointCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if ARGV[3] == "" then redis.call("HDEL", KEYS[1], "checkpoint")
else redis.call("HSET", KEYS[1], "checkpoint", ARGV[3], "crashes", 0) end
return {"held"}
`)

// publishCmd excludes a cancel from now on.
//
// ARGV[3] -> now, Unix ms
// ARGV[4] -> result, JSON
// ARGV[5...] -> states that may become succeeded
//
// Returns {"held"}, {"canceled"} or {"fenced"}. Running twice does no harm.
var publishCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"fenced"} end
if not among(rec.state, 5) then return {"canceled"} end
redis.call("HSET", KEYS[1], "publishing", 1, "result", ARGV[4], "stage", "publishing", "updated_ms", ARGV[3])
return {"held"}
`)

// finishCmd ends the import.
//
// ARGV[3] -> final state
// ARGV[4] -> now, Unix ms
// ARGV[5] -> time of the purge, Unix ms
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
local to = ARGV[3]
if rec.state == to then return {"finished"} end
if not held then return {"fenced"} end
if not among(rec.state, 9) then return {"refused", rec.state} end
if to == "succeeded" then
  if rec.publishing ~= "1" then return {"refused", rec.state} end
  redis.call("HSET", KEYS[1], "progress", 100)
end
if ARGV[6] ~= "" then redis.call("HSET", KEYS[1], "failure", ARGV[6]) end
if to ~= "succeeded" then redis.call("HDEL", KEYS[1], "result") end
remember(ARGV[7], ARGV[8])
finish(to, ARGV[4], ARGV[5])
return {"finished"}
`)

// releaseCmd gives a claim back.
//
// ARGV[3] -> now, Unix ms
// ARGV[4] -> not before, Unix ms
// ARGV[5] -> 1 to count a setback, else 0
// ARGV[6] -> attempt, JSON
// ARGV[7] -> attempts to keep
// ARGV[8...] -> states that may become queued
//
// Returns {"released"} or {"fenced"}. A second run finds the claim given back.
var releaseCmd = redis.NewScript(luaLib + luaHeld + `
if not held then return {"released"} end
if among(rec.state, 8) then
  redis.call("HSET", KEYS[1], "state", "queued")
elseif rec.state ~= "cancelling" then
  return {"fenced"}
end
unheld()
redis.call("HINCRBY", KEYS[1], "setbacks", ARGV[5])
redis.call("HSET", KEYS[1], "stage", "waiting", "not_before_ms", ARGV[4], "updated_ms", ARGV[3])
redis.call("ZADD", KEYS[2], ARGV[4], id)
remember(ARGV[6], ARGV[7])
return {"released"}
`)

// expireCmd takes the claim from a worker whose beats have stopped.
//
// ARGV[3] -> now, Unix ms
// ARGV[4] -> attempt, JSON
// ARGV[5] -> attempts to keep
// ARGV[6...] -> states that may become queued
//
// Returns {"expired"}, or {"fenced"} if the claim is another, was given back or
// runs on; so a second run changes nothing.
var expireCmd = redis.NewScript(luaLib + luaHeld + `
if not held or tonumber(rec.claim_until) > tonumber(ARGV[3]) then return {"fenced"} end
if among(rec.state, 6) then
  redis.call("HSET", KEYS[1], "state", "queued")
elseif rec.state ~= "cancelling" then
  return {"fenced"}
end
unheld()
redis.call("HINCRBY", KEYS[1], "crashes", 1)
redis.call("HSET", KEYS[1], "stage", "waiting", "not_before_ms", ARGV[3], "updated_ms", ARGV[3])
redis.call("ZADD", KEYS[2], ARGV[3], id)
remember(ARGV[4], ARGV[5])
return {"expired"}
`)

// dispatchCmd takes a due import out of waiting and numbers its ticket.
//
// ARGV[2] -> now, Unix ms
//
// Returns {ticket number, state}, or {0, ""} if it is not waiting or not due;
// so a second run gives nothing, and the lost ticket is found by Unclaimed.
var dispatchCmd = redis.NewScript(luaLib + `
local due = redis.call("ZSCORE", KEYS[2], id)
if not due or tonumber(due) > tonumber(ARGV[2]) then return {0, ""} end
redis.call("ZREM", KEYS[2], id)
redis.call("ZADD", KEYS[3], ARGV[2], id)
return {redis.call("HINCRBY", KEYS[1], "tickets", 1), redis.call("HGET", KEYS[1], "state")}
`)

// recallCmd puts a ticket's import back to waiting.
//
// ARGV[2] -> ticket number
// ARGV[3] -> now, Unix ms
//
// Returns 1 if it did, 0 if the import was claimed or has a newer ticket.
var recallCmd = redis.NewScript(luaLib + `
if not redis.call("ZSCORE", KEYS[3], id) then return 0 end
if redis.call("HGET", KEYS[1], "tickets") ~= ARGV[2] then return 0 end
redis.call("ZREM", KEYS[3], id)
redis.call("ZADD", KEYS[2], ARGV[3], id)
return 1
`)

// purgeCmd removes a record whose time has come.
//
// KEYS[1...8] as above
// KEYS[9]  -> list of the region  (ZSET)
// KEYS[10] -> list of the project (ZSET)
// --
// ARGV[2] -> now, Unix ms
//
// Returns 1 if it did.
var purgeCmd = redis.NewScript(luaLib + `
local at = redis.call("ZSCORE", KEYS[5], id)
if not at or tonumber(at) > tonumber(ARGV[2]) then return 0 end
load("name")
if rec.name and rec.name ~= "" and redis.call("HGET", KEYS[7], rec.name) == id then
  redis.call("HDEL", KEYS[7], rec.name)
end
redis.call("DEL", KEYS[1], KEYS[8])
redis.call("ZREM", KEYS[5], id)
redis.call("ZREM", KEYS[9], id)
redis.call("ZREM", KEYS[10], id)
return 1
`)

// attendCmd says when a tenant next needs the dispatcher.
//
// KEYS[1] -> tenants (ZSET)
// --
// ARGV[1] -> tenant
// ARGV[2] -> score that the caller saw
// ARGV[3] -> new score, or "" to forget the tenant
//
// Returns 1 if it did, 0 if the score has changed since: an import was created.
var attendCmd = redis.NewScript(`
if redis.call("ZSCORE", KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[3] == "" then redis.call("ZREM", KEYS[1], ARGV[1])
else redis.call("ZADD", KEYS[1], ARGV[3], ARGV[1]) end
return 1
`)

// leadCmd takes or keeps the lead.
//
// KEYS[1] -> leader (STRING)
// --
// ARGV[1] -> who
// ARGV[2] -> for how long, ms
//
// Returns 1 if who leads.
var leadCmd = redis.NewScript(`
local now = redis.call("GET", KEYS[1])
if now and now ~= ARGV[1] then return 0 end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
`)

// resignCmd gives the lead back.
//
// KEYS[1] -> leader (STRING)
// --
// ARGV[1] -> who
//
// Returns 1 if who led.
var resignCmd = redis.NewScript(`
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("DEL", KEYS[1])
`)
