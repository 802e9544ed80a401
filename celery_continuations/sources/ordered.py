"""Rows in the order of a unique key, from any origin: resumed after the last key that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Any, TypeVar

from celery_continuations.core import codec
from celery_continuations.core.reader import NoItem, OtherKind, Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Source
from celery_continuations.sources.positions import close_generator
from celery_continuations.sources.reading import checked, items_only
from celery_continuations.sources.refused import refusal_of

__all__ = ["keyed", "keyed_pages"]

Row = TypeVar("Row")
Key = TypeVar("Key")

_NOTHING: Any = object()

# How many rows that are done are skipped between two checkpoints.
_SKIPPED = 1000


def _key_of(key: Any) -> Callable[[Any], Any]:
    """Return a function from a row to its key."""
    if callable(key):
        return key  # type: ignore[no-any-return]
    if not isinstance(key, (str, int)) or isinstance(key, bool):
        raise InvalidStepError(
            f"key={key!r} is not a key; give the name or the index of a column, or a function of a row"
        )

    def column(row: Any) -> Any:
        if isinstance(key, str) and not isinstance(row, Mapping) and hasattr(row, key):
            return getattr(row, key)
        try:
            return row[key]
        except (KeyError, IndexError, TypeError) as exc:
            raise InvalidStepError(f"the row {row!r:.200} has no {key!r}, the name of its key") from exc

    return column


def _kind(key: Any, descending: bool = False) -> str:
    return f"key {'-' if descending else ''}{'of a function' if callable(key) else key}"


class _Keyed(BaseReader):
    """A cursor is the key of the last row done."""

    def __init__(self, rows: Any, key: Any, descending: bool) -> None:
        self._rows = rows
        self._key_of = _key_of(key)
        self._descending = descending
        self._total = len(rows) if hasattr(rows, "__len__") else None
        self.kind = _kind(key, descending)

    def read(self, cursor: Any) -> Pairs:
        """Yield the rows after a key, and check the order of all."""
        return items_only(self._rows_after(cursor))

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Yield the rows after a key; also notice a command or a lost lease while earlier rows are skipped."""
        self.refuse_other(kind)
        self._reading = self._rows_after(cursor)
        return checked(self._reading, self.step)

    def _rows_after(self, cursor: Any) -> Pairs:
        last, before = _NOTHING, None
        for number, row in enumerate(self._rows() if callable(self._rows) else self._rows, 1):
            key = self._key_of(row)
            if last is not _NOTHING and not self._follows(last, key):
                order = "descending" if self._descending else "ascending"
                raise InvalidStepError(
                    f"rows are not in {order} order of a unique key: row {number:,} has {key!r} after {last!r} "
                    f"({before!r:.200} and {row!r:.200}); sort them by this key, or pass a key that is unique",
                    found=self.step,
                )
            if last is _NOTHING and key is None:
                raise InvalidStepError(f"the row {row!r:.200} has no key: None has no order", found=self.step)
            last, before = key, row
            if cursor is None or self._follows(cursor, key):
                yield row, key
            elif number % _SKIPPED == 0:
                yield NoItem()

    def _follows(self, first: Any, second: Any) -> bool:
        try:
            return bool(second < first if self._descending else second > first)
        except TypeError as exc:
            raise InvalidStepError(f"the keys {first!r} and {second!r} have no order: {exc}", found=self.step) from exc

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of all rows, if they have a length."""
        return None, self._total

    def close(self) -> None:
        """Close the iterator over the rows, and rows that are a generator."""
        super().close()
        close_generator(self._rows)


def keyed(
    rows: Iterable[Row] | Callable[[], Iterable[Row]],
    key: str | int | Callable[[Row], Any],
    descending: bool = False,
) -> Source[Row]:
    """Return rows in strictly ascending order of a unique key, resuming after the last key that is done.

    Rows that are deleted or inserted between two executions do no harm; those inserted before the place reached are
    not visited.  The order is checked as the rows are read.

    Args:
        rows: an iterable, or a function that returns one.
        key: the name or index of a column, or a function from a row to its key: a number, text, date, UUID, or a tuple
            of these.
        descending: whether the keys descend.

    Raises:
        InvalidStepError: while the loop runs, for two rows that are not in this order.

    >>> rows = [{"id": 3}, {"id": 7}, {"id": 8}]
    >>> list(keyed(rows, key="id").read(3))
    [({'id': 7}, 7), ({'id': 8}, 8)]
    >>> list(keyed(["b", "a"], key=str.lower).read(None))
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.InvalidStepError: rows are not in ascending order of a unique key: row 2 has 'a' after 'b' ('b' and 'a'); sort them by this key, or pass a key that is unique
    """  # noqa: E501
    if isinstance(rows, (str, bytes)) or not (callable(rows) or hasattr(rows, "__iter__")):
        raise InvalidStepError(f"keyed takes an iterable of rows, or a function that returns one, not {rows!r:.80}")
    refusal = refusal_of(rows)
    if refusal is not None:
        refusal(rows)
    return _Keyed(rows, key, descending)


class _KeyedPages(BaseReader):
    """A cursor is the key of the last row done.

    Keys that are numbers or dates must ascend, or descend; texts may have any order.
    """

    def __init__(self, fetch: Callable[[Any], Iterable[Any]], key: Any) -> None:
        self._fetch = fetch
        self._key_of = _key_of(key)
        self._key = _kind(key)
        self._descends: bool | None = None  # None while only one key has been seen, and for texts

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The key, and its order once it is known."""
        order = {None: "", False: ", ascending", True: ", descending"}
        return self._key + order[self._descends]

    def refuse_other(self, kind: str | None) -> None:
        """Refuse the cursor of another key; take the order from the saved kind, if it has one."""
        key, _, order = (kind or self._key).partition(", ")
        if key != self._key:
            raise OtherKind(str(kind), self.kind)
        self._descends = order == "descending" if order else None

    def read(self, cursor: Any) -> Pairs:
        """Yield the rows of one page after another, until one is empty."""
        last = cursor
        while True:
            rows = list(self._fetch(last))
            if not rows:
                return
            asked = last
            for row in rows:
                key = self._key_of(row)
                self._check(row, key, last, asked)
                last = key
                yield row, key

    def _check(self, row: Any, key: Any, last: Any, asked: Any) -> None:
        problem: str | None = None
        if key is None:
            problem = "has no key"
        elif key != key:
            problem = f"has the key {key!r}, which has no order"
        elif key == last:
            problem = f"has the key {key!r} of the previous row"
        elif key == asked:
            problem = f"has the key {key!r}, after which rows were requested"
        elif last is not None and isinstance(key, _ORDERED) and isinstance(last, _ORDERED):
            descends = self._is_before(key, last)
            if self._descends is None:
                self._descends = descends
            if descends is not self._descends:
                problem = f"has the key {key!r} after {last!r}, against the order of the previous rows"
        if problem is not None:
            raise InvalidStepError(
                f"the row {row!r:.200} {problem}; return the rows after the given key, in the order of "
                "their keys, each with a key of its own",
                found=self.step,
            )
        codec.encode(key, "a key of keyed_pages")

    def _is_before(self, first: Any, second: Any) -> bool:
        try:
            return bool(first < second)
        except TypeError as exc:
            raise InvalidStepError(f"the keys {first!r} and {second!r} have no order: {exc}", found=self.step) from exc


# Types of keys that must have the order of the rows.
_ORDERED = (int, float, Decimal, date)


def keyed_pages(fetch: Callable[[Key | None], Iterable[Row]], *, key: str | int | Callable[[Row], Key]) -> Source[Row]:
    """Return rows from a function that fetches the rows after a key, until it returns none.

    For databases without an ORM, and for APIs that page by the last id.  No cursor stays open between two calls.

    Args:
        fetch: called with the key of the last row that is done, None at the beginning; returns the next rows, in the
            order of their key.
        key: the name or index of a column, or a function from a row to its key.

    >>> users = [(1, "ann"), (2, "bob"), (5, "eve")]
    >>> def users_after(last):
    ...     return [user for user in users if user[0] > (last or 0)][:2]
    >>> list(keyed_pages(users_after, key=0).read(None))
    [((1, 'ann'), 1), ((2, 'bob'), 2), ((5, 'eve'), 5)]
    >>> list(keyed_pages(users_after, key=0).read(2))
    [((5, 'eve'), 5)]
    """
    if not callable(fetch):
        raise InvalidStepError(f"keyed_pages takes a function from the last key to the next rows, not {fetch!r:.80}")
    return _KeyedPages(fetch, key)
