"""Tasks run by Celery's own tracer, message by message, in this process.

The broker is kombu's memory transport, the result backend a cache in memory: the tests check what one
execution does, and the message that it publishes.
"""

from __future__ import annotations

import itertools
import uuid
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import trace_task_ret
from celery.concurrency.solo import TaskPool
from celery.exceptions import TaskRevokedError
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls
from kombu.serialization import prepare_accept_content

from celery_continuations.execution.triggers import watcher
from celery_continuations.process.stop_flag import STOPPING, new_flag
from celery_continuations.stores import Fence, Status, Update, open_store

numbers = itertools.count()


class Delivery:
    """A message taken from the queue, and its outcome."""

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
    """Raised in a task: its process is killed here."""


class Worker:
    """Runs one delivery after another, through the request and the tracer of a real worker.

    A stop raises the worker's flag and lets the watcher look, so that the very next checkpoint
    sees it.  The next delivery is run by a worker that has not been stopped.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.deliveries: list[Delivery] = []
        self.flag: Any = None
        self.eventer: Any = None  # its event dispatcher, as with worker -E

    def stop(self) -> None:
        if self.flag is None:
            return  # a direct call runs without a worker
        self.flag.raise_to(STOPPING)
        for watch in watcher.running:
            watch.check()

    def queued(self) -> int:
        with self.app.connection_for_read() as connection:
            queue = self.app.amqp.queues[self.app.conf.task_default_queue](connection.default_channel)
            return int(queue.queue_declare(passive=True).message_count)

    def deliver(self, queue: str | None = None, *, stopping: bool = False) -> Delivery:
        """Take one message and run it."""
        hostname = f"unit{next(numbers)}@test"
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
        with pytest.raises(TypeError):  # the only trace of it behind Celery's solo pool
            self.deliver()

    def deliver_nothing(self) -> Delivery:
        """Take one message and do not run it, like a worker that is killed right then."""
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
        """Run messages until the queue is empty; return their number."""
        for count in range(limit):
            if not self.queued():
                return count
            self.deliver()
        raise AssertionError(f"still messages after {limit} executions")


def take_over(app: Celery, task_id: str) -> None:
    """Let another execution take over the task, as if this one's worker had been declared dead."""
    store = open_store(app, "memory")
    found = store.read(task_id)
    assert found is not None
    assert store.compare_and_swap(
        task_id, found.fence, Update(Fence(found.fence.generation + 1, Status.RUNNING, "another/1.1/a"))
    )


def make_app(**conf: Any) -> Celery:
    app = Celery(f"unit{next(numbers)}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.task = partial(app.task, shared=False)  # otherwise each test's tasks are made in every later app
    app.conf.update(task_default_queue=uuid.uuid4().hex, continuation_store="memory", **conf)
    return app


def rows(worker: Any, stop_after: int = 2, total: int = 5) -> Any:
    """Return a task's function: a step, a loop that is interrupted, and a step."""

    def run(self: Any) -> None:
        self.step("validate", int)
        for row in self.iterate("import", range(total)):
            if row == stop_after:
                worker.stop()
        self.step("tell", int)

    return run
