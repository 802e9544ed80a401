"""What the result backend says of a task's end, and how long the record of a task that has ended is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, states

from celery_continuations import celery_internals, conf
from celery_continuations.exceptions import StoreError
from celery_continuations.stores import Record, Status

if TYPE_CHECKING:
    from celery import Task

__all__ = ["ended", "needs_chord_count", "seconds_kept"]

_STATUS_OF = {states.SUCCESS: Status.DONE, states.FAILURE: Status.FAILED, states.REVOKED: Status.CANCELLED}


def ended(owner: Task[..., object] | Celery, task_id: str, backend: Any) -> tuple[Status, float] | None:
    """Ask the result backend whether a task has ended.

    Args:
        owner: whose settings count: the task, or the app where that is not known.
        task_id: the task.
        backend: to ask.

    Returns:
        The status that its record should have, and for how many seconds to keep that; or None.

    Raises:
        StoreError: when the backend cannot be asked.
    """
    if not celery_internals.keeps_results(backend):
        return None
    try:
        status = _STATUS_OF.get(backend.get_state(task_id))
    except Exception as exc:  # of any driver
        raise StoreError("result backend", f"{type(exc).__name__}: {exc}") from exc
    return None if status is None else (status, seconds_kept(owner, status))


def needs_chord_count(record: Record, in_chord: bool, backend: Any) -> bool:
    """Whether a chord may not have counted the task yet, though its result is stored: Celery does that last.

    Its value is kept, and returning it once more counts it, where counting twice counts once.
    """
    finished = record.fence.status == Status.RETURNED and bool(record.value)
    return in_chord and finished and celery_internals.counts_in_chords_once(backend)


def seconds_kept(owner: Task[..., object] | Celery, status: Status) -> float:
    """Return for how many seconds the record of a task that has ended is kept."""
    if status != Status.FAILED:
        return conf.tombstone_seconds(owner if isinstance(owner, Celery) else owner.app)
    name = "keep_failed"
    keep = conf.app_setting(owner, name) if isinstance(owner, Celery) else conf.setting(owner, name)
    return float(conf.seconds(keep))
