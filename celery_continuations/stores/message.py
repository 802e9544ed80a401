"""No store: the snapshot travels in the message only."""

from __future__ import annotations

from collections.abc import Iterator

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Fence, Record, Scan, Store, Update

__all__ = ["MessageStore"]


class MessageStore(Store):
    """Keep nothing and accept every write: all progress is in the message."""

    keeps = False

    def read(self, task_id: str) -> Record | None:
        """Return None: there are no records."""
        return None

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        """Accept."""
        return True

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        """Accept."""
        return Record(fence)

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Return nothing: there are no records."""
        return iter(())

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """No-op: there are no leases."""

    def retire(self, worker: str) -> None:
        """No-op: there are no leases."""

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        """Return an empty scan."""
        return Scan([], [], {})
