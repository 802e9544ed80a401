"""What a sweep does to a record: take it from a dead owner, or republish its overdue message."""

from __future__ import annotations

from collections.abc import Callable

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.owned import OVERDUE_AFTER, OwnedRecord
from celery_continuations.stores.base import OWNED, Command, Due, Fence, Record, Status, Store, Update

__all__ = ["Ended", "count_loss", "not_published", "overdue_after", "recover", "republish_overdue", "with_loss"]

#: Asks the result backend whether the task of a record, if there is one, has ended; returns the status that the record
#: should have, and for how many seconds to keep it, or None.
Ended = Callable[[Record | None], tuple[Status, float] | None]

# The number of checks that double the time until the next one: up to more than a day.
_DOUBLINGS = 14


def overdue_after(fence: Fence) -> float:
    """Return the seconds after which a queued record's message is overdue; they double with each check."""
    return OVERDUE_AFTER * 2.0 ** min(fence.republished, _DOUBLINGS)


def recover(store: Store, task_id: str, *, ended: Ended, loss_of: Callable[[str], Loss | None]) -> Record | None:
    """Take a record from a dead owner, and requeue it.

    Args:
        store: where the record is.
        task_id: the task.
        ended: see :data:`Ended`.
        loss_of: returns why an owner's execution was lost; None while the owner may be running it.

    Returns:
        The new record: if it is queued, its message must be published; otherwise its task must be cancelled.  None if
        there is nothing to do.
    """
    record = store.read(task_id)
    if record is None or record.fence.status not in OWNED or not record.fence.owner:
        return None
    known = record.fence
    loss = loss_of(known.owner)
    if loss is None:
        return None
    # Rule 5, as in claim.
    result = ended(record)
    if result is not None:
        OwnedRecord(store, task_id, known).follow(result, record.snapshot)
        return None
    with_loss(record.snapshot, loss)  # raises before anything is changed if it cannot be read
    if known.command == Command.CANCEL:
        return record
    # Rule 11: only one of two sweepers takes the record, and only that one publishes the message.
    is_paused = known.command == Command.PAUSE
    left = Fence(known.generation, Status.PAUSED if is_paused else Status.QUEUED)
    due_in = None if is_paused else OVERDUE_AFTER
    if not store.compare_and_swap(task_id, known, Update(left, due_in=due_in)):
        return None
    snapshot = count_loss(store, task_id, left, loss)
    return None if is_paused else Record(left, snapshot, record.message, record.value)


def republish_overdue(store: Store, task_id: str, may_publish: Callable[[Record], bool]) -> Record | None:
    """Note that a queued record's message is overdue: a killed worker may hold it.

    Returns:
        The record whose message must be published again; None if there is nothing to do, or if the message may still
        be in its queue.
    """
    record = store.read(task_id)
    if record is None or record.due is None:
        return None
    known = record.fence
    queued = Fence(known.generation, Status.QUEUED)
    if known.status == Status.WAITING:
        # Rule 17: a waiting task continues when its time has come, or a delivery before that: only one succeeds.
        return record if store.compare_and_swap(task_id, known, Update(queued, due_in=OVERDUE_AFTER)) else None
    # Rule 12: a released record is queued if its message has not returned.
    if known.status not in (Status.QUEUED, Status.RUNNING) or (known.status == Status.RUNNING and known.owner):
        return None
    # Rule 13: each check doubles the time until the next; their number lets only one of two sweepers make it.
    # The broker is asked before that: while it is unavailable, no check is used up.
    publishes = may_publish(record)
    checks = known.republished + 1 if known.status == Status.QUEUED else 0
    queued = queued._replace(republished=checks)
    if not store.compare_and_swap(task_id, known, Update(queued, due_in=overdue_after(queued))):
        return None
    return record if publishes else None


def not_published(store: Store, task_id: str, generation: int) -> None:
    """Have the next sweep publish the message of a queued record, which could not be published."""
    found = store.read(task_id)
    if found is not None and (found.fence.generation, found.fence.status) == (generation, Status.QUEUED):
        # Rule 17: a waiting task whose time has come is published whatever is in its queue.
        store.compare_and_swap(task_id, found.fence, Update(Fence(generation, Status.WAITING), due_in=0.0))


def count_loss(store: Store, task_id: str, fence: Fence, loss: Loss) -> str | None:
    """Count a loss in a record that was taken from a dead owner; return its snapshot.

    None if another execution owns the record by now.
    """
    # Rule 23: read the record again. An owner that was only slow may have saved until its record was taken.
    while True:
        found = store.read(task_id)
        # A check for its message, or a command, changes the fencing token but not the owner.
        if found is None or (found.fence.generation, found.fence.status) != (fence.generation, fence.status):
            return None
        snapshot = with_loss(found.snapshot, loss)
        counted = Update(found.fence, snapshot, due_in=Due.UNCHANGED)
        if store.compare_and_swap(task_id, found.fence, counted):
            return snapshot


def with_loss(text: str | None, loss: Loss) -> str:
    """Return the snapshot with the loss counted.  Raises for one that cannot be read."""
    snapshot = Snapshot() if text is None else Snapshot.loads(text)
    snapshot.lose(alone=loss is Loss.CRASH, shared=loss is Loss.SUSPECTED_CRASH)
    return snapshot.dumps()
