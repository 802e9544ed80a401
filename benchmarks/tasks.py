"""The tasks that the workers of the benchmarks run.

``plain`` is a plain Celery app; the tasks of ``steps`` may have steps.  The tasks are not shared, because each
app would then have those of the other.  The environment that ``benchmarks.servers`` gives its workers has the
address of Redis, the folder and the configuration of the apps.
"""

from __future__ import annotations

import json
import mmap
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready
from redis import Redis

from benchmarks.floors import BareFile, BarePostgres, BareRedis, BareSQLite, alternate
from benchmarks.loops import time_items
from benchmarks.servers import CONF, FOLDER, MACHINE, REDIS, connect
from benchmarks.timing import interleave
from celery_continuations import ContinuableTask
from celery_continuations.process import identity
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Update, open_store

URL = os.environ[REDIS]
FOLDER_PATH = Path(os.environ[FOLDER])

plain = Celery("plain")
steps = Celery("steps", task_cls="celery_continuations:AppTask")
for app in (plain, steps):
    app.conf.update(json.loads(os.environ[CONF]))
# An error must fail the measurement, and at once.
steps.conf.continuation_resume_errors_after_advancing = False

if MACHINE in os.environ:
    identity._machine = lambda: os.environ[MACHINE]


# -- tasks of both apps: equal except for the base class that the app gives them


def clocks() -> tuple[float, float]:
    """Return the time, which all processes of a machine share, and this process's CPU time."""
    return time.monotonic(), time.process_time()


def gate(key: str) -> tuple[float, float]:
    """Occupy the worker until ``key`` is pushed; return the times from which it is free."""
    connect(URL).blpop([key], timeout=60)
    return clocks()


def nothing() -> None:
    """Do nothing."""


for app in (plain, steps):
    app.task(clocks, name="clocks", shared=False)
    app.task(gate, name="gate", shared=False)
    app.task(nothing, name="nothing", shared=False)


def _say_started(what: str) -> None:
    connect(URL).rpush(f"started:{what}", os.getpid())


@worker_ready.connect
def _say_ready(sender: Any, **kwargs: Any) -> None:
    _say_started(f"worker {sender.hostname.partition('@')[0]}")


# -- saves


def _floors(url: str, fence: str, text: str) -> dict[str, Callable[[], object]]:
    """Return the bare calls to compare a save to this store with."""
    scheme = url.partition("://")[0]
    if scheme == "redis":
        redis = BareRedis(Redis.from_url(url), fence, text)  # a client like the store's
        return {"set": redis.set, "evalsha": redis.evalsha, "compare and set": redis.compare_and_set}
    if scheme == "db+sqlite":
        return {"update": BareSQLite(FOLDER_PATH / "bare.db", fence, text).update}
    if scheme == "db+postgresql+psycopg":
        postgres = BarePostgres(url.replace("db+postgresql+psycopg", "postgresql"), fence, text)
        return {"update": postgres.update, "update and commit": postgres.update_and_commit}
    return {"write": BareFile(FOLDER_PATH, text).write}


def _time_saves(task: Any, step: Any, rounds: int) -> dict[str, list[float]]:
    """Alternate between ``advance``, the store's share of it and the bare calls, and time each."""
    step.advance()
    store = open_store(task.app, task.app.conf.continuation_store)
    record = store.read(task.request.id)
    assert record is not None
    assert record.snapshot is not None
    text, fence, task_id = record.snapshot, record.fence, str(uuid.uuid4())
    texts = cycle(alternate(text))
    store.compare_and_swap(task_id, None, Update(fence, text, record.message))
    owned = OwnedRecord(store, task_id, fence)

    def save() -> None:
        owned.save(next(texts))

    floors = _floors(task.app.conf.continuation_store, fence.dumps(), text)
    calls = {**floors, "store": save, "checkpoint": step.advance, "task.checkpoint": task.checkpoint}
    return {**interleave(calls, rounds, times=20), "size": [len(text)]}


@steps.task(name="saves", base=ContinuableTask, bind=True, shared=False, continuation_checkpoint_interval=0)
def saves(self: Any, rounds: int) -> dict[str, list[float]]:
    """Save at every checkpoint, and time that."""
    taken = {}
    for step in self.step("measure", start=0):
        taken = _time_saves(self, step, rounds)
    return taken


# -- items


@steps.task(name="timed_items", base=ContinuableTask, bind=True, shared=False)
def timed_items(self: Any, case: str, rounds: int) -> dict[str, float]:
    """Time this task's own loops."""
    return time_items(self, case, rounds)


# -- size


@steps.task(name="sized", base=ContinuableTask, bind=True, shared=False, continuation_checkpoint_interval=0)
def sized(self: Any, checkpoints: int) -> list[dict[str, int]]:
    """Save at every checkpoint; return the size of each key of the record after the first, and at the end."""
    redis = connect(URL)
    sizes = []
    for row in self.iterate("import", range(checkpoints + 1)):
        if row in (1, checkpoints):
            keys = [key.decode() for key in redis.scan_iter(f"*:{self.request.id}")]
            found: dict[str, Any] = {key.partition(":")[0]: redis.memory_usage(key, samples=0) for key in keys}
            sizes.append(found)
    return sizes


# -- claim


@steps.task(
    name="claimed",
    base=ContinuableTask,
    bind=True,
    shared=False,
    continuation_should_interrupt="benchmarks.tasks.leave_now",
)
def claimed(self: Any) -> None:
    """Report when its first line runs, in two executions."""
    connect(URL).echo(f"begun {self.request.id}")
    for _ in self.iterate("once", range(1)):
        pass


# -- recovery


def _say_items(task: Any, rows: Iterable[int]) -> None:
    """Record which process does which row, and when, until the measurement ends."""
    redis, key = connect(URL), task.request.id
    for row in rows:
        redis.rpush(f"items:{key}", json.dumps([task.request.hostname, os.getpid(), row, time.monotonic()]))
        if redis.exists(f"enough:{key}"):
            return
        time.sleep(0.05)


@steps.task(name="continuable_items", base=ContinuableTask, bind=True, shared=False)
def continuable_items(self: Any) -> None:
    """Do items, for more than an hour."""
    _say_items(self, self.iterate("items", range(100_000)))


@plain.task(name="plain_items", bind=True, acks_late=True, reject_on_worker_lost=True, shared=False)
def plain_items(self: Any) -> None:
    """Do items, for more than an hour."""
    _say_items(self, range(100_000))


# -- stop


@steps.task(name="waiting", base=ContinuableTask, bind=True, shared=False, ignore_result=True)
def waiting(self: Any) -> None:
    """Report the start, and wait."""
    connect(URL).sadd("waiting", self.request.id)
    self.wait_for("answer")


@steps.task(name="answering", base=ContinuableTask, bind=True, shared=False)
def answering(self: Any) -> float:
    """Wait; return the time at which the code after the wait was reached."""
    self.wait_for("answer")
    return time.time()


@steps.task(name="children", base=ContinuableTask, bind=True, shared=False)
def children(self: Any, count: int) -> tuple[int, int]:
    """Wait for that many empty tasks; return how many results there are, and the number of executions."""
    found = self.wait_for_results("children", [steps.signature("nothing") for _ in range(count)])
    return len(found), self.continuation.resumptions + 1


@steps.task(name="long", base=ContinuableTask, bind=True, shared=False)
def long(self: Any) -> None:
    """Work for a minute, ten milliseconds at a time."""
    _say_started("long")
    for _ in self.iterate("work", range(6_000)):
        time.sleep(0.01)


# -- restart


class Gaps:
    """Times from an execution's end to the next one's start, in the worker's one child."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._gaps: list[float] = []

    def leave(self) -> None:
        """Note that the execution is about to end."""
        self._left = time.perf_counter()

    def arrive(self) -> None:
        """Note that the task has started."""
        if self._left is not None:
            self._gaps.append(time.perf_counter() - self._left)
            self._left = None

    def take(self) -> list[float]:
        """Return the gaps and forget them."""
        taken, self._gaps = self._gaps, []
        return taken


gaps = Gaps()


def leave_now(task: Any) -> str:
    """Always return a reason to interrupt the task."""
    gaps.leave()
    return "benchmark"


@steps.task(
    name="interrupted",
    base=ContinuableTask,
    bind=True,
    shared=False,
    continuation_should_interrupt="benchmarks.tasks.leave_now",
)
def interrupted(self: Any, times: int) -> list[float]:
    """Do items, interrupted after each."""
    gaps.arrive()
    for _ in self.iterate("hops", range(times)):
        pass
    return gaps.take()


def _retried(self: Any, times: int) -> list[float]:
    """Retry at once, repeatedly."""
    gaps.arrive()
    if self.request.retries < times:
        gaps.leave()
        self.retry(countdown=0)
    return gaps.take()


for name, late in (("retried", False), ("retried_late", True)):
    steps.task(_retried, name=name, base=Task, bind=True, shared=False, max_retries=None, acks_late=late)


# -- amplification


@contextmanager
def _ledger(path: str) -> Iterator[mmap.mmap]:
    """Open the file with one byte per row that counts how often it was done; it outlives a killed process."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as counts:
        yield counts


def _do(row: int, counts: mmap.mmap, seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    counts[row] += 1


@steps.task(name="continuable_rows", base=ContinuableTask, bind=True, shared=False)
def continuable_rows(self: Any, path: str, seconds: float) -> None:
    """Do every row, with a checkpoint after each."""
    _say_started("continuable_rows")
    with _ledger(path) as counts:
        for row in self.iterate("rows", range(len(counts))):
            _do(row, counts, seconds)


@plain.task(name="plain_rows", acks_late=True, shared=False)
def plain_rows(path: str, seconds: float) -> None:
    """Do every row."""
    _say_started("plain_rows")
    with _ledger(path) as counts:
        for row in range(len(counts)):
            _do(row, counts, seconds)
