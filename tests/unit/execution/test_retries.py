"""Retries are counted in a row at one place, and progress in ``self.saved`` is progress like any other."""

from __future__ import annotations

from typing import Any

import pytest
from celery import states

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.protocol.liveness import Loss
from celery_continuations.protocol.recovery import with_loss
from tests.support.worker import Killed

AT_ONCE = {"default_retry_delay": 0, "continuation_resume_error_countdown": 0}


@pytest.mark.parametrize("resumes", [True, False])
def test_autoretry_counts_the_retries_in_a_row_at_one_place(worker: Any, task: Any, resumes: bool) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(40)):
            if item % 10 == 9 and failures.count(item) < 2:
                failures.append(item)
                raise ValueError(item)
        return "end"

    failures: list[int] = []
    settings = {**AT_ONCE, "continuation_resume_errors_after_advancing": resumes}
    result = task(run, autoretry_for=(ValueError,), max_retries=2, **settings).delay()
    worker.drain()
    assert (result.state, failures) == (states.SUCCESS, [9, 9, 19, 19, 29, 29, 39, 39])


def test_a_place_that_fails_too_often_fails_the_task(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(4)):
            if item == 2:
                failures.append(self.request.retries)
                raise ValueError(item)

    failures: list[int] = []
    result = task(run, autoretry_for=(ValueError,), max_retries=2, **AT_ONCE).delay()
    worker.drain()
    assert (result.state, failures) == (states.FAILURE, [0, 0, 1, 2])  # the first is followed by a resumption


def test_retries_before_the_first_step_are_counted_as_in_celery(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        seen.append(self.request.retries)
        raise ValueError

    seen: list[int] = []
    result = task(run, autoretry_for=(ValueError,), max_retries=2, **AT_ONCE).delay()
    worker.drain()
    assert (result.state, seen) == (states.FAILURE, [0, 1, 2])


def test_a_task_that_calls_retry_sees_the_retries_at_this_place(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(6)):
            try:
                if item % 2 and failures.count(item) < 2:
                    failures.append(item)
                    raise ValueError(item)
            except ValueError as exc:
                backoffs.append(2**self.request.retries)
                self.retry(exc=exc, countdown=0, max_retries=2)

    failures: list[int] = []
    backoffs: list[int] = []
    result = task(run).delay()
    worker.drain()
    assert (result.state, backoffs) == (states.SUCCESS, [1, 2] * 3)


@pytest.mark.parametrize("end", ["stop", "kill", "sleep"])
def test_progress_before_the_execution_that_fails_counts(worker: Any, task: Any, later: Any, end: str) -> None:
    def run(self: Any) -> int:
        retries.append(self.request.retries)
        self.step("first", flaky, "first")
        if end == "sleep":
            self.sleep("nap", 5)
        elif len(retries) == 3:  # the step is complete
            if end == "kill":
                raise Killed
            worker.stop()
            self.checkpoint()
        self.step("second", flaky, "second")
        return int(self.request.retries)

    def flaky(name: str) -> None:
        if failures.count(name) < 2:
            failures.append(name)
            raise ValueError(name)

    retries: list[int] = []
    failures: list[str] = []
    made = task(run, autoretry_for=(ValueError,), max_retries=2, **AT_ONCE)
    result = made.delay()
    worker.deliver()
    worker.deliver()
    worker.deliver_killed() if end == "kill" else worker.deliver()
    later(30)  # the nap is over; or the sweep finds that the owner, this process, has lost the task
    if not worker.queued():
        pytest.fail("the task was not published")
    worker.drain()
    assert (result.state, retries[:4]) == (states.SUCCESS, [0, 1, 2, 0])


def test_a_poll_is_no_progress(worker: Any, task: Any, later: Any) -> None:
    def run(self: Any) -> None:
        self.wait_until("ready", poll, every=1, timeout=3600)

    def poll() -> bool:
        polls.append("poll")
        if len(polls) > 2:
            raise ValueError
        return False

    polls: list[str] = []
    result = task(run, autoretry_for=(ValueError,), max_retries=2, **AT_ONCE).delay()
    worker.drain()
    for _ in range(2):
        later(2)
        worker.drain()
    assert (result.state, len(polls)) == (states.FAILURE, 2 + 3)


# -- self.saved


def counting(worker: Any, seen: list[int], stops: bool = True) -> Any:
    def run(self: Any) -> str:
        while self.saved.setdefault("done", []) != [*range(6)]:
            seen.append(len(self.saved["done"]))
            self.saved["done"].append(len(self.saved["done"]))  # in place
            worker.stop() if stops else None
            self.checkpoint()
            if not stops and len(seen) in (2, 4):
                raise ValueError
        return "end"

    return run


def test_every_execution_of_a_task_that_keeps_its_progress_in_saved_can_be_stopped(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(counting(worker, seen)).delay()
    assert worker.drain() == 7
    assert (result.get(), seen) == ("end", [*range(6)])


def test_an_error_after_progress_in_saved_resumes(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(counting(worker, seen, stops=False), **AT_ONCE).delay()
    assert worker.drain() == 3
    assert (result.get(), seen) == ("end", [*range(6)])


def test_what_is_kept_in_saved_without_a_checkpoint_is_no_progress(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.saved["attempts"] = self.saved.get("attempts", 0) + 1
        for _ in self.iterate("loop", range(3)):
            raise ValueError

    result = task(run).delay()
    assert worker.drain() == 1
    assert result.state == states.FAILURE


def test_a_crash_after_progress_in_saved_is_the_first_at_its_place() -> None:
    text = Snapshot().dumps()
    for done in range(3):
        snapshot = Snapshot.loads(with_loss(text, Loss.CRASH))
        assert snapshot.losses == (1, 0)
        snapshot.saved["done"] = done
        assert snapshot.note_saved()
        assert not snapshot.note_saved()
        text = snapshot.dumps()
    assert Snapshot.loads(with_loss(with_loss(text, Loss.CRASH), Loss.CRASH)).losses == (2, 0)
