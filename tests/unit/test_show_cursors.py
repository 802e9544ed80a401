"""``continuation_show_cursors = False`` leaves cursors out of all that others than the record's readers see."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from celery_continuations import conf, events
from celery_continuations.contrib.opentelemetry import instrument, uninstrument
from celery_continuations.process.identity import new_worker
from celery_continuations.sources import keyed
from celery_continuations.stores import Fence, Update, open_store
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed, Worker

MARKER = "ann@example.com"
PEOPLE = [f"{letter}{MARKER}" for letter in "abcdef"]

LOG, EVENTS, RESULT, SPANS = "log", "events", "result", "spans"


class Told:
    """What is reported of a task, by place."""

    def __init__(self, app: Celery, worker: Worker, log: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
        self._log = log
        self._sent: list[Any] = []
        self._results: list[Any] = []
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        instrument(provider)

        def send(*args: Any, **fields: Any) -> None:
            self._sent.append((args[1:], fields))

        def store(task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
            self._results.append((state, result, str(result), args, kwargs.get("traceback")))
            return stored(task_id, result, state, *args, **kwargs)

        stored = app.backend.store_result
        monkeypatch.setattr(app.backend, "store_result", store)
        monkeypatch.setattr(events, "send", send)
        worker.eventer = SimpleNamespace(
            enabled=True, groups=set(), send=lambda *args, **fields: self._sent.append(fields)
        )

    def texts(self) -> dict[str, str]:
        records = [(one.getMessage(), vars(one).get("data"), one.exc_text) for one in self._log.records]
        spans = [span.to_json() for span in self._exporter.get_finished_spans()]
        return {
            LOG: f"{records} {self._log.text}",
            EVENTS: repr(self._sent),
            RESULT: repr(self._results),
            SPANS: repr(spans),
        }


@pytest.fixture
def told(app: Celery, worker: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> Iterator[Told]:
    caplog.set_level(logging.DEBUG)
    yield Told(app, worker, caplog, monkeypatch)
    uninstrument()


def people() -> Any:
    return keyed(PEOPLE, key=lambda one: one)


def stopped(app: Celery, worker: Worker, task: Any) -> None:
    """A stop, and an error after progress; both resume."""

    def run(self: Any) -> None:
        for one in self.iterate("people", people()):
            if one == PEOPLE[1]:
                worker.stop()
            if one == PEOPLE[3] and not self.continuation.resumptions > 1:
                raise ValueError("no")
        for step in self.step("letters", start=MARKER):
            step.checkpoint()

    task(run).delay()
    assert worker.drain() == 3


def failed(app: Celery, worker: Worker, task: Any) -> None:
    """Items that fail, within the error budget and then past it."""

    def run(self: Any) -> None:
        loop = self.iterate("people", people(), on_error=1)
        for one in loop:
            with loop.attempt():
                if one in PEOPLE[2:4]:
                    raise ValueError("no")

    task(run).delay()
    worker.drain()


def lost(app: Celery, worker: Worker, task: Any) -> None:
    """Executions that are killed at one place until that ends the task."""

    def run(self: Any) -> None:
        for one in self.iterate("people", people()):
            if one == PEOPLE[2]:
                raise Killed

    store = open_store(app, "memory")
    made = task(run, continuation_checkpoint_interval=0, continuation_max_crashes=2)
    result = made.delay()
    for _ in range(2):
        worker.deliver_killed()
        record = store.read(result.id)
        assert record is not None
        assert store.compare_and_swap(
            result.id,
            record.fence,
            Update(Fence(record.fence.generation, record.fence.status, f"dead/{record.fence.owner.partition('/')[2]}")),
        )
        Sweeper(app, store, new_worker(), lambda task_id: True).sweep(lambda: True)
    worker.deliver()
    assert result.state == "FAILURE"


EVERYWHERE = {LOG, EVENTS, RESULT, SPANS}
SCENES = (stopped, failed, lost)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("shown", [True, False], ids=["shown", "hidden"])
def test_cursors_are_told_only_where_they_may_be(
    app: Celery, worker: Worker, task: Any, told: Told, scene: Any, shown: bool
) -> None:
    app.conf.continuation_show_cursors = shown
    scene(app, worker, task)
    texts = told.texts()
    assert all(texts.values())
    assert {place for place, text in texts.items() if MARKER in text} == (EVERYWHERE if shown else set())


def test_a_task_may_hide_its_own(app: Celery, worker: Worker, task: Any, told: Told) -> None:
    def run(self: Any) -> None:
        for one in self.iterate("people", people()):
            if one == PEOPLE[1]:
                worker.stop()

    result = task(run, continuation_show_cursors=False).delay()
    worker.deliver()
    assert (result.info.step, result.info.cursor, result.info.reason) == ("people", None, "stopping")
    assert str(result.info) == "Interrupted at people, 33 % (stopping)"
    assert not [place for place, text in told.texts().items() if MARKER in text]
    assert conf.SETTINGS["show_cursors"].default is True
    worker.drain()
