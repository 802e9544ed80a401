"""Real workers, real signals, real brokers, through pytest-celery on processes of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import servers
from tests.support.cluster import Cluster, defaults, filesystem_conf, rabbitmq_conf, redis_conf
from tests.support.processes import LocalProcess
from tests.support.proxy import Proxy


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    # RabbitMQ's user cannot enter pytest's own folders
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
    """RabbitMQ takes a message back after 3 s, and checks every half second."""
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
