"""The size of a record in Redis: bytes, as MEMORY USAGE counts them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.stores.redis import RedisStore

__all__ = ["measure"]

TARGET = 300
CHECKPOINTS = 10_000

RECORD, KEPT = "continuation", "continuation-kept"


def measure(quick: bool) -> Figure:
    """Let a task measure its own record, and fill the index."""
    with private_site() as site:
        with site.worker("steps") as worker:
            worker.wait_until_ready()
            first, last = site.send("sized", CHECKPOINTS).get(timeout=120)
        owned, due, one = _index_entries(site, 1_000 if quick else 10_000)
    growth = last[RECORD] - first[RECORD]
    return Figure(
        "bytes in Redis of one running task",
        "MEMORY USAGE, in a worker: one step over a range, so a snapshot of a step, an int cursor and progress, of "
        "which only the digits grow. An entry of the index is its share of one with many; a task has one of them.",
        [
            _row(f"record, after {CHECKPOINTS:,} checkpoints", last[RECORD], TARGET),
            Row("more than after 1 checkpoint", f"{growth:+,}", "", "", "at most +16, digits", growth <= 16),
            _row("kept beside it: the message", last[KEPT]),
            _row("in the index, of a running one: owner", owned),
            _row("the same, where its worker owns no other", one),
            _row("in the index, of a queued one: due time", due),
        ],
    )


def _row(what: str, size: float, target: int | None = None) -> Row:
    return Row(
        what,
        f"{size:,.0f}",
        "",
        "",
        f"at most {target}" if target else "",
        size <= target if target else None,
    )


def _index_entries(site: Site, count: int) -> tuple[float, float, int]:
    """Return the bytes per entry of the owned index and of the due index, and the size of a single entry."""
    store = RedisStore(site.redis, "benchmark")

    def usage(pattern: str) -> int:
        return max(_usages(site, pattern))

    worker = "0123abcd.12345.67890123.4567"
    for number in range(count):
        # each execution has an owner of its own
        running = Fence(1, Status.RUNNING, f"{worker}/{12346 + number % 8}.67890124/{number:06x}")
        store.compare_and_swap(str(uuid.uuid4()), None, Update(running))
        if number == 0:
            one = usage("continuations:*:owned:*")
        store.compare_and_swap(str(uuid.uuid4()), None, Update(Fence(1, Status.QUEUED), due_in=3600))
    return usage("continuations:*:owned:*") / count, usage("continuations:*:due") / count, one


def _usages(site: Site, pattern: str) -> Iterator[int]:
    for key in site.redis.scan_iter(pattern, count=10_000):
        size: Any = site.redis.memory_usage(key, samples=0)
        yield size
