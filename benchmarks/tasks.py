"""The tasks that the workers of the benchmarks run.

``plain`` is an app as Celery has it, ``steps`` one whose tasks may have steps.  No task is shared, or
each app would have those of the other.  Where Redis and the folder are stands in the environment that
``benchmarks.servers`` gives its workers.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery, Task
from redis import Redis

from benchmarks.floors import BareFile, BareRedis
from benchmarks.servers import FOLDER, REDIS, connect
from benchmarks.timing import interleave
from celery_continuations import ContinuableTask
from celery_continuations.stores import Fence, Record, Status, open_store

URL = os.environ[REDIS]
FOLDER_PATH = Path(os.environ[FOLDER])

plain = Celery("plain", broker=URL, backend=URL)
steps = Celery("steps", broker=URL, backend=URL, task_cls="celery_continuations:AppTask")
# An error is to fail the measurement, and at once.
steps.conf.continuation_resume_errors_after_advancing = False


# -- of both apps: alike, but for the base class that the app gives them


def clocks() -> tuple[float, float]:
    """Return the time, which is the same for all processes of a machine, and this process's CPU time."""
    return time.monotonic(), time.process_time()


def gate(key: str) -> tuple[float, float]:
    """Keep the worker until ``key`` is pushed; return the times from which on it is free."""
    connect(URL).blpop([key], timeout=60)
    return clocks()


def nothing() -> None:
    """Do nothing."""


for app in (plain, steps):
    app.task(clocks, name="clocks", shared=False)
    app.task(gate, name="gate", shared=False)
    app.task(nothing, name="nothing", shared=False)


# -- saves


def _time_saves(task: Any, step: Any, rounds: int) -> dict[str, list[float]]:
    """Time ``advance``, the store's share of it and the bare calls in turn."""
    step.advance()
    text = task.AsyncResult(task.request.id).snapshot().dumps()
    fence = Fence(1, Status.RUNNING, f"{task.request.hostname}/{os.getpid()}/{task.request.id}")
    store = open_store(task.app, task.continuation_store)
    store.swap("benchmark", None, Record(fence, text))
    if task.continuation_store == URL:
        bare = BareRedis(Redis.from_url(URL), fence.dumps(), text)  # a client like the store's
        floors = {"set": bare.set, "evalsha": bare.evalsha, "compare and set": bare.compare_and_set}
    else:
        floors = {"write": BareFile(FOLDER_PATH, text).write}
    calls = {**floors, "store": lambda: store.save("benchmark", fence, text), "checkpoint": step.advance}
    return {**interleave(calls, rounds, times=20), "size": [len(text)]}


FILES = f"file://{FOLDER_PATH}"


def _saves(self: Any, rounds: int) -> dict[str, list[float]]:
    """Save every checkpoint, and time that."""
    taken = {}
    for step in self.step("measure", start=0):
        taken = _time_saves(self, step, rounds)
    return taken


for name, store in (("saves_to_redis", URL), ("saves_to_files", FILES)):
    steps.task(
        _saves,
        name=name,
        base=ContinuableTask,
        bind=True,
        shared=False,
        continuation_checkpoint_interval=0,
        continuation_store=store,
    )


# -- stop


def _say_started(task: str) -> None:
    connect(URL).rpush(f"started:{task}", "")


@steps.task(name="long", base=ContinuableTask, bind=True, shared=False)
def long(self: Any) -> None:
    """Work for a minute, ten milliseconds at a time."""
    _say_started("long")
    for _ in self.iterate("work", range(6_000)):
        time.sleep(0.01)


# -- restart


class Gaps:
    """Times from leaving to arriving again, in the one child that the worker has."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._gaps: list[float] = []

    def leave(self) -> None:
        """The task is about to leave."""
        self._left = time.perf_counter()

    def arrive(self) -> None:
        """The task has started."""
        if self._left is not None:
            self._gaps.append(time.perf_counter() - self._left)
            self._left = None

    def take(self) -> list[float]:
        """Return the gaps and forget them."""
        taken, self._gaps = self._gaps, []
        return taken


gaps = Gaps()


def leave_now(task: Any) -> str:
    """Give a reason to interrupt the task, always."""
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
    """Be interrupted after every item."""
    gaps.arrive()
    for _ in self.iterate("hops", range(times)):
        pass
    return gaps.take()


def _retried(self: Any, times: int) -> list[float]:
    """Retry at once, again and again."""
    gaps.arrive()
    if self.request.retries < times:
        gaps.leave()
        self.retry(countdown=0)
    return gaps.take()


for name, late in (("retried", False), ("retried_late", True)):
    steps.task(_retried, name=name, base=Task, bind=True, shared=False, max_retries=None, acks_late=late)


# -- amplification

# So that a million rows take a quarter of a minute on any machine.
ROW_SECONDS = 15e-6


@contextmanager
def _ledger(path: str) -> Iterator[mmap.mmap]:
    """Open the file that counts, in a byte for each row, how often it was done; it outlives a killed process."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as counts:
        yield counts


def _do(row: int, counts: mmap.mmap) -> None:
    until = time.perf_counter() + ROW_SECONDS
    while time.perf_counter() < until:
        pass
    counts[row] += 1


@steps.task(name="continuable_rows", base=ContinuableTask, bind=True, shared=False)
def continuable_rows(self: Any, path: str) -> None:
    """Do every row, with a checkpoint after each."""
    _say_started("continuable_rows")
    with _ledger(path) as counts:
        for row in self.iterate("rows", range(len(counts))):
            _do(row, counts)


@plain.task(name="plain_rows", acks_late=True, shared=False)
def plain_rows(path: str) -> None:
    """Do every row."""
    _say_started("plain_rows")
    with _ledger(path) as counts:
        for row in range(len(counts)):
            _do(row, counts)
