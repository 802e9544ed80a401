"""Prove that a task is resumable, by interrupting and killing it at every possible place.

>>> from celery import Celery
>>> from celery_continuations import ContinuableTask
>>> app = Celery(set_as_current=False)
>>> sent = []
>>> @app.task(base=ContinuableTask, bind=True, name="send")
... def send(self, users):
...     for step in self.step("mails", start=0):
...         while step.cursor < len(users):
...             user = users[step.cursor]
...             step.advance()  # too early
...             sent.append(user)
>>> assert_resumable(send, ["ann", "bob", "eve"], check=lambda: sent, setup=sent.clear)
Traceback (most recent call last):
    ...
AssertionError: send is not resumable: interrupted at place 1 of 5, the checkpoint in step 'mails' at cursor 1
  check()[0]: expected 'ann', found 'bob'
  check()[1]: expected 'bob', found 'eve'
  check()[2]: expected 'eve', found nothing
This run alone: assert_resumable(send, ['ann', 'bob', 'eve'], check=..., setup=..., only="interrupt@1")
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery_continuations.task import AppTask
from celery_continuations.testing.differences import are_same, differences
from celery_continuations.testing.rehearsal import Rehearsal, run_until_done
from celery_continuations.testing.trials import INTERRUPT, KILL, Place, Plan, Trial, parse, plans, short

__all__ = ["assert_resumable"]

# The same in each run, because values derived from the task's id must not differ.
_TASK_ID = "00000000-0000-4000-8000-000000000000"

# The default of ``expected``: the state of the world that the task itself leaves.
_SAME: Any = object()

# A disturbed run may have this many times the checkpoints and executions of the undisturbed one, and some more.
_TIMES, _MORE = 10, 100


def assert_resumable(
    task: AppTask[..., Any],
    *args: Any,
    kwargs: dict[str, Any] | None = None,
    check: Callable[[], Any] | None = None,
    setup: Callable[[], Any] | None = None,
    kills: bool = True,
    pairs: int = 100,
    only: str | None = None,
    upgrade_from: AppTask[..., Any] | None = None,
    expected: Any = _SAME,
) -> None:
    """Run a task undisturbed, then once for each place at which it may be stopped, and compare the outcomes.

    The outcome is what the task returns and what ``check()`` returns afterwards.  The runs are, in this order:
    interrupted at each checkpoint; killed at each checkpoint, before each completion of a step is saved, and
    before the task is known to have returned; and disturbed twice.  A kill repeats the work since the previous
    checkpoint.  Sleeps and timeouts pass immediately; use :func:`delivered` for the values that the task waits for.

    With ``upgrade_from`` it proves that the task resumes what older code has begun: each run begins with the old task,
    and continues with the new one after the first interruption or kill.  Only ``check()`` is
    compared, with its value after an undisturbed run of the new task.

    Args:
        task: the task.
        args: the task's arguments.
        kwargs: the task's keyword arguments.
        check: returns the state of the world, as a value that can be compared and copied.
        setup: called before each run, to restore the state of the world.
        kills: whether the task is killed as well.
        pairs: how many runs are disturbed twice; the sample is the same in each call.
        only: the one run to do, as named in the last line of the error.
        upgrade_from: the old task, kept in the tests under any name.
        expected: what ``check()`` returns after an upgraded run, if it differs from a run of the new task alone.

    Raises:
        AssertionError: at the first run whose outcome differs, with the differences; for a task that makes no
            checkpoints; and for one whose undisturbed runs differ.
        ValueError: if there is nothing to compare, or ``only`` cannot be read.
    """
    __tracebackhide__ = True  # what pytest shows of a failure begins in the test
    if upgrade_from is None:
        if expected is not _SAME:
            raise ValueError("expected= goes with upgrade_from=: without it two runs of the same task are compared")
        proof = _Proof(task, args, kwargs or {}, check, setup)
    else:
        proof = _Upgrade(task, args, kwargs or {}, check, setup, upgrade_from, expected)
    proof.hold(kills, pairs, only)


@dataclass
class _Outcome:
    """How a run ended."""

    value: Any = None
    error: BaseException | None = None
    world: Any = None


class _Proof:
    """The runs of one task, and their outcomes."""

    def __init__(self, task: Any, args: Any, kwargs: Any, check: Any, setup: Any) -> None:
        self._task = task
        self._args = args
        self._kwargs = kwargs
        self._check = check
        self._setup = setup
        self._start: float | None = None
        self._executions = 0

    def hold(self, kills: bool, pairs: int, only: str | None) -> None:
        """Do all runs, or the only one."""
        __tracebackhide__ = True
        repeated = None if only is None else parse(only)
        expected, places = self._undisturbed()
        if repeated is not None:
            self._disturbed(repeated, expected, places)
            return
        chosen = list(plans(places, kills, pairs))
        if not chosen:
            raise AssertionError(
                f"{self._task.name} makes no checkpoints with these arguments, so it never stops in between: give it "
                "steps, or arguments with which they have something to do"
            )
        for plan in chosen:
            self._disturbed(plan, expected, places)

    def _undisturbed(self) -> tuple[_Outcome, list[Place]]:
        """Return the outcome and the places of two undisturbed runs, which must agree."""
        expected, first = self._run(())
        if expected.value is None and self._check is None:
            raise ValueError(f"{self._task.name} returns nothing, so there is nothing to compare: give check=")
        _refuse_incomparable("what the task returns", expected.value)
        _refuse_incomparable("what check() returns", expected.world)
        again, second = self._run(())
        found = self._compare(expected, again)
        if not found:
            theirs = differences("places", [one.what for one in first.places], [one.what for one in second.places])
            found = [f"  {line}" for line in theirs]
        if found:
            raise AssertionError(
                f"two undisturbed runs of {self._task.name} differ, so a disturbed one cannot be judged; setup= must "
                "restore all that the task changes, and the task must depend on nothing else\n" + "\n".join(found)
            )
        return expected, first.places

    def _disturbed(self, plan: Plan, expected: _Outcome, places: list[Place]) -> None:
        __tracebackhide__ = True
        found, trial = self._run(plan, limit=_TIMES * len(places) + _MORE)
        lines = ["  it does not end"] if trial.endless else self._compare(expected, found)
        if lines:
            raise AssertionError("\n".join([self._headline(plan, places), *lines, self._repeat(plan)])) from found.error

    def _run(self, plan: Plan, limit: int | None = None) -> tuple[_Outcome, Trial]:
        if self._setup is not None:
            self._setup()
        trial, run = self._trial(plan, limit)
        self._start = run.clock.start
        outcome = _Outcome()
        try:
            run.apply(self._args, self._kwargs)
            if plan:
                outcome.value = run_until_done(run, executions=_TIMES * self._executions + _MORE)
            else:
                outcome.value = run_until_done(run)
                self._executions = run.begun
            if self._check is not None:
                outcome.world = copy.deepcopy(self._check())
        except Exception as exc:
            if not plan:
                raise
            outcome.error = exc
        return outcome, trial

    def _trial(self, plan: Plan, limit: int | None) -> tuple[Trial, Rehearsal]:
        trial = Trial(plan, limit)
        return trial, Rehearsal(self._task, faults=trial, task_id=_TASK_ID, start=self._start)

    def _compare(self, expected: _Outcome, found: _Outcome) -> list[str]:
        """Describe how an outcome differs."""
        if found.error is not None:
            return [f"  it raises {type(found.error).__name__}: {found.error}"]
        lines = []
        if not are_same(expected.value, found.value):
            lines += differences("the value returned", expected.value, found.value)
        if not are_same(expected.world, found.world):
            lines += differences("check()", expected.world, found.world)
        return [f"  {line}" for line in lines]

    def _headline(self, plan: Plan, places: list[Place]) -> str:
        first, *rest = plan
        verb = {INTERRUPT: "interrupted", KILL: "killed"}
        known = f", {places[first.place - 1]}" if first.place <= len(places) else ""
        text = f"{self._problem()}: {verb[first.kind]} at place {first.place} of {len(places)}{known}"
        for one in rest:
            text += f", and {verb[one.kind]} again at the place no. {one.place} after that"
        return text

    def _problem(self) -> str:
        return f"{self._task.name} is not resumable"

    def _more_arguments(self) -> list[str]:
        return []

    def _repeat(self, plan: Plan) -> str:
        parts = [self._task.__name__, *map(short, self._args)]
        parts += [f"kwargs={short(self._kwargs)}"] if self._kwargs else []
        parts += [f"{name}=..." for name in ("check", "setup") if getattr(self, f"_{name}") is not None]
        parts += self._more_arguments()
        only = ",".join(map(str, plan))
        return f'This run alone: assert_resumable({", ".join(parts)}, only="{only}")'


class _Upgrade(_Proof):
    """The runs that the old task begins and the new one ends."""

    def __init__(
        self, task: Any, args: Any, kwargs: Any, check: Any, setup: Any, upgrade_from: Any, expected: Any
    ) -> None:
        super().__init__(task, args, kwargs, check, setup)
        if check is None:
            raise ValueError("upgrade_from= needs check=: what the old task returns says nothing of the new one")
        self._old = upgrade_from
        self._expected = expected
        self._begins_with = task

    def _undisturbed(self) -> tuple[_Outcome, list[Place]]:
        """Return the outcome of the new task, and the places of the old one."""
        expected, _ = super()._undisturbed()
        if self._expected is not _SAME:
            expected = _Outcome(world=self._expected)
        executions = self._executions
        self._begins_with = self._old
        _, places = super()._undisturbed()
        self._executions = max(executions, self._executions)
        return expected, places

    def _trial(self, plan: Plan, limit: int | None) -> tuple[Trial, Rehearsal]:
        def upgrade() -> None:
            run.task = self._task

        trial = Trial(plan, limit, upgrade)
        run = Rehearsal(self._begins_with, faults=trial, task_id=_TASK_ID, start=self._start)
        return trial, run

    def _compare(self, expected: _Outcome, found: _Outcome) -> list[str]:
        """Compare the states of the world, not the return values."""
        return super()._compare(_Outcome(world=expected.world), _Outcome(error=found.error, world=found.world))

    def _problem(self) -> str:
        return f"{self._task.name} does not resume what {self._old.name} has begun"

    def _more_arguments(self) -> list[str]:
        return ["upgrade_from=...", *(["expected=..."] if self._expected is not _SAME else [])]


def _refuse_incomparable(what: str, value: Any) -> None:
    if not are_same(value, copy.deepcopy(value)):
        raise ValueError(
            f"{what} cannot be compared, because a {type(value).__name__} does not equal its own copy: {short(value)}; "
            "use lists, dicts, strings and numbers"
        )
