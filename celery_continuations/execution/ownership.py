"""The record of a task, as long as it is the execution's to write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery.exceptions import Ignore

from celery_continuations.exceptions import StoreError
from celery_continuations.execution.message import Message
from celery_continuations.protocol.endings import seconds_kept
from celery_continuations.protocol.owned import OwnedRecord, Superseded
from celery_continuations.stores import Status

__all__ = ["SUPERSEDED", "Ownership"]

SUPERSEDED = "superseded"


class Ownership:
    """What an execution may write, and the one place that learns that another execution has the record by now.

    Args:
        message: that the execution runs.
        record: that it has claimed.
        lose: called with the reason once the record is not this execution's any more; it may raise what leaves the
            task's own code.
    """

    def __init__(self, message: Message, record: OwnedRecord, lose: Callable[[str], None]) -> None:
        self.record = record
        self.lose = lose
        self._message = message

    @contextmanager
    def writing(self) -> Iterator[OwnedRecord]:
        """Around each write.

        Raises:
            Interrupt: when another execution has the record, within the task's own code.
            Ignore: then, after it.
        """
        try:
            yield self.record
        except Superseded:
            self._message.reporter.log(
                logging.WARNING, "refused", "ends here: another execution has taken the task over"
            )
            self.lose(SUPERSEDED)
            raise Ignore(SUPERSEDED) from None

    def end(self, status: Status, snapshot: str | None) -> None:
        """The state is stored: the record follows."""
        try:
            self.record.end(status, snapshot, seconds_kept(self._message.task, status))
        except StoreError as exc:
            self._message.reporter.not_saved("that it has ended", exc)

    def release(self, snapshot: str | None) -> None:
        """Let the message of this execution, which goes back to the broker, claim again."""
        try:
            self.record.release(snapshot)
        except StoreError as exc:
            self._message.reporter.not_saved("that it returns its message", exc)

    def cancel(self) -> None:
        """End as the pending command says."""
        self._message.report_cancelled()
        self.end(Status.CANCELLED, "")
