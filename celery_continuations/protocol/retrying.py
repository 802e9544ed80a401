"""Retry a failed task: forget what has to be done again, and requeue it."""

from __future__ import annotations

from celery_continuations.core.evolution import NO_LOOPS
from celery_continuations.core.inbox import TIMED_OUT, Inbox
from celery_continuations.core.snapshot import ACCEPTED, Snapshot
from celery_continuations.exceptions import DeliveryError
from celery_continuations.protocol.owned import OVERDUE_AFTER
from celery_continuations.stores.base import Fence, Record, Status, Store, Update

__all__ = ["check_retry", "retry"]


def check_retry(store: Store, task_id: str, step: str | None, accept_source: bool = False) -> None:
    """Raise what :func:`retry` would raise; change nothing."""
    _reopened(store.read(task_id), task_id, step, accept_source)


def retry(store: Store, task_id: str, step: str | None = None, accept_source: bool = False) -> Record:
    """Requeue a failed task; return its record, whose message must be published.

    Args:
        store: where the record is.
        task_id: the task.
        step: the step to restart from; by default the task continues in the step that failed.  A wait that failed, or
            a step whose value could not be saved, begins again.
        accept_source: whether the failed loop continues with its source as it is now.

    Raises:
        DeliveryError: when it has not failed, when its record is gone, or has no such step.
    """
    record = store.read(task_id)
    queued = _reopened(record, task_id, step, accept_source)
    assert record is not None
    # Rule 22: only one caller retries a failed task.
    if not store.compare_and_swap(task_id, record.fence, queued):
        raise DeliveryError(task_id, "another caller has just changed it")
    return record


def _reopened(record: Record | None, task_id: str, step: str | None, accept_source: bool) -> Update:
    if record is None or record.fence.status != Status.FAILED or not record.message:
        status = "it has no record" if record is None else f"it is {record.fence.status}"
        raise DeliveryError(task_id, f"only a failed task can be retried; {status}")
    snapshot = Snapshot.loads(record.snapshot) if record.snapshot else Snapshot()
    dropped = _rewind(task_id, snapshot, step)
    if accept_source:
        _accept_source(task_id, snapshot)
    inbox = Inbox.loads(record.inbox)
    for name in dropped:
        if inbox.get(name) == TIMED_OUT:
            del inbox[name]
    queued = Fence(record.fence.generation, Status.QUEUED)
    return Update(queued, snapshot.dumps(), inbox=inbox.dumps(), due_in=OVERDUE_AFTER)


def _rewind(task_id: str, snapshot: Snapshot, step: str | None) -> list[str]:
    """Forget the outcomes of a step and of all after it; return their names."""
    step = step or snapshot.raised_by or _failed_step(snapshot)
    snapshot.losses, snapshot.lost_at, snapshot.waiting, snapshot.misfit = (0, 0), None, None, None
    snapshot.error = snapshot.raised_by = None
    if step is None:
        return [snapshot.current[0]] if snapshot.current else []
    names = snapshot.steps
    if step not in names:
        known = ", ".join(map(repr, names)) or "none yet"
        raise DeliveryError(task_id, f"it has not begun a step {step!r}; its steps are: {known}")
    dropped = names[names.index(step) :]
    snapshot.leave_step()
    for name in dropped:
        snapshot.completed.pop(name, None)
        snapshot.kinds.pop(name, None)
    return dropped


def _failed_step(snapshot: Snapshot) -> str | None:
    """Return the step that failed a task of release 0.1, which did not save that.

    It is the last one, if it was completed with an error, or with a value that could not be saved.
    """
    last = next(reversed(snapshot.completed), None)
    if last is None or snapshot.error is not None or snapshot.current is not None:
        return None
    return last if snapshot.completed[last].kind in ("error", "lost") else None


def _accept_source(task_id: str, snapshot: Snapshot) -> None:
    """Make the failed loop resume without checking its source."""
    if snapshot.current is None or snapshot.current[1] is None or snapshot.kind in NO_LOOPS:
        where = "it has no current step" if snapshot.current is None else f"step {snapshot.current[0]!r} has none"
        raise DeliveryError(task_id, f"no source to accept: {where}; only a loop that was begun has one")
    snapshot.mark = ACCEPTED
