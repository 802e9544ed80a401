"""The errors that the steps of an execution have raised, and those that its task has caught."""

from __future__ import annotations

import sys
from collections.abc import Collection

from celery_continuations.core.errors import causes

__all__ = ["Raised"]


class Raised:
    """What an error that leaves the task has to do with its steps.

    >>> error = ValueError()
    >>> raised = Raised()
    >>> raised.note("charge", error)
    >>> raised.source_of(error, completed=["charge"])
    'charge'
    """

    __slots__ = ("_by", "_caught")

    def __init__(self) -> None:
        self._by: list[tuple[str, Exception]] = []
        self._caught: list[tuple[str, BaseException | None]] = []

    def note(self, name: str, error: Exception) -> None:
        """Note that a completed step raises ``error``: if it ends the task, a retry repeats that step."""
        self._by.append((name, error))

    def caught_around(self, name: str) -> None:
        """Note that the task has continued after the step ``name``, with the error that it handles at this moment."""
        self._caught.append((name, sys.exc_info()[1]))

    def reopened_by(self, error: BaseException) -> list[str]:
        """Return the steps that ``error`` left when the task caught it around another step, as in a ``finally``."""
        return [name for name, caught in self._caught if caught is error]

    def source_of(self, error: BaseException, completed: Collection[str]) -> str | None:
        """Return the completed step that has raised ``error``, or one of its causes; or None."""
        names = {id(one): name for name, one in self._by if name in completed}
        return next((names[id(one)] for one in causes(error) if id(one) in names), None)
