"""The main process ends a task in its record before it stores a state.

A hard time limit, ``revoke``, and a process or a result that is lost end a task here, while its own process may have
ended it, or handed it over, a moment before.  Only one of the two writes the record; the other one stores nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery_continuations.protocol.endings import seconds_kept
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Record, Status, Store
from celery_continuations.stores.base import OWNED

__all__ = ["end_in_record", "is_claimed_by", "is_outstanding"]

logger = logging.getLogger("celery_continuations")


def end_in_record(
    store: Store, task: Any, task_id: str, status: Status, may_end: Callable[[Record], bool]
) -> bool | None:
    """Write a task's end to its record.

    Args:
        store: where the record is.
        task: the task, or the app if the task is unknown.
        task_id: its id.
        status: the new status; RUNNING for a task whose message goes back to the broker.
        may_end: whether this process may end the task of a record.

    Returns:
        Whether this call has ended it, so that its state must be stored; None without a record.

    Raises:
        ContinuationError: when the store is unavailable, or the record cannot be read.
    """
    while True:
        record = store.read(task_id)
        if record is None:
            return None
        # Rule 24: the main process stores the outcome only of a task that it has ended in its record.
        if not may_end(record):
            return False
        owned = OwnedRecord(store, task_id, record.fence)
        if status == Status.RUNNING:
            if owned.release(None):
                return True
        elif owned.end(status, None if status == Status.FAILED else "", seconds_kept(task, status)):
            return True


def is_claimed_by(record: Record, runs: Callable[[str], bool]) -> bool:
    """Whether the body of an execution that ``runs`` knows, by its owner, is running."""
    known = record.fence
    return known.status == Status.RUNNING and not record.value and bool(known.owner) and runs(known.owner)


def is_outstanding(record: Record, generation: int) -> bool:
    """Whether the record still expects the message of that generation, and the body has not returned."""
    known = record.fence
    expects = known.status == Status.QUEUED and known.generation == generation
    was_given_back = known.status in OWNED and not known.owner and known.generation == generation + 1
    return (expects or was_given_back) and not record.value
