"""Code that cannot resume a snapshot: the task is requeued for a time, and then fails or starts over."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

from celery import states
from celery.exceptions import Retry

from celery_continuations import conf
from celery_continuations.core.evolution import adapt
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot, with_misfit
from celery_continuations.exceptions import Interrupt, Interrupted, InvalidStepError
from celery_continuations.execution.leaving import HandOver, Leaving
from celery_continuations.execution.message import Message
from celery_continuations.execution.ownership import Ownership
from celery_continuations.execution.phases import Ended, Final, Passive, Phased
from celery_continuations.messages.headers import CHANGED
from celery_continuations.messages.requeue import requeue_delay

__all__ = ["CODE_CHANGED", "Unfit", "adapted", "refuse_changed_code"]

CODE_CHANGED = "code changed"


def adapted(message: Message, text: str | None) -> Snapshot:
    """Return the snapshot to resume from, adapted to the current code.

    Raises:
        InvalidStepError: when newer code, or a newer release of this library, has written it.
    """
    version = message.setting("version")
    if text is None:
        return Snapshot(task_version=version)
    snapshot = Snapshot.loads(text)
    adapt(snapshot, version, message.setting("renamed_steps"))
    return snapshot


class _Requeue(NamedTuple):
    """The snapshot to requeue the task with, and options of its message."""

    snapshot: str
    options: dict[str, Any]


def refuse_changed_code(
    execution: Phased, message: Message, ownership: Ownership, run: Run | None, error: InvalidStepError
) -> None:
    """Requeue a task whose snapshot does not fit this worker's code, or return for it to fail.

    Raises:
        Interrupt: during the grace period, and after it if the task starts over.
    """
    now = time.time()
    since = float(getattr(message.request, CHANGED, None) or now)
    snapshot, countdown = ownership.record.snapshot or adapted(message, None).dumps(), requeue_delay()
    if now - since >= conf.seconds(message.setting("change_grace")):
        if message.setting("on_change") != "restart":
            return
        snapshot, countdown = adapted(message, None).dumps(), 0.0
    else:
        snapshot = with_misfit(snapshot, str(error))
    message.reporter.log(
        logging.WARNING, "changed", "requeued: this worker's code cannot resume its snapshot: %s", error
    )
    requeue = _Requeue(snapshot, {"countdown": countdown, "headers": {CHANGED: since}})
    execution.phase = _Requeueing(execution, message, ownership, run, requeue)
    raise Interrupt(None, None, CODE_CHANGED)


class _Requeueing(Passive):
    """The task is being requeued for other code."""

    def __init__(
        self, execution: Phased, message: Message, ownership: Ownership, run: Run | None, requeue: _Requeue
    ) -> None:
        self._run = run
        self._execution = execution
        self._message = message
        self._ownership = ownership
        self._requeue = requeue

    def begun(self) -> Run:
        """Return the run, whose steps raise the misfit.  Raises Interrupt if the snapshot itself does not fit."""
        if self._run is None:
            raise Interrupt(None, None, CODE_CHANGED)
        return self._run

    def returned(self) -> None:
        """Raise the interruption that the task has swallowed."""
        raise Interrupt(None, None, CODE_CHANGED)

    def left_by(self, error: BaseException) -> BaseException:
        """Requeue the task; return the Retry that Celery stores."""
        if self._run is not None:
            self._run.abandon()
        text, options = self._requeue
        shown = Interrupted(None, None, CODE_CHANGED)
        leaving = Leaving(self._execution, self._message, self._ownership, HandOver(text, options, shown))
        leaving.enter()
        retry: BaseException = Retry(str(shown), exc=shown, when=options["countdown"])
        return retry


class Unfit(Passive):
    """The snapshot cannot be resumed, by this code or at all, and the task fails.

    Args:
        execution: the execution in this phase.
        ownership: the ownership of the record.
        error: the reason.
    """

    def __init__(self, execution: Phased, ownership: Ownership, error: Exception) -> None:
        self._execution = execution
        self._ownership = ownership
        self._error = error

    def begun(self) -> Run:
        """Raise the error."""
        raise Final(self._error)

    def returned(self) -> None:
        """Raise the error that the task has swallowed."""
        raise self._error

    def settle(self, state: str | None, result: Any) -> None:
        """Update the record: the task has failed."""
        if state in (states.FAILURE, states.REJECTED):
            self._ownership.fail(self._error)
            self._execution.phase = Ended()
