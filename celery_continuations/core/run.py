"""One execution of a task, from the snapshot it starts with to the one it leaves."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from celery_continuations.core.calls import Call, Wait
from celery_continuations.core.evolution import NO_LOOPS, misfit_of_step
from celery_continuations.core.host import Host
from celery_continuations.core.order import Order, check_name
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Begun, Over, Step, key_of
from celery_continuations.exceptions import Interrupt, InvalidStepError, SourceChangedError

__all__ = ["Run"]

AnyStep = TypeVar("AnyStep", bound=Step)

#: Interruptions that count against ``continuation_max_resumptions`` have other reasons than these.
ISOLATED = "isolated"


@dataclass(slots=True, eq=False)
class Run:
    """Steps in order, each once, and checkpoints between and within them.

    Attributes:
        id: what tells this run from others: the task's id.
        snapshot: what an earlier execution left, or a new one.
        interruptible: False where nothing could take up the rest (direct calls).
        attention: the one attribute that every checkpoint reads; set it to have ``host.attend`` called.
        current: the current step, or None between two steps.
        interrupted: the interruption under way, or None.
        refusal: how the code, or a loop's source, does not fit the snapshot, once that has been found: the task
            ends with it, even if its own code catches it.
        unit: the task's own work that the next save is to be part of, or None.
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
    _order: Order = field(init=False)
    _thread: int = field(default_factory=threading.get_ident, init=False)
    _ran: bool = field(default=False, init=False)
    _after_isolated: bool = field(default=False, init=False)
    _completed_here: int = field(default=0, init=False)
    # Calls whose error was caught, each with the error that the task was handling when it continued.
    _handled: list[tuple[Step, BaseException | None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._order = Order(self.snapshot.steps)

    # -- what the task calls

    def declare(self, step: AnyStep) -> AnyStep:
        """The step comes next: return it, to be iterated.  Raises InvalidStepError where it must not come here."""
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
        self._settle_before(name)
        if self.current is not None:
            raise InvalidStepError(
                f"step {name!r} was started inside step {self.current.name!r}; steps cannot be nested (if the "
                f"loop over {self.current.name!r} was left while its iterator is kept in a variable, close it)",
                found=name,
                expected=self.current.name,
            )
        found = self._order.declare(step)
        if found is not None:
            self.refuse(found)
        return step

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step that calls ``func`` once: return its value, or raise its error."""
        return self.declare(Call(self, name, kind="call")).perform(self, func, args, kwargs)

    def wait(self, name: str, kind: str, find: Callable[[Step], Outcome | Exception]) -> Any:
        """A step whose outcome ``find`` returns, or leaves for; an error that it returns is an outcome too.

        Its kind is the name of the task's method.
        """
        return self.declare(Wait(self, name, kind=kind)).perform(self, find)

    def checkpoint(self) -> None:
        """A place where the task may stop."""
        if self.interrupted is not None:
            raise self.interrupted
        self._settle()
        if not self.attention:
            return
        self.guard()
        self.attention = False  # first, so that what is set meanwhile counts
        reason = self._host.attend(self)
        # A continuation that stopped again before it got anywhere could be resumed without end.
        if reason is not None and (self.snapshot.resumptions == 0 or self.progressed):
            self.interrupt(reason)
        if reason is not None or self.unit is not None:
            self.attention = True

    def moved(self) -> None:
        """As :meth:`checkpoint`, after a cursor was moved; before it the step's unit is committed."""
        if self.unit is not None and self.interrupted is None:
            self.guard()
            self._host.save(self)
        self.checkpoint()

    def finish(self) -> None:
        """The task's body has returned: complete what is left open, and check that no recorded step was missed."""
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
        """Whether this execution has completed a step or moved a cursor."""
        return self._completed_here > 0 or (self.current is not None and self.current.advanced)

    @property
    def misfit(self) -> InvalidStepError | None:
        """How the code does not fit the snapshot, once that has been found."""
        return self.refusal if isinstance(self.refusal, InvalidStepError) else None

    def committed(self) -> None:
        """The unit has taken effect, and with it the cursor, or that the step is complete."""
        if self.current is not None:
            self.current.kept = self.current.cursor
        else:
            self.unit = None

    def abandon(self) -> None:
        """Control has left the task: whatever its step has not committed is undone."""
        if self.unit is not None and self.current is not None:
            self.current.leave()
            self.unit = None

    def failed(self, error: BaseException) -> None:
        """``error`` leaves the task: the current block has failed, and a call step is not complete after all.

        That is a call step whose error the task caught around another step, for instance in a ``finally``, and then
        raised again.
        """
        step = self.current
        if step is not None and step.outcome.kind != "error":  # a call step has reported it
            self.step_failed(step, error)
        for call, handled in self._handled:
            if handled is error and call.name in self.snapshot.completed:
                self.snapshot.return_to(call.name)
                self.current = None

    def interrupt(self, reason: str) -> NoReturn:
        """Leave at this place.

        Raises:
            Interrupt: always; and again at every later checkpoint, if something catches it.
        """
        step = self.current
        if self.interrupted is None:
            self.interrupted = Interrupt(step.name if step else None, step.cursor if step else None, reason)
        self.attention = True
        raise self.interrupted

    def take_snapshot(self) -> Snapshot:
        """Return the snapshot, brought up to date."""
        step = self.current
        if step is not None:
            step.to_resume().write(self.snapshot, step.name)
        return self.snapshot

    def key(self) -> str:
        """The idempotency key of this place."""
        step = self.current
        # A step that was left counts as complete, as it will be once the task has resumed behind it.
        if step is None or (step.left and (step.outcome.kind == "error" or step.is_settled)):
            return key_of(self.id, None, self._order.place)
        return step.key

    # -- what steps call

    def enter(self, step: Step) -> bool:
        """Begin ``step``, which was declared last; return False when it is complete already."""
        self._order.enter(step)
        snapshot = self.snapshot
        if step.name in snapshot.completed:
            self._refuse_kind(step, snapshot.kind_of(step.name))
            step.skip(snapshot.completed[step.name])
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
        begun = Begun.of(snapshot)
        if begun is not None and begun.kind is not None:
            # What a loop's cursor means is compared by its source.
            self._refuse_kind(step, begun.kind if step.kind != "loop" or begun.kind in NO_LOOPS else step.kind)
        step.enter(begun, snapshot.failed_items)
        self.current = step
        if step.unit is not None:
            self.unit = step.unit
            self._host.join(self)
        self._host.notify("step_started", self, step)
        return True

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
        self.current = None
        step.run = Over(self.id, step.name)
        if step.failed_items:
            step.outcome = Outcome("done", step.failed_items)
        self._completed_here += 1
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
        """Refuse an open transaction of the task's, other than that of the current step."""
        self._host.guard(self.current.name if self.current else None, self.unit)

    def step_failed(self, step: Step, error: BaseException) -> None:
        """``error`` has left the step's block or function."""
        self._host.notify("step_failed", self, step, error=error)

    def back_off(self, seconds: float) -> NoReturn:
        """The source must not be read for so long."""
        if self.interrupted is not None:
            raise self.interrupted
        self._host.back_off(self, seconds)

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """The code, or the source of a loop, does not fit the snapshot.  Raises the error, again at each later step."""
        self.refusal = error
        raise error

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """Return whether an error in a loop's body is of the current item alone."""
        # An item that was interrupted is to be repeated, whatever came up on the way out.
        return self.interrupted is None and self._host.is_of_item(self, step, error)

    def unchecked(self, step: Step) -> None:
        """The items of the step's loop cannot be told apart."""
        self._host.unchecked(self, step)

    # -- inside

    def _refuse_kind(self, step: Step, saved: str) -> None:
        """Refuse a step that an earlier execution has begun or completed as one of another kind."""
        found = misfit_of_step(step.name, saved, step.kind)
        if found is not None:
            self.refuse(found)

    def _reopen(self, step: Step) -> None:
        """The last of the step's own work could not be committed: it is not complete."""
        self.snapshot.reopen(step.name, step.failed_items)
        self._completed_here -= 1
        self.current = step
        step.run = self
        step.leave()

    def _settle(self) -> None:
        """Control has left the open step's block and the task continues: the step is complete.

        The task does not continue while an error that came up in the block is being handled, because that may still
        leave the task.
        """
        if self.refusal is not None:
            raise self.refusal  # the task has caught it: the step that it left is not complete
        step = self.current
        if step is not None and step.left and step.is_settled:
            self.complete(step)

    def _settle_before(self, name: str) -> None:
        """As :meth:`_settle`, for a step that is to come."""
        self._settle()
        step = self.current
        if step is not None and step.left:
            step.let_follow(name)
            self._handled.append((step, sys.exc_info()[1]))
            self.complete(step)
