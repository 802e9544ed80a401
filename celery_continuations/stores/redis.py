"""Records in Redis: one hash each, one script call for each operation."""

from __future__ import annotations

import hashlib
from typing import Any

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Fence, Record, Store

try:
    from redis.exceptions import NoScriptError, RedisError
except ImportError as exc:  # pragma: no cover - tested in a subprocess without redis
    raise StoreError("redis", "redis-py is missing; run: pip install 'celery-continuations[redis]'") from exc

__all__ = ["RedisStore"]


class _ScriptMissing(Exception):
    """The server has not seen this script, or has been restarted since."""


def _script(text: str) -> tuple[str, str]:
    """Return a script and the hash that Redis knows it by."""
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS[1] the record; ARGV: expected fence ("" for none), milliseconds to live ("" for ever),
# seconds until it is due ("" for never), then field, value, ...
_SWAP = _script("""
if (redis.call('HGET', KEYS[1], 'fence') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if ARGV[3] ~= '' then
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'due', string.format('%.6f', now[1] + now[2] / 1000000 + ARGV[3]))
else
  redis.call('HDEL', KEYS[1], 'due')
end
if ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) else redis.call('PERSIST', KEYS[1]) end
return 1
""")
_DELETE = _script("""
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")
_TEXTS = ("snapshot", "message", "value")


class RedisStore(Store):
    """A hash for each record: ``fence``, ``snapshot``, ``message``, ``value``, ``due``.

    Args:
        client: a redis-py client.
        namespace: keeps apart services that share a server.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._prefix = f"continuation:{namespace}:"

    def read(self, task_id: str) -> Record | None:
        """As of Store."""
        fields = self._call(self._client.hgetall, self._prefix + task_id)
        if not fields:
            return None
        try:
            texts = {_text(key): _text(value) for key, value in fields.items()}
            due = texts.get("due")
            return Record(
                Fence.loads(texts["fence"]),
                due=None if due is None else float(due),
                **{part: texts[part] for part in _TEXTS if part in texts},
            )
        except (KeyError, ValueError) as exc:
            raise StoreError("redis", f"{self._prefix + task_id} is no record: {exc!r}") from exc

    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
    ) -> bool:
        """As of Store."""
        args: list[Any] = [
            expected.dumps() if expected else "",
            "" if expires_in is None else int(expires_in * 1000),
            "" if due_in is None else due_in,
            "fence",
            record.fence.dumps(),
        ]
        for part in _TEXTS:
            text = getattr(record, part)
            if text is not None:
                args += (part, text)
        return bool(self._run(_SWAP, task_id, *args))

    def delete(self, task_id: str, expected: Fence) -> bool:
        """As of Store."""
        return bool(self._run(_DELETE, task_id, expected.dumps()))

    def close(self) -> None:
        """Close the connections of the pool."""
        self._client.close()

    def _run(self, script: tuple[str, str], task_id: str, *args: Any) -> Any:
        text, sha = script
        try:
            return self._call(self._client.evalsha, sha, 1, self._prefix + task_id, *args)
        except _ScriptMissing:
            return self._call(self._client.eval, text, 1, self._prefix + task_id, *args)

    def _call(self, func: Any, *args: Any) -> Any:
        try:
            return func(*args)
        except NoScriptError as exc:
            raise _ScriptMissing from exc
        except RedisError as exc:
            raise StoreError("redis", f"{type(exc).__name__}: {exc}") from exc


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
