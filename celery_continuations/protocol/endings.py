"""Whether a task has ended, by its result backend, and how long the record of an ended task is kept."""

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
        owner: whose settings apply: the task, or the app if the task is unknown.
        task_id: the task.
        backend: the result backend.

    Returns:
        The status that the record should have, and for how many seconds to keep it; None if the task has not ended.

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
    """Whether a chord may not have counted the task yet although its result is stored: Celery counts last.

    The value is kept, and returning it again counts the task, if the backend counts each member only once.
    """
    return in_chord and bool(record.value) and celery_internals.counts_in_chords_once(backend)


def seconds_kept(owner: Task[..., object] | Celery, status: Status) -> float:
    """Return for how many seconds the record of an ended task is kept."""
    if status != Status.FAILED:
        return conf.tombstone_seconds(owner if isinstance(owner, Celery) else owner.app)
    name = "keep_failed"
    keep = conf.app_setting(owner, name) if isinstance(owner, Celery) else conf.setting(owner, name)
    return float(conf.seconds(keep))
