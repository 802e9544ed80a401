"""Requeue continuations of unknown tasks: during a rolling deploy another worker may know them.

Celery would store a failure immediately and drop the message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.exceptions import NotRegistered

from celery_continuations import conf
from celery_continuations.exceptions import ContinuationError
from celery_continuations.messages.headers import GENERATION
from celery_continuations.messages.requeue import requeue_delay
from celery_continuations.process.identity import new_owner
from celery_continuations.process.stop_flag import flag_of
from celery_continuations.stores import Status, open_store
from celery_continuations.worker.maintenance import Maintenance
from celery_continuations.worker.verdicts import is_outstanding, take_to_end

__all__ = ["requeue_unknown"]

logger = logging.getLogger("celery_continuations")

# How many messages a worker remembers, and for how many seconds more than the grace if they do not come back.
_MOST = 10_000
_BACK_WITHIN = 600.0


def requeue_unknown(consumer: Any, maintenance: Maintenance) -> None:
    """Make ``consumer`` requeue such messages for ``continuation_change_grace`` before it fails them."""
    fail = consumer.on_unknown_task
    grace = float(conf.seconds(conf.app_setting(consumer.app, "change_grace")))
    waiting = _Waiting(grace)

    def on_unknown_task(body: Any, message: Any, exc: Any) -> Any:
        headers = message.headers or {}
        task_id, generation = headers.get("id"), headers.get(GENERATION)
        if not task_id or not generation:
            return fail(body, message, exc)
        if waiting.may_wait((task_id, generation)):
            delay = requeue_delay()
            logger.warning(
                "Task %s[%s] requeued in %s s: this worker does not know the task",
                message.headers.get("task"),
                task_id,
                delay,
                extra={"action": "given_back", "task_id": task_id},
            )
            return consumer.timer.call_after(delay, _in_loop(consumer, message.requeue))
        store = open_store(consumer.app, conf.app_setting(consumer.app, "store"))
        try:
            flag = flag_of(consumer.hostname)
            owner = new_owner(flag.worker if flag else "")
            verdict = take_to_end(
                store, consumer.app, task_id, owner, lambda record: is_outstanding(record, generation)
            )
        except ContinuationError:
            verdict = None
        if verdict is False:
            return message.ack_log_error(logger, consumer.connection_errors)
        fail(body, message, exc)
        sweeper = maintenance.sweeper_of(store)
        return sweeper.decide(task_id, Status.FAILED, NotRegistered(headers.get("task"))) if sweeper else None

    consumer.on_unknown_task = on_unknown_task


class _Waiting:
    """The messages that this worker has requeued, and since when.

    Another generation of a task is another message, whose grace begins with it.

    Args:
        grace: for how many seconds a message is requeued.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._seen: dict[tuple[Any, Any], tuple[float, float]] = {}  # the first time and the last, in order of the last

    def may_wait(self, message: tuple[Any, Any]) -> bool:
        """Note that a message has come; return False once its grace has passed."""
        now = time.monotonic()
        self._forget(now)
        first, _ = self._seen.pop(message, (now, now))
        if now - first >= self._grace:
            return False
        self._seen[message] = first, now
        return True

    def _forget(self, now: float) -> None:
        """Forget messages that another worker has claimed: they have not come back for long."""
        while self._seen:
            oldest = next(iter(self._seen))
            if len(self._seen) < _MOST and now - self._seen[oldest][1] <= self._grace + _BACK_WITHIN:
                return
            del self._seen[oldest]


def _in_loop(consumer: Any, act: Callable[[], Any]) -> Callable[[], Any]:
    """Call ``act`` in the consumer's own thread: the timer may be another one."""
    return lambda: consumer.call_soon(act)
