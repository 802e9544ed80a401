"""The fault plan of a rehearsed run: where it is interrupted or killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_continuations.core.run import Run
    from celery_continuations.core.snapshot import Snapshot
    from celery_continuations.testing.rehearsed_execution import RehearsedExecution

__all__ = ["FaultPlan", "Killed"]


class Killed(BaseException):
    """Raised where the process that runs a task dies."""


class FaultPlan:
    """A plan without faults.

    Attributes:
        attentive: whether the run calls :meth:`checkpoint` at each checkpoint.
    """

    attentive = False

    def checkpoint(self, execution: RehearsedExecution, run: Run) -> str | None:
        """Return a reason to interrupt at this checkpoint, or None."""
        return None

    def before(self, execution: RehearsedExecution, run: Run, what: str) -> None:
        """Called before a save (``"save"``), or before the task is known to have returned (``"end"``)."""

    def left(self, snapshot: Snapshot) -> None:
        """Called when an execution was interrupted or killed."""
