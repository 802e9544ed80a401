"""A task has one outcome, whatever comes twice, late, or in the middle of a write."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, states

from celery_continuations import AppTask
from celery_continuations.control import cancel, pause
from celery_continuations.exceptions import StoreError
from celery_continuations.messages.headers import PARENT
from celery_continuations.stores import Status
from tests.support.worker import Worker


def other() -> str:
    return "other"


# -- replace()


@pytest.mark.parametrize("case", ["none", "the record is gone", "the answer is lost", "paused", "cancelled"])
def test_a_task_that_replaces_itself_does_not_vanish(
    worker: Worker, app: Celery, store: Any, task: Any, case: str
) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        if case == "the record is gone":
            store._records.clear()
        elif case == "the answer is lost":
            swap = store.compare_and_swap

            def twice(*args: Any) -> Any:
                store.compare_and_swap = swap
                return swap(*args) and swap(*args)

            store.compare_and_swap = twice
        elif case == "paused":
            pause(self.request.id, app=app)
        elif case == "cancelled":
            cancel(self.request.id, app=app)
        self.replace(instead.s())

    instead = app.task(name="other")(other)
    result = task(run).delay()
    worker.drain()
    if case == "cancelled":
        assert (result.state, store.read(result.id).fence.status) == (states.REVOKED, Status.CANCELLED)
    else:
        assert (result.result, store.read(result.id)) == ("other", None)


# -- STARTED


@pytest.mark.parametrize("end", ["fails", "waits"])
def test_a_second_delivery_does_not_store_started(worker: Worker, task: Any, end: str) -> None:
    def run(self: Any) -> None:
        seen.append(self.AsyncResult(self.request.id).state)
        if end == "waits":
            self.wait_for("approval")
        raise ValueError

    seen: list[str] = []
    result = task(run, track_started=True).delay()
    worker.drain()
    worker.execute(worker.deliveries[0])
    assert seen == [states.STARTED]
    assert result.state == (states.RETRY if end == "waits" else states.FAILURE)


@pytest.mark.parametrize("by", ["setting", "option"])
def test_started_is_stored_once_the_task_is_claimed(worker: Worker, app: Celery, task: Any, by: str) -> None:
    def run(self: Any) -> None:
        seen.append(app.backend.get_task_meta(self.request.id))

    seen: list[Any] = []
    app.conf.task_track_started = by == "setting"
    options = {"track_started": True} if by == "option" else {}
    for base, ignores in ((None, False), (AppTask, False), (None, True)):
        made = task(run, ignore_result=ignores, **options, **({"base": base} if base else {}))
        made.delay()
        worker.drain()
    assert [one["status"] for one in seen] == [states.STARTED, states.STARTED, states.PENDING]
    assert seen[0]["result"] == seen[1]["result"], "Celery's own is another"


def test_a_backend_that_cannot_store_started_does_not_fail_the_task(
    worker: Worker, app: Celery, task: Any, monkeypatch: Any, caplog: Any
) -> None:
    def store_result(task_id: str, result: Any, state: str, **options: Any) -> Any:
        if state == states.STARTED:
            raise ConnectionError("away")
        return stored(task_id, result, state, **options)

    stored = app.backend.store_result
    monkeypatch.setattr(app.backend, "store_result", store_result)
    result = task(nothing, track_started=True).delay()
    worker.drain()
    assert (result.state, "STARTED could not be stored" in caplog.text) == (states.SUCCESS, True)


def nothing(self: Any) -> None:
    """Do nothing."""


# -- an id that is used again


@pytest.mark.parametrize("first", ["done", "failed", "cancelled", "waiting"])
def test_a_second_task_with_the_same_id_is_named_in_a_warning(
    worker: Worker, app: Celery, task: Any, caplog: Any, first: str
) -> None:
    def run(self: Any, how: str) -> None:
        if how == "failed":
            raise ValueError
        if how != "done":
            self.wait_for("approval")

    made = task(run)
    made.apply_async(("waiting" if first == "cancelled" else first,), task_id="nightly")
    worker.drain()
    if first == "cancelled":
        cancel("nightly", app=app)
    assert "nightly" not in [record.task_id for record in warnings(caplog) if record.action == "id_in_use"]
    made.apply_async(("done",), task_id="nightly")
    worker.drain()
    (warning,) = [record for record in warnings(caplog) if record.action == "id_in_use"]
    assert (warning.task_id, "use another id" in warning.getMessage()) == ("nightly", True)


@pytest.mark.parametrize("copy", ["redelivered", "requeued", "a continuation", "a child"])
def test_a_copy_of_an_ended_task_is_no_second_task(
    worker: Worker, store: Any, task: Any, caplog: Any, monkeypatch: Any, copy: str
) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("loop", range(2)):
            worker.stop()

    options = {"headers": {PARENT: ["parent", "task"]}} if copy == "a child" else {}
    result = task(run).apply_async(**options)
    if copy == "requeued":
        with monkeypatch.context() as patches:
            patches.setattr(store, "compare_and_swap", away)
            worker.deliver()
    worker.drain()
    late = worker.deliveries[1 if copy in ("requeued", "a continuation") else 0]
    if copy == "redelivered":
        late.message.delivery_info["redelivered"] = True
    worker.execute(late)
    assert result.state == states.SUCCESS
    assert not [record for record in warnings(caplog) if record.action == "id_in_use"]


@pytest.mark.parametrize("days", [0, 2])
@pytest.mark.parametrize(
    "written", [str, lambda at: at, lambda at: at.replace(tzinfo=None)], ids=["iso", "aware", "naive"]
)
def test_the_result_of_an_earlier_task_with_the_same_id_ends_no_task(
    worker: Worker, app: Celery, store: Any, task: Any, monkeypatch: Any, written: Any, days: int
) -> None:
    """The backend keeps it for longer than the store kept the record."""
    done = []

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(4)):
            done.append(item)
            worker.stop()

    stored_at = written(datetime.now(timezone.utc) - timedelta(days=days))
    result = {"status": states.SUCCESS, "date_done": stored_at, "result": "earlier"}
    monkeypatch.setattr(app.backend, "get_task_meta", lambda *_, **__: result)
    task(run).apply_async(task_id="nightly")
    worker.drain()
    assert len(done) == (4 if days else 1)
    assert store.read("nightly").fence.status == Status.DONE


def warnings(caplog: Any) -> list[Any]:
    return [record for record in caplog.records if record.levelname == "WARNING" and hasattr(record, "action")]


def away(*args: Any) -> None:
    raise StoreError("memory", "away")


# -- an outcome that is stored before a continuation begins


@pytest.mark.parametrize("state", [states.FAILURE, states.REVOKED])
def test_no_continuation_runs_after_a_stored_outcome(
    worker: Worker, app: Celery, store: Any, task: Any, state: str
) -> None:
    seen: list[int] = []
    result = task(stopped(worker, seen)).delay()
    worker.deliver()
    app.backend.store_result(result.id, ValueError("late"), state)
    worker.drain()
    status = Status.FAILED if state == states.FAILURE else Status.CANCELLED
    assert (seen, result.state, store.read(result.id).fence.status) == ([0], state, status)


def test_a_continuation_waits_for_the_result_backend(worker: Worker, app: Celery, task: Any, monkeypatch: Any) -> None:
    def unavailable(*args: Any) -> None:
        raise ConnectionError("away")

    seen: list[int] = []
    result = task(stopped(worker, seen)).delay()
    worker.deliver()
    with monkeypatch.context() as patches:
        patches.setattr(app.backend, "get_task_meta", unavailable)
        worker.deliver()
    assert (seen, worker.queued()) == ([0], 1)
    worker.drain()
    assert (seen, result.state) == ([0, 1], states.SUCCESS)


def test_without_stored_results_nothing_is_asked(worker: Worker, app: Celery, task: Any, monkeypatch: Any) -> None:
    def asked(*args: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(app.backend, "get_task_meta", asked)
    seen: list[int] = []
    task(stopped(worker, seen), ignore_result=True).delay()
    worker.drain()
    assert seen == [0, 1]


def stopped(worker: Worker, seen: list[int]) -> Any:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(2)):
            seen.append(item)
            worker.stop()

    return run
