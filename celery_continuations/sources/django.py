"""Django querysets, by key."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, reduce
from itertools import chain, islice
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from django.db import connections
from django.db.models import F, IntegerField, JSONField, Manager, Q, QuerySet, UniqueConstraint
from django.db.models.constants import LOOKUP_SEP
from django.db.models.expressions import Expression, OrderBy
from django.db.models.query import (
    FlatValuesListIterable,
    ModelIterable,
    NamedValuesListIterable,
    ValuesIterable,
    ValuesListIterable,
)

from celery_continuations.core.reader import Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import HasAll
from celery_continuations.sources.keyed import Column, KeyedSource, after, cannot_be_key, saveable

__all__ = ["query_rows"]

Row = TypeVar("Row")


def query_rows(query: Iterable[Row] | HasAll[Row], *, chunk: int = 2000) -> KeyedSource[Row]:
    """Return the rows of a queryset by key: the primary key, or the unique key that it is ordered by.

    The queryset itself is neither evaluated nor counted.

    Args:
        query: a queryset or manager, also of ``values()`` or ``values_list()`` with the key among them.
        chunk: rows per query; by default as many as queryset.iterator() reads.

    Raises:
        InvalidStepError: for a queryset that cannot be read by key, with the reason and what to write.

    >>> from tests.support.django_models import Letter, create_tables
    >>> create_tables()
    >>> for text in "abc":
    ...     _ = Letter.objects.create(text=text)
    >>> [letter.text for letter, _ in query_rows(Letter.objects.order_by("-id"), chunk=2).read(None)]
    ['c', 'b', 'a']
    """
    if isinstance(query, Manager):
        query = query.all()
    if not isinstance(query, QuerySet):
        raise InvalidStepError(f"query_rows takes a queryset, not {query!r}")
    return _QueryRows(query, chunk)


class _QueryRows(KeyedSource[Any]):
    without_repeats = "add .distinct()"

    def __init__(self, query: Any, chunk: int) -> None:
        super().__init__(chunk)
        _refuse(query)
        self.key = _key(query)
        self._key_of = _key_of(query, self.key)
        field = _stored(self.key[0].column)
        is_plain = isinstance(field, IntegerField) and not hasattr(field, "from_db_value")
        self.has_integers = len(self.key) == 1 and is_plain
        self._is_managed = query.model._meta.managed
        self._can_drop_rows = query._iterable_class not in _ITERABLES
        if not query.query.standard_ordering:
            query = query.reverse()  # the key takes it into account
        self._query = query.order_by(*(f"{'-' * column.descending}{column.name}" for column in self.key))

    def read(self, cursor: Any) -> Pairs:
        """See :class:`Source`."""
        if cursor is not None:
            self.check(cursor)
        return chain.from_iterable(self._chunks(cursor))

    def named_after(self) -> str:
        """Return the label of the model."""
        return _name(self._query)

    def count(self) -> int:
        """Count the rows, with a query."""
        return int(self._query.count())

    def _chunks(self, cursor: Any) -> Iterator[Pairs]:
        # One row more than the chunk, and than the rows that are yielded: it could share the key of the last one.
        limit = self.chunk + 1
        rows_after = _RowsAfter(self._query, self.key, limit)
        if not self._is_managed:
            self._refuse_null()
        while True:
            rows = _rows(self._query[:limit], limit) if cursor is None else rows_after(cursor)
            left = self.chunk
            ahead = list(islice(rows, 1))
            while ahead and left:
                items = [*ahead, *islice(rows, min(left, _AT_A_TIME) - 1)]
                ahead = list(islice(rows, 1))
                keys = self.settled(list(map(self._key_of, [*items, *ahead])), cursor)[: len(items)]
                self.verify(keys, connections[self._query.db].vendor, self._matching)
                left -= len(items)
                cursor = keys[-1]
                yield zip(items, keys, strict=True)
                del items, keys  # before the next ones are made
            if left == self.chunk:
                cursor = self._after_dropped(cursor, limit) if self._can_drop_rows else None
                if cursor is None:
                    return

    def _matching(self, keys: list[Any], places: Sequence[int]) -> list[Any]:
        """See :meth:`KeyedSource.verify`."""
        found = {f"{self.key[place].name}__in": {key[place] for key in keys} for place in places}
        rows = self._query.order_by().prefetch_related(None).filter(**found)
        return saveable(list(map(self._key_of, rows._iterable_class(rows))), several=True)

    def _refuse_null(self) -> None:
        """Refuse rows without a key, which a view can have: no chunk would include them."""
        for column in self.key:
            if self._query.filter(**{f"{column.name}__isnull": True}).exists():
                raise self.unsaveable(column, None)

    def _after_dropped(self, cursor: Any, limit: int) -> Any:
        """Return the key of the last row of a chunk whose rows a queryset of subclasses has all dropped, or None."""
        query = self._query
        if cursor is not None:
            values = cursor if len(self.key) > 1 else (cursor,)
            query = query.filter(_after(self.key, values))
        keys = list(query.values_list(*(column.name for column in self.key))[:limit])
        if not keys:
            return None
        return self.settled([key if len(self.key) > 1 else key[0] for key in keys], cursor)[-1]


# How many rows are made at a time: many young objects at once cost the garbage collector time.
_AT_A_TIME = 200


def _rows(query: Any, limit: int) -> Iterator[Any]:
    if query._prefetch_related_lookups:
        return iter(query._chain())  # which fetches the related rows of all of them in one query
    return iter(query._iterable_class(query, chunk_size=limit))


class _RowsAfter:
    """The query for the rows after a cursor.

    Django compiles its SQL once, and each cursor is inserted: compiling takes longer than the query itself.
    """

    def __init__(self, query: Any, key: Sequence[Column], limit: int) -> None:
        self._limit = limit
        self._cursor: tuple[Any, ...] = ()
        places = tuple(_Place(column.column, number) for number, column in enumerate(key))
        self._query = query.filter(_after(key, places))[:limit]
        self._compiler = cache(self._new_compiler)
        self._compiler_of_query = self._query.query.get_compiler
        self._query.query.get_compiler = self._compiler

    def __call__(self, cursor: Any) -> Iterator[Any]:
        self._cursor = cursor if type(cursor) is tuple else (cursor,)
        return _rows(self._query, self._limit)

    def _new_compiler(self, using: str) -> Any:
        compiler = self._compiler_of_query(using)
        compiled = cache(compiler.as_sql)

        def as_sql() -> tuple[str, tuple[Any, ...]]:
            sql, values = compiled()
            cursor, connection = self._cursor, compiler.connection
            return sql, tuple(one.of(cursor, connection) if isinstance(one, _Place) else one for one in values)

        compiler.as_sql = as_sql
        return compiler


class _Place(Expression):  # type: ignore[misc]
    """A placeholder for a cursor's value in a query."""

    def __init__(self, field: Any, number: int) -> None:
        super().__init__(output_field=field)
        self._number = number

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        """Return the SQL, and its values, for Django."""
        return "%s", [self]

    def of(self, cursor: tuple[Any, ...], connection: Any) -> Any:
        """Return the value in the form for the database."""
        return self.output_field.get_db_prep_value(cursor[self._number], connection)


def _after(key: Sequence[Column], values: tuple[Any, ...]) -> Q:
    """Return the condition for rows after these values of the key."""
    return after(key, values if len(key) > 1 else values[0], _compare, operator.and_, operator.or_)


def _compare(column: Column, lookup: str, value: Any) -> Q:
    return Q(**{f"{column.name}{LOOKUP_SEP}{lookup}": value})


def _refuse(query: Any) -> None:
    """Refuse a queryset that cannot be cut into chunks by a condition on the key."""
    inner = query.query
    problem = None
    if inner.is_sliced:
        problem = "it is sliced, and so are its chunks: end the loop with break instead"
    elif inner.combinator:
        problem = (
            f"it was made by {inner.combinator}(), which accepts no condition: combine conditions with | or Q instead"
        )
    elif inner.distinct_fields:
        problem = "distinct() of single columns depends on the previous rows"
    elif isinstance(inner.group_by, tuple):
        problem = "its rows are groups, which have no key: iterate over the rows of the groups"
    elif any(getattr(one, "contains_over_clause", False) for one in inner.annotations.values()):
        problem = "a window function depends on the previous rows, which a chunk lacks"
    elif inner.select_for_update:
        problem = (
            "select_for_update() locks rows until a transaction ends, and each item is worked on in its own: lock the "
            f"row in the loop, as in {query.model.__name__}.objects.select_for_update().get(pk=row.pk), with "
            "transaction="
        )
    if problem is not None:
        raise InvalidStepError(f"a queryset of {_name(query)} cannot be read by key: {problem}")


def _name(query: Any) -> str:
    return str(query.model._meta.label)


def _pk_fields(meta: Any) -> list[Any]:
    return list(getattr(meta, "pk_fields", None) or [meta.pk])  # pk_fields came with Django 5.2


# -- the key


def _key(query: Any) -> list[Column]:
    """Return the columns of the order, or of the primary key; an order that is not unique is refused."""
    inner, meta = query.query, query.model._meta
    if inner.extra_order_by:
        raise _order_error(query, "extra(order_by=...) cannot be inspected")
    ordering: Sequence[Any] = inner.order_by or (meta.ordering if inner.default_ordering else ())
    pk = _pk_fields(meta)
    key = []
    for item in ordering:
        name, descending = _ordered(query, item)
        fields = pk if name == "pk" else [_field(query, name)]
        key += [_column(field, descending is inner.standard_ordering) for field in fields]
    if not key:
        key = [_column(field, not inner.standard_ordering) for field in pk]
    names = [column.name for column in key]
    if len(set(names)) < len(names):
        raise _order_error(query, "it has a column twice")
    if not any(unique <= set(names) for unique in _unique_keys(meta)):
        raise _order_error(query, "rows can share the same place in it")
    nullable = next((column.name for column in key if column.column.null), None)
    if nullable:
        raise _order_error(query, f"{nullable} can be NULL, and nothing comes after NULL")
    replaced = next((name for name in names if name in inner.extra_select), None)
    if replaced:
        raise _order_error(query, f"extra(select=...) replaces {replaced}")
    for column in key:
        if isinstance(_stored(column.column), JSONField):
            raise cannot_be_key(column, "its values are JSON")
    return key


def _column(field: Any, descending: bool) -> Column:
    return Column(field.attname, field, descending, type(_stored(field)).__name__)


def _stored(field: Any) -> Any:
    """Return the field that a foreign key has the values of."""
    while field.is_relation:
        field = field.target_field
    return field


def _ordered(query: Any, item: Any) -> tuple[str, bool]:
    """Return the name and whether it is descending."""
    if isinstance(item, str):
        return item.removeprefix("-"), item.startswith("-")
    if isinstance(item, F):
        return item.name, False
    if isinstance(item, OrderBy) and isinstance(item.expression, F):
        return item.expression.name, item.descending
    raise _order_error(query, f"{item!r} is not a column")


def _field(query: Any, name: str) -> Any:
    fields = {field.attname: field for field in query.model._meta.concrete_fields}
    fields |= {field.name: field for field in fields.values() if not field.is_relation}
    if name not in fields or name in query.query.annotations:
        hint = f"; write {name}_id for its key" if f"{name}_id" in fields else ""
        raise _order_error(query, f"{name!r} is not a column of its table{hint}")
    return fields[name]


def _unique_keys(meta: Any) -> list[set[str]]:
    """Return the sets of columns that are unique."""
    names = {field.name: field.attname for field in meta.concrete_fields}
    keys = [{field.attname for field in _pk_fields(meta)}]
    keys += [{field.attname} for field in meta.concrete_fields if field.unique]
    together = [one.fields for one in meta.constraints if isinstance(one, UniqueConstraint) and _holds_always(one)]
    keys += [{names[name] for name in fields} for fields in (*meta.unique_together, *together)]
    return keys


def _holds_always(constraint: UniqueConstraint) -> bool:
    return bool(constraint.fields) and constraint.condition is None and constraint.deferrable is None


def _order_error(query: Any, problem: str) -> InvalidStepError:
    ordering = query.query.order_by
    order = f"its order {', '.join(map(str, ordering))}" if ordering else f"the order of {_name(query)} itself"
    end = "the whole primary key" if len(_pk_fields(query.model._meta)) > 1 else "the primary key"
    return InvalidStepError(
        f"a queryset of {_name(query)} cannot be read by key: {order} is not a unique key: {problem}. "
        f'Write .order_by("pk"), or an order of columns that ends with {end}'
    )


# -- the key of a row


def _key_of(query: Any, key: Sequence[Column]) -> Callable[[Any], Any]:
    """Return a function from a row to its key."""
    kind = query._iterable_class
    if issubclass(kind, ModelIterable):  # those that yield instances of subclasses, too: they have its key
        names, deferred = query.query.deferred_loading
        for column in key:
            loaded = {column.name, column.column.name} & set(names)
            if bool(loaded) is deferred and not column.column.primary_key:
                raise InvalidStepError(
                    f"a queryset of {_name(query)} cannot be read by key: {column.name} is deferred, and each row "
                    "would cost a query of its own; load it too"
                )
        return attrgetter(*(column.name for column in key))
    if kind not in _ITERABLES:
        raise InvalidStepError(
            f"a queryset of {_name(query)} cannot be read by key: its rows are of {kind.__name__}; iterate over its "
            ".values_list('pk', flat=True), and load each row in the loop"
        )
    is_flat = kind is FlatValuesListIterable
    paths = [_path(query, column, is_flat) for column in key]
    if paths == [()]:
        return _itself
    if all(len(path) == 1 for path in paths):
        return itemgetter(*(path[0] for path in paths))
    if len(paths) == 1:
        return lambda row: reduce(operator.getitem, paths[0], row)
    return lambda row: tuple(reduce(operator.getitem, path, row) for path in paths)


# Each yields a row for each row of the query.
_ITERABLES = (
    ModelIterable, ValuesIterable, ValuesListIterable, NamedValuesListIterable, FlatValuesListIterable,
)  # fmt: skip


def _itself(row: Any) -> Any:
    return row


def _path(query: Any, column: Column, is_flat: bool) -> tuple[Any, ...]:
    """Return where a row of values() or values_list() has the column: a name or index, within a composite key two."""
    names = list(query._fields or (*query.query.extra_select, *query.query.values_select))
    pk = _pk_fields(query.model._meta)
    found = {column.name, column.column.name} | ({"pk"} if pk == [column.column] else set())
    for place, name in enumerate(names):
        within = (pk.index(column.column),) if name == "pk" and len(pk) > 1 and column.column in pk else ()
        if within or name in found:
            return (*(() if is_flat else (name if query._iterable_class is ValuesIterable else place,)), *within)
    raise InvalidStepError(
        f"a queryset of {_name(query)} cannot be read by key: its values lack {column.column.name}; add that column"
    )
