"""Show that a task is resumable, by interrupting and killing it wherever that can happen."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import LOST, Snapshot
from celery_continuations.execution.execution import STOPPING
from celery_continuations.task import AppTask
from celery_continuations.testing.differences import are_same, differences
from celery_continuations.testing.fault_plan import Guide
from celery_continuations.testing.rehearsal import Rehearsal, run_until_done

__all__ = ["assert_resumable"]

INTERRUPT, KILL = "interrupt", "kill"

# The same in each run, so that what is derived from the task's id is the same as well.
_TASK_ID = "00000000-0000-4000-8000-000000000000"

# Expect what the task itself leaves.
_SAME: Any = object()

# A disturbed run may have so many times the checkpoints and executions of the undisturbed one, and some more.
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
    before it is known that the task has returned; and disturbed twice.  A kill repeats what was done since the
    checkpoint before.  What a task waits for passes at once; use :func:`delivered` for what it is to be given.

    With ``upgrade_from`` it shows that the task resumes what older code has begun: each run begins with the old task,
    and continues with the new one from the first place at which it is stopped or killed.  Then ``check()`` alone is
    compared, with what an undisturbed run of the new task leaves.

    Args:
        task: which task.
        args: of the task.
        kwargs: of the task.
        check: returns the state of the world, as anything that can be compared and copied.
        setup: called before each run: puts the world back to where it was.
        kills: whether the task has to stand kills.
        pairs: how many runs are disturbed twice, a sample that is always the same.
        only: the one run to do, as in the error's last line.
        upgrade_from: the task as it was, kept in the tests under any name.
        expected: what ``check()`` returns after an upgraded run, where it is not what the new task alone leaves.

    Raises:
        AssertionError: at the first run whose outcome differs, with what differs; and for a task that makes no
            checkpoints, or ends differently in two undisturbed runs.
        ValueError: where there is nothing that could be compared, or ``only`` cannot be read.

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
    __tracebackhide__ = True  # what pytest shows of a failure begins in the test
    if upgrade_from is None:
        if expected is not _SAME:
            raise ValueError("expected= goes with upgrade_from=: without it two runs of the same task are compared")
        proof = _Proof(task, args, kwargs or {}, check, setup)
    else:
        proof = _Upgrade(task, args, kwargs or {}, check, setup, upgrade_from, expected)
    proof.hold(kills, pairs, only)


class _Disturbance(NamedTuple):
    """What happens at which place, counted from the disturbance before."""

    kind: str
    place: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.place}"


_Plan = tuple[_Disturbance, ...]


class _Place(NamedTuple):
    """Where a run can be disturbed; the cursor is told apart, for that of a new row is another in each run."""

    what: str
    is_checkpoint: bool
    cursor: str = ""

    def __str__(self) -> str:
        return f"{self.what}{self.cursor}"


@dataclass
class _Outcome:
    """How a run ended."""

    value: Any = None
    error: BaseException | None = None
    world: Any = None


class _Trial(Guide):
    """Counts the places of one run, and disturbs it at some of them."""

    attentive = True

    def __init__(self, plan: _Plan, limit: int | None = None, on_disturbed: Callable[[], None] = lambda: None) -> None:
        self._on_disturbed = on_disturbed
        self.places: list[_Place] = []
        self.endless = False
        self._is_first = not plan
        self._plan = list(plan)
        self._count = 0
        self._left = limit

    def checkpoint(self, execution: Any, run: Run) -> str | None:
        self._count += 1
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.endless = True
                execution.kill()
        if self._is_first:
            step = run.current
            cursor = "" if step is None else f" at cursor {_short(step.cursor)}"
            self.places.append(_Place(f"the checkpoint {_where(run)}", True, cursor))
        if not self._plan:
            return None
        kind, place = self._plan[0]
        if kind == INTERRUPT:
            return STOPPING if self._count >= place else None
        if self._count >= place:
            execution.kill()
        if self._count == place - 1:
            execution.write(run)  # the last save before the kill
        return None

    def moment(self, execution: Any, run: Run, what: str) -> None:
        self._count += 1
        if self._is_first:
            self.places.append(_Place(_saving(run, what), False))
        if self._plan and self._plan[0].kind == KILL and self._count >= self._plan[0].place:
            execution.kill()

    def left(self, snapshot: Snapshot) -> None:
        if self._plan and snapshot.reason == _REASONS[self._plan[0].kind]:
            self._plan.pop(0)
            self._count = 0
            self._on_disturbed()


_REASONS = {INTERRUPT: STOPPING, KILL: LOST}


def _where(run: Run) -> str:
    step = run.current
    if step is not None:
        return f"in step {step.name!r}"
    last = next(reversed(run.snapshot.completed), None)
    return "before the first step" if last is None else f"after step {last!r}"


def _saving(run: Run, what: str) -> str:
    if what == "end":
        return "the end, before it was known that the task had returned"
    step = run.current
    if step is not None:
        return f"the moment before a save in step {step.name!r}"
    return f"the moment before the completion of step {next(reversed(run.snapshot.completed))!r} was saved"


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
        """Do all the runs, or the only one."""
        __tracebackhide__ = True
        chosen = None if only is None else _parse(only)
        expected, places = self._undisturbed()
        if chosen is not None:
            plans: Iterator[_Plan] = iter([chosen])
        else:
            plans = self._plans(places, kills, pairs)
        for plan in plans:
            self._disturbed(plan, expected, places)

    def _undisturbed(self) -> tuple[_Outcome, list[_Place]]:
        """Learn the places and the outcome, in two runs that have to agree."""
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
                f"two undisturbed runs of {self._task.name} differ, so a disturbed one cannot be judged; setup= has to "
                "put back all that the task changes, and the task must depend on nothing else\n" + "\n".join(found)
            )
        return expected, first.places

    def _plans(self, places: list[_Place], kills: bool, pairs: int) -> Iterator[_Plan]:
        numbers = range(1, len(places) + 1)
        singles = [_Disturbance(INTERRUPT, at) for at in numbers if places[at - 1].is_checkpoint]
        if kills and len(places) > 1:
            singles += [_Disturbance(KILL, at) for at in numbers]
        if not singles:
            raise AssertionError(
                f"{self._task.name} makes no checkpoints with these arguments, so it never stops in between: give it "
                "steps, or arguments with which they have something to do"
            )
        for one in singles:
            yield (one,)
        kinds = (INTERRUPT, KILL) if kills else (INTERRUPT,)
        chance = random.Random(0)
        drawn: set[_Plan] = set()
        for _ in range(pairs):
            one = chance.choice(singles)
            rest = max(1, len(places) - one.place)
            plan = (one, _Disturbance(chance.choice(kinds), chance.randint(1, rest)))
            if plan not in drawn:
                drawn.add(plan)
                yield plan

    def _disturbed(self, plan: _Plan, expected: _Outcome, places: list[_Place]) -> None:
        __tracebackhide__ = True
        found, trial = self._run(plan, limit=_TIMES * len(places) + _MORE)
        lines = ["  it does not end"] if trial.endless else self._compare(expected, found)
        if lines:
            raise AssertionError("\n".join([self._headline(plan, places), *lines, self._repeat(plan)])) from found.error

    def _run(self, plan: _Plan, limit: int | None = None) -> tuple[_Outcome, _Trial]:
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

    def _trial(self, plan: _Plan, limit: int | None) -> tuple[_Trial, Rehearsal]:
        trial = _Trial(plan, limit)
        return trial, Rehearsal(self._task, guide=trial, task_id=_TASK_ID, start=self._start)

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

    def _headline(self, plan: _Plan, places: list[_Place]) -> str:
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

    def _repeat(self, plan: _Plan) -> str:
        parts = [self._task.__name__, *map(_short, self._args)]
        parts += [f"kwargs={_short(self._kwargs)}"] if self._kwargs else []
        parts += [f"{name}=..." for name in ("check", "setup") if getattr(self, f"_{name}") is not None]
        parts += self._more_arguments()
        only = ",".join(map(str, plan))
        return f'This run alone: assert_resumable({", ".join(parts)}, only="{only}")'


class _Upgrade(_Proof):
    """The runs that an old task begins and a new one ends."""

    def __init__(
        self, task: Any, args: Any, kwargs: Any, check: Any, setup: Any, upgrade_from: Any, expected: Any
    ) -> None:
        super().__init__(task, args, kwargs, check, setup)
        if check is None:
            raise ValueError("upgrade_from= needs check=: what the old task returns says nothing of the new one")
        self._old = upgrade_from
        self._expected = expected
        self._begins_with = task

    def _undisturbed(self) -> tuple[_Outcome, list[_Place]]:
        """Learn the outcome from the new task, and the places from the old one."""
        expected, _ = super()._undisturbed()
        if self._expected is not _SAME:
            expected = _Outcome(world=self._expected)
        executions = self._executions
        self._begins_with = self._old
        _, places = super()._undisturbed()
        self._executions = max(executions, self._executions)
        return expected, places

    def _trial(self, plan: _Plan, limit: int | None) -> tuple[_Trial, Rehearsal]:
        def upgrade() -> None:
            run.task = self._task

        trial = _Trial(plan, limit, upgrade)
        run = Rehearsal(self._begins_with, guide=trial, task_id=_TASK_ID, start=self._start)
        return trial, run

    def _compare(self, expected: _Outcome, found: _Outcome) -> list[str]:
        """Compare what the two leave, not what they return."""
        return super()._compare(_Outcome(world=expected.world), _Outcome(error=found.error, world=found.world))

    def _problem(self) -> str:
        return f"{self._task.name} does not resume what {self._old.name} has begun"

    def _more_arguments(self) -> list[str]:
        return ["upgrade_from=...", *(["expected=..."] if self._expected is not _SAME else [])]


def _refuse_incomparable(what: str, value: Any) -> None:
    if not are_same(value, copy.deepcopy(value)):
        raise ValueError(
            f"{what} cannot be compared, for a {type(value).__name__} does not equal its own copy: {_short(value)}; "
            "let it be made of lists, dicts, strings and numbers"
        )


def _parse(only: str) -> _Plan:
    plan = []
    for part in only.split(","):
        kind, _, place = part.strip().partition("@")
        if kind not in _REASONS or not place.isdecimal() or int(place) < 1:
            raise ValueError(
                f'only={only!r} cannot be read; it is "interrupt@17", "kill@17", or several with commas between'
            )
        plan.append(_Disturbance(kind, int(place)))
    return tuple(plan)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
