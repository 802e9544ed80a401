"""Records in this process, for tests."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from celery_continuations.stores.base import Fence, Record, Store

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """A dict and a lock.

    >>> store = MemoryStore()
    >>> store.swap("id", None, Record(Fence(1, "running", "me")))
    True
    >>> store.swap("id", None, Record(Fence(1, "running", "you")))
    False
    """

    def __init__(self) -> None:
        self._records: dict[str, tuple[Record, float | None]] = {}
        self._lock = threading.Lock()

    def read(self, task_id: str) -> Record | None:
        """As of Store."""
        with self._lock:
            return self._live(task_id)

    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
    ) -> bool:
        """As of Store."""
        with self._lock:
            found = self._live(task_id)
            if (found.fence if found else None) != expected:
                return False
            now = time.time()
            until = None if expires_in is None else now + expires_in
            self._records[task_id] = (merge(found, record, None if due_in is None else now + due_in), until)
            return True

    def delete(self, task_id: str, expected: Fence) -> bool:
        """As of Store."""
        with self._lock:
            found = self._live(task_id)
            if found is None or found.fence != expected:
                return False
            del self._records[task_id]
            return True

    def _live(self, task_id: str) -> Record | None:
        record, until = self._records.get(task_id, (None, None))
        return None if until is not None and until < time.time() else record


def merge(found: Record | None, record: Record, due: float | None) -> Record:
    """Lay ``record`` over ``found``; texts that are None stay as they were."""
    if found is None:
        return replace(record, due=due)
    return replace(
        found,
        fence=record.fence,
        due=due,
        snapshot=found.snapshot if record.snapshot is None else record.snapshot,
        message=found.message if record.message is None else record.message,
        value=found.value if record.value is None else record.value,
    )
