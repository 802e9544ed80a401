"""Sequences and iterables, read by position and checked at each resumption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from types import GeneratorType
from typing import Any

from celery_continuations.core.reader import Counted, Keep, OtherKind, Pairs, Print, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.fingerprint import (
    NONE,
    Identity,
    identity_of,
    is_immutable,
    print_again,
    print_of,
    print_of_copy,
    scalar_parts,
    shown,
)
from celery_continuations.sources.reading import Repeat, repeated

__all__ = ["AUTO", "Identify", "Positions", "Prints", "close_generator"]

Identify = Callable[[Any], Any]

#: Distinguish items by their identity or value; see :mod:`celery_continuations.sources.fingerprint`.
AUTO: Any = object()

# How many items are searched for the last one that was done, to report where it is now.
_LOOKED_THROUGH = 100_000

# How many items are checked for their classes, to choose how to keep them.
_LOOKED_AT = 1000


class Prints:
    """Takes the fingerprints of the items of one loop.

    Args:
        identity: a function from an item to its identity; None for no check; :data:`AUTO`.

    Attributes:
        keep: how the items are kept until their fingerprint is taken.
    """

    def __init__(self, identity: Identify | None = AUTO) -> None:
        self.identity = identity
        self.keep = Keep()

    def of(self, item: Any) -> Print:
        """Return the fingerprint of an item."""
        if self.identity is None:
            return NONE
        if self.identity is AUTO:
            return print_of(item)
        value = self.identity(item)
        text = shown(value)
        return Print(print_of(value).digest, None if text is None else f"id {text}")

    def again(self, item: Any, digest: str) -> Print:
        """Return the fingerprint of an item, to be compared with this digest."""
        return print_again(item, digest) if self.identity is AUTO else self.of(item)

    def keep_of(self, item: Any, by_position: bool = False, is_mixed: bool = False) -> Keep:
        """Choose how to keep items like this one, or, if they are mixed, items of any class."""
        keep = Keep(make=self.of) if is_mixed and self.identity is AUTO else self._choose(item)
        self.keep = keep._replace(by_position=by_position)
        return self.keep

    def _choose(self, item: Any) -> Keep:
        if self.identity is None:
            return Keep(same=True)  # no check: the cheapest
        if self.identity is not AUTO:
            return Keep(make=self.of)
        if is_immutable(item):
            return Keep(same=True)
        found = identity_of(item)
        if found is not None:
            # "id" comes before the other names: it identifies an item that has several of them.
            if type(item) is dict and found.of == "id":
                return Keep(exact=dict, by_id=type(item["id"]), make=_identity_or_print)
            return Keep(make=_identity_or_print)
        if type(item) in (dict, list) and scalar_parts(item):
            return Keep(exact=type(item), make=print_of)
        return Keep(make=print_of)

    def taken(self, kept: Any) -> Print:
        """Return the fingerprint of what was kept of an item."""
        if self.identity is None:
            return NONE
        if isinstance(kept, Print):
            return kept
        if self.keep.same:
            if is_immutable(kept):
                return print_of(kept)
            return print_of_copy(kept) if isinstance(kept, tuple) else NONE
        if isinstance(kept, Identity):
            return print_of(kept)
        if self.keep.exact is None:
            return NONE
        return print_of({"id": kept}) if self.keep.by_id is not None else print_of_copy(kept)


def _identity_or_print(item: Any) -> Any:
    return identity_of(item) or print_of(item)


class Positions:
    """A sequence, range or iterable, by position.

    A save keeps the number of items, and the fingerprint of the last one that was done.  A resumption compares it with
    the item at that position.

    >>> list(Positions("a b c".split(), "letters").read(1))
    [('b', 2), ('c', 3)]
    """

    kind: str | None = "position"
    uses = 1
    is_batched = False
    step: str | None

    def __init__(self, items: Any, step: str | None = None) -> None:
        self._items = items
        self.step = step
        self._total = len(items) if hasattr(items, "__len__") else None
        self._prints = Prints()
        self._is_mixed: bool | None = None

    @property
    def checks(self) -> bool:
        """Whether items are compared with those of earlier executions."""
        return self._prints.identity is not None

    def identify(self, identity: Identify | None) -> None:
        """Distinguish items by the return value of this function; with None switch the check off."""
        self._prints = Prints(identity)

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the position after each."""
        return self.resume(cursor, None, ACCEPTED)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Yield items from a position on, if the one before it is the one that was done.

        Raises:
            OtherKind: for the cursor of another kind of source.
            SourceChanged: when the items are not those of an earlier execution.
        """
        if kind not in (None, "position"):
            if kind.startswith("key ") and self._total == 0:
                return iter(())  # a list of model instances was read by key, and all of them are gone
            raise OtherKind(str(kind), "position")
        start = 0 if cursor is None else cursor
        if type(start) is not int or start < 0:
            where = "a source" if self.step is None else f"step {self.step!r}"
            raise InvalidStepError(f"{where} iterates by position and cannot start at {cursor!r}", found=self.step)
        if start == 0 or mark == ACCEPTED or not self.checks:
            return Counted(self._rest(start), start)
        rest = self._rest(start - 1)
        self._compare(next(rest, _END), start, mark)
        return Counted(rest, start)

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Read from a position on, as :meth:`resume`, where the first items are read again."""
        return repeated(self, cursor, kind, mark, repeat)

    def _rest(self, start: int) -> Iterator[Any]:
        items = self._items
        if type(items) is list or type(items) is tuple:
            rest: Any = iter(items)
            rest.__setstate__(start)  # as unpickling does: at once, where islice would pass each item
            return rest  # type: ignore[no-any-return]
        if isinstance(items, (list, tuple)) or not isinstance(items, Sequence):
            return islice(items, start, None)
        if isinstance(items, range):
            return iter(items[start:])
        return map(items.__getitem__, range(start, len(items)))

    # -- what is saved beside a cursor

    def keep_of(self, item: Any) -> Keep:
        """Choose how to keep items like this one."""
        if self._is_mixed is None:
            items = self._items[:_LOOKED_AT] if isinstance(self._items, (list, tuple)) else ()
            self._is_mixed = len(set(map(type, items))) > 1
        return self._prints.keep_of(item, by_position=True, is_mixed=self._is_mixed)

    def taken(self, cursor: Any, kept: Any) -> Print:
        """Return the fingerprint of the item before a cursor."""
        if isinstance(self._items, range):
            return _print_of_range(self._items)
        return self._prints.taken(kept)

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Return the length and the fingerprint, with the id that may be shown."""
        if not self.checks:
            return None
        return [self._total, *self.taken(cursor, kept)]

    def _compare(self, item: Any, done: int, mark: Any) -> None:
        length, digest, before = mark if mark is not None else (None, None, None)
        if item is _END:
            found = self._total if self._total is not None else f"fewer than {done:,}"
            raise SourceChanged(f"{done:,} items of this loop were done, but it has {found} now", self._advice(None))
        if isinstance(self._items, range):
            if digest not in (None, _print_of_range(self._items).digest):
                raise SourceChanged(
                    f"its range has another start or step than when {done:,} of its items were done, or was another "
                    f"source; it is {self._items!r} now",
                    "A loop over a range needs the same start and step in each execution; its stop may grow.",
                )
            return
        if digest is None:
            if length is not None and self._total is not None and self._total < length:
                raise SourceChanged(
                    f"it had {length:,} items when {done:,} of them were done, and has {self._total:,} now; its "
                    "items have no identity that would show which ones are gone",
                    self._advice(item),
                )
            return
        now = self._prints.again(item, digest)
        if now.digest != digest:
            raise SourceChanged(self._difference(done, length, Print(digest, before), now), self._advice(item))

    def _difference(self, done: int, length: int | None, before: Print, now: Print) -> str:
        text = f"item {done:,} of this loop was done and has changed"
        if before.shown and now.shown:
            text += f": then {before.shown}, now {now.shown}"
        known = [self._place_of(before)]
        if length is not None and self._total is not None:
            known.append(f"{length:,} items then, {self._total:,} now")
        known = [one for one in known if one]
        return f"{text} ({'; '.join(known)})" if known else text

    def _place_of(self, before: Print) -> str:
        if not isinstance(self._items, Sequence) or isinstance(self._items, range):
            return ""
        name = before.shown or "it"
        for number, item in enumerate(islice(self._items, _LOOKED_THROUGH), 1):
            if before.digest is not None and self._prints.again(item, before.digest).digest == before.digest:
                return f"{name} is item {number:,} now"
        return f"{name} is not among them now" if len(self._items) <= _LOOKED_THROUGH else ""

    def _advice(self, item: Any) -> str:
        step = self.step or "..."
        model = type(item).__name__ if identity_of(item) and hasattr(type(item), "_meta") else "Model"
        lines = {
            f"self.iterate({step!r}, {model}.objects.filter(...))": "a queryset or a select: read by key",
            f"self.iterate({step!r}, keyed(rows, key='id'))": "rows in ascending order of a unique key",
            f"self.iterate({step!r}, rows, identity=lambda row: row['sku'])": "the same item with other values",
        }
        width = max(map(len, lines))
        return "A loop by position needs the same items in each execution. Write one of\n" + "\n".join(
            f"    {line.ljust(width)}  # {why}" for line, why in lines.items()
        )

    # -- how much

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of items done, and of all if it is known."""
        done = 0 if cursor is None else cursor
        return (done if type(done) is int else None), self._total

    def count(self) -> int:
        """Refuse to count the items.

        Raises:
            InvalidStepError: always: a length is known without counting.
        """
        raise InvalidStepError(
            f"step {self.step!r}: total='count' needs a queryset or a select; the items of a "
            f"{type(self._items).__name__} cannot be counted without reading them: write total= with their number",
            found=self.step,
        )

    def close(self) -> None:
        """Close a generator: it is of no use to another loop."""
        close_generator(self._items)


_END = object()


def close_generator(items: Any) -> None:
    """Close a generator; leave anything else open, which may belong to the task."""
    if isinstance(items, GeneratorType):
        items.close()


def _print_of_range(items: range) -> Print:
    return _print_of_start(items.start, items.step)


@lru_cache
def _print_of_start(start: int, step: int) -> Print:
    return print_of(("range", start, step))
