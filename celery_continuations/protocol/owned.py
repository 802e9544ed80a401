"""The right to write a record, held by the execution that has claimed it.

A message may be published twice; the claim decides.  A message carries the generation *m* that it continues, 0 for a
fresh message; a record has a generation *g*, the number of its claims.  docs/protocol.md explains the numbered rules,
and tests/model breaks each in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from celery_continuations.core.inbox import TIMED_OUT, Inbox
from celery_continuations.core.notes import with_error
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import ContinuationError, StoreError
from celery_continuations.stores.base import Command, Fence, Record, Status, Store, Update

__all__ = ["OVERDUE_AFTER", "OwnedRecord", "Superseded"]

#: Seconds after which an unclaimed message is overdue.
OVERDUE_AFTER = 10.0


class Superseded(Exception):
    """Another execution owns the record: nothing was written."""


class OwnedRecord:
    """A record as its owner knows it; every write of an execution goes through it.

    Each write raises :class:`Superseded` if another execution owns the record, and StoreError if the store cannot be
    reached.

    Args:
        store: where the record is.
        task_id: the task.
        fence: the fencing token of the claim.
        snapshot: what the execution resumes from, or None for a fresh start.
        value: the encoded return value of an earlier execution that was lost after its body had returned, or None.
        is_recovered: whether the previous execution was lost.
        message: returns the saved message, in case the store has lost it.

    Attributes:
        fence: the fencing token last written by this execution, with the pending command found in it.
    """

    def __init__(
        self,
        store: Store,
        task_id: str,
        fence: Fence,
        snapshot: str | None = None,
        value: str | None = None,
        is_recovered: bool = False,
        message: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.fence = fence
        self.snapshot = snapshot
        self.value = value
        self.is_recovered = is_recovered
        self._store = store
        self._task_id = task_id
        self._message = message

    def within(self, connection: object) -> OwnedRecord:
        """Return the same right for writes in the transaction of ``connection``; see :meth:`Store.within`."""
        return OwnedRecord(
            self._store.within(connection), self._task_id, self.fence, self.snapshot, message=self._message
        )

    def is_found(self) -> bool:
        """Whether the store has the record and no other execution owns it."""
        found = self._store.read(self._task_id)
        return found is not None and self._is_own(found.fence)

    def save(self, snapshot: str) -> None:
        """Save progress; afterwards the fencing token includes a command added meanwhile."""
        # Rule 8: only the owner writes, in its own generation. compare_and_swap enforces it, here and below.
        while not self._store.compare_and_swap(self._task_id, self.fence, Update(self.fence, snapshot)):
            found = self._store.read(self._task_id)
            if found is None:
                # Rule 14: a missing record was lost by its store, not taken by another execution.
                lost = Update(self.fence, snapshot, self._message())
                if not self._store.compare_and_swap(self._task_id, None, lost):
                    raise Superseded
                return
            # Rule 15: neither a command nor its withdrawal takes the record from its owner.
            if not self._is_own(found.fence):
                raise Superseded
            self.fence = found.fence

    def was_saved(self, fence: Fence, snapshot: str) -> bool:
        """Whether a save in a transaction, with that fencing token, was committed although its answer was lost."""
        # This write waits for a transaction that the server has not ended yet.
        self._store.compare_and_swap(self._task_id, fence, Update(fence))
        found = self._store.read(self._task_id)
        return found is not None and found.snapshot == snapshot

    def queue(self, snapshot: str, due_in: float, message: str | None = None) -> None:
        """Save, and hand the task over to the message of this generation, which the caller publishes.

        If the record is not queued afterwards, the caller must not publish: the task is paused, or this execution still
        owns it and must cancel it.
        """
        queued = Fence(self.fence.generation, Status.QUEUED)
        self._hand_over(Update(queued, snapshot, message, due_in=due_in + OVERDUE_AFTER))

    def wait(self, snapshot: str, due_in: float | None, is_there: Callable[[str], bool]) -> None:
        """Save, and suspend the task until a time or a delivery; see :meth:`queue`.

        Args:
            snapshot: the progress, including what the task waits for.
            due_in: seconds from now after which it continues in any case, or None.
            is_there: whether an inbox contains what the task waits for.
        """
        waiting = Fence(self.fence.generation, Status.WAITING)
        while True:
            found = self._store.read(self._task_id)
            if found is None:
                self.fence = Fence(self.fence.generation, Status.QUEUED)  # Rule 14: only the message is left
                return
            inbox = found.inbox or ""
            # Rule 16: a task does not wait for what was already delivered. A delivery at this moment changes the inbox,
            # so that the write is refused; a later one finds the record waiting.
            if is_there(inbox):
                self.queue(snapshot, 0.0)
                return
            try:
                self._hand_over(Update(waiting, snapshot, due_in=due_in, expected_inbox=inbox))
                return
            except Superseded:
                found = self._store.read(self._task_id)
                if found is not None and not self._is_own(found.fence):
                    raise

    def release(self, snapshot: str | None) -> bool:
        """Save, and let the claimed message claim again; return False if another execution owns the record."""
        # With a new generation, that message's older snapshot would count as the newer one. The record becomes due, so
        # that a sweep finds it if the message never returns.
        released = Update(Fence(self.fence.generation, Status.RUNNING), snapshot, due_in=OVERDUE_AFTER)
        try:
            self._hand_over(released)
        except Superseded:
            return False
        return True

    def finish(self, snapshot: str, value: str | None) -> None:
        """Save the return value."""
        # Rule 9: the value is saved before Celery passes it on, so that no user code runs again for it.
        # It is too late for a pause or cancel command.
        returned = self.fence.with_command(None)._replace(status=Status.RETURNED)
        self._write(Update(returned, snapshot, value=value), heeds_commands=False)

    def end(self, status: Status, snapshot: str | None, expires_in: float) -> bool:
        """Keep a tombstone, or the failed record, for ``expires_in`` seconds: the result is stored.

        Returns:
            False if another execution owns the record; then nothing was written.
        """
        # Rule 10: the record of an ended task stays, so that a late delivery of its message is refused.
        kept = None if status == Status.FAILED else ""  # a failed task can be retried
        ended = Fence(self.fence.generation, status)
        update = Update(ended, snapshot, message=kept, value="", inbox=kept, expires_in=expires_in)
        try:
            self._write(update, heeds_commands=False)
        except Superseded:
            return False
        return True

    def follow(self, outcome: tuple[Status, float], snapshot: str | None) -> None:
        """End the record of a task whose outcome is stored.

        Args:
            outcome: the status, and the seconds to keep the record.
            snapshot: the record's.
        """
        status, expires_in = outcome
        text = None
        if status == Status.DONE and snapshot:
            with suppress(ContinuationError):  # one that cannot be read stays as it is
                text = Snapshot.loads(snapshot).dumps_done()
        self.end(status, text, expires_in)

    def fail(self, error: BaseException | None, expires_in: float) -> None:
        """Keep the failed record for ``expires_in`` seconds, with the error that has ended the task, if it is known.

        No-op if another execution owns the record.
        """
        text = None
        with suppress(StoreError, ValueError, TypeError, AttributeError):  # the error matters less than the status
            found = self._store.read(self._task_id) if error is not None else None
            if found is not None and error is not None:
                text = with_error(found.snapshot, error)
        self.end(Status.FAILED, text, expires_in)

    def remove(self) -> bool:
        """Free the task's id for another task; return False if a cancel command is pending.

        A pause command does not outlive its record: it was meant for this task.
        """
        removed = Update(Fence(self.fence.generation, Status.DONE), "", "", "", "", expires_in=0)
        while self.fence.command != Command.CANCEL:
            if self._store.compare_and_swap(self._task_id, self.fence, removed):
                return True
            # Rule 14: a missing record was lost, or removed by this execution, which did not receive the answer.
            found = self._store.read(self._task_id)
            if found is None:
                return True
            if not self._is_own(found.fence):
                raise Superseded
            self.fence = found.fence
        return False

    def delivered(self) -> Inbox:
        """Return what was delivered to the task."""
        found = self._store.read(self._task_id)
        return Inbox.loads(found.inbox if found else None)

    def close_wait(self, name: str) -> Outcome:
        """Close a wait that has timed out, so that later deliveries are refused.

        Returns:
            The outcome: a payload delivered at the last moment, or the timeout.
        """
        while True:
            found = self._store.read(self._task_id)
            if found is None:
                return TIMED_OUT
            inbox = Inbox.loads(found.inbox)
            if name in inbox:
                return inbox[name]
            if not self._is_own(found.fence):
                raise Superseded
            # Rule 20: a wait has one outcome, which may be a timeout.
            inbox[name] = TIMED_OUT
            closed = Update(found.fence, inbox=inbox.dumps(), expected_inbox=found.inbox or "")
            if self._store.compare_and_swap(self._task_id, found.fence, closed):
                return TIMED_OUT

    def _is_own(self, found: Fence) -> bool:
        return found.with_command(None) == self.fence.with_command(None)

    def _hand_over(self, update: Update) -> None:
        """Give up ownership with ``update``, or obey a pending command."""
        while self.fence.command != Command.CANCEL:
            try:
                if self.fence.command == Command.PAUSE:
                    paused = Fence(self.fence.generation, Status.PAUSED)
                    self._write(Update(paused, update.snapshot, update.message))
                else:
                    self._write(update)
                return
            except Superseded:
                found = self._store.read(self._task_id)
                if found is None or not self._is_own(found.fence):
                    raise
                if found.fence == self.fence and update.expected_inbox is not None:
                    raise  # the inbox has changed, and must be read first
                self.fence = found.fence

    def _write(self, update: Update, *, heeds_commands: bool = True) -> None:
        """Write over the own fencing token, or over what an own write made of it if its answer was lost."""
        if not self._store.compare_and_swap(self._task_id, self.fence, update):
            found = self._store.read(self._task_id)
            if not self._is_written(found, update) and not self._written_over(found, update, heeds_commands):
                raise Superseded
        self.fence = update.fence

    def _is_written(self, found: Record | None, update: Update) -> bool:
        if found is None:  # Rule 14: no other execution owns it
            return True
        # A sweep may write the same fencing token, but another snapshot.
        return found.fence == update.fence and update.snapshot in (None, found.snapshot)

    def _written_over(self, found: Record | None, update: Update, heeds_commands: bool) -> bool:
        if found is None or not self.fence.owner:
            return False
        same = found.fence._replace(status=self.fence.status)
        is_own = same == self.fence if heeds_commands else self._is_own(same)
        return is_own and self._store.compare_and_swap(self._task_id, found.fence, update)
