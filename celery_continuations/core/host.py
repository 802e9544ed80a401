"""What a run needs from its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from celery_continuations.core.run import Run
    from celery_continuations.core.step import Step

__all__ = ["Host"]


class Host(Protocol):
    """A worker's execution, a direct call, or a test."""

    def guard(self, step: str | None, own: Any) -> None:
        """Refuse a checkpoint in an open transaction of the task, except in ``own``, the step's unit of work."""

    def attend(self, run: Run) -> str | None:
        """Do what is due at a checkpoint; return a reason to interrupt, or None.

        Called at a checkpoint if ``run.attention`` was set, which is cleared first; set it to be called again.
        """

    def is_due(self, run: Run) -> bool:
        """Return whether :meth:`attend` would have something to do; without a worker it never has."""

    def save(self, run: Run) -> None:
        """Save a completed step, or the moved cursor of a step with a unit of work.  Commits ``run.unit``."""

    def join(self, run: Run) -> None:
        """Make the saves of a new step part of ``run.unit``; refuse if that is impossible."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Report an event, by the name of its signal, e.g. ``"step_started"``."""

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Free the worker, to continue at the same cursor after ``seconds``."""

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        """Return whether an error affects the current item alone, and report it if so."""

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        """Warn of a task with many steps, and refuse another one where the snapshot is nearly full."""

    def unchecked(self, run: Run, step: Step) -> None:
        """Report that a loop's items have no identity, so that a changed source is not detected."""
