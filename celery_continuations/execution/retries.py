"""How often a task is retried at one place, and how soon it is resumed after an error."""

from __future__ import annotations

from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution.message import Message

__all__ = ["Retries", "error_countdown"]

# The countdown after an error doubles this many times, up to the setting, while errors are close to each other.
_DOUBLINGS = 6


def error_countdown(snapshot: Snapshot, longest: float) -> float:
    """Return the seconds until a task is resumed from an error: few if it made progress since the one before.

    >>> error_countdown(Snapshot(), 8), error_countdown(Snapshot(close_errors=(4, [0, 1])), 8)
    (0.125, 2.0)
    """
    in_a_row, _ = snapshot.close_errors
    return longest * 2.0 ** (min(in_a_row, _DOUBLINGS) - _DOUBLINGS)


class Retries:
    """Count in ``request.retries`` only the retries in a row at one place.

    Args:
        message: the message that the execution runs.
        snapshot: the snapshot to resume from.

    Attributes:
        pending: whether the next progress sets ``request.retries`` back.
    """

    def __init__(self, message: Message, snapshot: Snapshot) -> None:
        self._message = message
        self.pending = bool(message.request.retries)
        # A stop, a wait or a kill may have come between the progress and this execution.
        if self.pending and snapshot.retried_at not in (None, snapshot.place):
            self._reset()

    def reset_after_progress(self, run: Run) -> None:
        """Set ``request.retries`` back if this execution has made progress; what follows is another failure."""
        if self.pending and run.progressed:
            self._reset()

    def retried(self, run: Run) -> None:
        """Note the place at which the task is retried."""
        snapshot = run.take_snapshot()
        snapshot.retried_at = snapshot.place

    def _reset(self) -> None:
        self._message.request.retries = 0
        self.pending = False
