"""An app, a worker and a store for each test; see :mod:`tests.support.worker`."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery, _state
from celery.backends.cache import DummyClient
from django.core.management import call_command
from django.db import connections
from django.db.backends.signals import connection_created
from kombu.transport.memory import Channel

import tests.support.django_project  # noqa: F401 - a process has one Django project
from celery_continuations import ContinuableTask
from celery_continuations.execution.triggers import watcher
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import open_store
from celery_continuations.testing import assert_resumable
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Worker, make_app, numbers


@pytest.fixture
def app() -> Celery:
    # Of all apps: results of another test's tasks of the same ids, and queues, which a closed channel looks through.
    DummyClient().cache.clear()
    Channel.queues.clear()
    return make_app()


@pytest.fixture(autouse=True)
def tries_all_places(request: Any, monkeypatch: Any) -> None:
    """On a busy machine, too; the tests of the limit keep the default."""
    if not request.module.__name__.endswith(("test_time_limit", "test_testing_page")):
        monkeypatch.setitem(assert_resumable.__kwdefaults__, "seconds", None)


@pytest.fixture
def worker(app: Celery) -> Iterator[Worker]:
    yield Worker(app)
    assert not (watcher.running or watcher.leaving), "an execution was left watched"


@pytest.fixture
def double(app: Celery) -> Any:
    """A plain task, which fails for negative numbers; ``double.calls`` has what it was called with."""
    calls: list[Any] = []

    @app.task(name="double")
    def double(number: Any) -> Any:
        calls.append(number)
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number

    double.calls = calls
    return double


@pytest.fixture
def record(app: Celery) -> Any:
    """Read a record of the app's store."""
    return lambda task_id: open_store(app, app.conf.continuation_store).read(task_id)


@pytest.fixture
def store(app: Celery) -> Any:
    return open_store(app, "memory")


@pytest.fixture
def later(app: Celery, store: Any, monkeypatch: Any) -> Any:
    """Let `seconds` pass, then let a worker sweep."""
    real, passed = time.time, [0.0]
    sweeper = Sweeper(app, store, new_worker(), lambda task_id: True)
    monkeypatch.setattr(time, "time", lambda: real() + passed[0])
    monkeypatch.setattr(store, "_clock", lambda: real() + passed[0])

    def pass_time(seconds: float) -> None:
        passed[0] += seconds
        sweeper.sweep(lambda: True)

    return pass_time


@pytest.fixture
def task(app: Celery) -> Any:
    """Make a continuable task of a function."""

    def make(function: Any, **options: Any) -> Any:
        options = {"base": ContinuableTask, "bind": True, "name": f"task{next(numbers)}", **options}
        return app.task(**options)(function)

    return make


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tasks of a page's app from later apps, and those of earlier ones from it."""
    builtins = {one for one in _state._on_app_finalizers if one.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", builtins)


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Collect the garbage of a module's tests, so that it is not collected in the middle of another test.

    Python 3.11 parses code to print the error of a generator that is ended, which spoils an ``ast.parse`` that is
    under way: https://github.com/python/cpython/issues/106905

    What was imported, or is still used after a module, is left out of later collections, which would take most of
    their time to look through it.
    """
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="session")
def nothing_stays_frozen() -> Iterator[None]:
    """Let the last collection look through everything."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def sqlite_does_not_wait_for_the_disk() -> Iterator[None]:
    """Do not wait for the disk, which takes most of the time of a commit."""

    def on_connect(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    def on_created(connection: Any, **data: Any) -> None:
        on_connect(connection.connection, None)

    sa.event.listen(sa.Engine, "connect", on_connect)
    connection_created.connect(on_created)
    yield
    connection_created.disconnect(on_created)
    sa.event.remove(sa.Engine, "connect", on_connect)


@pytest.fixture(autouse=True)
def root_log_level() -> Iterator[None]:
    """Restore the root logger's level, which the embedded workers of some tests set."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@contextmanager
def _django_at(path: Path) -> Iterator[None]:
    connection = connections["default"]
    before = connection.settings_dict["NAME"]
    connections.settings["default"]["NAME"] = connection.settings_dict["NAME"] = path
    connection.close()  # only now: Django leaves the connection to a database in memory open
    yield
    connection.close()
    connections.settings["default"]["NAME"] = connection.settings_dict["NAME"] = before


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of the Django project without a row."""
    path = tmp_path_factory.mktemp("django") / "migrated.db"
    with _django_at(path):
        call_command("migrate", verbosity=0)
    return path


@pytest.fixture
def django_database(tmp_path: Path, migrated_database: Path) -> Iterator[Path]:
    """The database of the Django project, in a file of this test."""
    path = tmp_path / "some progress.db"
    shutil.copy(migrated_database, path)
    with _django_at(path):
        yield path


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: Any) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        message = "redis-server is missing; install it to test the Redis store"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
        cwd=tmp_path_factory.mktemp("redis"),
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.01)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait()
