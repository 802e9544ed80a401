"""How long proving a task resumable takes: seconds, for a body that does nothing."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery

from benchmarks.report import Figure, Row
from celery_continuations import ContinuableTask
from celery_continuations.testing import assert_resumable

__all__ = ["measure"]

CHECKPOINTS = 1_000
TARGET = 10


def measure(quick: bool) -> Figure:
    """Interrupt, and kill, an empty loop at each of its checkpoints."""
    count = CHECKPOINTS // 10 if quick else CHECKPOINTS
    task = _task()
    interruptions = _seconds(task, count, kills=False, pairs=0)
    kills = _seconds(task, count, pairs=0) - interruptions
    met = None if quick else interruptions <= TARGET
    target = "" if quick else f"at most {TARGET} s"
    return Figure(
        f"assert_resumable over an empty body with {count:,} checkpoints",
        "The two undisturbed runs are in the first row.",
        [
            Row("each interruption", f"{interruptions:.1f} s", "", "", target, met),
            Row("each kill", f"{kills:.1f} s"),
        ],
    )


def _seconds(task: Any, count: int, **options: Any) -> float:
    began = time.monotonic()
    assert_resumable(task, count, **options)
    return time.monotonic() - began


def _task() -> Any:
    @Celery(set_as_current=False).task(base=ContinuableTask, bind=True, name="empty", shared=False)
    def empty(self: Any, count: int) -> int:
        for _ in self.iterate("items", range(count)):
            pass
        return count

    return empty
