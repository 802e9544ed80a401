"""The time of a task that waits for many others, beside a plain group of the same tasks."""

from __future__ import annotations

import time
from statistics import median

from celery import group

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from celery_continuations import ContinuableAsyncResult

__all__ = ["measure"]

TARGET = 1.2
CHILDREN = 10_000
WARM_UP = 100


def measure(quick: bool) -> Figure:
    """Run the group and the parent in turn."""
    count, rounds = (1_000, 2) if quick else (CHILDREN, 3)
    with private_site() as site, site.worker("steps", concurrency=4) as worker:
        worker.wait_until_ready()
        _time_group(site, WARM_UP), _time_parent(site, WARM_UP)  # each process opens its store
        pairs = [(_time_group(site, count), _time_parent(site, count)) for _ in range(rounds)]
    groups, parents = [taken for taken, _ in pairs], [taken for _, (taken, *_) in pairs]
    ratio = median(parents) / median(groups)
    size = max(size for _, (_, size, _) in pairs)
    executions = max(executions for _, (_, _, executions) in pairs)
    return Figure(
        f"wait_for_results with {count:,} empty children",
        f"Medians of {rounds} runs on one worker with four processes, on Redis, beside the get() of a group that a "
        "client sends. The parent's snapshot is read while its children run.",
        [
            Row(
                "from the call to the results",
                f"{median(parents):.1f} s",
                f"{median(groups):.1f} s group",
                f"x {ratio:.2f}",
                f"at most x {TARGET}",
                ratio <= TARGET,
            ),
            Row("the parent's snapshot", f"{size:,} B"),
            Row("executions of the parent", f"{executions}"),
        ],
    )


def _time_group(site: Site, count: int) -> float:
    began = time.monotonic()
    result = group(site.client.signature("nothing") for _ in range(count)).apply_async()
    found = len(result.get(timeout=600))
    taken = time.monotonic() - began
    assert found == count
    site.redis.flushdb()
    return taken


def _time_parent(site: Site, count: int) -> tuple[float, int, int]:
    """Return the seconds, the largest size of the snapshot that was seen, and the number of executions."""
    began = time.monotonic()
    sent = site.send("children", count)
    seen = ContinuableAsyncResult(sent.id, app=site.client)
    size = 0
    while not sent.ready():
        record = seen.record()
        size = max(size, len(record.snapshot or "") if record else 0)
        time.sleep(0.1)
    taken = time.monotonic() - began
    found, executions = sent.get()
    assert found == count
    return taken, size, executions
