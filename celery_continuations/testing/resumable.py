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

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from celery_continuations.task import AppTask
from celery_continuations.testing.comparable import Generated, comparable
from celery_continuations.testing.differences import differences
from celery_continuations.testing.plans import INTERRUPT, KILL, Place, Plan, named, parse, plans, short
from celery_continuations.testing.process_state import ProcessState, Used
from celery_continuations.testing.rehearsal import Rehearsal, run_until_done
from celery_continuations.testing.sent import Sent
from celery_continuations.testing.trials import Trial

__all__ = ["Report", "UntriedWarning", "assert_resumable"]

# The same in each run, because values derived from the task's id must not differ.
_TASK_ID = "00000000-0000-4000-8000-000000000000"

# The default of ``expected``: the state of the world that the task itself leaves.
_SAME: Any = object()

# A disturbed run may have this many times the checkpoints and executions of the undisturbed one, and some more.
_TIMES, _MORE = 10, 100


class UntriedWarning(UserWarning):
    """The time of :func:`assert_resumable` ended before each place was tried."""


class Report(NamedTuple):
    """What :func:`assert_resumable` has tried.

    Attributes:
        tried: the disturbed runs, named as ``only=`` takes them.
        left_out: those for which there was no time.

    >>> Report(("interrupt@1", "interrupt@2"), ("kill@1",))
    <Report: tried interrupt@1-2; left out kill@1>
    """

    tried: tuple[str, ...]
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        tried, left_out = (named([*map(parse, some)]) or "nothing" for some in self)
        return f"<Report: tried {tried}; left out {left_out}>"


def _unchanged(value: Any) -> Any:
    return value


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
    returned: Callable[[Any], Any] | None = _unchanged,
    seconds: float | None = 10,
) -> Report:
    """Run a task undisturbed, then once for each place at which it may be stopped, and compare the outcomes.

    The outcome is what the task returns and what ``check()`` returns afterwards.  Each place is tried once:
    interrupted at each checkpoint; killed at each checkpoint, before each completion of a step is saved, and
    before the task is known to have returned.  Then come runs that are disturbed twice.  A kill repeats the work since
    the previous checkpoint.  The first and the last place of each step come first, then those between, always in the
    same order.  Sleeps and timeouts pass immediately; use :func:`delivered` for the values that the task waits for.

    With ``upgrade_from`` it proves that the task resumes what older code has begun: each run begins with the old task,
    and continues with the new one after the first interruption or kill.  Only ``check()`` is
    compared, with its value after an undisturbed run of the new task.

    Args:
        task: the task.
        args: the task's arguments.
        kwargs: the task's keyword arguments.
        check: returns the state of the world: numbers, texts and containers of them; querysets and model instances,
            whose columns are compared; and other objects, whose attributes are compared.
        setup: called before each run, to restore the state of the world.
        kills: whether the task is killed as well.
        pairs: how many runs are disturbed twice; the sample is the same in each call.
        only: the one run to do, as named in the last line of the error.
        upgrade_from: the old task, kept in the tests under any name.
        expected: what ``check()`` returns after an upgraded run, if it differs from a run of the new task alone.
        returned: a function of the return value, whose result is compared instead; None to compare nothing of it.
        seconds: no further run begins if it would probably end later than this; None to try every place.

    Returns:
        What was tried.  Where something was left out, an :class:`UntriedWarning` says so.

    Raises:
        AssertionError: at the first run whose outcome differs, with the differences; for a task without steps; for one
            whose undisturbed runs differ; and where there was no time for a single disturbed run.
        ValueError: if there is nothing to compare, or ``only`` cannot be read.
    """
    __tracebackhide__ = True  # what pytest shows of a failure begins in the test
    if upgrade_from is None:
        if expected is not _SAME:
            raise ValueError("expected= goes with upgrade_from=: without it two runs of the same task are compared")
        proof = _Proof(task, args, kwargs or {}, check, setup, returned)
    else:
        proof = _Upgrade(task, args, kwargs or {}, check, setup, upgrade_from, expected)
    return proof.report(kills, pairs, only, seconds)


def _now() -> float:
    """Return the real time, also where a test has frozen it: a suspended clock would make the trials endless."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _reported(task: Any, tried: list[Plan], left: list[Plan], seconds: float | None) -> Report:
    advice = "pass fewer items, or seconds=None to try everything"
    if left and not tried:
        raise AssertionError(
            f"an undisturbed run of {task.name} takes so long that nothing could be tried within {seconds} s; {advice}"
        )
    if left:
        text = f"{task.name}: tried within {seconds} s: {named(tried)}; left out: {named(left)}; {advice}"
        warnings.warn(text, UntriedWarning, stacklevel=4)
    return Report(*(tuple(",".join(map(str, plan)) for plan in some) for some in (tried, left)))


@dataclass
class _Outcome:
    """How a run ended."""

    value: Any = None
    error: BaseException | None = None
    world: Any = None


class _Proof:
    """The runs of one task, and their outcomes."""

    def __init__(self, task: Any, args: Any, kwargs: Any, check: Any, setup: Any, returned: Any = None) -> None:
        self.task = task
        self._args = args
        self._kwargs = kwargs
        self._check = check
        self._setup = setup
        self._returned = returned
        self._start: float | None = None
        self._executions = 0
        self._used: Used | None = None
        self._process: ProcessState | None = None
        self._generated = Generated()
        self._sent: Sent | None = None  # written once: each run gets the arguments as they were sent

    def report(self, kills: bool, pairs: int, only: str | None, seconds: float | None) -> Report:
        """Do all runs, or the only one."""
        __tracebackhide__ = True
        began = _now()
        repeated = None if only is None else parse(only)
        outcome, places = self.undisturbed()
        if repeated is not None:
            self.disturbed(repeated, outcome, places)
            return Report((str(only),), ())
        if len(places) < 2:
            raise AssertionError(
                f"{self.task.name} has no steps with these arguments, so it never stops in between: give it steps, or "
                "arguments with which they have something to do"
            )
        chosen = list(plans(places, kills, pairs))
        tried = self.disturb(chosen, outcome, places, None if seconds is None else began + seconds)
        return _reported(self.task, chosen[:tried], chosen[tried:], seconds)

    def undisturbed(self) -> tuple[_Outcome, list[Place]]:
        """Return the outcome and the places of two undisturbed runs, which must agree."""
        expected, first = self._run(())
        if expected.value is None and self._check is None:
            raise ValueError(f"{self.task.name} returns nothing, so there is nothing to compare: give check=")
        again, second = self._run(())
        found = self._compare(expected, again)
        if not found:
            theirs = differences("places", [one.what for one in first.places], [one.what for one in second.places])
            found = [f"  {line}" for line in theirs]
        if found and self._generated.were_met and self._generated.are_compared:
            self._generated.are_compared = False  # each run makes new rows
            return self.undisturbed()
        if found:
            raise AssertionError(
                f"two undisturbed runs of {self.task.name} differ, so a disturbed one cannot be judged; setup= must "
                "restore all that the task changes, and the task must depend on nothing else; leave out of check=, and "
                "with returned= of the return value, what is new in each run\n" + "\n".join(found)
            )
        return expected, first.places

    def disturb(self, chosen: list[Plan], expected: _Outcome, places: list[Place], until: float | None) -> int:
        """Do the runs for which there is time; return their number."""
        __tracebackhide__ = True
        longest = 0.0
        for count, plan in enumerate(chosen):
            began = _now()
            if until is not None and began + longest > until:
                return count
            self.disturbed(plan, expected, places)
            longest = max(longest, _now() - began)
        return len(chosen)

    def disturbed(self, plan: Plan, expected: _Outcome, places: list[Place]) -> None:
        """Do one run."""
        __tracebackhide__ = True
        found, trial = self._run(plan, limit=_TIMES * len(places) + _MORE)
        lines = ["  it does not end"] if trial.endless else self._compare(expected, found)
        if lines:
            raise AssertionError("\n".join([self._headline(plan, places), *lines, self._repeat(plan)])) from found.error

    def _run(self, plan: Plan, limit: int | None = None) -> tuple[_Outcome, Trial]:
        process = self._begun_process()
        trial, run = self._trial(plan, limit, process)
        self._start = run.clock.start
        outcome = _Outcome()
        try:
            run.apply(self._args, self._kwargs)
            self._sent = run.sent
            if plan:
                value = run_until_done(run, executions=_TIMES * self._executions + _MORE)
            else:
                value = run_until_done(run)
                self._executions = run.begun
            if self._returned is not None:
                outcome.value = comparable(self._returned(value), "the value returned", self._generated)
            if self._check is not None:
                outcome.world = comparable(self._check(), "check()", self._generated)
        except Exception as exc:
            if not plan:
                raise
            outcome.error = exc
        return outcome, trial

    def _begun_process(self) -> ProcessState:
        """Set up the world and the process of a run."""
        if self._process is not None:
            self._process.restore()
        if self._setup is not None:
            self._setup()
        if self._used is None:
            self._used = Used(self._check, self._setup)
        self._process = ProcessState(self._used, objects=True)
        self._process.keep_variables(self.task)
        return self._process

    def _trial(self, plan: Plan, limit: int | None, process: ProcessState) -> tuple[Trial, Rehearsal]:
        trial = Trial(plan, inf if limit is None else limit, process.restore)
        return trial, self._rehearsal(self.task, trial)

    def _rehearsal(self, task: Any, trial: Trial) -> Rehearsal:
        return Rehearsal(task, faults=trial, task_id=_TASK_ID, start=self._start, used=self._used, sent=self._sent)

    def _compare(self, expected: _Outcome, found: _Outcome) -> list[str]:
        """Describe how an outcome differs."""
        if found.error is not None:
            return [f"  it raises {type(found.error).__name__}: {found.error}"]
        lines = differences("the value returned", expected.value, found.value)
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
        return f"{self.task.name} is not resumable"

    def _more_arguments(self) -> list[str]:
        if self._returned is None:
            return ["returned=None"]
        return ["returned=..."] if self._returned is not _unchanged else []

    def _repeat(self, plan: Plan) -> str:
        parts = [self.task.__name__, *map(short, self._args)]
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
        super().__init__(task, args, kwargs, check, setup)  # the values of two different functions are not compared
        if check is None:
            raise ValueError("upgrade_from= needs check=: what the old task returns says nothing of the new one")
        self._old = upgrade_from
        self._expected = expected
        self._begins_with = task

    def undisturbed(self) -> tuple[_Outcome, list[Place]]:
        """Return the outcome of the new task, and the places of the old one."""
        expected, _ = super().undisturbed()
        if self._expected is not _SAME:
            expected = _Outcome(world=comparable(self._expected, "expected=", self._generated))
        executions = self._executions
        self._begins_with, self._sent = self._old, None
        _, places = super().undisturbed()
        self._executions = max(executions, self._executions)
        return expected, places

    def _trial(self, plan: Plan, limit: int | None, process: ProcessState) -> tuple[Trial, Rehearsal]:
        def upgrade() -> None:
            process.restore()
            run.task = self.task

        trial = Trial(plan, inf if limit is None else limit, upgrade)
        run = self._rehearsal(self._begins_with, trial)
        return trial, run

    def _problem(self) -> str:
        return f"{self.task.name} does not resume what {self._old.name} has begun"

    def _more_arguments(self) -> list[str]:
        return ["upgrade_from=...", *(["expected=..."] if self._expected is not _SAME else [])]
