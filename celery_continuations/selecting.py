"""Operations on all tasks that match: :func:`cancel_all`."""

from __future__ import annotations

import fnmatch
import logging
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from celery.app import app_or_default

from celery_continuations import conf, control
from celery_continuations.exceptions import DeliveryError, StoreError
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.stores import Record, Status, open_store
from celery_continuations.stores.factory import settings_of

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["UNFINISHED", "Selected", "cancel_all", "select"]

logger = logging.getLogger("celery_continuations")

#: The statuses of tasks that can be cancelled.
UNFINISHED = (Status.RUNNING, Status.QUEUED, Status.WAITING, Status.PAUSED)


class Selected(NamedTuple):
    """A task that matches.

    Attributes:
        task_id: its id.
        store: the setting ``continuation_store`` of its store.
    """

    task_id: str
    store: str


def cancel_all(
    *,
    app: Celery | None = None,
    task: str | None = None,
    status: Collection[str] = UNFINISHED,
    older_than: float | timedelta | None = None,
) -> list[str]:
    """Cancel all tasks that match; see :func:`celery_continuations.control.cancel`.

    Tasks that have not begun have no record, and are not found: their messages are in a queue, which ``celery purge``
    empties.

    Args:
        app: the tasks' app; by default the current one.
        task: only tasks with a matching name, such as ``"proj.import*"``.
        status: only tasks in these statuses: ``"running"``, ``"queued"``, ``"waiting"``, ``"paused"``.
        older_than: only tasks that began longer ago, in seconds.

    Returns:
        The ids of the tasks that were cancelled.  A running one ends at its next checkpoint.

    Raises:
        ValueError: for another status.
        StoreError: when a store cannot be reached.

    >>> from celery import Celery
    >>> app = Celery("proj", broker="memory://", set_as_current=False)
    >>> app.conf.continuation_store = "memory"
    >>> cancel_all(app=app, task="proj.import*", status=["waiting", "paused"])
    []
    """
    app = app_or_default(app)
    cancelled = []
    for task_id, store in select(app, task=task, status=status, older_than=older_than):
        try:
            control.cancel(task_id, app=app, store=store)
        except DeliveryError as exc:
            logger.info("%s", exc, extra={"action": "refused", "task_id": task_id})  # it has ended meanwhile
        else:
            cancelled.append(task_id)
    return cancelled


def select(
    app: Celery, *, task: str | None, status: Collection[str], older_than: float | timedelta | None
) -> list[Selected]:
    """Return the tasks that match, before any of them is changed; arguments as in :func:`cancel_all`."""
    wrong = sorted(set(status) - set(UNFINISHED))
    if wrong:
        known = ", ".join(UNFINISHED)
        raise ValueError(f"tasks that are {wrong[0]!r} cannot be cancelled; those that are {known} can")
    found = []
    for task_id, record, store in _records(app):
        if record.fence.status in status and _matches(task_id, record, task, conf.seconds(older_than)):
            found.append(Selected(task_id, store))
    return found


def _records(app: Celery) -> Iterator[tuple[str, Record, str]]:
    seen = set()
    for setting in settings_of(app):
        store = open_store(app, setting)
        if not store.keeps or id(store) in seen:
            continue
        seen.add(id(store))
        for task_id, record in store.records():
            if isinstance(record, Record):
                yield task_id, record, setting
            else:
                _skip(task_id, record)


def _matches(task_id: str, record: Record, task: str | None, older_than: float | None) -> bool:
    if task is None and older_than is None:
        return True
    try:
        message = SavedMessage.loads(record.message) if record.message else None
    except StoreError as exc:
        _skip(task_id, exc)
        return False
    if message is None or (task is not None and not fnmatch.fnmatchcase(message.task, task)):
        return False
    return older_than is None or (message.began is not None and time.time() - message.began > older_than)


def _skip(task_id: str, error: StoreError) -> None:
    logger.warning("Task %s left out: %s", task_id, error, extra={"action": "left_out", "task_id": task_id})
