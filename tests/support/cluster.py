"""Workers in processes of their own, and a client for them."""

from __future__ import annotations

import gc
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from celery import Celery
from pytest_celery import CeleryTestWorker, CeleryWorkerContainer

from celery_continuations import ContinuableAsyncResult
from celery_continuations.stores.factory import stores_of
from tests.support import servers
from tests.support.processes import LocalProcess, await_condition

ROOT = Path(__file__).parents[2]


class Trace:
    """The record of what tasks have done, one line each: ``item pid``.  Written with O_APPEND, so lines stay whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self, word: str = "") -> list[list[str]]:
        rows = [line.split() for line in self.path.read_text().splitlines()]
        return [row for row in rows if not word or row[0] == word]

    def items(self, word: str = "item") -> list[int]:
        return [int(row[1]) for row in self.lines(word)]

    def await_items(self, count: int, word: str = "item") -> None:
        await_condition(lambda: len(self.lines(word)) >= count, f"{count} lines of {word!r} in the trace")


class Cluster:
    """Workers of one configuration, and a client for them."""

    def __init__(self, conf: dict[str, Any], folder: Path) -> None:
        self.conf = conf
        self.folder = folder
        self.trace = Trace(folder / "trace")
        self.processes: list[LocalProcess] = []
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(conf)

    def worker(self, *options: str, env: dict[str, str] | None = None, **conf: Any) -> LocalProcess:
        """Start a worker and wait until it is ready."""
        process = self.start_worker(*options, env=env, **conf)
        process.await_log(" ready.")
        return process

    def start_worker(self, *options: str, env: dict[str, str] | None = None, **conf: Any) -> LocalProcess:
        argv = ["-l", "INFO", "-n", "%h@test", "--without-mingle", "--without-gossip", *(options or ("-c", "1"))]
        return self.start("worker", *argv, env=env, **conf)

    def start(self, command: str, *options: str, env: dict[str, str] | None = None, **conf: Any) -> LocalProcess:
        """Start one of Celery's commands, on the project."""
        process = LocalProcess(
            [str(Path(sys.executable).parent / "celery"), "-A", "tests.integration.project", command, *options],
            self.folder,
            name=f"{command}{len(self.processes)}",
            env={
                "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "ignore",
                "TEST_CONF": json.dumps({**self.conf, **conf}),
                "TEST_TRACE": str(self.trace.path),
                **(env or {}),
            },
        )
        self.processes.append(process)
        return process

    def test_worker(self, process: LocalProcess) -> Any:
        """The worker as pytest-celery's own node."""
        return CeleryTestWorker(CeleryWorkerContainer(process), app=self.client)

    def send(self, name: str, *args: Any, **options: Any) -> ContinuableAsyncResult:
        sent = self.client.send_task(f"project.{name}", args, **options)
        return ContinuableAsyncResult(sent.id, app=self.client)

    def sig(self, name: str, *args: Any, **options: Any) -> Any:
        return self.client.signature(f"project.{name}", args=args, **options)

    def end(self) -> None:
        for process in self.processes:
            process.end(timeout=0)
        gc.collect()  # a result contacts its backend when it is collected, which must happen while the server runs
        if "Redis" in type(self.client.backend).__name__:
            self.client.backend.result_consumer.stop()
            self.client.backend.client.connection_pool.disconnect()
        for store in stores_of(self.client):
            store.close()
        self.client.close()


def defaults(**conf: Any) -> dict[str, Any]:
    return {
        "task_default_queue": f"q{uuid.uuid4().hex[:12]}",
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "broker_connection_retry_on_startup": True,
        "continuation_namespace": uuid.uuid4().hex,
        **conf,
    }


def redis_url(server: servers.LocalRedis, db: int) -> str:
    return f"redis://127.0.0.1:{server.port}/{db}"


def redis_conf(server: servers.LocalRedis) -> dict[str, Any]:
    return {"broker_url": redis_url(server, 0), "result_backend": redis_url(server, 1)}


def rabbitmq_conf(server: servers.LocalRabbitMQ, redis: servers.LocalRedis) -> dict[str, Any]:
    return {"broker_url": server.url, "result_backend": redis_url(redis, 1)}


def filesystem_conf(folder: Path) -> dict[str, Any]:
    parts = {}
    for part in ("queue", "processed", "control", "results"):
        parts[part] = folder / part
        parts[part].mkdir()
    return {
        "broker_url": "filesystem://",
        "broker_transport_options": {
            "data_folder_in": str(parts["queue"]),
            "data_folder_out": str(parts["queue"]),
            "processed_folder": str(parts["processed"]),
            "control_folder": str(parts["control"]),
            "polling_interval": 0.05,
        },
        "result_backend": f"file://{parts['results']}",
    }
