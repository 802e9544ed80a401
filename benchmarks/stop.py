"""How long a worker takes to stop: seconds from SIGTERM to its exit."""

from __future__ import annotations

import random
import time
from statistics import median

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site

__all__ = ["measure"]

MORE_SECONDS = 0.3


def measure(quick: bool) -> Figure:
    """Stop an idle worker and one in the middle of a long continuable task, repeatedly."""
    idle: list[float] = []
    busy: list[float] = []
    with private_site() as site:
        for turn in range(3 if quick else 10):
            for working in (True, False) if turn % 2 else (False, True):
                (busy if working else idle).append(_seconds_to_exit(site, working))
    more = median(busy) - median(idle)
    return Figure(
        "from SIGTERM to the exit of a prefork worker",
        f"Medians of {len(idle)} interleaved workers each; the task's items take 10 ms.",
        [
            Row(
                "with a one-minute continuable task",
                _show(busy),
                f"{_show(idle)} idle",
                f"{more:+.2f} s",
                f"at most +{MORE_SECONDS} s",
                more <= MORE_SECONDS,
            )
        ],
    )


def _seconds_to_exit(site: Site, working: bool) -> float:
    site.redis.flushdb()  # the previous worker's task and its record: otherwise a sweep would publish it again
    with site.worker("steps") as worker:
        worker.wait_until_ready()
        if working:
            site.send("long")
            site.wait_for_start("long")
        # Real stops come at any point of the event loop's one-second poll.
        time.sleep(random.uniform(0.3, 1.3))
        seconds = worker.stop()
    if site.redis.llen("celery") != working:
        raise AssertionError("the task was not handed over")
    return seconds


def _show(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
