"""Recovery time after a worker or a pool process is killed: seconds from kill -9 to the task's next item."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple

from benchmarks.more_servers import private_rabbitmq
from benchmarks.report import Figure, Row
from benchmarks.servers import Site, Worker, private_site

__all__ = ["measure"]

TARGET, CHILD_TARGET = 15.0, 2.0

# Items before the kill: more than one checkpoint_interval, so that progress has been saved.
BEFORE = 30

# Seconds after which a task counts as lost.
PATIENCE = 60.0

Waits = list[float | None]


def measure(quick: bool) -> Figure:
    """Kill workers and pool children of continuable and plain tasks, on each broker."""
    times, patience = (1, 20) if quick else (3, 60)
    with private_site() as site, private_rabbitmq() as amqp:
        sites = {
            "Redis": site,
            "RabbitMQ": site.with_conf(broker_url=amqp),
            "filesystem": site.with_conf(**_filesystem(site)),
        }
        plain = _wait_for_plain(sites, patience)
        rows = []
        for broker, where in sites.items():
            floor = f"{_show([plain[broker]], patience)} plain Celery"
            here = [_lose_worker(where) for _ in range(times)]
            elsewhere = [_lose_worker(where, elsewhere=True) for _ in range(times)]
            rows += [
                _row(f"{broker}: worker, death provable", here, floor, TARGET),
                _row(f"{broker}: worker, as if on another machine", elsewhere, floor, TARGET),
            ]
        for broker, where in sites.items():
            ours = [_lose_child(where, "steps", "continuable_items") for _ in range(times)]
            theirs = [_lose_child(where, "plain", "plain_items") for _ in range(times)]
            floor = f"{_show(theirs, PATIENCE)} plain Celery"
            rows.append(_row(f"{broker}: pool child", ours, floor, CHILD_TARGET))
    return Figure(
        "from kill -9 to the task's next item on another process",
        f"Medians of {times}, with the range. All settings are the defaults (lease 10 s, sweep 3 s), the queue is "
        "empty, and the other worker, or the other slot of the pool, is idle. The other worker has just been "
        "started, so that it judges no lease for its first 10 s, the worst case. Plain Celery has acks_late and "
        "reject_on_worker_lost, starts over at item 0, and was measured once per broker for a killed worker; on Redis "
        "its message is hidden for the visibility timeout, an hour, which was not waited for here.",
        rows,
    )


def _filesystem(site: Site) -> dict[str, Any]:
    folders = {}
    for name in ("queue", "processed", "control", "results"):
        folders[name] = site.folder / name
        folders[name].mkdir()
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            "data_folder_in": str(folders["queue"]),
            "data_folder_out": str(folders["queue"]),
            "processed_folder": str(folders["processed"]),
            "control_folder": str(folders["control"]),
        },
        "result_backend": f"file://{folders['results']}",
    }


class Item(NamedTuple):
    """An item that was done: which one, when, and by which process."""

    hostname: str
    pid: int
    number: int
    at: float


class Running:
    """A task that does items.

    Args:
        site: where.
        task: its name.
        queue: its queue.
    """

    def __init__(self, site: Site, task: str, queue: str) -> None:
        self._site = site
        self._result: Any = site.send(task, queue=queue)
        self.first = self._next()

    def work(self) -> None:
        """Return once the task has done enough items to have saved progress."""
        for _ in range(BEFORE):
            self._next()

    def lose(self, kill: Callable[[], None]) -> float:
        """Kill a process; return the time."""
        killed_at = time.monotonic()
        kill()
        return killed_at

    def back_at(self, until: float) -> Item | None:
        """Return the first item that another process does, or None on timeout."""
        while True:
            left = until - time.monotonic()
            item = self._find(left) if left > 0 else None
            if item is None or item[:2] != self.first[:2]:
                return item

    def end(self) -> None:
        """Let it end."""
        self._site.redis.set(f"enough:{self._result.id}", 1)
        self._result.get(timeout=60)

    def _next(self) -> Item:
        item = self._find(60)
        if item is None:
            raise TimeoutError("the task does not get on")
        return item

    def _find(self, within: float) -> Item | None:
        found: Any = self._site.redis.blpop([f"items:{self._result.id}"], timeout=within)
        return Item(*json.loads(found[1])) if found else None


@contextmanager
def _killed_worker(site: Site, app: str, task: str, *, elsewhere: bool = False) -> Iterator[tuple[Running, float]]:
    """Let a worker begin a task, start a second, idle worker, and kill the first."""
    queue = f"q{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:

        def start(name: str) -> Worker:
            worker = site.worker(app, queue, name=name, elsewhere=elsewhere and name == "busy")
            return stack.enter_context(worker)

        busy = start("busy")
        site.wait_for_start("worker busy")
        running = Running(site, task, queue)
        start("idle")
        site.wait_for_start("worker idle")
        running.work()
        yield running, running.lose(busy.kill)


def _lose_worker(site: Site, *, elsewhere: bool = False) -> float | None:
    with _killed_worker(site, "steps", "continuable_items", elsewhere=elsewhere) as (running, killed_at):
        return _wait(running, killed_at, continues=True)


def _lose_child(site: Site, app: str, task: str) -> float | None:
    queue = f"q{uuid.uuid4().hex[:8]}"
    with site.worker(app, queue, concurrency=2):
        site.wait_for_start(f"worker {queue}")
        running = Running(site, task, queue)
        running.work()
        killed_at = running.lose(lambda: os.kill(running.first.pid, signal.SIGKILL))
        return _wait(running, killed_at, continues=app == "steps")


def _wait(running: Running, killed_at: float, *, continues: bool) -> float | None:
    item = running.back_at(killed_at + PATIENCE)
    if item is None:
        return None
    if bool(item.number) != continues:
        raise AssertionError(f"the task is back at item {item.number}")
    running.end()
    return item.at - killed_at


def _wait_for_plain(sites: dict[str, Site], patience: float) -> dict[str, float | None]:
    """Kill a worker of plain tasks on each broker, and wait for all brokers at once."""
    found: dict[str, float | None] = {}
    with ExitStack() as stack:
        lost = {
            broker: stack.enter_context(_killed_worker(site, "plain", "plain_items")) for broker, site in sites.items()
        }
        for broker, (running, killed_at) in lost.items():
            item = running.back_at(killed_at + patience)
            found[broker] = item.at - killed_at if item else None
            if item:
                running.end()
    return found


def _row(what: str, waits: Waits, floor: str, target: float) -> Row:
    met = all(wait is not None and wait <= target for wait in waits)
    return Row(what, _show(waits, PATIENCE), floor, "", f"at most {target:.0f} s", met)


def _show(waits: Waits, patience: float) -> str:
    seconds = [wait for wait in waits if wait is not None]
    if len(seconds) < len(waits):
        return f"not back within {patience:.0f} s"
    if len(seconds) == 1:
        return f"{seconds[0]:.1f} s"
    return f"{median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f})"
