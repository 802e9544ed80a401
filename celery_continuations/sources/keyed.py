"""Rows of a table by a unique key, one chunk per query: the last row is found as fast as the first.

A cursor is the key of the last row that is done, a tuple if the key has several columns.  The next chunk has the rows
after it, so rows that are deleted or inserted meanwhile do not affect the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import chain, pairwise
from operator import eq
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from celery_continuations.core.reader import NoItem
from celery_continuations.core.typevars import Item_co
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader

__all__ = ["Column", "KeyedSource", "Unsaveable", "after", "cannot_be_key", "following", "saveable"]

Condition = TypeVar("Condition")


class Column(NamedTuple):
    """A column of the key.

    Attributes:
        name: its name, as saved with cursors.
        column: the library's own object.
        descending: whether its order is descending.
        type: the type of the column, for messages.
    """

    name: str
    column: Any
    descending: bool
    type: str = ""


class KeyedSource(BaseReader, Generic[Item_co]):
    """A queryset or a select that is read by key, in chunks.

    Args:
        chunk: rows per query.
    """

    #: Columns of the key, in their order.
    key: Sequence[Column]

    #: Whether the type of the column makes keys integers, if they are not NULL.
    has_integers = False

    #: What to write in place of a join that repeats rows, for messages.
    without_repeats = ""

    def __init__(self, chunk: int) -> None:
        if type(chunk) is not int or chunk < 1:
            raise InvalidStepError(f"chunk must be an int of 1 or more, not {chunk!r}")
        self.chunk = chunk

    def read(self, cursor: Any) -> Iterator[tuple[Item_co, Any] | NoItem]:
        """See :class:`Source`."""
        raise NotImplementedError

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The key: a cursor is valid for no other."""
        return f"key {self.named_after()}({', '.join(f'{_sign(one)}{one.name}' for one in self.key)})"

    def named_after(self) -> str:
        """Return the name of the table or model, unless the names of the columns have it."""
        return ""

    def settled(self, keys: list[Any], last: Any) -> list[Any]:
        """Return keys in a form that can be saved; refuse two rows with one key, or a row with that of ``last``."""
        if self.has_integers:
            found = set(keys)  # the fastest way to see that nothing is wrong
            if len(found) == len(keys) and last not in found and None not in found:
                return keys
        try:
            keys = saveable(keys, several=len(self.key) > 1)
        except Unsaveable as exc:
            raise self.unsaveable(self.key[exc.column], exc.value) from None
        if any(map(eq, chain([last], keys), keys)):
            raise self.repeated(next(first for first, second in pairwise(chain([last], keys)) if first == second))
        return keys

    def verify(self, keys: list[Any], vendor: str, matching: Callable[[list[Any], Sequence[int]], list[Any]]) -> None:
        """Refuse keys that do not find their rows: the database stores another value than it returns.

        A condition on such a key would leave out rows that share its first columns, or return them again.

        Args:
            keys: keys of rows that were just read.
            vendor: the name of the database.
            matching: returns the keys of the rows that have one of the given keys' values in each of the given columns.
        """
        if len(self.key) == 1 or not keys:
            return  # a row that is found again is refused; none is left out
        doubtful = _DOUBTFUL if vendor == "sqlite" else _ROUNDED
        places = [place for place in range(len(self.key)) if any(type(key[place]) in doubtful for key in keys)]
        if not places:
            return
        for key in set(keys).difference(matching(keys, range(len(self.key)))):
            exact = [place for place in range(len(self.key)) if place not in places]
            # It may also be gone, or changed, since it was read.
            if not exact or key in matching([key], exact):
                names = ", ".join(self.key[place].name for place in places)
                raise InvalidStepError(
                    f"rows cannot be read by {self._names}: the row with the key {key!r} is not found by that, because "
                    f"the database stores more or less of {names} than it returns; order by other columns, or write "
                    "the values again",
                    found=self.step,
                )

    def unsaveable(self, column: Column, value: Any) -> InvalidStepError:
        """Return the error for a value that has no order, or cannot be saved."""
        if value is None:
            return InvalidStepError(
                f"a row has NULL in {column.name}, a column of its order, and nothing comes after NULL: exclude such "
                "rows, or remove the column from the order",
                found=self.step,
            )
        return cannot_be_key(column, f"its value {value!r:.80} is of type {type(value).__name__}", self.step)

    def repeated(self, key: Any) -> InvalidStepError:
        """Return the error for two rows that have the same key."""
        return InvalidStepError(
            f"two rows have the key {key!r} ({self._names}). If a join repeats rows, {self.without_repeats}. If the "
            "column is not unique in its table, order by columns that are unique together. If the database stores it "
            "with more precision than Python, order by another column",
            found=self.step,
        )

    def check(self, cursor: Any) -> None:
        """Refuse a cursor that is not a key."""
        count = len(self.key)
        fits = type(cursor) is tuple and len(cursor) == count if count > 1 else not isinstance(cursor, (tuple, list))
        if not fits:
            raise InvalidStepError(
                f"rows by {self._names} cannot be read from {cursor!r}: that is not a value of this key"
            )

    @property
    def _names(self) -> str:
        names = [column.name for column in self.key]
        return names[0] if len(names) == 1 else f"({', '.join(names)})"


def cannot_be_key(column: Column, problem: str, step: str | None = None) -> InvalidStepError:
    """Return the error for a column whose values have no order, or cannot be saved."""
    return InvalidStepError(
        f"rows cannot be read by {column.name} ({column.type}): {problem}, which cannot be saved as a cursor; order by "
        "a unique column of numbers, texts, dates, UUIDs or bytes, or by several that are unique together",
        found=step,
    )


def _sign(column: Column) -> str:
    return "-" if column.descending else ""


def after(
    key: Sequence[Column],
    cursor: Any,
    compare: Callable[[Column, str, Any], Condition],
    both: Callable[[Condition, Condition], Condition],
    either: Callable[[Condition, Condition], Condition],
) -> Condition:
    """Build the condition for rows after ``cursor``, out of comparisons of single columns.

    It is ``a >= 1 AND (a > 1 OR (a = 1 AND b > 2))``: the first part lets the database use an index.

    Args:
        key: the columns.
        cursor: a value of the key.
        compare: makes a comparison from a column, an operator (``gt``, ``lt``, ``gte``, ``lte`` or ``exact``), a value.
        both: joins two conditions.
        either: joins two conditions.

    >>> def text(column, operator, value):
    ...     return f"{column.name} {operator} {value}"
    >>> key = [Column("a", None, False), Column("b", None, True)]
    >>> after(key, (1, 2), text, "({} and {})".format, "({} or {})".format)
    '(a gte 1 and (a gt 1 or (a exact 1 and b lt 2)))'
    >>> after(key[:1], 1, text, "({} and {})".format, "({} or {})".format)
    'a gt 1'
    """
    values = cursor if len(key) > 1 else (cursor,)
    *before, (column, value) = zip(key, values, strict=True)
    condition = compare(column, _beyond(column), value)
    for column, value in reversed(before):
        same = both(compare(column, "exact", value), condition)
        condition = either(compare(column, _beyond(column), value), same)
    if not before:
        return condition
    column, value = before[0]
    return both(compare(column, _beyond(column) + "e", value), condition)


def _beyond(column: Column) -> str:
    return "lt" if column.descending else "gt"


def following(key: Sequence[Column]) -> bool | None:
    """Return True if all columns ascend, False if all descend, and None if they differ."""
    directions = {column.descending for column in key}
    return None if len(directions) > 1 else not directions.pop()


class Unsaveable(Exception):
    """Raised for a key that has no order, or that cannot be saved.

    Attributes:
        column: the number of the column.
        value: the value in it.
    """

    def __init__(self, column: int, value: Any) -> None:
        super().__init__(column, value)
        self.column = column
        self.value = value


# Types of values that a database may return in another form than it stores: as text or as a floating point number of
# any precision in SQLite, as a number of lower precision in others.
_ROUNDED = frozenset((float, Decimal))
_DOUBTFUL = _ROUNDED | {datetime, date, time, timedelta, UUID}

# Types that are saved unchanged.
_PLAIN = frozenset((bool, int, float, str, Decimal, date, time, timedelta, UUID, bytes))


def saveable(keys: list[Any], several: bool) -> list[Any]:
    """Return the keys in types that can be saved; usually they have such types.

    Raises:
        Unsaveable: for a value of another type, and for None.
    """
    kinds = set(map(type, chain.from_iterable(keys) if several else keys))
    if kinds <= _PLAIN:
        return keys
    if several:
        return [tuple(_exact(number, value) for number, value in enumerate(key)) for key in keys]
    return [_exact(0, key) for key in keys]


def _exact(column: int, value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if type(value) is datetime:
        # As UTC: drivers have time zone classes that cannot be saved.
        return value if value.tzinfo is None else value.astimezone(timezone.utc)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, UUID):
        return UUID(int=value.int)  # some drivers have their own class
    raise Unsaveable(column, value)
