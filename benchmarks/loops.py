"""Loops that a task times itself: the bare loop, the minimum around it, and the library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.items import Empty, pass_through
from benchmarks.timing import fastest

__all__ = ["CASES", "time_items"]

ITEMS = 100_000
ROWS = 1_000
PASSES = 20
COLUMNS = 20


def _numbers() -> list[Any]:
    return list(range(ITEMS))


def _texts() -> list[Any]:
    return [f"user-{number}@example.org" for number in range(ITEMS)]


def _rows() -> list[Any]:
    names = [f"column_{column}" for column in range(COLUMNS)]
    rows: list[Any] = [
        {name: f"value {row} of {name}" if column % 2 else row * COLUMNS + column for column, name in enumerate(names)}
        for row in range(ROWS)
    ]
    return rows * PASSES  # few enough for the processor's cache, like rows that have just been read


def _rows_with_id() -> list[Any]:
    return [{"id": number, **row} for number, row in enumerate(_rows()[:ROWS])] * PASSES


# Each loop returns the seconds from its second item to its last: the cost of an item does not include what a step
# does once, at its beginning and end. The comparison costs the same in all loops.


def _looped(rows: Iterator[Any], last: Any) -> float:
    next(rows)
    began = ended = perf_counter()
    for row in rows:
        if row is last:
            ended = perf_counter()
    return ended - began


def _looked_at(rows: Iterator[Any], last: Any) -> float:
    """Loop over rows as a task does that uses them: what it takes to read one from memory is paid by every loop."""
    next(rows)
    began = ended = perf_counter()
    for row in rows:
        for _ in row.values():
            pass
        if row is last:
            ended = perf_counter()
    return ended - began


Body = Callable[[Iterator[Any], Any], float]


def _bare(body: Body, task: Any, items: list[Any], number: int) -> float:
    return body(iter(items), items[-1])


def _generated(body: Body, task: Any, items: list[Any], number: int) -> float:
    return body(pass_through(items), items[-1])


def _iterated(body: Body, task: Any, items: list[Any], number: int) -> float:
    return body(iter(task.iterate(f"items {number}", items)), items[-1])


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


def _around(body: Body) -> dict[str, Callable[[Any, list[Any], int], float]]:
    return {
        "bare": partial(_bare, body),
        "floor": partial(_generated, body),
        "ours": partial(_iterated, body),
    }


_SET = {"bare": _passed, "floor": _called, "ours": _set}

#: What can be timed: the items, and the loops over them.
CASES: dict[str, tuple[Callable[[], list[Any]], dict[str, Callable[[Any, list[Any], int], float]]]] = {
    "iterate ints": (_numbers, _around(_looped)),
    "iterate strs": (_texts, _around(_looped)),
    "iterate dicts": (_rows, _around(_looked_at)),
    "iterate dicts with an id": (_rows_with_id, _around(_looked_at)),
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
