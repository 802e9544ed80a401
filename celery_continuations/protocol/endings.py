"""Whether a task has ended, by its result backend, and how long the record of an ended task is kept."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery import Celery, states

from celery_continuations import celery_internals, conf
from celery_continuations.exceptions import StoreError
from celery_continuations.stores import Record, Status

if TYPE_CHECKING:
    from celery import Task

__all__ = ["ended", "needs_chord_count", "seconds_kept"]

# An outcome stored this many seconds before a task began is of an earlier task with the same id. A later one meets that
# task's tombstone, which is kept for a day. It also exceeds what two clocks, or a backend's time zone, may differ by.
_OF_AN_EARLIER_TASK = 86_400.0

_STATUS_OF = {states.SUCCESS: Status.DONE, states.FAILURE: Status.FAILED, states.REVOKED: Status.CANCELLED}


def ended(
    owner: Task[..., object] | Celery, task_id: str, backend: Any, *, began: float | None = None
) -> tuple[Status, float] | None:
    """Ask the result backend whether a task has ended.

    Args:
        owner: whose settings apply: the task, or the app if the task is unknown.
        task_id: the task.
        backend: the result backend.
        began: when the task began, in seconds since the epoch, if it is known: what was stored long before is of an
            earlier task with the same id, which the backend kept for longer than the store kept the record.

    Returns:
        The status that the record should have, and for how many seconds to keep it; None if the task has not ended.

    Raises:
        StoreError: when the backend cannot be asked.
    """
    if not celery_internals.keeps_results(backend):
        return None
    try:
        found = backend.get_task_meta(task_id)
        status = _STATUS_OF.get(found["status"])
    except Exception as exc:  # of any driver
        raise StoreError("result backend", f"{type(exc).__name__}: {exc}") from exc
    if status is None or _is_of_an_earlier_task(found.get("date_done"), began):
        return None
    return status, seconds_kept(owner, status)


def _is_of_an_earlier_task(stored_at: Any, began: float | None) -> bool:
    if began is None or not stored_at:
        return False
    try:
        found = stored_at if isinstance(stored_at, datetime) else datetime.fromisoformat(stored_at)
    except (TypeError, ValueError):  # a backend with a format of its own
        return False
    stored = found if found.tzinfo else found.replace(tzinfo=timezone.utc)
    return stored.timestamp() < began - _OF_AN_EARLIER_TASK


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
