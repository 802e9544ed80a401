"""A Django project with real workers that saves progress in its own database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from celery_continuations import ContinuableAsyncResult
from tests.support.cluster import ROOT, Cluster, filesystem_conf
from tests.support.processes import LocalProcess, await_condition

ORDERS = 150


class Site:
    """The project, migrated, with its orders."""

    def __init__(self, cluster: Cluster, database: dict[str, Any], url: str) -> None:
        self.cluster = cluster
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        site = {"database": database, "celery": cluster.conf}
        self.env = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "SITE": json.dumps(site)}
        self.manage("migrate", "--run-syncdb")
        with self.engine.begin() as connection:
            for key in range(1, ORDERS + 1):
                connection.exec_driver_sql(f"INSERT INTO orders_order (id) VALUES ({key})")

    def manage(self, *command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "django", *command, "--settings", "tests.integration.django_site.settings"],
            cwd=self.cluster.folder,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def worker(self) -> LocalProcess:
        argv = ["worker", "-l", "INFO", "-n", "%h@test", "--without-mingle", "--without-gossip", "-c", "1"]
        process = LocalProcess(
            [str(Path(sys.executable).parent / "celery"), "-A", "tests.integration.django_site", *argv],
            self.cluster.folder,
            name=f"worker{len(self.cluster.processes)}",
            env=self.env,
        )
        self.cluster.processes.append(process)
        process.await_log(" ready.")
        return process

    def send(self, name: str) -> ContinuableAsyncResult:
        sent = self.cluster.client.send_task(name)
        return ContinuableAsyncResult(sent.id, app=self.cluster.client)

    def shipments(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql('SELECT "order", pid FROM orders_shipment ORDER BY id'))

    def await_shipments(self, count: int) -> None:
        await_condition(lambda: len(self.shipments()) >= count, f"{count} shipments")


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, make_cluster: Callable[..., Cluster], tmp_path: Path) -> Site:
    """On each database."""
    cluster = make_cluster(**filesystem_conf(tmp_path))
    if request.param == "sqlite":
        path = str(tmp_path / "db")
        return Site(cluster, {"ENGINE": "django.db.backends.sqlite3", "NAME": path}, f"sqlite:///{path}")
    server: LocalProcess = request.getfixturevalue("postgres_server")
    name = f"site{os.urandom(6).hex()}"
    root = f"postgresql+psycopg://test@127.0.0.1:{server.port}"
    engine = sa.create_engine(f"{root}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    where = {"ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": "test", "HOST": "127.0.0.1"}
    return Site(cluster, {**where, "PORT": server.port}, f"{root}/{name}")


def test_a_stopped_worker_hands_its_task_over(site: Site) -> None:
    first = site.worker()
    result = site.send("orders.ship")
    site.await_shipments(20)
    first.process.send_signal(signal.SIGTERM)
    assert first.await_exit() == 0
    assert len(site.shipments()) < ORDERS
    site.worker()
    assert result.get(timeout=60) == "shipped"
    shipments = site.shipments()
    assert [order for order, _ in shipments] == list(range(1, ORDERS + 1))
    assert len({pid for _, pid in shipments}) == 2


def test_a_killed_worker_s_orders_are_shipped_once(site: Site) -> None:
    result = site.send("orders.ship_once")
    for count in (20, 60):
        worker = site.worker()
        site.await_shipments(count)
        worker.kill()
    assert len(site.shipments()) < ORDERS
    site.worker()
    assert result.get(timeout=60) == "shipped"
    shipments = site.shipments()
    assert [order for order, _ in shipments] == list(range(1, ORDERS + 1))
    assert len({pid for _, pid in shipments}) == 3
