"""What ``iterate`` can loop over.

A source yields ``(item, cursor after this item)`` from any cursor on.
"""

from typing import Any

from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import Source, opener, opening, register
from celery_continuations.sources.combinators import batched, nested, throttled
from celery_continuations.sources.files import csv_rows, json_lines, lines
from celery_continuations.sources.paged import keys, pages

__all__ = [
    "Source",
    "batched",
    "csv_rows",
    "json_lines",
    "keys",
    "lines",
    "nested",
    "opener",
    "opening",
    "pages",
    "register",
    "throttled",
]


def _of_queryset(query: Any) -> Source:
    from celery_continuations.sources.django import query_rows

    return query_rows(query)


def _of_select(select: Any) -> Source:
    from celery_continuations.sources.sqlalchemy import from_select

    return from_select(select)


def _of_session(session: Any) -> Source:
    raise InvalidStepError(
        f"a {type(session).__name__} yields what it has in hand, in no order; iterate over select_rows(session, select)"
    )


register("django.db.models.query.QuerySet", _of_queryset)
register("django.db.models.manager.BaseManager", _of_queryset)
register("sqlalchemy.sql.base.Executable", _of_select)  # those that cannot be read by key are refused with the reason
register("sqlalchemy.orm.query.Query", _of_select)
register("sqlalchemy.orm.session.Session", _of_session)
register("sqlalchemy.orm.scoping.scoped_session", _of_session)
