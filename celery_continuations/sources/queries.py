"""Iterables that would run a query in each execution and read its rows by position: read by key, or refused."""

from __future__ import annotations

import inspect
from types import GeneratorType
from typing import Any

from celery_continuations.core.reader import OtherKind, Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader
from celery_continuations.sources.positions import Positions
from celery_continuations.sources.refused import Refusal

__all__ = ["REFUSED", "requeried"]

_SELECT = "iterate over select_rows(session, select), which reads by key"
_RESULT = f"it is the result of a query, which may differ each time it runs; {_SELECT}"
_UNORDERED = f"it yields its objects in no order; {_SELECT}"
#: Classes by their dotted names, and what to write instead of iterating over one.
REFUSED = {
    "django.db.models.query.RawQuerySet": (
        "the rows of raw() are the result of a query, which may differ each time it runs; iterate over a "
        "queryset, as Model.objects.filter(...), or over keyed_pages(fetch, key='id') with the SQL in fetch"
    ),
    "django.core.paginator.Paginator": (
        "a Paginator cuts a query into pages in each execution; iterate over its queryset, paginator.object_list, "
        "which is read by key in chunks, with batch= for lists of rows"
    ),
    "sqlalchemy.orm.session.Session": _UNORDERED,
    "sqlalchemy.orm.scoping.scoped_session": _UNORDERED,
    "sqlalchemy.engine.result.Result": _RESULT,
    "sqlalchemy.engine.result.FilterResult": _RESULT,
    "flask_sqlalchemy.pagination.Pagination": (
        f"it is one page of a query, which may differ each time it runs; {_SELECT}, with batch= for lists of rows"
    ),
}


def requeried(value: Any) -> Any:
    """Return a reader for a generator that reads a query, or None for anything else.

    Raises:
        InvalidStepError: for a query that cannot be read by key.
    """
    owner = _owner(value)
    if owner is None:
        return None
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(owner).__mro__]
    if "django.db.models.query.QuerySet" in names:
        return _QuerySetIterator(value, owner)
    for name in names:
        if name in REFUSED:
            Refusal(REFUSED[name])(owner)
    return None


def _owner(value: Any) -> Any:
    """Return the object whose method made a generator."""
    if not isinstance(value, GeneratorType) or value.gi_frame is None:
        return None
    owner = value.gi_frame.f_locals.get("self")
    method = getattr(type(owner), value.gi_code.co_name, None)
    return owner if getattr(method, "__code__", None) is value.gi_code else None


class _QuerySetIterator(BaseReader):
    """The result of ``queryset.iterator()``: the queryset by key, in chunks of its ``chunk_size``.

    A cursor that version 0.1 saved is a position, and is read as one.
    """

    uses = 2  # version 0.1 would read a key as a position

    def __init__(self, generator: Any, queryset: Any) -> None:
        from celery_continuations.sources.django import query_rows

        if inspect.getgeneratorstate(generator) != inspect.GEN_CREATED:
            raise InvalidStepError(
                "cannot iterate over a queryset.iterator() that has been read from; pass the queryset itself"
            )
        chunk = generator.gi_frame.f_locals.get("chunk_size")
        self._by_key = query_rows(queryset, chunk=chunk or 2000)
        self._by_position = Positions(generator)
        self._reader: Any = self._by_key

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """The kind of the queryset."""
        return str(self._reader.kind)

    def read(self, cursor: Any) -> Pairs:
        """Yield rows after a key."""
        return self._by_key.read(cursor)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read after a key, or from a position that version 0.1 saved."""
        if cursor is not None and kind in (None, "position"):
            self._reader, self.checks, self.uses = self._by_position, True, 1
        elif kind not in (None, self._by_key.kind):
            raise OtherKind(str(kind), self._by_key.kind)
        self._reader.step = self.step
        pairs: Pairs = self._reader.resume(cursor, None, mark)
        return pairs

    def keep_of(self, item: Any) -> Any:
        """Keep what the current reader keeps."""
        return self._reader.keep_of(item)

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint that the current reader takes."""
        return self._reader.taken(cursor, kept)

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the mark of the current reader."""
        return self._reader.mark(cursor, kept)

    def count(self) -> int:
        """Count the rows, with a query."""
        return self._by_key.count()

    def close(self) -> None:
        """Close both readers; the generator itself was not begun."""
        self._by_key.close()
        self._by_position.close()
