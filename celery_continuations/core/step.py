"""One step of a run, as the task sees it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from typing import Any, Protocol

from celery_continuations.core import codec
from celery_continuations.core.snapshot import Outcome
from celery_continuations.exceptions import InvalidStepError, UnadvanceableCursorError

__all__ = ["Iteration", "Pairs", "Step", "Wait", "key_of"]

#: Items of a source, each with the cursor that comes after it.
Pairs = Iterator[tuple[Any, Any]]

# Types whose every value can be saved: a datetime's zone may be one that cannot.
_COPY_FREE = codec.IMMUTABLE - {datetime, time}
_UNMOVED = object()


class Checkpoints(Protocol):
    """What a step needs of the run it is part of."""

    attention: bool
    id: str

    def checkpoint(self) -> None:
        """A place where the task may stop."""

    def enter(self, step: Step) -> bool:
        """Begin ``step``; return False when it is complete already."""

    def complete(self, step: Step) -> None:
        """``step`` has run to its end."""


class Over:
    """Takes the place of a step's run once the step is complete."""

    def __init__(self, run_id: str, name: str) -> None:
        self.id = run_id
        self.attention = True
        self._name = name

    def checkpoint(self) -> None:
        """Refuse to go on with a step that is over."""
        raise InvalidStepError(f"step {self._name!r} is complete; its cursor was moved after its block", self._name)

    def enter(self, step: Step) -> bool:
        """Refuse to begin it again."""
        raise InvalidStepError(f"step {self._name!r} is iterated a second time", self._name)

    def complete(self, step: Step) -> None:
        """A loop kept and finished after the task had gone on."""


class Step:
    """A named part of a task.  ``for step in self.step("name"):`` yields it once.

    Attributes:
        name: its name.
        cursor: where to start next; everything before it is done.
        resumed: True when an earlier execution had begun it.
    """

    __slots__ = ("_initial", "cursor", "handling", "isolated", "left", "name", "outcome", "resumed", "run")

    def __init__(self, run: Checkpoints, name: str, start: Any = None, isolated: bool = False) -> None:
        self.run = run
        self.name = name
        self.cursor = codec.copy(start, f"the start of step {name!r}")
        self.isolated = isolated
        self.resumed = False
        self.left = False
        self.handling: BaseException | None = None  # the error that was being handled when the step began
        self.outcome = Outcome()
        self._initial: Any = _UNMOVED

    def enter(self, resume_at: Any = None, resumed: bool = False) -> None:
        """Begin the step in this execution; ``resume_at`` is the encoded cursor saved of it."""
        self.resumed = resumed
        if resumed:
            self.cursor = codec.decode(resume_at, f"the cursor of step {self.name!r}")
        self._initial = self.cursor

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
            self.run.checkpoint()

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
            self.run.checkpoint()

    def checkpoint(self) -> None:
        """A place where the task may stop, at the cursor it has."""
        self.run.checkpoint()

    def __iter__(self) -> Iterator[Any]:
        if not self.run.enter(self):
            return
        try:
            yield self
        except GeneratorExit:
            # break, an exception, or a frame thrown away: which of them shows in what the task does next
            self.left = True
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
    """A step that is a loop: iterate over it once, for items or batches of items."""

    __slots__ = ("_open", "total")

    def __init__(
        self,
        run: Checkpoints,
        name: str,
        open_source: Callable[[], tuple[Callable[[Any], Pairs], int | None]],
        start: Any = None,
        isolated: bool = False,
    ) -> None:
        super().__init__(run, name, start, isolated)
        self.total: int | None = None
        self._open = open_source

    def progress(self) -> tuple[int | None, int | None]:
        """Items done and items in all, where known."""
        done = 0 if self.cursor is None else self.cursor
        return (done if type(done) is int else None, self.total)

    def __iter__(self) -> Iterator[Any]:
        run = self.run
        if not run.enter(self):
            return
        try:
            read, self.total = self._open()
            pairs = read(self.cursor)
            # The hot path: one store and one attribute read for each item, and nothing else.
            for item, after in pairs:
                yield item
                self.cursor = after
                if run.attention:
                    run.checkpoint()
        except BaseException:
            # As in Step; or an error of the source itself, or of a save
            self.left = True
            raise
        run.complete(self)


class Wait(Step):
    """A step whose outcome comes from outside.  Its cursor, what it has fixed at its first call, is for nobody else."""

    __slots__ = ()


def key_of(run_id: str, name: str | None, place: Any) -> str:
    """Hash a place in a run into 32 hexadecimal digits."""
    text = json.dumps([run_id, name, place], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
