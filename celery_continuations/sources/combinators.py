"""Sources made of other sources: in batches, nested, throttled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from itertools import chain, islice
from math import isfinite
from typing import Any, NamedTuple, TypeVar, overload

from celery_continuations.core.reader import Keep, Print, SourceChanged, Throttled, Unreadable
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Batched, Pairs, Source, Sources, check_size, opening
from celery_continuations.sources.fingerprint import NONE, print_of

__all__ = ["batched", "nested", "throttled"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class _Late:
    """Another source, opened at its first use."""

    def __init__(self, source: Any) -> None:
        self._open = opening(source)
        self._identity: tuple[Any, ...] = ()
        self._is_read = False

    def identify(self, identity: Any) -> None:
        """Pass it on when the source is opened."""
        self._identity = (identity,)

    @cached_property
    def reader(self) -> Any:
        """The other source."""
        reader = self._open()
        for identity in self._identity:
            reader.identify(identity)
        return reader

    def for_loop(self) -> Any:
        """Return the other source for a new loop: opened again if an earlier loop has read it."""
        if self._is_read:
            vars(self).pop("reader", None)
        self._is_read = True
        return self.reader

    def read(self, cursor: Any) -> Pairs:
        """Read the other source."""
        pairs: Pairs = self.for_loop().read(cursor)
        return pairs

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read the other source from a cursor on."""
        pairs: Pairs = self.for_loop().resume(cursor, kind, mark)
        return pairs

    def close(self) -> None:
        """Close the other source, if it is open."""
        if "reader" in vars(self):
            self.reader.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


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
    return Batched(_Late(source), n)


class _Taken(NamedTuple):
    """The fingerprint of an item of nested sources, and the whole mark."""

    digest: str | None
    mark: Any


class _Nested(BaseReader):
    """A cursor is ``(outer cursor before the outer item, outer cursor after it, inner cursor)``.

    A mark has the kind of each open level, the length and fingerprint of each current outer item, and the mark of the
    innermost source.
    """

    def __init__(self, outer: Any, inner: tuple[Callable[..., Any], ...]) -> None:
        self._outermost = _Late(outer)
        self._levels: tuple[Callable[..., Any], ...] = (self._outermost.for_loop, *inner)
        self.kind = f"place in {len(self._levels)} nested sources"
        self.checks = True
        self._kinds: list[str | None] = [None] * len(self._levels)
        self._readers: list[Any] = [None] * len(self._levels)  # that are open
        self._outer: list[Any] = [None] * len(inner)
        self._kept: Any = None

    def identify(self, identity: Any) -> None:
        """Switch the checks off."""
        if identity is not None:
            raise InvalidStepError(
                "nested sources have no single item to identify: identity= must be None, which switches the check off",
                found=self.step,
            )
        self.checks = False

    def read(self, cursor: Any) -> Pairs:
        """Yield tuples from a cursor on."""
        return self.resume(cursor, None, ACCEPTED)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Yield tuples from a cursor on, if the current outer items are the same."""
        self.refuse_other(kind)
        pairs = self._reading = self._walk((), cursor, mark)
        return pairs

    def _walk(self, above: tuple[Any, ...], cursor: Any, mark: Any) -> Pairs:
        level = len(above)
        self._readers[level] = reader = opening(self._levels[level](*above))()
        saved = mark["kinds"][level] if isinstance(mark, dict) else None
        if level == len(self._levels) - 1:
            yield from self._innermost_items(above, reader, cursor, saved, mark)
            return
        before, expected, within = (None, None, None) if cursor is None else _place(cursor)
        # The item before the outer item has no fingerprint, except where the cursor itself has one, which is compared.
        pairs = reader.resume(before, saved, None if self.checks and mark != ACCEPTED else ACCEPTED)
        pairs = _readable(pairs)
        is_resumed = cursor is not None
        if is_resumed and not reader.checks:
            pairs = _skipped_to(expected, iter(pairs))
        for item, after in pairs:
            found = self._enter(level, reader, item)
            start, left = None, None
            # By position the first item is the current one, and is compared. By key the current outer item may be gone;
            # its place would then be one in another item.
            if is_resumed and (reader.checks or after == expected):
                self._compare(level, found, mark)
                start, left = within, mark
            is_resumed = False
            try:
                for items, place in self._walk((*above, item), start, left):
                    yield items, (before, after, place)
            except Unreadable as unreadable:
                raise Unreadable(unreadable.error, (before, after, unreadable.after)) from unreadable
            before = after
        is_by_key = saved is not None and saved.startswith("key ")
        # A place after an outer item that could not be read has no current one.
        is_gone = is_resumed and before != expected
        if is_gone and self.checks and reader.checks and mark != ACCEPTED and not is_by_key:
            raise SourceChanged(f"the outer item at its place, after {before!r}, is gone", _ADVICE)

    def _enter(self, level: int, reader: Any, item: Any) -> Any:
        """Note the outer item, before the body can change it."""
        self._kinds[level] = reader.kind
        checks = self.checks and reader.checks
        self._outer[level] = [reader.progress(None)[1], *print_of(item)] if checks else [None, *NONE]
        return self._outer[level]

    def _compare(self, level: int, found: Any, mark: Any) -> None:
        if not isinstance(mark, dict) or mark["outer"][level] is None or not self.checks:
            return
        length, digest, before = mark["outer"][level]
        if digest is None:
            if length is not None and found[0] is not None and found[0] < length:
                raise SourceChanged(f"its outer source had {length:,} items and has {found[0]:,} now", _ADVICE)
        elif found[1] != digest:
            shown = f": then {before}, now {found[2]}" if before and found[2] else ""
            raise SourceChanged(f"the outer item at its place has changed{shown}", _ADVICE)

    def _innermost_items(self, above: Any, reader: Any, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        level = len(above)
        self._kinds[level] = reader.kind or kind
        if not self.checks:
            reader_mark: Any = ACCEPTED
        else:
            reader_mark = mark["inner"] if isinstance(mark, dict) else mark
        keep: Keep | None = None
        for item, after in reader.resume(cursor, kind, reader_mark):
            self._kinds[level] = reader.kind
            if keep is None and reader.checks and self.checks:
                keep = reader.keep_of(item)
            kept = None if keep is None else keep.of(item)
            self._kept = (tuple(self._kinds), tuple(self._outer), reader, kept)
            yield (*above, item), after

    def keep_of(self, item: Any) -> Keep:
        """Keep the notes made when the item was read."""
        return Keep(make=lambda _: self._kept)

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint of the item before a cursor."""
        if kept is None or isinstance(kept, _Taken):
            return kept or NONE
        kinds, outer, reader, inner = kept
        for _ in outer:
            cursor = cursor[2]
        mark = reader.mark(cursor, inner) if self.checks else None
        has_all = all(one[1] is not None for one in outer) and (
            not reader.checks or reader.taken(cursor, inner).digest is not None
        )
        return _Taken("all" if has_all else None, {"kinds": kinds, "outer": outer, "inner": mark})

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the kinds and fingerprints of all levels."""
        taken = self.taken(cursor, kept)
        return taken.mark if isinstance(taken, _Taken) else None

    def close(self) -> None:
        """Close the sources of all levels."""
        super().close()
        for reader in filter(None, self._readers):
            reader.close()

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the progress of the outermost source."""
        found: tuple[int | None, int | None] = self._outermost.reader.progress(None if cursor is None else cursor[0])
        return found


def _readable(pairs: Pairs) -> Pairs:
    """Yield the pairs of an outer level; after an item that cannot be read the next one begins at its beginning."""
    try:
        yield from pairs
    except Unreadable as unreadable:
        raise Unreadable(unreadable.error, (unreadable.after, unreadable.after, None)) from unreadable


_ADVICE = (
    "Each level of nested sources that is read by position needs the same items in each execution; read it by key: a "
    "queryset, a select, keyed(rows, key=...)."
)


# How many outer items, inserted before the current one, are skipped to find it.
_LOOKED_AHEAD = 1000


def _skipped_to(expected: Any, pairs: Pairs) -> Pairs:
    """Skip the items that were inserted before the item with this cursor, if that item is found."""
    passed: list[tuple[Any, Any]] = []
    for pair in islice(pairs, _LOOKED_AHEAD):
        if pair[1] == expected:
            return chain((pair,), pairs)
        passed.append(pair)
    return chain(passed, pairs)


def _place(cursor: Any) -> tuple[Any, Any, Any]:
    if type(cursor) is not tuple or len(cursor) != 3:
        raise InvalidStepError(f"nested sources cannot be read from {cursor!r}: that is not one of their cursors")
    return cursor


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
    return _Nested(outer, inner)


class _Throttled(BaseReader):
    def __init__(self, source: Any, condition: Callable[[], Any], seconds: float) -> None:
        self._late = _Late(source)
        self._condition = condition
        self._seconds = seconds
        self._is_open = False

    def read(self, cursor: Any) -> Pairs:
        """Yield items while the condition allows it."""
        return self.resume(cursor, None, ACCEPTED)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on while the condition allows it; the source is opened only then."""
        pairs: Pairs | None = None
        while True:
            if self._condition():
                raise Throttled(self._seconds)
            if pairs is None:
                self._is_open = True
                pairs = iter(self._late.resume(cursor, kind, mark))
            try:
                pair = next(pairs)
            except StopIteration:
                return
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
