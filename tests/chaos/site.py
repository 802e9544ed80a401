"""Private servers, behind proxies, and workers on them."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from celery import Celery

from tests.chaos.checks import Line
from tests.support import servers
from tests.support.cluster import ROOT, filesystem_conf
from tests.support.processes import LocalProcess
from tests.support.proxy import Proxy

BROKERS = ("redis", "rabbitmq", "filesystem")

# In Celery, a task fails if its callback cannot be published, so publishing must be retried longer than a fault lasts.
# It must stop before the run does: until then, a killed execution may hold the claim on a chord's body.
_PUBLISHING = {"max_retries": 20, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.3}

# A killed worker's messages return to Redis's queue after this many seconds.
_VISIBILITY = {"visibility_timeout": 6, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


class Site:
    """Servers, workers and a client; all of it ends with the ``with`` block.

    Args:
        broker: one of ``BROKERS``.
        folder: for files and logs.
        conf: Celery's settings.
    """

    def __init__(self, broker: str, folder: Path, conf: dict[str, Any]) -> None:
        self.folder = folder
        self.trace = folder / "trace"
        self.trace.touch()
        self.workers: list[LocalProcess] = []
        self.broker: Proxy | None = None
        self.store: Proxy | None = None
        self._stack = ExitStack()
        try:
            self._conf = {
                "task_default_queue": f"q{uuid.uuid4().hex[:8]}",
                "worker_prefetch_multiplier": 1,
                "worker_hijack_root_logger": False,
                "broker_connection_retry_on_startup": True,
                "task_publish_retry_policy": _PUBLISHING,
                "broker_connection_timeout": 2,
                "continuation_namespace": uuid.uuid4().hex,
                **(filesystem_conf(folder) if broker == "filesystem" else self._servers(broker)),
                **conf,
            }
        except BaseException:
            self._stack.close()
            raise
        self.client = Celery("chaos-client", set_as_current=False)
        self.client.conf.update(self._conf)
        # Celery's results unsubscribe when they are collected, even if the server has stopped.
        self.client.backend.remove_pending_result = lambda result: result

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *args: object) -> None:
        for worker in self.workers:
            worker.end(timeout=0)
        if "Redis" in type(self.client.backend).__name__:
            self.client.backend.result_consumer.stop()
            self.client.backend.client.connection_pool.disconnect()
        self.client.close()
        self._stack.close()

    def start_worker(self) -> LocalProcess:
        """Start a worker, and return at once."""
        argv = [
            str(Path(sys.executable).parent / "celery"), "-A", "tests.chaos.project", "worker", "-l", "INFO", "-c", "2",
            "-n", "%h@chaos", "--without-mingle", "--without-gossip",
        ]  # fmt: skip
        env = {
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "CHAOS_CONF": json.dumps(self._conf),
            "CHAOS_TRACE": str(self.trace),
        }
        self.workers.append(LocalProcess(argv, self.folder, name=f"worker{len(self.workers)}", env=env))
        return self.workers[-1]

    def lines(self) -> list[Line]:
        """Return the trace so far."""
        return [Line.parse(text) for text in self.trace.read_text().splitlines()]

    def at_work(self) -> set[int]:
        """Return the processes that are running a task."""
        last = {line.pid: line for line in self.lines()}
        return {
            pid for pid, line in last.items() if line.words[0] in ("item", "page") and line.at > time.monotonic() - 0.1
        }

    def _servers(self, broker: str) -> dict[str, Any]:
        redis = self._run(servers.start_redis(self.folder))
        self.store = self._proxy(redis)
        conf: dict[str, Any] = {
            "result_backend": f"redis://127.0.0.1:{redis.port}/1",
            "continuation_store": f"redis://127.0.0.1:{self.store.port}/2",
        }
        if broker == "redis":
            self.broker = self._proxy(redis)
            return {
                **conf,
                "broker_url": f"redis://127.0.0.1:{self.broker.port}/0",
                "broker_transport_options": _VISIBILITY,
            }
        epmd = self._run(servers.start_epmd(self.folder))
        folder = self.folder / "rabbitmq"
        folder.mkdir()
        self.broker = self._proxy(self._run(servers.start_rabbitmq(folder, epmd)))
        return {
            **conf,
            "broker_url": f"amqp://guest:guest@127.0.0.1:{self.broker.port}//",
            "broker_transport_options": {
                "confirm_publish": True
            },  # otherwise messages that Celery sends during a cut are lost
        }

    def _run(self, server: LocalProcess) -> LocalProcess:
        self._stack.callback(server.end, 5)
        return server

    def _proxy(self, server: LocalProcess) -> Proxy:
        assert server.port is not None
        proxy = Proxy(server.port)
        self._stack.callback(proxy.close)
        return proxy


def children_of(pid: int) -> list[int]:
    """Return the processes that a worker's main process has forked."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # has just ended
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry))
    return found
