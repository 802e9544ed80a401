"""A step that is a loop: over a source, with a checkpoint after each item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol

from celery_continuations.core import codec
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.core.step import Begun, Checkpoints, Step, Unit
from celery_continuations.core.typevars import Item_co
from celery_continuations.exceptions import InvalidStepError

__all__ = [
    "NOTHING",
    "Iteration",
    "Keep",
    "Opened",
    "OtherKind",
    "Pairs",
    "Print",
    "Reader",
    "SourceChanged",
    "Throttled",
]

#: Items of a source, each with the cursor that comes after it.
Pairs = Iterator[tuple[Any, Any]]


class Throttled(BaseException):
    """Raised by a source that must not be read now.

    Attributes:
        seconds: after which to ask it again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class SourceChanged(Exception):
    """Raised by a reader whose source is not what it was.

    Attributes:
        problem: what has changed.
        advice: what to write instead.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice


class OtherKind(Exception):
    """Raised by a reader for a cursor that means something else than its own.

    Attributes:
        saved: what the cursor means.
        found: what the reader's cursors mean.
    """

    def __init__(self, saved: str, found: str) -> None:
        super().__init__(saved, found)
        self.saved = saved
        self.found = found


class Keep(NamedTuple):
    """What to keep of each item before the loop's body can change it, to take its fingerprint at a save.

    Attributes:
        by_position: whether the cursor counts the items, so that the loop need not.
        same: keep the item itself, which cannot be changed.
        exact: keep a shallow copy of items of exactly this class, or their id.
        by_id: keep what they have under "id" instead of the copy, where that is of exactly this class.
        make: what this makes of any other item; None to keep nothing.
    """

    by_position: bool = False
    same: bool = False
    exact: Any = None
    by_id: Any = None
    make: Any = None

    def of(self, item: Any) -> Any:
        """Return what to keep of an item."""
        if self.same:
            return item
        if item.__class__ is self.exact:
            if self.by_id is None:
                return item.copy()
            found = item.get("id")
            if found.__class__ is self.by_id:
                return found
        return None if self.make is None else self.make(item)


#: Nothing is kept.
NOTHING = Keep()

_END: Any = object()


class Print(NamedTuple):
    """The fingerprint of an item.

    Attributes:
        digest: twelve hexadecimal digits, which are 48 bits; None for an item of which none can be taken.
        shown: the item's id, where it may be shown to an operator.
    """

    digest: str | None
    shown: str | None = None


class _Taken(NamedTuple):
    """The fingerprint of the item before a cursor, as its reader has taken it."""

    cursor: Any
    print: Any


class Reader(Protocol):
    """A source as a loop reads it, in one execution.

    Attributes:
        kind: what its cursors mean; None while that is not known.
        checks: whether its items are compared with those of earlier executions.
        uses: the snapshot's format version that its cursors need.
        is_batched: whether each item is a list of items.
    """

    @property
    def kind(self) -> str | None: ...  # noqa: D102

    @property
    def checks(self) -> bool: ...  # noqa: D102

    @property
    def uses(self) -> int: ...  # noqa: D102

    @property
    def is_batched(self) -> bool: ...  # noqa: D102

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on, after checking what an earlier execution saved beside it.

        Raises:
            OtherKind, SourceChanged: also later, while the pairs are read.
        """

    def keep_of(self, item: Any) -> Keep:
        """Return what to keep of items like this one."""

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint of the item before a cursor, of which ``kept`` was kept: it has a ``digest``."""

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Return what to save beside a cursor, as JSON; ``kept`` is of the item before it, or its fingerprint."""

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return what is done and what there is in all, each None where the reader does not know."""

    def count(self) -> int:
        """Count the items, where that takes a query.  Raises InvalidStepError where they cannot be counted."""


class Opened(NamedTuple):
    """A source that was opened.

    Attributes:
        reader: reads it.
        total: the number of items, where the caller knows it, or ``"count"`` to count them.
    """

    reader: Reader
    total: int | str | None = None


class Iteration(Step[Any], Generic[Item_co]):
    """A step that is a loop: iterate over it once, for items or batches of items.

    Attributes:
        budget: how many items may fail, or None where none is put aside.
    """

    __slots__ = ("_begun", "_done", "_kept", "_open", "_opened", "_taken", "_total", "budget")

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
        super().__init__(run, name, start, isolated, unit, kind="loop")
        if on_error is not None and (type(on_error) is not int or on_error < 0):
            raise InvalidStepError(
                f"step {name!r}: on_error must be the number of items that may fail, 0 or more, not {on_error!r}",
                found=name,
            )
        self.budget = on_error
        self._open = open_source
        self._opened: Opened | None = None
        self._begun: Begun | None = None  # what was saved of the loop, until an item is done
        self._done: int | None = 0  # items, in this execution and before; None where that is not known
        self._total: int | None = None
        self._kept: Any = None  # of the last item that is done
        self._taken: list[_Taken] = []  # at the last two checkpoints: where a commit fails, the cursor goes back to one

    def enter(self, begun: Begun | None = None) -> None:
        """Begin the loop in this execution; see :meth:`Step.enter`."""
        super().enter(begun)
        self._begun = begun
        if begun is not None:
            done, self._total = begun.progress
            self._done = 0 if begun.cursor is None else done

    def progress(self) -> tuple[int | None, int | None]:
        """What is done and what there is in all, where known."""
        if self._opened is None:
            if self._begun is not None:
                return self._begun.progress
            return (self.cursor if type(self.cursor) is int else 0 if self.cursor is None else None, None)
        done, total = self._opened.reader.progress(self.cursor)
        done = self._done if done is None else done
        total = self._total if total is None else total
        # Of rows that are gone once they are done there are fewer in each execution than are done in all.
        return done, None if done is not None and total is not None and done > total else total

    def to_resume(self) -> Begun:
        """Return what the next execution has to know of this loop."""
        begun, opened = self._begun, self._opened
        if begun is not None and begun.cursor is not None and not self.advanced:
            return begun  # no item was done in this execution: what was saved still holds
        if opened is None:
            return Begun(self.encoded_cursor(), self.kind, None, self.progress(), self.begun_as)
        reader = opened.reader
        kept = next((one.print for one in self._taken if one.cursor is self.cursor), self._kept)
        mark = reader.mark(self.cursor, kept) if self.advanced else None
        kind = reader.kind or self.kind
        return Begun(self.encoded_cursor(), kind, mark, self.progress(), self.begun_as, reader.uses)

    @property
    def total(self) -> int | None:
        """How much there is in all, where known."""
        return self.progress()[1]

    def attempt(self) -> Attempt:
        """Put the current item aside if it fails: ``with rows.attempt(): load(row)``.

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

    def __iter__(self) -> Iterator[Item_co]:  # type: ignore[override]
        run = self.run
        if not run.enter(self):
            return
        try:
            try:
                opened = self._open()
                reader = opened.reader
                first, pairs = self._resume(opened)
                is_batched = reader.is_batched
                done = self._done or 0
                counts = self._done is not None
                # How to keep items is chosen again after each checkpoint that had something to do, by the next item:
                # the body may have changed the last one.
                while first is not _END:
                    keep = reader.keep_of(first[0])
                    keeps = keep.same or keep.make is not None
                    by_position, same, exact, by_id, make = keep
                    # One after the other, and not through a chain of the two, which would cost each item.
                    parts = iter((first,)), pairs
                    first = None  # zip makes each pair in the same tuple, unless something still refers to it
                    for part in parts:
                        if by_position and same:
                            # The hot path: two stores and an attribute read for each item, and nothing else.
                            for item, after in part:
                                yield item
                                self.cursor = after
                                self._kept = item
                                if run.attention:
                                    break
                            else:
                                continue
                            break
                        if by_position and make is not None:
                            for item, after in part:
                                # As keep.of(item), whose call would cost each item.
                                if item.__class__ is not exact:
                                    kept = make(item)
                                elif by_id is None:
                                    kept = item.copy()
                                else:
                                    kept = item.get("id")
                                    if kept.__class__ is not by_id:
                                        kept = make(item)
                                yield item
                                self.cursor = after
                                self._kept = kept
                                if run.attention:
                                    break
                            else:
                                continue
                            break
                        for item, after in part:
                            kept = keep.of(item) if keeps else None
                            size = len(item) if is_batched else 1
                            yield item
                            self.cursor = after
                            self._kept = kept
                            done += size
                            self._done = done if counts else None
                            if run.attention:
                                break
                        else:
                            continue
                        break
                    else:
                        break  # there are no more
                    self._moved_past(reader)
                    first = next(pairs, _END)
            except Throttled as throttled:
                run.back_off(throttled.seconds)
            except SourceChanged as changed:
                run.refuse_source(self, changed.problem, changed.advice)
            except OtherKind as other:
                run.refuse_kind(self, other.saved, other.found)
        except BaseException:
            # As in Step; or an error of the source itself, or of a save
            self.leave()
            raise
        run.complete(self)

    def _resume(self, opened: Opened) -> tuple[Any, Pairs]:
        """Return the first pair, and those that come after it."""
        reader, begun = opened.reader, self._begun
        # Where the loop begins in this execution, at whatever start, there is nothing to compare with.
        kind, mark = (begun.kind, begun.mark) if begun is not None else (None, ACCEPTED)
        pairs = reader.resume(self.cursor, kind if kind != self.kind else None, mark)
        first = next(pairs, _END)
        self._opened = opened
        if self._total is None and opened.total is not None and reader.progress(self.cursor)[1] is None:
            self._total = opened.total if isinstance(opened.total, int) else reader.count()
        if first is _END or self.unit is None:
            return first, pairs
        pairs = _begun(self.unit, chain((first,), pairs))
        return next(pairs), pairs

    def _moved_past(self, reader: Reader) -> None:
        """An item is done, and a checkpoint has something to do: make it."""
        if reader.checks:
            taken = reader.taken(self.cursor, self._kept)
            self._taken = [_Taken(self.cursor, taken), *self._taken[:1]]
            if taken.digest is None:
                self.run.unchecked(self)
        self.run.moved()


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
