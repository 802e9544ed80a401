"""The cost for tasks without steps: tasks a second, compared with a plain app."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio

__all__ = ["measure"]

TARGET = 0.97
APPS = ("steps", "plain")

# Many short rounds: the machine's other load then affects both apps equally.
TASKS = 400
DRAINS = 6


class Drain(NamedTuple):
    """Tasks a second, and CPU seconds of the pool's child per task."""

    rate: float
    cpu: float


Pair = dict[str, list[Drain]]


def measure(quick: bool) -> Figure:
    """Let workers of both apps alternately drain queues of empty tasks, with new workers for each pair."""
    with private_site() as site:
        pairs = [_measure_pair(site) for _ in range(3 if quick else 10)]
    ratios = [median_ratio(_rates(pair["steps"]), _rates(pair["plain"])) for pair in pairs]
    ratio = median(ratios)
    ours, theirs = _typical(pairs, "steps"), _typical(pairs, "plain")
    return Figure(
        "tasks a second of an app with task_cls = AppTask that use no step",
        f"Medians of {len(pairs)} pairs of workers, each of which drain {DRAINS} times {TASKS} tasks in turn, queued "
        "beforehand and without a result to store, which would hide what is added. "
        f"The pairs' ratios are {min(ratios):.3f} to {max(ratios):.3f}.",
        [
            Row(
                "AppTask",
                f"{ours.rate:,.0f}/s",
                f"{theirs.rate:,.0f}/s plain Task",
                f"x {ratio:.3f}",
                f"at least x {TARGET}",
                ratio >= TARGET,
            ),
            Row(
                "CPU time of the pool's child for each task",
                f"{ours.cpu * 1e6:.0f} us",
                f"{theirs.cpu * 1e6:.0f} us plain Task",
                f"x {ours.cpu / theirs.cpu:.2f}",
            ),
        ],
    )


def _measure_pair(site: Site) -> Pair:
    # Two processes of the same program differ by a few percent for their whole life, mostly by the order of
    # their sets and dicts; hence new workers each time, and the same hashes for all.
    drains: Pair = {app: [] for app in APPS}
    with ExitStack() as stack:
        workers = [stack.enter_context(site.worker(app, app, PYTHONHASHSEED="0")) for app in APPS]
        for worker in workers:
            worker.wait_until_ready()
        for app in APPS:
            _drain(site, app)  # connections and caches
        for turn in range(DRAINS):
            for app in APPS if turn % 2 else reversed(APPS):
                drains[app].append(_drain(site, app))
        for worker in workers:
            worker.terminate()  # both at once, not one after the other
    return drains


def _drain(site: Site, queue: str) -> Drain:
    """Queue tasks behind a gate, open it, and time the worker until the queue is empty."""
    gate = site.send("gate", "open", queue=queue)
    site.send_many("nothing", TASKS, queue)
    end = site.send("clocks", queue=queue)
    site.redis.rpush("open", "1")
    ended, cpu_ended = end.get(timeout=120)
    began, cpu_began = gate.get(timeout=120)
    return Drain(TASKS / (ended - began), (cpu_ended - cpu_began) / TASKS)


def _rates(drains: list[Drain]) -> list[float]:
    return [drain.rate for drain in drains]


def _typical(pairs: list[Pair], app: str) -> Drain:
    drains = [drain for pair in pairs for drain in pair[app]]
    return Drain(median(drain.rate for drain in drains), median(drain.cpu for drain in drains))
