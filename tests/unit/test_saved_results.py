"""What `delay()` returns can be the value of a step."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.result import AsyncResult, GroupResult

from celery_continuations import ContinuableAsyncResult, UnserializableValueError
from celery_continuations.core import codec
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.testing import assert_resumable


@pytest.fixture
def ship(app: Celery) -> Any:
    sent: list[int] = []

    @app.task(name="ship")
    def ship(order: int) -> int:
        sent.append(order)
        return 10 * order

    ship.sent = sent
    return ship


def interrupted(worker: Any, task: Any, step: Any) -> Any:
    """Run a task that sends others in a step, and stops before it uses what they return; return what it then has."""
    seen: list[Any] = []

    def body(self: Any) -> None:
        result = self.step("ship", step)
        for row in self.iterate("rows", range(3)):
            if row == 1 and not seen:
                seen.append(result)
                worker.stop()
        seen.append(result)

    made = task(body)
    made.apply_async()
    worker.drain()
    first, later = seen
    assert first == later
    return later


def test_a_step_may_send_another_task(worker: Any, app: Celery, task: Any, ship: Any) -> None:
    result = interrupted(worker, task, lambda: ship.delay(7))
    assert type(result) is app.AsyncResult
    assert (result.app, result.get(), ship.sent) == (app, 70, [7])


def test_a_result_of_a_continuable_task_keeps_what_it_can_do(worker: Any, task: Any) -> None:
    def waits(self: Any) -> Any:
        return self.wait_for("approval")

    child = task(waits)
    result = interrupted(worker, task, child.delay)
    assert isinstance(result, ContinuableAsyncResult)
    result.deliver("approval", "yes")
    worker.drain()
    assert result.get() == "yes"


def test_groups_and_chains_keep_their_members_and_parents(worker: Any, task: Any, ship: Any) -> None:
    sent = interrupted(
        worker,
        task,
        lambda: {"group": group(ship.s(1), ship.s(2)).delay(), "chain": [chain(ship.s(3), ship.s()).delay()]},
    )
    assert isinstance(sent["group"], GroupResult)
    assert [one.get() for one in sent["group"].results] == [10, 20]
    (last,) = sent["chain"]
    assert (last.get(), last.parent.get()) == (300, 30)


def test_a_step_called_directly_or_eagerly_may_send_too(app: Celery, task: Any, ship: Any) -> None:
    def body(self: Any) -> Any:
        return self.step("ship", ship.delay, 7).get()

    made = task(body)
    app.conf.task_always_eager = True
    assert made() == made.apply().get() == 70


def test_such_a_task_is_resumable(app: Celery, task: Any, ship: Any) -> None:
    def body(self: Any) -> str:
        result = self.step("ship", ship.delay, 7)
        for _ in self.iterate("rows", range(2)):
            pass
        return type(result).__name__

    assert_resumable(task(body))


def test_release_0_1_leaves_a_snapshot_with_a_result_to_later_ones() -> None:
    codec_is_extended()
    snapshot = Snapshot()
    snapshot.saved["kept"] = 1
    assert json.loads(snapshot.dumps())["version"] == 1
    snapshot.saved["kept"] = AsyncResult("id")
    assert json.loads(snapshot.dumps())["version"] == 2
    assert Snapshot.loads(snapshot.dumps()).saved["kept"] == AsyncResult("id")


def codec_is_extended() -> None:
    from celery_continuations import saved_results

    saved_results.allow()


def test_a_result_within_another_value_is_copied_like_it() -> None:
    codec_is_extended()
    value = {"one": [AsyncResult("id")]}
    assert codec.copy(value) == value
    with pytest.raises(UnserializableValueError, match="dict key"):
        codec.encode({AsyncResult("id"): 1})
