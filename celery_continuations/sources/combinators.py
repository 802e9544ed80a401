"""Sources made of others: in batches, one within the other, no faster than is allowed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from math import isfinite
from typing import Any

from celery_continuations.core.step import Throttled
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import Pairs, Source, batches, check_size, opening, progress_of

__all__ = ["batched", "nested", "throttled"]


class _Around:
    """A source whose cursors are those of another, which is opened when it is first needed."""

    def __init__(self, source: Any) -> None:
        self._open = opening(source)

    @cached_property
    def source(self) -> Source:
        """The other."""
        return self._open()

    @cached_property
    def _progress(self) -> Callable[[Any], tuple[int | None, int | None]]:
        return progress_of(self.source)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """As of the other."""
        return self._progress(cursor)


class _Batched(_Around):
    def __init__(self, source: Any, size: int) -> None:
        super().__init__(source)
        self._size = size

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        return batches(iter(self.source.read(cursor)), self._size)


def batched(source: Any, n: int) -> Source:
    """Return lists of up to ``n`` items.  ``iterate(..., batch=n)`` is the same; this is for use within others.

    Progress counts items, not batches.

    Args:
        source: whatever ``iterate`` takes.
        n: items to a list, 1 or more.

    >>> list(batched(["a", "b", "c"], 2).read(None))
    [(['a', 'b'], 2), (['c'], 3)]
    """
    check_size(n, "the size of a batch")
    return _Batched(source, n)


class _Nested:
    """A cursor is ``(outer cursor before the outer item, outer cursor after it, inner cursor)``."""

    def __init__(self, outer: Any, inner: tuple[Callable[..., Any], ...]) -> None:
        self._outermost = _Around(outer)
        self._levels: tuple[Callable[..., Any], ...] = (lambda: self._outermost.source, *inner)

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        return self._walk((), cursor)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Of the outermost source."""
        return self._outermost.progress(None if cursor is None else cursor[0])

    def _walk(self, above: tuple[Any, ...], cursor: Any) -> Pairs:
        source = opening(self._levels[len(above)](*above))()
        if len(above) == len(self._levels) - 1:
            for item, after in source.read(cursor):
                yield (*above, item), after
            return
        before, expected, within = (None, None, None) if cursor is None else _place(cursor)
        for item, after in source.read(before):
            # Where the outer item that was in hand is gone, its place would be one in another.
            start = within if after == expected else None
            for items, place in self._walk((*above, item), start):
                yield items, (before, after, place)
            before = after


def _place(cursor: Any) -> tuple[Any, Any, Any]:
    if type(cursor) is not tuple or len(cursor) != 3:
        raise InvalidStepError(f"nested sources cannot be read from {cursor!r}: that is no place in two of them")
    return cursor


def nested(outer: Any, *inner: Callable[..., Any]) -> Source:
    """Return the items of a source for each item of another, to any depth, as tuples.

    Where the outer item that was in hand is gone when the task resumes, the one that has come to its place is taken
    from its beginning.  Progress counts outer items.

    Args:
        outer: whatever ``iterate`` takes.
        inner: functions that return whatever ``iterate`` takes; each is called with the items of the levels above.

    >>> source = nested(["a", "b"], lambda letter: range(2))
    >>> pairs = list(source.read(None))
    >>> [item for item, _ in pairs]
    [('a', 0), ('a', 1), ('b', 0), ('b', 1)]
    >>> [item for item, _ in source.read(pairs[0][1])]
    [('a', 1), ('b', 0), ('b', 1)]
    """
    if not inner:
        raise InvalidStepError("nested takes a source and one function or more that return the sources within")
    for function in inner:
        if not callable(function):
            raise InvalidStepError(
                f"nested was given {function!r} for an inner source; "
                "give a function that returns it, which is called with the outer item"
            )
    return _Nested(outer, inner)


class _Throttled(_Around):
    def __init__(self, source: Any, condition: Callable[[], Any], seconds: float) -> None:
        super().__init__(source)
        self._condition = condition
        self._seconds = seconds

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        pairs: Pairs | None = None
        while True:
            if self._condition():
                raise Throttled(self._seconds)
            if pairs is None:
                pairs = iter(self.source.read(cursor))
            try:
                pair = next(pairs)
            except StopIteration:
                return
            yield pair


def throttled(source: Any, condition: Callable[[], Any], backoff: float | timedelta) -> Source:
    """Return the items of a source as long as a condition allows it.

    Before each item ``condition()`` is asked.  While it is true the source is not read, and the task gives its worker
    back, to ask again after ``backoff``: as of :meth:`AppTask.resume_in`, and as there it is an error in a direct call,
    where there is no worker to be given back.

    Args:
        source: whatever ``iterate`` takes.
        condition: a function of nothing; true while the task is to hold back.
        backoff: seconds or a timedelta.

    >>> list(throttled(["a", "b"], lambda: False, backoff=30).read(None))
    [('a', 1), ('b', 2)]
    """
    if not callable(condition):
        raise InvalidStepError(f"throttled was given the condition {condition!r}, which is not callable")
    seconds = backoff.total_seconds() if isinstance(backoff, timedelta) else backoff
    if type(seconds) not in (int, float) or seconds < 0 or not isfinite(seconds):
        raise InvalidStepError(f"backoff = {backoff!r} is not allowed; it takes seconds, 0 or more, or a timedelta")
    return _Throttled(source, condition, seconds)
