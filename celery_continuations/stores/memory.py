"""Records in this process, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Fence, Lease, Record, Scan, Store, Update

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """A dict and a lock.

    Args:
        clock: returns the seconds since the epoch.

    >>> from celery_continuations.stores import Status
    >>> store = MemoryStore()
    >>> store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "me")))
    True
    >>> store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "you")))
    False
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: dict[str, tuple[Record, float | None]] = {}
        self._leases: dict[str, tuple[float, str]] = {}
        self._lock = threading.Lock()

    def read(self, task_id: str) -> Record | None:
        with self._lock:
            return self._live(task_id)

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        with self._lock:
            found = self._live(task_id)
            if not update.fits(found, expected):
                return False
            now = self._clock()
            self._records[task_id] = update.applied_to(found, now), update.expires(now)
            return True

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        for task_id in list(self._records):
            with self._lock:
                record = self._live(task_id)
            if record is not None:
                yield task_id, record

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        with self._lock:
            self._leases[worker] = (self._clock() + seconds, note)

    def retire(self, worker: str) -> None:
        with self._lock:
            if not self._owned(worker):
                self._leases.pop(worker, None)

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        with self._lock:
            now = self._clock()
            leases = {name: Lease(name, until - now, note) for name, (until, note) in self._leases.items()}
            due = []
            for task_id in list(self._records):
                record = self._live(task_id)
                if record is not None and record.fence.worker:
                    leases.setdefault(record.fence.worker, Lease(record.fence.worker, 0.0))
                if record is not None and record.due is not None and record.due <= now:
                    due.append((record.due, task_id))
            return Scan(list(leases.values()), [task_id for _, task_id in sorted(due)[:limit]], self._owned(worker))

    def _owned(self, worker: str) -> dict[str, str]:
        found = {}
        for task_id in list(self._records):
            record = self._live(task_id)
            if worker and record is not None and record.fence.worker == worker:
                found[task_id] = record.fence.owner
        return found

    def _live(self, task_id: str) -> Record | None:
        record, until = self._records.get(task_id, (None, None))
        if until is not None and until <= self._clock():
            del self._records[task_id]
            return None
        return record
