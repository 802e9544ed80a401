"""The sources of loops: everything that ``iterate`` accepts.

A source yields ``(item, cursor after this item)`` from any cursor on.
"""

from typing import Any

from celery_continuations.core.reader import NoItem
from celery_continuations.sources.base import Source, opener, opening, recognise, register
from celery_continuations.sources.combinators import batched, nested, throttled
from celery_continuations.sources.files import csv_rows, json_lines, lines
from celery_continuations.sources.instances import instances
from celery_continuations.sources.ordered import keyed, keyed_pages
from celery_continuations.sources.paged import StartAgain, keys, pages
from celery_continuations.sources.queries import REFUSED, requeried
from celery_continuations.sources.refused import Refusal

__all__ = [
    "NoItem",
    "Source",
    "StartAgain",
    "batched",
    "csv_rows",
    "json_lines",
    "keyed",
    "keyed_pages",
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


register("django.db.models.query.QuerySet", _of_queryset)
register("django.db.models.manager.BaseManager", _of_queryset)
register(
    "sqlalchemy.sql.base.Executable", _of_select
)  # statements that cannot be read by key are refused with the reason
register("sqlalchemy.orm.query.Query", _of_select)
for name, advice in REFUSED.items():
    register(name, Refusal(advice))
recognise(requeried)
recognise(instances)
