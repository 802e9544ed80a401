"""How much work is done over: rows done for each row needed, while the worker is restarted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from benchmarks.report import Figure, Row
from benchmarks.servers import Site, Worker, private_site

__all__ = ["measure"]

ROWS = 1_000_000

# Seconds that a worker may work until it is stopped; all rows take five times as long.
EVERY = 3.0


def measure(quick: bool) -> Figure:
    """Run a task of a million rows through restarts of its worker, as a continuable task and as a plain one."""
    restarts = 3 if quick else 4
    with private_site() as site:
        continuable = Rows(site, "steps", "continuable_rows")
        continuable.run_through(restarts)
        continuable.finish()
        plain = Rows(site, "plain", "plain_rows", REMAP_SIGTERM="SIGQUIT")
        plain.run_through(restarts)
        ours, theirs = continuable.count(), plain.count()
    return Figure(
        f"{ROWS:,} rows, the worker restarted {restarts} times, {EVERY:.0f} s after it has begun to work",
        "Plain Celery has acks_late and cold restarts (REMAP_SIGTERM=SIGQUIT), since a warm one would wait for the "
        f"whole task. It begins at row 0 each time and never finishes: stopped after {restarts} restarts, it had done "
        f"{theirs.done:,} rows, {theirs.different:,} different ones.",
        [
            Row(
                "rows done for each row needed",
                f"{ours.done / ROWS:.3f}",
                "never finishes, plain Celery",
                "",
                "1.000",
                ours == (ROWS, ROWS),
            )
        ],
    )


class Count(NamedTuple):
    """Rows done, and how many different ones."""

    done: int
    different: int


class Rows:
    """A task that does rows, and a file that counts in a byte for each how often it was done.

    Args:
        site: where it runs.
        app: whose task it is.
        task: its name.
        environment: of its workers.
    """

    def __init__(self, site: Site, app: str, task: str, **environment: str) -> None:
        self._site = site
        self._app = app
        self._task = task
        self._environment = environment
        self._path = site.folder / f"{task}.counts"
        self._path.write_bytes(bytes(ROWS))
        self._result: Any = site.send(task, str(self._path), queue=app)

    def run_through(self, restarts: int) -> None:
        """Stop its worker so many times."""
        for _ in range(restarts):
            with self._worker() as worker:
                self._site.wait_for_start(self._task)
                time.sleep(EVERY)
                worker.stop()

    def finish(self) -> None:
        """Let a worker do the rest."""
        with self._worker():
            self._result.get(timeout=300)

    def count(self) -> Count:
        """Count what has been done."""
        counts = self._path.read_bytes()
        return Count(sum(counts), len(counts) - counts.count(0))

    def _worker(self) -> Worker:
        return self._site.worker(self._app, self._app, **self._environment)
