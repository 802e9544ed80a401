"""Loops that a task times itself: the bare loop, the least that could stand around it, and the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.items import Empty, pass_through
from benchmarks.timing import fastest

__all__ = ["CASES", "time_items"]

ITEMS = 100_000
ROWS = 20_000
COLUMNS = 20


def _numbers() -> list[Any]:
    return list(range(ITEMS))


def _texts() -> list[Any]:
    return [f"user-{number}@example.org" for number in range(ITEMS)]


def _rows() -> list[Any]:
    names = [f"column_{column}" for column in range(COLUMNS)]
    return [
        {name: f"value {row} of {name}" if column % 2 else row * COLUMNS + column for column, name in enumerate(names)}
        for row in range(ROWS)
    ]


# Each of the loops returns the seconds from its second item to its last. What a step does once, at its beginning
# and its end, is not part of what an item costs. The comparison costs all of them the same.


def _looped(rows: Iterator[Any], last: Any) -> float:
    next(rows)
    began = ended = perf_counter()
    for row in rows:
        if row is last:
            ended = perf_counter()
    return ended - began


def _bare(task: Any, items: list[Any], number: int) -> float:
    return _looped(iter(items), items[-1])


def _generated(task: Any, items: list[Any], number: int) -> float:
    return _looped(pass_through(items), items[-1])


def _iterated(task: Any, items: list[Any], number: int) -> float:
    return _looped(iter(task.iterate(f"items {number}", items)), items[-1])


def _set_all(step: Any, items: list[Any]) -> float:
    step.set(items[0])
    began = perf_counter()
    for item in items:
        step.set(item)
    return perf_counter() - began


def _called(task: Any, items: list[Any], number: int) -> float:
    return _set_all(Empty(), items)


def _set(task: Any, items: list[Any], number: int) -> float:
    seconds = 0.0
    for step in task.step(f"items {number}"):
        seconds = _set_all(step, items)
    return seconds


def _passed(task: Any, items: list[Any], number: int) -> float:
    began = perf_counter()
    for _ in items:
        pass
    return perf_counter() - began


_ITERATE = {"bare": _bare, "floor": _generated, "ours": _iterated}
_SET = {"bare": _passed, "floor": _called, "ours": _set}

#: What can be timed: the items, and the loops over them.
CASES: dict[str, tuple[Callable[[], list[Any]], dict[str, Callable[[Any, list[Any], int], float]]]] = {
    "iterate ints": (_numbers, _ITERATE),
    "iterate strs": (_texts, _ITERATE),
    "iterate dicts": (_rows, _ITERATE),
    "set ints": (_numbers, _SET),
}


def time_items(task: Any, case: str, rounds: int) -> dict[str, float]:
    """Run the loops of a case in turn; return the nanoseconds for an item in the fastest of each.

    Args:
        task: the task that is running; each of its loops is a step.
        case: one of :data:`CASES`.
        rounds: how many times to run each loop.
    """
    make, loops = CASES[case]
    items = make()
    found = fastest({name: partial(loop, task, items) for name, loop in loops.items()}, rounds)
    return {name: seconds * 1e9 / len(items) for name, seconds in found.items()}
