"""No store: the snapshot travels in the message only."""

from __future__ import annotations

from collections.abc import Iterator

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Fence, Record, Scan, Store, Update

__all__ = ["MessageStore"]


class MessageStore(Store):
    """Keeps nothing and agrees to everything: what a message says is all there is to know."""

    keeps = False

    def read(self, task_id: str) -> Record | None:
        """There never is a record."""
        return None

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        """Agree."""
        return True

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        """Agree."""
        return Record(fence)

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """There never is a record."""
        return iter(())

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """No-op: there are no leases."""

    def retire(self, worker: str) -> None:
        """No-op: there are no leases."""

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        """There is nothing to find."""
        return Scan([], [], {})
