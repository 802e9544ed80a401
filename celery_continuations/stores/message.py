"""No store: the snapshot travels in the message only."""

from __future__ import annotations

from celery_continuations.stores.base import Fence, Record, Store

__all__ = ["MessageStore"]


class MessageStore(Store):
    """Keeps nothing and agrees to everything: what a message says is all there is to know."""

    keeps = False

    def read(self, task_id: str) -> Record | None:
        """There never is a record."""
        return None

    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
    ) -> bool:
        """Agree."""
        return True

    def delete(self, task_id: str, expected: Fence) -> bool:
        """Agree."""
        return True
