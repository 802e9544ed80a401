"""What happens to a rehearsed run at each of its places is decided by its guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_continuations.core.run import Run
    from celery_continuations.core.snapshot import Snapshot
    from celery_continuations.testing.rehearsal import _Execution

__all__ = ["Guide", "Killed"]


class Killed(BaseException):
    """The process that runs a task dies here."""


class Guide:
    """Leaves a run alone.

    Attributes:
        attentive: whether the run is to ask at each checkpoint.
    """

    attentive = False

    def checkpoint(self, execution: _Execution, run: Run) -> str | None:
        """At a checkpoint: return a reason to interrupt, or None."""
        return None

    def moment(self, execution: _Execution, run: Run, what: str) -> None:
        """Just before a save (``"save"``), or before it is known that the task has returned (``"end"``)."""

    def left(self, snapshot: Snapshot) -> None:
        """An execution has left."""
