"""assert_resumable finds each kind of mistake, and passes tasks that have none."""

from __future__ import annotations

import gc
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_continuations.sources import keys
from celery_continuations.testing import assert_resumable, delivered, resumable
from celery_continuations.testing.differences import differences

USERS = ["ann", "bob", "eve", "kim"]


class World:
    """What tasks change."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.rows: list[Any] = []
        self.table: dict[Any, Any] = {}
        self.calls: Counter[str] = Counter()

    def state(self) -> Any:
        return {"rows": self.rows, "table": self.table}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def hold(task: Any, world: World) -> Any:
    """Assert that a function, as a task, is resumable."""

    def hold(function: Any, *args: Any, **options: Any) -> None:
        settings = options.pop("settings", {})
        options = {"check": world.state, "setup": world.clear, **options}
        assert_resumable(task(function, name=function.__name__, **settings), *args, **options)

    return hold


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Let what refers to itself stay until the end of the test."""
    gc.disable()
    yield
    gc.enable()


def fault(hold: Any, function: Any, *args: Any, **options: Any) -> str:
    """What is reported of a task; the run alone, as the report says, reports the same."""
    with pytest.raises(AssertionError) as caught:
        hold(function, *args, **options)
    text = str(caught.value)
    only = re.search(r'only="(.*)"\)$', text)
    assert only, text
    with pytest.raises(AssertionError) as alone:
        hold(function, *args, **{**options, "only": only[1]})
    assert str(alone.value) == text
    return text


# -- tasks without a mistake


def test_items_that_may_be_repeated(hold: Any, world: World) -> None:
    def upsert(self: Any, users: list[str]) -> int:
        for user in self.iterate("users", users):
            world.table[user] = len(user)
        return len(users)

    hold(upsert, USERS)


def test_steps_that_remember_their_values(hold: Any, world: World) -> None:
    def totals(self: Any) -> int:
        rate = self.step("rate", lambda: 7)
        world.table["rate"] = rate
        for step in self.step("count", start=0):
            while step.cursor < 5:
                world.table[step.cursor] = rate
                step.advance()
        self.step("last", world.table.update, done=True)
        return rate * 2

    hold(totals)


def test_what_is_saved(hold: Any, world: World) -> None:
    def summed(self: Any, numbers: list[int]) -> int:
        self.saved.setdefault("sums", {})
        for step in self.step("add", start=0):
            while step.cursor < len(numbers):
                self.saved["sums"] = {**self.saved["sums"], str(step.cursor): numbers[step.cursor]}
                step.advance()
        return sum(self.saved["sums"].values())

    hold(summed, [3, 1, 4, 1, 5])


def test_what_an_execution_has_opened_is_closed_when_the_next_one_begins(
    hold: Any, world: World, without_collector: None
) -> None:
    opened: list[str] = []

    class Rows:
        def read(self, cursor: int | None) -> Iterator[tuple[str, int]]:
            opened.append("rows")
            try:
                for place in range(cursor or 0, len(USERS)):
                    yield USERS[place], place + 1
            finally:
                opened.pop()

    def read(self: Any) -> None:
        assert opened == []
        for user in self.iterate("users", Rows()):
            world.table[user] = len(user)

    hold(read)


def test_keys_of_idempotency(hold: Any, world: World) -> None:
    def pay(self: Any, users: list[str]) -> None:
        for step in self.step("pay", start=0):
            while step.cursor < len(users):
                world.table[step.key] = users[step.cursor]
                step.advance()

    hold(pay, USERS)


def test_keys_behind_what_was_left(hold: Any, world: World) -> None:
    """By break, or by an error that is caught: the key is the same after a resumption, and past a checkpoint."""

    def charge(self: Any) -> None:
        for number in self.iterate("find", [1, 2, 3]):
            if number == 2:
                break
        before = self.continuation.key
        self.checkpoint()
        assert self.continuation.key == before
        try:
            self.step("fails", fails)
        except ValueError:
            world.table[self.continuation.key] = "used"
        world.table[self.continuation.key] = "used"
        self.step("charge", world.table.__setitem__, self.continuation.key, "used")

    def fails() -> None:
        raise ValueError

    hold(charge)
    assert len(world.table) == 1


def test_isolated_steps_and_retries(hold: Any, world: World) -> None:
    def body(self: Any) -> int:
        for step in self.step("alone", start=0, isolated=True):
            while step.cursor < 3:
                world.table[step.cursor] = True
                step.advance()
        for number in self.iterate("retried", range(4)):
            world.calls[number] += 1
            if number == 2 and world.calls[number] == 1:
                raise self.retry(countdown=60)
            world.table["second", number] = True
        return self.step("value", lambda: 5)

    hold(body)


def test_waits(hold: Any, world: World) -> None:
    def fulfil(self: Any) -> Any:
        self.step("ask", world.table.update, asked=True)
        payment = self.wait_for("payment", timeout=3600)
        self.sleep("a while", 86400)
        self.step("ship", world.table.update, shipped=payment)
        return payment

    with delivered(payment={"id": 7}):
        hold(fulfil)


def test_children(hold: Any, world: World, app: Celery) -> None:
    @app.task
    def child(number: int) -> int:
        world.table[number] = True
        return 2 * number

    def parent(self: Any) -> Any:
        return self.wait_for_results("children", [child.s(1), child.s(2)])

    hold(parent)


def test_an_application_wide_task(app: Celery, task: Any) -> None:
    from celery_continuations import AppTask

    rows: set[int] = set()

    def body(self: Any) -> None:
        for row in self.iterate("rows", range(3)):
            rows.add(row)

    assert_resumable(task(body, base=AppTask), check=lambda: rows, setup=rows.clear)


# -- tasks with one mistake


def test_a_cursor_set_before_the_work(hold: Any, world: World) -> None:
    def early(self: Any, users: list[str]) -> None:
        for step in self.step("mails", start=0):
            while step.cursor < len(users):
                user = users[step.cursor]
                step.advance()
                world.table[user] = "sent"

    text = fault(hold, early, USERS)
    assert "interrupted at place 1 of 6, the checkpoint in step 'mails' at cursor 1" in text
    assert "check()['table']['ann']: expected 'sent', found nothing" in text


def test_a_cursor_that_is_off_by_one_too_far(hold: Any, world: World) -> None:
    def skipping(self: Any, users: list[str]) -> None:
        for step in self.step("mails", start=0):
            for number in range(step.cursor, len(users)):
                world.table[users[number]] = "sent"
                step.set(number + 2)

    text = fault(hold, skipping, USERS)
    assert "check()['table']['bob']: expected 'sent', found nothing" in text


def test_a_cursor_that_is_off_by_one_too_near(hold: Any, world: World) -> None:
    def repeating(self: Any, users: list[str]) -> None:
        for step in self.step("mails", start=0):
            for number in range(step.cursor, len(users)):
                world.rows.append(users[number])
                step.set(number)

    text = fault(hold, repeating, USERS, kills=False)
    assert "interrupted at place 1 " in text
    assert "check()['rows'][1]: expected 'bob', found 'ann'" in text


def test_work_that_is_done_before_the_save_and_cannot_be_repeated(hold: Any, world: World) -> None:
    def append(self: Any, users: list[str]) -> None:
        for user in self.iterate("users", users):
            world.rows.append(user)

    text = fault(hold, append, USERS)
    assert "killed at place 1 of 6, the checkpoint in step 'users' at cursor 1" in text
    hold(append, USERS, kills=False)


def test_rows_kept_in_a_local_variable(hold: Any, world: World) -> None:
    def collected(self: Any, users: list[str]) -> None:
        rows = []
        for user in self.iterate("users", users):
            rows.append(user.upper())
        self.step("write", world.table.update, rows=rows)

    text = fault(hold, collected, USERS)
    assert "interrupted at place 1 " in text
    assert "check()['table']['rows'][0]: expected 'ANN', found 'BOB'" in text


def test_rows_kept_on_the_task(hold: Any, world: World) -> None:
    def kept(self: Any, users: list[str]) -> int:
        for _ in self.iterate("users", users):
            self.count = getattr(self, "count", 0) + 1
        return int(self.count)

    text = fault(hold, kept, USERS)
    assert "the value returned: expected 4, found 3" in text


def test_an_argument_that_is_changed(hold: Any, world: World) -> None:
    def popping(self: Any, users: list[str]) -> None:
        for step in self.step("users", start=0):
            while users:
                world.rows.append(users.pop())
                step.advance()

    assert "interrupted at place 1 " in fault(hold, popping, USERS, kills=False)


def test_a_call_step_that_is_not_idempotent(hold: Any, world: World) -> None:
    def charge(self: Any) -> None:
        self.step("charge", world.rows.append, "charged")

    text = fault(hold, charge)
    assert "killed at place 1 of 2, the moment before the completion of step 'charge' was saved" in text
    assert "check()['rows'][1]: expected nothing, found 'charged'" in text


def test_work_outside_of_steps(hold: Any, world: World) -> None:
    def between(self: Any) -> None:
        self.step("first", lambda: 1)
        world.rows.append("between")
        self.step("second", lambda: 2)

    assert "interrupted at place 2 of 4, the checkpoint after step 'first'" in fault(hold, between)


def test_work_after_the_last_step(hold: Any, world: World) -> None:
    def last(self: Any) -> None:
        self.step("only", lambda: 1)
        world.rows.append("after")

    text = fault(hold, last)
    assert "killed at place 2 of 2, the end, before it was known that the task had returned" in text


def test_steps_that_come_in_another_order(hold: Any, world: World) -> None:
    def shuffled(self: Any) -> None:
        world.calls["runs"] += 1
        for name in ("a", "b") if world.calls["runs"] == 1 else ("b", "a"):
            self.step(name, world.table.update, {name: 1})

    text = fault(hold, shuffled)
    assert "it raises InvalidStepError: step 'b' was started where an earlier execution had step 'a'" in text


def test_an_error_of_the_resumed_run_only(hold: Any, world: World) -> None:
    def opened(self: Any) -> None:
        for step in self.step("rows", start=0):
            if not step.resumed:
                rows = [1, 2, 3]
            while step.cursor < 3:
                world.table[rows[step.cursor]] = True
                step.advance()

    with pytest.raises(AssertionError) as caught:
        hold(opened)
    assert "it raises UnboundLocalError" in str(caught.value)
    assert isinstance(caught.value.__cause__, UnboundLocalError)


def test_an_error_that_resumes_only_where_the_task_made_progress(hold: Any, world: World) -> None:
    def flaky(self: Any) -> None:
        for number in self.iterate("rows", range(4)):
            world.calls[number] += 1
            if number == 2 and world.calls[number] == 1:
                raise ConnectionError("away")

    text = fault(hold, flaky)
    assert "interrupted at place 2 of 6, the checkpoint in step 'rows' at cursor 2" in text
    assert "it raises ConnectionError: away" in text


def test_a_mistake_that_two_interruptions_show(hold: Any, world: World) -> None:
    def twice(self: Any, users: list[str]) -> None:
        for step in self.step("users", start=0):
            if self.continuation.resumptions > 1:
                step.advance()
            while step.cursor < len(users):
                world.table[users[step.cursor]] = True
                step.advance()

    text = fault(hold, twice, USERS)
    assert "again at the place no." in text
    hold(twice, USERS, pairs=0)
    hold(twice, USERS, kills=False, pairs=0)


def test_a_task_that_never_ends_once_it_is_interrupted(hold: Any, world: World) -> None:
    def forever(self: Any) -> None:
        for step in self.step("rows", start=0):
            done = 0
            while done != 3:
                done = step.cursor = step.cursor + 1
                if step.resumed:
                    step.set(0)
                    done = 0
                step.checkpoint()

    assert "it does not end" in fault(hold, forever)


def test_a_task_that_keeps_stopping_once_it_is_interrupted(hold: Any, world: World) -> None:
    def leaving(self: Any) -> None:
        for step in self.step("rows", start=0):
            if step.resumed:
                self.resume_in(1)
            step.set(1)
            step.set(2)

    assert "has not ended after" in fault(hold, leaving)


def test_a_check_that_fails_itself(hold: Any, world: World) -> None:
    def early(self: Any) -> None:
        for step in self.step("rows", start=0):
            step.advance()
            world.rows.append(1)

    def check() -> None:
        assert world.rows == [1], "one row is wanted"

    assert "it raises AssertionError: one row is wanted" in fault(hold, early, check=check)


# -- tasks that cannot be judged


def test_a_task_without_checkpoints(hold: Any) -> None:
    def plain(self: Any) -> int:
        return 1

    with pytest.raises(AssertionError, match="plain has no steps with these arguments"):
        hold(plain)


def test_a_task_without_an_outcome(hold: Any) -> None:
    def nothing(self: Any) -> None:
        self.step("one", lambda: 1)

    with pytest.raises(ValueError, match="give check="):
        hold(nothing, check=None)


@pytest.mark.parametrize("what", ["the value returned", r"check\(\)"])
def test_an_outcome_that_cannot_be_compared(hold: Any, what: str) -> None:
    class Rows:
        """It is equal to nothing but itself."""

    def body(self: Any) -> Any:
        self.step("one", lambda: 1)
        return Rows() if "value" in what else 1

    with pytest.raises(ValueError, match=f"{what} cannot be compared, because a Rows equals nothing but itself and"):
        hold(body, check=int if "value" in what else Rows)


def test_a_task_that_fails_undisturbed(hold: Any) -> None:
    def failing(self: Any) -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        hold(failing)


def test_a_world_that_is_not_put_back(hold: Any, world: World) -> None:
    def append(self: Any) -> None:
        self.step("append", world.rows.append, 1)

    with pytest.raises(AssertionError, match=r"two undisturbed runs .* differ(.|\n)*\['rows'\]\[1\]: expected nothing"):
        hold(append, setup=None)


def test_rows_that_have_other_keys_in_each_run(hold: Any, world: World) -> None:
    """As those that a database numbers."""
    numbers = itertools.count()

    def insert() -> None:
        world.clear()
        world.table = {next(numbers): name for name in USERS}

    def greet(self: Any) -> None:
        for key in self.iterate("rows", keys(world.table)):
            world.table[key] += "!"

    hold(greet, setup=insert, check=lambda: list(world.table.values()), kills=False)


def test_a_task_that_takes_another_way_each_time(hold: Any, world: World) -> None:
    def uneven(self: Any) -> None:
        for _ in self.iterate("rows", range(2 if counted.append(1) or len(counted) % 2 else 3)):
            pass

    counted: list[int] = []
    with pytest.raises(AssertionError, match=r"(?s)two undisturbed runs .* differ.*places\[2\]"):
        hold(uneven)


def test_tasks_that_are_not_continuable_are_refused(app: Celery) -> None:
    with pytest.raises(TypeError, match="is not a continuable task"):
        assert_resumable(app.task(fault), check=int)


@pytest.mark.parametrize("only", ["", "17", "stop@1", "kill@0", "kill@x", "kill@1;kill@2"])
def test_only_what_can_be_read(hold: Any, only: str) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        hold(test_only_what_can_be_read, only=only)


# -- the runs


def test_there_is_one_run_for_each_place(hold: Any, world: World, monkeypatch: Any) -> None:
    plans: list[str] = []
    run = resumable._Proof._run

    def watched(self: Any, plan: Any, limit: Any = None) -> Any:
        plans.append(",".join(map(str, plan)))
        outcome, trial = run(self, plan, limit)
        assert not trial._plan or len(plan) > 1, "a run was not disturbed as planned"
        return outcome, trial

    def two(self: Any) -> int:
        for _ in self.iterate("rows", range(2)):
            pass
        return self.step("last", lambda: 1)

    monkeypatch.setattr(resumable._Proof, "_run", watched)
    hold(two, pairs=20)
    assert plans[:2] == ["", ""]
    # places: 1, 2 rows; 3 the step is saved; 4 the checkpoint after it; 5 the last step is saved; 6 the end
    # the first place of each kind, then the second one of the only kind that has two
    assert plans[2:11] == [
        *("interrupt@1", "interrupt@4"),
        *(f"kill@{place}" for place in (1, 3, 4, 5, 6)),
        *("interrupt@2", "kill@2"),
    ]
    assert 10 < len(plans[11:]) <= 20
    assert len(set(plans[11:])) == len(plans[11:])
    first, plans[:] = plans.copy(), []
    hold(two, pairs=20)
    assert plans == first


@pytest.mark.parametrize(
    ("only", "done"),
    [
        ("interrupt@2", [0, 1, 2, 3]),
        ("kill@1", [0, 0, 1, 2, 3]),
        ("kill@2", [0, 1, 1, 2, 3]),
        ("kill@5", [0, 1, 2, 3]),
        ("kill@6", [0, 1, 2, 3]),
        ("kill@2,kill@2", [0, 1, 1, 2, 2, 3]),
        ("interrupt@2,kill@1", [0, 1, 2, 2, 3]),
        ("kill@2,interrupt@2", [0, 1, 1, 2, 3]),
    ],
)
def test_what_a_disturbance_repeats(hold: Any, only: str, done: list[int]) -> None:
    runs: list[list[int]] = []

    def rows(self: Any) -> int:
        for number in self.iterate("rows", range(4)):
            runs[-1].append(number)
        return 1

    hold(rows, setup=lambda: runs.append([]), only=only)
    assert runs == [[0, 1, 2, 3], [0, 1, 2, 3], done]


def test_a_kill_cannot_be_caught(hold: Any) -> None:
    done: list[Any] = []

    def catching(self: Any) -> int:
        try:
            for number in self.iterate("rows", range(3)):
                done.append(number)
        except BaseException:
            done.append("caught")
        self.step("after", done.append, "after")
        return 1

    hold(catching, setup=done.clear, only="kill@2")
    assert done == [0, 1, "caught", 1, 2, "after"]


def test_each_single_interruption_makes_two_executions(hold: Any, world: World) -> None:
    def empty(self: Any) -> int:
        world.calls["executions"] += 1
        for _ in self.iterate("rows", range(100)):
            pass
        return 1

    hold(empty, kills=False, pairs=0, setup=None)
    assert world.calls["executions"] == 2 + 100 * 2


# -- differences


@pytest.mark.parametrize(
    ("expected", "found", "lines"),
    [
        (1, 2, ["it: expected 1, found 2"]),
        ({"a": 1}, {"b": 1}, ["it['a']: expected 1, found nothing", "it['b']: expected nothing, found 1"]),
        ([1, [2, 3]], [1, [2, 4]], ["it[1][1]: expected 3, found 4"]),
        ((1, 2), [1, 2], ["it: expected (1, 2), found [1, 2]"]),
        ({1, 2}, {2, 3}, ["it member: expected 1, found nothing", "it member: expected nothing, found 3"]),
        (None, {"a": 1}, ["it: expected None, found {'a': 1}"]),
    ],
)
def test_differences(expected: Any, found: Any, lines: list[str]) -> None:
    assert differences("it", expected, found) == lines


def test_differences_are_short() -> None:
    lines = differences("it", list(range(100)), [])
    assert lines[-1] == "…"
    assert len(lines) == 6
    assert len(differences("it", "a" * 10_000, "b" * 10_000)[0]) < 300
