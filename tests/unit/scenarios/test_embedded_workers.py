"""Workers in the process of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import ImproperlyConfigured
from kombu import Connection

from celery_continuations import AppTask, ContinuableTask
from celery_continuations.worker import maintenance
from tests.support.watched import await_
from tests.support.worker import make_app


@pytest.fixture(autouse=True)
def maintenance_stops() -> Iterator[None]:
    """Their threads would sweep, and draw random numbers, while other tests run."""
    yield
    for one in list(maintenance._by_worker.values()):
        one.stop()


@pytest.fixture(autouse=True)
def workers_notice_their_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without an event loop waits 2 s for a message before it looks whether it has to stop."""
    drain = Connection.drain_events

    def drain_briefly(self: Connection, *, timeout: float) -> Any:
        return drain(self, timeout=min(timeout, 0.05))

    monkeypatch.setattr(Connection, "drain_events", drain_briefly)


def test_several_workers_in_one_process() -> None:
    """One after the other, as tests start them: the stop of one is nothing to the next."""
    from celery_continuations.execution.triggers import watcher

    app = make_app(worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01})

    @app.task(base=ContinuableTask, bind=True, name="embedded")
    def embedded(self: Any) -> int:
        for _ in self.iterate("loop", range(5)):
            for watch in watcher.running:
                watch.check()
        return self.continuation.executions  # type: ignore[no-any-return]

    for pool in ("threads", "solo", "threads"):
        with start_worker(app, perform_ping_check=False, pool=pool, concurrency=1, shutdown_timeout=20):
            assert embedded.delay().get(timeout=10) == 1


def test_an_app_with_message_protocol_1_runs_tasks_without_steps() -> None:
    """A task is refused where it uses a step."""
    app = make_app(
        task_protocol=1, worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01}
    )

    @app.task(base=AppTask, name="without steps")
    def plain(number: int) -> int:
        return number + 1

    @app.task(base=AppTask, bind=True, name="with a step")
    def with_step(self: Any) -> int:
        return self.step("one", int)  # type: ignore[no-any-return]

    @app.task(base=ContinuableTask, bind=True, name="continuable")
    def continuable(self: Any) -> int:
        return 7

    with start_worker(app, perform_ping_check=False, pool="solo", concurrency=1, shutdown_timeout=20):
        assert plain.delay(1).get(timeout=10) == 2
        with pytest.raises(ImproperlyConfigured, match="task_protocol = 1: task with a step has steps, which need"):
            with_step.delay().get(timeout=10)
        with pytest.raises(ImproperlyConfigured, match="task_protocol = 1: task continuable has steps, which need"):
            continuable.delay().get(timeout=10)


def test_an_embedded_worker_that_ends_hands_its_task_over() -> None:
    app = make_app(worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01})
    started = threading.Event()

    @app.task(base=ContinuableTask, bind=True, name="handed over")
    def embedded(self: Any) -> int:
        for _ in self.iterate("loop", range(10_000)):
            started.set()
            time.sleep(0.001)
        return self.continuation.executions  # type: ignore[no-any-return]

    options = {"perform_ping_check": False, "pool": "threads", "concurrency": 1, "shutdown_timeout": 20}
    with start_worker(app, **options):
        result = embedded.delay()
        assert started.wait(10)
    await_(lambda: result.state == "RETRY", lambda: f"RETRY, and not {result.state} {result.info}")
    assert str(result.info).startswith("Interrupted at loop:")
    result.forget()
