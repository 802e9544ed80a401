"""Spans: one for each execution, linked to the one before, and one for each step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from celery_continuations.contrib.opentelemetry import instrument, uninstrument
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import Update, open_store
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed, rows


class Spans:
    """Those that were exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("tests")

    def all(self) -> Any:
        return self.exporter.get_finished_spans()

    def executions(self) -> list[Any]:
        return [span for span in self.all() if "continuation.state" in span.attributes]

    def named(self, name: str) -> list[Any]:
        return [span for span in self.all() if span.name == name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    instrument(made.provider)
    yield made
    uninstrument()
    assert not trace.get_current_span().get_span_context().is_valid, "a span was left attached"


def test_an_execution_and_its_steps(worker: Any, task: Any, spans: Spans) -> None:
    result = task(rows(worker, stop_after=-1)).delay()
    worker.drain()
    (execution,) = spans.executions()
    validate, imported, told = (span for span in spans.all() if span is not execution)
    name = worker.deliveries[0].headers["task"]
    assert execution.name == name
    assert execution.attributes == {
        "celery.task_id": result.id, "celery.task_name": name, "continuation.resumptions": 0,
        "continuation.state": "SUCCESS",
    }  # fmt: skip
    assert (execution.parent, execution.links) == (None, ())
    assert [span.name for span in (validate, imported, told)] == ["validate", "import", "tell"]
    assert {span.parent.span_id for span in (validate, imported, told)} == {execution.context.span_id}
    assert imported.attributes == {
        "celery.task_id": result.id, "celery.task_name": name, "continuation.step": "import",
        "continuation.resumed": False, "continuation.cursor": 5, "continuation.advanced": True,
    }  # fmt: skip


def test_an_interruption_and_a_resumption(worker: Any, task: Any, spans: Spans) -> None:
    task(rows(worker)).delay()
    worker.drain()
    first, second = spans.executions()
    found = {name.removeprefix("continuation."): value for name, value in first.attributes.items()}
    assert (found["reason"], found["step"], found["cursor"], found["state"]) == ("stopping", "import", 3, "RETRY")
    assert first.status.status_code == StatusCode.UNSET
    assert second.attributes["continuation.resumptions"] == 1
    assert second.attributes["continuation.resumed_reason"] == "stopping"
    before, after = spans.named("import")
    assert (before.attributes["continuation.cursor"], after.attributes["continuation.cursor"]) == (3, 5)
    assert after.attributes["continuation.resumed"] is True
    assert len(spans.named("validate")) == 1, "a skipped step is not a span"


def test_each_execution_is_linked_to_the_one_before(worker: Any, task: Any, spans: Spans) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("rows", range(3)):
            worker.stop()

    task(run).delay()
    assert worker.drain() == 4
    executions = spans.executions()
    links = [[link.context.span_id for link in span.links] for span in executions]
    assert links == [[], *([span.context.span_id] for span in executions[:-1])]
    assert [span.parent for span in executions] == [None] * 4


def test_every_execution_has_the_caller_as_parent(worker: Any, task: Any, spans: Spans) -> None:
    made = task(rows(worker))
    with spans.tracer.start_as_current_span("caller") as caller:
        made.delay()
    worker.drain()
    first, second = spans.executions()
    assert {span.parent.span_id for span in (first, second)} == {caller.get_span_context().span_id}
    assert {span.context.trace_id for span in spans.all()} == {caller.get_span_context().trace_id}
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_the_link_survives_a_retry_of_the_task(worker: Any, task: Any, spans: Spans) -> None:
    def run(self: Any) -> None:
        for _ in self.step("one"):
            if not self.request.retries:
                raise self.retry(countdown=0)

    task(run).delay()
    worker.drain()
    first, second = spans.executions()
    assert [link.context.span_id for link in second.links] == [first.context.span_id]


def test_a_recovered_task_is_linked_to_the_execution_that_was_lost(
    worker: Any, task: Any, app: Celery, spans: Spans
) -> None:
    def run(self: Any) -> None:
        for step in self.step("one"):
            begun.append(trace.get_current_span())
            step.checkpoint()
            if len(begun) == 1:
                raise Killed

    begun: list[Any] = []
    store = open_store(app, "memory")
    made = task(run, continuation_checkpoint_interval=0)
    with spans.tracer.start_as_current_span("caller") as caller:
        result = made.delay()
    worker.deliver_killed()
    record = store.read(result.id)
    assert record is not None
    fence = record.fence._replace(owner="another-machine.7.7.abc/7.7/a")
    assert store.compare_and_swap(result.id, record.fence, Update(fence))
    store.renew("another-machine.7.7.abc", 0.0, "")
    Sweeper(app, store, new_worker(), lambda task_id: True).sweep(lambda: True)
    worker.drain()
    *_, last = spans.executions()
    assert [link.context.span_id for link in last.links] == [begun[0].parent.span_id]
    assert last.parent.span_id == caller.get_span_context().span_id
    assert last.attributes["continuation.resumed_reason"] == "lost"


def test_spans_of_the_tasks_own_are_within_its_step(worker: Any, task: Any, spans: Spans) -> None:
    def run(self: Any) -> None:
        for _ in self.step("one"):
            with spans.tracer.start_as_current_span("own"):
                pass
            break
        with spans.tracer.start_as_current_span("between"):
            self.checkpoint()
            with spans.tracer.start_as_current_span("within"):
                pass

    task(run).delay()
    worker.drain()
    (step,), (own,), (between,), (within,) = (spans.named(name) for name in ("one", "own", "between", "within"))
    assert own.parent.span_id == step.context.span_id
    assert within.parent.span_id == between.context.span_id


def test_a_task_called_by_a_task_has_its_execution_as_parent(worker: Any, task: Any, spans: Spans) -> None:
    child = task(rows(worker, stop_after=-1))

    def run(self: Any) -> None:
        child.delay()

    task(run).delay()
    worker.drain()
    parent, called = spans.executions()
    assert called.parent.span_id == parent.context.span_id
    assert called.links == ()


def test_errors_are_recorded(worker: Any, task: Any, spans: Spans) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("rows", range(3)):
            if item == 1:
                raise ValueError("no")

    task(run).delay()
    worker.drain()
    resumed, failed = spans.executions()
    assert (resumed.attributes["continuation.state"], failed.attributes["continuation.state"]) == ("RETRY", "FAILURE")
    for span in (*spans.named("rows"), resumed, failed):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no")
        assert [event.attributes["exception.type"] for event in span.events] == ["ValueError"]


def test_a_task_that_is_not_continuable_has_no_span(app: Celery, spans: Spans) -> None:
    @app.task(name="plain")
    def plain() -> None:
        """As Celery's own."""

    for signal in (signals.task_prerun, signals.task_postrun):
        signal.send(sender=plain, task_id="a", task=plain)
    assert spans.all() == ()


def test_eager_and_direct_calls_have_none(app: Celery, task: Any, spans: Spans) -> None:
    def run(self: Any) -> str:
        return self.step("one", str)  # type: ignore[no-any-return]

    made = task(run)
    made.apply()
    made()
    assert spans.all() == ()


def test_uninstrumented_there_are_none_and_no_headers(worker: Any, task: Any, spans: Spans) -> None:
    uninstrument()
    with spans.tracer.start_as_current_span("caller"):
        task(rows(worker)).delay()
    worker.drain()
    assert [span.name for span in spans.all()] == ["caller"]
    assert "traceparent" not in worker.deliveries[0].headers
    assert "continuation_traceparent" not in worker.deliveries[1].headers


def test_instrumented_twice_there_is_one_span(worker: Any, task: Any, spans: Spans) -> None:
    instrument(spans.provider)
    task(rows(worker, stop_after=-1)).delay()
    worker.drain()
    assert len(spans.executions()) == 1


def test_without_opentelemetry_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import celery_continuations.contrib.opentelemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "run: pip install 'celery-continuations[opentelemetry]'" in done.stderr
