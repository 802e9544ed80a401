"""A monitor sees an interrupted task through the events of real workers."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from celery import Celery

from celery_continuations import events
from tests.support.cluster import redis_url
from tests.support.processes import await_condition


class Monitor:
    """Captures events in a thread, from the moment it is made until the end of the test."""

    def __init__(self, app: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._capture, args=(app,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def kinds(self, group: str) -> list[str]:
        return [event["type"].removeprefix(group) for event in self.events if event["type"].startswith(group)]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def end(self) -> None:
        self._ended.set()
        self._thread.join(10)

    def _capture(self, app: Any) -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self.events.append})
            with receiver.get_consumers(connection.Consumer, connection.default_channel)[0]:
                self._ready.set()
                while not self._ended.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue


@pytest.fixture
def monitor(on_redis: Any) -> Any:
    made = Monitor(on_redis.client)
    yield made
    made.end()


@pytest.mark.redis
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_the_events_of_an_interrupted_task(on_redis: Any, monitor: Monitor, pool: str) -> None:
    options = ("-P", pool, "-c", "1", "-E")
    first = on_redis.worker(*options)
    result = on_redis.send("steps", 60)
    on_redis.trace.await_items(5)
    first.kill("SIGTERM")
    first.await_exit()
    on_redis.worker(*options)
    assert result.get(timeout=60) == 60
    await_condition(lambda: len(monitor.of("continuation-step-completed")) == 4, "the last step's event")
    assert monitor.kinds("continuation-") == [
        "step-started", "step-completed", "step-started", "step-interrupted", "interrupted",
        "resumed", "step-skipped", "step-started", "step-completed",
        "step-started", "step-completed", "step-started", "step-completed",
    ]  # fmt: skip
    (left,), (resumed,) = monitor.of("continuation-interrupted"), monitor.of("continuation-resumed")
    assert left["description"] == resumed["description"] == f"at 'rows', cursor {left['cursor']}"
    assert (left["uuid"], left["name"], left["reason"]) == (result.id, "project.steps", "stopping")
    assert (left["done"], left["total"], left["completed"]) == (left["cursor"], 60, ["first"])
    assert {event["hostname"].partition("@")[2] for event in monitor.events} == {"test"}
    assert left["hostname"] == monitor.of("task-received")[0]["hostname"]


@pytest.mark.redis
def test_a_worker_that_sends_no_events_of_tasks_sends_none_of_ours(on_redis: Any, monitor: Monitor) -> None:
    on_redis.worker()
    assert on_redis.send("quick", 1).get(timeout=30) == 1
    await_condition(lambda: bool(monitor.of("worker-heartbeat")), "a heartbeat")
    assert monitor.kinds("continuation-") == []


@pytest.mark.redis
def test_the_event_of_a_recovery(on_redis: Any, monitor: Monitor) -> None:
    conf = {"continuation_lease": 1, "continuation_sweep_interval": 0.5}
    first = on_redis.worker("-c", "1", "-E", **conf)
    result = on_redis.send("rows", 40)
    on_redis.trace.await_items(5)
    first.signal_group(9)
    on_redis.worker("-c", "1", "-E", **conf)
    assert result.get(timeout=60) == 40
    await_condition(lambda: "step-completed" in monitor.kinds("continuation-"), "the last step's event")
    (recovered,) = monitor.of("continuation-recovered")
    assert (recovered["uuid"], recovered["name"]) == (result.id, "project.rows")
    assert [event["reason"] for event in monitor.of("continuation-resumed")] == ["lost"]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_events_go_on_once_the_broker_is_back(
    request: Any, make_proxy: Any, caplog: Any, monkeypatch: Any, broker: str
) -> None:
    def send() -> bool:
        monkeypatch.setattr(events, "_paused_until", 0.0)
        began = time.monotonic()
        events.send(app, "a@test", "resumed", uuid="a", name="b")
        assert time.monotonic() - began < 2
        return events._paused_until == 0.0

    server = request.getfixturevalue(f"{broker}_server")
    proxy = make_proxy(server.port)
    url = redis_url(server, 0) if broker == "redis" else server.url
    app = Celery(broker=url.replace(str(server.port), str(proxy.port)), set_as_current=False)
    assert send()
    proxy.cut()
    assert send(), "on a new connection"
    proxy.refuse()
    assert not send()
    assert not send()
    proxy.accept()
    assert send()
    app.close()
