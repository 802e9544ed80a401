"""A soft time limit at any call of the library or of Celery leaves a task with one outcome."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from billiard import pool as billiard_pool
from celery import Celery, states
from celery.app import trace
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from celery_continuations import AppTask, celery_internals
from celery_continuations.execution import sigterm, soft_limit
from celery_continuations.execution.soft_limit import SoftLimit
from celery_continuations.messages import from_request
from celery_continuations.stores import Status
from tests.support.worker import Worker

ENDED = {states.SUCCESS: Status.DONE, states.FAILURE: Status.FAILED}


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftLimit]:
    """The soft limit of a pool child, in this process."""
    one = soft_limit.soft_limit
    before = signal.signal(celery_internals.SOFT_LIMIT, billiard_pool.soft_timeout_sighandler)
    monkeypatch.setattr(celery_internals, "in_pool_child", lambda: True)
    monkeypatch.setattr(sigterm, "_deferring", True)
    monkeypatch.setattr(one, "_previous", None)
    yield one
    assert not (one._is_held or one._has_come), "a limit is held after the task"
    signal.signal(celery_internals.SOFT_LIMIT, before)


class Calls:
    """Every call to the store, the broker and the result backend; at the chosen one the limit comes."""

    def __init__(self, app: Celery, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.count = -1, 0
        self.is_before = True
        self.stored: list[str] = []
        for owner, name in (
            (store, "compare_and_swap"),
            (store, "take"),
            (store, "read"),
            (app.backend, "store_result"),
            (from_request, "pooled_producer"),
        ):
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name == "store_result":
                self.stored.append(args[2])
            self.count += 1
            is_here = self.count == self.at
            if is_here and self.is_before:
                signal.raise_signal(celery_internals.SOFT_LIMIT)
            answer = call(*args, **kwargs)
            if is_here and not self.is_before:
                signal.raise_signal(celery_internals.SOFT_LIMIT)
            return answer

        return counted


def succeeds(self: Any) -> str:
    self.step("one", int)
    return "end"


def fails(self: Any) -> None:
    self.checkpoint()
    raise ValueError("its own")


def resumes(self: Any) -> str:
    self.step("one", int)
    if not self.continuation.resumptions:
        raise ValueError("once")
    return "end"


def retries(self: Any) -> str:
    self.step("one", int)
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "end"


def other() -> str:
    return "other"


BODIES = [succeeds, fails, resumes, retries]


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("body", BODIES)
def test_a_limit_at_any_call_leaves_one_outcome(
    worker: Worker, app: Celery, store: Any, task: Any, limit: Any, monkeypatch: Any, body: Any, is_before: bool
) -> None:
    calls = Calls(app, store, monkeypatch)
    calls.is_before = is_before
    made = task(body, continuation_resume_error_countdown=0, on_failure=lambda self, *_: failures.append(1))
    at = 0
    while at <= calls.count:
        at += 1
        calls.at, calls.count = at, 0
        calls.stored, failures = [], []
        result = made.delay()
        worker.drain()
        calls.at = -1
        final = [state for state in calls.stored if state in states.READY_STATES]
        assert len(final) == 1, f"{calls.stored} with the limit at call {at}"
        assert calls.stored[-1] == final[0] == result.state
        assert len(failures) == (final == [states.FAILURE])
        assert store.read(result.id).fence.status == ENDED[final[0]]
    assert at > 5


def test_a_limit_in_the_tasks_own_code_is_its_error(worker: Worker, task: Any, limit: Any, record: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        signal.raise_signal(celery_internals.SOFT_LIMIT)

    result = task(run).delay()
    assert worker.drain() == 1
    assert isinstance(result.result, SoftTimeLimitExceeded)
    assert record(result.id).fence.status == Status.FAILED


def test_a_limit_that_came_during_the_claim_ends_the_body(
    worker: Worker, task: Any, limit: Any, store: Any, monkeypatch: Any
) -> None:
    def swap(*args: Any) -> Any:
        signal.raise_signal(celery_internals.SOFT_LIMIT)
        monkeypatch.undo()
        return store.compare_and_swap(*args)

    def run(self: Any) -> None:
        ran.append(1)

    ran: list[int] = []
    result = task(run).delay()
    with monkeypatch.context() as monkeypatch:
        monkeypatch.setattr(store, "compare_and_swap", swap)
        worker.drain()
    assert (ran, result.state, store.read(result.id).fence.status) == ([], states.FAILURE, Status.FAILED)


@pytest.mark.parametrize("has_step", [True, False])
def test_a_limit_in_an_app_task(worker: Worker, task: Any, limit: Any, store: Any, has_step: bool) -> None:
    def run(self: Any) -> None:
        if has_step:
            store.compare_and_swap = swap
            self.step("one", int)
        signal.raise_signal(celery_internals.SOFT_LIMIT)
        raise AssertionError("it continues")

    def swap(*args: Any) -> Any:
        del store.compare_and_swap
        signal.raise_signal(celery_internals.SOFT_LIMIT)
        return store.compare_and_swap(*args)

    result = task(run, base=AppTask).delay()
    worker.drain()
    assert isinstance(result.result, SoftTimeLimitExceeded)
    found = store.read(result.id)
    assert (found and found.fence.status) == (Status.FAILED if has_step else None)


def test_a_limit_during_replace_is_dropped_once_the_other_task_is_out(
    worker: Worker, app: Celery, task: Any, limit: Any, monkeypatch: Any
) -> None:
    instead = app.task(name="other")(other)

    def run(self: Any) -> None:
        self.step("one", int)
        send = self.app.amqp.send_task_message

        def sent(*args: Any, **kwargs: Any) -> Any:
            answer = send(*args, **kwargs)
            signal.raise_signal(celery_internals.SOFT_LIMIT)
            return answer

        monkeypatch.setattr(type(self.app.amqp), "send_task_message", property(lambda _: sent))
        try:
            self.replace(instead.s())
        except Ignore:
            monkeypatch.undo()
            raise

    with monkeypatch.context() as monkeypatch:
        result = task(run).delay()
        worker.deliver()
    assert result.state == states.PENDING
    worker.drain()
    assert result.result == "other"


@pytest.mark.parametrize("where", ["in the claim", "in Celery's code after it"])
def test_a_refused_execution_stores_nothing_of_a_limit(
    worker: Worker, task: Any, limit: Any, store: Any, monkeypatch: Any, where: str
) -> None:
    result = task(fails).delay()
    worker.drain()
    owner, name = (store, "read") if where == "in the claim" else (trace.TraceInfo, "handle_ignore")
    call = getattr(owner, name)

    def late(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(celery_internals.SOFT_LIMIT)
        return call(*args, **kwargs)

    with monkeypatch.context() as patches:
        patches.setattr(owner, name, late)
        worker.execute(worker.deliveries[0])
    assert isinstance(result.result, ValueError)
    assert store.read(result.id).fence.status == Status.FAILED


def test_another_thread_and_another_process_hold_nothing(limit: Any, monkeypatch: Any) -> None:
    thread = threading.Thread(target=limit.hold)
    thread.start()
    thread.join()
    assert not limit._is_held
    monkeypatch.setattr(celery_internals, "in_pool_child", lambda: False)
    limit.hold()
    assert not limit._is_held


def test_a_pool_sends_this_signal() -> None:
    assert celery_internals.SOFT_LIMIT == billiard_pool.SIG_SOFT_TIMEOUT
