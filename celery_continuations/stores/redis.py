"""Records in Redis, and an index for sweeps; one script call for each operation.

===============================  ==================================================================
``continuation:SPACE:TASK``      string: the fence, and after a line feed the snapshot; written often
``continuation-kept:SPACE:TASK`` hash: ``message`` and ``value``, each written once, and ``inbox``
``continuations:SPACE:due``      sorted set: task ids by due time
``continuations:SPACE:leases``   hash: by worker, the end and the note of its lease
``continuations:SPACE:owned:W``  hash: by task id, the owner of each record that worker ``W`` owns
===============================  ==================================================================

SPACE is a digest of the namespace: keys stay short, and the end of the namespace is unambiguous.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Due, Fence, Lease, Record, Scan, Store, Update, without_command
from celery_continuations.stores.problems import UnstorableError, UnusableStoreError, is_cluster
from celery_continuations.stores.reading import each, lease_of

try:
    from redis.backoff import NoBackoff
    from redis.client import NEVER_DECODE
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import NoScriptError, RedisError
    from redis.retry import Retry
except ImportError as exc:  # pragma: no cover - tested in a subprocess without redis
    raise StoreError("redis", "redis-py is missing; run: pip install 'celery-continuations[redis]'") from exc

__all__ = ["TIMEOUT", "RedisStore", "impatient"]

#: Seconds that a call waits for an answer.
TIMEOUT = 3.0

# For reading all records: how many keys one SCAN visits, and how many records are read at a time.
_SCANNED, _BATCH = 1000, 100


class _ScriptMissing(Exception):
    """The server does not know this script, or has been restarted since."""


def _script(text: str) -> tuple[str, str]:
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
_SWAP = _script(
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
_TAKE = _script(
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

_READ = _script(
    """
local whole = redis.call('GET', KEYS[1])
if not whole then return false end
local kept = redis.call('HMGET', KEYS[2], 'value', 'message', 'inbox')
return {whole, kept[1], kept[2], kept[3], redis.call('ZSCORE', ARGV[1] .. 'due', ARGV[2])}
"""
)

# ARGV[2] is the worker in these; ... seconds, note
_RENEW = _script(_COMMON + "return redis.call('HSET', index .. 'leases', id, (clock() + ARGV[3]) .. ' ' .. ARGV[4])")
_RETIRE = _script(
    _COMMON
    + """
if redis.call('EXISTS', index .. 'owned:' .. id) == 1 then return 0 end
return redis.call('HDEL', index .. 'leases', id)
"""
)
# ... how many due ones at most, prefix of the records
_SCAN = _script(
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


def impatient(connection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes that a store makes to the connections of Celery's result backend.

    A task waits for its save, and a worker that cannot renew its lease loses its tasks, so nothing may hang for two
    minutes, which is Celery's default.  A call on a pooled connection that the server has closed is retried once.

    Args:
        connection: the arguments of the backend's connections; shorter timeouts in them are kept.
    """
    return {
        "socket_timeout": min(connection.get("socket_timeout") or TIMEOUT, TIMEOUT),
        "socket_connect_timeout": min(connection.get("socket_connect_timeout") or TIMEOUT, TIMEOUT),
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    }


class RedisStore(Store):
    """Two keys for each record.

    Args:
        client: a redis-py client.
        namespace: separates services that share a server.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        space = hashlib.sha256(namespace.encode()).hexdigest()[:10]
        self._prefix = f"continuation:{space}:"
        self._kept = f"continuation-kept:{space}:"
        self._index = f"continuations:{space}:"

    def read(self, task_id: str) -> Record | None:
        found = self._run(_READ, task_id)
        return self._record(task_id, *found) if found else None

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        fence = update.fence.dumps()
        known = "" if expected is None else fence if expected is update.fence else expected.dumps()
        args: list[Any] = [known, "" if update.snapshot is None else f"{fence}\n{update.snapshot}"]
        if known == fence and update.is_save:
            return bool(self._run(_SWAP, task_id, *args))
        due_in, expires_in, inbox = update.due_in, update.lasts, update.expected_inbox
        args += (
            fence,
            "" if due_in is None else "=" if due_in is Due.UNCHANGED else due_in,
            "" if expires_in is None else math.ceil(expires_in * 1000),
            "" if inbox is None else f"={inbox}",
        )
        for field, text in (("message", update.message), ("value", update.value), ("inbox", update.inbox)):
            if text is not None:
                args += (field, text)
        return bool(self._run(_SWAP, task_id, *args))

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        found = self._run(_TAKE, task_id, expected.dumps(), fence.dumps())
        return self._record(task_id, *found) if found else None

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record; one whose id is not text comes with escapes in it."""
        seen: set[bytes | str] = set()  # a SCAN may return a key again
        for keys in self._keys():
            new = [key for key in keys if key not in seen]
            seen.update(new)
            ids = []
            for key in new:
                try:
                    ids.append(_text(key, self._prefix).removeprefix(self._prefix))
                except StoreError:
                    shown = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
                    yield shown.removeprefix(self._prefix), StoreError("redis", f"the key {key!r} is not text")
            for start in range(0, len(ids), _BATCH):
                yield from self._read_all(ids[start : start + _BATCH])

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        self._run(_RENEW, worker, seconds, note)

    def retire(self, worker: str) -> None:
        self._run(_RETIRE, worker)

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        # as bytes, because a decoding client would fail for all entries if one is not text
        now, leases, due, owned = self._run(_SCAN, worker, limit, self._prefix, **{NEVER_DECODE: True})
        problems: list[str] = []

        def read(names: list[bytes], key: str) -> Iterator[tuple[int, str]]:
            """Yield the place and the text of each name; put aside those that are not text."""
            for place, name in enumerate(names):
                try:
                    yield place, name.decode()
                except UnicodeDecodeError:
                    problems.append(f"{self._index}{key} has an entry that is not text: {name!r}")

        return Scan(
            [_lease(name, leases[2 * place + 1], float(now)) for place, name in read(leases[::2], "leases")],
            [task_id for _, task_id in read(due, "due")],
            {
                task_id: without_command(owned[2 * place + 1].decode(errors="replace"))
                for place, task_id in read(owned[::2], f"owned:{worker}")
            },
            tuple(problems),
        )

    def check(self) -> None:
        if self._call("INFO", is_cluster, self._client):
            raise UnusableStoreError("redis", "Redis Cluster is not supported; use a server or Sentinel")
        super().check()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What its keys begin with."""
        return self._prefix, self._kept, self._index

    @property
    def client(self) -> Any:
        """The redis-py client, for checks of the server's configuration."""
        return self._client

    def close(self) -> None:
        """Close the connections of the pool."""
        self._client.close()

    def _keys(self) -> Iterator[set[bytes | str]]:
        """Yield the keys of all tasks, a few at a time."""
        pattern = f"{self._prefix}*"  # the prefix has no special characters of patterns
        cursor = None
        while cursor != 0:
            cursor, keys = self._call(pattern, self._client.scan, cursor or 0, pattern, _SCANNED)
            yield set(keys)

    def _read_all(self, task_ids: list[str]) -> Iterator[tuple[str, Record | StoreError]]:
        """Read records in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for task_id in task_ids:
            # as bytes, because a decoding client would fail for all records if one is not text
            pipeline.execute_command("EVAL", _READ[0], *self._args(task_id), **{NEVER_DECODE: True})
        answers = self._call(f"{self._prefix}*", pipeline.execute, False)
        found = dict(zip(task_ids, answers, strict=True))

        def read(task_id: str) -> Record | None:
            answer = found[task_id]
            if isinstance(answer, RedisError):
                return self.read(task_id)
            return self._record(task_id, *answer) if answer else None

        return each(task_ids, read)

    def _record(
        self, task_id: str, whole: Any, value: Any, message: Any = None, inbox: Any = None, due: Any = None
    ) -> Record:
        key = self._prefix + task_id
        fence, separator, snapshot = _text(whole, key).partition("\n")
        texts = {"message": message, "value": value, "inbox": inbox}
        try:
            return Record(
                Fence.loads(fence),
                snapshot if separator else None,
                due=None if due is None else float(due),
                **{name: None if text is None else _text(text, self._kept + task_id) for name, text in texts.items()},
            )
        except ValueError as exc:
            raise StoreError("redis", f"{key} is not a record: {exc}") from exc

    def _args(self, name: str) -> tuple[Any, ...]:
        return 2, self._prefix + name, self._kept + name, self._index, name

    def _run(self, script: tuple[str, str], name: str, *args: Any, **options: bool) -> Any:
        text, sha = script
        key = self._prefix + name
        args = (*self._args(name), *args)
        try:
            return self._call(key, self._client.execute_command, "EVALSHA", sha, *args, **options)
        except _ScriptMissing:
            return self._call(key, self._client.execute_command, "EVAL", text, *args, **options)

    def _call(self, key: str, func: Any, *args: Any, **options: bool) -> Any:
        try:
            return func(*args, **options)
        except NoScriptError as exc:
            raise _ScriptMissing from exc
        except RedisError as exc:
            raise StoreError("redis", f"{key}: {type(exc).__name__}: {exc}") from exc
        except UnicodeDecodeError as exc:  # of a client that decodes responses
            raise StoreError("redis", f"{key} contains bytes that are not text: {exc}") from exc
        except UnicodeEncodeError as exc:
            raise UnstorableError("redis", f"{key!r} cannot be encoded: {exc}") from exc


def _text(value: Any, key: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as exc:
        raise StoreError("redis", f"{key} is not a record: {exc}") from exc


def _lease(worker: str, value: bytes, now: float) -> Lease:
    until, _, note = value.decode(errors="replace").partition(" ")
    try:
        left = float(until) - now
    except ValueError:
        left = math.nan
    return lease_of(worker, left, note)
