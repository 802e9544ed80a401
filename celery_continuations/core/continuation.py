"""The task's view of its run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_continuations.core.run import Run
    from celery_continuations.core.snapshot import Saved
    from celery_continuations.core.step import Step

__all__ = ["Continuation"]


class Continuation:
    """The task's view of its run: ``self.continuation``."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def completed(self) -> tuple[str, ...]:
        """Names of the completed steps, in order."""
        return tuple(self._run.snapshot.completed)

    @property
    def current(self) -> Step | None:
        """The current step, or None."""
        return self._run.current

    @property
    def version(self) -> int:
        """The ``continuation_version`` of the code that the task began with; 1 by default."""
        return self._run.snapshot.task_version

    @property
    def executions(self) -> int:
        """The number of this execution: 1 for the first."""
        return self._run.snapshot.executions

    @property
    def resumptions(self) -> int:
        """How many times the task was interrupted to be resumed."""
        return self._run.snapshot.resumptions

    @property
    def reason(self) -> str | None:
        """Why the last execution was interrupted, or None in the first."""
        return self._run.snapshot.reason

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The last errors that the task was resumed from, oldest first: type, message, step, cursor."""
        return list(self._run.snapshot.errors)

    @property
    def run_time(self) -> float:
        """Seconds spent in the executions before this one."""
        return self._run.snapshot.run_time

    @property
    def key(self) -> str:
        """The idempotency key of this place in the task."""
        return self._run.key()

    @property
    def saved(self) -> Saved:
        """What the task keeps across executions."""
        return self._run.snapshot.saved
