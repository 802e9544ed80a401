"""The fault plan of a rehearsed run: where it is interrupted or killed."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from celery_continuations.core.run import Run

if TYPE_CHECKING:
    from celery_continuations.core.snapshot import Snapshot
    from celery_continuations.testing.rehearsed_execution import RehearsedExecution

__all__ = ["CountedRun", "FaultPlan", "Killed"]


class Killed(BaseException):
    """Raised where the process that runs a task dies."""


class FaultPlan:
    """A plan without faults.

    Attributes:
        passed: how many places the run has passed since the last fault.
        attends_from: the first place whose checkpoint calls :meth:`checkpoint`; those before it are only counted.
    """

    attends_from: float = inf

    def __init__(self) -> None:
        self.passed = 0

    @property
    def is_counting(self) -> bool:
        """Whether what happens here has happened in an earlier run, so that checks and saves are left out."""
        return False

    def checkpoint(self, execution: RehearsedExecution, run: Run) -> str | None:
        """Return a reason to interrupt at this checkpoint, or None."""
        return None

    def before(self, execution: RehearsedExecution, run: Run, what: str) -> None:
        """Called before a save (``"save"``), or before the task is known to have returned (``"end"``)."""

    def left(self, snapshot: Snapshot) -> None:
        """Called when an execution was interrupted or killed."""


class CountedRun(Run):
    """A run that counts the checkpoints at which it has nothing to do: a fault plan numbers them all."""

    __slots__ = ("_is_set", "faults")

    faults: FaultPlan
    _is_set: bool

    @property
    def attention(self) -> bool:
        """Whether the next checkpoint has something to do; each checkpoint reads it once."""
        if self._is_set:
            return True
        faults = self.faults
        if faults.passed + 1 < faults.attends_from:
            faults.passed += 1
            return False
        self._is_set = True
        return True

    @attention.setter
    def attention(self, value: bool) -> None:
        self._is_set = value
