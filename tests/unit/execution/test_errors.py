"""What is kept of errors, where they show, and how a task is resumed from them."""

from __future__ import annotations

import json
import logging
from typing import Any

import click
import pytest
from celery import Celery, states
from celery.exceptions import Reject, TimeLimitExceeded

from celery_continuations.bin import facts, shown
from celery_continuations.core.errors import LONGEST_TEXT
from celery_continuations.core.notes import with_error
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution.reporting import MANY_ERRORS
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed

LONG = "x" * 140_000


class DriverError(Exception):
    """An error with a statement in it, and a constructor of its own."""

    def __init__(self, statement: str, code: int) -> None:
        super().__init__(statement, code)
        self.code = code


def warnings(caplog: Any) -> list[Any]:
    return [one for one in caplog.records if one.levelno >= logging.WARNING]


# -- long texts


def test_a_task_resumes_from_errors_of_any_length(worker: Any, task: Any, record: Any) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(30)):
            if item and item not in failed:
                failed.append(item)
                raise ValueError(LONG)
        return "end"

    failed: list[int] = []
    result = task(run, continuation_resume_error_countdown=0).delay()
    worker.deliver()
    assert result.state == states.RETRY
    snapshot = Snapshot.loads(record(result.id).snapshot)
    assert len(snapshot.errors[-1]["message"]) < LONGEST_TEXT + 50
    assert len(str(result.info)) < 2 * LONGEST_TEXT
    worker.drain()
    assert (result.get(), len(failed)) == ("end", 29)


@pytest.mark.parametrize("error", [ValueError(LONG), DriverError(LONG, 5)])
def test_a_long_error_that_a_task_has_caught_is_remembered_by_type(worker: Any, task: Any, error: Exception) -> None:
    def fails() -> None:
        raise error

    def run(self: Any) -> str:
        try:
            self.step("one", fails)
        except type(error) as exc:
            caught.append(exc)
        for _ in self.step("two"):
            worker.stop() if len(caught) == 1 else None
        self.checkpoint()
        return "end"

    caught: list[Any] = []
    result = task(run, continuation_max_snapshot=10_000).delay()
    worker.drain()
    assert (result.get(), [type(one) for one in caught]) == ("end", [type(error)] * 2)


def test_old_errors_never_make_a_snapshot_too_large(worker: Any, task: Any) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(30)):
            if item not in failed and item % 2:
                failed.append(item)
                raise ValueError("x" * 900)
        return "end"

    failed: list[int] = []
    result = task(run, continuation_max_snapshot=4000, continuation_resume_error_countdown=0).delay()
    worker.drain()
    assert result.get() == "end"


# -- the error that has ended a task


def after_progress(self: Any) -> None:
    self.step("one", int)
    raise KeyError("later")


def without_progress(self: Any) -> None:
    raise ValueError(LONG)


def in_the_loop(self: Any) -> None:
    for _ in self.iterate("loop", range(3)):
        raise ValueError("item")


def too_large(self: Any) -> None:
    self.saved["text"] = LONG
    self.step("one", int)


def unsaveable(self: Any) -> None:
    self.step("one", object)


def rejected(self: Any) -> None:
    raise Reject("no", requeue=False)


def retried(self: Any) -> None:
    self.retry(exc=ValueError("retried"), max_retries=0)


FAILURES = [
    (after_progress, "KeyError", "'later'"),
    (without_progress, "ValueError", "xxx"),
    (in_the_loop, "ValueError", "item"),
    (too_large, "SnapshotTooLargeError", "saved['text']"),
    (unsaveable, "UnserializableValueError", "the value of step 'one'"),
    (rejected, "Reject", "no"),
    (retried, "ValueError", "retried"),
]


@pytest.mark.parametrize(("body", "kind", "text"), FAILURES, ids=lambda one: getattr(one, "__name__", ""))
def test_the_error_of_a_failed_task_is_shown_everywhere(
    worker: Any, app: Celery, task: Any, record: Any, body: Any, kind: str, text: str
) -> None:
    result = task(body, continuation_max_snapshot=50_000, continuation_resume_error_countdown=0).delay()
    worker.drain()
    found = record(result.id)
    assert found.fence.status == Status.FAILED
    brief, whole = facts.brief(result.id, found), facts.whole(result.id, found)
    assert (brief["failure"]["type"], brief["error"]) == (kind, None)
    assert text in brief["failure"]["message"]
    assert len(brief["failure"]["message"]) < LONGEST_TEXT + 50
    assert json.loads(shown.as_json(whole))["failure"] == brief["failure"]
    assert kind in shown.cells(brief)[-1]
    lines = [click.unstyle(line) for line in shown.whole(whole)]
    assert any(line.startswith("  failed with") and kind in line for line in lines)
    assert (result.error.type, result.error.message) == (kind, brief["failure"]["message"])
    assert text in str(result.error)


def test_the_error_of_a_snapshot_of_a_later_release_is_kept_beside_it(worker: Any, task: Any, store: Any) -> None:
    newer = json.dumps({**json.loads(Snapshot().dumps()), "version": 99, "unknown": 1})
    store.compare_and_swap("a", None, Update(Fence(0, Status.QUEUED), newer))
    result = task(in_the_loop, continuation_change_grace=0).apply_async(task_id="a")
    worker.drain()
    assert store.read("a").fence.status == Status.FAILED
    assert result.error.type == "InvalidStepError"
    assert json.loads(store.read("a").snapshot)["unknown"] == 1


def test_the_error_with_which_the_main_process_ends_a_task_is_kept(worker: Any, app: Celery, task: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(3)):
            if item == 1:
                raise Killed

    result = task(run, continuation_checkpoint_interval=0).delay()
    worker.deliver_killed()
    sweeper = Sweeper(app, store := open_store(app, "memory"), store_owner(result), lambda task_id: True)
    sweeper.decide(result.id)
    sweeper.decide(result.id, Status.FAILED, TimeLimitExceeded(5))
    assert store.read(result.id).fence.status == Status.FAILED
    assert (result.error.type, result.error.step) == ("TimeLimitExceeded", "loop")


def store_owner(result: Any) -> str:
    return str(result.record().fence.worker)


def test_a_retry_forgets_the_error(worker: Any, app: Celery, task: Any, record: Any) -> None:
    result = task(in_the_loop).delay()
    worker.drain()
    assert result.error.step == "loop"
    result.retry()
    assert result.error is None
    assert facts.brief(result.id, record(result.id))["failure"] is None


def test_an_error_that_only_the_result_backend_knows_is_shown(worker: Any, task: Any, store: Any) -> None:
    result = task(in_the_loop).delay()
    worker.drain()
    found = store.read(result.id)
    data = {**json.loads(found.snapshot), "error": None}
    store.compare_and_swap(result.id, found.fence, Update(found.fence, json.dumps(data)))
    assert (result.error.type, result.error.message) == ("ValueError", "item")


def test_a_failure_noted_by_another_process_keeps_the_progress() -> None:
    text = Snapshot(current=("loop", 3), saved={"a": 1}).dumps()  # type: ignore[arg-type]
    found = Snapshot.loads(with_error(text, ValueError("x")))
    assert (found.current, found.saved, found.error) == (
        ("loop", 3),
        {"a": 1},
        {"type": "ValueError", "message": "x", "step": "loop", "cursor": 3},
    )


# -- resuming


def failing_each(every: int, total: int) -> Any:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(total)):
            if item % every == every - 1 and item not in failed:
                failed.add(item)
                raise ValueError(item)
        return "end"

    failed: set[int] = set()
    return run


@pytest.fixture
def countdowns(monkeypatch: Any) -> list[float]:
    from celery_continuations.execution import running

    found: list[float] = []
    real = running.error_countdown

    def noted(*args: Any) -> float:
        found.append(real(*args))
        return 0.0

    monkeypatch.setattr(running, "error_countdown", noted)
    return found


def test_an_error_after_progress_costs_a_fraction_of_a_second(worker: Any, task: Any, countdowns: list[float]) -> None:
    result = task(failing_each(20, 1000)).delay()
    worker.drain(100)
    assert (result.get(), len(countdowns)) == ("end", 50)
    assert sum(countdowns) < 5


def test_the_countdown_doubles_while_errors_are_close_and_is_short_again_later(
    worker: Any, task: Any, countdowns: list[float]
) -> None:
    result = task(failing_each(2, 20), continuation_resume_error_countdown=8).delay()
    worker.drain()
    assert result.get() == "end"
    assert countdowns == [0.125, 0.25, 0.5, 1, 2, 4, 8, 8, 8, 8]
    countdowns.clear()
    task(failing_each(11, 55), continuation_resume_error_countdown=8).delay()
    worker.drain()
    assert countdowns == [0.125] * 5


def test_only_the_first_error_is_logged_with_its_traceback(
    worker: Any, task: Any, caplog: Any, countdowns: list[float]
) -> None:
    caplog.set_level("INFO", "celery_continuations")
    task(failing_each(10, 100)).delay()
    worker.drain()
    interrupted = [one for one in caplog.records if getattr(one, "action", "") == "interrupted"]
    assert len(interrupted) == 10
    assert [one.levelno for one in interrupted] == [logging.WARNING] + [logging.INFO] * 9
    assert [bool(one.exc_info) for one in interrupted] == [True] + [False] * 9
    assert all("ValueError" in one.getMessage() for one in interrupted)
    assert len(warnings(caplog)) == 1


def test_resuming_from_errors_without_an_end_is_warned_of(
    worker: Any, task: Any, caplog: Any, countdowns: list[float]
) -> None:
    caplog.set_level("INFO", "celery_continuations")
    task(failing_each(2, 2 * 4 * MANY_ERRORS + 3)).delay()
    worker.drain(10 * MANY_ERRORS)
    found = [one for one in warnings(caplog) if one.action == "many_errors"]
    assert [one.data["errors"] for one in found] == [MANY_ERRORS, 2 * MANY_ERRORS, 4 * MANY_ERRORS]
    assert all(one.exc_info for one in found)


# -- retry() without a step


def test_a_retry_repeats_the_wait_that_has_failed(worker: Any, app: Celery, task: Any, later: Any) -> None:
    def run(self: Any) -> Any:
        self.step("before", ran.append, "before")
        return self.wait_for("approval", timeout=5)

    ran: list[str] = []
    result = task(run).delay()
    worker.drain()
    later(10)
    worker.drain()
    assert (result.state, result.error.type) == (states.FAILURE, "WaitTimeout")
    result.retry()
    worker.drain()
    assert result.status_of_record == "waiting"
    result.deliver("approval", "yes")
    worker.drain()
    assert (result.get(), ran) == ("yes", ["before"])


def test_a_retry_starts_the_failed_children_again(worker: Any, app: Celery, task: Any, later: Any) -> None:
    def child() -> str:
        ran.append("child")
        if len(ran) == 1:
            raise ValueError("child")
        return "done"

    def run(self: Any) -> Any:
        return self.wait_for_results("child", sent.s())

    ran: list[str] = []
    sent = app.task(name=f"child of {app.main}")(child)
    result = task(run).delay()
    worker.drain()
    assert (result.state, result.error.type) == (states.FAILURE, "ValueError")
    result.retry()
    worker.drain()
    assert (result.get(), len(ran)) == ("done", 2)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_retry_repeats_the_step_whose_value_could_not_be_saved(
    worker: Any, app: Celery, task: Any, wrapped: bool
) -> None:
    def run(self: Any) -> Any:
        self.step("before", ran.append, "before")
        try:
            return self.step("value", values.pop)
        except Exception as exc:
            if wrapped:
                raise RuntimeError("no value") from exc
            raise

    ran: list[str] = []
    values = [7, object()]
    result = task(run, continuation_resume_errors_after_advancing=False).delay()
    worker.drain()
    assert result.state == states.FAILURE
    result.retry()
    worker.drain()
    assert (result.get(), ran) == (7, ["before"])


def test_a_retry_does_not_repeat_a_step_whose_error_was_handled(worker: Any, app: Celery, task: Any) -> None:
    def run(self: Any) -> Any:
        try:
            self.step("caught", fails)
        except ValueError:
            pass
        self.step("next", int)
        if len(ran) < 3:
            ran.append("later")
            raise KeyError("later")
        return ran

    def fails() -> None:
        ran.append("caught")
        raise ValueError

    ran: list[str] = []
    result = task(run, continuation_resume_errors_after_advancing=False).delay()
    worker.drain()
    assert result.state == states.FAILURE
    result.retry()
    worker.drain()
    result.retry()
    worker.drain()
    assert result.get() == ["caught", "later", "later"]


def test_a_task_that_release_0_1_has_failed_is_retried_at_the_step_that_failed(store: Any, app: Celery) -> None:
    data = json.loads(Snapshot(executions=2).dumps())
    data["completed"] = [["before", "value", 1], ["value", "lost", "cannot be saved: x"]]
    del data["kinds"]
    message = {"task": "t", "route": {}, "headers": {}, "properties": {}, "sending": {}, "content": [], "body": ""}
    text = json.dumps(message)
    store.compare_and_swap("a", None, Update(Fence(1, Status.FAILED), json.dumps(data), text))
    from celery_continuations.protocol import retrying

    retrying.retry(store, "a")
    assert Snapshot.loads(store.read("a").snapshot).steps == ["before"]
