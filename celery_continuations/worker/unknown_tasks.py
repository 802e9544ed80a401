"""Requeue continuations of unknown tasks: during a rolling deploy another worker may know them.

Celery would store a failure immediately and drop the message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery_continuations import conf
from celery_continuations.messages.headers import GENERATION
from celery_continuations.messages.requeue import requeue_delay
from celery_continuations.stores import Status, open_store
from celery_continuations.worker.maintenance import Maintenance

__all__ = ["requeue_unknown"]

logger = logging.getLogger("celery_continuations")


def requeue_unknown(consumer: Any, maintenance: Maintenance) -> None:
    """Make ``consumer`` requeue such messages for ``continuation_change_grace`` before it fails them."""
    fail = consumer.on_unknown_task
    grace = float(conf.seconds(conf.app_setting(consumer.app, "change_grace")))
    first_seen: dict[str, float] = {}

    def on_unknown_task(body: Any, message: Any, exc: Any) -> Any:
        task_id = (message.headers or {}).get("id")
        if not task_id or not message.headers.get(GENERATION):
            return fail(body, message, exc)
        now = time.monotonic()
        if now - first_seen.setdefault(task_id, now) < grace:
            delay = requeue_delay()
            logger.warning(
                "Task %s[%s] requeued in %s s: this worker does not know the task",
                message.headers.get("task"),
                task_id,
                delay,
                extra={"action": "given_back", "task_id": task_id},
            )
            return consumer.timer.call_after(delay, _in_loop(consumer, message.requeue))
        del first_seen[task_id]
        fail(body, message, exc)
        sweeper = maintenance.sweeper_of(open_store(consumer.app, conf.app_setting(consumer.app, "store")))
        return sweeper.decide(task_id, Status.FAILED) if sweeper else None

    consumer.on_unknown_task = on_unknown_task


def _in_loop(consumer: Any, act: Callable[[], Any]) -> Callable[[], Any]:
    """Call ``act`` in the consumer's own thread: the timer may be another one."""
    return lambda: consumer.call_soon(act)
