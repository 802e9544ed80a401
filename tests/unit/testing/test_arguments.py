"""A rehearsed task gets its arguments out of a message, in the first execution too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, states

from celery_continuations import ContinuableTask
from celery_continuations.testing import (
    assert_resumable,
    interrupt_after_step,
    interrupt_during_step,
    rehearse,
    run_until_done,
)
from tests.support.worker import make_app

PAIR, BY_NUMBER, ROWS = (1, 2), {1: "one"}, ["header", "a", "b"]


def look(self: Any, pair: Any, by_number: Any, *, rows: list[str]) -> list[Any]:
    """Return what it got, and change all of it."""
    asked = [type(pair).__name__, list(by_number), rows.pop(0)]
    asked += [type(self.request.args[0]).__name__, list(self.request.args[1])]
    by_number.clear()
    self.saved.setdefault("asked", []).append(asked)
    for _ in self.iterate("rows", rows):
        pass
    for _ in self.iterate("more", rows):
        pass
    return [asked, self.saved["asked"], len(rows)]


def look_once(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Return what does not depend on the number of executions."""
    asked, _, count = look(self, *args, **kwargs)
    return [asked, count]


AS_JSON = ["list", ["1"], "header", "list", ["1"]]
AS_PICKLE = ["tuple", [1], "header", "tuple", [1]]


@pytest.fixture(params=["task", "app"])
def looking(request: Any, app: Celery) -> Callable[..., Any]:
    """Make the task, with a serializer of its own or of the app."""

    def make(serializer: str, function: Any = look) -> Any:
        if request.param == "app":
            made_by, options = make_app(task_serializer=serializer), {}
        else:
            made_by, options = app, {"serializer": serializer}
        made_by.conf.accept_content = ["json", "pickle"]
        return made_by.task(base=ContinuableTask, bind=True, name="look", **options)(function)

    return make


@pytest.fixture
def given() -> Any:
    """Yield arguments, and check at the end that the caller's objects are unchanged."""
    args, kwargs = (PAIR, dict(BY_NUMBER)), {"rows": list(ROWS)}
    yield args, kwargs
    assert (args, kwargs) == ((PAIR, BY_NUMBER), {"rows": ROWS})


@pytest.mark.parametrize(("serializer", "seen"), [("json", AS_JSON), ("pickle", AS_PICKLE)])
def test_rehearse(looking: Any, given: Any, serializer: str, seen: Any) -> None:
    args, kwargs = given
    assert run_until_done(rehearse(looking(serializer), *args, **kwargs)) == [seen, [seen], 2]


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_assert_resumable(looking: Any, given: Any, serializer: str) -> None:
    args, kwargs = given
    assert_resumable(looking(serializer, look_once), *args, kwargs=kwargs)


@pytest.mark.parametrize(("serializer", "seen"), [("json", AS_JSON), ("pickle", AS_PICKLE)])
@pytest.mark.parametrize("after", [False, True])
def test_interrupt(looking: Any, given: Any, serializer: str, seen: Any, after: bool) -> None:
    args, kwargs = given
    made = looking(serializer)
    with interrupt_after_step(made, "rows") if after else interrupt_during_step(made, "rows", cursor=1) as run:
        made.apply(args, kwargs)
    assert run_until_done(run) == [seen, [seen, seen], 2]


def test_interrupt_what_is_delayed(app: Celery, looking: Any, given: Any) -> None:
    args, kwargs = given
    made = looking("json")
    made.app.conf.task_always_eager = True
    with interrupt_during_step(made, "rows") as run:
        made.delay(*args, **kwargs)
    assert run_until_done(run) == [AS_JSON, [AS_JSON, AS_JSON], 2]


def test_changes_before_the_body_do_not_reach_the_caller_or_the_next_execution(app: Celery) -> None:
    class Tenant(ContinuableTask):
        abstract = True

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append((kwargs.pop("tenant"), args.pop()))

    @app.task(base=Tenant, bind=True, name="of a tenant")
    def run(self: Any, value: int) -> int:
        for _ in self.step("one"):
            pass
        for _ in self.step("two"):
            pass
        return value

    seen: list[Any] = []
    args, kwargs = [1, 2], {"tenant": "acme"}
    with interrupt_after_step(run, "one") as rehearsal:
        run.apply(args, kwargs)
    assert run_until_done(rehearsal) == 1
    assert seen == [("acme", 2), ("acme", 2)]
    assert (args, kwargs) == ([1, 2], {"tenant": "acme"})


def test_a_retry_redefines_them(task: Any) -> None:
    def run(self: Any, rows: list[int], again: Any = None) -> Any:
        seen.append((rows[:], again))
        rows.clear()
        self.step("one", int)
        if again is None:
            raise self.retry(args=((3, 4),), kwargs={"again": {1: 2}}, countdown=0)
        for _ in self.step("two"):
            pass
        return self.step("three", int)

    seen: list[Any] = []
    made = task(run)
    with interrupt_after_step(made, "two") as rehearsal:
        made.apply(([1, 2],))
    assert run_until_done(rehearsal) == 0
    assert seen == [([1, 2], None), ([3, 4], {"1": 2}), ([3, 4], {"1": 2})]


def test_each_run_of_a_proof_begins_with_the_arguments_as_they_were_sent(task: Any) -> None:
    def run(self: Any, rows: list[int]) -> int:
        begun.append(list(rows)) if self.request.retries == 0 and self.continuation.executions == 1 else None
        rows.append(0)
        self.step("one", int)
        if self.request.retries == 0:
            raise self.retry(args=([7],), countdown=0)
        for _ in self.iterate("rows", range(3)):
            pass
        return sum(rows)

    begun: list[list[int]] = []
    assert_resumable(task(run), [1, 2], pairs=10)
    assert len(begun) > 10
    assert set(map(tuple, begun)) == {(1, 2)}


def test_another_task_and_another_run_keep_what_they_were_given(app: Celery, task: Any) -> None:
    def run(self: Any, value: Any) -> Any:
        self.step("one", int)
        self.step("two", int)
        return type(value).__name__

    made, other = task(run), task(run)
    with interrupt_after_step(made, "one") as rehearsal:
        assert other.apply((PAIR,)).get() == "tuple"
        made.apply((PAIR,))
        assert made.apply((PAIR,)).get() == "tuple", "an ordinary call in eager mode"
    assert run_until_done(rehearsal) == "list"


def test_what_cannot_be_serialized_fails_the_task(task: Any) -> None:
    def run(self: Any, value: Any) -> None:
        raise AssertionError("run")

    made = task(run)
    rehearsal = rehearse(made, object())
    assert (rehearsal.state, type(rehearsal.error).__name__) == (states.FAILURE, "EncodeError")
    with pytest.raises(AssertionError, match="ended"), interrupt_during_step(made, "one"):
        assert made.apply((object(),)).state == states.FAILURE


@pytest.mark.parametrize("way", ["call", "run", "apply"])
def test_elsewhere_arguments_are_the_callers_own_objects(task: Any, way: str) -> None:
    def run(self: Any, rows: list[int], *, options: dict[str, int]) -> None:
        seen.append((rows, options))
        self.step("one", int)

    seen: list[Any] = []
    made = task(run)
    rows, options = [1], {"two": 2}
    if way == "call":
        made(rows, options=options)
    elif way == "run":
        made.run(rows, options=options)
    else:
        assert made.apply((rows,), {"options": options}).state == states.SUCCESS
    assert seen[0][0] is rows
    assert seen[0][1] is options
