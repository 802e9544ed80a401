"""A source within another, to any depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from celery_continuations.core.reader import Keep, NoItem, Pairs, SourceChanged, Unreadable
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import opening
from celery_continuations.sources.fingerprint import NONE, print_of
from celery_continuations.sources.reading import BaseReader, Repeat, items_only

__all__ = ["Late", "Nested"]

_NEVER: Any = object()


class Late:
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

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Read the other source from a cursor on, where the first items are read again."""
        pairs: Pairs = self.for_loop().repeat(cursor, kind, mark, repeat)
        return pairs

    def close(self) -> None:
        """Close the other source, if it is open."""
        if "reader" in vars(self):
            self.reader.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)


class _Open(NamedTuple):
    """The innermost open level, for the marks of places in it.

    Attributes:
        kinds: of the open levels.
        outer: the length and fingerprint of each current outer item.
        reader: of the innermost one; None while it is not open.
    """

    kinds: tuple[Any, ...]
    outer: tuple[Any, ...]
    reader: Any


# What is known of a place when it is reached: the level, its cursor there, and what it keeps of the item before.
_Notes = tuple[_Open, Any, Any]


class _Taken(NamedTuple):
    """The fingerprint of an item of nested sources, and the whole mark."""

    digest: str | None
    mark: Any


class Nested(BaseReader):
    """A cursor is ``(outer cursor before the outer item, outer cursor after it, inner cursor)``.

    Between two outer items it is ``(outer cursor, None, None)``: an outer item that is done is not read again.  Before
    the first inner item it ends with None.

    A mark has the kind of each open level, the length and fingerprint of each current outer item, and the mark of the
    innermost source.
    """

    def __init__(self, outer: Any, inner: tuple[Callable[..., Any], ...]) -> None:
        self._outermost = Late(outer)
        self._levels: tuple[Callable[..., Any], ...] = (self._outermost.for_loop, *inner)
        self.kind = f"place in {len(self._levels)} nested sources"
        self.checks = True
        self._kinds: list[str | None] = [None] * len(self._levels)
        self._readers: list[Any] = [None] * len(self._levels)  # that are open
        self._outer: list[Any] = [None] * len(inner)
        self._noted: dict[int, tuple[Any, _Notes]] = {}  # the last items, by their ids, each with its notes

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
        for pair in items_only(self.resume(cursor, None, ACCEPTED)):
            self._noted.clear()  # no fingerprints are taken of them
            yield pair

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Yield tuples from a cursor on, if the current outer items are the same."""
        self.refuse_other(kind)
        pairs = self._reading = self._walk((), cursor, mark, None)
        return pairs

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Yield tuples from a cursor on, where the first are read again, with their outer items."""
        self.refuse_other(kind)
        pairs = self._reading = self._walk((), cursor, mark, repeat)
        return pairs

    def _walk(self, above: tuple[Any, ...], cursor: Any, mark: Any, repeat: Repeat | None) -> Pairs:
        level = len(above)
        self._readers[level] = reader = opening(self._levels[level](*above))()
        if level == len(self._levels) - 1:
            yield from self._innermost_items(above, reader, cursor, mark, repeat)
            return
        before, expected, within = (None, None, None) if cursor is None else _place(cursor)
        is_resumed, repeats = expected is not None, _Repeats(expected, repeat)
        pairs = _readable(_opened(reader, before, self._saved(mark, level, cursor), repeats.outer))
        for pair in pairs:
            if isinstance(pair, NoItem):
                before = pair.cursor if pair.has_moved else before
                # A place before the current outer item is not told: it would lead back.
                place = NoItem() if is_resumed else pair
                yield from _told(place, (before, None, None), self._notes(level, reader, before, pair.kept))
                pair.was_due = place.was_due
                continue
            item, after = pair
            kept = self._kept_of(reader, item)
            found = self._enter(level, reader, item)
            start, left = None, None
            # By position the first item is the current one, and is compared. By key the current outer item may be gone;
            # its place would then be one in another item.
            if is_resumed and (reader.checks or after == expected):
                self._compare(level, found, mark)
                start, left = within, mark
            is_resumed = False
            if start is None:
                yield from _told(NoItem(after), (before, after, None), (self._open(level + 1, None), None, None))
            try:
                for inner in self._walk((*above, item), start, left, repeats.inner(after)):
                    if isinstance(inner, NoItem):
                        yield from _told(inner, (before, after, inner.cursor), inner.kept)
                    else:
                        yield inner[0], (before, after, inner[1])
            except Unreadable as unreadable:
                raise Unreadable(unreadable.error, (before, after, unreadable.after)) from unreadable
            before = after
            yield from _told(NoItem(after), (after, None, None), self._notes(level, reader, after, kept))
        is_by_key = _kind_in(mark, level, "").startswith("key ")
        if is_resumed and self.checks and reader.checks and mark != ACCEPTED and not is_by_key:
            raise SourceChanged(f"the outer item at its place, after {before!r}, is gone", _ADVICE)

    def _saved(self, mark: Any, level: int, cursor: Any) -> tuple[str | None, Any]:
        """Return the kind and the mark that were saved of this level."""
        if not self.checks or mark == ACCEPTED:
            return _kind_in(mark, level), ACCEPTED
        if not isinstance(mark, dict):
            return None, mark if level == len(self._levels) - 1 else None
        # A level whose current item is open has no mark: the item itself is compared.
        return _kind_in(mark, level), mark["inner"] if len(mark["outer"]) == level else None

    def _open(self, level: int, reader: Any) -> _Open:
        return _Open(tuple(self._kinds[: level + (reader is not None)]), tuple(self._outer[:level]), reader)

    def _notes(self, level: int, reader: Any, cursor: Any, kept: Any) -> _Notes:
        return self._open(level, reader), cursor, kept

    def _kept_of(self, reader: Any, item: Any) -> Any:
        return reader.keep_of(item).of(item) if self.checks and reader.checks else None

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

    def _innermost_items(self, above: Any, reader: Any, cursor: Any, mark: Any, repeat: Repeat | None) -> Pairs:
        level = len(above)
        kind, reader_mark = self._saved(mark, level, cursor)
        self._kinds[level] = reader.kind or kind
        keep: Keep | None = None
        of: _Open | None = None
        checks, noted = self.checks, self._noted
        for pair in _opened(reader, cursor, (kind, reader_mark), repeat):
            if of is None or reader.kind != of.kinds[-1]:
                self._kinds[level] = reader.kind
                of = self._open(level, reader)
            if isinstance(pair, NoItem):
                yield from _told(pair, pair.cursor, self._notes(level, reader, pair.cursor, pair.kept))
                continue
            item, after = pair
            if keep is None and reader.checks and checks:
                keep = reader.keep_of(item)
            found = (*above, item)
            if not checks:
                noted.clear()  # nothing is kept of batches
            noted[id(found)] = found, (of, after, None if keep is None else keep.of(item))
            yield found, after

    def keep_of(self, item: Any) -> Keep:
        """Keep the notes made when the item was read."""
        return Keep(make=self._notes_of)

    def _notes_of(self, item: Any) -> _Notes | None:
        """Return the notes on an item, and forget those before it: a batch may have been read beyond it."""
        noted = self._noted
        while noted:
            found, notes = noted.pop(next(iter(noted)))
            if found is item:
                return notes
        return None

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint of the item before a cursor."""
        if kept is None or isinstance(kept, _Taken):
            return kept or NONE
        (kinds, outer, reader), at, inner = kept
        mark, has_all = None, all(one[1] is not None for one in outer)
        if reader is not None:
            mark = reader.mark(at, inner) if self.checks else None
            has_all = has_all and (not reader.checks or reader.taken(at, inner).digest is not None)
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
        raise Unreadable(unreadable.error, (unreadable.after, None, None)) from unreadable


_ADVICE = (
    "Each level of nested sources that is read by position needs the same items in each execution; read it by key: a "
    "queryset, a select, keyed(rows, key=...)."
)


def _kind_in(mark: Any, level: int, default: Any = None) -> Any:
    """Return the kind that was saved of a level; the deepest ones may not have been open."""
    kinds = mark["kinds"] if isinstance(mark, dict) else ()
    return (kinds[level] if level < len(kinds) else None) or default


class _Repeats:
    """What is repeated of a level.

    Args:
        expected: the outer cursor after the current item, or None between two items.
        repeat: what is repeated of the tuples, if they are those of an outer item themselves.
    """

    def __init__(self, expected: Any, repeat: Repeat | None) -> None:
        self._repeat = repeat  # None once all of it has been read
        self.outer = None if expected is None else Repeat(expected)
        if repeat is not None:
            self.outer = Repeat(_part(repeat.until, 1), repeat.most)

    def inner(self, after: Any) -> Repeat | None:
        """Return what is repeated of the inner source of the outer item with this cursor."""
        repeat = self._repeat
        if repeat is None:
            return None
        if after == _part(repeat.until, 1):
            self._repeat = None
            return Repeat(_part(repeat.until, 2), repeat.most)
        if repeat.most == 1:
            self._repeat = None  # the outer item is gone
            return None
        return Repeat(_NEVER, repeat.most)


def _part(cursor: Any, index: int) -> Any:
    return _NEVER if cursor is _NEVER else cursor[index]


def _opened(reader: Any, cursor: Any, saved: tuple[str | None, Any], repeat: Repeat | None) -> Pairs:
    pairs: Pairs = reader.resume(cursor, *saved) if repeat is None else reader.repeat(cursor, *saved, repeat)
    return pairs


def _told(place: NoItem, cursor: Any, notes: Any) -> Pairs:
    """Yield a place of a level as a place of the whole."""
    told = NoItem(cursor, notes) if place.has_moved else NoItem()
    yield told
    place.was_due = told.was_due


def _place(cursor: Any) -> tuple[Any, Any, Any]:
    if type(cursor) is not tuple or len(cursor) != 3:
        raise InvalidStepError(f"nested sources cannot be read from {cursor!r}: that is not one of their cursors")
    return cursor
