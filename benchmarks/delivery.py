"""How soon a waiting task continues: the time from a delivery to the code after the wait."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site, wait_until
from benchmarks.timing import percentile
from celery_continuations import ContinuableAsyncResult

__all__ = ["measure"]

TARGET = 1.5


def measure(quick: bool) -> Figure:
    """Alternate between deliveries to waiting tasks and calls of plain tasks."""
    rounds = 50 if quick else 300
    with private_site() as site, site.worker("steps") as worker:
        worker.wait_until_ready()
        for _ in range(10):  # connections and caches
            _resumption(site)
            _round_trip(site)
        pairs = [(_resumption(site), _round_trip(site)) for _ in range(rounds)]
    resumed, trips = (list(one) for one in zip(*pairs, strict=True))
    ratio = median(resumed) / median(trips)
    return Figure(
        "from a delivery to the code behind the wait, on Redis",
        f"Medians of {rounds} interleaved calls, each to an idle worker. The round trip is that of a plain task of "
        "the same app, from apply_async until its result has come.",
        [
            Row(
                "p50",
                f"{median(resumed) * 1e3:.1f} ms",
                f"{median(trips) * 1e3:.1f} ms round trip",
                f"x {ratio:.2f}",
                f"x {TARGET}",
                ratio <= TARGET,
            ),
            Row(
                "p99",
                f"{percentile(resumed, 0.99) * 1e3:.1f} ms",
                f"{percentile(trips, 0.99) * 1e3:.1f} ms round trip",
                f"x {percentile(resumed, 0.99) / percentile(trips, 0.99):.2f}",
            ),
        ],
    )


def _resumption(site: Site) -> float:
    """Return the seconds from the call of deliver to the code after the wait."""
    sent = site.send("answering")
    result = ContinuableAsyncResult(sent.id, app=site.client)
    wait_until(lambda: result.status_of_record == "waiting", "the task waits")
    time.sleep(0.02)  # the worker acknowledges its message
    began = time.time()
    result.deliver("answer", "yes")
    return float(sent.get(timeout=60)) - began


def _round_trip(site: Site) -> float:
    time.sleep(0.02)
    began = time.time()
    site.send("nothing").get(timeout=60)
    return time.time() - began
