"""One step of a run, as the task sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

from celery_continuations.core import codec
from celery_continuations.core.snapshot import Outcome
from celery_continuations.exceptions import InvalidStepError, UnadvanceableCursorError

__all__ = ["Iteration", "Opened", "Pairs", "Step", "Throttled", "Unit", "Wait", "key_of"]

#: Items of a source, each with the cursor that comes after it.
Pairs = Iterator[tuple[Any, Any]]


class Opened(NamedTuple):
    """A source that was opened.

    Attributes:
        read: yields pairs from a cursor on.
        progress: what is done at a cursor, and what there is in all, where known.
        total: what there is in all, where the caller knows and the source does not.
    """

    read: Callable[[Any], Pairs]
    progress: Callable[[Any], tuple[int | None, int | None]]
    total: int | None


class Throttled(BaseException):
    """Raised by a source that must not be read now.

    Attributes:
        seconds: after which to ask it again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


# Types whose every value can be saved: a datetime's zone may be one that cannot.
_COPY_FREE = codec.IMMUTABLE - {datetime, time}
_UNMOVED = object()


class Checkpoints(Protocol):
    """What a step needs of the run it is part of."""

    attention: bool
    id: str

    def checkpoint(self) -> None:
        """A place where the task may stop."""

    def moved(self) -> None:
        """The cursor was moved: a checkpoint."""

    def enter(self, step: Step) -> bool:
        """Begin ``step``; return False when it is complete already."""

    def complete(self, step: Step) -> None:
        """``step`` has run to its end."""

    def back_off(self, seconds: float) -> NoReturn:
        """Give the worker back for so long."""

    def put_aside(self, step: Iteration, error: Exception) -> bool:
        """Note that the item in hand failed; False when that is not all that the error means."""


class Unit(Protocol):
    """The task's own work since its cursor last moved, which takes effect with the next move, or not at all."""

    def begin(self) -> None:
        """What is done from now on belongs to it, unless that is so already."""

    def rollback(self) -> None:
        """Undo it, if there is anything."""


class Over:
    """Takes the place of a step's run once the step is complete."""

    def __init__(self, run_id: str, name: str) -> None:
        self.id = run_id
        self.attention = True
        self._name = name

    def checkpoint(self) -> None:
        """Refuse to go on with a step that is over."""
        raise InvalidStepError(f"step {self._name!r} is complete; its cursor was moved after its block", self._name)

    moved = checkpoint

    def enter(self, step: Step) -> bool:
        """Refuse to begin it again."""
        raise InvalidStepError(f"step {self._name!r} is iterated a second time", self._name)

    def complete(self, step: Step) -> None:
        """A loop kept and finished after the task had gone on."""

    def back_off(self, seconds: float) -> NoReturn:
        """Refuse to go on with a loop that is over."""
        raise InvalidStepError(f"step {self._name!r} is complete; its loop went on after it", self._name)

    def put_aside(self, step: Iteration, error: Exception) -> bool:
        """There is no item in hand."""
        return False


class Step:
    """A named part of a task.  ``for step in self.step("name"):`` yields it once.

    Attributes:
        name: its name.
        cursor: where to start next; everything before it is done.
        resumed: True when an earlier execution had begun it.
    """

    __slots__ = (
        "_initial",
        "aside",
        "cursor",
        "handling",
        "isolated",
        "kept",
        "left",
        "name",
        "outcome",
        "resumed",
        "run",
        "unit",
    )

    def __init__(
        self, run: Checkpoints, name: str, start: Any = None, isolated: bool = False, unit: Unit | None = None
    ) -> None:
        self.run = run
        self.name = name
        self.cursor = codec.copy(start, f"the start of step {name!r}")
        self.isolated = isolated
        self.resumed = False
        self.left = False
        self.handling: BaseException | None = None  # the error that was being handled when the step began
        self.outcome = Outcome()
        self.aside: list[list[Any]] = []  # encoded cursors of items that failed, each with its error
        self.unit = unit
        self.kept: Any = None  # the cursor that was committed with the unit's work
        self._initial: Any = _UNMOVED

    def enter(self, resume_at: Any = None, resumed: bool = False) -> None:
        """Begin the step in this execution; ``resume_at`` is the encoded cursor saved of it."""
        self.resumed = resumed
        if resumed:
            self.cursor = codec.decode(resume_at, f"the cursor of step {self.name!r}")
        self._initial = self.kept = self.cursor

    def leave(self) -> None:
        """Control leaves the block before its end: by break, by an error, or with a frame that is thrown away."""
        left, self.left = self.left, True
        if self.unit is not None and not left:  # an iterator may be collected when others are at work in its session
            self.cursor = self.kept
            self.unit.rollback()

    @property
    def advanced(self) -> bool:
        """Whether the cursor has moved in this execution."""
        first, now = self._initial, self.cursor
        return first is not _UNMOVED and now is not first and (type(now) is not type(first) or now != first)

    @property
    def key(self) -> str:
        """An idempotency key: the same wherever this step is repeated at this cursor, and nowhere else."""
        return key_of(self.run.id, self.name, self.encoded_cursor())

    def encoded_cursor(self) -> Any:
        """The cursor as it is saved."""
        return codec.encode(self.cursor, f"the cursor of step {self.name!r}")

    def progress(self) -> tuple[int | None, int | None]:
        """Items done and items in all, where known."""
        return (None, None)

    def set(self, cursor: Any) -> None:
        """Move the cursor: everything before it is done.  A checkpoint.

        Raises:
            UnserializableValueError: for a cursor that would not come back equal.
        """
        kind = cursor.__class__
        if kind is int or kind is str:
            self.cursor = cursor
        elif kind is tuple:
            for part in cursor:
                if part.__class__ not in _COPY_FREE:
                    cursor = codec.copy(cursor, f"the cursor of step {self.name!r}")
                    break
            self.cursor = cursor
        else:
            self.cursor = codec.copy(cursor, f"the cursor of step {self.name!r}")
        if self.run.attention:
            self._moved()

    def advance(self, from_: Any = None) -> None:
        """Move the cursor to its successor, or to that of ``from_``.  A checkpoint.

        Raises:
            UnadvanceableCursorError: when the successor is unknown.
        """
        cursor = self.cursor if from_ is None else from_
        kind = cursor.__class__
        if kind is int:
            self.cursor = cursor + 1
        elif kind is date:
            self.cursor = cursor + timedelta(days=1)
        elif hasattr(cursor, "succ"):
            self.set(cursor.succ())
            return
        else:
            raise UnadvanceableCursorError(cursor)
        if self.run.attention:
            self._moved()

    def _moved(self) -> None:
        self.run.moved()
        if self.unit is not None:
            self.unit.begin()

    def checkpoint(self) -> None:
        """A place where the task may stop, at the cursor it has."""
        self.run.checkpoint()

    def __iter__(self) -> Iterator[Any]:
        if not self.run.enter(self):
            return
        if self.unit is not None:
            self.unit.begin()
        try:
            yield self
        except GeneratorExit:
            # which of the ways to leave it was shows in what the task does next
            self.leave()
            raise
        self.run.complete(self)

    def __enter__(self) -> Any:
        raise InvalidStepError(
            f"step {self.name!r} was used in a with statement, which cannot be skipped when the step "
            f"is complete; write `for step in self.step({self.name!r}):`",
            found=self.name,
        )

    def __exit__(self, *args: object) -> None:
        """Only here so that ``with`` reaches :meth:`__enter__`, whose message helps."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.cursor!r}>"


class Iteration(Step):
    """A step that is a loop: iterate over it once, for items or batches of items.

    Attributes:
        budget: how many items may fail, or None where none is put aside.
    """

    __slots__ = ("_open", "_opened", "budget")

    def __init__(
        self,
        run: Checkpoints,
        name: str,
        open_source: Callable[[], Opened],
        start: Any = None,
        isolated: bool = False,
        on_error: int | None = None,
        unit: Unit | None = None,
    ) -> None:
        super().__init__(run, name, start, isolated, unit)
        if on_error is not None and (type(on_error) is not int or on_error < 0):
            raise InvalidStepError(
                f"step {name!r}: on_error must be the number of items that may fail, 0 or more, not {on_error!r}",
                found=name,
            )
        self.budget = on_error
        self._open = open_source
        self._opened: Opened | None = None

    def progress(self) -> tuple[int | None, int | None]:
        """What is done and what there is in all, where known."""
        if self._opened is None:
            done = 0 if self.cursor is None else self.cursor
            return (done if type(done) is int else None, None)
        done, total = self._opened.progress(self.cursor)
        return done, self._opened.total if total is None else total

    @property
    def total(self) -> int | None:
        """How much there is in all, where known."""
        return self.progress()[1]

    def attempt(self) -> Attempt:
        """Put the item in hand aside if it fails: ``with rows.attempt(): load(row)``.

        An exception that leaves the block is noted with the cursor of the item, and the loop goes on. It leaves the
        block all the same where it is not of the item alone: an interruption, a soft time limit, ``self.retry()``,
        an error of this package.

        Raises:
            ErrorBudgetError: at the end of the block, when more items have failed than ``on_error`` allows.
            InvalidStepError: when ``iterate`` was given no ``on_error``.
        """
        if self.budget is None:
            raise InvalidStepError(
                f"step {self.name!r}: attempt() needs the number of items that may fail; write "
                f"self.iterate({self.name!r}, ..., on_error=10)",
                found=self.name,
            )
        return Attempt(self)

    @property
    def failed(self) -> list[tuple[Any, str]]:
        """Items put aside, in this execution and before: the cursor where each begins, and its error."""
        return [(codec.decode(cursor, f"a cursor of step {self.name!r}"), text) for cursor, text in self.aside]

    def __iter__(self) -> Iterator[Any]:
        run = self.run
        if not run.enter(self):
            return
        try:
            try:
                opened = self._open()
                pairs = opened.read(self.cursor)
                self._opened = opened
                if self.unit is not None:
                    pairs = _begun(self.unit, pairs)
                # The hot path: one store and one attribute read for each item, and nothing else.
                for item, after in pairs:
                    yield item
                    self.cursor = after
                    if run.attention:
                        run.moved()
            except Throttled as throttled:
                run.back_off(throttled.seconds)
        except BaseException:
            # As in Step; or an error of the source itself, or of a save
            self.leave()
            raise
        run.complete(self)


class Attempt:
    """See :meth:`Iteration.attempt`."""

    __slots__ = ("_iteration",)

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __enter__(self) -> None:
        """There is nothing to begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Put the item aside if it has failed."""
        return isinstance(error, Exception) and self._iteration.run.put_aside(self._iteration, error)


def _begun(unit: Unit, pairs: Pairs) -> Pairs:
    """The unit begins with each item, and not before the source has been read for it."""
    for pair in pairs:
        unit.begin()
        yield pair


class Wait(Step):
    """A step whose outcome comes from outside.  Its cursor, what it has fixed at its first call, is for nobody else."""

    __slots__ = ()


def key_of(run_id: str, name: str | None, place: Any) -> str:
    """Hash a place in a run into 32 hexadecimal digits."""
    text = json.dumps([run_id, name, place], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
