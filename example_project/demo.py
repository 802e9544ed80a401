"""An import that waits for an approval while no worker runs, and resumes where another worker was stopped.

Run it with ``python demo.py``. It needs celery-continuations[demo], and no server;
with ``BROKER_URL=redis://127.0.0.1:6379/0`` or an ``amqp://`` URL it uses that one.
It exits with 0 only if every row was imported, none of them twice.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from kombu.exceptions import OperationalError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from celery_continuations import Interrupted

if TYPE_CHECKING:
    from celery import Celery

    from celery_continuations import ContinuableAsyncResult

HERE = Path(__file__).resolve().parent

#: Rows per batch, and seconds after each batch: the whole import takes about ten seconds.
BATCH, PAUSE = 200, 0.06

#: The share of the rows after which the second worker is stopped.
STOP_AT = 0.4

#: Seconds between two checks of a condition, and until an unmet condition is an error.
LOOK_EVERY, PATIENCE = 0.05, 40.0

STEPS = ("validate", "ask", "approval", "import", "index", "settle", "regions", "count", "report")

# The terminal wraps long lines, so that they stay whole in a file.
console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo failed; the message says why."""


class Worker:
    """A Celery worker in a process of its own, stopped at the end of the ``with`` block.

    Args:
        name: the first part of its node name.
        folder: where its log is written.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "proj",
            "worker",
            "--concurrency=2",
            "--loglevel=INFO",
            f"--hostname={name}@%h",
        ]
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches only the demo, which then stops its worker.
            self._process = subprocess.Popen(
                command, cwd=HERE, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        console.print(f"[bold]{name}[/] started, process {self._process.pid}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *args: object) -> None:
        if self._process.poll() is not None:
            return
        console.print(f"Ending {self.name} …")
        try:
            self._process.terminate()
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            console.print(f"{self.name} did not stop within 10 s and was killed")
        finally:
            self._process.kill()
            self._process.wait()

    @property
    def running(self) -> bool:
        """Whether its process is running."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Send it SIGTERM, as a deploy does."""
        self._process.send_signal(signal.SIGTERM)

    def error(self, problem: str) -> DemoError:
        """Return an error that shows the end of the worker's log."""
        tail = self._log.read_text(errors="replace").splitlines()[-25:]
        return DemoError("\n".join([problem, f"The end of {self._log}:", *("  " + line for line in tail)]))


def main() -> int:
    """Run the demo; return its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    began = time.monotonic()
    try:
        with web_server() as server, run_folder() as folder:
            demonstrate(folder, server)
    except DemoError as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("The demo was interrupted; its worker has been ended.")
        return 130
    console.print(f"[bold green]All checks passed.[/] {time.monotonic() - began:.0f} s")
    return 0


@contextmanager
def run_folder() -> Iterator[Path]:
    """Make a folder for the table, the broker's files and the logs; it is kept after an error."""
    folder = Path(tempfile.mkdtemp(prefix="airports-"))
    # Read by proj.settings, here and in the workers.
    os.environ["AIRPORTS_FOLDER"] = str(folder)
    os.environ["AIRPORTS_QUEUE"] = f"airports-{uuid.uuid4().hex[:8]}"
    keep = False
    try:
        yield folder
    except Exception:
        keep = any(folder.glob("*.log"))
        raise
    finally:
        if not keep:
            shutil.rmtree(folder)


class QuietHandler(WSGIRequestHandler):
    """Answers requests without logging them."""

    def log_message(self, *args: object) -> None:
        """Do not log."""


@contextmanager
def web_server() -> Iterator[WSGIServer]:
    """Serve on a free port of this machine; set the application with ``set_app``."""
    with WSGIServer(("127.0.0.1", 0), QuietHandler) as server:
        # Read by proj.settings, here and in the workers.
        os.environ["AIRPORTS_CALLBACKS"] = f"http://127.0.0.1:{server.server_port}/callbacks"
        os.environ["AIRPORTS_SECRET"] = secrets.token_urlsafe(32)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def demonstrate(folder: Path, server: WSGIServer) -> None:
    """Import with three workers, one after the other, and check the outcome.

    Raises:
        DemoError: when anything differs from what is expected.
    """
    from proj.celery import app
    from proj.tasks import import_airports
    from proj.web import application

    console.print("A task imports the world's airports into SQLite. It waits for an approval, and is stopped midway.")
    check_broker(app)
    server.set_app(application)
    try:
        console.rule("1. The import asks for an approval, and waits", align="left")
        with Worker("worker1", folder) as worker:
            result = import_airports.delay(batch=BATCH, pause=PAUSE)
            console.print(f"import_airports sent, task id {result.id}")
            wait_until(lambda: result.status_of_record == "waiting", worker, "the import did not wait")
            console.print(f"[bold]{worker.name}[/] is free: a waiting task holds no worker")
            stop(worker)
        show_saved(result)
        approve()
        console.rule("2. It has been approved: another worker imports, and is stopped midway", align="left")
        with Worker("worker2", folder) as worker:
            follow(result, worker, stop_at=STOP_AT)
            stop_midway(result, worker)
        cursor = show_saved(result)
        console.rule("3. A third worker resumes there", align="left")
        with Worker("worker3", folder) as worker:
            follow(result, worker)
            if not result.successful():
                raise worker.error(f"The import ended as {result.state}: {result.result!r}")
            check(import_airports.AsyncResult(result.id), cursor)
    finally:
        remove_queue(app)


def approve() -> None:
    """Approve the import with the address from the mail, and check that a second answer is refused.

    Raises:
        DemoError: when an answer differs from what is expected.
    """
    from proj import settings

    mail = settings.mail.read_text()
    address = mail.splitlines()[-1]
    console.print("The mail that the import has sent:")
    for line in mail.splitlines():
        console.print(f"  {escape(line if len(line) < 100 else line[:97] + '...')}")
    for name, expected, remark in (
        ("ann", 204, "accepted, and kept until a worker runs"),
        ("ann", 204, "the same again changes nothing"),
        ("bob", 409, "refused: the wait has its outcome"),
    ):
        status = post(address, {"by": name})
        console.print(f'POST {{"by": "{name}"}}: [bold]{status}[/], {remark}')
        if status != expected:
            raise DemoError(f"{status} was answered, {expected} was expected")


def post(address: str, value: Any) -> int:
    """Post JSON; return the status of the answer."""
    request = urllib.request.Request(address, json.dumps(value).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine is reached without a proxy
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def check_broker(app: Celery) -> None:
    """Print which broker is used.

    Raises:
        DemoError: when it cannot be reached.
    """
    with app.connection_for_write() as connection:
        url = connection.as_uri()  # without the password
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
        except OperationalError as error:
            raise DemoError(f"The broker {url} cannot be reached: {error}") from error
        embedded = connection.transport.driver_type == "filesystem"
        console.print(f"Broker: {'files in a temporary folder, no server' if embedded else url}")


def remove_queue(app: Celery) -> None:
    """Delete the queues on the server, if it can still be reached."""
    with suppress(OperationalError), app.connection_for_write() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue].bind(connection.default_channel)
        queue.declare()  # a Redis connection deletes only the bindings that it has declared
        queue.delete()
        queue.exchange.delete()


def follow(result: ContinuableAsyncResult, worker: Worker, stop_at: float = math.inf) -> None:
    """Show the progress, and what the task waits for, until the share of rows is done or the task has ended.

    Raises:
        DemoError: when the task makes no progress in time.
    """
    deadline = time.monotonic() + PATIENCE
    done, total = 0, 0
    left = result.info
    with progress_display() as show:
        while not result.ready():
            progress, info = result.progress, result.info
            if progress is not None and progress.step == "import" and progress.total:
                done, total = progress.done or 0, progress.total
            elif "import" in result.steps:
                done = total
            show(done, total)
            if isinstance(info, Interrupted) and str(info) != str(left):
                left = info
                console.print(f"  the worker is free: {escape(str(info))}")
            if total and done >= stop_at * total:
                return
            if not worker.running:
                raise worker.error(f"{worker.name} ended by itself.")
            if time.monotonic() > deadline:
                raise worker.error(f"After {PATIENCE:.0f} s the import is at {done:,} rows, state {result.state}.")
            time.sleep(LOOK_EVERY)
        show(total, total)


@contextmanager
def progress_display() -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many of the rows are done: as a bar, or as lines without a terminal."""
    if not console.is_terminal:
        yield show_fifths()
        return
    columns = (TextColumn("  import"), BarColumn(40), TaskProgressColumn(), TextColumn("{task.fields[rows]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("import", total=None, rows="")
        yield lambda done, total: bar.update(task, completed=done, total=total, rows=f"{done:,} of {total:,} rows")


def show_fifths() -> Callable[[int, int], None]:
    """Return a function that prints a line for each fifth of the rows."""
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        fifths = 5 * done // total if total else 0
        if fifths > shown:
            shown = fifths
            console.print(f"  import {100 * done // total:>3} %  {done:,} of {total:,} rows")

    return show


def stop_midway(result: ContinuableAsyncResult, worker: Worker) -> None:
    """Stop the worker and print how long that took.

    Raises:
        DemoError: when the task does not stop at a checkpoint, or the worker does not exit.
    """
    if result.ready():
        raise worker.error(f"The import ended before its worker was stopped: {result.state}, {result.result!r}")
    began = time.monotonic()
    worker.stop()
    wait_until(lambda: result.state == "RETRY", worker, "the task did not leave the worker")
    left = time.monotonic() - began
    console.print(f"[bold]{worker.name}[/] was sent SIGTERM: the task was handed over after {left:.1f} s")
    wait_until(lambda: not worker.running, worker, "the worker did not stop")
    console.print(f"[bold]{worker.name}[/] exited after {time.monotonic() - began:.1f} s")


def stop(worker: Worker) -> None:
    """Stop a worker that has no task.

    Raises:
        DemoError: when it does not stop.
    """
    worker.stop()
    wait_until(lambda: not worker.running, worker, "the worker did not stop")
    console.print(f"[bold]{worker.name}[/] was stopped")


def wait_until(condition: Callable[[], bool], worker: Worker, problem: str) -> None:
    """Wait for a condition; raise DemoError if it stays false."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise worker.error(f"Within {PATIENCE:.0f} s {problem}.")
        time.sleep(LOOK_EVERY)


def show_saved(result: ContinuableAsyncResult) -> int:
    """Print the task's saved progress while no worker runs; return the number of rows in the table."""
    interrupted = result.info
    waiting = result.waiting
    with table() as db:
        (rows,) = db.execute("SELECT count(*) FROM airports").fetchone()
    console.print("No worker is running. What is saved of the task:")
    for name, value in (
        ("state", f"{result.state}, {interrupted}"),
        ("completed steps", ", ".join(result.steps)),
        ("waits for", f"{waiting.key!r}, until {time.ctime(waiting.until)}" if waiting else "a worker"),
        ("rows in the table", f"{rows:,}"),
    ):
        console.print(f"  {name:<17}  {escape(value)}")
    return rows


def check(result: ContinuableAsyncResult, cursor: int) -> None:
    """Compare the table with its source, and print each finding.

    Raises:
        DemoError: when one of them is wrong.
    """
    import airportsdata
    from proj import settings
    from proj.airports import COLUMNS

    source = airportsdata.load("ICAO")
    with table() as db:
        found = {
            row[0]: dict(zip(COLUMNS, row, strict=True))
            for row in db.execute(f"SELECT {', '.join(COLUMNS)} FROM airports")
        }
        workers = Counter(name.partition("@")[0] for (name,) in db.execute("SELECT imported_by FROM airports"))
        (twice,) = db.execute("SELECT count(*) FROM airports WHERE times_imported > 1").fetchone()
    returned = result.result
    findings = [
        (len(found) == len(source), f"{len(found):,} of {len(source):,} airports are in the table"),
        (found == source, "all their values are those of the source"),
        (twice == 0, f"{twice:,} were imported twice"),
        (
            workers == {"worker2": cursor, "worker3": len(source) - cursor},
            " and ".join(f"{rows:,} by {name}" for name, rows in sorted(workers.items())),
        ),
        (
            result.state == "SUCCESS" and returned["imported"] == len(source),
            f"{result.state} under the same task id {result.id}",
        ),
        (returned["approved_by"] == "ann", f"approved by {returned['approved_by']}"),
        (
            sum(returned["regions"].values()) == len(source),
            f"{len(returned['regions'])} tasks counted {sum(returned['regions'].values()):,} airports: "
            + ", ".join(f"{region} {number:,}" for region, number in returned["regions"].items()),
        ),
        (
            result.steps == STEPS,
            f"each step once: {', '.join(result.steps)}",
        ),
    ]
    console.print("Compared with the source, the package airportsdata:")
    for good, text in findings:
        console.print(f"  {'[green]ok[/]' if good else '[bold red]NO[/]'} {text}")
    if not all(good for good, _ in findings):
        raise DemoError(f"Not all checks passed. The table and the workers' logs are in {settings.run_folder}")


def table() -> AbstractContextManager[sqlite3.Connection]:
    """Open the database that the workers write to."""
    from proj.airports import connect

    return connect()


if __name__ == "__main__":
    sys.exit(main())
