"""Real workers, real signals, real brokers, through pytest-celery on processes of this machine."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from pytest_celery import CeleryTestWorker, CeleryWorkerContainer

from celery_continuations import ContinuableAsyncResult
from celery_continuations.stores.factory import stores_of
from tests.integration import servers
from tests.integration.processes import LocalProcess, await_condition
from tests.integration.proxy import Proxy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    # pytest's own folders are closed to the user that RabbitMQ runs as
    folder = Path(tempfile.mkdtemp(prefix="celery-continuations-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _need(ring: str) -> None:
    package = servers.missing().get(ring)
    if package is None:
        return
    message = f"{package} is missing; install it (apt-get install {package}) to run the {ring} ring"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def redis_server(server_folder: Path) -> Iterator[servers.LocalRedis]:
    _need("redis")
    process = servers.start_redis(server_folder)
    yield servers.LocalRedis(process)
    process.end()


@pytest.fixture(scope="session")
def rabbitmq_server(server_folder: Path) -> Iterator[servers.LocalRabbitMQ]:
    _need("rabbitmq")
    folder = server_folder / "rabbitmq"
    folder.mkdir()
    epmd = servers.start_epmd(server_folder)
    process = servers.start_rabbitmq(folder, epmd)
    yield servers.LocalRabbitMQ(process)
    process.end(timeout=10)
    epmd.end()


@pytest.fixture(scope="session")
def postgres_server(server_folder: Path) -> Iterator[LocalProcess]:
    _need("postgresql")
    folder = server_folder / "postgres"
    folder.mkdir()
    process = servers.start_postgres(folder)
    yield process
    process.process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
    process.end(timeout=10)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser."""
    _need("chromium")
    return str(shutil.which("chromium"))


class Trace:
    """What tasks have done, one line for each thing: ``item pid``.  Written with O_APPEND, so never torn."""

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
        gc.collect()  # a result talks to its backend when it is collected, and must not find the server gone
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


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def make(**conf: Any) -> Cluster:
        folder = tmp_path / f"cluster{len(clusters)}"
        folder.mkdir()
        clusters.append(Cluster(defaults(**conf), folder))
        return clusters[-1]

    yield make
    for cluster in clusters:
        cluster.end()


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


@pytest.fixture
def on_redis(make_cluster: Callable[..., Cluster], redis_server: servers.LocalRedis) -> Cluster:
    return make_cluster(**redis_conf(redis_server))


@pytest.fixture
def on_rabbitmq(
    make_cluster: Callable[..., Cluster], rabbitmq_server: servers.LocalRabbitMQ, redis_server: servers.LocalRedis
) -> Cluster:
    return make_cluster(**rabbitmq_conf(rabbitmq_server, redis_server))


@pytest.fixture
def on_filesystem(make_cluster: Callable[..., Cluster], tmp_path: Path) -> Cluster:
    return make_cluster(**filesystem_conf(tmp_path))


@pytest.fixture(params=["redis", "rabbitmq"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster on Redis, and one on RabbitMQ."""
    found: Cluster = request.getfixturevalue(f"on_{request.param}")
    return found


@pytest.fixture(params=["redis", "rabbitmq", "filesystem"])
def any_cluster(request: pytest.FixtureRequest) -> Cluster:
    """A cluster on each broker."""
    found: Cluster = request.getfixturevalue(f"on_{request.param}")
    return found


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], Proxy]]:
    proxies: list[Proxy] = []

    def make(port: int) -> Proxy:
        proxies.append(Proxy(port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def short_consumer_timeout(rabbitmq_server: servers.LocalRabbitMQ) -> Iterator[None]:
    """RabbitMQ takes a message back after 3 s, and looks every half second."""
    node = rabbitmq_server._container

    def set_to(timeout: int, tick: int) -> None:
        pairs = f"[{{consumer_timeout, {timeout}}}, {{channel_tick_interval, {tick}}}]"
        settings = f"[application:set_env(rabbit, Key, Value) || {{Key, Value}} <- {pairs}]."
        name = node.env["RABBITMQ_NODENAME"]
        code, said = node.exec_run(["/usr/lib/rabbitmq/bin/rabbitmqctl", "-q", "-n", name, "eval", settings])
        assert code == 0, said

    set_to(3_000, 500)
    yield
    set_to(1_800_000, 60_000)
