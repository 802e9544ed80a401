"""Tasks run by Celery's own tracer, message by message, in this process.

The broker is kombu's memory transport, the result backend a cache in memory: what is tested
is what one execution does, and the message that it leaves.
"""

from __future__ import annotations

import gc
import itertools
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from celery.app.trace import trace_task_ret
from celery.concurrency.solo import TaskPool
from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls
from django.core.management import call_command
from django.db import connections
from kombu.serialization import prepare_accept_content

import tests.unit.django_project  # noqa: F401 - a process has one Django project
from celery_continuations import ContinuableTask
from celery_continuations.execution.triggers import watcher
from celery_continuations.process.identity import new_worker
from celery_continuations.process.stop_flag import STOPPING, new_flag
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.sweeper import Sweeper

_numbers = itertools.count()


class Delivery:
    """A message that was taken from the queue, and what became of it."""

    def __init__(self, message: Any) -> None:
        self.message = message
        self.headers: dict[str, Any] = message.headers
        self.end: str | None = None

    @property
    def body(self) -> Any:
        return self.message.payload

    def on_ack(self, *args: Any) -> None:
        self.end = "acked"
        if not self.message.acknowledged:  # a test may run a message a second time
            self.message.ack()

    def on_reject(self, logger: Any, errors: Any, requeue: bool = False) -> None:
        self.end = "requeued" if requeue else "rejected"
        self.message.reject(requeue=requeue)


class Killed(BaseException):
    """In a task: its process dies here."""


class Worker:
    """One delivery after another, through the request and the tracer of a real worker.

    A stop raises the worker's flag and lets the watcher look, so that the very next checkpoint
    sees it.  The next delivery is run by a worker that has not been stopped.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.deliveries: list[Delivery] = []
        self.flag: Any = None
        self.eventer: Any = None  # its dispatcher of events, as of worker -E

    def stop(self) -> None:
        if self.flag is None:
            return  # a direct call: there is no worker
        self.flag.raise_to(STOPPING)
        for watch in tuple(watcher._watches):
            watch.look()

    def queued(self) -> int:
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            return int(queue.queue_declare(passive=True).message_count)

    def deliver(self, queue: str | None = None, *, stopping: bool = False) -> Delivery:
        """Take one message and run it."""
        hostname = f"unit{next(_numbers)}@test"
        self.flag = new_flag(hostname)
        if stopping:
            self.flag.raise_to(STOPPING)
        with self.app.connection_for_read() as connection:
            bound = self.app.amqp.queues[queue or self.app.conf.task_default_queue](connection.default_channel)
            bound.declare()
            message = bound.get(no_ack=False)
            assert message is not None, "no message in the queue"
            self.execute(delivery := Delivery(message), hostname)
        self.flag.remove()
        return delivery

    def deliver_killed(self) -> None:
        """Take one message and run it, until its task raises :class:`Killed`."""
        with pytest.raises(TypeError):  # all that is left of it behind Celery's solo pool
            self.deliver()

    def deliver_nothing(self) -> Delivery:
        """Take one message and do not run it, as a worker that is killed just then."""
        with self.app.connection_for_read() as connection:
            bound = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            message = bound.get(no_ack=True)
            assert message is not None, "no message in the queue"
            return Delivery(message)

    def execute(self, delivery: Delivery, hostname: str = "unit@test") -> None:
        task = self.app.tasks[delivery.headers["task"]]
        delivery.message.accept = prepare_accept_content(self.app.conf.accept_content)
        pool = TaskPool()
        pool.start()
        request_class = create_request_cls(
            symbol_by_name(task.Request),
            task,
            pool,
            hostname,
            self.eventer,
            trace=partial(trace_task_ret, app=self.app),
            app=self.app,
        )
        request = request_class(
            delivery.message,
            on_ack=delivery.on_ack,
            on_reject=delivery.on_reject,
            hostname=hostname,
            eventer=self.eventer,
            app=self.app,
            task=task,
        )
        self.deliveries.append(delivery)
        with suppress(TaskRevokedError):
            request.execute_using_pool(pool)

    def drain(self, limit: int = 50) -> int:
        """Run messages until there are none left; return how many."""
        for count in range(limit):
            if not self.queued():
                return count
            self.deliver()
        raise AssertionError(f"still messages after {limit} executions")


def take_over(app: Celery, task_id: str) -> None:
    """Let another execution have the task, as if this one's worker had been taken for dead."""
    store = open_store(app, "memory")
    found = store.read(task_id)
    assert found is not None
    assert store.compare_and_swap(
        task_id, found.fence, Update(Fence(found.fence.generation + 1, Status.RUNNING, "another/1.1/a"))
    )


def make_app(**conf: Any) -> Celery:
    app = Celery(f"unit{next(_numbers)}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.task = partial(app.task, shared=False)  # or every test's tasks would be made in every later app
    app.conf.update(task_default_queue=uuid.uuid4().hex, continuation_store="memory", **conf)
    return app


@pytest.fixture
def app() -> Celery:
    return make_app()


@pytest.fixture
def worker(app: Celery) -> Iterator[Worker]:
    yield Worker(app)
    assert not (watcher.running or watcher.leaving), "an execution was left watched"


@pytest.fixture
def record(app: Celery) -> Any:
    """Read a record of the app's store."""
    return lambda task_id: open_store(app, app.conf.continuation_store).read(task_id)


@pytest.fixture
def store(app: Celery) -> Any:
    return open_store(app, "memory")


@pytest.fixture
def later(app: Celery, store: Any, monkeypatch: Any) -> Any:
    """Let so many seconds pass, and a worker sweep."""
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
        options = {"base": ContinuableTask, "bind": True, "name": f"task{next(_numbers)}", **options}
        return app.task(**options)(function)

    return make


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tasks of a page's app from later apps, and those of earlier ones from it."""
    builtins = {one for one in _state._on_app_finalizers if one.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", builtins)


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Collect what the tests of a module have left, and not in the middle of another test.

    Python 3.11 parses code to print the error of a generator that is ended, which spoils an ``ast.parse`` that is
    under way: https://github.com/python/cpython/issues/106905
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def root_log_level() -> Iterator[None]:
    """Restore the root logger's level, which the embedded workers of some tests set."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture
def django_database(tmp_path: Path) -> Iterator[Path]:
    """The database of the Django project, in a file of this test."""
    path = tmp_path / "some progress.db"
    connection = connections["default"]
    before = connection.settings_dict["NAME"]
    connections.settings["default"]["NAME"] = connection.settings_dict["NAME"] = path
    connection.close()  # not before: Django leaves the connection to a database in memory open
    call_command("migrate", verbosity=0)
    yield path
    connection.close()
    connections.settings["default"]["NAME"] = connection.settings_dict["NAME"] = before
