"""A private redis-server, and workers on it; each stops at the end of its ``with`` block."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from subprocess import STDOUT, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any

from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

__all__ = ["CONF", "FOLDER", "MACHINE", "REDIS", "Site", "Worker", "connect", "private_site", "wait_until"]

#: The environment variables that give the tasks their server, their folder, the configuration of their apps, and the
#: machine that they pretend to run on.
REDIS, FOLDER, CONF, MACHINE = "BENCHMARKS_REDIS", "BENCHMARKS_FOLDER", "BENCHMARKS_CONF", "BENCHMARKS_MACHINE"

REPOSITORY = Path(__file__).resolve().parent.parent

# At its start, a worker spends seconds on discovering other workers.
QUIET_WORKER = (
    "--pool=prefork",
    "--without-mingle",
    "--without-gossip",
    "--without-heartbeat",
    "--loglevel=WARNING",
)

# A PID namespace of its own: to other workers, its processes belong to another machine.
ELSEWHERE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


class Site:
    """A Redis server and a folder, both for one measurement.

    Args:
        url: of the server.
        folder: for files.
        conf: of the apps, if the server is not their broker, result backend and store.
    """

    def __init__(self, url: str, folder: Path, **conf: Any) -> None:
        self.url = url
        self.folder = folder
        self.redis = connect(url)
        # The client is an app with another name, and must find the records of the workers' app.
        conf = {"broker_url": url, "result_backend": url, "continuation_namespace": "benchmark", **conf}
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(conf)
        self._environment = {REDIS: url, FOLDER: str(folder), CONF: json.dumps(conf)}

    def with_conf(self, **conf: Any) -> Site:
        """Return a site on the same server and folder with another configuration of the apps."""
        return Site(self.url, self.folder, **conf)

    def send(self, task: str, *args: Any, queue: str = "celery") -> Any:
        """Publish a task by its name; return its AsyncResult."""
        return self.client.send_task(task, args, queue=queue)

    def send_many(self, task: str, times: int, queue: str) -> None:
        """Publish the same task many times, over one connection."""
        with self.client.producer_or_acquire() as producer:
            for _ in range(times):
                self.client.send_task(task, queue=queue, producer=producer, ignore_result=True)

    def wait_for_start(self, task: str) -> int:
        """Return the pid that a task of that name reports when it starts, or a worker when it is ready."""
        found: Any = self.redis.blpop([f"started:{task}"], timeout=60)
        if not found:
            raise TimeoutError(f"{task} does not start")
        return int(found[1])

    def worker(
        self,
        app: str,
        queue: str = "celery",
        *,
        name: str = "",
        concurrency: int = 1,
        elsewhere: bool = False,
        **environment: str,
    ) -> Worker:
        """Start a worker of ``benchmarks.tasks:<app>`` that consumes ``queue``.

        Args:
            app: its app.
            queue: its queue.
            name: of the worker, by default the queue's.
            concurrency: children of its pool.
            elsewhere: run it so that other workers cannot prove its death.
            environment: of its process.
        """
        options = [f"--hostname={name or queue}@%h", f"--queues={queue}", f"--concurrency={concurrency}"]
        prefix: tuple[str, ...] = ()
        if elsewhere and _has_namespaces():
            prefix = ELSEWHERE
        elif elsewhere:
            environment[MACHINE] = f"as-if-{name}"
        return Worker(self, app, queue, options, {**os.environ, **self._environment, **environment}, prefix)


class Worker:
    """A prefork worker.

    Args:
        site: where its broker is.
        app: the name of the app in ``benchmarks.tasks``.
        queue: that it consumes.
        options: of its command line.
        environment: of its process.
        prefix: what its command line begins with.
    """

    def __init__(
        self,
        site: Site,
        app: str,
        queue: str,
        options: list[str],
        environment: dict[str, str],
        prefix: tuple[str, ...] = (),
    ) -> None:
        self._site = site
        self._queue = queue
        self._log = site.folder / f"{app}-{queue}.log"
        command = [*prefix, sys.executable, "-m", "celery", "-A", f"benchmarks.tasks:{app}", "worker", *QUIET_WORKER]
        with self._log.open("ab") as log:
            self._process = Popen(
                [*command, *options],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return once it has run a task."""
        ready = self._site.send("clocks", queue=self._queue)
        wait_until(lambda: ready.ready() or self._check(), "the worker runs a task")

    def kill(self) -> None:
        """Send SIGKILL to all its processes at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._process.terminate()

    def stop(self) -> float:
        """Send it SIGTERM and wait for its exit; return the seconds that took."""
        began = time.monotonic()
        self.terminate()
        self._process.wait(timeout=60)
        return time.monotonic() - began

    def _check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"a worker has ended with {self._process.returncode}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _end(self._process)
        if isinstance(error, Exception):
            print(self._log.read_text(), file=sys.stderr)  # the folder is about to be removed


def connect(url: str) -> Redis:
    """Return a client that waits for the timeout of a blocking command, not for redis-py's few seconds."""
    return Redis.from_url(url, socket_timeout=120)


@contextmanager
def private_site() -> Iterator[Site]:
    """Run a private redis-server on a free port, in a folder of its own."""
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        port = _free_port()
        options = ("--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no")
        with open(Path(folder, "redis.log"), "wb") as log:
            server = Popen(["redis-server", *options], stdout=log, stderr=STDOUT, start_new_session=True)
        try:
            site = Site(f"redis://127.0.0.1:{port}/0", Path(folder))
            wait_until(lambda: _answers(site.redis), "redis-server answers")
            yield site
        finally:
            _end(server)


@cache
def _has_namespaces() -> bool:
    try:
        return subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return once ``condition`` is true; raise TimeoutError, naming ``what``, if that takes too long."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.01)


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisConnectionError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: Popen[bytes]) -> None:
    """Terminate a process, and kill it if it does not exit."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=15)
    except TimeoutExpired:
        process.kill()
        process.wait()
