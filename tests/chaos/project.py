"""The project that the workers run: each task records what it does, and when."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from celery.signals import task_failure

from celery_continuations import ContinuableTask
from celery_continuations.execution.direct import execution_of
from celery_continuations.protocol import commands, owned, recovery
from celery_continuations.protocol.owned import OVERDUE_AFTER
from celery_continuations.signals import task_interrupted
from celery_continuations.worker import sweeper
from tests.chaos.checks import value_of

app = Celery("chaos", set_as_current=True)
app.conf.update(json.loads(os.environ.get("CHAOS_CONF", "{}")))
for module in (owned, recovery, commands, sweeper):
    module.OVERDUE_AFTER = app.conf.get("chaos_overdue_after", OVERDUE_AFTER)

SAFE = {"acks_late": True, "reject_on_worker_lost": True}


def tell(task_id: str, generation: int, word: str, *more: Any) -> None:
    """Write one line atomically: time, process group, process, task, generation, word, more."""
    words = (f"{time.monotonic():.4f}", os.getpgrp(), os.getpid(), task_id, generation, word, *more)
    fd = os.open(os.environ["CHAOS_TRACE"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


@app.task(base=ContinuableTask, bind=True, name="chaos.work")
def work(self: Any, number: int, items: int, pages: int, delay: float, isolated: bool = False) -> int:
    """Several steps of all kinds."""
    generation = execution_of(self.request).checkpoints.ownership.record.fence.generation

    def write(*words: Any) -> None:
        tell(self.request.id, generation, *words)

    write("begin")
    self.step("first", write, "first")
    for item in self.iterate("items", range(items)):
        time.sleep(delay)
        write("item", item)
    for step in self.step("pages", start=0, isolated=isolated):
        while step.cursor < pages:
            time.sleep(delay)
            write("page", step.cursor)
            step.advance()
    self.step("last", write, "last")
    write("end")
    return value_of(number, items, pages)


@app.task(bind=True, name="chaos.called", **SAFE)
def called(self: Any, value: int, number: int) -> None:
    """A link."""
    tell(self.request.id, 0, "called", number, value)


@app.task(bind=True, name="chaos.total", **SAFE)
def total(self: Any, values: list[int]) -> int:
    """A chord's body."""
    tell(self.request.id, 0, "total", json.dumps(values).replace(" ", ""))
    return sum(values)


@task_interrupted.connect
def on_interrupted(sender: Any = None, task_id: str = "", interrupt: Any = None, **kwargs: Any) -> None:
    tell(task_id, -1, "left", interrupt.reason.replace(" ", "_"))


@task_failure.connect
def on_failure(task_id: str = "", exception: Any = None, **kwargs: Any) -> None:
    tell(task_id, -1, "failure", type(exception).__name__)
