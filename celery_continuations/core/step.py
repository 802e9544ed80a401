"""Steps, as the task sees them."""

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

# Types whose every value can be saved; a datetime may have a zone that cannot be saved.
_COPY_FREE = codec.IMMUTABLE - {codec.real_type(datetime), time}
_DATES = frozenset((codec.real_type(date),))
_UNMOVED = object()


class Begun(NamedTuple):
    """What an earlier execution saved of the current step.

    Attributes:
        cursor: the encoded cursor.
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
        """Read it from a snapshot; without a cursor, nothing of the step is done."""
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
    """What a step needs from its run."""

    attention: bool
    id: str

    def own_checkpoint(self) -> None:
        """Make a checkpoint that the task has asked for."""

    def moved(self) -> None:
        """Make a checkpoint after the cursor was moved."""

    def passed(self, has_moved: bool) -> bool:
        """Make a checkpoint at which a loop's source has no item; return whether anything was due."""

    def enter(self, step: Step) -> bool:
        """Begin ``step``; return False if it is complete already."""

    def complete(self, step: Step) -> None:
        """Complete ``step``, which has run to its end."""

    def back_off(self, seconds: float) -> NoReturn:
        """Free the worker for ``seconds``."""

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """Return whether an error in a loop's body affects the current item alone."""

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """Raise ``error`` for code or a source that does not fit the snapshot."""

    def unchecked(self, step: Step) -> None:
        """Report that the items of the step's loop have no identity."""


class Unit(Protocol):
    """The task's own work since the cursor last moved: committed with the next move, or not at all."""

    def begin(self) -> None:
        """Begin the unit of work, unless it has begun already."""

    def rollback(self) -> None:
        """Undo the work, if there is any."""


class Over:
    """Replace a step's run once the step is complete."""

    def __init__(self, run_id: str, name: str) -> None:
        self.id = run_id
        self.attention = True
        self._name = name

    def own_checkpoint(self) -> None:
        """Refuse to continue a completed step."""
        raise InvalidStepError(f"step {self._name!r} is complete; its cursor was moved after its block", self._name)

    moved = own_checkpoint

    def passed(self, has_moved: bool) -> bool:
        """Refuse to continue a completed loop."""
        self.back_off(0)

    def enter(self, step: Step) -> bool:
        """Refuse to begin the step again."""
        raise InvalidStepError(f"step {self._name!r} is iterated a second time", self._name)

    def complete(self, step: Step) -> None:
        """No-op: a loop was kept, and finished after the task had continued."""

    def back_off(self, seconds: float) -> NoReturn:
        """Refuse to continue a completed loop."""
        raise InvalidStepError(f"step {self._name!r} is complete; its loop continued after it", self._name)

    def is_of_item(self, step: Step, error: Exception) -> bool:
        """Return False: a completed loop has no current item."""
        return False

    def refuse(self, error: InvalidStepError | SourceChangedError) -> NoReturn:
        """Refuse to continue a completed loop."""
        self.back_off(0)

    def unchecked(self, step: Step) -> None:
        """No-op: nothing more is saved of the loop."""


class Step(Generic[Cursor]):
    """A named part of a task.  ``for step in self.step("name"):`` yields it once.

    Attributes:
        name: the name of the step.
        cursor: where to start next; everything before it is done.
        resumed: True when an earlier execution had begun it.
        kind: the kind of the step, as saved: ``"block"``, ``"call"``, ``"loop"``, or the method of a wait.
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
        self.begun_as: str | None = None  # the name with which it began, if it was renamed since
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

    @property
    def usage(self) -> str:
        """How to write a step of this kind, for errors."""
        return f"`for step in self.step({self.name!r}):`"

    def skip(self, outcome: Outcome) -> None:
        """Skip the step, which is complete already."""
        self.outcome = outcome

    def enter(self, begun: Begun | None, failed_items: list[list[Any]]) -> None:
        """Begin the step in this execution; continue from ``begun`` if an earlier one has begun it."""
        self.failed_items = failed_items
        self.resumed = begun is not None
        if begun is not None:
            self.cursor = codec.decode(begun.cursor, f"the cursor of step {self.name!r}")
            self.begun_as = begun.begun_as
        self._initial = self.kept = self.cursor
        self.handling = sys.exc_info()[1]

    def leave(self) -> None:
        """Note that control leaves the block early: by break, by an error, or with a discarded frame."""
        left, self.left = self.left, True
        if self.unit is not None and not left:  # an iterator may be collected while another step uses its session
            self.cursor = self.kept
            self.unit.rollback()

    @property
    def is_settled(self) -> bool:
        """Whether no error raised since the step began is being handled."""
        return sys.exc_info()[1] is self.handling

    def let_follow(self, name: str) -> None:
        """Allow the step ``name`` after control has left this one.

        Raises:
            InvalidStepError: while the error that left this step is being handled.
        """
        raise InvalidStepError(
            f"step {name!r} was started while the error that left step {self.name!r} is being handled; after a "
            "resumption that error would not be raised again. Start it after the except or finally block, or "
            f"catch the error inside step {self.name!r}",
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
        """Return the cursor as it is saved."""
        return codec.encode(self.cursor, f"the cursor of step {self.name!r}")

    def progress(self) -> tuple[int | None, int | None]:
        """Return the number of items done and of all items, as far as known."""
        return (None, None)

    def to_resume(self) -> Begun:
        """Return what the next execution must know of this step."""
        return Begun(self.encoded_cursor(), self.kind, begun_as=self.begun_as)

    def set(self, cursor: Cursor) -> None:
        """Move the cursor: everything before it is done.  A checkpoint.

        Raises:
            UnserializableValueError: when the cursor would not be restored as equal.
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
        elif codec.real_type(kind) in _DATES:
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
        """Make a checkpoint: the task may stop here, at the current cursor."""
        self.run.own_checkpoint()

    def __iter__(self) -> Iterator[Step[Cursor]]:
        if not self.run.enter(self):
            return
        if self.unit is not None:
            self.unit.begin()
        try:
            yield self
        except GeneratorExit:
            # what the task does next shows how control left the block
            self.leave()
            raise
        self.run.complete(self)

    def __enter__(self) -> Any:
        raise InvalidStepError(
            f"step {self.name!r} was used in a with statement, which cannot be skipped when the step "
            f"is complete; write {self.usage}",
            found=self.name,
        )

    def __exit__(self, *args: object) -> None:
        """No-op: it exists so that ``with`` reaches :meth:`__enter__`, whose error helps."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} at {self.cursor!r}>"


def key_of(run_id: str, name: str | None, place: Any) -> str:
    """Hash a place in a run into 32 hexadecimal digits."""
    text = json.dumps([run_id, name, place], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
