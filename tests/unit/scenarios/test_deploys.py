"""Each row of the table in docs/howto/deploys.md: a task that old code has begun, and new code continues."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_continuations import ContinuableTask, deliver
from celery_continuations.bin.continuations import continuations
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import DeliveryError, InvalidStepError, SourceChangedError
from celery_continuations.stores import Status

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "deploys.md"

Code = Callable[..., Any]


class Deploy:
    """A task whose code is replaced between two executions, as a deploy does it.

    Attributes:
        done: what the code has done, in order.
    """

    def __init__(self, app: Celery, worker: Any) -> None:
        self.app = app
        self.worker = worker
        self.done: list[Any] = []
        self.task: Any = None

    def install(self, code: Code, name: str = "changing", **settings: Any) -> Any:
        """Register the code under a name, in place of what was there."""
        self.app.tasks.pop(name, None)
        settings = {f"continuation_{key}": value for key, value in settings.items()}
        self.task = self.app.task(base=ContinuableTask, bind=True, name=name, **settings)(code)
        return self.task

    def begin(self, code: Code, *args: Any, **settings: Any) -> Any:
        """Run the first execution with this code, which stops itself, and return the task's result."""
        result = self.install(code, **settings).delay(*args)
        self.worker.deliver()
        assert result.state == states.RETRY, result.result
        return result

    def stop_at(self, task: Any, here: bool = True) -> None:
        """Stop the worker, in the first execution only."""
        if here and task.continuation.resumptions == 0:
            self.worker.stop()

    def loop(self, name: str, items: Any, stop_after: Any = None) -> Code:
        """Return code with one loop that notes its items, and stops after one of them."""

        def code(task: Any) -> str:
            for item in task.iterate(name, items() if callable(items) else items):
                self.done.append(getattr(item, "username", item))
                self.stop_at(task, self.done[-1] == stop_after)
            return "done"

        return code

    def steps(self, *names: str, stop_in: str = "") -> Code:
        """Return code with call steps that note their names, and stops in one of them."""

        def code(task: Any) -> str:
            for name in names:
                task.step(name, self.note, task, name, stop_in)
            return "done"

        return code

    def note(self, task: Any, name: str, stop_in: str) -> str:
        self.done.append(name)
        self.stop_at(task, name == stop_in)
        return f"value of {name}"


@pytest.fixture
def deploy(app: Celery, worker: Any, monkeypatch: Any) -> Deploy:
    monkeypatch.setattr("celery_continuations.messages.requeue.REQUEUE_DELAY", 0.0)
    return Deploy(app, worker)


@pytest.fixture
def misfits(deploy: Deploy, record: Any) -> Callable[..., None]:
    """Assert that the code cannot resume a task: it is requeued with its progress kept, and fails after the grace."""

    def check(result: Any, problem: str, *, then: Code | None = None, **settings: Any) -> None:
        before, done = Snapshot.loads(record(result.id).snapshot).steps, list(deploy.done)
        for _ in range(2):
            deploy.worker.deliver()
            assert (result.state, str(result.info)) == (states.RETRY, "Interrupted between steps (code changed)")
        kept = Snapshot.loads(record(result.id).snapshot)
        assert record(result.id).fence.status == Status.QUEUED
        assert re.search(problem, str(kept.misfit)), kept.misfit
        assert kept.steps == before
        assert deploy.done == done, "nothing was done meanwhile"
        if then is not None:
            deploy.install(then, **settings)
            deploy.worker.drain()
            return
        deploy.task.continuation_change_grace = 0
        deploy.worker.drain()
        assert isinstance(result.result, InvalidStepError)
        assert record(result.id).fence.status == Status.FAILED
        assert Snapshot.loads(record(result.id).snapshot).steps[: len(before)] == before

    return check


# -- code that fits


def test_code_within_a_step(deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("rows", range(4), stop_after=1))

    def new(task: Any) -> str:
        for item in task.iterate("rows", range(4)):
            deploy.done.append(f"new {item}")
        return "new"

    deploy.install(new)
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("new", [0, 1, "new 2", "new 3"])


def test_steps_added_at_the_end(deploy: Deploy) -> None:
    result = deploy.begin(deploy.steps("one", "two", stop_in="one"))
    deploy.install(deploy.steps("one", "two", "three"))
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["one", "two", "three"])


def test_steps_added_where_no_task_has_come_to(deploy: Deploy) -> None:
    result = deploy.begin(deploy.steps("one", "three", stop_in="one"))
    deploy.install(deploy.steps("one", "two", "three"))
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["one", "two", "three"])


# -- the order of steps


def test_a_step_inserted_before_one_that_was_begun(deploy: Deploy, misfits: Any) -> None:
    old = deploy.steps("one", "three", "four", stop_in="three")
    result = deploy.begin(old)
    deploy.install(deploy.steps("one", "two", "three", "four"))
    misfits(result, "step 'two' was started where an earlier execution had step 'three'")


def by_version(old: Code, new: Code) -> Code:
    def code(task: Any) -> Any:
        return old(task) if task.continuation.version < 2 else new(task)

    return code


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(("one", "three", "four"), ("one", "two", "three", "four"), ["four"], id="insert"),
        pytest.param(("one", "three", "four"), ("three", "one", "four"), ["four"], id="reorder"),
        pytest.param(("one", "three", "four"), ("one", "three a", "three b", "four"), ["four"], id="split"),
    ],
)
def test_a_version_keeps_the_order_that_a_task_began_with(
    deploy: Deploy, old: Any, new: Any, expected: list[str]
) -> None:
    result = deploy.begin(deploy.steps(*old, stop_in="three"))
    deploy.install(by_version(deploy.steps(*old), deploy.steps(*new)), version=2)
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["one", "three", *expected])
    deploy.done.clear()
    fresh = deploy.task.delay()
    deploy.worker.drain()
    assert (fresh.get(), deploy.done) == ("done", list(new))


def test_steps_in_another_order(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.steps("one", "two", "three", stop_in="two"))
    deploy.install(deploy.steps("two", "one", "three"))
    misfits(result, "step 'two' was started where an earlier execution had step 'one'")


def test_a_renamed_step(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.loop("load", range(4), stop_after=1))
    deploy.install(deploy.loop("import", range(4)))
    misfits(
        result,
        "step 'import' was started where an earlier execution had step 'load'",
        then=deploy.loop("import", range(4)),
        renamed_steps={"load": "import"},
    )
    assert (result.get(), deploy.done) == ("done", [0, 1, 2, 3])


def test_a_renamed_step_keeps_its_value_and_the_keys_that_it_gave(deploy: Deploy) -> None:
    keys: dict[Any, list[str]] = {}

    def code(value: str, loop: str) -> Code:
        def run(task: Any) -> Any:
            kept = task.step(value, deploy.note, task, value, "")
            for item in task.iterate(loop, range(4)):
                keys.setdefault(item, []).append(task.continuation.key)
                if item == 1 and task.continuation.resumptions == 0:
                    raise ValueError("the item is repeated, after a resumption")
            return kept

        return run

    result = deploy.begin(code("count", "load"))
    deploy.install(code("counted", "import"), renamed_steps={"count": "counted", "load": "import"})
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("value of count", ["count"])
    assert len(keys[1]) == 2
    assert len(set(keys[1])) == 1


def test_a_removed_step(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.steps("one", "gone", "two", stop_in="gone"))
    new = deploy.steps("one", "two")
    deploy.install(new)
    misfits(
        result,
        "step 'two' was started where an earlier execution had step 'gone'",
        then=new,
        renamed_steps={"gone": None},
    )
    assert (result.get(), deploy.done) == ("done", ["one", "gone", "two"])


def test_a_removed_step_that_was_current(deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("gone", range(4), stop_after=1))
    deploy.install(deploy.steps("two"), renamed_steps={"gone": None})
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [0, 1, "two"])


@pytest.mark.parametrize(
    ("stop_in", "expected"),
    [
        ("one", ["one", "both", "end"]),  # one is dropped, and its work is part of both
        ("two", ["one", "two", "end"]),
    ],
)
def test_merged_steps(deploy: Deploy, stop_in: str, expected: list[str]) -> None:
    result = deploy.begin(deploy.steps("one", "two", "end", stop_in=stop_in))
    deploy.install(deploy.steps("both", "end"), renamed_steps={"one": None, "two": "both"})
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", expected)


def test_merged_steps_of_which_the_first_gives_the_name_leave_out_the_second(deploy: Deploy) -> None:
    result = deploy.begin(deploy.steps("one", "two", "end", stop_in="one"))
    deploy.install(deploy.steps("both", "end"), renamed_steps={"one": "both", "two": None})
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["one", "end"])


def test_merged_steps_without_a_renaming(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.steps("one", "two", "end", stop_in="two"))
    deploy.install(deploy.steps("both", "end"))
    misfits(result, "step 'both' was started where an earlier execution had step 'one'")


def test_a_split_step_without_a_version(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.steps("all", "end", stop_in="all"))
    deploy.install(deploy.steps("one", "two", "end"))
    misfits(result, "step 'one' was started where an earlier execution had step 'all'")


@pytest.mark.parametrize(
    "renamed",
    [
        {"a": "b", "b": "c"},  # not transitive
        {"a": "c", "b": "c"},  # two steps cannot become one
    ],
)
def test_renamings_that_are_refused(deploy: Deploy, renamed: dict[str, str]) -> None:
    with pytest.raises(Exception, match="no new name may be an old one, or appear twice"):
        _ = deploy.install(deploy.steps("c"), renamed_steps=renamed).continuation_renamed_steps
        deploy.app.finalize()


def test_a_wait_that_was_renamed_is_delivered_to_under_both_names(app: Celery, deploy: Deploy) -> None:
    def code(name: str) -> Code:
        def run(task: Any) -> Any:
            return task.wait_for(name)

        return run

    results = [deploy.begin(code("approval")) for _ in range(2)]
    deploy.install(code("decision"), renamed_steps={"approval": "decision"})
    for result, name in zip(results, ("approval", "decision"), strict=True):
        deliver(result.id, name, "yes", app=app)
        deploy.worker.drain()
        assert result.get() == "yes"


# -- what a loop reads


def users(count: int = 5) -> Any:
    from django.contrib.auth.models import User

    User.objects.all().delete()
    return User.objects.bulk_create([User(id=10 + n, username=f"user{n}", is_active=n != 4) for n in range(count)])


def names() -> list[str]:
    from django.contrib.auth.models import User

    return list(User.objects.values_list("username", flat=True).order_by("pk"))


@pytest.mark.usefixtures("django_database")
def test_a_list_that_became_a_queryset(deploy: Deploy, misfits: Any) -> None:
    from django.contrib.auth.models import User

    users()
    result = deploy.begin(deploy.loop("send", names, stop_after="user1"))
    deploy.install(deploy.loop("send", User.objects.all))
    misfits(
        result,
        r"step 'send' is a loop by key auth.User\(id\) here, but was begun as a loop by position",
        then=deploy.loop("send by key", User.objects.all),
        renamed_steps={"send": None},
    )
    assert deploy.done == ["user0", "user1", "user0", "user1", "user2", "user3", "user4"], "from its beginning"


@pytest.mark.usefixtures("django_database")
def test_a_list_that_became_a_queryset_with_a_version(deploy: Deploy) -> None:
    from django.contrib.auth.models import User

    users()
    old = deploy.loop("send", names, stop_after="user1")
    result = deploy.begin(old)
    deploy.install(by_version(old, deploy.loop("send", User.objects.all)), version=2)
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [f"user{n}" for n in range(5)])


@pytest.mark.usefixtures("django_database")
def test_a_list_of_instances_that_became_a_queryset_continues_by_key(deploy: Deploy) -> None:
    from django.contrib.auth.models import User

    first, *_ = users()
    result = deploy.begin(deploy.loop("send", lambda: list(User.objects.order_by("pk")), stop_after="user1"))
    first.delete()
    deploy.install(deploy.loop("send", User.objects.all))
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [f"user{n}" for n in range(5)])


def test_a_loop_that_became_a_call(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.loop("rows", range(4), stop_after=1))
    deploy.install(deploy.steps("rows"))
    misfits(
        result,
        "step 'rows' is a call here, but was a loop by position in an earlier execution",
        then=deploy.steps("all rows"),
        renamed_steps={"rows": None},
    )
    assert (result.get(), deploy.done) == ("done", [0, 1, "all rows"])


def test_a_call_that_became_a_wait(deploy: Deploy, misfits: Any) -> None:
    def waits(task: Any) -> None:
        task.wait_for("approval")

    result = deploy.begin(deploy.steps("approval", "end", stop_in="approval"))
    deploy.install(waits)
    misfits(result, "step 'approval' is a wait_for here, but was a call in an earlier execution")


def test_a_list_with_other_items(deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("names", ["ann", "bob", "eve"], stop_after="bob"))
    deploy.install(deploy.loop("names", ["bob", "eve"]))
    deploy.worker.drain()
    assert isinstance(result.result, SourceChangedError)


@pytest.mark.parametrize("new", [range(1, 8), range(0, 8, 2)])
def test_a_range_with_another_start_or_step(deploy: Deploy, record: Any, new: range) -> None:
    result = deploy.begin(deploy.loop("numbers", range(4), stop_after=1))
    deploy.install(deploy.loop("numbers", new))
    deploy.worker.drain()
    assert isinstance(result.result, SourceChangedError)
    assert record(result.id).fence.status == Status.FAILED
    deploy.install(deploy.loop("numbers", range(4)))
    result.retry()
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [0, 1, 2, 3])


def test_a_range_with_a_later_or_earlier_stop(deploy: Deploy) -> None:
    for stop in (6, 3):
        deploy.done.clear()
        result = deploy.begin(deploy.loop("numbers", range(4), stop_after=1))
        deploy.install(deploy.loop("numbers", range(stop)))
        deploy.worker.drain()
        assert (result.get(), deploy.done) == ("done", list(range(stop)))


def test_a_range_that_ends_before_its_place(deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("numbers", range(4), stop_after=2))
    deploy.install(deploy.loop("numbers", range(2)))
    deploy.worker.drain()
    assert isinstance(result.result, SourceChangedError)


def test_another_batch_size(deploy: Deploy) -> None:
    def code(size: int) -> Code:
        def run(task: Any) -> None:
            for numbers in task.iterate("numbers", range(10), batch=size):
                deploy.done.append(numbers)
                deploy.stop_at(task)

        return run

    deploy.begin(code(3))
    deploy.install(code(4))
    deploy.worker.drain()
    assert deploy.done == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]


@pytest.mark.usefixtures("django_database")
def test_a_queryset_in_another_order(deploy: Deploy, misfits: Any) -> None:
    from django.contrib.auth.models import User

    users()
    result = deploy.begin(deploy.loop("send", User.objects.all, stop_after="user1"))
    deploy.install(deploy.loop("send", lambda: User.objects.order_by("-pk")))
    misfits(result, r"a loop by key auth.User\(-id\) here, but was begun as a loop by key auth.User\(id\)")


@pytest.mark.usefixtures("django_database")
def test_a_queryset_with_another_filter(deploy: Deploy) -> None:
    from django.contrib.auth.models import User

    users()
    result = deploy.begin(deploy.loop("send", lambda: User.objects.exclude(id=10), stop_after="user2"))
    deploy.install(deploy.loop("send", lambda: User.objects.filter(is_active=True)))
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["user1", "user2", "user3"]), "user0 is behind the cursor"


# -- arguments and names


def test_an_argument_with_a_default(deploy: Deploy) -> None:
    def old(task: Any, count: int) -> list[Any]:
        for item in task.iterate("rows", range(count)):
            deploy.stop_at(task, item == 1)
        return [count]

    def new(task: Any, count: int, colour: str = "blue") -> list[Any]:
        for _ in task.iterate("rows", range(count)):
            pass
        return [count, colour]

    result = deploy.begin(old, 4)
    deploy.install(new)
    deploy.worker.drain()
    assert result.get() == [4, "blue"]


def test_a_resumption_whose_arguments_do_not_bind_waits_for_code_that_fits(deploy: Deploy, misfits: Any) -> None:
    def takes_two(task: Any, count: int, colour: str) -> str:
        for item in task.iterate("rows", range(count)):
            deploy.stop_at(task, item == 1)
        return colour

    def takes_one(task: Any, count: int) -> Any:
        return deploy.loop("rows", range(count))(task)

    result = deploy.begin(takes_two, 4, "blue")
    deploy.install(takes_one)
    misfits(result, r"its arguments do not fit changing\(count", then=takes_two)
    assert result.get() == "blue"


def test_a_first_message_whose_arguments_do_not_bind_fails(deploy: Deploy) -> None:
    deploy.app.conf.task_always_eager = False

    def takes_two(task: Any, count: int, colour: str) -> None: ...

    result = deploy.install(takes_two).delay(4, "blue")
    deploy.install(deploy.loop("rows", range(4)))
    deploy.worker.drain()
    assert isinstance(result.result, TypeError)


def test_a_renamed_task(app: Celery, deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("rows", range(4), stop_after=1))
    app.tasks.pop("changing")
    deploy.install(deploy.loop("rows", range(4)), name="changed")
    app.tasks["changing"] = app.tasks["changed"]
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [0, 1, 2, 3])


def test_a_renamed_task_that_is_interrupted_again_has_its_new_name(app: Celery, deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("rows", range(6), stop_after=1))
    app.tasks.pop("changing")

    def new(task: Any) -> str:
        for item in task.iterate("rows", range(6)):
            deploy.done.append(item)
            if item == 3:
                deploy.worker.stop()
        return "done"

    deploy.install(new, name="changed")
    app.tasks["changing"] = app.tasks["changed"]
    assert deploy.worker.deliver().headers["task"] == "changing"
    assert deploy.worker.deliver().headers["task"] == "changed"
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", list(range(6)))


# -- settings, versions, and the way back


def test_settings_count_from_the_next_execution_on(deploy: Deploy) -> None:
    result = deploy.begin(deploy.loop("rows", range(4), stop_after=1))
    deploy.install(deploy.loop("rows", range(4)), max_snapshot=20)
    deploy.worker.drain()
    assert type(result.result).__name__ == "SnapshotTooLargeError"
    deploy.install(deploy.loop("rows", range(4)))
    result.retry()
    deploy.worker.drain()
    assert result.get() == "done"


def test_code_of_an_older_version_leaves_the_task_to_newer_code(deploy: Deploy, misfits: Any) -> None:
    result = deploy.begin(deploy.steps("one", "two", "three", stop_in="two"), version=2)
    deploy.install(deploy.steps("one", "two", "three"))
    misfits(
        result,
        "was begun by version 2 of its code, and this worker has version 1",
        then=deploy.steps("one", "two", "three"),
        version=2,
    )
    assert result.get() == "done"


def test_what_release_0_1_cannot_read_has_format_2(deploy: Deploy, record: Any) -> None:
    formats = []
    for settings in ({}, {"renamed_steps": {"a": "b"}}, {"version": 2}):
        result = deploy.begin(deploy.steps("one", "two", stop_in="one"), **settings)
        formats.append(json.loads(record(result.id).snapshot)["version"])
        deploy.worker.drain()
    assert formats == [1, 1, 2]


@pytest.mark.usefixtures("django_database")
def test_lists_of_instances_and_iterators_that_are_read_by_key_have_format_2(deploy: Deploy, record: Any) -> None:
    from django.contrib.auth.models import User

    formats = []
    for make in (User.objects.all, User.objects.iterator, lambda: list(User.objects.order_by("pk"))):
        users()
        result = deploy.begin(deploy.loop("send", make, stop_after="user1"))
        formats.append(json.loads(record(result.id).snapshot)["version"])
        deploy.worker.drain()
    assert formats == [1, 2, 2]


def test_after_a_rollback_what_has_failed_is_taken_up_again(deploy: Deploy, record: Any) -> None:
    def broken(task: Any) -> None:
        for _ in task.iterate("rows", range(4)):
            raise ValueError("a mistake")

    good = deploy.loop("rows", range(4), stop_after=1)
    result = deploy.begin(good)
    deploy.install(broken)
    deploy.worker.drain()
    assert (result.state, record(result.id).fence.status) == (states.FAILURE, Status.FAILED)
    deploy.install(good)
    result.retry()
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", [0, 1, 2, 3])


def test_retry_takes_the_name_that_a_renamed_step_has_in_the_record(deploy: Deploy) -> None:
    result = deploy.begin(deploy.steps("old", "two", stop_in="old"))
    deploy.install(deploy.steps("other"), change_grace=0)
    deploy.worker.drain()
    assert result.state == states.FAILURE
    deploy.install(deploy.steps("new", "two"), renamed_steps={"old": "new"})
    with pytest.raises(DeliveryError, match="it has not begun a step 'new'; its steps are: 'old'"):
        result.retry("new")
    result.retry("old")
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["old", "new", "two"])


def test_after_the_grace_a_task_can_start_over(deploy: Deploy) -> None:
    result = deploy.begin(deploy.steps("one", "two", stop_in="one"))
    deploy.install(deploy.steps("other", "two"), on_change="restart", change_grace=0)
    deploy.worker.drain()
    assert (result.get(), deploy.done) == ("done", ["one", "other", "two"])


def test_the_grace_counts_from_the_first_misfit(deploy: Deploy, monkeypatch: Any) -> None:
    result = deploy.begin(deploy.steps("one", "two", stop_in="one"))
    deploy.install(deploy.steps("other"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    deploy.worker.deliver()
    monkeypatch.setattr(time, "time", lambda: now + 690)
    deploy.worker.deliver()
    assert result.state == states.RETRY
    monkeypatch.setattr(time, "time", lambda: now + 701)
    deploy.worker.drain()
    assert result.state == states.FAILURE


# -- the page

ROWS: dict[str, list[Callable[..., None]]] = {
    "the code within a step": [test_code_within_a_step],
    "a step that is added at the end, or behind the place that the tasks under way have reached": [
        test_steps_added_at_the_end,
        test_steps_added_where_no_task_has_come_to,
    ],
    "a step that is inserted before a step that was begun": [
        test_a_step_inserted_before_one_that_was_begun,
        test_a_version_keeps_the_order_that_a_task_began_with,
    ],
    "steps in another order": [
        test_steps_in_another_order,
        test_a_version_keeps_the_order_that_a_task_began_with,
    ],
    "a step that becomes two": [
        test_a_split_step_without_a_version,
        test_a_version_keeps_the_order_that_a_task_began_with,
    ],
    "a step that gets another name": [
        test_a_renamed_step,
        test_a_renamed_step_keeps_its_value_and_the_keys_that_it_gave,
    ],
    "a step that is removed": [test_a_removed_step, test_a_removed_step_that_was_current],
    "two steps that become one": [
        test_merged_steps,
        test_merged_steps_of_which_the_first_gives_the_name_leave_out_the_second,
        test_merged_steps_without_a_renaming,
    ],
    "a list that becomes a queryset": [
        test_a_list_that_became_a_queryset,
        test_a_list_that_became_a_queryset_with_a_version,
        test_a_list_of_instances_that_became_a_queryset_continues_by_key,
    ],
    "a loop that becomes a call, or a call a wait": [test_a_loop_that_became_a_call, test_a_call_that_became_a_wait],
    "a list with other items": [test_a_list_with_other_items],
    "a range": [
        test_a_range_with_another_start_or_step,
        test_a_range_with_a_later_or_earlier_stop,
        test_a_range_that_ends_before_its_place,
    ],
    "the size of a batch": [test_another_batch_size],
    "the order of a queryset": [test_a_queryset_in_another_order],
    "the filter of a queryset": [test_a_queryset_with_another_filter],
    "an argument that is added": [
        test_an_argument_with_a_default,
        test_a_resumption_whose_arguments_do_not_bind_waits_for_code_that_fits,
        test_a_first_message_whose_arguments_do_not_bind_fails,
    ],
    "an argument that is removed": [test_a_resumption_whose_arguments_do_not_bind_waits_for_code_that_fits],
    "the name of the task": [test_a_renamed_task, test_a_renamed_task_that_is_interrupted_again_has_its_new_name],
    "settings of the task": [test_settings_count_from_the_next_execution_on],
}


def test_each_row_of_the_page_has_a_test() -> None:
    table = PAGE.read_text().partition("| change | how | otherwise |")[2].partition("\n\n")[0]
    assert [line.strip("|").split(" | ")[0].strip() for line in table.splitlines()[2:]] == list(ROWS)


def test_the_log_record_shown(deploy: Deploy, caplog: Any) -> None:
    deploy.begin(deploy.loop("load", range(4), stop_after=1))
    deploy.install(deploy.loop("import", range(4)))
    deploy.worker.deliver()
    (shown,) = re.findall(r"^```text\n(.*)\n```", PAGE.read_text(), flags=re.M)
    assert shown in caplog.text


def test_the_shell_shows_what_needs_other_code(app: Celery, deploy: Deploy) -> None:
    def shell(*words: str) -> str:
        found = CliRunner().invoke(continuations, words, obj=CLIContext(app=app, no_color=True, workdir=None))
        assert found.exit_code == 0, found.output
        return found.stdout

    result = deploy.begin(deploy.steps("one", "two", stop_in="one"), version=2)
    assert result.id in shell("list", "--version", "2")
    assert result.id not in shell("list", "--version", "1")
    assert "needs other code" not in shell("list")
    deploy.install(deploy.steps("one", "two"))
    deploy.worker.deliver()
    assert "needs other code: the task was begun by version 2 of its code" in shell("list")
    assert re.search(r"^  version  .*version 2", shell("show", result.id), flags=re.M)
    assert re.search(r"^  code  .*could not resume it: the task was begun", shell("show", result.id), flags=re.M)
