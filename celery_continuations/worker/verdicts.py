"""The main process takes the record of a task before it stores the task's outcome.

A hard time limit, ``revoke``, and a process or a result that is lost end a task here, while its own process may have
ended it, or handed it over, a moment before.  Only one of the two writes the record; the other one stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery_continuations.messages.saved import began
from celery_continuations.protocol.endings import ended
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Record, Status, Store, Update
from celery_continuations.stores.base import NOT_CLAIMABLE

__all__ = ["is_claimed_by", "is_outstanding", "take_to_end"]


def take_to_end(
    store: Store, task: Any, task_id: str, owner: str, may_end: Callable[[Record], bool], *, releases: bool = False
) -> bool | None:
    """Take the record of a task from its execution, so that this process alone stores its outcome.

    The record is ended once that is stored.  If this process dies before, the record is recovered from it as from any
    other owner: by the stored outcome, if there is one.

    Args:
        store: where the record is.
        task: the task, or the app if the task is unknown.
        task_id: its id.
        owner: the new owner: this process.
        may_end: whether this process may end the task of a record.
        releases: whether the message goes back to the broker instead, to claim the record again.

    Returns:
        Whether this call has taken the record, so that the outcome must be stored; None without a record.

    Raises:
        ContinuationError: when the store or the result backend is unavailable, or the record cannot be read.
    """
    while True:
        record = store.read(task_id)
        if record is None:
            return None
        if record.fence.owner == owner:  # written before, and the answer was lost
            return True
        # Rule 24: the main process stores the outcome only of a task whose record it has taken.
        if not may_end(record):
            return False
        known = record.fence
        # The task's own process may have stored an outcome, and not ended the record yet: the record follows.
        result = ended(task, task_id, task.backend, began=began(record))
        if result is not None:
            OwnedRecord(store, task_id, known).follow(result, record.snapshot)
            return False
        if releases:
            if OwnedRecord(store, task_id, known).release(None):
                return True
        elif store.compare_and_swap(task_id, known, Update(Fence(known.generation + 1, Status.RUNNING, owner))):
            return True


def is_claimed_by(record: Record, runs: Callable[[str], bool]) -> bool:
    """Whether the body of an execution that ``runs`` knows, by its owner, is running."""
    known = record.fence
    return known.status == Status.RUNNING and not record.value and bool(known.owner) and runs(known.owner)


def is_outstanding(record: Record, generation: int) -> bool:
    """Whether the message of that generation would claim the record, whose body has not returned."""
    known = record.fence
    if record.value or known.status in NOT_CLAIMABLE:
        return False
    was_given_back = known.status == Status.RUNNING and not known.owner and known.generation == generation + 1
    return was_given_back or generation >= known.generation
