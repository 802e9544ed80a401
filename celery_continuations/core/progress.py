"""The progress of a step."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Progress"]


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
