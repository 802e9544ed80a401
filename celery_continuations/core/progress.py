"""The progress of a step, and what counts as progress of an execution."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from celery_continuations.core.snapshot import Snapshot
    from celery_continuations.core.step import Step

__all__ = ["Moves", "Progress"]


class Progress(NamedTuple):
    """The progress of the current step at its last save.

    Attributes:
        step: the name of the step, or None between two steps.
        done: the number of items done, if known.
        total: the number of all items, if known.
    """

    step: str | None
    done: int | None
    total: int | None

    @property
    def percent(self) -> int | None:
        """The percentage that is done, rounded down, or None if unknown.

        A custom source's cursor need not be a number of items, so it may be beyond the total.

        >>> Progress("import", 1, 3).percent
        33
        >>> Progress("import", 5000, 3).percent
        """
        if self.done is None or not self.total or not 0 <= self.done <= self.total:
            return None
        return 100 * self.done // self.total


class Moves:
    """What an execution has moved: a stop, or an error, of one that has moved nothing could be repeated endlessly.

    Attributes:
        completed: the number of steps that it has completed.
        asked: whether the task has made a checkpoint of its own since the last look: what it keeps in ``saved`` counts.
    """

    __slots__ = ("_has_saved", "asked", "completed")

    def __init__(self) -> None:
        self.completed = 0
        self.asked = False
        self._has_saved = False

    def look_at(self, snapshot: Snapshot) -> None:
        """Look whether ``saved`` has changed, after a checkpoint of the task's own."""
        if self.asked:
            self.asked = False
            self._has_saved = snapshot.note_saved() or self._has_saved

    def any_in(self, snapshot: Snapshot, current: Step | None) -> bool:
        """Whether it has completed a step, moved the cursor of the current one, or changed ``saved``."""
        if self.completed > 0 or (current is not None and current.advanced):
            return True
        self.look_at(snapshot)
        return self._has_saved
