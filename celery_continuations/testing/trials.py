"""Fault plans: at which places a run of a task is interrupted or killed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import LOST, Snapshot
from celery_continuations.execution.triggers import STOPPING
from celery_continuations.testing.fault_plan import FaultPlan

__all__ = ["INTERRUPT", "KILL", "Disturbance", "Place", "Plan", "Trial", "parse", "plans", "short"]

INTERRUPT, KILL = "interrupt", "kill"


class Disturbance(NamedTuple):
    """A fault, and its place, counted from the previous disturbance."""

    kind: str
    place: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.place}"


#: What happens in one run, in order.
Plan = tuple[Disturbance, ...]


class Place(NamedTuple):
    """Where a run can be disturbed.

    Attributes:
        what: the name of the place, the same in each run.
        is_checkpoint: whether it is a checkpoint, or the moment before a save.
        cursor: the cursor there, for the error message; for a new row it differs between runs.
    """

    what: str
    is_checkpoint: bool
    cursor: str = ""

    def __str__(self) -> str:
        return f"{self.what}{self.cursor}"


class Trial(FaultPlan):
    """Count the places of one run, and disturb it at some of them."""

    attentive = True

    def __init__(self, plan: Plan, limit: int | None = None, on_disturbed: Callable[[], None] = lambda: None) -> None:
        self._on_disturbed = on_disturbed
        self.places: list[Place] = []
        self.endless = False
        self._is_first = not plan
        self._plan = list(plan)
        self._count = 0
        self._left = limit

    def checkpoint(self, execution: Any, run: Run) -> str | None:
        self._count += 1
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.endless = True
                execution.kill()
        if self._is_first:
            step = run.current
            cursor = "" if step is None else f" at cursor {short(step.cursor)}"
            self.places.append(Place(f"the checkpoint {_where(run)}", True, cursor))
        if not self._plan:
            return None
        kind, place = self._plan[0]
        if kind == INTERRUPT:
            return STOPPING if self._count >= place else None
        if self._count >= place:
            execution.kill()
        if self._count == place - 1:
            execution.write(run)  # the last save before the kill
        return None

    def before(self, execution: Any, run: Run, what: str) -> None:
        self._count += 1
        if self._is_first:
            self.places.append(Place(_saving(run, what), False))
        if self._plan and self._plan[0].kind == KILL and self._count >= self._plan[0].place:
            execution.kill()

    def left(self, snapshot: Snapshot) -> None:
        if self._plan and snapshot.reason == _REASONS[self._plan[0].kind]:
            self._plan.pop(0)
            self._count = 0
            self._on_disturbed()


_REASONS = {INTERRUPT: STOPPING, KILL: LOST}


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


def plans(places: list[Place], kills: bool, pairs: int) -> Iterator[Plan]:
    """Yield the plans of a proof: each place once, then pairs of places, the same sample in each proof."""
    numbers = range(1, len(places) + 1)
    singles = [Disturbance(INTERRUPT, at) for at in numbers if places[at - 1].is_checkpoint]
    if kills and len(places) > 1:
        singles += [Disturbance(KILL, at) for at in numbers]
    if not singles:
        return
    for one in singles:
        yield (one,)
    kinds = (INTERRUPT, KILL) if kills else (INTERRUPT,)
    chance = random.Random(0)
    drawn: set[Plan] = set()
    for _ in range(pairs):
        one = chance.choice(singles)
        rest = max(1, len(places) - one.place)
        plan = (one, Disturbance(chance.choice(kinds), chance.randint(1, rest)))
        if plan not in drawn:
            drawn.add(plan)
            yield plan


def parse(only: str) -> Plan:
    """Read a plan from an error message.

    Raises:
        ValueError: when the text is not a plan.

    >>> [str(one) for one in parse("interrupt@17,kill@3")]
    ['interrupt@17', 'kill@3']
    """
    plan = []
    for part in only.split(","):
        kind, _, place = part.strip().partition("@")
        if kind not in _REASONS or not place.isdecimal() or int(place) < 1:
            raise ValueError(
                f'only={only!r} cannot be read; it is "interrupt@17", "kill@17", or several with commas between'
            )
        plan.append(Disturbance(kind, int(place)))
    return tuple(plan)


def short(value: Any) -> str:
    """Return the repr of a value, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
