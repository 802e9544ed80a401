"""The message that an execution runs: its contents, and how its task is published again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.exceptions import OperationalError

from celery_continuations import celery_internals, conf, control
from celery_continuations.exceptions import StoreError
from celery_continuations.execution.reporting import Reporter
from celery_continuations.messages.body import Body, received
from celery_continuations.messages.from_request import republish, saved_message
from celery_continuations.messages.headers import DELIVERY, GENERATION, OWN_HEADERS, PARENT, SNAPSHOT
from celery_continuations.messages.saved import began
from celery_continuations.process.stop_flag import COLD, StopFlag, flag_at
from celery_continuations.protocol import commands
from celery_continuations.protocol.endings import ended, needs_chord_count, seconds_kept
from celery_continuations.stores import Fence, Record, Status, Store, open_store

if TYPE_CHECKING:
    from celery import Task

__all__ = ["CANCELLED", "Message", "pauses"]

CANCELLED = "cancelled"

# Seconds between two attempts: the first pause, and the longest.
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0

# Size of a message body, in bytes, above which a warning is logged.
_LARGE_BODY = 1024 * 1024


class Message:
    """The message that an execution runs.

    Args:
        task: the task.
        request: the request of the message.
        body: the message's body, if it is not the one that the request carries.

    Attributes:
        generation: the generation that the message continues; 0 for a fresh message.
        reporter: the execution's reporter.
    """

    def __init__(self, task: Task[..., object], request: Any, body: Body | None = None) -> None:
        self.task = task
        self.request = request
        self._delivery: dict[str, Any] = getattr(request, DELIVERY, None) or {}
        for name in OWN_HEADERS:  # a task that passes its headers on to another task must not pass on its progress
            (request.headers or {}).pop(name, None)
        self._body = body or received(task, request, self._delivery.get("content_type"))
        self.reporter = Reporter(task, request.id, self._delivery.get("sends_as"))
        generation = getattr(request, GENERATION, None)
        self.generation: int = generation or 0
        self._is_from_caller = generation is None

    @cached_property
    def store(self) -> Store:
        """The store of the task's record."""
        return open_store(self.task.app, self.setting("store"))

    @property
    def flag(self) -> StopFlag:
        """The stop flag of the worker."""
        return flag_at(self._delivery.get("flag"))

    def now(self) -> float:
        """Return the time, in seconds since the epoch, by which waits and pauses end."""
        return time.time()

    @property
    def snapshot(self) -> str | None:
        """The text of the snapshot that the message carries, or None."""
        text: str | None = getattr(self.request, SNAPSHOT, None)
        return text

    def release(self) -> None:
        """Drop the request, which has ended."""
        self.request = None

    def setting(self, name: str) -> Any:
        """Return a setting of the task."""
        return conf.setting(self.task, name)

    @property
    def begins_another_task(self) -> bool:
        """Whether a caller has sent this very message, and neither a broker nor this library has sent it again."""
        is_redelivered = (self.request.delivery_info or {}).get("redelivered")
        if conf.driver_type(self.task.app) == "sqs":
            return False  # SQS delivers again after the visibility timeout, and kombu does not mark that
        is_child = PARENT in (self.request.headers or {})  # a parent that was lost starts the same children again
        return self._is_from_caller and not is_redelivered and not is_child

    # -- what has become of the task

    @property
    def stores_results(self) -> bool:
        """Whether Celery stores how the task ends, or at least that it has failed."""
        task: Any = self.task
        return bool(task.store_errors_even_if_ignored) or not celery_internals.ignore_result_of(task, self.request)

    def ended(self, record: Record | None) -> tuple[Status, float] | None:
        """Ask the result backend whether the task has ended; see :mod:`celery_continuations.protocol.endings`."""
        if record and needs_chord_count(record, bool(self.request.chord), self.task.backend):
            return None
        return ended(self.task, self.request.id, self.task.backend, began=began(record))

    def restore_cancelled(self) -> None:
        """Report that the task was cancelled just before Celery stored the state RETRY, if it was."""
        try:
            if self._tombstone() is not None and not self.ended(None):
                self.report_cancelled()
        except Exception as exc:  # of any driver; the message ends at the tombstone, which reports it again
            self.reporter.log(logging.WARNING, "not_stored", "its state REVOKED could not be stored yet: %r", exc)

    def end_cancelled(self) -> None:
        """End at the tombstone of a task that was cancelled before this message came, if there is one."""
        fence = self._tombstone()
        if fence is None:
            return
        if not self.ended(None):
            self.report_cancelled()  # the process that cancelled it may have died before reporting
        seconds = seconds_kept(self.task, Status.CANCELLED)
        try:
            unreported = commands.end_tombstone(self.store, self.request.id, fence, self.generation, seconds)
        except StoreError:
            return  # it is kept longer than necessary
        if unreported:
            control.report_cancelled(self.task, self.request)

    def _tombstone(self) -> Fence | None:
        """Return the fencing token of a cancelled task's record."""
        if not self.store.keeps:
            return None
        try:
            record = self.store.read(self.request.id)
        except StoreError:
            return None  # if it was cancelled, its record refuses the message
        return record.fence if record is not None and record.fence.status == Status.CANCELLED else None

    def report_started(self) -> None:
        """Store the state STARTED if Celery's ``task_track_started`` asks for it: the task is claimed."""
        task: Any = self.task
        request = self.request
        if not task.stores_started or request.is_eager or celery_internals.ignore_result_of(task, request):
            return
        meta = {"pid": os.getpid(), "hostname": request.hostname}
        try:
            task.backend.store_result(request.id, meta, states.STARTED, request=request)
        except Exception as exc:  # of any driver
            self.reporter.log(logging.WARNING, "not_stored", "its state STARTED could not be stored: %r", exc)

    def report_cancelled(self) -> None:
        """Store the state REVOKED, and send its event."""
        task = self.task
        keeps = not celery_internals.ignore_result_of(task, self.request)
        task.backend.mark_as_revoked(self.request.id, CANCELLED, request=self.request, store_result=keeps)
        task.send_event("task-revoked", terminated=False, signum=None, expired=False)
        self.reporter.log(logging.INFO, "cancelled", "cancelled")

    # -- publishing it again

    def saved(self, **options: Any) -> str | None:
        """Return the saved message of this task; None where the store keeps nothing.

        Args:
            options: ``apply_async`` options that override the message's.
        """
        if not self.store.keeps:
            return None
        if self._body.size > _LARGE_BODY:
            self.reporter.large_arguments(self._body.size)
        options = {**self.setting("resume_options"), **options}
        return saved_message(self.task, self.request, body=self._body, options=options)

    def publish(self, *, generation: int, snapshot: str | None, options: dict[str, Any]) -> None:
        """Publish; wait while the broker is unavailable, because no other process has the task yet.

        Args:
            generation: the generation that the new message continues.
            snapshot: the text that it carries, or None.
            options: ``apply_async`` options that override the message's.

        Raises:
            SystemExit: when the broker is unavailable, and the worker must stop immediately.
        """
        for pause in pauses():
            try:
                return republish(
                    self.task,
                    self.request,
                    body=self._body,
                    generation=generation,
                    snapshot=snapshot,
                    options=options,
                )
            except (OperationalError, OSError, AttributeError) as exc:
                # kombu's Redis transport raises AttributeError when a connection has just been lost (a channel without
                # a connection). After several attempts it has another cause.
                if isinstance(exc, AttributeError) and pause >= _LONGEST_PAUSE:
                    raise
                if self.flag.level == COLD:
                    raise SystemExit(f"the broker is unavailable and this worker must stop immediately: {exc}") from exc
                self.reporter.log(
                    logging.WARNING,
                    "publish_failed",
                    "could not be published again; trying again in %s s: %r",
                    pause,
                    exc,
                )
            except BaseException as exc:
                # gevent would acknowledge the message of a killed greenlet
                if type(exc).__name__ != "GreenletExit":
                    raise
            time.sleep(pause)


def pauses() -> Iterator[float]:
    """Yield the seconds between attempts, endlessly."""
    pause = _PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)
