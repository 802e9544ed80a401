"""Sources made of other sources: in batches, nested, throttled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import isfinite
from typing import Any, TypeVar, overload

from celery_continuations.core.reader import Keep, NoItem, Print, Throttled
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Batched, Pairs, Source, Sources, check_size
from celery_continuations.sources.nesting import Late, Nested
from celery_continuations.sources.reading import Repeat, items_only

__all__ = ["batched", "nested", "throttled"]

_NOTHING = Repeat(None, 0)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def batched(source: Sources[A], n: int) -> Source[list[A]]:
    """Return lists of up to ``n`` items.  ``iterate(..., batch=n)`` is the same; use this within other sources.

    Progress counts items, not batches.

    Args:
        source: anything that ``iterate`` accepts.
        n: items to a list, 1 or more.

    >>> list(batched(["a", "b", "c"], 2).read(None))
    [(['a', 'b'], 2), (['c'], 3)]
    """
    check_size(n, "the size of a batch")
    return Batched(Late(source), n)


@overload
def nested(outer: Sources[A], inner: Callable[[A], Sources[B]], /) -> Source[tuple[A, B]]: ...
@overload
def nested(
    outer: Sources[A], inner: Callable[[A], Sources[B]], second: Callable[[A, B], Sources[C]], /
) -> Source[tuple[A, B, C]]: ...
@overload
def nested(
    outer: Sources[Any],
    inner: Callable[..., Any],
    second: Callable[..., Any],
    third: Callable[..., Any],
    /,
    *more: Callable[..., Any],
) -> Source[tuple[Any, ...]]: ...
def nested(outer: Any, *inner: Callable[..., Any]) -> Source[Any]:
    """Return the items of a source for each item of another, to any depth, as tuples.

    If the current outer item is gone when the task resumes, the loop continues with the next one, from its beginning.
    Progress counts outer items.

    Args:
        outer: anything that ``iterate`` accepts.
        inner: functions that return anything that ``iterate`` accepts; they are called with the items of the outer
            levels.

    >>> source = nested(["a", "b"], lambda letter: range(2))
    >>> pairs = list(source.read(None))
    >>> [item for item, _ in pairs]
    [('a', 0), ('a', 1), ('b', 0), ('b', 1)]
    >>> [item for item, _ in source.read(pairs[0][1])]
    [('a', 1), ('b', 0), ('b', 1)]
    """
    if not inner:
        raise InvalidStepError("nested takes a source, and one or more functions that return the inner sources")
    for function in inner:
        if not callable(function):
            raise InvalidStepError(
                f"nested was given {function!r} as an inner source; "
                "pass a function of the outer item that returns the source"
            )
    return Nested(outer, inner)


class _Throttled(BaseReader):
    def __init__(self, source: Any, condition: Callable[[], Any], seconds: float) -> None:
        self._late = Late(source)
        self._condition = condition
        self._seconds = seconds
        self._is_open = False

    def read(self, cursor: Any) -> Pairs:
        """Yield items while the condition allows it."""
        return items_only(self.resume(cursor, None, ACCEPTED))

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on while the condition allows it; the source is opened only then."""
        return self._allowed(lambda: self._late.resume(cursor, kind, mark))

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Read from a cursor on; items that are repeated were allowed already."""
        return self._allowed(lambda: self._late.repeat(cursor, kind, mark, repeat), repeat)

    def _allowed(self, open_source: Callable[[], Pairs], repeat: Repeat = _NOTHING) -> Pairs:
        pairs: Pairs | None = None
        allowed = repeat.most
        while True:
            if allowed < 1 and self._condition():
                raise Throttled(self._seconds)
            if pairs is None:
                self._is_open = True
                pairs = iter(open_source())
            try:
                pair = next(pairs)
            except StopIteration:
                return
            # What has been allowed is an item, which is still to come.
            if isinstance(pair, NoItem):
                allowed = max(allowed, 1)
                yield pair
                continue
            allowed = 0 if pair[1] == repeat.until else allowed - 1
            yield pair

    def identify(self, identity: Any) -> None:
        """Pass it to the other source."""
        self._late.identify(identity)

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """The kind of the other source, once it is open."""
        return self._late.reader.kind if self._is_open else None

    @property
    def checks(self) -> bool:  # type: ignore[override]
        """Whether the other source compares items."""
        return bool(self._late.reader.checks)

    @property
    def uses(self) -> int:  # type: ignore[override]
        """The format version that the other source needs."""
        return int(self._late.reader.uses) if self._is_open else 1

    @property
    def is_batched(self) -> bool:  # type: ignore[override]
        """Whether the items of the other source are lists."""
        return bool(self._late.reader.is_batched)

    def keep_of(self, item: Any) -> Keep:
        """Keep what the other source keeps."""
        keep: Keep = self._late.reader.keep_of(item)
        return keep

    def taken(self, cursor: Any, kept: Any) -> Print:
        """Return the fingerprint that the other source takes."""
        taken: Print = self._late.reader.taken(cursor, kept)
        return taken

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the mark of the other source."""
        return self._late.reader.mark(cursor, kept)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the count of the other source."""
        found: tuple[int | None, int | None] = self._late.reader.progress(cursor)
        return found

    def count(self) -> int:
        """Return the count of the other source."""
        return int(self._late.reader.count())

    def close(self) -> None:
        """Close the other source."""
        self._late.close()


def throttled(source: Sources[A], condition: Callable[[], Any], backoff: float | timedelta) -> Source[A]:
    """Return the items of a source while a condition allows it.

    ``condition()`` is called before each item.  While it is true the source is not read, and the task leaves its
    worker, to call it again after ``backoff``: see :meth:`AppTask.resume_in`.  As there, it is an error in a direct
    call, which has no worker to leave.

    Args:
        source: anything that ``iterate`` accepts.
        condition: a function without arguments; true while the task must hold back.
        backoff: seconds, or a timedelta.

    >>> list(throttled(["a", "b"], lambda: False, backoff=30).read(None))
    [('a', 1), ('b', 2)]
    """
    if not callable(condition):
        raise InvalidStepError(f"throttled was given the condition {condition!r}, which is not callable")
    seconds = backoff.total_seconds() if isinstance(backoff, timedelta) else backoff
    if type(seconds) not in (int, float) or seconds < 0 or not isfinite(seconds):
        raise InvalidStepError(f"backoff = {backoff!r} is not allowed; it takes seconds, 0 or more, or a timedelta")
    return _Throttled(source, condition, seconds)
