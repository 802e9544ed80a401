"""One step of a run, as the task sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any, Generic, NamedTuple, NoReturn, Protocol

from celery_continuations.core import codec
from celery_continuations.core.snapshot import Outcome
from celery_continuations.core.typevars import Cursor
from celery_continuations.exceptions import InvalidStepError, UnadvanceableCursorError

__all__ = ["Begun", "Checkpoints", "Step", "Unit", "Wait", "key_of"]

# Types whose every value can be saved: a datetime's zone may be one that cannot.
_COPY_FREE = codec.IMMUTABLE - {datetime, time}
_UNMOVED = object()


class Begun(NamedTuple):
    """What an earlier execution left of the current step.

    Attributes:
        cursor: encoded.
        kind, mark, progress, begun_as, uses: as in :class:`Snapshot`.
    """

    cursor: Any
    kind: str | None = None
    mark: Any = None
    progress: tuple[int | None, int | None] = (None, None)
    begun_as: str | None = None
    uses: int = 1


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

    def put_aside(self, step: Any, error: Exception) -> bool:
        """Note that the current item failed; False when that is not all that the error means."""

    def refuse_source(self, step: Step, problem: str, advice: str) -> NoReturn:
        """The source of the step's loop is not what it was."""

    def refuse_kind(self, step: Step, saved: str, found: str) -> NoReturn:
        """The saved cursor of the step's loop means something else than the source's."""

    def unchecked(self, step: Step) -> None:
        """The items of the step's loop cannot be told apart."""


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

    def put_aside(self, step: Any, error: Exception) -> bool:
        """There is no item in hand."""
        return False

    def refuse_source(self, step: Step, problem: str, advice: str) -> NoReturn:
        """Refuse to go on with a loop that is over."""
        self.back_off(0)

    def refuse_kind(self, step: Step, saved: str, found: str) -> NoReturn:
        """Refuse to go on with a loop that is over."""
        self.back_off(0)

    def unchecked(self, step: Step) -> None:
        """Nothing more is saved of it."""


class Step(Generic[Cursor]):
    """A named part of a task.  ``for step in self.step("name"):`` yields it once.

    Attributes:
        name: its name.
        cursor: where to start next; everything before it is done.
        resumed: True when an earlier execution had begun it.
        kind: which kind of step it is, as saved: ``"block"``, ``"call"``, ``"loop"``, or the method of a wait.
    """

    __slots__ = (
        "_initial",
        "aside",
        "begun_as",
        "cursor",
        "handling",
        "isolated",
        "kept",
        "kind",
        "left",
        "name",
        "outcome",
        "resumed",
        "run",
        "unit",
    )

    def __init__(
        self,
        run: Checkpoints,
        name: str,
        start: Any = None,
        isolated: bool = False,
        unit: Unit | None = None,
        kind: str = "block",
    ) -> None:
        self.run = run
        self.kind = kind
        self.begun_as: str | None = None  # its name then, where it was renamed since
        self.name = name
        self.cursor: Cursor = codec.copy(start, f"the start of step {name!r}")
        self.isolated = isolated
        self.resumed = False
        self.left = False
        self.handling: BaseException | None = None  # the error that was being handled when the step began
        self.outcome = Outcome()
        self.aside: list[list[Any]] = []  # encoded cursors of items that failed, each with its error
        self.unit = unit
        self.kept: Any = None  # the cursor that was committed with the unit's work
        self._initial: Any = _UNMOVED

    def enter(self, begun: Begun | None = None) -> None:
        """Begin the step in this execution, where an earlier one has ``begun`` it from what that left."""
        self.resumed = begun is not None
        if begun is not None:
            self.cursor = codec.decode(begun.cursor, f"the cursor of step {self.name!r}")
            self.begun_as = begun.begun_as
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
        return key_of(self.run.id, self.begun_as or self.name, self.encoded_cursor())

    def encoded_cursor(self) -> Any:
        """The cursor as it is saved."""
        return codec.encode(self.cursor, f"the cursor of step {self.name!r}")

    def progress(self) -> tuple[int | None, int | None]:
        """Items done and items in all, where known."""
        return (None, None)

    def to_resume(self) -> Begun:
        """Return what the next execution has to know of this step."""
        return Begun(self.encoded_cursor(), self.kind, begun_as=self.begun_as)

    def set(self, cursor: Cursor) -> None:
        """Move the cursor: everything before it is done.  A checkpoint.

        Raises:
            UnserializableValueError: for a cursor that would not come back equal.
        """
        kind = cursor.__class__
        if kind is int or kind is str:
            self.cursor = cursor
        elif kind is tuple:
            parts: Any = cursor
            for part in parts:
                if part.__class__ not in _COPY_FREE:
                    cursor = codec.copy(cursor, f"the cursor of step {self.name!r}")
                    break
            self.cursor = cursor
        else:
            self.cursor = codec.copy(cursor, f"the cursor of step {self.name!r}")
        if self.run.attention:
            self._moved()

    def advance(self, from_: Cursor | None = None) -> None:
        """Move the cursor to its successor, or to that of ``from_``.  A checkpoint.

        Raises:
            UnadvanceableCursorError: when the successor is unknown.
        """
        cursor: Any = self.cursor if from_ is None else from_
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

    def __iter__(self) -> Iterator[Step[Cursor]]:
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


class Wait(Step):
    """A step whose outcome comes from outside.  Its cursor is what its first call has fixed."""

    __slots__ = ()


def key_of(run_id: str, name: str | None, place: Any) -> str:
    """Hash a place in a run into 32 hexadecimal digits."""
    text = json.dumps([run_id, name, place], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
