"""Repeated work: rows done for each row needed, while the worker is restarted or its child is killed."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import groupby
from typing import Any, NamedTuple

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, Worker, private_site, wait_until

__all__ = ["measure"]

ROWS = 1_000_000

# Seconds that a worker runs before it is stopped; all rows take five times as long.
EVERY = 3.0

# Seconds between two kills of the child, on average; and how long all rows take then.
KILLED_EVERY = 5.0
LONG, QUICK = 50.0, 20.0

CHECKPOINT_INTERVAL = 1.0
TARGET = 1 + (CHECKPOINT_INTERVAL + 0.2) / KILLED_EVERY


def measure(quick: bool) -> Figure:
    """Run a task of a million rows through restarts of its worker, and through kills of its process."""
    restarts = 3 if quick else 4
    with private_site() as site:
        continuable = Rows(site, "steps", "continuable_rows", 5 * EVERY)
        continuable.run_through(restarts)
        continuable.finish()
        plain = Rows(site, "plain", "plain_rows", 5 * EVERY, REMAP_SIGTERM="SIGQUIT")
        plain.run_through(restarts)
        ours, theirs = continuable.count(), plain.count()
        seconds = QUICK if quick else LONG
        killed = Rows(site, "steps", "continuable_rows", seconds)
        kills = killed.finish_killed()
        through_kills = killed.count()
        del continuable, plain, killed  # collect the results now: they unsubscribe from the server
    rate = ROWS / seconds
    return Figure(
        f"{ROWS:,} rows; the worker restarted {restarts} times, or its child killed {kills} times",
        f"Restarted {EVERY:.0f} s after it has begun to work. "
        "Plain Celery has acks_late and cold restarts (REMAP_SIGTERM=SIGQUIT), since a warm one would wait for the "
        f"whole task. It begins at row 0 each time and never finishes: stopped after {restarts} restarts, it had done "
        f"{theirs.done:,} rows, {theirs.different:,} different ones. Killed with SIGKILL every {KILLED_EVERY:.0f} s, "
        "give or take half a second, or it would always be at the same point between two saves. The pool has a second "
        "slot, for Celery needs up to 5 s to replace a killed process, in which no work would be done.",
        [
            Row(
                "restarts: rows done for each row needed",
                f"{ours.done / ROWS:.3f}",
                "never finishes, plain Celery",
                "",
                "1.000",
                (ours.done, ours.different) == (ROWS, ROWS),
            ),
            Row(
                "kills: rows done for each row needed",
                f"{through_kills.done / ROWS:.3f}",
                "",
                "",
                f"at most {TARGET:.3f}",
                through_kills.different == ROWS and through_kills.done / ROWS <= TARGET,
            ),
            Row(
                "kills: most rows that one has repeated",
                f"{through_kills.longest:,}",
                f"{CHECKPOINT_INTERVAL * rate:,.0f} in a checkpoint_interval",
                f"{through_kills.longest / rate:.2f} s of work",
            ),
        ],
    )


class Count(NamedTuple):
    """Count the rows done, the distinct rows, and the longest run of rows done more than once."""

    done: int
    different: int
    longest: int


class Rows:
    """A task that does rows, and a file with one byte per row that counts how often the row was done.

    Args:
        site: where it runs.
        app: whose task it is.
        task: its name.
        seconds: that all rows take.
        environment: of its workers.
    """

    def __init__(self, site: Site, app: str, task: str, seconds: float, **environment: str) -> None:
        self._site = site
        self._app = app
        self._task = task
        self._environment = environment
        self._path = site.folder / f"{task}.counts"
        self._path.write_bytes(bytes(ROWS))
        self._result: Any = site.send(task, str(self._path), seconds / ROWS, queue=app)

    def run_through(self, restarts: int) -> None:
        """Stop its worker `restarts` times."""
        for _ in range(restarts):
            with self._worker() as worker:
                self._site.wait_for_start(self._task)
                time.sleep(EVERY)
                worker.stop()

    def finish(self) -> None:
        """Let a worker do the rest."""
        with self._worker():
            self._site.wait_for_start(self._task)
            self._result.get(timeout=300)

    def finish_killed(self) -> int:
        """Let a worker do all rows while its child is killed repeatedly; return the number of kills."""
        kills = 0
        with self._worker(concurrency=2):
            pid = self._site.wait_for_start(self._task)
            while True:
                time.sleep(random.uniform(KILLED_EVERY - 0.5, KILLED_EVERY + 0.5))
                if self._result.ready():
                    break
                os.kill(pid, signal.SIGKILL)
                kills += 1
                wait_until(self._has_started_or_ended, "the task is back")
                if self._result.ready():
                    break
                pid = self._site.wait_for_start(self._task)
        self._result.get(timeout=60)  # raises the task's error, if it failed
        return kills

    def _has_started_or_ended(self) -> bool:
        return self._site.redis.exists(f"started:{self._task}") or self._result.ready()

    def count(self) -> Count:
        """Count what has been done."""
        counts = self._path.read_bytes()
        stretches = (sum(1 for _ in stretch) for again, stretch in groupby(counts, lambda count: count > 1) if again)
        return Count(sum(counts), len(counts) - counts.count(0), max(stretches, default=0))

    def _worker(self, concurrency: int = 1) -> Worker:
        return self._site.worker(self._app, self._app, concurrency=concurrency, **self._environment)
