"""A read-only list of the tasks that have a record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from functools import wraps
from typing import Any, TypeVar

from django.contrib import admin

from celery_continuations.contrib.django.models import RecordRow
from celery_continuations.core.notes import error_in
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import ContinuationError
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.result import Progress
from celery_continuations.stores.base import Fence, Status

__all__ = ["RecordAdmin"]


Cell = TypeVar("Cell")


def _or_the_error(cell: Callable[[RecordAdmin, RecordRow], Cell]) -> Callable[[RecordAdmin, RecordRow], Cell | str]:
    """Show what is wrong with a record in its own row: an error would hide the whole list."""

    @wraps(cell)
    def shown(self: RecordAdmin, row: RecordRow) -> Cell | str:
        try:
            return cell(self, row)
        except ContinuationError as exc:
            return f"unreadable: {exc}"
        except Exception as exc:  # values of any type may come up in a damaged record
            return f"unreadable: {type(exc).__name__}: {exc}"

    return shown


@admin.register(RecordRow)
class RecordAdmin(admin.ModelAdmin):
    """The place of each task; for a record that cannot be read, its id and the error."""

    list_display = ("task_id", "task", "status", "generation", "step", "progress", "error", "due_at")
    fields = list_display  # without message and snapshot, which have the task's arguments and values
    search_fields = ("task_id",)
    ordering = ("-id",)

    def has_add_permission(self, request: Any) -> bool:
        """Return False: only a task makes its record."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Return False: only a task writes its record."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """Return False: a task without its record starts over."""
        return False

    @_or_the_error
    def task(self, row: RecordRow) -> str:
        """The task's name, if its message was saved."""
        return SavedMessage.loads(row.message).task if row.message else ""

    @_or_the_error
    def status(self, row: RecordRow) -> str:
        """Its status, and the pending command, if there is one."""
        fence = _fence(row)
        if fence is None:
            return f"unreadable: {row.fence!r}"
        return f"{fence.status}, to {fence.command}" if fence.command else str(fence.status)

    @_or_the_error
    def generation(self, row: RecordRow) -> int | None:
        """The number of its claims."""
        fence = _fence(row)
        return None if fence is None else fence.generation

    @_or_the_error
    def step(self, row: RecordRow) -> str:
        """The current step."""
        snapshot = _snapshot(row)
        return str(snapshot.current[0]) if snapshot.current else ""

    @_or_the_error
    def progress(self, row: RecordRow) -> str:
        """The progress of that step."""
        progress = Progress(None, *_snapshot(row).progress)
        if progress.percent is not None:
            return f"{progress.percent}%"
        return "" if progress.done is None else f"{progress.done:,} done"

    @_or_the_error
    def error(self, row: RecordRow) -> str:
        """The error that has ended it."""
        fence, error = _fence(row), error_in(row.snapshot)
        if error is None or fence is None or fence.status != Status.FAILED:
            return ""
        return f"{error['type']}: {error['message']}".removesuffix(": ")

    @admin.display(description="due", ordering="due")
    @_or_the_error
    def due_at(self, row: RecordRow) -> datetime | None:
        """When the next action is due."""
        return None if row.due is None else datetime.fromtimestamp(row.due, timezone.utc)


def _fence(row: RecordRow) -> Fence | None:
    try:
        return Fence.loads(row.fence)
    except ValueError:
        return None


def _snapshot(row: RecordRow) -> Snapshot:
    return Snapshot.loads(row.snapshot) if row.snapshot else Snapshot()
