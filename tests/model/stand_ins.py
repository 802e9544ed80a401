"""Stand-ins for everything around the real code: clock, store, broker, result backend, stop flag.

Each call that would leave the process is one :meth:`World.io`, after which the execution may be cut off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.base import BaseBackend
from kombu.serialization import dumps, loads

from celery_continuations.exceptions import StoreError
from celery_continuations.messages.headers import GENERATION, SNAPSHOT
from celery_continuations.process import stop_flag as flags
from celery_continuations.stores import Fence, Record, Scan, Store, Update

if TYPE_CHECKING:
    from tests.model.world import World

# Fields of a snapshot that do not matter; crashes matter only if a scenario lets them reach their limit.
_ASIDE = ("run_time", "left_at", "executions", "reason")
_LOSSES = ("losses", "lost_at")
_NEW = json.dumps({"version": 1})


class Now:
    """Holds the running history; there is one at a time."""

    world: World


class Clock:
    """Replaces the module ``time``."""

    @staticmethod
    def time() -> float:
        return Now.world.clock

    monotonic = time

    @staticmethod
    def sleep(_: float) -> None:
        raise AssertionError("nothing here has to wait")


def plain(text: str | None) -> str:
    """Return a snapshot's text without the fields that do not matter."""
    return _plain(text, Now.world.scenario.has_limit) if text else _NEW


@lru_cache(10_000)
def _plain(text: str, has_limit: bool) -> str:
    data = json.loads(text)
    for name in _ASIDE if has_limit else (*_ASIDE, *_LOSSES):
        data.pop(name, None)
    if "resumptions" in data:
        data["resumptions"] = 1
    return json.dumps(data, sort_keys=True)


def fence_told(fence: Fence) -> str:
    """Return a fence with its generation marked as one."""
    return "g" + fence.dumps()


def told(result: Any) -> str:
    """Return an answer in a form that can be compared between histories."""
    if isinstance(result, Record):
        due = None if result.due is None else max(0.0, round(result.due - Now.world.clock, 3))
        texts = f"{plain(result.snapshot)} {bool(result.message):d} {result.value!r} {result.inbox!r}"
        return f"<{fence_told(result.fence)} {texts} {due}>"
    if isinstance(result, Scan):
        leases = ",".join(f"{one.worker}:{one.left > 0:d}:{one.note}" for one in result.leases)
        return f"<{leases} {result.due} {result.owned}>"
    if isinstance(result, Message):
        return result.told
    return repr(result)


class SimStore(Store):
    """The world's records: the primitives of MemoryStore on the world's clock."""

    def read(self, task_id: str) -> Record | None:
        return self._io("read", lambda: Now.world.memory.read(task_id))

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        def act() -> bool:
            world = Now.world
            old = world.memory.read(task_id)
            written = world.memory.compare_and_swap(task_id, expected, update)
            if written:
                new = world.memory.read(task_id)
                world.written(old, new or update.applied_to(old, world.clock), update.snapshot)
            elif expected is not None and old is not None and world.actor is not None:
                world.promises.refused(world.actor, expected, old.fence)
            return written

        return self._io(f"write {fence_told(update.fence)}", act, may_repeat=True)

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        if not Now.world.scenario.is_atomic:
            return super().take(task_id, expected, fence)

        def act() -> Record | None:
            world = Now.world
            old = world.memory.read(task_id)
            if not world.memory.compare_and_swap(task_id, expected, Update(fence)):
                return None
            new = world.memory.read(task_id)
            assert new is not None
            world.written(old, new, None)
            return new

        return self._io(f"take {fence_told(fence)}", act, may_repeat=True)

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        return self._io("records", lambda: Now.world.memory.records())

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        Now.world.memory.renew(worker, seconds, note)

    def retire(self, worker: str) -> None:
        self._io(f"retire {worker}", lambda: Now.world.retire(worker))

    def scan(self, worker: str = "", limit: int = 100) -> Scan:
        return self._io(f"scan {worker}", lambda: Now.world.memory.scan(worker, limit))

    def _io(self, label: str, act: Any, may_repeat: bool = False) -> Any:
        actor = Now.world.actor
        if actor is not None and actor.store_fault:
            fault, actor.store_fault = actor.store_fault, ""
            if fault == "lose":
                Now.world.lose_record()
            elif fault == "away":
                return Now.world.io(label, _away)
            elif may_repeat:  # the driver never saw the first answer
                return Now.world.io(label, lambda: act() and act())
        return Now.world.io(label, act)


def _away() -> None:
    raise StoreError("simulated", "away")


class SimBackend(BaseBackend):  # type: ignore[misc]
    """The world's result backend; like Celery's backends it does not overwrite SUCCESS.

    Celery's database backend reads and writes under one lock; its key-value backends read first and write
    later (``is_atomic`` of the scenario).
    """

    thread_safe = True

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, max_cached_results=-1, **kwargs)

    def _store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        world = Now.world
        if not world.scenario.is_atomic and world.io("get result", self._state) == states.SUCCESS:
            return result
        world.io(f"store {state}", lambda: self._set(state, result))
        return result

    def _set(self, state: str, result: Any) -> None:
        world = Now.world
        if world.scenario.is_atomic and self._state() == states.SUCCESS:
            return
        if state in (states.FAILURE, states.REVOKED, states.RETRY):
            result = result["exc_type"] if result else None
        world.has_written = True
        world.promises.stored(world.acting, state, result)

    def _state(self) -> str:
        return Now.world.promises.state

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        world = Now.world
        if task_id != world.scenario.first.headers["id"]:
            state = states.SUCCESS if task_id in world.results else states.PENDING
            return world.io("get child", lambda: {"status": state, "result": world.results.get(task_id)})
        return world.io("get result", lambda: {"status": self._state(), "result": world.promises.result})


class Message:
    """A message in the broker."""

    content_encoding = "utf-8"

    def __init__(self, body: Any, headers: dict[str, Any], content_type: str, properties: dict[str, Any]) -> None:
        self.body = body
        self.headers = headers
        self.content_type = content_type
        self.properties = properties
        self.delivery_info = {"exchange": "", "routing_key": "tasks", "redelivered": False}
        self.payload = loads(body, content_type, "utf-8")

    @property
    def generation(self) -> int:
        return int(self.headers.get(GENERATION) or 0)

    @cached_property
    def told(self) -> str:
        """Return the message with its generation marked as one."""
        fresh = "" if self.generation else "fresh "
        return f"{self.headers['task']} {fresh}m=g{self.generation} {plain(self.payload[2].get(SNAPSHOT))}"

    def told_to(self, known: Fence | None) -> str:
        """Return what matters if the record has that fence: the snapshot of a stale message does not."""
        redelivered = " redelivered" if self.delivery_info["redelivered"] else ""
        if known is not None and self.generation < known.generation:
            return f"m=g{self.generation}{redelivered}"
        return self.told + redelivered

    def copy(self, *, redelivered: bool) -> Message:
        copy = object.__new__(Message)
        vars(copy).update(vars(self))
        copy.delivery_info = {**self.delivery_info, "redelivered": redelivered}
        return copy


class Producer:
    """Publishes into the world's one queue."""

    def __init__(self, connection: Any = None, **kwargs: Any) -> None:
        self.connection = connection

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def acquire(self, **kwargs: Any) -> Producer:
        """Return itself, also in place of a pool."""
        return self

    def publish(
        self, body: Any, *, headers: dict[str, Any], serializer: str, content_type: str | None = None, **kwargs: Any
    ) -> None:
        if content_type is None:
            content_type, _, body = dumps(body, serializer=serializer)
        properties = {"correlation_id": kwargs.get("correlation_id"), "reply_to": kwargs.get("reply_to")}
        message = Message(body, dict(headers), content_type, properties)
        Now.world.io(f"publish {message.told}", lambda: Now.world.publish(message))


class Connection:
    """A connection to the broker, which is also its channel."""

    connection_errors = channel_errors = recoverable_connection_errors = ()
    transport = SimpleNamespace(driver_type="filesystem")

    def __init__(self) -> None:
        self.connection = SimpleNamespace(client=self)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def connect(self) -> None:
        pass

    def channel(self) -> Connection:
        return self

    @contextmanager
    def _reraise_as_library_errors(self) -> Iterator[None]:
        yield

    def queue_declare(self, queue: str, passive: bool) -> Any:
        return SimpleNamespace(
            message_count=Now.world.io("count", lambda: len(Now.world.queue) + Now.world.scenario.backlog)
        )


class SimFlag(flags._Fixed):
    """A stop flag without a file."""

    def __init__(self, worker: str) -> None:
        super().__init__(flags.RUNNING)
        self.worker = self.path = worker


class NoWatcher:
    """A watcher that checks only when the world decides."""

    def add(self, watch: Any) -> None:
        Now.world.acting.watch = watch

    def leave(self, watch: Any) -> None:
        pass

    remove = leave


class PlainInfo:
    """An ExceptionInfo without a traceback: formatting one takes longer than the rest of a history."""

    traceback = ""

    def __init__(self, exc_info: Any = None, internal: bool = False) -> None:
        self.exc_info = exc_info or sys.exc_info()
        self.type, self.exception = self.exc_info[0], self.exc_info[1]
        self.internal = internal


class NoEvents:
    """A dispatcher that drops all events."""

    def __call__(self, **kwargs: Any) -> NoEvents:
        return self

    def __enter__(self) -> NoEvents:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def send(self, *args: Any, **kwargs: Any) -> None:
        pass
