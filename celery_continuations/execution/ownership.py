"""The record of a task, while the execution owns it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from celery_continuations import celery_internals, control
from celery_continuations.ends import NotEnded
from celery_continuations.exceptions import StoreError
from celery_continuations.execution.message import Message
from celery_continuations.protocol.endings import seconds_kept
from celery_continuations.protocol.owned import OwnedRecord, Superseded
from celery_continuations.stores import Status

__all__ = ["SUPERSEDED", "Ownership"]

SUPERSEDED = "superseded"


class _Writing:
    """See :meth:`Ownership.writing`; a class, because a save is to cost little."""

    __slots__ = ("_ownership",)

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def __enter__(self) -> OwnedRecord:
        return self._ownership.record

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Superseded):
            self._ownership.superseded()


class Ownership:
    """Write the record, and detect that another execution has superseded this one.

    Args:
        message: the message that the execution runs.
        record: the claimed record.
        lose: called with the reason once this execution does not own the record any more; it may raise an error to
            leave the task's own code with.
    """

    def __init__(self, message: Message, record: OwnedRecord, lose: Callable[[str], None]) -> None:
        self.record = record
        self.lose = lose
        self._message = message

    def writing(self) -> _Writing:
        """Wrap each write.

        Raises:
            Interrupt: when another execution owns the record, within the task's own code.
            Ignore: when another execution owns the record, after the task's own code.
        """
        return _Writing(self)

    def superseded(self) -> NoReturn:
        """Another execution owns the record.  Raises as :meth:`writing`."""
        self._message.reporter.log(logging.WARNING, "refused", "stopped: superseded by another execution")
        self.lose(SUPERSEDED)
        raise NotEnded(SUPERSEDED) from None

    def end(self, status: Status, snapshot: str | None) -> bool:
        """Write the final status, once Celery has stored the state; return whether the record was still owned."""
        try:
            return self.record.end(status, snapshot, seconds_kept(self._message.task, status))
        except StoreError as exc:
            self._message.reporter.not_saved("that it has ended", exc)
            return True  # a sweep will find it

    def fail(self, error: object) -> None:
        """Write that the task has failed, once Celery has stored that.

        Args:
            error: the error, also as Celery passes it on.
        """
        try:
            self.record.fail(celery_internals.error_in(error), seconds_kept(self._message.task, Status.FAILED))
        except StoreError as exc:
            self._message.reporter.not_saved("that it has failed", exc)

    def release(self, snapshot: str | None) -> None:
        """Let this execution's message, which is requeued, claim again."""
        try:
            self.record.release(snapshot)
        except StoreError as exc:
            self._message.reporter.not_saved("that its message is requeued", exc)

    def cancel(self) -> None:
        """Cancel the task, as the pending command demands."""
        self._message.report_cancelled()
        if self.end(Status.CANCELLED, ""):
            control.report_cancelled(self._message.task, self._message.request)
