"""At which places the runs of a proof are disturbed, and in which order."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

__all__ = ["INTERRUPT", "KILL", "Disturbance", "Place", "Plan", "named", "parse", "plans", "short"]

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


def plans(places: Sequence[Place], kills: bool, pairs: int) -> Iterator[Plan]:
    """Yield the plans of a proof: each place once, then pairs of places; the same in each proof."""
    singles = list(_singles(places, kills))
    for one in singles:
        yield (one,)
    if not singles:
        return
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


def _singles(places: Sequence[Place], kills: bool) -> Iterator[Disturbance]:
    """Yield the disturbances, the most telling first: at the first and the last place of each kind, and between."""
    kinds: dict[str, list[int]] = {}
    for number, place in enumerate(places, 1):
        kinds.setdefault(re.sub(r"\d+", "#", place.what), []).append(number)
    for round_ in zip_longest(*map(_spread, kinds.values())):
        numbers = sorted(number for number in round_ if number is not None)
        yield from (Disturbance(INTERRUPT, number) for number in numbers if places[number - 1].is_checkpoint)
        if kills:
            yield from (Disturbance(KILL, number) for number in numbers)


def _spread(numbers: list[int]) -> Iterator[int]:
    """Yield the first number, the last one, the one in the middle, and so on.

    >>> list(_spread([1, 2, 3, 4, 5, 6]))
    [1, 6, 3, 2, 4, 5]
    """
    last = len(numbers) - 1
    yield numbers[0]
    if last:
        yield numbers[last]
    gaps = deque([(0, last)])
    while gaps:
        low, high = gaps.popleft()
        middle = (low + high) // 2
        if low < middle:
            yield numbers[middle]
            gaps += [(low, middle), (middle, high)]


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
        if kind not in (INTERRUPT, KILL) or not place.isdecimal() or int(place) < 1:
            raise ValueError(
                f'only={only!r} cannot be read; it is "interrupt@17", "kill@17", or several with commas between'
            )
        plan.append(Disturbance(kind, int(place)))
    return tuple(plan)


def named(chosen: Sequence[Plan]) -> str:
    """Name plans in a few words.

    >>> named([parse("kill@1"), parse("kill@3"), parse("kill@2"), parse("interrupt@7"), parse("kill@1,kill@2")])
    'interrupt@7, kill@1-3, 1 pair'
    """
    parts = [
        f"{kind}@{_ranges(sorted(plan[0].place for plan in chosen if len(plan) == 1 and plan[0].kind == kind))}"
        for kind in (INTERRUPT, KILL)
        if any(len(plan) == 1 and plan[0].kind == kind for plan in chosen)
    ]
    pairs = sum(len(plan) > 1 for plan in chosen)
    return ", ".join([*parts, *([f"{pairs} pair{'s' * (pairs > 1)}"] if pairs else [])])


def _ranges(numbers: list[int]) -> str:
    """Write numbers as ranges, with at most ten of them."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [f"{low}-{high}" if high > low else f"{low}" for low, high in ranges]
    return "+".join(shown if len(shown) <= 10 else [*shown[:9], "…"])


def short(value: Any) -> str:
    """Return the repr of a value, cut off if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
