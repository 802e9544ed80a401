"""What a cancellation reports, and how long it holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals, states

from celery_continuations import conf, control
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.worker.sweeper import Sweeper

DAY = 86400.0

PLACES = ["fresh", "running", "queued", "waiting", "paused", "paused before it started", "lost"]


def waits(self: Any) -> None:
    self.wait_for("approval")


@pytest.fixture
def revoked() -> Iterator[list[Any]]:
    """The receivers' view of Celery's signal."""
    seen: list[Any] = []

    def receive(sender: Any, request: Any, **kwargs: Any) -> None:
        seen.append((sender.name, request.id, list(request.args), request.kwargs))

    signals.task_revoked.connect(receive)
    yield seen
    signals.task_revoked.disconnect(receive)


@pytest.fixture
def cancelled(worker: Any, task: Any, app: Celery, store: Any) -> Any:
    """Cancel a task at a place; return its result, and what its `on_cancel` was called with."""

    def cancel_at(place: str) -> Any:
        def body(self: Any, *args: Any, **kwargs: Any) -> None:
            ran.append(self.request.id)
            if place == "running":
                self.step("cancel", result.cancel)
            if place == "queued":
                worker.stop()
            self.step("one", int)
            self.checkpoint()
            self.wait_for("approval")

        ran: list[str] = []
        calls: list[Any] = []
        made = task(body, on_cancel=lambda self, *args: calls.append(args), continuation_checkpoint_interval=0)
        result = made.apply_async((1,), {"two": 2})
        if place == "paused before it started":
            result.pause()
        if place != "fresh":
            worker.deliver()
        if place == "paused":
            result.pause()
        if place == "lost":
            found = store.read(result.id)
            lost = Fence(1, Status.RUNNING, "another-machine.7.7.abc/1.1/a")
            assert store.compare_and_swap(result.id, found.fence, Update(lost))
            result.cancel()
            Sweeper(app, store, new_worker(), lambda task_id: True).sweep(lambda: True)
        elif place != "running":
            result.cancel()
        result.calls, result.ran, result.task_name = calls, ran, made.name
        return result

    return cancel_at


@pytest.mark.parametrize("place", PLACES)
def test_a_cancellation_is_reported_once(worker: Any, cancelled: Any, revoked: list[Any], place: str) -> None:
    result = cancelled(place)
    result.cancel()
    count = len(result.ran)
    worker.drain()
    result.cancel()
    assert result.state == states.REVOKED
    assert len(result.ran) == count
    assert [(task_id, list(args), kwargs) for task_id, args, kwargs in result.calls] == [(result.id, [1], {"two": 2})]
    assert revoked == [(result.task_name, result.id, [1], {"two": 2})]


def test_two_that_cancel_one_task_report_it_once(
    app: Celery, worker: Any, task: Any, revoked: list[Any], store: Any, monkeypatch: Any
) -> None:
    """Both have read the record before either writes."""
    swap, late = store.compare_and_swap, []

    def swap_late(task_id: str, expected: Any, update: Update) -> Any:
        if update.fence.status == Status.CANCELLED and not late:
            late.append(task_id)
            control.cancel(task_id, app=app)
        return swap(task_id, expected, update)

    result = task(waits).apply_async()
    worker.deliver()
    monkeypatch.setattr(store, "compare_and_swap", swap_late)
    result.cancel()
    assert (late, len(revoked)) == ([result.id], 1)


def test_an_error_of_on_cancel_is_logged(worker: Any, task: Any, caplog: Any) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise ValueError("the lock is gone")

    result = task(waits, on_cancel=fail).apply_async()
    worker.deliver()
    with caplog.at_level(logging.ERROR, "celery_continuations"):
        result.cancel()
    assert [one.action for one in caplog.records] == ["on_cancel_failed"]
    assert result.state == states.REVOKED


def test_a_process_without_the_tasks_code_leaves_the_report_to_the_worker(
    app: Celery, worker: Any, cancelled: Any, revoked: list[Any], monkeypatch: Any
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(control, "_task_of", lambda app, record: None)
        result = cancelled("queued")
        assert (result.calls, revoked) == ([], [])
    worker.drain()
    assert (len(result.calls), len(revoked)) == (1, 1)


# -- for how long


@pytest.mark.parametrize("place", ["fresh", "queued", "paused before it started"])
def test_a_cancelled_task_does_not_run_when_its_message_comes_late(
    app: Celery, worker: Any, cancelled: Any, store: Any, later: Any, place: str
) -> None:
    """Its state has expired by then, as the results of other tasks have."""
    result = cancelled(place)
    count = len(result.ran)
    app.backend.forget(result.id)
    later(29 * DAY)
    if place != "paused before it started":  # the message of that one has ended
        worker.deliver()
        assert result.state == states.REVOKED, "callers learn why it did not run"
    assert len(result.ran) == count
    assert worker.queued() == 0
    later(conf.tombstone_seconds(app) + 1)
    assert store.read(result.id) is None, "the message has ended"


def test_a_cancellation_holds_until_its_tasks_eta(app: Celery, worker: Any, task: Any, store: Any, later: Any) -> None:
    app.conf.continuation_keep_failed = 5 * DAY
    ran: list[Any] = []

    def body(self: Any) -> None:
        ran.append(1)
        self.retry(countdown=20 * DAY)

    result = task(body).apply_async()
    worker.deliver()
    result.cancel()
    app.backend.forget(result.id)
    later(20 * DAY)
    worker.deliver()
    assert (ran, result.state) == ([1], states.REVOKED)


def test_an_older_copy_does_not_end_the_wait_for_the_message(
    app: Celery, worker: Any, cancelled: Any, store: Any, later: Any
) -> None:
    result = cancelled("queued")
    first = worker.deliveries[0]
    worker.execute(first)
    app.backend.forget(result.id)
    later(29 * DAY)
    worker.deliver()
    assert len(result.ran) == 1


def test_a_task_whose_message_has_ended_has_an_ordinary_tombstone(
    app: Celery, worker: Any, cancelled: Any, store: Any, later: Any
) -> None:
    result = cancelled("waiting")
    assert store.read(result.id).fence == Fence(1, Status.CANCELLED)
    later(conf.tombstone_seconds(app) + 1)
    assert store.read(result.id) is None
