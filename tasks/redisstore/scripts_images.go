package redisstore

import "github.com/redis/go-redis/v9"

// The scripts about the images that records stand for, and their lists. Those about one
// import begin as scripts.go says.

// deleteImageCmd accepts the deletion of an image once.
//
// ARGV[3] -> region that the record must be in
// ARGV[4] -> project that it must be of, or "" for any
// ARGV[5] -> dialect that it must have come in through, or "" for any
// ARGV[6] -> nonce of this request
//
// Returns
//
//	{"accepted"}
//	{"importing"} the import has not ended
//	{"removing"}  it was deleted before, and a worker is still to remove it
//	{"missing"}
//
// A second run finds its own nonce and answers as the first.
var deleteImageCmd = redis.NewScript(luaLib + `
load("state", "region", "project", "dialect", "list", "phase", "name", "deleted_by", "removed", "claim_until", "kept_until_ms")
if not rec.list or rec.region ~= ARGV[3] then return {"missing"} end
if ARGV[4] ~= "" and rec.project ~= ARGV[4] then return {"missing"} end
if ARGV[5] ~= "" and rec.dialect ~= ARGV[5] then return {"missing"} end
if rec.deleted_by == ARGV[6] then return {"accepted"} end
if rec.deleted_by then return {rec.removed and "missing" or "removing"} end
if rec.phase == "waiting" or rec.phase == "working" then return {"importing"} end

redis.call("HSET", KEYS[1], "deleted_by", ARGV[6], "deleted_ms", stamp(now), "updated_ms", stamp(now))
for _, list in ipairs({rec.list .. ":images", rec.list .. ":images:" .. rec.phase}) do redis.call("ZREM", list, id) end
if rec.state == "succeeded" then
  unname()
  count(-1)
  place(4, now)
elseif rec.kept_until_ms then
  -- Nobody will retry it, so that what was kept is removed now. A worker may be at it.
  if rec.claim_until == "0" then place(4, now) end
else
  redis.call("HSET", KEYS[1], "removed", 1) -- nothing of it was left
end
return {"accepted"}
`)

// removedCmd ends the removal of a deleted image, or of what was kept of a failed import.
//
// ARGV[4] -> retention of the record, ms
// ARGV[5] -> attempt, JSON
// ARGV[6] -> attempts to keep
//
// Returns {"removed"} or {"fenced"}. A second run finds it removed, under the same epoch.
var removedCmd = redis.NewScript(luaLib + luaHeld + `
if rec.removed or (rec.state == "failed" and not rec.kept_until_ms) then return {"removed"} end
if not held or not (rec.deleted_by or rec.kept_until_ms) then return {"fenced"} end
redis.call("HSET", KEYS[1], "stage", "done", "updated_ms", stamp(now), "claim_until", 0)
if rec.deleted_by then redis.call("HSET", KEYS[1], "removed", 1) end
redis.call("HDEL", KEYS[1], "kept_until_ms", "checkpoint")
redis.call("SREM", KEYS[13], id)
remember(ARGV[5], ARGV[6])
place(0)
if rec.state ~= "failed" then -- which has had its time of purge since it failed
  redis.call("ZADD", KEYS[7], stamp(now + tonumber(ARGV[4])), id)
end
return {"removed"}
`)

// pageCmd returns a page of several lists, merged by score, highest first. No two
// members of them have the same score.
//
// KEYS[1...] -> lists (ZSET)
// --
// ARGV[1] -> start
// ARGV[2] -> limit
//
// Returns the number of members in all, then the ids of the page. It finds the score at
// which the page begins by halving, so its cost does not grow with start.
var pageCmd = redis.NewScript(`
local start, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local total, high = 0, 0
for _, k in ipairs(KEYS) do
  total = total + redis.call("ZCARD", k)
  local top = redis.call("ZREVRANGE", k, 0, 0, "WITHSCORES")
  if top[2] then high = math.max(high, tonumber(top[2])) end
end
local page = {total}
if start >= total or limit <= 0 then return page end
local function exact(n) return string.format("%.0f", n) end
-- The page begins at the lowest score that no more than start members are above.
local low = 0
while low < high do
  local middle, above = math.floor((low + high) / 2), 0
  for _, k in ipairs(KEYS) do above = above + redis.call("ZCOUNT", k, "(" .. exact(middle), "+inf") end
  if above <= start then high = middle else low = middle + 1 end
end
local found = {}
for _, k in ipairs(KEYS) do
  local got = redis.call("ZREVRANGEBYSCORE", k, exact(high), "-inf", "WITHSCORES", "LIMIT", 0, limit)
  for i = 1, #got, 2 do found[#found + 1] = {got[i], tonumber(got[i + 1])} end
end
table.sort(found, function(a, b) return a[2] > b[2] end)
for i = 1, math.min(limit, #found) do page[i + 1] = found[i][1] end
return page
`)
