"""The cost of each item and each save for a task on a real worker."""

from __future__ import annotations

from benchmarks.loops import CASES, COLUMNS, ITEMS, PASSES, ROWS
from benchmarks.report import Figure, Row
from benchmarks.saves import time_saves
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio

__all__ = ["measure"]

_DICTS_ADD = 110


def measure(quick: bool) -> Figure:
    """Let one task in a worker's child time its own loops, and another its own saves."""
    passes, rounds = (2, 10) if quick else (6, 30)
    with private_site() as site:
        with site.worker("steps") as worker:
            worker.wait_until_ready()
            found = _time(site, passes, rounds)
        saves = time_saves(site, site.url, 40 if quick else 250)
    ints = found["iterate ints"]
    allowed = round(ints["ours"] - ints["bare"] + _DICTS_ADD)
    ratio = median_ratio(saves["task.checkpoint"], saves["set"])
    generator, method = "pass-through generator", "empty method"
    return Figure(
        "what a task on a worker pays, for each item and for each save",
        "A prefork worker on Redis, which is broker, result backend and store. Items: the fastest of "
        f"{passes * rounds} interleaved loops over {ITEMS:,} items ({ROWS:,} dicts, {PASSES} times), from the second "
        "item to the last, less the bare loop; those over dicts read each column. The target for dicts is what ints "
        f"add plus {_DICTS_ADD} ns. The save: self.checkpoint() with continuation_checkpoint_interval = 0, the median "
        "ratio to redis-py's SET of the same text.",
        [
            _row("iterate over a list of ints", ints, generator, 45),
            _row("iterate over a list of strs", found["iterate strs"], generator, 45),
            _row(f"iterate over a list of dicts, {COLUMNS} columns", found["iterate dicts"], generator, allowed),
            _row("iterate over the same dicts, with an id", found["iterate dicts with an id"], generator, allowed),
            _row("step.set(int)", found["set ints"], method, 60),
            Row("self.checkpoint() that saves", "", "SET", f"x {ratio:.2f}"),
        ],
    )


def _time(site: Site, passes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the least of all passes for each loop of each case.

    A shared machine is slow for seconds at a time, so each case is repeated later.
    """
    least: dict[str, dict[str, float]] = {case: {} for case in CASES}
    for _ in range(passes):
        for case, known in least.items():
            found = site.send("timed_items", case, rounds).get(timeout=300)
            known.update((name, min(taken, known.get(name, taken))) for name, taken in found.items())
    return least


def _row(what: str, found: dict[str, float], floor_name: str, target: int) -> Row:
    added, floor = found["ours"] - found["bare"], found["floor"] - found["bare"]
    return Row(
        what,
        f"+{added:.0f} ns",
        f"+{floor:.0f} ns {floor_name}",
        f"{added - floor:.0f} ns over the floor",
        f"+{target} ns",
        added <= target,
    )
