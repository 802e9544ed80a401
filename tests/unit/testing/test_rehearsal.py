"""The testing kit for users: interruptions, waits, and a clock that skips."""

from __future__ import annotations

import subprocess
import sys
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery import signals as celery_signals

from celery_continuations import AppTask, ContinuableTask, WaitTimeout
from celery_continuations.exceptions import DeliveryError, InvalidStepError, ResumeLimitError, SnapshotTooLargeError
from celery_continuations.testing import (
    Clock,
    Rehearsal,
    assert_resumable,
    delivered,
    interrupt_after_step,
    interrupt_during_step,
    rehearse,
    run_until_done,
)

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def done() -> list[Any]:
    return []


@pytest.fixture
def imports(task: Any, done: list[Any]) -> Any:
    """Two steps, the second one a loop."""

    def import_users(self: Any, count: int) -> str:
        self.step("check", done.append, "checked")
        for number in self.iterate("import", range(count)):
            done.append(number)
        self.step("report", done.append, "reported")
        return f"{count} users"

    return task(import_users)


@pytest.fixture
def short(task: Any) -> Any:
    """Make a task of a lambda, which Celery takes only with a name."""

    def make(function: Any) -> Any:
        function.__name__ = "short"
        return task(function)

    return make


# -- interruptions


def test_an_interruption_at_a_cursor(imports: Any, done: list[Any]) -> None:
    with interrupt_during_step(imports, "import", cursor=3) as run:
        result = imports.apply((5,))
        assert result.state == "RETRY"
    assert (run.state, run.step, run.cursor, run.reason) == ("RETRY", "import", 3, "stopping")
    assert run.completed == ("check",)
    assert run.id == result.id
    assert done == ["checked", 0, 1, 2]
    assert run_until_done(run) == "5 users"
    assert (run.state, run.begun, run.value) == ("SUCCESS", 2, "5 users")
    assert done == ["checked", 0, 1, 2, 3, 4, "reported"]


def test_an_interruption_at_the_first_checkpoint_of_a_step(imports: Any) -> None:
    with interrupt_during_step(imports, "import") as run:
        imports.apply((5,))
    assert run.cursor == 1
    with interrupt_during_step(run, "import"):
        pass
    assert run.cursor == 2
    run_until_done(run)
    assert run.begun == 3


def test_an_interruption_after_a_step(imports: Any, done: list[Any]) -> None:
    with interrupt_after_step(imports, "import") as run:
        imports.apply((2,))
    assert (run.step, run.completed) == (None, ("check", "import"))
    assert done == ["checked", 0, 1]
    assert run_until_done(run) == "2 users"
    assert done == ["checked", 0, 1, "reported"]


def test_a_run_is_interrupted_a_second_time(imports: Any, done: list[Any]) -> None:
    with interrupt_during_step(imports, "import", cursor=1) as run:
        imports.apply((5,))
    with interrupt_during_step(run, "import", cursor=3) as same:
        pass
    assert same is run
    assert run.cursor == 3
    assert run.snapshot.resumptions == 2
    with interrupt_after_step(run, "import"):
        run.resume()
    assert run.completed == ("check", "import")
    assert run_until_done(run) == "5 users"
    assert done == ["checked", *range(5), "reported"]


def test_delay_with_always_eager(app: Celery, imports: Any) -> None:
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    with interrupt_during_step(imports, "import", cursor=2) as run:
        imports.delay(4)
        went_on = True
    assert went_on
    assert run.cursor == 2
    assert run_until_done(run) == "4 users"


def test_only_the_first_call_is_interrupted(imports: Any) -> None:
    with interrupt_during_step(imports, "import", cursor=2) as run:
        first, second = imports.apply((4,)), imports.apply((3,))
    assert (first.state, second.state, second.get()) == ("RETRY", "SUCCESS", "3 users")
    assert run.id == first.id


def test_other_tasks_are_left_alone(short: Any, imports: Any) -> None:
    other = short(lambda self: self.step("import", lambda: 7))
    with interrupt_during_step(imports, "import", cursor=2) as run:
        assert other.apply().get() == 7
        imports.apply((4,))
    assert run.cursor == 2


def test_nothing_is_interrupted_behind_the_block(imports: Any) -> None:
    with interrupt_during_step(imports, "import", cursor=2):
        imports.apply((4,))
    assert imports.apply((4,)).get() == "4 users"


def test_what_comes_before_the_place_is_passed(task: Any) -> None:
    def body(self: Any) -> str:
        for step in self.step("alone", start=0, isolated=True):
            step.advance()
        self.sleep("a month", timedelta(days=30))
        for step in self.step("rows", start=0):
            step.set(1)
            step.set(2)
        return "done"

    made = task(body)
    with interrupt_during_step(made, "rows", cursor=2) as run:
        made.apply()
    assert run.cursor == 2
    assert run.clock.skipped == 30 * 86400
    assert run.waiting is None
    assert run_until_done(run) == "done"


def refused(text: str) -> Any:
    return pytest.raises(AssertionError, match=text)


def test_a_place_that_the_task_does_not_come_to(imports: Any) -> None:
    text = (
        r"ended \(SUCCESS\) without a checkpoint in step 'import' with the cursor 9; "
        "its checkpoints were at: between steps, import:1, import:2, between steps"
    )
    with refused(text), interrupt_during_step(imports, "import", cursor=9):
        imports.apply((2,))


def test_the_last_step_is_not_followed_by_a_checkpoint(imports: Any) -> None:
    with refused("without a checkpoint after step 'report'"), interrupt_after_step(imports, "report"):
        imports.apply((200,))


def test_a_place_that_a_run_has_left_behind(imports: Any) -> None:
    with interrupt_after_step(imports, "check") as run:
        imports.apply((200,))
    with refused("without a checkpoint after step 'check'"), interrupt_after_step(run, "check"):
        pass


def test_a_task_that_fails_before_the_place(task: Any) -> None:
    def body(self: Any) -> None:
        raise OSError("away")

    made = task(body)
    with refused(r"\(FAILURE\).*it made no checkpoints") as caught, interrupt_during_step(made, "rows"):
        made.apply()
    assert isinstance(caught.value.__cause__, OSError)


def test_a_task_that_is_not_called(imports: Any) -> None:
    text = r"was not run in the block; call import_users.apply\(...\)"
    with refused(text), interrupt_during_step(imports, "import"):
        pass


def test_an_error_in_the_block_is_not_hidden(imports: Any) -> None:
    with pytest.raises(KeyError), interrupt_during_step(imports, "import"):
        raise KeyError


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_name_that_is_none(imports: Any, name: Any) -> None:
    with pytest.raises(InvalidStepError), interrupt_after_step(imports, name):
        pass


# -- what goes from one execution to the next


def test_only_saved_state_reaches_the_next_execution(task: Any) -> None:
    def body(self: Any, rows: list[int]) -> Any:
        self.saved.setdefault("kept", 0)
        self.on_self = getattr(self, "on_self", 0) + 1
        for step in self.step("rows", start=0):
            while rows and step.cursor < 2:
                rows.pop()
                self.saved["kept"] += 1
                step.advance()
        return [self.saved["kept"], self.on_self, rows, self.continuation.executions, self.continuation.reason]

    made = task(body)
    with interrupt_during_step(made, "rows", cursor=1) as run:
        made.apply(([1, 2, 3],))
    assert run.saved == {"kept": 1}
    assert not hasattr(made, "on_self")
    assert run_until_done(run) == [2, 1, [1, 2], 2, "stopping"]


def test_the_settings_hold(app: Celery, task: Any) -> None:
    def failing(self: Any) -> None:
        for number in self.iterate("rows", range(5)):
            if number in (2, 4) and self.request.id not in seen.setdefault(number, []):
                seen[number].append(self.request.id)
                raise ConnectionError(number)

    seen: dict[int, list[str]] = {}
    run = rehearse(task(failing))
    assert (run.state, run.cursor, run.reason) == ("RETRY", 2, "ConnectionError: 2")
    assert run.snapshot.errors[0]["step"] == "rows"
    run_until_done(run)
    assert run.clock.skipped == 5 / 64 + 5 / 32  # continuation_resume_error_countdown

    limited = rehearse(task(failing, continuation_max_resumptions=1))
    with pytest.raises(ResumeLimitError):
        run_until_done(limited)
    off = rehearse(task(failing, continuation_resume_errors_after_advancing=False))
    assert off.state == "FAILURE"
    with pytest.raises(ConnectionError):
        run_until_done(off)

    def large(self: Any) -> None:
        self.step("large", lambda: 1000 * "x")

    with pytest.raises(SnapshotTooLargeError):
        run_until_done(rehearse(task(large, continuation_max_snapshot=500)))


@pytest.mark.parametrize("throw", [True, False])
def test_retries(task: Any, done: list[Any], throw: bool) -> None:
    def body(self: Any, to: str = "first") -> Any:
        self.step("once", done.append, "once")
        if self.request.retries < 2:
            return self.retry(kwargs={"to": "second"}, countdown=60, throw=throw)
        return to, self.request.retries

    run = rehearse(task(body))
    assert (run.state, run.reason) == ("RETRY", "retry")
    assert run_until_done(run) == ("second", 2)
    assert run.clock.skipped == 120
    assert done == ["once"]


def test_retries_are_over(task: Any) -> None:
    def body(self: Any) -> None:
        self.step("once", lambda: 1)
        try:
            raise OSError("away")
        except OSError as exc:
            self.retry(exc=exc, max_retries=1)

    with pytest.raises(OSError, match="away"):
        run_until_done(rehearse(task(body)))


def test_autoretry(task: Any, done: list[Any]) -> None:
    def body(self: Any) -> str:
        self.step("once", done.append, "once")
        for _ in self.step("rows", start=0):
            done.append("try")
            if self.request.retries == 0:
                raise OSError("away")
        return "done"

    run = rehearse(task(body, autoretry_for=(OSError,), continuation_resume_errors_after_advancing=False))
    assert run_until_done(run) == "done"
    assert done == ["once", "try", "try"]


def test_the_users_own_call(app: Celery, done: list[Any]) -> None:
    @contextmanager
    def tenant() -> Iterator[None]:
        done.append("in")
        yield
        done.append("out")

    class Tenanted(ContinuableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with tenant():
                return super().__call__(*args, **kwargs)

    @app.task(base=Tenanted, bind=True)
    def body(self: Any) -> None:
        for number in self.iterate("rows", range(2)):
            done.append(number)

    with interrupt_during_step(body, "rows", cursor=1) as run:
        body.apply()
    run_until_done(run)
    assert done == ["in", 0, "in", 1, "out"]


def test_an_application_wide_task_begins_at_its_first_step(task: Any) -> None:
    def body(self: Any, steps: bool) -> str:
        for _ in self.iterate("rows", range(3)) if steps else ():
            pass
        return "done"

    made = task(body, base=AppTask)
    with interrupt_during_step(made, "rows", cursor=2) as run:
        made.apply((True,))
    assert run_until_done(run) == "done"
    assert run_until_done(rehearse(made, False)) == "done"


def test_callbacks_come_once_at_the_end(app: Celery, imports: Any, done: list[Any]) -> None:
    @app.task
    def callback(text: str) -> None:
        done.append(f"callback: {text}")

    with interrupt_during_step(imports, "import", cursor=1) as run:
        imports.apply((2,), link=callback.s())
    app.conf.task_always_eager = True
    run_until_done(run)
    assert done[-2:] == ["reported", "callback: 2 users"]
    assert len(done) == 5


def test_celerys_signals_tell_of_the_executions(imports: Any) -> None:
    seen: list[Any] = []

    def on_retry(sender: Any = None, **kwargs: Any) -> None:
        seen.append(sender.name)

    celery_signals.task_retry.connect(on_retry)
    try:
        with interrupt_during_step(imports, "import", cursor=1):
            imports.apply((2,))
    finally:
        celery_signals.task_retry.disconnect(on_retry)
    assert seen == [imports.name]


def test_arguments_that_no_message_can_carry(imports: Any) -> None:
    with pytest.raises(Exception, match="not JSON serializable"):
        run_until_done(rehearse(imports, object()))


def test_a_task_that_does_not_end(short: Any) -> None:
    run = rehearse(short(lambda self: self.wait_until("never", lambda: False, every=60)))
    with pytest.raises(AssertionError, match="has not ended after 20 executions"):
        run_until_done(run, executions=20)
    assert run.clock.skipped == 19 * 60


def test_a_run_is_not_resumed_where_it_cannot_be(imports: Any) -> None:
    with pytest.raises(ValueError, match="has not begun: apply it first"):
        Rehearsal(imports).resume()
    run = rehearse(imports, 1)
    with pytest.raises(ValueError, match="cannot be resumed, it has ended"):
        run.resume()


def test_a_task_that_is_refused_by_itself(task: Any) -> None:
    from celery.exceptions import Ignore

    def body(self: Any) -> None:
        self.step("once", lambda: 1)
        raise Ignore

    run = rehearse(task(body))
    assert run.state == "IGNORED"
    assert run_until_done(run) is None


def test_what_a_run_shows(imports: Any) -> None:
    with interrupt_during_step(imports, "import", cursor=1) as run:
        assert repr(run) == f"<Rehearsal of {imports.name}: PENDING>"
        imports.apply((2,))
    assert repr(run) == f"<Rehearsal of {imports.name}: RETRY in 'import' at 1 (stopping)>"


# -- waits and the clock


@pytest.fixture
def orders(task: Any) -> Any:
    def fulfil(self: Any) -> Any:
        payment = self.wait_for("payment", timeout=timedelta(days=3), default=None)
        self.sleep("a week", timedelta(days=7))
        return payment

    return task(fulfil)


def test_what_is_delivered_while_it_waits(orders: Any) -> None:
    run = rehearse(orders)
    assert run.waiting is not None
    assert (run.waiting.kind, run.waiting.key) == ("delivery", "payment")
    run.deliver("payment", {"id": 7})
    assert run_until_done(run) == {"id": 7}
    assert run.clock.skipped == 7 * 86400


def test_what_is_delivered_before_it_waits(orders: Any) -> None:
    run = Rehearsal(orders)
    run.deliver("payment", {"id": 7})
    run.apply((), {})
    assert run.step == "a week"
    assert run_until_done(run) == {"id": 7}


def test_what_a_test_delivers_to_all(orders: Any) -> None:
    with delivered(payment={"id": 8}):
        assert run_until_done(rehearse(orders)) == {"id": 8}


def test_a_time_out(orders: Any) -> None:
    run = rehearse(orders)
    assert run_until_done(run) is None
    assert run.clock.skipped == 10 * 86400


def test_the_clock_is_moved_by_hand(orders: Any) -> None:
    run = rehearse(orders)
    run.clock.skip(3 * 86400 - 1)
    run.resume()
    assert run.waiting is not None
    assert run.waiting.key == "payment"
    run.clock.skip(1)
    run.resume()
    assert run.step == "a week"
    with pytest.raises(DeliveryError, match="'payment' has another outcome"):
        run.deliver("payment", 7)
    run.clock.skip(7 * 86400)
    run.resume()
    assert run.ended


def test_a_delivery_is_refused_where_a_worker_would_refuse_it(orders: Any) -> None:
    run = rehearse(orders)
    run.deliver("payment", 7)
    run.deliver("payment", 7)
    with pytest.raises(DeliveryError, match="has another outcome"):
        run.deliver("payment", 8)
    assert run_until_done(run) == 7
    with pytest.raises(DeliveryError, match="it has ended: SUCCESS"):
        run.deliver("payment", 7)


def test_a_wait_without_an_end(short: Any) -> None:
    run = rehearse(short(lambda self: self.wait_for("approval")))
    with pytest.raises(AssertionError, match=r"nothing was delivered to 'approval'; call run.deliver\('approval'"):
        run_until_done(run)
    run.deliver("approval", "yes")
    assert run_until_done(run) == "yes"


def test_a_time_out_that_is_an_error(short: Any) -> None:
    run = rehearse(short(lambda self: self.wait_for("approval", timeout=60)))
    with pytest.raises(WaitTimeout):
        run_until_done(run)


def test_sleeping_until_a_moment(short: Any) -> None:
    moment = datetime.now(timezone.utc) + timedelta(days=1)
    run = rehearse(short(lambda self: self.sleep("a day", moment)))
    run_until_done(run)
    assert run.clock.now() == moment.timestamp()


def test_polling(short: Any) -> None:
    answers = iter([None, None, "there"])
    run = rehearse(short(lambda self: self.wait_until("there", lambda: next(answers), every=60)))
    assert run_until_done(run) == "there"
    assert run.clock.skipped == 120


def test_resume_in(task: Any, done: list[Any]) -> None:
    def body(self: Any) -> None:
        for page in self.iterate("pages", range(3)):
            done.append(page)
            if done.count(1) == 1 and page == 1:
                self.resume_in(30)

    run = rehearse(task(body))
    run_until_done(run)
    assert done == [0, 1, 1, 2]
    assert run.clock.skipped == 30


def test_children_are_applied(app: Celery, short: Any) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    made = short(lambda self: sum(self.wait_for_results("doubles", [double.s(1), double.s(2)])))
    assert run_until_done(rehearse(made)) == 6


def test_a_clock() -> None:
    clock = Clock(100)
    clock.skip(1.5)
    clock.skip_to(103)
    clock.skip_to(99)
    assert (clock.now(), clock.skipped) == (103, 3)
    with pytest.raises(ValueError, match="does not go backwards"):
        clock.skip(-1)


# -- unittest


def test_plain_functions_do_for_unittest(imports: Any, done: list[Any]) -> None:
    class Tests(unittest.TestCase):
        def test_interruption(self) -> None:
            with interrupt_during_step(imports, "import", cursor=1) as run:
                imports.apply((2,))
            self.assertEqual(run_until_done(run), "2 users")  # noqa: PT009

        def test_resumable(self) -> None:
            assert_resumable(imports, 2, check=lambda: sorted(set(map(str, done))), setup=done.clear)

        def test_not_resumable(self) -> None:
            with self.assertRaises(self.failureException):  # noqa: PT027
                assert_resumable(imports, 2, check=lambda: done, setup=done.clear)

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
    assert result.testsRun == 3
    assert result.wasSuccessful(), result.failures + result.errors


DJANGO = """
import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    USE_TZ=True,
)
django.setup()

import unittest

from celery import Celery
from django.contrib.auth.models import Group
from django.db import transaction
from django.test import TestCase
from django.test.runner import DiscoverRunner

from celery_continuations import ContinuableTask
from celery_continuations.testing import assert_resumable

app = Celery(set_as_current=False)


@app.task(base=ContinuableTask, bind=True)
def groups(self, count, repeatable):
    for number in self.iterate("groups", range(count)):
        with transaction.atomic():
            Group.objects.get_or_create(name=f"{number} of {0 if repeatable else Group.objects.count()}")


class Tests(TestCase):
    def check(self, repeatable):
        assert_resumable(
            groups,
            3,
            repeatable,
            setup=Group.objects.all().delete,
            check=lambda: list(Group.objects.order_by("pk").values("name")),
        )

    def test_resumable(self):
        self.check(True)

    def test_not_resumable(self):
        with self.assertRaisesRegex(AssertionError, "killed at place 1 of 5"):
            self.check(False)


runner = DiscoverRunner(verbosity=0)
databases = runner.setup_databases()
result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
runner.teardown_databases(databases)
"""


def test_plain_functions_do_for_djangos_test_case() -> None:
    pytest.importorskip("django")
    done = subprocess.run(
        [sys.executable, "-c", DJANGO], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Ran 2 tests" in done.stderr, done.stderr
    assert done.stderr.rstrip().endswith("OK"), done.stderr


# -- the plug-in


def test_the_fixtures(pytester: Any) -> None:
    pytester.makepyfile("""
        from celery import Celery
        from celery_continuations import ContinuableTask

        app = Celery(set_as_current=False)

        @app.task(base=ContinuableTask, bind=True)
        def doubled(self, numbers):
            return self.step("doubled", lambda: [2 * number for number in numbers])

        def test_rehearse(rehearse):
            assert rehearse(doubled, [1, 2]).value == [2, 4]

        def test_assert_resumable(assert_resumable):
            assert_resumable(doubled, [1, 2])

        def test_all(continuations):
            assert continuations.run_until_done(continuations.rehearse(doubled, [1])) == [2]
    """)
    done = python_pytest(pytester.path)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_failure_is_shown_where_the_test_is(pytester: Any) -> None:
    pytester.makepyfile("""
        from celery import Celery
        from celery_continuations import ContinuableTask

        app = Celery(set_as_current=False)
        numbers = []

        @app.task(base=ContinuableTask, bind=True)
        def append(self):
            self.step("append", numbers.append, 1)

        def test_append(assert_resumable):
            assert_resumable(append, setup=numbers.clear, check=lambda: numbers)
    """)
    done = python_pytest(pytester.path)
    assert ".append is not resumable: killed" in done.stdout, done.stdout
    assert "resumable.py:" not in done.stdout


def test_the_plug_in_imports_nothing(pytester: Any) -> None:
    pytester.makepyfile("""
        import sys

        def test_modules():
            assert "celery_continuations.pytest_plugin" in sys.modules
            loaded = {name for name in sys.modules if name.partition(".")[0] in ("celery", "kombu", "billiard")}
            assert not loaded
            ours = {name for name in sys.modules if name.startswith("celery_continuations.")}
            assert ours == {"celery_continuations.pytest_plugin"}
    """)
    done = python_pytest(pytester.path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def python_pytest(path: Path) -> Any:
    """Run the tests there in a process of their own, with no plug-in but ours."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "celery_continuations.pytest_plugin",
            "-p",
            "no:cacheprovider",
            str(path),
        ],
        cwd=path,
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
