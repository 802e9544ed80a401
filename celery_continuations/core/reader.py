"""What a loop needs of its source: a reader, and what the two say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol

__all__ = [
    "NOTHING",
    "Counted",
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


class Counted(Iterator[tuple[Any, int]]):
    """Pairs of a source that is read by position: the cursor after an item is the number of items before it and it.

    Args:
        items: that are still to come.
        done: how many came before them.
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
        """Return the same pairs, made in C, to be read instead of these: reading many of them is cheap."""
        return zip(self.items, count(self.done + 1), strict=False)


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


class Print(NamedTuple):
    """The fingerprint of an item.

    Attributes:
        digest: twelve hexadecimal digits, which are 48 bits; None for an item of which none can be taken.
        shown: the item's id, where it may be shown to an operator.
    """

    digest: str | None
    shown: str | None = None


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
