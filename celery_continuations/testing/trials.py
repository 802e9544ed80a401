"""One run of a task that is disturbed at planned places."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import LOST, Snapshot
from celery_continuations.execution.triggers import STOPPING
from celery_continuations.testing.fault_plan import FaultPlan
from celery_continuations.testing.plans import INTERRUPT, KILL, Place, Plan, short

__all__ = ["Trial"]

_REASONS = {INTERRUPT: STOPPING, KILL: LOST}


class Trial(FaultPlan):
    """Count the places of one run, and disturb it at some of them.

    Args:
        plan: where; an empty plan records the places instead.
        limit: more places than these are an endless run.
        on_disturbed: called after each disturbance.

    Attributes:
        places: the places of an undisturbed run.
        endless: whether the limit was reached.
    """

    def __init__(self, plan: Plan, limit: float = inf, on_disturbed: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._on_disturbed = on_disturbed
        self.places: list[Place] = []
        self.endless = False
        self._records = not plan
        self._plan = list(plan)
        self._left = limit
        self._aim()

    def _aim(self) -> None:
        """Attend from the next place on that matters."""
        if self._records:
            self.attends_from = 0
        elif self._plan:
            kind, place = self._plan[0]
            self.attends_from = min(place - (kind == KILL), self._left)
        else:
            self.attends_from = self._left

    @property
    def is_counting(self) -> bool:
        """Whether the next disturbance is more than one place away."""
        return bool(self._plan) and self.passed + 1 < self.attends_from

    def checkpoint(self, execution: Any, run: Run) -> str | None:
        self.passed += 1
        if self.passed > self._left:
            self.endless = True
            execution.kill()
        if self._records:
            step = run.current
            cursor = "" if step is None else f" at cursor {short(step.cursor)}"
            self.places.append(Place(f"the checkpoint {_where(run)}", True, cursor))
        if not self._plan:
            return None
        kind, place = self._plan[0]
        if kind == INTERRUPT:
            return STOPPING if self.passed >= place else None
        if self.passed >= place:
            execution.kill()
        if self.passed == place - 1:
            execution.write(run)  # the last save before the kill
        return None

    def before(self, execution: Any, run: Run, what: str) -> None:
        self.passed += 1
        if self._records:
            self.places.append(Place(_saving(run, what), False))
        if self._plan and self._plan[0].kind == KILL and self.passed >= self._plan[0].place:
            execution.kill()

    def left(self, snapshot: Snapshot) -> None:
        if self._plan and snapshot.reason == _REASONS[self._plan[0].kind]:
            self._plan.pop(0)
            self._left -= self.passed
            self.passed = 0
            self._aim()
            self._on_disturbed()


def _where(run: Run) -> str:
    step = run.current
    if step is not None:
        return f"in step {step.name!r}"
    last = next(reversed(run.snapshot.completed), None)
    return "before the first step" if last is None else f"after step {last!r}"


def _saving(run: Run, what: str) -> str:
    if what == "end":
        return "the end, before it was known that the task had returned"
    step = run.current
    if step is not None:
        return f"the moment before a save in step {step.name!r}"
    last = next(reversed(run.snapshot.completed), None)
    if last is None:
        return "the moment before a save"
    return f"the moment before the completion of step {last!r} was saved"
