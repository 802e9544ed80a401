"""Cancel the tasks with a record that Celery's ``revoke`` names, for instance Flower's button.

One of all workers cancels a task, by one write to its record, and reports that.  Tasks without a record are Celery's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from celery_continuations import celery_internals, control
from celery_continuations.exceptions import DeliveryError, StoreError
from celery_continuations.stores import Store

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Revocations"]

logger = logging.getLogger("celery_continuations")

# How many ids are remembered while the store is unavailable, and seconds between two attempts.
_MOST = 10_000
_RETRY_EVERY = 3.0

OfCelery = Callable[["set[str]"], None]


class Revocations:
    """The ids that were revoked and not handled yet.

    Args:
        app: the worker's app.
        stores: the stores that keep its tasks' records.
    """

    def __init__(self, app: Celery, stores: Iterable[Store]) -> None:
        self._app = app
        self._stores = list(stores)
        self._asked: deque[tuple[str, OfCelery]] = deque(maxlen=_MOST)
        self._next = 0.0

    def add(self, task_ids: set[str], of_celery: OfCelery) -> bool:
        """Remember revoked ids; return False if the worker has no store that keeps records.

        Args:
            task_ids: the ids.
            of_celery: called with those that have no record.
        """
        if self._stores:
            self._asked.extend((task_id, of_celery) for task_id in task_ids)
        return bool(self._stores)

    def handle(self) -> None:
        """Cancel the tasks that have a record; called at short intervals.  No-op while a store is unavailable."""
        if not self._asked or time.monotonic() < self._next:
            return
        others: dict[OfCelery, set[str]] = {}
        try:
            while self._asked:
                task_id, of_celery = self._asked[0]
                if not self._cancel(task_id):
                    others.setdefault(of_celery, set()).add(task_id)
                self._asked.popleft()
        except StoreError:
            self._next = time.monotonic() + _RETRY_EVERY  # the worker's lease reports the outage
        for of_celery, found in others.items():
            of_celery(found)

    def _cancel(self, task_id: str) -> bool:
        """Cancel a task; return whether it has a record.  Raises StoreError when a store is unavailable."""
        for store in self._stores:
            try:
                if store.read(task_id) is None:
                    continue
                # Its record decides from here on: a message that is still to come ends at that.
                celery_internals.unflag_revoked(task_id)
                cancelled = control.cancel_in(store, task_id, self._app)
            except DeliveryError:
                return True  # it is over
            except StoreError:
                store.scan(limit=0)  # raises if the store is unavailable; otherwise the record cannot be read
                continue
            except Exception:  # of the result backend's driver
                logger.exception(
                    "Task %s was revoked, but that could not be stored",
                    task_id,
                    extra={"action": "revoke_failed", "task_id": task_id},
                )
                return True
            if cancelled.is_first:
                text = "cancelled" if cancelled.is_over else "cancel requested"
                logger.info("Task %s %s", task_id, text, extra={"action": "cancelled", "task_id": task_id})
            return True
        return False
