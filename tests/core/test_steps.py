"""Steps: order, completion, values, errors."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_continuations.exceptions import (
    Interrupt,
    InvalidStepError,
    RememberedError,
    UnserializableValueError,
)


def linear(ran: list[str]) -> Any:
    def body(task: Any) -> str:
        for name in ("one", "two", "three", "four"):
            task.step(name, ran.append, name)
        return "end"

    return body


def test_linear_steps_run_in_order(executions: Any) -> None:
    ran: list[str] = []
    assert executions.execute(linear(ran)) == "end"
    assert ran == ["one", "two", "three", "four"]


def test_a_task_interrupted_after_its_first_step_runs_none_twice(executions: Any) -> None:
    ran: list[str] = []
    interrupt = executions.execute(linear(ran), stop_at={1})
    assert isinstance(interrupt, Interrupt)
    assert ran == ["one"]
    assert executions.execute(linear(ran)) == "end"
    assert ran == ["one", "two", "three", "four"]


def test_no_checkpoint_after_the_last_step_nor_before_the_first(executions: Any) -> None:
    executions.execute(linear([]), stop_at={99})
    assert executions.checkpoints == 3
    executions.text = executions.text  # all four are complete: only skipping is left
    executions.execute(linear([]), stop_at={99})
    assert executions.checkpoints == 0


def test_a_bare_checkpoint_interrupts(executions: Any) -> None:
    def body(task: Any) -> None:
        task.checkpoint()

    interrupt = executions.execute(body, stop_at={1})
    assert isinstance(interrupt, Interrupt)
    assert str(interrupt) == "Interrupted between steps (stopping)"


def test_a_continuation_without_progress_is_not_interrupted_again(executions: Any) -> None:
    def body(task: Any) -> str:
        task.checkpoint()
        return "end"

    executions.execute(body, stop_at={1})
    assert executions.execute(body, stop_at={1}) == "end"


def test_a_name_used_twice(executions: Any) -> None:
    def body(task: Any) -> None:
        task.step("one", int)
        task.step("one", int)

    with pytest.raises(InvalidStepError, match="step 'one' was started twice"):
        executions.execute(body)


def test_a_nested_step(executions: Any) -> None:
    def block(task: Any) -> None:
        for _ in task.step("outer"):
            task.step("inner", int)

    def call(task: Any) -> None:
        task.step("outer", lambda: task.step("inner", int))

    for body in (block, call):
        with pytest.raises(InvalidStepError) as caught:
            type(executions)().execute(body)
        assert (caught.value.found, caught.value.expected) == ("inner", "outer")
        assert "'inner' was started inside step 'outer'" in str(caught.value)


@pytest.mark.parametrize("name", ["", None, 5, b"x"])
def test_a_bad_step_name(executions: Any, name: Any) -> None:
    with pytest.raises(InvalidStepError, match="must be a non-empty str") as caught:
        executions.execute(lambda task: task.step(name, int))
    assert caught.value.found == name


def test_an_unexpected_step_on_resumption(executions: Any) -> None:
    def before(task: Any) -> None:
        for step in task.step("import", start=0):
            step.advance()

    def after(task: Any) -> None:
        task.step("upload", int)

    executions.execute(before, stop_at={1})
    with pytest.raises(InvalidStepError) as caught:
        executions.execute(after)
    assert (caught.value.found, caught.value.expected) == ("upload", "import")


def test_a_changed_order(executions: Any) -> None:
    executions.execute(linear([]), stop_at={2})

    def changed(task: Any) -> None:
        task.step("two", int)
        task.step("one", int)

    with pytest.raises(InvalidStepError) as caught:
        executions.execute(changed)
    assert (caught.value.found, caught.value.expected) == ("two", "one")


def test_a_recorded_step_that_the_code_no_longer_reaches(executions: Any) -> None:
    executions.execute(linear([]), stop_at={2})
    with pytest.raises(InvalidStepError, match="ended before step 'two'") as caught:
        executions.execute(lambda task: task.step("one", int))
    assert caught.value.expected == "two"


def test_a_step_that_is_neither_iterated_nor_given_a_function(executions: Any) -> None:
    def followed(task: Any) -> None:
        task.step("one")
        task.step("two", int)

    def last(task: Any) -> None:
        task.step("one")

    for body in (followed, last):
        with pytest.raises(InvalidStepError, match="step 'one' was neither iterated nor given a function"):
            type(executions)().execute(body)


def test_a_step_in_a_with_statement(executions: Any) -> None:
    def body(task: Any) -> None:
        with task.step("one"):
            pass

    with pytest.raises(InvalidStepError, match=r"for step in self\.step\('one'\)"):
        executions.execute(body)


def forgotten(task: Any) -> None:
    task.iterate("one", [1])


def forgotten_before_another(task: Any) -> None:
    task.iterate("one", [1])
    task.step("two", int)


def in_a_with_statement(task: Any) -> None:
    with task.iterate("one", [1]):
        pass


def loop_in_a_loop(task: Any) -> None:
    for _ in task.iterate("one", [1]):
        list(task.iterate("two", [1]))


def call_in_a_loop(task: Any) -> None:
    for _ in task.iterate("one", [1]):
        task.step("two", int)


def moved_by_hand(task: Any) -> None:
    for _ in (rows := task.iterate("one", [1])):
        rows.set(5)


def advanced_by_hand(task: Any) -> None:
    for _ in (rows := task.iterate("one", [1])):
        rows.advance()


def one_step_in_a_python_loop(task: Any) -> None:
    for number in range(2):
        task.step("one", int, number)


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        (forgotten, r"write `for item in self\.iterate\('one', \.\.\.\):`"),
        (forgotten_before_another, r"write `for item in self\.iterate\('one', \.\.\.\):`"),
        (in_a_with_statement, r"write `for item in self\.iterate\('one', \.\.\.\):`"),
        (loop_in_a_loop, r"write one loop, self\.iterate\('one', nested\(outer, inner\)\)"),
        (call_in_a_loop, "call functions in its body directly"),
        (moved_by_hand, "is a loop, whose cursor moves with each item; to skip items write `continue`"),
        (advanced_by_hand, "is a loop, whose cursor moves with each item; to skip items write `continue`"),
        (one_step_in_a_python_loop, r"write `for item in self\.iterate\('one', items\):`"),
    ],
)
def test_the_advice_is_for_the_kind_of_step_that_was_written(executions: Any, body: Any, advice: str) -> None:
    with pytest.raises(InvalidStepError, match=advice):
        executions.execute(body)


def test_a_step_iterated_twice(executions: Any) -> None:
    def body(task: Any) -> None:
        rows = task.iterate("one", [1, 2])
        list(rows)
        list(rows)

    with pytest.raises(InvalidStepError, match="step 'one' is iterated a second time"):
        executions.execute(body)


def test_a_step_started_in_another_thread(executions: Any) -> None:
    errors: list[Exception] = []

    def elsewhere(task: Any) -> None:
        try:
            task.step("one", int)
        except InvalidStepError as exc:
            errors.append(exc)

    def body(task: Any) -> None:
        thread = threading.Thread(target=elsewhere, args=(task,))
        thread.start()
        thread.join()

    executions.execute(body)
    assert "'one' was started in another thread" in str(errors[0])


def test_a_remembered_value_is_not_computed_again(executions: Any) -> None:
    calls: list[int] = []

    def body(task: Any) -> Any:
        value = task.step("one", lambda: calls.append(1) or {"pair": (1, 2)})
        task.step("two", int)
        return value

    executions.execute(body, stop_at={1})
    assert executions.execute(body) == {"pair": (1, 2)}
    assert calls == [1]


def test_a_failed_step_saves_no_value(executions: Any) -> None:
    def body(task: Any) -> None:
        task.step("one", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        executions.execute(body)
    assert executions.snapshot.completed == {}
    assert executions.saves == []


def test_a_value_that_cannot_be_saved_is_named_now_and_later_and_never_made_again(executions: Any) -> None:
    calls: list[int] = []

    def body(task: Any) -> None:
        task.step("one", lambda: calls.append(1) or object())

    for _ in range(2):
        with pytest.raises(UnserializableValueError, match="the value of step 'one' cannot be saved: object"):
            executions.execute(body)
    assert calls == [1]


class Refusal(Exception):
    """An error with arguments that can be imported by its path."""


class Stubborn(Exception):
    """An error whose constructor does not accept its args."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("only text")


@pytest.mark.parametrize(
    ("error", "remembered"),
    [
        (Refusal("no", 5, (1, 2)), Refusal("no", 5, (1, 2))),
        (KeyError("x"), KeyError("x")),
        (Stubborn(1, 2), RememberedError(f"{__name__}:Stubborn", "only text")),
        (Refusal(object), RememberedError(f"{__name__}:Refusal", "<class 'object'>")),
    ],
)
def test_an_error_that_the_task_catches_is_remembered(executions: Any, error: Any, remembered: Any) -> None:
    calls: list[int] = []
    caught: list[Exception] = []

    def fail() -> None:
        calls.append(1)
        raise error

    def body(task: Any) -> None:
        try:
            task.step("one", fail)
        except Exception as exc:
            caught.append(exc)
        task.step("two", int)

    executions.execute(body, stop_at={1})
    executions.execute(body)
    assert calls == [1]
    assert (type(caught[1]), caught[1].args) == (type(remembered), remembered.args)


def test_a_remembered_error_of_a_class_not_imported_is_not_imported(executions: Any) -> None:
    from celery_continuations.core.outcome import Outcome

    with pytest.raises(RememberedError, match=r"antigravity:Error: text"):
        Outcome("error", ["antigravity:Error", [], "text"]).replay("one")
    with pytest.raises(RememberedError, match=r"os:system: text"):
        Outcome("error", ["os:system", ["true"], "text"]).replay("one")


def leave_by_break(task: Any) -> None:
    for step in task.step("one", start=0):
        step.advance()
        break


def leave_by_continue(task: Any) -> None:
    for step in task.step("one", start=0):
        step.advance()
        continue


def leave_by_caught_error(task: Any) -> None:
    try:
        for step in task.step("one", start=0):
            step.advance()
            raise ValueError
    except ValueError:
        pass


def leave_iteration_by_break(task: Any) -> None:
    for item in task.iterate("one", range(10)):
        if item == 3:
            break


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_continue, leave_by_caught_error, leave_iteration_by_break])
def test_a_block_that_was_left_is_complete_when_the_task_resumes(executions: Any, leave: Any) -> None:
    def body(task: Any) -> None:
        leave(task)
        assert list(task.run.snapshot.completed) in ([], ["one"])
        task.step("two", int)

    executions.execute(body)
    assert list(executions.snapshot.completed) == ["one", "two"]


def test_a_block_that_an_error_leaves_with_the_task_is_not_complete(executions: Any) -> None:
    def body(task: Any) -> None:
        for step in task.step("one", start=0):
            step.set(5)
            raise ValueError

    with pytest.raises(ValueError, match="^$"):
        executions.execute(body)
    assert executions.snapshot.completed == {}
    assert executions.snapshot.current == ("one", 5)


def test_an_interruption_within_a_block_does_not_complete_it(executions: Any) -> None:
    """The for loop closes its iterator when it ends; that must not count as a break."""

    def body(task: Any) -> None:
        for step in task.step("one", start=0):
            while step.cursor < 5:
                step.advance()

    executions.execute(body, stop_at={2})
    assert executions.snapshot.completed == {}
    assert executions.snapshot.current == ("one", 2)


def test_a_bare_except_around_a_checkpoint_only_delays_the_interruption(executions: Any) -> None:
    done: list[int] = []

    def body(task: Any) -> str:
        for step in task.step("one", start=0):
            while step.cursor < 5:
                done.append(step.cursor)
                try:
                    step.advance()
                except:  # noqa: E722
                    pass
        return "what the body returns is not the end"

    interrupt = executions.execute(body, stop_at={2})
    assert isinstance(interrupt, Interrupt)
    assert executions.execute(body) == "what the body returns is not the end"
    assert done == [0, 1, 2, 3, 4]


def test_a_bare_except_around_a_block_hands_over_its_cursor(executions: Any) -> None:
    def body(task: Any) -> None:
        try:
            for item in task.iterate("one", range(10)):
                seen.append(item)
        except:  # noqa: E722
            return
        task.step("two", int)

    seen: list[int] = []
    assert isinstance(executions.execute(body, stop_at={4}), Interrupt)
    assert executions.snapshot.current == ("one", 4)
    executions.execute(body)
    assert seen == list(range(10))


def test_a_swallowed_interruption_comes_again_at_the_next_step(executions: Any) -> None:
    def body(task: Any) -> None:
        try:
            for item in task.iterate("one", range(10)):
                seen.append(item)
        except:  # noqa: E722
            pass
        task.step("two", later.append, 1)

    seen: list[int] = []
    later: list[int] = []
    assert isinstance(executions.execute(body, stop_at={4}), Interrupt)
    assert later == []
    executions.execute(body)
    assert (seen, later) == (list(range(10)), [1])


def test_a_finally_that_raises_does_not_lose_the_interruption(executions: Any) -> None:
    def body(task: Any) -> None:
        try:
            for item in task.iterate("one", range(10)):
                seen.append(item)
        finally:
            if len(seen) < 10:
                raise ValueError

    seen: list[int] = []
    with pytest.raises(ValueError, match="^$"):
        executions.execute(body, stop_at={4})
    assert executions.snapshot.current == ("one", 4)
    executions.execute(body)
    assert seen == list(range(10))


def test_a_generator_kept_in_a_variable(executions: Any) -> None:
    kept: list[Any] = []

    def body(task: Any) -> None:
        rows = iter(task.iterate("one", range(10)))
        kept.append(rows)
        for item in rows:
            seen.append(item)

    seen: list[int] = []
    assert isinstance(executions.execute(body, stop_at={4}), Interrupt)
    assert executions.snapshot.current == ("one", 4)
    executions.execute(body)
    kept.clear()
    assert seen == list(range(10))


def test_a_loop_left_open_at_the_end_is_complete(executions: Any) -> None:
    def body(task: Any) -> None:
        kept.append(iter(task.iterate("one", range(10))))
        next(kept[0])

    kept: list[Any] = []
    executions.execute(body)
    assert list(executions.snapshot.completed) == ["one"]


def test_a_loop_left_while_its_iterator_is_kept_says_what_to_do(executions: Any) -> None:
    def body(task: Any) -> None:
        rows = iter(task.iterate("one", range(10)))
        next(rows)
        task.step("two", int)

    with pytest.raises(InvalidStepError, match="kept in a variable, close it"):
        executions.execute(body)


def isolated(*alone: str) -> Any:
    def body(task: Any) -> list[str]:
        here: list[str] = []
        executed.append(here)
        for name in ("1", "2", "3", "4"):
            for _ in task.step(name, isolated=name in alone):
                here.append(name)
        return here

    executed: list[list[str]] = []
    return body, executed


@pytest.mark.parametrize(
    ("alone", "expected"),
    [
        (("3",), [["1", "2"], ["3"], ["4"]]),
        (("1", "4"), [["1"], ["2", "3"], ["4"]]),
        (("1", "2", "3", "4"), [["1"], ["2"], ["3"], ["4"]]),
    ],
)
def test_isolated_steps(executions: Any, alone: Any, expected: Any) -> None:
    body, executed = isolated(*alone)
    while isinstance(executions.execute(body), Interrupt):
        assert executions.snapshot.reason == "isolated"
    assert executed == expected


def test_isolated_steps_run_straight_through_where_nothing_could_resume_them(executions: Any) -> None:
    body, executed = isolated("3")
    executions.execute(body, interruptible=False)
    assert executed == [["1", "2", "3", "4"]]


def test_saved_survives(executions: Any) -> None:
    def body(task: Any) -> Any:
        if "names" not in task.saved:
            task.saved["names"] = ["x", ("y", 2)]
        task.step("one", int)
        task.step("two", int)
        return task.saved["names"]

    executions.execute(body, stop_at={1})
    assert executions.execute(body) == ["x", ("y", 2)]


def test_saved_takes_copies_and_refuses_what_it_cannot_keep(executions: Any) -> None:
    def body(task: Any) -> None:
        rows = [1]
        task.saved["rows"] = rows
        rows.append(2)
        assert task.saved == {"rows": [1]}
        for assign in (
            lambda: task.saved.update(x=object()),
            lambda: task.saved.setdefault("x", object()),
            lambda: task.saved.__ior__({"x": object()}),
        ):
            with pytest.raises(UnserializableValueError, match=r"saved\['x'\] cannot be saved"):
                assign()
        with pytest.raises(UnserializableValueError, match="needs a key of type str"):
            task.saved[5] = 1
        assert task.saved == {"rows": [1]}

    executions.execute(body)


def test_each_completed_step_is_saved(executions: Any) -> None:
    executions.execute(linear([]))
    assert len(executions.saves) == 4


def test_the_notifications_of_steps(executions: Any) -> None:
    def body(task: Any) -> None:
        task.step("one", int)
        for step in task.step("two", start=0):
            step.advance()

    executions.execute(body, stop_at={2})
    executions.execute(body)
    assert executions.events == [
        ("step_started", "one"),
        ("step_completed", "one"),
        ("step_started", "two"),
        ("step_skipped", "one"),
        ("step_started", "two"),
        ("step_completed", "two"),
    ]


@pytest.mark.parametrize("fails", ["when it is opened", "when it is read"])
def test_an_error_of_the_source_that_is_caught_completes_the_step(executions: Any, fails: str) -> None:
    def source() -> Any:
        if fails == "when it is opened":
            raise OSError("no such file")
        return broken()

    def broken() -> Any:
        yield "first"
        raise OSError("cannot be read")

    def body(task: Any) -> str:
        try:
            for item in task.iterate("loop", source):
                seen.append(item)
        except OSError:
            seen.append("caught")
        task.step("after", seen.append, "after")
        return "end"

    seen: list[Any] = []
    assert executions.execute(body) == "end"
    assert seen[-2:] == ["caught", "after"]
    assert list(executions.snapshot.completed) == ["loop", "after"]
