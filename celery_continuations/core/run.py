"""One execution of a task, from the snapshot it starts with to the one it leaves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from celery_continuations.core.evolution import NO_LOOPS, described
from celery_continuations.core.iteration import Iteration, Opened
from celery_continuations.core.snapshot import UNKNOWN_KIND, Outcome, Saved, Snapshot
from celery_continuations.core.step import Begun, Over, Step, Unit, Wait, key_of
from celery_continuations.exceptions import (
    ErrorBudgetError,
    Interrupt,
    InvalidStepError,
    SourceChangedError,
    UnserializableValueError,
)

__all__ = ["Continuation", "Host", "Run", "check_name"]

#: Interruptions that count against ``continuation_max_resumptions`` have other reasons than these.
ISOLATED = "isolated"

# Characters that are kept of the error of an item that failed.
_ERROR_KEPT = 200


class Host(Protocol):
    """What a run needs of the world around it."""

    def guard(self, step: str | None, own: Any) -> None:
        """Refuse a checkpoint inside an open transaction of the task's that is not ``own``, the unit of the step."""

    def attend(self, run: Run) -> str | None:
        """Do what is due at a checkpoint; return a reason to interrupt, or None.

        Called at a checkpoint while ``run.attention`` is set; resets it when nothing is left to do.
        """

    def save(self, run: Run) -> None:
        """A step was completed, or the cursor of one with a unit was moved: save; and commit ``run.unit``."""

    def join(self, run: Run) -> None:
        """A step begins whose unit, ``run.unit``, every save is to be part of: refuse what cannot be."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Report an event, which is the name of its signal, e.g. ``"step_started"``."""

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Give the worker back, to go on at the same cursor after so many seconds."""

    def may_put_aside(self, run: Run, step: Step, error: Exception) -> bool:
        """Return whether the error is of the current item alone, and tell of it if so."""

    def unchecked(self, run: Run, step: Step) -> None:
        """The items of a loop cannot be told apart, so that a change of its source goes unnoticed."""


class Run:
    """Steps in order, each once, and checkpoints between and within them.

    Args:
        run_id: what tells this run from others: the task's id.
        snapshot: what an earlier execution left, or a new one.
        host: see :class:`Host`.
        interruptible: False where nothing could take up the rest (direct calls).

    Attributes:
        attention: the one attribute that every checkpoint reads; set it to have ``host.attend`` called.
        interrupted: the interruption under way, or None.
        misfit: why the code does not fit the snapshot, once that has been found.
        changed: how the source of a loop has changed, once that has been found.
        unit: the task's own work that the next save is to be part of, or None.
    """

    __slots__ = (
        "_after_isolated",
        "_completed_here",
        "_declared",
        "_host",
        "_open",
        "_ran",
        "_recorded",
        "_remembered",
        "_seen",
        "_thread",
        "attention",
        "changed",
        "id",
        "interrupted",
        "interruptible",
        "misfit",
        "snapshot",
        "unit",
    )

    def __init__(self, run_id: str, snapshot: Snapshot, host: Host, interruptible: bool = True) -> None:
        self.id = run_id
        self.snapshot = snapshot
        self.attention = False
        self.interrupted: Interrupt | None = None
        self.interruptible = interruptible
        self.misfit: InvalidStepError | None = None
        self.changed: SourceChangedError | None = None
        self.unit: Any = None
        self._host = host
        self._thread = threading.get_ident()
        self._recorded = snapshot.steps
        self._seen: list[str] = []
        self._declared: Step | None = None
        self._open: Step | None = None
        self._ran = False
        self._after_isolated = False
        self._completed_here = 0
        self._remembered: list[tuple[str, BaseException]] = []

    # -- what the task calls

    def step(
        self,
        name: str,
        func: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        start: Any = None,
        isolated: bool = False,
        unit: Unit | None = None,
    ) -> Any:
        """Run ``func`` once and return its value, or return a step to loop over once."""
        self._declare(name)
        step = Step(self, name, start, isolated, unit, "block" if func is None else "call")
        if func is None:
            self._declared = step
            return step
        return self._call(step, func, args, kwargs)

    def iterate(
        self,
        name: str,
        open_source: Callable[[], Opened],
        *,
        start: Any = None,
        isolated: bool = False,
        on_error: int | None = None,
        unit: Unit | None = None,
    ) -> Iteration:
        """Return a step that loops over a source, which is opened only if the step is still to be done."""
        self._declare(name)
        step = Iteration(self, name, open_source, start, isolated, on_error, unit)
        self._declared = step
        return step

    def wait(self, name: str, kind: str, look: Callable[[Step], Outcome | Exception]) -> Any:
        """A step whose outcome ``look`` finds, or leaves for; an error that it returns is an outcome too.

        Its kind is the name of the task's method.
        """
        self._declare(name)
        step = Wait(self, name, kind=kind)
        if not self._begin(step):
            return self.snapshot.completed[name].replay(name)
        found = look(step)
        step.outcome = found if isinstance(found, Outcome) else Outcome.of_error(found)
        self.complete(step)
        if isinstance(found, Exception):
            raise found
        return found.replay(name)

    def checkpoint(self) -> None:
        """A place where the task may stop."""
        if self.interrupted is not None:
            raise self.interrupted
        self._settle()
        if self.attention:
            self._host.guard(self._open.name if self._open else None, self.unit)
            reason = self._host.attend(self)
            self.attention = self.attention or self.unit is not None
            # A continuation that stopped again before it got anywhere could go round forever.
            if reason is not None and (self.snapshot.resumptions == 0 or self.progressed):
                self.interrupt(reason)

    def moved(self) -> None:
        """As :meth:`checkpoint`, after a cursor was moved; before it the step's unit is committed."""
        if self.unit is not None and self.interrupted is None:
            self._host.guard(self._open.name if self._open else None, self.unit)
            self._host.save(self)
        self.checkpoint()

    def finish(self) -> None:
        """The task's body has returned: complete what is left open, and check that no recorded step was missed."""
        self._settle()
        self._refuse_unused()
        if self._open is not None:
            self._open.leave()
            self.complete(self._open)
        if self.changed is not None:
            raise self.changed
        if len(self._seen) < len(self._recorded):
            missed = self._recorded[len(self._seen)]
            self._refuse_code(
                f"the task ended before step {missed!r}, which an earlier execution had reached; "
                "the order of steps may depend on the arguments and on remembered values only",
                expected=missed,
            )

    # -- what the host calls

    @property
    def progressed(self) -> bool:
        """Whether this execution has completed a step or moved a cursor."""
        return self._completed_here > 0 or (self._open is not None and self._open.advanced)

    @property
    def current(self) -> Step | None:
        """The current step."""
        return self._open

    def committed(self) -> None:
        """The unit has taken effect, and with it the cursor, or that the step is complete."""
        if self._open is not None:
            self._open.kept = self._open.cursor
        else:
            self.unit = None

    def abandon(self) -> None:
        """Control has left the task: whatever its step has not committed is undone."""
        if self.unit is not None and self._open is not None:
            self._open.leave()
            self.unit = None

    def failed(self, error: BaseException) -> None:
        """``error`` leaves the task: the block in hand has failed, and a call step is not complete after all.

        That is one whose error the task had caught around another step, for instance in a ``finally``, and then let
        go on.
        """
        step = self._open
        if step is not None and step.outcome.kind != "error":  # a call step has told of it
            self._host.notify("step_failed", self, step, error=error)
        for name, remembered in self._remembered:
            if remembered is error:
                names = list(self.snapshot.completed)
                for later in names[names.index(name) :]:
                    del self.snapshot.completed[later]
                self.snapshot.leave_step()
                self.snapshot.current, self.snapshot.kind = (name, None), "call"
                self._open = None

    def interrupt(self, reason: str) -> NoReturn:
        """Leave at this place.

        Raises:
            Interrupt: always; and again at every later checkpoint, should something catch it.
        """
        step = self._open
        if self.interrupted is None:
            self.interrupted = Interrupt(step.name if step else None, step.cursor if step else None, reason)
        self.attention = True
        raise self.interrupted

    def take_snapshot(self) -> Snapshot:
        """Return the snapshot, brought up to date."""
        step = self._open
        if step is not None:
            left, snapshot = step.to_resume(), self.snapshot
            snapshot.current = (step.name, left.cursor)
            snapshot.kind, snapshot.mark, snapshot.progress = left.kind, left.mark, left.progress
            snapshot.begun_as, snapshot.uses = left.begun_as, left.uses
        return self.snapshot

    def key(self) -> str:
        """The idempotency key of this place."""
        step = self._open
        # A step that was left counts as complete, as it will be once the task has resumed behind it.
        if step is None or (step.left and (step.outcome.kind == "error" or sys.exc_info()[1] is step.handling)):
            return key_of(self.id, None, len(self._seen))
        return step.key

    # -- what steps call

    def enter(self, step: Step) -> bool:
        """Begin ``step``; return False when it is complete already."""
        if self._declared is not step:
            raise InvalidStepError(
                f"step {step.name!r} is iterated a second time, or after the task went on", found=step.name
            )
        self._declared = None
        return self._begin(step)

    def complete(self, step: Step) -> None:
        """``step`` has run to its end."""
        if step.left:
            self.unit = None
        elif self.unit is not None and self.interrupted is not None:
            step.leave()
            raise self.interrupted
        if self.interrupted is None:
            try:
                self._host.guard(step.name, self.unit)
            except BaseException:
                step.leave()  # should the task catch it, the step is complete once the transaction is over
                raise
        self._open = None
        step.run = Over(self.id, step.name)
        if step.aside:
            step.outcome = Outcome("done", step.aside)
        self._completed_here += 1
        self._after_isolated = step.isolated
        self.snapshot.completed[step.name] = step.outcome
        if step.kind != "call":
            self.snapshot.kinds[step.name] = step.kind
        self.snapshot.leave_step()
        self._host.notify("step_completed", self, step)
        if self.interrupted is None:
            try:
                self._host.save(self)
            finally:
                if self.unit is not None:
                    self._reopen(step)

    def back_off(self, seconds: float) -> NoReturn:
        """The source must not be read for so long."""
        if self.interrupted is not None:
            raise self.interrupted
        self._host.back_off(self, seconds)

    def refuse_source(self, step: Step, problem: str, advice: str) -> NoReturn:
        """The source of the step's loop is not what it was.

        Raises:
            SourceChangedError: always; and again at each later step, should something catch it.
        """
        self.changed = SourceChangedError(step.name, self.id, problem, advice)
        raise self.changed

    def refuse_kind(self, step: Step, saved: str, found: str) -> NoReturn:
        """The saved cursor of the step's loop means something else than the source's.

        Raises:
            InvalidStepError: always; the code does not fit the snapshot.
        """
        self._refuse_code(
            f"step {step.name!r} is {described(found)} here, and was begun as {described(saved)}, where its cursor "
            "means something else; give the new loop another name, or let the tasks that are under way end first",
            found=step.name,
            expected=step.name,
        )

    def unchecked(self, step: Step) -> None:
        """The items of the step's loop cannot be told apart."""
        self._host.unchecked(self, step)

    def put_aside(self, step: Iteration, error: Exception) -> bool:
        """Note that the current item failed, unless the error means more than that.

        Raises:
            ErrorBudgetError: when too many have.
        """
        # An item that was interrupted is to be repeated, whatever came up on the way out.
        if self.interrupted is not None or not self._host.may_put_aside(self, step, error):
            return False
        assert step.budget is not None
        if step.unit is not None:
            step.unit.rollback()
            step.unit.begin()
        self._forget_aside(step.encoded_cursor())
        step.aside.append([step.encoded_cursor(), f"{type(error).__name__}: {error}"[:_ERROR_KEPT]])
        if len(step.aside) > step.budget:
            raise ErrorBudgetError(step.name, step.budget, step.failed) from error
        return True

    # -- inside

    def _forget_aside(self, cursor: Any) -> None:
        """The item at this encoded cursor has failed once more, or is repeated."""
        aside = self.snapshot.aside
        if aside and aside[-1][0] == cursor:
            aside.pop()

    def _reopen(self, step: Step) -> None:
        """The last of the step's own work could not be committed: it is not complete."""
        del self.snapshot.completed[step.name]
        self.snapshot.kinds.pop(step.name, None)
        self.snapshot.aside = step.aside
        self._completed_here -= 1
        self._open = step
        step.run = self
        step.leave()

    def _call(self, step: Step, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._begin(step):
            return self.snapshot.completed[step.name].replay(step.name)
        try:
            value = func(*args, **kwargs)
            self._host.guard(step.name, None)
        except Exception as exc:
            # remembered only if the task catches it and goes on
            step.left, step.outcome = True, Outcome.of_error(exc)
            self._host.notify("step_failed", self, step, error=exc)
            raise
        try:
            step.outcome = Outcome.of_value(value, f"the value of step {step.name!r}")
        except UnserializableValueError as exc:
            step.outcome = Outcome("lost", exc.problem)
            self.complete(step)
            raise
        self.complete(step)
        return value

    def _declare(self, name: str) -> None:
        """Refuse a step that must not come here."""
        if threading.get_ident() != self._thread:
            raise InvalidStepError(
                f"step {name!r} was started in another thread or greenlet than its task runs in", found=name
            )
        check_name(name)
        if self.interrupted is not None:
            raise self.interrupted
        if self.changed is not None:
            raise self.changed
        self._refuse_unused()
        self._settle_before(name)
        if self._open is not None:
            raise InvalidStepError(
                f"step {name!r} was started inside step {self._open.name!r}; steps cannot be nested (if the "
                f"loop over {self._open.name!r} was left while its iterator is kept in a variable, close it)",
                found=name,
                expected=self._open.name,
            )
        if name in self._seen:
            raise InvalidStepError(f"step {name!r} was started twice; each step needs a name of its own", found=name)
        place = len(self._seen)
        if place < len(self._recorded) and self._recorded[place] != name:
            expected = self._recorded[place]
            self._refuse_code(
                f"step {name!r} was started where an earlier execution had step {expected!r}; the order of "
                "steps may depend on the arguments and on remembered values only",
                found=name,
                expected=expected,
            )
        if place >= len(self._recorded) and name in self.snapshot.completed:
            raise InvalidStepError(f"step {name!r} was started twice", found=name)
        self._seen.append(name)

    def _refuse_unused(self) -> None:
        unused = self._declared
        if isinstance(unused, Iteration):
            raise InvalidStepError(
                f"step {unused.name!r} was declared, but nothing iterated over it; write "
                f"`for item in self.iterate({unused.name!r}, ...):`",
                found=unused.name,
            )
        if unused is not None:
            raise InvalidStepError(
                f"step {unused.name!r} was neither iterated nor given a function; write "
                f"`for step in self.step({unused.name!r}):` or `self.step({unused.name!r}, function)`",
                found=unused.name,
            )

    def _refuse_code(self, problem: str, *, found: str | None = None, expected: str | None = None) -> NoReturn:
        """The code does not fit the snapshot: other code, older or newer, may."""
        self.misfit = InvalidStepError(problem, found=found, expected=expected, recorded=True)
        raise self.misfit

    def _refuse_other_kind(self, step: Step, saved: str) -> None:
        """Refuse a step that an earlier execution has begun or completed as one of another kind."""
        if saved not in (step.kind, UNKNOWN_KIND):
            self._refuse_code(
                f"step {step.name!r} is {described(step.kind)} here, and an earlier execution had it as "
                f"{described(saved)}; give the new step another name",
                found=step.name,
                expected=step.name,
            )

    def _begin(self, step: Step) -> bool:
        if step.name in self.snapshot.completed:
            self._refuse_other_kind(step, self.snapshot.kind_of(step.name))
            if isinstance(step, Iteration):
                step.aside = self.snapshot.completed[step.name].data or []
            self._host.notify("step_skipped", self, step)
            return False
        self.attention = True  # each step begins at a checkpoint, and what its body is in shows at the first in it
        if self._ran:
            if self.interruptible and (step.isolated or self._after_isolated):
                self.interrupt(ISOLATED)
            self.checkpoint()
        else:
            self._host.guard(None, None)
        self._ran = self.attention = True
        snapshot = self.snapshot
        step.aside = snapshot.aside
        if snapshot.current is not None:
            cursor = snapshot.current[1]
            if cursor is not None and snapshot.kind is not None:
                is_loop = snapshot.kind not in NO_LOOPS
                self._refuse_other_kind(step, step.kind if is_loop and step.kind == "loop" else snapshot.kind)
            self._forget_aside(cursor)
            step.enter(_begun(snapshot))
        else:
            step.enter()
        step.handling = sys.exc_info()[1]
        self._open = step
        if step.unit is not None:
            self.unit = step.unit
            self._host.join(self)
        self._host.notify("step_started", self, step)
        return True

    def _settle(self) -> None:
        """Control has left the open step's block and the task goes on: the step is complete.

        It does not go on while an error that came up in the block is being handled, for that may still leave
        the task.
        """
        found = self.changed or self.misfit
        if found is not None:
            raise found  # the task has caught it: the step that it left is not complete
        step = self._open
        if step is not None and step.left and sys.exc_info()[1] is step.handling:
            self.complete(step)

    def _settle_before(self, name: str) -> None:
        """As :meth:`_settle`, for a step that is to come."""
        self._settle()
        step = self._open
        if step is None or not step.left:
            return
        if step.outcome.kind != "error":
            raise InvalidStepError(
                f"step {name!r} was started while the error that left step {step.name!r} is being handled; after a "
                "resumption that error would not come again. Start it after the except or finally block, or "
                f"catch the error inside of step {step.name!r}",
                found=name,
            )
        # The error of a call step does come again: it is remembered, unless it leaves the task in the end.
        error = sys.exc_info()[1]
        assert error is not None
        self._remembered.append((step.name, error))
        self.complete(step)


def _begun(snapshot: Snapshot) -> Begun:
    """Return what an earlier execution left of the current step: without a cursor nothing of it is done."""
    assert snapshot.current is not None
    cursor, progress, begun_as = snapshot.current[1], snapshot.progress, snapshot.begun_as
    if cursor is None:
        return Begun(None, progress=progress, begun_as=begun_as)
    return Begun(cursor, snapshot.kind, snapshot.mark, progress, begun_as, snapshot.uses)


def check_name(name: Any) -> None:
    """Refuse an invalid step name."""
    if type(name) is not str or not name:
        raise InvalidStepError(
            f"a step's name must be a non-empty str, not {name!r}; it is the first argument", found=name
        )


class Continuation:
    """A run's own view, as ``self.continuation``."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def completed(self) -> tuple[str, ...]:
        """Names of the completed steps, in order."""
        return tuple(self._run.snapshot.completed)

    @property
    def current(self) -> Step | None:
        """The current step, or None."""
        return self._run.current

    @property
    def version(self) -> int:
        """The ``continuation_version`` of the code that the task began with; 1 where none was set."""
        return self._run.snapshot.task_version

    @property
    def executions(self) -> int:
        """The number of this execution: 1 for the first."""
        return self._run.snapshot.executions

    @property
    def resumptions(self) -> int:
        """How many times the task has left an execution to be resumed."""
        return self._run.snapshot.resumptions

    @property
    def reason(self) -> str | None:
        """Why the last execution left, or None in the first."""
        return self._run.snapshot.reason

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The last errors that were resumed from, oldest first: type, message, step, cursor."""
        return list(self._run.snapshot.errors)

    @property
    def run_time(self) -> float:
        """Seconds spent in the executions before this one."""
        return self._run.snapshot.run_time

    @property
    def key(self) -> str:
        """The idempotency key of this place in the task."""
        return self._run.key()

    @property
    def saved(self) -> Saved:
        """What the task keeps across executions."""
        return self._run.snapshot.saved
