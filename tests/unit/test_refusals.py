"""Mistakes in a task's code that are rejected when the task is created or first runs."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from celery import Celery, _state, shared_task, states

from celery_continuations import (
    AppTask,
    ContinuableTask,
    InvalidStepError,
    SnapshotTooLargeError,
    continuable,
)
from tests.support.worker import Worker, make_app


async def fetch(self: Any) -> int:
    return 1


async def stream(self: Any) -> AsyncIterator[int]:
    yield 1


def rows(self: Any) -> Iterator[int]:
    yield 1


def nothing() -> str:
    return "done"


LAZY = [
    (fetch, "fetch is an async function, .* asyncio"),
    (stream, "stream is an async generator function, .* asyncio"),
    (rows, "rows is a generator function, .* without yield"),
]


def hidden(function: Any) -> Any:
    """Call the function and return its result, as a decorator that knows no coroutines does."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


@pytest.mark.parametrize("base", [AppTask, ContinuableTask])
@pytest.mark.parametrize(("function", "message"), LAZY)
def test_a_function_whose_call_runs_nothing_is_refused(app: Celery, function: Any, message: str, base: Any) -> None:
    made = app.task(base=base, bind=True)(function)
    with pytest.raises(TypeError, match=rf"^task function {__name__}\.{message}"):
        app.finalize()
        made()


@pytest.mark.parametrize(("function", "message"), LAZY)
def test_such_a_method_is_refused(function: Any, message: str) -> None:
    for base in (AppTask, ContinuableTask):
        with pytest.raises(TypeError, match=message):
            type("Made", (base,), {"run": function})


@pytest.mark.parametrize(("function", "message"), LAZY)
def test_continuable_refuses_such_a_function_at_once(app: Celery, function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        continuable(function)
    with pytest.raises(TypeError, match=message):
        continuable(max_resumptions=7)(function)
    app.finalize()
    with pytest.raises(TypeError, match=message):
        continuable(app.task(bind=True)(function))


@pytest.fixture
def no_shared_tasks(monkeypatch: Any) -> None:
    """Forget the shared tasks of this test after it: each later app would make them."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))


@pytest.mark.usefixtures("no_shared_tasks")
def test_such_a_shared_task_is_refused(app: Celery) -> None:
    with pytest.raises(TypeError, match="fetch is an async function"):
        shared_task(base=ContinuableTask, bind=True)(fetch)
        app.finalize()


def test_a_plain_function_around_an_async_one_is_accepted(worker: Worker, task: Any) -> None:
    @functools.wraps(fetch)
    def run(self: Any) -> int:
        return asyncio.run(fetch(self))

    result = task(run).apply_async()
    worker.drain()
    assert result.get() == 1


@pytest.mark.parametrize("ignore_result", [False, True])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fetch, "returned a coroutine, fetch, .* never ran.* asyncio"),
        (stream, "returned an async generator, stream, .* never ran.* asyncio"),
        (rows, "returned a generator, rows, .* never ran.* without yield"),
    ],
)
def test_a_body_that_a_decorator_hid_fails(
    function: Any, message: str, ignore_result: bool, worker: Worker, task: Any
) -> None:
    ended: list[str] = []
    made = task(
        hidden(function),
        ignore_result=ignore_result,
        after_return=lambda self, status, *args: ended.append(status),
        autoretry_for=(Exception,),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = made.apply_async()
        assert worker.drain() == 1
        assert ended == [states.FAILURE]
        if not ignore_result:
            with pytest.raises(TypeError, match=message):
                result.get()
        with pytest.raises(TypeError, match=message):
            made()
        with pytest.raises(TypeError, match=message):
            made.apply().get()


class Abstract(ContinuableTask):
    abstract = True


@pytest.mark.parametrize("base", [ContinuableTask, Abstract])
@pytest.mark.parametrize("app_wide", [None, AppTask, ContinuableTask])
def test_an_unbound_task_that_was_given_the_base_is_refused(base: Any, app_wide: Any) -> None:
    app = Celery("unbound", task_cls=app_wide, set_as_current=False) if app_wide else make_app()
    made = app.task(base=base, name="proj.nothing", shared=False)(nothing)
    with pytest.raises(
        TypeError,
        match=rf"^task proj\.nothing has base={base.__name__} but is not bound, .* bind=True\), with self",
    ):
        made()


@pytest.mark.usefixtures("no_shared_tasks")
def test_an_unbound_shared_task_is_refused(app: Celery) -> None:
    with pytest.raises(TypeError, match="task shared.unbound has base=ContinuableTask but is not bound"):
        shared_task(base=ContinuableTask, name="shared.unbound")(nothing)
        app.finalize()


@pytest.mark.parametrize("task_cls", [AppTask, ContinuableTask, Abstract])
def test_an_unbound_task_of_an_app_with_such_a_class_is_accepted(task_cls: Any) -> None:
    app = Celery("unbound", task_cls=task_cls, set_as_current=False)
    assert app.task(shared=False)(nothing)() == "done"
    own = type("Own", (app.Task,), {"abstract": True})
    assert app.task(base=own, shared=False, name="own")(nothing)() == "done"
    assert app.task(base=AppTask, shared=False, name="explicit")(nothing)() == "done"


def test_a_class_based_task_is_accepted(app: Celery) -> None:
    class Doubles(ContinuableTask):
        name = "doubles"

        def run(self, n: int) -> int:
            return 2 * int(self.step("n", lambda: n))

    made = app.register_task(Doubles())
    assert made(3) == 6


def test_the_error_for_a_forgotten_loop_shows_how_to_write_it(app: Celery, task: Any) -> None:
    def run(self: Any) -> None:
        self.iterate("rows", range(3))

    with pytest.raises(
        InvalidStepError, match=r"nothing iterated over it; write `for item in self\.iterate\('rows', \.\.\.\):`$"
    ):
        task(run)()


@pytest.mark.parametrize("how", ["value", "saved", "cursor"])
def test_a_direct_call_refuses_a_snapshot_that_a_worker_could_not_save(how: str, task: Any) -> None:
    def run(self: Any) -> None:
        big = "x" * 600
        if how == "value":
            self.step("one", lambda: big)
        elif how == "saved":
            self.saved["big"] = big
        else:
            for step in self.step("one", start=""):
                step.set(big)
            self.saved["big"] = big

    made = task(run, continuation_max_snapshot=500)
    with pytest.raises(SnapshotTooLargeError, match="continuation_max_snapshot allows 500"):
        made()
    with pytest.raises(SnapshotTooLargeError):
        made.apply().get()
    assert task(run)() is None


class Mixin:
    def step(self) -> str:
        return "mine"


def test_an_attribute_that_hides_a_method_is_warned_of_once(app: Celery) -> None:
    with pytest.warns(UserWarning, match=r"attribute 'sleep' of task class .*Polled hides AppTask\.sleep") as warned:

        class Polled(ContinuableTask):
            abstract = True
            sleep = 5

    assert [one.filename for one in warned] == [__file__]
    app.task(base=Polled, bind=True)(squares)(1)
    with pytest.warns(UserWarning, match=r"'step' of task class .*Mixed, inherited from .*Mixin, hides AppTask\.step"):

        class Mixed(Mixin, ContinuableTask):
            abstract = True

    with pytest.warns(UserWarning, match="attribute 'saved' of task class .*squares hides"):
        app.task(base=ContinuableTask, bind=True, saved=True, name="saving")(squares)(1)


def squares(self: Any, count: int) -> list[int]:
    return [n * n for n in self.iterate("squares", range(count))]


def test_an_override_that_is_meant_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Logged(ContinuableTask):
            abstract = True

            def step(self, *args: Any, **kwargs: Any) -> Any:
                return super().step(*args, **kwargs)

            @property
            def saved(self) -> Any:
                return super().saved

        class Ours(ContinuableTask, Mixin):
            abstract = True
