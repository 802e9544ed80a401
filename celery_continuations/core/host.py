"""What a run needs of the world around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from celery_continuations.core.run import Run
    from celery_continuations.core.step import Step

__all__ = ["Host"]


class Host(Protocol):
    """A worker's execution, a direct call, or a test."""

    def guard(self, step: str | None, own: Any) -> None:
        """Refuse a checkpoint inside an open transaction of the task's that is not ``own``, the unit of the step."""

    def attend(self, run: Run) -> str | None:
        """Do what is due at a checkpoint; return a reason to interrupt, or None.

        Called at a checkpoint if ``run.attention`` was set, which is cleared by then; set it for the next one, too.
        """

    def save(self, run: Run) -> None:
        """Save: a step was completed, or the cursor of one with a unit was moved.  Commits ``run.unit``."""

    def join(self, run: Run) -> None:
        """A step begins whose unit, ``run.unit``, every save is to be part of: refuse what cannot be."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Report an event, which is the name of its signal, e.g. ``"step_started"``."""

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Give the worker back, to continue at the same cursor after so many seconds."""

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        """Return whether an error is of the current item alone, and report it if so."""

    def unchecked(self, run: Run, step: Step) -> None:
        """The items of a loop cannot be told apart, so that a change of its source is not noticed."""
