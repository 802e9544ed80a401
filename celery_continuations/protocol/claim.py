"""The claim: decide whether the execution of a message may write the task's record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.protocol.recovery import Ended, count_loss, with_loss
from celery_continuations.stores.base import NOT_CLAIMABLE, OWNED, Fence, Record, Status, Store, Update

__all__ = ["claim"]


def claim(
    store: Store,
    task_id: str,
    generation: int,
    owner: str,
    *,
    snapshot: str | None,
    message: Callable[[], str | None],
    ended: Ended,
    loss_of: Callable[[str], Loss | None],
    stores_results: bool = True,
) -> OwnedRecord | None:
    """Claim the task of a message, unless the message is stale.

    Args:
        store: where the record is.
        task_id: the task.
        generation: the generation that the message continues; 0 for a fresh message.
        owner: the claiming execution.
        snapshot: the snapshot that the message carries, or None.
        message: returns the saved message; written with a new record.
        ended: see :data:`Ended`.
        loss_of: returns why an owner's execution was lost; None while the owner may run it.
        stores_results: whether the result backend keeps how the task ends.

    Returns:
        The right to write the record, or None for a stale message: then its execution ends without touching anything.
    """
    one = _Claim(store, task_id, generation, owner, snapshot, message, ended, loss_of, stores_results)
    try:
        owned = one.of_expected()
        while owned is None:
            owned = one.of_found(store.read(task_id))
    except _Stale:
        return None
    return owned


class _Stale(Exception):
    """The message is stale: its execution ends without touching anything."""


@dataclass(frozen=True)
class _Claim:
    """One claim.  Its methods return None if the record has changed meanwhile and must be read again."""

    store: Store
    task_id: str
    generation: int
    owner: str
    snapshot: str | None
    message: Callable[[], str | None]
    ended: Ended
    loss_of: Callable[[str], Loss | None]
    stores_results: bool

    def of_expected(self) -> OwnedRecord | None:
        """Claim in the usual cases, in one round trip: a fresh message, or the message that the record waits for."""
        if not self.generation:
            return self.of_none()
        # Rule 25: every claim of a continuation asks the result backend; a stored outcome is final.
        if self.stores_results and self.ended(None) is not None:
            return None
        mine = self._fence(self.generation)
        taken = self.store.take(self.task_id, Fence(self.generation, Status.QUEUED), mine)
        return None if taken is None else self._owned(mine, self.snapshot or taken.snapshot, taken.value)

    def of_found(self, record: Record | None) -> OwnedRecord | None:
        """Claim the record that was read."""
        if record is None:
            # Rule 1: a message that continues a missing record is trusted, unless the task has ended.
            if self.generation and self.ended(None) is not None:
                raise _Stale
            return self.of_none()
        known = record.fence
        if known.owner == self.owner:  # written by a first attempt whose answer was lost
            return self._owned(known, self.snapshot or record.snapshot, record.value)
        # Rule 2: a message does not touch a record that has ended, waits or is paused.
        if known.status in NOT_CLAIMABLE:
            self.refuse(record)
            return None
        if self.is_stale(known):
            raise _Stale
        if self.generation == known.generation - 1 and known.owner:
            return self.of_dead_owner(record)
        # Rule 25, as in of_expected: the record follows.
        if self.stores_results and known.generation:
            self.follow(record)
        newest, mine = self.newest(record), self.succeeding(known)
        text = self.message() if record.message is None else None  # the record is older than the task's first message
        written = self.store.compare_and_swap(self.task_id, known, Update(mine, newest, text))
        return self._owned(mine, newest, record.value) if written else None

    def of_none(self) -> OwnedRecord | None:
        """Claim without a record."""
        mine = self._fence(self.generation)
        written = self.store.compare_and_swap(self.task_id, None, Update(mine, self.snapshot, self.message()))
        return self._owned(mine, self.snapshot) if written else None

    def of_dead_owner(self, record: Record) -> OwnedRecord | None:
        """Claim a record from its owner, if the owner is dead."""
        known = record.fence
        # Rule 4: a second delivery ends while the owner lives; if the owner dies, a sweep recovers the task.
        loss = self.loss_of(known.owner)
        if loss is None or known.command:
            raise _Stale
        # Rule 5: ask the result backend before superseding a dead owner; only its last write may be missing.
        self.follow(record)
        with_loss(record.snapshot or self.snapshot, loss)  # raises before anything is changed if it cannot be read
        mine = self.succeeding(known)
        if not self.store.compare_and_swap(self.task_id, known, Update(mine)):
            return None
        counted = count_loss(self.store, self.task_id, mine, loss)
        return None if counted is None else self._owned(mine, counted, record.value, is_recovered=True)

    def follow(self, record: Record) -> None:
        """End the record of a task whose outcome is stored."""
        result = self.ended(record)
        if result is not None:
            OwnedRecord(self.store, self.task_id, record.fence).follow(result, record.snapshot)
            raise _Stale

    def refuse(self, record: Record) -> None:
        """Refuse a message whose record is not claimable."""
        known = record.fence
        if known.status == Status.PAUSED and record.message is None:
            # Paused before its message arrived: save the message, so that it can be published. A caller that resumes
            # the task at this moment has nothing to publish. The fencing token orders the two: the second reads again.
            kept = Update(known._replace(message_saved=True), message=self.message())
            if not self.store.compare_and_swap(self.task_id, known, kept):
                return
        raise _Stale

    def is_stale(self, known: Fence) -> bool:
        """Whether the message is older than the last claim's."""
        # Rule 3: a message is stale if a claim after it has succeeded. An owner's own message may be delivered twice.
        is_older = self.generation < known.generation
        return self.generation < known.generation - 1 or (is_older and known.status not in OWNED)

    def newest(self, record: Record) -> str | None:
        """Return the newer of the message's snapshot and the record's."""
        known = record.fence
        # Rule 7: a message of the record's own generation is newer than the record's last save.
        if self.snapshot and self.generation >= known.generation:
            return self.snapshot
        return record.snapshot or self.snapshot

    def _fence(self, generation: int) -> Fence:
        return Fence(generation + 1, Status.RUNNING, self.owner)

    def succeeding(self, known: Fence) -> Fence:
        """Return the fencing token of a claim that supersedes ``known``."""
        # Rule 6: each claim has its own generation and owner.
        return self._fence(max(known.generation, self.generation)).with_command(known.command)

    def _owned(
        self, fence: Fence, snapshot: str | None, value: str | None = None, *, is_recovered: bool = False
    ) -> OwnedRecord:
        return OwnedRecord(self.store, self.task_id, fence, snapshot, value or None, is_recovered, message=self.message)
