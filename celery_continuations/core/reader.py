"""What a loop needs from its source: a reader, and the types that the two exchange."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol

from celery_continuations.exceptions import InvalidStepError

__all__ = [
    "COUNTS",
    "NOTHING",
    "STOPS",
    "Counted",
    "Keep",
    "NoItem",
    "Opened",
    "OtherKind",
    "Pairs",
    "Print",
    "Reader",
    "SourceChanged",
    "Throttled",
    "Unreadable",
    "close",
]

_SAME: Any = object()


class NoItem:
    """Yield it from a source in place of ``(item, cursor)``, where the source has read something and found no item.

    It is a checkpoint: a stop is noticed, and with a ``cursor`` the place is saved.

    Args:
        cursor: the place that the source has reached; leave it out where it has not moved.

    Attributes:
        kept: of the item before the cursor; see :meth:`Reader.mark`.
        was_due: whether the checkpoint had something to do, once the source continues.

    >>> class Even:
    ...     def read(self, cursor):
    ...         for number in range(cursor or 0, 4):
    ...             yield NoItem(number + 1) if number % 2 else (number, number + 1)
    >>> list(Even().read(None))
    [(0, 1), NoItem(2), (2, 3), NoItem(4)]
    """

    __slots__ = ("cursor", "kept", "was_due")

    def __init__(self, cursor: Any = _SAME, kept: Any = None) -> None:
        self.cursor = cursor
        self.kept = kept
        self.was_due = False

    @property
    def has_moved(self) -> bool:
        """Whether the source has reached another place."""
        return self.cursor is not _SAME

    def __iter__(self) -> Iterator[Any]:
        raise InvalidStepError(
            f"{self!r} of a source was unpacked like a pair; a source that reads another one must yield it unchanged: "
            "`if isinstance(pair, NoItem): yield pair`"
        )

    def __repr__(self) -> str:
        return f"NoItem({self.cursor!r})" if self.has_moved else "NoItem()"


#: Items of a source, each with the cursor after it, or :class:`NoItem`.
Pairs = Iterator[tuple[Any, Any] | NoItem]


class Counted(Iterator[tuple[Any, int]]):
    """Pairs of a source read by position: the cursor after an item is the number of items up to and including it.

    Args:
        items: the remaining items.
        done: the number of items before them.
    """

    __slots__ = ("done", "items")

    def __init__(self, items: Iterator[Any], done: int) -> None:
        self.items = items
        self.done = done

    def __next__(self) -> tuple[Any, int]:
        item = next(self.items)
        self.done += 1
        return item, self.done

    def zipped(self) -> Iterator[tuple[Any, int]]:
        """Return the same pairs as a zip made in C, which is cheaper to read than this iterator."""
        return zip(self.items, count(self.done + 1), strict=False)


def close(opened: Any) -> None:
    """Close an iterator that a loop has opened, if it can be closed."""
    if hasattr(opened, "close"):
        opened.close()


class Throttled(BaseException):
    """Raised by a source that must not be read now.

    Attributes:
        seconds: the time until the next attempt.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class SourceChanged(Exception):
    """Raised by a reader whose source has changed.

    Attributes:
        problem: what has changed.
        advice: what to write instead.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice


class Unreadable(Exception):
    """Raised by a source that cannot read an item, but can continue after it.

    Attributes:
        error: what the loop raises, or counts as a failed item.
        after: the cursor after the item.
    """

    def __init__(self, error: Exception, after: Any) -> None:
        super().__init__(error, after)
        self.error = error
        self.after = after


#: What ends a reading that can begin again: the items before it are done first.
STOPS = (Throttled, Unreadable)


class OtherKind(Exception):
    """Raised by a reader for a cursor with another meaning than its own.

    Attributes:
        saved: the meaning of the cursor.
        found: the meaning of the reader's cursors.
    """

    def __init__(self, saved: str, found: str) -> None:
        super().__init__(saved, found)
        self.saved = saved
        self.found = found


class Keep(NamedTuple):
    """What to keep of each item before the loop's body can change it, for its fingerprint at a save.

    Attributes:
        by_position: whether the cursor tells how much is done, so that the loop need not count.
        same: keep the item itself, which is immutable.
        exact: keep a shallow copy, or the id, of items of exactly this class.
        by_id: keep their "id" instead of the copy, if it is of exactly this class.
        make: makes what to keep of any other item; None to keep nothing.
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

#: Nothing is kept or counted.
COUNTS = Keep(by_position=True)


class Print(NamedTuple):
    """The fingerprint of an item.

    Attributes:
        digest: twelve hexadecimal digits (48 bits); None if the item has no fingerprint.
        shown: the item's id, if operators may see it.
    """

    digest: str | None
    shown: str | None = None


class Reader(Protocol):
    """A source as one execution of a loop reads it.

    Attributes:
        kind: the meaning of its cursors; None while unknown.
        checks: whether its items are compared with those of earlier executions.
        uses: the snapshot format version that its cursors need.
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
        """Read from a cursor, after checking what an earlier execution saved with it.

        Raises:
            OtherKind, SourceChanged: also later, while the pairs are read.
        """

    def keep_of(self, item: Any) -> Keep:
        """Return what to keep of items like this one."""

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint, with a ``digest``, of the item before a cursor, of which ``kept`` was kept."""

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Return what to save with a cursor, as JSON; ``kept`` is of the item before it, or its fingerprint."""

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of items done and of all items; None for what the reader does not know."""

    def count(self) -> int:
        """Count the items, if that takes a query.  Raises InvalidStepError if they cannot be counted."""

    def close(self) -> None:
        """Close what was opened for this loop, however the loop has ended."""


class Opened(NamedTuple):
    """An open source.

    Attributes:
        reader: the reader of the source.
        total: the number of items, if the caller knows it, or ``"count"`` to count them.
    """

    reader: Reader
    total: int | str | None = None
