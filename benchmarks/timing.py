"""Timing side by side, so that a disturbance affects everything equally."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from statistics import median
from time import perf_counter

__all__ = ["fastest", "interleave", "median_ratio", "percentile"]


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, times: int = 1) -> dict[str, list[float]]:
    """Call each of ``calls`` in turn, ``times`` times per round; every other round runs in reverse order.

    Returns:
        Seconds for one call, by name, one value for each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    there, back = list(calls.items()), list(reversed(calls.items()))
    for number in range(rounds):
        for name, call in back if number % 2 else there:
            began = perf_counter()
            for _ in range(times):
                call()
            taken[name].append((perf_counter() - began) / times)
    return taken


def fastest(calls: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Call each of ``calls`` in turn with the number of the round; every other round runs in reverse order.

    Returns:
        The least of the seconds that each has returned, by name.

    >>> fastest({"once": lambda number: 3.0 - number, "again": lambda number: 5.0}, rounds=2)
    {'once': 2.0, 'again': 5.0}
    """
    least = dict.fromkeys(calls, inf)
    there, back = list(calls.items()), list(reversed(calls.items()))
    for number in range(rounds):
        for name, call in back if number % 2 else there:
            least[name] = min(least[name], call(number))
    return least


def median_ratio(values: Iterable[float], floors: Iterable[float]) -> float:
    """Return the median of the ratios of values that were measured side by side."""
    return median(value / floor for value, floor in zip(values, floors, strict=True))


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie.

    >>> percentile(range(101), 0.99)
    99
    """
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]
