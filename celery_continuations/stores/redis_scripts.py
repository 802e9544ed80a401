"""The scripts that Redis runs, one for each operation of the store; :mod:`.redis` says which keys there are."""

from __future__ import annotations

import hashlib

__all__ = ["READ", "RENEW", "RETIRE", "SCAN", "SWAP", "TAKE", "Script"]

#: A script, and the hash that Redis knows it by.
Script = tuple[str, str]


def _script(text: str) -> Script:
    """Return a script and the hash that Redis knows it by."""
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS: the record, and what is kept with it. ARGV: the prefix of the index, the task's id, then the arguments that each
# script lists.
_COMMON = """
local index, id = ARGV[1], ARGV[2]
local function clock()
  local now = redis.call('TIME')
  return now[1] + now[2] / 1000000
end
local function worker_of(fence)
  local status, worker = string.match(fence, '^%d+ (%a+) ([^/]*)')
  if status == 'running' or status == 'finishing' then return worker end
  return ''
end
local function disown(fence)
  local worker = worker_of(fence)
  if worker ~= '' then redis.call('HDEL', index .. 'owned:' .. worker, id) end
end
local function unlist(fence)
  disown(fence)
  redis.call('ZREM', index .. 'due', id)
end
local function list(fence)
  local worker = worker_of(fence)
  if worker == '' then return end
  redis.call('HSET', index .. 'owned:' .. worker, id, string.match(fence, '^%d+ %a+ (.*)'))
  -- a worker that owns a record is listed, also one that has not renewed its lease yet
  redis.call('HSETNX', index .. 'leases', worker, clock() .. ' ')
end
"""

# Sets was: the fence in the store, "" without a record. Fences are shorter than the range.
_FENCE = """
local was = string.match(redis.call('GETRANGE', KEYS[1], 0, 511), '^[^\\n]*')
"""

# ... expected fence ("" for none), fence and snapshot ("" without a snapshot), and unless it is a save: new fence,
# seconds until it is due ("" for never, "=" to leave it), milliseconds to live ("" forever, 0 to remove it), "=" and
# the expected inbox ("" for any), then field, value, ... of what is kept.
# A save runs the first half only.
SWAP = _script(
    """
local expected, whole, fence, due, ttl = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local head = redis.call('GETRANGE', KEYS[1], 0, #expected)
if head ~= expected and head ~= expected .. '\\n' then return 0 end
if not fence then
  redis.call('SET', KEYS[1], whole)
  redis.call('ZREM', ARGV[1] .. 'due', ARGV[2])
  redis.call('PERSIST', KEYS[2])
  return 1
end
if expected == '' then
  -- nothing of a record that has expired, or was deleted by hand
  redis.call('DEL', KEYS[2])
  if due == '=' then due = '' end
end
local inbox = ARGV[8]
if inbox ~= '' and inbox ~= '=' .. (redis.call('HGET', KEYS[2], 'inbox') or '') then return 0 end
if whole == '' then whole = fence .. string.sub(redis.call('GET', KEYS[1]) or '', #expected + 1) end
redis.call('SET', KEYS[1], whole)
if #ARGV == 14 and ARGV[10] .. ARGV[12] .. ARGV[14] == '' then
  redis.call('DEL', KEYS[2])  -- a tombstone keeps nothing
elseif #ARGV > 8 then
  redis.call('HSET', KEYS[2], unpack(ARGV, 9))
end
"""
    + _COMMON
    + """
disown(expected)
if ttl ~= '' and tonumber(ttl) <= 0 then
  redis.call('ZREM', index .. 'due', id)
  redis.call('DEL', KEYS[1], KEYS[2])
  return 1
end
list(fence)
if due == '' then
  redis.call('ZREM', index .. 'due', id)
elseif due ~= '=' then
  redis.call('ZADD', index .. 'due', string.format('%.6f', clock() + due), id)
end
if ttl ~= '' then
  redis.call('PEXPIRE', KEYS[1], ttl)
  redis.call('PEXPIRE', KEYS[2], ttl)
else
  redis.call('PERSIST', KEYS[2])
end
return 1
"""
)

# ... expected fence, new fence
TAKE = _script(
    _FENCE
    + _COMMON
    + """
local expected, fence = ARGV[3], ARGV[4]
if was ~= expected then return false end
local whole = fence .. string.sub(redis.call('GET', KEYS[1]), #was + 1)
unlist(expected)
redis.call('SET', KEYS[1], whole)
redis.call('PERSIST', KEYS[2])
list(fence)
return {whole, redis.call('HGET', KEYS[2], 'value')}
"""
)

READ = _script(
    """
local whole = redis.call('GET', KEYS[1])
if not whole then return false end
local kept = redis.call('HMGET', KEYS[2], 'value', 'message', 'inbox')
return {whole, kept[1], kept[2], kept[3], redis.call('ZSCORE', ARGV[1] .. 'due', ARGV[2])}
"""
)

# ARGV[2] is the worker in these; ... seconds, note
RENEW = _script(_COMMON + "return redis.call('HSET', index .. 'leases', id, (clock() + ARGV[3]) .. ' ' .. ARGV[4])")
RETIRE = _script(
    _COMMON
    + """
if redis.call('EXISTS', index .. 'owned:' .. id) == 1 then return 0 end
return redis.call('HDEL', index .. 'leases', id)
"""
)
# ... how many due ones at most, prefix of the records
SCAN = _script(
    _COMMON
    + """
local now, due = clock(), {}
for _, task in ipairs(redis.call('ZRANGEBYSCORE', index .. 'due', '-inf', now, 'LIMIT', 0, ARGV[3])) do
  -- a record that expires, or was deleted by hand, leaves its entry
  if redis.call('EXISTS', ARGV[4] .. task) == 1 then
    due[#due + 1] = task
  else
    redis.call('ZREM', index .. 'due', task)
  end
end
-- likewise; one that cannot be read keeps its entry, so that a sweep names it
local owned, entries = {}, redis.call('HGETALL', index .. 'owned:' .. id)
for at = 1, #entries, 2 do
  local head = redis.pcall('GETRANGE', ARGV[4] .. entries[at], 0, 511)
  local fence = type(head) == 'string' and string.match(head, '^%d+ %a+ [^\\n]*')
  if head == '' or fence and worker_of(fence) ~= id then
    redis.call('HDEL', index .. 'owned:' .. id, entries[at])
  else
    owned[#owned + 1], owned[#owned + 2] = entries[at], entries[at + 1]
  end
end
return {tostring(now), redis.call('HGETALL', index .. 'leases'), due, owned}
"""
)
