"""What callers and operators may do to a task's record: deliver, pause, resume, cancel.

The rules continue those of :mod:`celery_continuations.protocol.owned`.  A running execution keeps its record: a
delivery does not change the fencing token, and a command only adds to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import NamedTuple

from celery_continuations.core.inbox import TIMED_OUT, Inbox
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import DeliveryError, TooLateError
from celery_continuations.protocol.owned import OVERDUE_AFTER
from celery_continuations.stores.base import Command, Due, Fence, Record, Status, Store, Tombstone, Update

__all__ = [
    "Cancelled",
    "cancel",
    "check_delivery",
    "check_open",
    "deliver",
    "end_tombstone",
    "pause",
    "resume",
    "wake",
]

#: Asks the result backend for the state of a task without a record: None if the task may still start.
Ended = Callable[[], str | None]

# The fencing token of a record that a caller has created before the task has started.
_BEFORE_ITS_TASK = Fence(0, Status.QUEUED)

_OVER = {
    Status.RETURNED: "it has finished",
    Status.DONE: "it has ended",
    Status.FAILED: "it has failed",
    Status.CANCELLED: "it was cancelled",
}


def deliver(
    store: Store,
    task_id: str,
    name: str,
    outcome: Outcome,
    *,
    ended: Ended,
    largest: int,
    kept_for: float,
    started: bool = False,
    earlier_names: Callable[[Record], list[str]] = lambda _: [],
) -> Record | None:
    """Store a payload for the wait of that name, and end the wait.

    Args:
        store: where the record is.
        task_id: the task.
        name: the name of the wait.
        outcome: the payload.
        ended: returns the state of a task without a record if it has ended.
        largest: the size limit, in bytes, of everything delivered to one task.
        kept_for: seconds for which the payload is kept if the task does not start.
        started: whether the task is known to have started: without a record it ended long ago.
        earlier_names: returns the names of the wait in older code: if the task waits under one of them, the payload is
            stored under that name, which its code knows.

    Returns:
        The record whose message must be published, if it waited for the payload; else None.

    Raises:
        TooLateError: when the task is over, or the wait has another outcome.
        DeliveryError: when it exceeds the size limit with all that was delivered before.
    """
    while True:
        record = store.read(task_id)
        _refuse_over(task_id, record, ended)
        _refuse_forgotten(task_id, record, started)
        name = _current_name(record, name, earlier_names)
        text = _with_delivery(task_id, record, name, outcome, largest)
        if text is None:
            return None
        known = record.fence if record else None
        # Rule 18: what is delivered before the task starts is kept until then; not forever while it is alone.
        # Rule 19: one write stores the payload and ends the wait.
        waits = record is not None and _waits_for(record, name)
        delivery = Update(
            Fence(known.generation, Status.QUEUED) if known and waits else known or _BEFORE_ITS_TASK,
            inbox=text,
            due_in=OVERDUE_AFTER if waits else Due.UNCHANGED,
            expires_in=kept_for if _is_before_its_task(record) else None,
            expected_inbox=(record.inbox if record else None) or "",
        )
        if store.compare_and_swap(task_id, known, delivery):
            return record if waits else None


def check_delivery(
    store: Store,
    task_id: str,
    name: str,
    outcome: Outcome,
    *,
    ended: Ended,
    largest: int,
    started: bool = False,
    earlier_names: Callable[[Record], list[str]] = lambda _: [],
) -> None:
    """Raise what :func:`deliver` would raise; change nothing."""
    record = store.read(task_id)
    _refuse_over(task_id, record, ended)
    _refuse_forgotten(task_id, record, started)
    _with_delivery(task_id, record, _current_name(record, name, earlier_names), outcome, largest)


def check_open(store: Store, task_id: str, *, ended: Ended, cancelled: bool = False) -> None:
    """Raise what a command would raise; change nothing.

    Args:
        store: where the record is.
        task_id: the task.
        ended: see :func:`deliver`.
        cancelled: whether a task that was cancelled is accepted.
    """
    record = store.read(task_id)
    if not (cancelled and record is not None and record.fence.status == Status.CANCELLED):
        _refuse_over(task_id, record, ended)


def _current_name(record: Record | None, name: str, earlier_names: Callable[[Record], list[str]]) -> str:
    """Return the name of the wait in the code that the task waits in."""
    return next((one for one in earlier_names(record) if _waits_for(record, one)), name) if record else name


def _refuse_forgotten(task_id: str, record: Record | None, started: bool) -> None:
    if record is None and started:
        raise TooLateError(task_id, "it has ended, and its record is gone")


def _with_delivery(task_id: str, record: Record | None, name: str, outcome: Outcome, largest: int) -> str | None:
    """Return the inbox with the payload added, or None if it is there already."""
    inbox = Inbox.loads(record.inbox if record else None)
    if name in inbox:
        _refuse_another(task_id, name, inbox[name], outcome)
        return None
    inbox[name] = outcome
    text = inbox.dumps()
    if len(text) > largest:
        raise DeliveryError(
            task_id,
            f"{name!r} is too large: {len(text):,} bytes with all that was delivered "
            f"before, continuation_max_snapshot allows {largest:,}",
        )
    return text


def wake(store: Store, task_id: str, key: str) -> Record | None:
    """End the wait for a result; return the record whose message must be published, if it waited for that."""
    record = store.read(task_id)
    # The first test is a quick one: a task may wait for thousands, and each of them asks.
    if record is None or json.dumps(key) not in (record.snapshot or "") or not _waits_for(record, key):
        return None
    queued = Update(Fence(record.fence.generation, Status.QUEUED), due_in=OVERDUE_AFTER)
    return record if store.compare_and_swap(task_id, record.fence, queued) else None


def pause(store: Store, task_id: str, *, ended: Ended, kept_for: float) -> None:
    """Stop the task at its next checkpoint until it is resumed.  Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.
    """
    while True:
        record = store.read(task_id)
        _refuse_over(task_id, record, ended)
        if record is not None and (record.fence.status == Status.PAUSED or record.fence.command):
            return
        # Rule 21: a running execution gets a command; in any other status the record is changed directly.
        known = record.fence if record else None
        if known is not None and known.owner and known.status == Status.RUNNING:
            paused = known.with_command(Command.PAUSE)
        else:
            paused = Fence(known.generation if known else 0, Status.PAUSED)
        # Rule 18, as in deliver.
        expires_in = kept_for if _is_before_its_task(record) else None
        if store.compare_and_swap(task_id, known, Update(paused, expires_in=expires_in)):
            return


def resume(store: Store, task_id: str, *, ended: Ended, kept_for: float) -> Record | None:
    """Withdraw a pause; return the record whose message must be published, if any.

    Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.
    """
    while True:
        record = store.read(task_id)
        _refuse_over(task_id, record, ended)
        if record is None:
            return None
        known = record.fence
        if known.command == Command.PAUSE:
            resumed = known.with_command(None)
        elif known.status == Status.PAUSED:
            resumed = Fence(known.generation, Status.QUEUED)
        else:
            return None
        may_publish = known.status == Status.PAUSED and record.message is not None
        update = Update(
            resumed,
            due_in=OVERDUE_AFTER if may_publish else None,
            expires_in=kept_for if _is_before_its_task(record) else None,
        )
        if store.compare_and_swap(task_id, known, update):
            return record if may_publish else None


class Cancelled(NamedTuple):
    """What :func:`cancel` did.

    Attributes:
        is_over: whether the task has ended; otherwise its execution ends it at its next checkpoint.
        is_first: whether this call did it; only one of several callers reports a cancellation.
        record: the record before, or None.
    """

    is_over: bool
    is_first: bool
    record: Record | None


def cancel(
    store: Store,
    task_id: str,
    *,
    ended: Ended,
    kept_for: float,
    awaited_for: float = 0.0,
    can_report: Callable[[Record], bool] = lambda _: True,
) -> Cancelled:
    """Cancel the task, at its next checkpoint.

    Args:
        store: where the record is.
        task_id: the task.
        ended: see :func:`deliver`.
        kept_for: seconds for which a tombstone is kept.
        awaited_for: seconds for which it is kept at most until the task's message has ended at it.
        can_report: whether the caller can report that the task of a record with a message was cancelled; otherwise the
            worker that receives its message does.

    Raises:
        DeliveryError: when the task is over.
    """
    while True:
        record = store.read(task_id)
        if record is not None and record.fence.status == Status.CANCELLED:
            return Cancelled(True, False, record)
        _refuse_over(task_id, record, ended)
        known = record.fence if record else None
        # Rule 21, as in pause.
        if known is not None and known.owner and known.status == Status.RUNNING:
            if known.command == Command.CANCEL:
                return Cancelled(False, False, record)
            if store.compare_and_swap(task_id, known, Update(known.with_command(Command.CANCEL))):
                return Cancelled(False, True, record)
        else:
            cancelled, expires_in = Fence(known.generation if known else 0, Status.CANCELLED), kept_for
            if _expects_message(record):
                # Rule 10: its message may come late, and must end at the tombstone.
                reported = record is not None and record.message and can_report(record)
                cancelled = cancelled._replace(tombstone=Tombstone.AWAITED if reported else Tombstone.UNREPORTED)
                expires_in = max(kept_for, awaited_for, _left(record) + kept_for)
            if store.compare_and_swap(task_id, known, Update(cancelled, "", "", "", "", expires_in=expires_in)):
                return Cancelled(True, True, record)


def end_tombstone(store: Store, task_id: str, known: Fence, generation: int, kept_for: float) -> bool:
    """Keep a cancelled task's tombstone no longer than others: the message that it was kept for has come.

    Args:
        store: where the record is.
        task_id: the task.
        known: the fencing token of the tombstone.
        generation: the generation that the message continues.
        kept_for: seconds for which a tombstone is kept.

    Returns:
        Whether the message's worker has to report the cancellation.
    """
    if known.tombstone is None or generation < known.generation:
        return False
    ended = Update(known._replace(tombstone=None), expires_in=kept_for)
    return store.compare_and_swap(task_id, known, ended) and known.tombstone is Tombstone.UNREPORTED


def _expects_message(record: Record | None) -> bool:
    """Whether a message of the task may be under way.  A waiting task has none."""
    if record is None:
        return True
    status = record.fence.status
    return status in (Status.QUEUED, Status.RUNNING) or (status == Status.PAUSED and not record.fence.message_saved)


def _left(record: Record | None) -> float:
    """Return about how many seconds are left until the message is scheduled to run."""
    return 0.0 if record is None or record.due is None else max(0.0, record.due - time.time())


def _is_before_its_task(record: Record | None) -> bool:
    """Whether the record contains only what callers have stored before the task has started."""
    return record is None or (record.fence.generation == 0 and not record.fence.owner and not record.message)


def _waits_for(record: Record, key: str) -> bool:
    if record.fence.status != Status.WAITING or not record.snapshot:
        return False
    waiting = Snapshot.loads(record.snapshot).waiting
    return waiting is not None and waiting.key == key


def _refuse_over(task_id: str, record: Record | None, ended: Ended) -> None:
    if record is None:
        state = ended()
        if state is not None:
            raise TooLateError(task_id, f"it has ended: {state}")
        return
    # A record with a value has returned, even if its execution was lost and the record is queued again.
    status = Status.RETURNED if record.value else record.fence.status
    if status in _OVER:
        raise TooLateError(task_id, _OVER[status])


def _refuse_another(task_id: str, name: str, known: Outcome, outcome: Outcome) -> None:
    if known == TIMED_OUT:
        raise TooLateError(task_id, f"the wait {name!r} has timed out")
    if not known.equals(outcome):
        raise TooLateError(task_id, f"something else was delivered to {name!r} before")
