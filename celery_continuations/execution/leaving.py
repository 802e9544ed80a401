"""The hand-over of a task: to the next message, or to the event that ends a wait or a pause."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery import Celery, states
from celery.exceptions import Ignore
from celery.utils.time import maybe_iso8601, maybe_make_aware

from celery_continuations import conf
from celery_continuations.core.inbox import Inbox
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Waiting
from celery_continuations.ends import BackendUnavailable, NotEnded, ends_of
from celery_continuations.exceptions import Interrupted, StoreError
from celery_continuations.execution.message import CANCELLED, Message, pauses
from celery_continuations.execution.ownership import Ownership
from celery_continuations.execution.phases import Ended, Passive, Phased
from celery_continuations.execution.triggers import watcher
from celery_continuations.execution.waiting import CHECK_AGAIN
from celery_continuations.process.stop_flag import STOPPING as STOPPING_LEVEL
from celery_continuations.protocol import commands
from celery_continuations.stores import Command, Status

__all__ = ["RETRY", "HandOver", "Leaving"]

RETRY = "retry"

# The part of the grace period for which a stopping execution waits for the store; the rest is for the state and the
# message.
_OF_THE_GRACE = 0.75


@dataclass(frozen=True)
class HandOver:
    """What the next execution gets.

    Attributes:
        snapshot: the text of the snapshot.
        options: the options of its message.
        shown: the interruption as users see it; None if the task has called ``self.retry()``.
        error: the error that the task resumes from, or None.
        run: the run that ends; None if the task is requeued unchanged.
        message: the saved message, if it differs from the record's.
    """

    snapshot: str
    options: dict[str, Any]
    shown: Interrupted | None
    error: Exception | None = None
    run: Run | None = None
    message: str | None = None

    @property
    def waiting(self) -> Waiting | None:
        """What the task waits for, or None."""
        return None if self.run is None else self.run.snapshot.waiting


class Leaving(Passive):
    """The record is handed over to the next message, which is published once Celery has stored the state RETRY.

    Args:
        execution: the execution in this phase.
        message: the message that it runs.
        ownership: the ownership of the record.
        hand_over: what the next execution gets.
    """

    def __init__(self, execution: Phased, message: Message, ownership: Ownership, hand_over: HandOver) -> None:
        self._execution = execution
        self._message = message
        self._ownership = ownership
        self._hand_over = hand_over
        self._generation = ownership.record.fence.generation

    def enter(self) -> None:
        """Hand the record over.

        Raises:
            Ignore: when another execution owns it, or the task was cancelled.
        """
        self._message.reporter.handing_over()
        self._execution.phase = self
        if self._execution.checkpoints is not None:
            watcher.leave(self._execution.checkpoints.triggers)
        if self._hand_over.waiting is not None:
            return  # the record is written once Celery has stored its state: then a delivery may publish it
        try:
            self._patiently(self._queue)
        except StoreError as exc:
            self._message.reporter.not_saved("its progress, which only the message carries now", exc)
        else:
            if self._ownership.record.fence.command == Command.CANCEL:
                self._ownership.cancel()
                self._execution.phase = Ended()
                raise NotEnded(CANCELLED)

    def _patiently(self, write: Callable[[], None]) -> None:
        """Write the progress; while the worker stops, wait for an unavailable store until the time is needed.

        If the store returns before the worker must have stopped, the record is as new as the message.  Otherwise the
        next worker might recover the last save while the message, which has the progress since then, is not claimed.

        Raises:
            StoreError: when the store is still unavailable then.
        """
        flag, waits = self._message.flag, False
        for pause in pauses():
            try:
                return write()
            except StoreError as exc:
                until = flag.stopped_at + conf.grace_period(self._message.task.app) * _OF_THE_GRACE
                if flag.level != STOPPING_LEVEL or time.monotonic() + pause >= until:
                    raise
                if not waits:
                    self._message.reporter.not_saved("its progress yet; waiting for the store", exc)
                waits = True
            time.sleep(pause)

    def _queue(self) -> None:
        given = self._hand_over
        with self._ownership.writing() as owned:
            owned.queue(given.snapshot, _delay(self._message.task.app, given.options), given.message)

    def publish(self) -> None:
        """Publish the message: Celery has stored the state RETRY."""
        given, reporter = self._hand_over, self._message.reporter
        self._execution.phase = _Left(self._execution, self._ownership)
        try:
            options = self._options_to_publish()
            if options is not None:
                self._message.publish(generation=self._generation, snapshot=given.snapshot, options=options)
            if given.waiting is None:  # asked last, so that the next execution does not wait for the answer
                self._message.restore_cancelled()
        except SystemExit:
            # this execution's message is not acknowledged, and may claim again
            self._ownership.release(given.snapshot)
            self._execution.phase = Ended()
            raise
        except Exception as exc:
            reporter.log(logging.ERROR, "publish_failed", "failed: it could not be published again: %r", exc)
            self._ownership.fail(exc)
            self._execution.phase = Ended()
            raise
        finally:
            self._execution.close()
        if given.shown is not None:  # reported last, so that the next execution does not wait for the report
            reporter.interrupted(given.shown, given.error, given.run)
        elif given.run is not None and given.run.current is not None:
            reporter.step("step_interrupted", given.run, given.run.current, reason=RETRY)

    def settle(self, state: str | None, result: Any) -> None:
        """Publish: the state RETRY could not be stored, so ``on_retry`` was not called."""
        self.publish()

    # -- what becomes of the record

    def _options_to_publish(self) -> dict[str, Any] | None:
        """Return the options of the message; None if a time, a delivery or an operator continues the task."""
        given, waiting = self._hand_over, self._hand_over.waiting
        if waiting is not None:
            try:
                self._patiently(lambda: self._wait(waiting))
            except Ignore:
                return None
            except StoreError as exc:
                self._message.reporter.not_saved("that it waits; trying again", exc)
                return {**given.options, "countdown": CHECK_AGAIN}
        fence = self._ownership.record.fence
        if fence.command == Command.CANCEL:
            self._ownership.cancel()
            self._execution.phase = Ended()
            return None
        if fence.status == Status.WAITING and waiting is not None and self._is_result_there(waiting):
            return given.options if self._wakes(str(waiting.key)) else None
        return None if fence.status in (Status.WAITING, Status.PAUSED) else given.options

    def _wait(self, waiting: Waiting) -> None:
        due_in = None if waiting.until is None else max(0.0, waiting.until - self._message.now())

        def is_there(inbox: str) -> bool:
            return waiting.kind == "delivery" and waiting.key in Inbox.loads(inbox)

        with self._ownership.writing() as owned:
            owned.wait(self._hand_over.snapshot, due_in, is_there)

    def _is_result_there(self, waiting: Waiting) -> bool:
        """Whether the child ended before the record showed that the task waits for it."""
        if waiting.kind != "result":
            return False
        try:
            return bool(ends_of(self._message.task.app.backend, [str(waiting.key)]))
        except BackendUnavailable:
            return False  # the task checks again itself

    def _wakes(self, key: str) -> bool:
        """End the task's own wait for a result; return whether this execution did so."""
        try:
            return commands.wake(self._message.store, self._message.request.id, key) is not None
        except StoreError as exc:
            self._message.reporter.not_saved("that its wait is over; checking again when it is due", exc)
            return False


class _Left(Passive):
    """The message is out, or none is needed."""

    def __init__(self, execution: Phased, ownership: Ownership) -> None:
        self._execution = execution
        self._ownership = ownership

    def settle(self, state: str | None, result: Any) -> None:
        """Mark the task as failed if its own ``on_retry`` has failed."""
        if state in (states.FAILURE, states.REJECTED):
            self._ownership.fail(result)
            self._execution.phase = Ended()


def _delay(app: Celery, options: dict[str, Any]) -> float:
    """Return the seconds until a message with these options is due."""
    eta = maybe_iso8601(options.get("eta"))
    if eta is not None:
        # as Celery's workers read one without a zone
        return max(0.0, (maybe_make_aware(eta, app.timezone) - datetime.now(timezone.utc)).total_seconds())
    return float(options.get("countdown") or 0)
