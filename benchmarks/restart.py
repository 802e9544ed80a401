"""Restart time of an interrupted task: milliseconds from its end to its next start."""

from __future__ import annotations

from statistics import median

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from benchmarks.timing import median_ratio, percentile

__all__ = ["measure"]

TARGET = 1.25
TASKS = ("interrupted", "retried", "retried_late")

Rounds = list[list[float]]


def measure(quick: bool) -> Figure:
    """Stop tasks a hundred times each, alternating between interruptions and ``self.retry``."""
    with private_site() as site, site.worker("steps") as worker:
        worker.wait_until_ready()
        for task in TASKS:
            _leave(site, task, 20)  # connections and caches
        gaps: dict[str, Rounds] = {task: [] for task in TASKS}
        for _ in range(3 if quick else 10):
            for task, rounds in gaps.items():
                rounds.append(_leave(site, task, 100))
    ours = gaps["interrupted"]
    return Figure(
        "from the raise that ends an execution to the first line of the next",
        f"{len(ours)} interleaved rounds of 100 on one worker: p50 and p99, and the median of the rounds' ratios.",
        [
            _row(ours, gaps["retried"], "self.retry(countdown=0)"),
            _row(ours, gaps["retried_late"], "self.retry, acks_late as ours", TARGET),
        ],
    )


def _leave(site: Site, task: str, times: int) -> list[float]:
    gaps: list[float] = site.send(task, times).get(timeout=120)
    if len(gaps) != times:
        raise AssertionError(f"{task} has left {len(gaps)} times, not {times}")
    return gaps


def _row(ours: Rounds, theirs: Rounds, floor_name: str, target: float | None = None) -> Row:
    ratio = median_ratio(map(median, ours), map(median, theirs))
    return Row(
        "an interruption",
        _show(ours),
        f"{_show(theirs)} {floor_name}",
        f"x {ratio:.2f}",
        f"x {target}" if target else "",
        ratio <= target if target else None,
    )


def _show(rounds: Rounds) -> str:
    every = [gap for gaps in rounds for gap in gaps]
    return f"{median(every) * 1e3:.1f} ms (p99 {percentile(every, 0.99) * 1e3:.1f})"
