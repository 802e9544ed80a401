"""One execution of a task, from the snapshot that it starts with to the one that it hands over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from celery_continuations.core.calls import Call, Wait
from celery_continuations.core.evolution import NO_LOOPS, misfit_of_step
from celery_continuations.core.host import Host
from celery_continuations.core.order import Order, check_name, nested_steps
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.progress import Moves
from celery_continuations.core.raised import Raised
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Begun, Over, Step, key_of
from celery_continuations.exceptions import Interrupt, InvalidStepError, SourceChangedError

__all__ = ["MANY_STEPS", "Run"]

AnyStep = TypeVar("AnyStep", bound=Step)

#: A task with this many steps probably has one for each item.
MANY_STEPS = 500

#: The reason of an interruption before or after an isolated step.
ISOLATED = "isolated"


@dataclass(slots=True, eq=False)
class Run:
    """Steps in order, each once, and checkpoints between and within them.

    Attributes:
        id: the id of the task.
        snapshot: the snapshot of an earlier execution, or a new one.
        interruptible: False if nothing could continue the task (direct calls).
        attention: the one attribute that every checkpoint reads; set it so that ``host.attend`` is called.
        current: the current step, or None between two steps.
        interrupted: the interruption under way, or None.
        refusal: the error for code, or a loop's source, that does not fit the snapshot, once found: the task ends
            with it, even if its own code catches it.
        unit: the unit of work that includes the next save, or None.
        raised: the errors that its steps have raised.
    """

    id: str
    snapshot: Snapshot
    _host: Host
    interruptible: bool = True
    attention: bool = field(default=False, init=False)
    current: Step | None = field(default=None, init=False)
    interrupted: Interrupt | None = field(default=None, init=False)
    refusal: InvalidStepError | SourceChangedError | None = field(default=None, init=False)
    unit: Any = field(default=None, init=False)
    raised: Raised = field(default_factory=Raised, init=False)
    _order: Order = field(init=False)
    _thread: int = field(default_factory=threading.get_ident, init=False)
    _ran: bool = field(default=False, init=False)
    _after_isolated: bool = field(default=False, init=False)
    _moves: Moves = field(default_factory=Moves, init=False)

    def __post_init__(self) -> None:
        self._order = Order(self.snapshot.steps)

    # -- what the task calls

    def declare(self, step: AnyStep) -> AnyStep:
        """Declare the next step; return it.  Raises InvalidStepError if it is not allowed at this place."""
        name = step.name
        if threading.get_ident() != self._thread:
            raise InvalidStepError(
                f"step {name!r} was started in another thread or greenlet than its task runs in", found=name
            )
        check_name(name)
        if self.interrupted is not None:
            raise self.interrupted
        if self.refusal is not None:
            raise self.refusal
        self._order.refuse_unused()
        self._settle()
        before = self.current
        if before is not None and before.left:
            before.let_follow(name)
            self.raised.caught_around(before.name)
            self.complete(before)
        if self.current is not None:
            raise nested_steps(name, step.kind, self.current.name, self.current.kind)
        found = self._order.declare(step)
        if found is not None:
            self.refuse(found)
        return step

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a step that calls ``func`` once; return its value or raise its error."""
        return self.declare(Call(self, name, kind="call")).perform(self, func, args, kwargs)

    def wait(
        self,
        name: str,
        kind: str,
        find: Callable[[Step], Outcome | Exception],
        read: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Run a step of the method ``kind`` whose outcome ``find`` returns, or an error, or which it interrupts."""
        return self.declare(Wait(self, name, kind=kind)).perform(self, find, read)

    def own_checkpoint(self) -> None:
        """Make a checkpoint that the task has asked for: what it keeps in ``saved`` is progress."""
        self._moves.asked = True
        self.checkpoint()

    def checkpoint(self) -> None:
        """Make a checkpoint: the task may stop here."""
        if self.interrupted is not None:
            raise self.interrupted
        self._settle()
        if not self.attention:
            return
        self.guard()
        self._moves.look_at(self.snapshot)
        self.attention = False  # first, so that what is set meanwhile counts
        reason = self._host.attend(self)
        # A continuation that stopped again without making progress could be resumed endlessly.
        if reason is not None and (self.snapshot.resumptions == 0 or self.progressed):
            self.interrupt(reason)
        if reason is not None or self.unit is not None:
            self.attention = True

    def moved(self) -> None:
        """Make a checkpoint after a cursor was moved; commit the step's unit of work first."""
        if self.unit is not None and self.interrupted is None:
            self.guard()
            self._host.save(self)
        self.checkpoint()

    def passed(self, has_moved: bool) -> bool:
        """Make a checkpoint at which a loop's source has no item; return whether anything was due."""
        is_due = self._host.is_due(self)
        if self.unit is None:
            self.checkpoint()
        elif is_due and has_moved:
            self.moved()  # a commit for each of them would cost more than reading it
        return is_due

    def finish(self) -> None:
        """Complete the open step after the body has returned, and check that no recorded step was missed."""
        self._settle()
        self._order.refuse_unused()
        if self.current is not None:
            self.current.leave()
            self.complete(self.current)
        missed = self._order.missed()
        if missed is not None:
            self.refuse(missed)

    # -- what the host calls

    @property
    def progressed(self) -> bool:
        """Whether this execution has completed a step, moved a cursor, or changed ``saved`` before a checkpoint."""
        return self._moves.any_in(self.snapshot, self.current)

    @property
    def misfit(self) -> InvalidStepError | None:
        """The error for code that does not fit the snapshot, once found."""
        return self.refusal if isinstance(self.refusal, InvalidStepError) else None

    def committed(self) -> None:
        """Note that the unit of work was committed together with the cursor, or the completion of the step."""
        if self.current is not None:
            self.current.kept = self.current.cursor
        else:
            self.unit = None

    def abandon(self) -> None:
        """Undo what the step has not committed: control has left the task."""
        if self.unit is not None and self.current is not None:
            self.current.leave()
            self.unit = None

    def failed(self, error: BaseException) -> None:
        """Handle an ``error`` that leaves the task: report the failed block, and reopen a call step that raised it.

        The task had caught it around another step, for instance in a ``finally``.
        """
        step = self.current
        if step is not None and step.outcome.kind != "error":  # a call step has reported it
            self.step_failed(step, error)
        for name in self.raised.reopened_by(error):
            if name in self.snapshot.completed:
                self.snapshot.return_to(name)
                self.current = None
        self.snapshot.raised_by = self.raised.source_of(error, self.snapshot.completed)

    def interrupt(self, reason: str) -> NoReturn:
        """Interrupt the task at this place.

        Raises:
            Interrupt: always; again at every later checkpoint if it is caught.
        """
        step = self.current
        if self.interrupted is None:
            self.interrupted = Interrupt(step.name if step else None, step.cursor if step else None, reason)
        self.attention = True
        raise self.interrupted

    def take_snapshot(self) -> Snapshot:
        """Update the snapshot, and return it."""
        step = self.current
        if step is not None:
            step.to_resume().write(self.snapshot, step.name)
        return self.snapshot

    def key(self) -> str:
        """The idempotency key of this place."""
        step = self.current
        # A step that was left counts as complete: it will be, once the task has resumed after it.
        if step is None or (step.left and (step.outcome.kind == "error" or step.is_settled)):
            return key_of(self.id, None, self._order.place)
        return step.key

    # -- what steps call

    def enter(self, step: Step) -> bool:
        """Begin ``step``, which was declared last; return False if it is complete already."""
        self._order.enter(step)
        snapshot = self.snapshot
        if step.name in snapshot.completed:
            _refuse_kind(self, step, snapshot.kind_of(step.name))
            step.skip(snapshot.completed[step.name])
            self._host.notify("step_skipped", self, step)
            return False
        if self._order.place >= MANY_STEPS:
            self._host.many_steps(self, step, self._order.place)
        self.attention = True  # each step begins at a checkpoint; the first one in it shows what its body is in
        if self._ran:
            if self.interruptible and (step.isolated or self._after_isolated):
                self.interrupt(ISOLATED)
            self.checkpoint()
        else:
            self._host.guard(None, None)
        self._ran = self.attention = True
        begun = Begun.of(snapshot)
        if begun is not None and begun.kind is not None:
            # The source of a loop compares the meaning of its cursor.
            _refuse_kind(self, step, begun.kind if step.kind != "loop" or begun.kind in NO_LOOPS else step.kind)
        step.enter(begun, snapshot.failed_items)
        self.current = step
        if step.unit is not None:
            self.unit = step.unit
            self._host.join(self)
        self._host.notify("step_started", self, step)
        return True

    def complete(self, step: Step) -> None:
        """Complete ``step``, which has run to its end."""
        if step.left:
            self.unit = None
        elif self.unit is not None and self.interrupted is not None:
            step.leave()
            raise self.interrupted
        if self.interrupted is None:
            try:
                self._host.guard(step.name, self.unit)
            except BaseException:
                step.leave()  # if the task catches it, the step is complete once the transaction has ended
                raise
        self.current = None
        step.run = Over(self.id, step.name)
        if step.failed_items:
            step.outcome = Outcome("done", step.failed_items)
        self._moves.completed += 1
        self._after_isolated = step.isolated
        self.snapshot.complete(step.name, step.kind, step.outcome)
        self._host.notify("step_completed", self, step)
        if self.interrupted is None:
            try:
                self._host.save(self)
            finally:
                if self.unit is not None:
                    self._reopen(step)

    def guard(self) -> None:
        """Refuse an open transaction of the task, except that of the current step."""
        self._host.guard(self.current.name if self.current else None, self.unit)

    def step_failed(self, step: Step, error: BaseException) -> None:
        """Report an ``error`` that has left the step's block or function."""
        self._host.notify("step_failed", self, step, error=error)

    def back_off(self, seconds: float) -> NoReturn:
        """Free the worker for ``seconds``: the source must not be read until then."""
        if self.interrupted is not None:
            raise self.interrupted
        self._host.back_off(self, seconds)

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """Raise ``error`` for code or a source that does not fit the snapshot; again at each later step."""
        self.refusal = error
        raise error

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """Return whether an error in a loop's body affects the current item alone."""
        # An interrupted item is repeated, whatever was raised on the way out.
        return self.interrupted is None and self._host.is_of_item(self, step, error)

    def unchecked(self, step: Step) -> None:
        """Report that the items of the step's loop have no identity."""
        self._host.unchecked(self, step)

    def _reopen(self, step: Step) -> None:
        """Reopen a step whose last work could not be committed."""
        self.snapshot.reopen(step.name, step.failed_items)
        self._moves.completed -= 1
        self.current = step
        step.run = self
        step.leave()

    def _settle(self) -> None:
        """Complete the open step if control has left its block and no error that may leave the task is handled."""
        if self.refusal is not None:
            raise self.refusal  # the task has caught it: the step is not complete
        step = self.current
        if step is not None and step.left and step.is_settled:
            self.complete(step)


def _refuse_kind(run: Run, step: Step, saved: str) -> None:
    """Refuse a step that an earlier execution has begun or completed with another kind."""
    found = misfit_of_step(step.name, saved, step.kind)
    if found is not None:
        run.refuse(found)
