"""A wait that was renamed while a task was in it takes what is delivered under either name."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_continuations import ContinuableTask, DeliveryError, WaitTimeout


@pytest.fixture
def deploy(app: Celery, worker: Any) -> Any:
    """Start a task that waits for an approval, and put code in its place that calls it consent."""
    name = "approval"

    @app.task(base=ContinuableTask, bind=True, name="waits")
    def waits(self: Any, timeout: Any = None) -> Any:
        return self.wait_for(name, timeout)

    def start(**kwargs: Any) -> Any:
        nonlocal name
        result = waits.apply_async(kwargs=kwargs)
        worker.deliver()
        name = "consent"
        waits.continuation_renamed_steps = {"approval": "consent"}
        return result

    def back() -> None:
        nonlocal name
        name = "approval"
        waits.continuation_renamed_steps = {}

    start.back = back  # type: ignore[attr-defined]
    return start


@pytest.mark.parametrize("name", ["approval", "consent"])
def test_it_wakes_for_either_name(worker: Any, deploy: Any, name: str) -> None:
    result = deploy()
    result.deliver(name, "ann")
    worker.drain()
    assert result.get() == "ann"


def test_old_code_that_it_comes_to_finds_the_payload_too(worker: Any, deploy: Any) -> None:
    result = deploy()
    result.deliver("consent", "ann")
    deploy.back()
    worker.drain()
    assert result.get() == "ann"


def test_another_payload_under_the_other_name_is_refused(worker: Any, deploy: Any) -> None:
    result = deploy()
    result.deliver("consent", "ann")
    with pytest.raises(DeliveryError, match="something else was delivered"):
        result.deliver("approval", "bob")
    result.deliver("approval", "ann")
    worker.drain()
    assert result.get() == "ann"


def test_a_wait_that_is_over_is_over_under_both_names(worker: Any, deploy: Any, later: Any) -> None:
    result = deploy(timeout=60)
    later(61)
    worker.drain()
    assert isinstance(result.result, WaitTimeout)
    for name in ("approval", "consent"):
        with pytest.raises(DeliveryError):
            result.deliver(name, "ann")


def test_a_wait_that_became_a_sleep_ends(app: Celery, worker: Any, later: Any) -> None:
    """What the first execution has fixed of a wait without a timeout is not a moment to wake at."""
    sleeps = False

    @app.task(base=ContinuableTask, bind=True, name="waits or sleeps")
    def waits(self: Any) -> str:
        if sleeps:
            self.sleep("pause", 30)
        else:
            self.wait_for("pause")
        return "end"

    result = waits.delay()
    worker.deliver()
    sleeps = True
    result.deliver("pause", None)
    worker.drain()
    later(31)
    worker.drain()
    assert result.get() == "end"


def test_other_children_than_an_earlier_execution_has_started(app: Celery, worker: Any) -> None:
    count = 3

    @app.task(name="child")
    def child(number: int) -> int:
        return number

    @app.task(base=ContinuableTask, bind=True, name="parent")
    def parent(self: Any) -> Any:
        return self.wait_for_results("children", [child.s(number) for number in range(count)])

    result = parent.delay()
    worker.deliver()
    count = 1
    worker.drain()
    assert "was given 1 tasks, an earlier execution 3" in str(result.result)
