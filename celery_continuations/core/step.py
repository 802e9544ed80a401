"""One step of a run, as the task sees it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any, Generic, NamedTuple, NoReturn, Protocol

from celery_continuations.core import codec
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.typevars import Cursor
from celery_continuations.exceptions import InvalidStepError, SourceChangedError, UnadvanceableCursorError

__all__ = ["Begun", "Over", "Step", "StepsRun", "Unit", "key_of"]

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

    @classmethod
    def of(cls, snapshot: Snapshot) -> Begun | None:
        """Read it from a snapshot; without a cursor nothing of the step is done."""
        if snapshot.current is None:
            return None
        cursor, progress, begun_as = snapshot.current[1], snapshot.progress, snapshot.begun_as
        if cursor is None:
            return cls(None, progress=progress, begun_as=begun_as)
        return cls(cursor, snapshot.kind, snapshot.mark, progress, begun_as, snapshot.uses)

    def write(self, snapshot: Snapshot, name: str) -> None:
        """Write it into a snapshot, for the step of this name."""
        snapshot.current = (name, self.cursor)
        snapshot.kind, snapshot.mark, snapshot.progress = self.kind, self.mark, self.progress
        snapshot.begun_as, snapshot.uses = self.begun_as, self.uses


class StepsRun(Protocol):
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

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """Return whether an error in a loop's body is of the current item alone."""

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """The code, or the source of a loop, does not fit what an earlier execution left."""

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
        """Refuse to continue a step that is over."""
        raise InvalidStepError(f"step {self._name!r} is complete; its cursor was moved after its block", self._name)

    moved = checkpoint

    def enter(self, step: Step) -> bool:
        """Refuse to begin it again."""
        raise InvalidStepError(f"step {self._name!r} is iterated a second time", self._name)

    def complete(self, step: Step) -> None:
        """A loop kept and finished after the task had gone on."""

    def back_off(self, seconds: float) -> NoReturn:
        """Refuse to continue a loop that is over."""
        raise InvalidStepError(f"step {self._name!r} is complete; its loop went on after it", self._name)

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """No item is under way."""
        return False

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """Refuse to continue a loop that is over."""
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
        "begun_as",
        "cursor",
        "failed_items",
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
        run: StepsRun,
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
        self.failed_items: list[list[Any]] = []  # encoded cursors, each with its error
        self.unit = unit
        self.kept: Any = None  # the cursor that was committed with the unit's work
        self._initial: Any = _UNMOVED

    def skip(self, outcome: Outcome) -> None:
        """The step is complete already."""
        self.outcome = outcome

    def enter(self, begun: Begun | None, failed_items: list[list[Any]]) -> None:
        """Begin the step in this execution, where an earlier one has ``begun`` it from what that left."""
        self.failed_items = failed_items
        self.resumed = begun is not None
        if begun is not None:
            self.cursor = codec.decode(begun.cursor, f"the cursor of step {self.name!r}")
            self.begun_as = begun.begun_as
        self._initial = self.kept = self.cursor
        self.handling = sys.exc_info()[1]

    def leave(self) -> None:
        """Control leaves the block before its end: by break, by an error, or with a frame that is thrown away."""
        left, self.left = self.left, True
        if self.unit is not None and not left:  # an iterator may be collected when others are at work in its session
            self.cursor = self.kept
            self.unit.rollback()

    @property
    def is_settled(self) -> bool:
        """Whether no error is being handled that came up since the step began."""
        return sys.exc_info()[1] is self.handling

    def let_follow(self, name: str) -> None:
        """Control has left the step, and another one is to come.

        Raises:
            InvalidStepError: while the error that left this step is being handled.
        """
        raise InvalidStepError(
            f"step {name!r} was started while the error that left step {self.name!r} is being handled; after a "
            "resumption that error would not come again. Start it after the except or finally block, or "
            f"catch the error inside of step {self.name!r}",
            found=name,
        )

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


def key_of(run_id: str, name: str | None, place: Any) -> str:
    """Hash a place in a run into 32 hexadecimal digits."""
    text = json.dumps([run_id, name, place], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
