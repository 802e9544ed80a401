"""Loops over a source, with a checkpoint after each item."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import chain
from types import TracebackType
from typing import Any, Generic

from celery_continuations.core import codec
from celery_continuations.core.evolution import misfit_of_loop
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.reader import (
    COUNTS,
    Counted,
    Keep,
    NoItem,
    Opened,
    OtherKind,
    Pairs,
    Reader,
    SourceChanged,
    Throttled,
    Unreadable,
    close,
)
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.core.step import Begun, Step, StepsRun, Unit
from celery_continuations.core.typevars import Item_co
from celery_continuations.exceptions import ErrorBudgetError, InvalidStepError, SourceChangedError

__all__ = ["Attempt", "Iteration"]

_END: Any = object()

# How many characters of a failed item's error are kept.
_ERROR_KEPT = 200


class Iteration(Step[Any], Generic[Item_co]):
    """A step that is a loop: iterate over it once, for items or batches of items.

    Attributes:
        budget: how many items may fail, or None without an error budget.
    """

    __slots__ = ("_begun", "_done", "_kept", "_open", "_opened", "_reading", "_taken", "_total", "budget")

    def __init__(
        self,
        run: StepsRun,
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
        self._reading: list[Any] = []  # what is open: the reader, and its pairs
        self._begun: Begun | None = None  # what an earlier execution saved of the loop, until an item is done
        self._done: int | None = 0  # items, in this execution and before; None if unknown
        self._total: int | None = None
        self._kept: Any = None  # of the last item done
        self._taken: list[tuple[Any, Any]] = []  # cursors and fingerprints; a failed commit returns to the last but one

    @property
    def usage(self) -> str:
        """How to write a loop, for errors."""
        return f"`for item in self.iterate({self.name!r}, ...):`"

    def set(self, cursor: Any) -> None:
        """Refuse: the source moves the cursor of a loop.

        Raises:
            InvalidStepError: always.
        """
        raise InvalidStepError(
            f"step {self.name!r} is a loop, whose cursor moves with each item; to skip items write `continue`, and to "
            f"move a cursor yourself `for step in self.step({self.name!r}, start=0):`",
            found=self.name,
        )

    def advance(self, from_: Any = None) -> None:
        """Refuse, as :meth:`set`."""
        self.set(from_)

    def skip(self, outcome: Outcome) -> None:
        """Skip the loop, which is complete already."""
        super().skip(outcome)
        self.failed_items = outcome.data or []

    def enter(self, begun: Begun | None, failed_items: list[list[Any]]) -> None:
        """Begin the loop in this execution; see :meth:`Step.enter`."""
        super().enter(begun, failed_items)
        if begun is not None:
            self._forget_failure(begun.cursor)  # the item is repeated
        self._begun = begun
        if begun is not None:
            done, self._total = begun.progress
            self._done = 0 if begun.cursor is None else done

    def progress(self) -> tuple[int | None, int | None]:
        """Return the number of items done and of all items, as far as known."""
        if self._opened is None:
            if self._begun is not None:
                return self._begun.progress
            return (self.cursor if type(self.cursor) is int else 0 if self.cursor is None else None, None)
        done, total = self._opened.reader.progress(self.cursor)
        done = self._done if done is None else done
        total = self._total if total is None else total
        # Rows that disappear once they are done: each execution finds fewer than were done in all.
        return done, None if done is not None and total is not None and done > total else total

    def to_resume(self) -> Begun:
        """Return what the next execution must know of this loop."""
        begun, opened = self._begun, self._opened
        if begun is not None and begun.cursor is not None and not self.advanced:
            return begun  # no item was done in this execution: what was saved is still valid
        if opened is None:
            return Begun(self.encoded_cursor(), self.kind, None, self.progress(), self.begun_as)
        reader = opened.reader
        kept = next((taken for cursor, taken in self._taken if cursor is self.cursor), self._kept)
        mark = reader.mark(self.cursor, kept) if self.advanced else None
        kind = reader.kind or self.kind
        return Begun(self.encoded_cursor(), kind, mark, self.progress(), self.begun_as, reader.uses)

    @property
    def total(self) -> int | None:
        """The number of all items, if known."""
        return self.progress()[1]

    def attempt(self) -> Attempt:
        """Record the current item as failed if it raises: ``with rows.attempt(): load(row)``.

        An exception in the block is recorded with the cursor of the item, and the loop continues.  Errors that affect
        more than the item still leave the block: an interruption, a soft time limit, ``self.retry()``, an error of this
        package.

        Raises:
            ErrorBudgetError: at the end of the block, when more items have failed than ``on_error`` allows.
            InvalidStepError: when ``iterate`` was called without ``on_error``.
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
        """The failed items, of this execution and before: the cursor where each begins, and its error."""
        return [(codec.decode(cursor, f"a cursor of step {self.name!r}"), text) for cursor, text in self.failed_items]

    def item_failed(self, error: Exception) -> bool:
        """Record that the current item failed; return False if the error affects more than the item.

        Raises ErrorBudgetError when too many have failed.
        """
        if not self.run.is_of_item(self, error):
            return False
        assert self.budget is not None
        if self.unit is not None:
            self.unit.rollback()
            self.unit.begin()
        cursor = self.encoded_cursor()
        self._forget_failure(cursor)
        self.failed_items.append([cursor, f"{type(error).__name__}: {error}"[:_ERROR_KEPT]])
        if len(self.failed_items) > self.budget:
            raise ErrorBudgetError(self.name, self.budget, self.failed) from error
        return True

    def _forget_failure(self, cursor: Any) -> None:
        """Remove the failure at this encoded cursor: the item has failed again, or is repeated."""
        if self.failed_items and self.failed_items[-1][0] == cursor:
            self.failed_items.pop()

    def __iter__(self) -> Iterator[Item_co]:  # type: ignore[override]
        run = self.run
        if not run.enter(self):
            return
        with _Leaving(self):
            reader, pair, pairs = self._resume()
            # After each checkpoint with something to do, the next item decides how items are kept.
            while (pair := self._with_item(pair, pairs)) is not _END:
                item, after = pair
                keep = reader.keep_of(item)
                by_position, same, exact, by_id, make = keep
                pair, kept = None, keep.of(item)  # zip reuses a tuple to which nothing refers
                yield item
                self._moved_to(after, kept, len(item) if reader.is_batched else 1)
                if run.attention:
                    pass
                elif keep is COUNTS:
                    for item, after in pairs:
                        yield item
                        self.cursor = after
                        if run.attention:
                            break
                    else:
                        break
                elif not (by_position and isinstance(pairs, Counted)):
                    pair = yield from self._rest(pairs, keep, reader.is_batched)
                    if pair is not None:
                        continue
                elif same:  # the hot path
                    for item in pairs.items:
                        yield item
                        after += 1
                        self.cursor = after
                        self._kept = item
                        if run.attention:
                            pairs.done = after
                            break
                    else:
                        break
                else:
                    for item in pairs.items:
                        # keep.of(item), inlined: the call would slow down every item.
                        if item.__class__ is not exact:
                            kept = make and make(item)
                        elif by_id is None:
                            kept = item.copy()
                        elif (kept := item.get("id")).__class__ is not by_id:
                            kept = make(item)
                        yield item
                        after += 1
                        self.cursor = after
                        self._kept = kept
                        if run.attention:
                            pairs.done = after
                            break
                    else:
                        break
                self._moved_past(reader)
                pair = next(pairs, _END)
        run.complete(self)

    def _rest(self, pairs: Pairs, keep: Keep, is_batched: bool) -> Generator[Any, None, Any]:
        """Yield items; return None if a checkpoint has something to do, else what comes instead of a pair."""
        keeps, run, size = keep.same or keep.make is not None, self.run, 1
        for pair in pairs:
            if isinstance(pair, NoItem):
                return pair
            item, after = pair
            kept = keep.of(item) if keeps else None
            if is_batched:
                size = len(item)
            yield item
            self.cursor, self._kept = after, kept  # _moved_to(), inlined: the call would slow down every item
            if self._done is not None:
                self._done += size
            if run.attention:
                return None
        return _END

    def _with_item(self, pair: Any, pairs: Pairs) -> Any:
        """Return the next pair that has an item, beginning with ``pair``, or the end."""
        while isinstance(pair, NoItem):
            self._passed(pair)
            pair = next(pairs, _END)
        return pair

    def _passed(self, place: NoItem) -> None:
        """Move to a place that the source has reached without an item."""
        if place.has_moved:
            self.cursor, self._kept = place.cursor, place.kept
        if self.unit is not None or self.run.attention:
            place.was_due = self.run.passed(place.has_moved)

    def _moved_to(self, cursor: Any, kept: Any, size: int) -> None:
        """Move to the place after an item, or after a batch of this size."""
        self.cursor = cursor
        self._kept = kept
        if self._done is not None:
            self._done += size

    def _resume(self) -> tuple[Reader, Any, Pairs]:
        """Open the source; return its reader, the first pair, and the following pairs."""
        opened, begun = self._open(), self._begun
        reader = opened.reader
        # A loop that begins in this execution, at any start, has nothing to compare with.
        kind, mark = (begun.kind, begun.mark) if begun is not None else (None, ACCEPTED)
        self._reading = [reader]
        pairs = reader.resume(self.cursor, kind if kind != self.kind else None, mark)
        if self.budget is not None and not isinstance(pairs, Counted):
            pairs = self._within_budget(opened, pairs)
        self._reading = [pairs, reader]
        first = next(pairs, _END)  # before any other use of a source that may be throttled
        self._opened = opened
        if self._total is None and opened.total is not None and reader.progress(self.cursor)[1] is None:
            self._total = opened.total if isinstance(opened.total, int) else reader.count()
        if first is _END or self.unit is None:
            return reader, first, pairs
        pairs = _begin_with_each(self.unit, chain((first,), pairs))
        return reader, next(pairs), pairs

    def close(self) -> None:
        """Close what the loop has opened; tracebacks and variables may refer to it for long."""
        reading, self._reading = self._reading, []
        for opened in reading:
            close(opened)

    def _within_budget(self, opened: Opened, pairs: Pairs) -> Pairs:
        """Yield pairs; record each item that the source cannot read as failed, and continue after it."""
        while True:
            try:
                yield from pairs
                return
            except Unreadable as unreadable:
                if not self.item_failed(unreadable.error):
                    raise
                self._opened = opened
                self.cursor, self._kept = unreadable.after, None
                if self._done is not None:
                    self._done += 1
            if self.run.attention:
                self._moved_past(opened.reader)
            opened.reader.close()
            pairs = opened.reader.resume(self.cursor, None, ACCEPTED)

    def _moved_past(self, reader: Reader) -> None:
        """Make a checkpoint after an item, because one has something to do."""
        if reader.checks:
            taken = reader.taken(self.cursor, self._kept)
            self._taken = [(self.cursor, taken), *self._taken[:1]]
            if taken.digest is None:
                self.run.unchecked(self)
        self.run.moved()


class Attempt:
    """See :meth:`Iteration.attempt`."""

    __slots__ = ("_iteration",)

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __enter__(self) -> None:
        """No-op."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Record the item if it has failed."""
        return isinstance(error, Exception) and self._iteration.item_failed(error)


class _Leaving:
    """Wrap a loop: close what it has opened; leave its step on a break or an error."""

    __slots__ = ("_iteration",)

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration

    def __enter__(self) -> None:
        """No-op."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the source; leave the step on an error; raise the task's error in place of the source's own."""
        step = self._iteration
        try:
            if error is not None:
                self._leave(step, step.run, error)
        finally:
            step.close()

    def _leave(self, step: Iteration, run: StepsRun, error: BaseException) -> None:
        try:
            if isinstance(error, Throttled):
                run.back_off(error.seconds)
            if isinstance(error, Unreadable):
                raise error.error from error.error.__cause__
            if isinstance(error, SourceChanged):
                run.refuse(SourceChangedError(step.name, run.id, error.problem, error.advice))
            if isinstance(error, OtherKind):
                run.refuse(misfit_of_loop(step.name, error.saved, error.found))
        finally:
            step.leave()


def _begin_with_each(unit: Unit, pairs: Pairs) -> Pairs:
    """Begin the unit of work with each item, after the source has been read for it."""
    for pair in pairs:
        if not isinstance(pair, NoItem):
            unit.begin()
        yield pair
