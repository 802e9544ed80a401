"""All the ways of making a task continuable, and of calling one without a worker."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, Task, shared_task, states
from celery.exceptions import ImproperlyConfigured

from celery_continuations import (
    AppTask,
    ContinuableAsyncResult,
    ContinuableTask,
    InvalidStepError,
    UnadvanceableCursorError,
    UnserializableValueError,
    continuable,
)
from tests.support.worker import Worker, make_app


def nothing() -> None:
    pass


def squares(self: Any, count: int) -> list[int]:
    return [n * n for n in self.iterate("squares", range(count))]


def test_base_class(app: Celery) -> None:
    made = app.task(base=ContinuableTask, bind=True, name="squares")(squares)
    assert (made.acks_late, made.reject_on_worker_lost) == (True, True)
    assert made(3) == [0, 1, 4]


def test_the_classes_take_type_arguments(app: Celery) -> None:
    class Squares(ContinuableTask[[int], list[int]]):
        name = "class of squares"

        def run(self, count: int) -> list[int]:
            return squares(self, count)

    assert app.register_task(Squares())(3) == [0, 1, 4]
    assert app.task(base=AppTask[..., list[int]], bind=True, name="squares")(squares)(3) == [0, 1, 4]
    assert ContinuableAsyncResult[int]("7f3a", app=app, store="memory").steps == ()


def test_a_task_may_override_its_delivery_settings(app: Celery) -> None:
    made = app.task(base=ContinuableTask, bind=True, name="squares", acks_late=False)(squares)
    assert (made.acks_late, made.reject_on_worker_lost) == (False, True)


def test_shared_task(app: Celery) -> None:
    made = shared_task(base=ContinuableTask, bind=True, name="shared.squares")(squares)
    app.set_current()
    assert made(3) == [0, 1, 4]
    assert made.app is app


def test_continuable_on_a_function_makes_a_shared_task(app: Celery) -> None:
    @continuable
    def cubes(self: Any, count: int) -> list[int]:
        """The cubes."""
        return [n**3 for n in self.iterate("cubes", range(count))]

    app.set_current()
    assert cubes(3) == [0, 1, 8]
    assert cubes.name == f"{__name__}.cubes"
    assert cubes.__doc__ == "The cubes."
    assert isinstance(cubes._get_current_object(), ContinuableTask)
    assert app.tasks[cubes.name].acks_late


def test_continuable_takes_settings_without_their_prefix() -> None:
    app = make_app()
    made = continuable(max_resumptions=7, checkpoint_interval=0)(app.task(bind=True, name="squares")(squares))
    assert (made.continuation_max_resumptions, made.continuation_checkpoint_interval) == (7, 0)
    with pytest.raises(TypeError, match="got 'expires', which is not a setting of a task; known are: store, "):
        continuable(expires=5)
    with pytest.raises(ImproperlyConfigured, match=r"max_resumptions = -1 of @continuable is not allowed; it takes"):
        continuable(max_resumptions=-1)


@pytest.mark.parametrize("finalized", [False, True])
def test_continuable_on_a_task_makes_that_very_task_continuable(finalized: bool) -> None:
    app = make_app()
    before = app.task(
        bind=True,
        name="squares",
        queue="own",
        autoretry_for=(KeyError,),
        max_retries=7,
        acks_late=not finalized or None,
    )(squares)
    if finalized:
        app.finalize()
    after = continuable(before)
    assert app.finalized is finalized, "the decorator must not finalize the app"
    assert after is before
    assert after.name == "squares"
    assert (after.queue, after.max_retries) == ("own", 7)
    assert isinstance(app.tasks["squares"], ContinuableTask)
    assert app.tasks["squares"].acks_late
    assert after(3) == [0, 1, 4]


def test_continuable_keeps_the_delivery_settings_that_the_author_chose() -> None:
    app = make_app(task_acks_late=True)
    chosen = continuable(app.task(bind=True, name="chosen", acks_late=False)(squares))
    left = continuable(app.task(bind=True, name="left")(squares))
    assert (chosen.acks_late, chosen.reject_on_worker_lost) == (False, True)
    assert (left.acks_late, left.reject_on_worker_lost) == (True, True)
    late = app.task(bind=True, name="late", acks_late=False)(squares)
    app.finalize()
    assert continuable(late).acks_late is False


def test_continuable_above_shared_task(app: Celery) -> None:
    made = continuable(max_resumptions=3)(shared_task(bind=True, name="shared.later")(squares))
    app.set_current()
    assert made(3) == [0, 1, 4]
    assert isinstance(app.tasks["shared.later"], ContinuableTask)
    assert app.tasks["shared.later"].continuation_max_resumptions == 3
    other = make_app()
    assert isinstance(other.tasks["shared.later"], ContinuableTask)


def test_a_converted_task_is_interrupted_and_retried_in_the_right_order() -> None:
    app = make_app()
    worker = Worker(app)

    @continuable
    @app.task(bind=True, name="converted", autoretry_for=(KeyError,), default_retry_delay=0)
    def converted(self: Any) -> int:
        for item in self.iterate("loop", range(4)):
            seen.append(item)
            if item == 1 and len(seen) == 2:
                raise KeyError
        return self.request.retries  # type: ignore[no-any-return]

    seen: list[int] = []
    result = converted.delay()
    worker.drain()
    assert (seen, result.get()) == ([0, 1, 1, 2, 3], 0)


def test_continuable_on_an_unbound_task_says_what_to_write() -> None:
    app = make_app()
    with pytest.raises(TypeError, match=r"write @app\.task\(bind=True\), with self as"):
        continuable(app.task(name="unbound")(nothing))
    finalized = app.task(name="unbound too")(nothing)
    app.finalize()
    with pytest.raises(TypeError, match=r"needs a bound task, and unbound too is not"):
        continuable(finalized)
    with pytest.raises(TypeError, match="takes a function or a Celery task, not 5"):
        continuable(5)
    with pytest.raises(TypeError, match="takes a function or a Celery task, not <class"):
        continuable(Task)


@pytest.mark.parametrize("above", ["app.task(bind=True)", "app.task", "shared_task(bind=True)"])
def test_continuable_below_a_task_decorator_says_what_to_write(above: str) -> None:
    """In a process of its own: a task that Celery half made stays registered."""
    code = f"""
from celery import Celery, shared_task
from celery_continuations import continuable
app = Celery("below")
try:
    @{above}
    @continuable
    def task(self): pass
    app.finalize()
except TypeError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "write it above @app.task(bind=True), or alone" in done.stdout


def test_task_cls_of_the_whole_app() -> None:
    app = Celery("whole", task_cls="celery_continuations:AppTask", set_as_current=False)
    made = app.task(bind=True)(squares)
    assert isinstance(made, AppTask)
    assert (made.acks_late, made.reject_on_worker_lost) == (False, None)
    assert made(3) == [0, 1, 4]


def test_class_based_tasks(app: Celery, worker: Worker) -> None:
    class Base(ContinuableTask):
        name = "by class"

        def run(self, count: int) -> list[int]:
            seen = []
            for n in self.iterate("squares", range(count)):
                seen.append(n)
                worker.stop()
            return seen

    class Derived(Base):
        name = "derived"

        def run(self, count: int) -> list[int]:
            self.step("before", int)
            return super().run(count)

    for cls in (Base, Derived):
        made = app.register_task(cls())
        result = made.delay(2)
        worker.drain()
        assert result.get() == []


def test_direct_calls_and_eager_mode_run_straight_through(app: Celery) -> None:
    def run(self: Any) -> list[Any]:
        facts = [self.step("one", lambda: "value")]
        self.checkpoint()
        for step in self.step("two", start=0, isolated=True):
            step.advance()
            facts.append(step.cursor)
        self.saved["x"] = 1
        for batch in self.iterate("three", range(3), batch=2):
            facts.append(batch)
        facts.append(self.continuation.completed)
        return facts

    expected: list[Any] = ["value", 1, [0, 1], [2], ("one", "two", "three")]
    made = app.task(base=ContinuableTask, bind=True, name="direct", continuation_should_interrupt=lambda t: "x")(run)
    assert made() == expected
    assert made.run() == expected
    assert made.apply().get() == expected
    app.conf.task_always_eager = True
    assert made.delay().get() == expected


def test_direct_calls_are_validated(app: Celery) -> None:
    def run(self: Any, what: str) -> None:
        if what == "twice":
            self.step("one", int)
            self.step("one", int)
        if what == "value":
            self.step("one", object)
        if what == "unused":
            self.step("one")
        if what == "saved":
            self.saved["x"] = object()
        if what == "changed":
            self.saved["x"] = []
            self.saved["x"].append(object())
        if what == "after":
            for step in self.step("one", start=0):
                step.advance()
            step.advance()
        if what == "order":
            self.iterate([1, 2], "name")
        if what == "start":
            for step in self.step("one"):
                step.advance()

    made = app.task(base=ContinuableTask, bind=True, name="validated")(run)
    for call in (made, made.run, lambda what: made.apply((what,), throw=True)):
        with pytest.raises(InvalidStepError, match="twice"):
            call("twice")
        with pytest.raises(InvalidStepError, match="neither iterated"):
            call("unused")
        with pytest.raises(UnserializableValueError, match="the value of step 'one'"):
            call("value")
        for how in ("saved", "changed"):
            with pytest.raises(UnserializableValueError, match=r"saved\['x'\]"):
                call(how)
        with pytest.raises(InvalidStepError, match="step 'one' is complete; its cursor was moved after its block"):
            call("after")
        with pytest.raises(InvalidStepError, match=r"must be a non-empty str, not \[1, 2\]; it is the first argument"):
            call("order")
        with pytest.raises(UnadvanceableCursorError, match="cannot advance None: give the step a start, e.g. start=0"):
            call("start")


def test_eager_tasks_see_their_own_request(app: Celery) -> None:
    def run(self: Any) -> Any:
        return self.request.id, self.request.is_eager

    made = app.task(base=ContinuableTask, bind=True, name="eager")(run)
    assert made.apply(task_id="mine").get() == ("mine", True)


def test_eager_retries_are_celerys_own(app: Celery) -> None:
    def run(self: Any) -> int:
        self.step("one", int)
        if self.request.retries < 2:
            self.retry(countdown=0)
        return self.request.retries  # type: ignore[no-any-return]

    assert app.task(base=ContinuableTask, bind=True, name="eager retry")(run).apply().get() == 2


def test_errors_in_eager_mode_are_raised_as_they_are(app: Celery) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise KeyError("no")

    result = app.task(base=ContinuableTask, bind=True, name="eager error")(run).apply()
    assert result.state == states.FAILURE
    assert isinstance(result.result, KeyError)


def test_a_task_that_calls_another_directly(app: Celery, worker: Worker) -> None:
    inner = app.task(base=ContinuableTask, bind=True, name="inner")(squares)

    def run(self: Any) -> Any:
        values = inner(3)
        for _ in self.iterate("squares", range(2)):
            worker.stop()
        return values

    result = app.task(base=ContinuableTask, bind=True, name="outer")(run).delay()
    assert worker.drain() == 3
    assert result.get() == [0, 1, 4]


def test_steps_outside_of_a_running_task(app: Celery) -> None:
    made = app.task(base=ContinuableTask, bind=True, name="outside")(squares)
    for use in (
        lambda: made.step("one", int),
        lambda: made.iterate("one", []),
        lambda: made.checkpoint(),
        lambda: made.saved,
        lambda: made.continuation,
    ):
        with pytest.raises(InvalidStepError, match="task outside was used where the task is not running"):
            use()


def test_a_step_in_another_thread(app: Celery) -> None:
    errors: list[Exception] = []

    def elsewhere(self: Any) -> None:
        try:
            self.step("one", int)
        except InvalidStepError as exc:
            errors.append(exc)

    def run(self: Any) -> None:
        thread = threading.Thread(target=elsewhere, args=(self,))
        thread.start()
        thread.join()

    app.task(base=ContinuableTask, bind=True, name="thread")(run)()
    assert "in another thread or greenlet" in str(errors[0])


def test_functions_that_are_not_steps_are_refused(app: Celery) -> None:
    def run(self: Any, args: Any, kwargs: Any) -> None:
        self.step("one", *args, **kwargs)

    made = app.task(base=ContinuableTask, bind=True, name="no step")(run)
    with pytest.raises(InvalidStepError, match="was given 5, which is not callable; for a cursor write start=5"):
        made((5,), {})
    with pytest.raises(InvalidStepError, match="was given begin but no function; without one it takes start, isol"):
        made((), {"begin": 5})


def test_functions_get_all_their_keyword_arguments(app: Celery) -> None:
    def run(self: Any) -> Any:
        return self.step("one", dict, start=1, isolated=2, name=3)

    made = app.task(base=ContinuableTask, bind=True, name="keywords")(run)
    assert made() == {"start": 1, "isolated": 2, "name": 3}


@pytest.mark.parametrize("order", ["own class first", "ours first", "by task_cls", "by @continuable"])
def test_under_flasks_documented_task_base(order: str) -> None:
    from flask import Flask, current_app

    flask_app = Flask("web")

    class FlaskTask(Task):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> object:
            with flask_app.app_context():
                return self.run(*args, **kwargs)

    run_under_a_call_of_ones_own(FlaskTask, order, lambda: current_app.name, "web")


@pytest.mark.parametrize("order", ["own class first", "ours first", "by task_cls", "by @continuable"])
def test_under_a_tenant_switching_task_base(order: str) -> None:
    tenant = ["public"]

    class TenantTask(Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            tenant[0] = "acme"
            try:
                return super().__call__(*args, **kwargs)
            finally:
                tenant[0] = "public"

    def outside(*args: Any, **kwargs: Any) -> None:
        assert tenant == ["public"], "the message goes out after the tenant has been left"

    run_under_a_call_of_ones_own(TenantTask, order, lambda: tenant[0], "acme", outside)


def run_under_a_call_of_ones_own(own: Any, order: str, look: Any, expected: str, at_publish: Any = None) -> None:
    from celery.signals import before_task_publish

    app = make_app()
    worker = Worker(app)

    def run(self: Any) -> list[str]:
        for item in self.iterate("loop", range(6)):
            seen.append((item, look()))
            if item % 2:
                worker.stop()
        return [look()]

    options: dict[str, Any] = {"bind": True, "name": "own"}
    if order == "by task_cls":
        app.Task = type("Both", (own, AppTask), {"abstract": True})
    elif order == "by @continuable":
        app.task(base=own, **options)(run)
    else:
        bases = (own, ContinuableTask) if order == "own class first" else (ContinuableTask, own)
        options["base"] = type("Both", bases, {"abstract": True})
    made = continuable(app.tasks["own"]) if order == "by @continuable" else app.task(**options)(run)
    seen: list[Any] = []
    assert made() == [expected]
    seen.clear()
    result = made.delay()
    if at_publish is not None:
        before_task_publish.connect(at_publish)
    try:
        assert worker.drain() == 4
    finally:
        before_task_publish.disconnect(at_publish)
    assert seen == [(item, expected) for item in range(6)]
    assert result.get() == [expected]


def test_nothing_of_a_run_is_on_the_task(app: Celery, worker: Worker) -> None:
    made = app.task(base=ContinuableTask, bind=True, name="clean")(squares)
    made(2)
    before = dict(vars(made._get_current_object()))
    made.delay(3)
    worker.drain()
    after = dict(vars(made._get_current_object()))
    for of_celery in ("__trace__", "_exec_options"):
        before.pop(of_celery, None)
        after.pop(of_celery, None)
    assert after == before


def test_threads_each_have_a_run_of_their_own(app: Celery) -> None:
    barrier = threading.Barrier(4, timeout=10)

    def run(self: Any, number: int) -> Any:
        barrier.wait()
        self.saved["number"] = self.step("number", lambda: number)
        barrier.wait()
        return self.saved["number"], list(self.iterate("loop", range(number)))

    made = app.task(base=ContinuableTask, bind=True, name="threads")(run)
    app.finalize()  # four threads at once would race to make the task that Celery has only promised
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(made, range(4))) == [(n, list(range(n))) for n in range(4)]


def test_greenlets_each_have_a_run_of_their_own() -> None:
    """In a process of its own, patched from the start."""
    pytest.importorskip("gevent")
    code = """
from gevent import monkey
monkey.patch_all()
import gevent
from celery import Celery
from celery_continuations import ContinuableTask
app = Celery("green", set_as_current=False)
@app.task(base=ContinuableTask, bind=True)
def run(self, number):
    self.saved["number"] = self.step("number", lambda: number)
    gevent.sleep(0.01)
    return self.saved["number"], list(self.iterate("loop", range(number)))
jobs = [gevent.spawn(run, n) for n in range(4)]
gevent.joinall(jobs, raise_error=True)
print([job.value for job in jobs])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([(n, list(range(n))) for n in range(4)])
