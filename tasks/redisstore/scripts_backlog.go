package redisstore

import "github.com/redis/go-redis/v9"

// The scripts of tasks.Backlog. Those about one import begin as scripts.go says.

// expireCmd takes the claim from a worker whose beats have stopped.
//
// ARGV[4] -> pause, ms
// ARGV[5] -> attempt, JSON
// ARGV[6] -> attempts to keep
// ARGV[7...] -> states from which a worker may bring it back to queued
//
// Returns {"expired"}, or {"fenced"} if the claim is another, was given back or
// runs on; so a second run changes nothing.
var expireCmd = redis.NewScript(luaLib + luaHeld + `
if not held or tonumber(rec.claim_until) > now then return {"fenced"} end
local to, due = rec.state, now
if among(rec.state, 7) then
  to, due = "queued", now + tonumber(ARGV[4])
elseif not clearing() then
  return {"fenced"}
end
redis.call("HINCRBY", KEYS[1], "crashes", 1)
giveback(to, due)
remember(ARGV[5], ARGV[6])
return {"expired"}
`)

// dispatchCmd takes a due import from where it waits and numbers its ticket.
//
// ARGV[3] -> 1 for a clean-up, else 0
//
// Returns {number of the ticket, trace}, or {0} if the import does not wait there or is not
// due; so a second run gives nothing, and the lost ticket is found by Unclaimed.
var dispatchCmd = redis.NewScript(luaLib + `
local from = 2
if ARGV[3] == "1" then from = 4 end
local due = redis.call("ZSCORE", KEYS[from], id)
if not due or tonumber(due) > now then return {0} end
place(from + 1, now)
return {redis.call("HINCRBY", KEYS[1], "tickets", 1), redis.call("HGET", KEYS[1], "trace") or ""}
`)

// recallCmd puts a ticket's import back to where it waited.
//
// ARGV[3] -> 1 for a clean-up, else 0
// ARGV[4] -> ticket number
//
// Returns 1 if it did, 0 if the import was claimed or has a newer ticket.
var recallCmd = redis.NewScript(luaLib + `
local from = 3
if ARGV[3] == "1" then from = 5 end
if not redis.call("ZSCORE", KEYS[from], id) then return 0 end
if redis.call("HGET", KEYS[1], "tickets") ~= ARGV[4] then return 0 end
place(from - 1, now)
return 1
`)

// purgeCmd removes a record whose time has come. One of which something is kept stays, and is
// looked at again later, so as not to stand before others.
//
// KEYS[1...13] as in scripts.go
// KEYS[14] -> list                (ZSET)
// KEYS[15] -> list of the project (ZSET)
// --
// ARGV[3]  -> how much later, ms
//
// Returns 1 if it did.
var purgeCmd = redis.NewScript(luaLib + `
local at = redis.call("ZSCORE", KEYS[7], id)
if not at or tonumber(at) > now then return 0 end
load("name", "list", "phase", "kept_until_ms")
if rec.kept_until_ms then
  redis.call("ZADD", KEYS[7], stamp(now + tonumber(ARGV[3])), id)
  return 0
end
unname()
for _, i in ipairs({7, 14, 15}) do redis.call("ZREM", KEYS[i], id) end
if rec.list then
  for _, list in ipairs({rec.list .. ":" .. rec.phase, rec.list .. ":images", rec.list .. ":images:" .. rec.phase}) do
    redis.call("ZREM", list, id)
  end
end
redis.call("DEL", KEYS[1], KEYS[10])
return 1
`)

// forgetCmd removes the journal, and the cursors in it, of a tenant that has nothing left: neither records that will go,
// nor images, whose records stay without a place.
//
// KEYS[1...6] -> waiting, dispatched, cleanups, dispatched-cleanups, running, ended (ZSET)
// KEYS[7]     -> usage   (HASH)
// KEYS[8]     -> journal (STREAM)
// KEYS[9]     -> cursors (HASH)
//
// Returns 1 if it did.
var forgetCmd = redis.NewScript(`
for i = 1, 6 do
  if redis.call("ZCARD", KEYS[i]) > 0 then return 0 end
end
for _, n in ipairs(redis.call("HVALS", KEYS[7])) do
  if n ~= "0" then return 0 end
end
redis.call("DEL", KEYS[8], KEYS[9])
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
// Returns 1 if it did, 0 if the score has changed since: it was announced anew.
var attendCmd = redis.NewScript(`
if tonumber(redis.call("ZSCORE", KEYS[1], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == "" then redis.call("ZREM", KEYS[1], ARGV[1])
else redis.call("ZADD", KEYS[1], ARGV[3], ARGV[1]) end
return 1
`)

// announceCmd has the dispatcher look at a tenant from now on.
//
// KEYS[1] -> tenants (ZSET)
// --
// ARGV[1] -> tenant
// ARGV[2] -> now, Unix ms, or "" for the time of this Redis
var announceCmd = redis.NewScript(`
local now = ARGV[2]
if now == "" then
  local t = redis.call("TIME")
  now = string.format("%.0f", t[1] * 1000 + math.floor(t[2] / 1000))
end
return redis.call("ZADD", KEYS[1], now, ARGV[1])
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
