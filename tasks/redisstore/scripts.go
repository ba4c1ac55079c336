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
//	KEYS[12] -> journal             (STREAM)
//	KEYS[13] -> kept                (SET)
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

// journalLength is how many changes a journal holds at least, once there were as many. Redis
// drops older ones by the hundred.
const journalLength = "10000"

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
-- move brings the import into another state, and into the journal. What the journal has of
-- the record must be as it is in that state. rec needs state. All entries have the same
-- fields, for then the stream stores their names once.
local function move(to)
  if rec.state == to then return end
  redis.call("HSET", KEYS[1], "state", to)
  rec.state = to
  load("spec", "region", "project", "dialect", "progress", "epoch", "failure")
  local ok, spec = pcall(cjson.decode, rec.spec)
  redis.call("XADD", KEYS[12], "MAXLEN", "~", ` + journalLength + `, "*", "id", id, "region", rec.region,
    "project", rec.project, "api", rec.dialect, "name", ok and spec.name or "", "state", to, "progress", rec.progress,
    "epoch", rec.epoch, "at_ms", stamp(now), "failure", to == "failed" and rec.failure or "")
  redis.call("PUBLISH", "` + changesChannel + `", KEYS[12])
end
-- clearing tells whether all that is left to do is to remove what there is. rec needs
-- state, deleted_by, removed and kept_until_ms.
local function clearing()
  if rec.state == "failed" and rec.kept_until_ms and tonumber(rec.kept_until_ms) <= now then return true end
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
local function giveback(to, due)
  move(to)
  redis.call("HSET", KEYS[1], "stage", "waiting", "claim_until", 0, "publishing", 0,
    "not_before_ms", stamp(due), "updated_ms", stamp(now))
  redis.call("HDEL", KEYS[1], "counters")
  if clearing() then place(4, due) else place(2, due) end
end
-- finish moves the import to a final state, whose phase has the same name. A record that
-- stands for an image stays. With keep, what the checkpoint stands for is left, and its
-- clean-up is due after that. rec needs state, image and name.
local function finish(to, retention, keep)
  move(to)
  redis.call("HSET", KEYS[1], "stage", "done", "finished_ms", stamp(now), "updated_ms", stamp(now),
    "claim_until", 0, "publishing", 0)
  if keep > 0 then
    redis.call("HSET", KEYS[1], "kept_until_ms", stamp(now + keep))
    redis.call("SADD", KEYS[13], id)
    place(4, now + keep)
  else
    redis.call("HDEL", KEYS[1], "checkpoint")
    place(0)
  end
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
-- hidden tells whether the import is none of those that ARGV[3...6] select: region, project
-- and api, either of them "" for any, and kind. rec needs state and what they are compared with.
local function hidden()
  return not rec.state or rec.region ~= ARGV[3] or (ARGV[4] ~= "" and rec.project ~= ARGV[4])
    or (ARGV[5] ~= "" and rec.dialect ~= ARGV[5]) or (rec.kind or "import") ~= ARGV[6]
end
-- remember keeps an ended attempt.
local function remember(attempt, keep)
  redis.call("RPUSH", KEYS[10], attempt)
  redis.call("LTRIM", KEYS[10], -tonumber(keep), -1)
end
`

// luaHeld follows luaLib in scripts that a worker runs under its claim.
//
// ARGV[3] -> epoch that the caller holds, a slash, and the nonce of its claim or nothing
//
// It returns {"fenced"} out of the script if there is another claim or no
// record. held then tells whether the claim still stands: it may have been given
// back, by its worker or by the dispatcher, and not been claimed anew.
const luaHeld = `
load("state", "epoch", "claim", "claim_until", "publishing", "image", "name", "deleted_by", "removed", "kept_until_ms")
local epoch, claim = string.match(ARGV[3], "^(%d+)/(.*)$")
if not rec.state or rec.epoch ~= epoch or (claim ~= "" and rec.claim ~= claim) then return {"fenced"} end
local held = rec.claim_until ~= "0"
`

// luaRules follows luaLib in scripts that queue an import which was not unfinished.
const luaRules = `
-- broken names the rule across the tenant's imports that one more would break, if there is one.
-- usage and disks are as in its record, both nil for one that stands for no image. Any bound
-- may be 0 for none.
local function broken(image, name, usage, disks, most, most_images, most_disks)
  if name ~= "" and redis.call("HEXISTS", KEYS[9], name) == 1 then return "name_in_use" end
  if redis.call("HEXISTS", KEYS[8], image) == 1 then return "image_in_use" end
  if tonumber(most) > 0 then
    -- What was kept of failed ones has a place, and yet is finished.
    local open = -redis.call("SCARD", KEYS[13])
    for i = 2, 6 do open = open + redis.call("ZCARD", KEYS[i]) end
    if open >= tonumber(most) then return "too_many" end
  end
  if not usage then return nil end
  local function exceeds(what, by, limit)
    local has = tonumber(redis.call("HGET", KEYS[11], usage .. "/" .. what) or 0)
    return tonumber(limit) > 0 and has + by > tonumber(limit)
  end
  if exceeds("images", 1, most_images) then return "too_many_images" end
  if exceeds("disks", disks, most_disks) then return "too_many_disks" end
end
-- reserve takes image id and name.
local function reserve(image, name)
  redis.call("HSET", KEYS[8], image, id)
  if name ~= "" then redis.call("HSET", KEYS[9], name, id) end
end
`

// createCmd makes a queued import.
//
// KEYS[1...13] as above
// KEYS[14] -> list                (ZSET)
// KEYS[15] -> list of the project (ZSET)
// KEYS[16] -> seq                 (STRING)
// KEYS[17] -> client token        (HASH)
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
// ARGV[17] -> trace, or ""
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
var createCmd = redis.NewScript(luaLib + luaRules + `
if redis.call("HGET", KEYS[1], "spec") == ARGV[3] then return {"created"} end
if ARGV[8] ~= "" then
  local t = redis.call("HMGET", KEYS[17], "id", "fingerprint")
  if t[1] then
    if t[2] == ARGV[8] then return {"repeated", t[1]} end
    return {"token_mismatch"}
  end
end
local disks, usage = tonumber(ARGV[12]), nil
if disks > 0 then usage = ARGV[4] .. "/" .. ARGV[11] end
local rule = broken(ARGV[6], ARGV[7], usage, disks, ARGV[10], ARGV[13], ARGV[14])
if rule then return {rule} end
if ARGV[15] == "1" then return {"created"} end

reserve(ARGV[6], ARGV[7])
if ARGV[8] ~= "" then
  redis.call("HSET", KEYS[17], "id", id, "fingerprint", ARGV[8])
  redis.call("PEXPIRE", KEYS[17], ARGV[9])
end
redis.call("HSET", KEYS[1], "spec", ARGV[3], "region", ARGV[4], "project", ARGV[5], "dialect", ARGV[11], "kind", ARGV[16],
  "image", ARGV[6], "name", ARGV[7], "epoch", 0, "tickets", 0, "progress", 0,
  "setbacks", 0, "crashes", 0, "furthest", 0)
if ARGV[17] ~= "" then redis.call("HSET", KEYS[1], "trace", ARGV[17]) end
giveback("queued", now)
local n = redis.call("INCR", KEYS[16])
redis.call("ZADD", KEYS[14], n, id)
redis.call("ZADD", KEYS[15], n, id)
if usage then
  redis.call("ZADD", KEYS[14] .. ":images", n, id)
  redis.call("HSET", KEYS[1], "list", KEYS[14], "seq", n, "usage", usage, "disks", disks)
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
// ARGV[6] -> kind that it must be of
// ARGV[7] -> nonce of this request
// ARGV[8] -> retention of the record, ms
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
if hidden() then return {"missing"} end
if rec.canceled_by == ARGV[7] then return {"accepted", rec.state} end
if rec.canceled_by then return {"requested"} end
if rec.publishing == "1" or not among(rec.state, 9) then return {"finished"} end

redis.call("HSET", KEYS[1], "canceled_by", ARGV[7])
if rec.state == "queued" and rec.epoch == "0" then
  finish("canceled", tonumber(ARGV[8]), 0)
  return {"accepted", "canceled"}
end
if rec.state == "queued" then
  -- An earlier attempt may have left something. If the import has a ticket, it
  -- gets another, which does not wait behind imports.
  giveback("cancelling", now)
else
  move("cancelling")
  redis.call("HSET", KEYS[1], "updated_ms", stamp(now))
end
return {"accepted", "cancelling"}
`)
