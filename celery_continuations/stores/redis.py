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
from celery_continuations.stores.redis_scripts import READ, RENEW, RETIRE, SCAN, SWAP, TAKE, Script

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
        found = self._run(READ, task_id)
        return self._record(task_id, *found) if found else None

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        fence = update.fence.dumps()
        known = "" if expected is None else fence if expected is update.fence else expected.dumps()
        args: list[Any] = [known, "" if update.snapshot is None else f"{fence}\n{update.snapshot}"]
        if known == fence and update.is_save:
            return bool(self._run(SWAP, task_id, *args))
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
        return bool(self._run(SWAP, task_id, *args))

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        found = self._run(TAKE, task_id, expected.dumps(), fence.dumps())
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
        self._run(RENEW, worker, seconds, note)

    def retire(self, worker: str) -> None:
        self._run(RETIRE, worker)

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        # as bytes, because a decoding client would fail for all entries if one is not text
        now, leases, due, owned = self._run(SCAN, worker, limit, self._prefix, **{NEVER_DECODE: True})
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
        self._client.connection_pool.disconnect()  # close() leaves a pool open that was given to the client

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
            pipeline.execute_command("EVAL", READ[0], *self._args(task_id), **{NEVER_DECODE: True})
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

    def _run(self, script: Script, name: str, *args: Any, **options: bool) -> Any:
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
