"""What can be known of a task from outside."""

from __future__ import annotations

from typing import Any, NamedTuple

from celery.result import AsyncResult

from celery_continuations import conf
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.stores import open_store

__all__ = ["ContinuableAsyncResult", "Progress"]


class Progress(NamedTuple):
    """How far the step in hand has come, as of the last save.

    Attributes:
        step: its name, or None between two steps.
        done: items done, where known.
        total: items in all, where known.
    """

    step: str | None
    done: int | None
    total: int | None


class ContinuableAsyncResult(AsyncResult):  # type: ignore[misc]
    """An AsyncResult that also tells what the task's store knows.

    Each property reads the store anew; each raises StoreError when that cannot be reached.

    Args:
        id: the task's id.
        store: the task's setting ``continuation_store``; without it the app's.
        args, kwargs: as of AsyncResult.
    """

    def __init__(self, id: str, *args: Any, store: str | None = None, **kwargs: Any) -> None:  # noqa: A002
        super().__init__(id, *args, **kwargs)
        self._store = store

    def snapshot(self) -> Snapshot | None:
        """Return the last snapshot saved, or None where there is none."""
        record = open_store(self.app, self._store or conf.app_setting(self.app, "store")).read(self.id)
        if record is None or record.snapshot is None:
            return None
        return Snapshot.loads(record.snapshot)

    @property
    def progress(self) -> Progress | None:
        """How far the step in hand has come, or None where nothing is saved."""
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        return Progress(snapshot.current[0] if snapshot.current else None, *snapshot.progress)

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the completed steps, in order."""
        snapshot = self.snapshot()
        return tuple(snapshot.completed) if snapshot else ()

    @property
    def resumptions(self) -> int:
        """How many times the task has left an execution to be resumed."""
        snapshot = self.snapshot()
        return snapshot.resumptions if snapshot else 0
