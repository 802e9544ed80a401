"""The cost of waiting tasks for a worker: its memory, and its traffic with the servers."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, private_site, wait_until
from celery_continuations import ContinuableAsyncResult

__all__ = ["measure"]

TARGET = 0.02
WAITING = 1_000

# Less than the maintenance tick, so that each tick sweeps: otherwise the number of sweeps in a window would vary.
INTERVAL = 0.2
CONF = {"continuation_sweep_interval": INTERVAL, "continuation_lease": 8}


class Cost(NamedTuple):
    """The cost of an idle worker in a window of time."""

    commands: float
    bytes: float
    memory: int


FIELDS = Cost._fields


def measure(quick: bool) -> Figure:
    """Measure an idle worker, make tasks wait, and measure it again."""
    seconds, windows = (5.0, 2) if quick else (20.0, 3)
    with private_site() as plain_site:
        site = plain_site.with_conf(**CONF)
        with site.worker("steps") as worker:
            worker.wait_until_ready()
            pid = site.wait_for_start("worker celery")
            _wait(site, WAITING)  # what a worker allocates once, for tasks that ran, is not a cost of waiting
            _deliver_and_forget(site)
            none = [_watch(site, pid, seconds) for _ in range(windows)]
            _wait(site, WAITING)
            many = [_watch(site, pid, seconds) for _ in range(windows)]
    return Figure(
        f"an idle worker: {WAITING:,} tasks waiting beside none",
        f"Medians of {windows} windows of {seconds:.0f} s. All that Redis is asked, as broker and as store, with a "
        "sweep every quarter of a second, a dozen times as often as by default; the memory is "
        "the RSS of the main process. As many tasks have run before.",
        [_row(name, [getattr(one, name) for one in none], [getattr(one, name) for one in many]) for name in FIELDS],
    )


def _row(name: str, none: list[float], many: list[float]) -> Row:
    before, after = median(none), median(many)
    change = after / before - 1
    unit, scale = {"commands": ("/s", 1.0), "bytes": (" B/s", 1.0), "memory": (" MB", 1e6)}[name]
    return Row(
        name,
        f"{after / scale:,.1f}{unit}",
        f"{before / scale:,.1f}{unit}",
        f"{change:+.1%}",
        f"within {TARGET:.0%}",
        abs(change) <= TARGET,
    )


def _wait(site: Site, count: int) -> None:
    """Make `count` tasks wait."""
    site.redis.delete("waiting")
    site.send_many("waiting", count, "celery")
    wait_until(lambda: site.redis.scard("waiting") == count and not site.redis.llen("celery"), "the tasks have begun")
    last = [ContinuableAsyncResult(one.decode(), app=site.client) for one in site.redis.smembers("waiting")]
    wait_until(lambda: all(one.status_of_record == "waiting" for one in last), "the tasks wait")


def _deliver_and_forget(site: Site) -> None:
    """Remove the waiting tasks, and all their data in Redis."""
    ids = [one.decode() for one in site.redis.smembers("waiting")]
    for one in ids:
        ContinuableAsyncResult(one, app=site.client).cancel()
    site.redis.delete("waiting")


def _watch(site: Site, pid: int, seconds: float) -> Cost:
    """Return the worker's traffic with Redis per second, and its memory at the end."""
    before, began = _asked(site), time.monotonic()
    time.sleep(seconds)
    after, took = _asked(site), time.monotonic() - began
    return Cost(*((late - early) / took for late, early in zip(after, before, strict=True)), _memory(pid))


def _asked(site: Site) -> tuple[float, float]:
    info = site.redis.info("stats")
    return info["total_commands_processed"], info["total_net_input_bytes"] + info["total_net_output_bytes"]


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)
