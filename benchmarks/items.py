"""What a checkpoint costs when nothing is due: nanoseconds for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from celery import Celery

from benchmarks.report import Figure, Row
from benchmarks.timing import interleave
from celery_continuations import ContinuableTask
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step
from celery_continuations.sources import opener

__all__ = ["Empty", "Quiet", "measure", "pass_through"]

ITEMS = 100_000

Loop = Callable[[list[Any]], None]


@dataclass(frozen=True)
class Case:
    """A loop, the least that a loop of this kind could cost, and the nanoseconds it may add."""

    what: str
    loop: Loop
    floor: Loop
    floor_name: str
    items: list[Any]
    target: int | None = None


def measure(quick: bool) -> Figure:
    """Alternate between each case's loop, its floor and the bare loop, and keep the fastest of each."""
    return Figure(
        "what a checkpoint adds to the bare loop, for each item, when nothing is due",
        f"The fastest of many interleaved loops over {ITEMS:,} items.",
        [_row(case, rounds=10 if quick else 60) for case in _cases()],
    )


def _cases() -> list[Case]:
    numbers = list(range(ITEMS))
    texts = [f"user-{number}@example.org" for number in numbers]
    pairs = [(number, number + 1) for number in numbers]
    return [
        Case("iterate over a list", _iterated, _generated, "pass-through generator", numbers, target=45),
        Case("step.set(int)", _set, _called, "empty method", numbers, target=60),
        Case("step.set(str)", _set, _called, "empty method", texts, target=60),
        Case("step.set((int, int))", _set, _called, "empty method", pairs, target=250),
        Case("step.advance()", _advanced, _called, "empty method", numbers),
        Case("iterate, in a direct call", looping, _generated, "pass-through generator", numbers, target=120),
        Case("iterate, in eager mode", _applied, _generated, "pass-through generator", numbers, target=120),
    ]


def _row(case: Case, rounds: int) -> Row:
    loops = {"bare": _bare, "floor": case.floor, "ours": case.loop}
    taken = interleave({name: partial(loop, case.items) for name, loop in loops.items()}, rounds)
    fastest = {name: min(seconds) * 1e9 / ITEMS for name, seconds in taken.items()}
    added, floor = fastest["ours"] - fastest["bare"], fastest["floor"] - fastest["bare"]
    return Row(
        case.what,
        f"+{added:.0f} ns",
        f"+{floor:.0f} ns {case.floor_name}",
        f"{added - floor:.0f} ns over the floor",
        f"+{case.target} ns" if case.target else "",
        added <= case.target if case.target else None,
    )


# -- the floors


def _bare(items: list[Any]) -> None:
    for _ in items:
        pass


def _generated(items: list[Any]) -> None:
    for _ in pass_through(items):
        pass


def pass_through(items: list[Any]) -> Iterator[Any]:
    """Yield the items."""
    for item in items:  # noqa: UP028 - `yield from` would leave no loop to measure
        yield item


def _called(items: list[Any]) -> None:
    step = Empty()
    for item in items:
        step.set(item)


class Empty:
    """A step that does nothing."""

    __slots__ = ()

    def set(self, cursor: Any) -> None:
        """Do nothing."""


# -- the library's


@Celery("benchmark", set_as_current=False).task(base=ContinuableTask, bind=True)
def looping(self: ContinuableTask, items: list[Any]) -> None:
    """Loop over the items."""
    for _ in self.iterate("items", items):
        pass


def _applied(items: list[Any]) -> None:
    looping.apply((items,))


def _iterated(items: list[Any]) -> None:
    run = Run("benchmark", Snapshot(executions=1), Quiet())
    for _ in run.declare(Iteration(run, "items", opener("items", items))):
        pass


def _set(items: list[Any]) -> None:
    for step in _new_step():
        for item in items:
            step.set(item)


def _advanced(items: list[Any]) -> None:
    for step in _new_step(start=0):
        for _ in items:
            step.advance()


def _new_step(start: Any = None) -> Step:
    run = Run("benchmark", Snapshot(executions=1), Quiet())
    return run.declare(Step(run, "items", start))


class Quiet:
    """A host that saves nothing; only the first checkpoint has something to do."""

    def guard(self, step: str | None, own: Any) -> None:
        """No-op: the loops use no transactions."""

    def attend(self, run: Run) -> str | None:
        """No-op: these loops measure the checkpoint that has nothing to do."""
        return None

    def save(self, run: Run) -> None:
        """No-op: the host has no store."""

    def join(self, run: Run) -> None:
        """No-op: the loops have no units of work."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """No-op: the host reports nothing."""

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Refuse: the sources are not throttled."""
        raise NotImplementedError

    def is_due(self, run: Run) -> bool:
        """Return False: nothing interrupts the loops."""
        return False

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        """No-op: the loops are one step each."""

    def unchecked(self, run: Run, step: Step) -> None:
        """No-op: snapshots are not checked."""

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        """Refuse: the items do not fail."""
        raise NotImplementedError
