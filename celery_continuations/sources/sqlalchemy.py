"""SQLAlchemy selects, by key."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from celery_continuations.core.reader import Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.keyed import Column, KeyedSource, after, following

if TYPE_CHECKING:
    from sqlalchemy.sql.selectable import TypedReturnsRows

__all__ = ["from_select", "select_rows", "sessions"]

Item = TypeVar("Item")

Opened: TypeAlias = orm.Session | orm.scoped_session[Any] | sa.Connection

_factory: Callable[[], Any] | None = None


def sessions(factory: Callable[[], Any]) -> None:
    """Set the function that opens sessions for selects that are passed to ``iterate`` directly.

    Args:
        factory: a sessionmaker, a scoped_session, or another function that returns a session.  A session is opened
            for each loop and closed at its end; the session of a scoped_session stays open.

    >>> sessions(orm.sessionmaker(sa.create_engine("sqlite://")))
    """
    global _factory
    if not callable(factory):
        raise InvalidStepError(
            f"sessions takes a function that returns a session, e.g. sessionmaker(...), not a {type(factory).__name__}"
        )
    _factory = factory


def from_select(select: Any) -> KeyedSource[Any]:
    """Return the rows of a select, with a session of :func:`sessions`, or of a Query with its own.

    Raises:
        InvalidStepError: see :func:`select_rows`, and when no session is known.
    """
    if isinstance(select, orm.Query):
        return select_rows(select.session, select)
    _check_select(select)
    factory = _factory
    if factory is None:
        raise InvalidStepError(
            "a select has no session of its own: write select_rows(session, select), or name once the function that "
            "opens sessions: celery_continuations.sources.sqlalchemy.sessions(factory)"
        )
    if isinstance(factory, orm.scoped_session):
        return select_rows(factory, select)
    return _SelectRows(factory, select, 1000)


@overload
def select_rows(session: Opened, select: TypedReturnsRows[tuple[Item]], *, chunk: int = 1000) -> KeyedSource[Item]: ...
@overload
def select_rows(session: Opened, select: TypedReturnsRows[Item], *, chunk: int = 1000) -> KeyedSource[Item]: ...
@overload
def select_rows(session: Opened, select: orm.Query[Item], *, chunk: int = 1000) -> KeyedSource[Item]: ...
@overload
def select_rows(session: Opened, select: Any, *, chunk: int = 1000) -> KeyedSource[Any]: ...
def select_rows(session: Opened, select: Any, *, chunk: int = 1000) -> KeyedSource[Any]:
    """Return the rows of a select by key: the primary key, or the unique key that it is ordered by.

    Rows are those of ``session.scalars(select)`` if it selects one thing, else those of ``session.execute(select)``.
    Rows that expire, as at a commit, are read again with the next chunk, and the size of the chunks adapts to the
    commits.

    Args:
        session: a session, a scoped_session, or a connection.
        select: of entities or columns, or a Query.
        chunk: rows per query.

    Raises:
        InvalidStepError: for a select that cannot be read by key, with the reason and what to write.

    >>> engine = sa.create_engine("sqlite://")
    >>> letters = sa.Table("letters", sa.MetaData(), sa.Column("text", sa.String, primary_key=True))
    >>> letters.create(engine)
    >>> with orm.Session(engine) as session:
    ...     _ = session.execute(letters.insert(), [{"text": text} for text in "abc"])
    ...     [text for text, _ in select_rows(session, sa.select(letters), chunk=2).read("a")]
    ['b', 'c']
    """
    if not isinstance(session, (orm.Session, orm.scoped_session, sa.Connection)):
        raise InvalidStepError(
            f"select_rows takes a session or connection, not a {type(session).__name__}; write "
            "`with Session(engine) as session:` around the loop"
        )
    return _SelectRows(lambda: nullcontext(session), select, chunk)


class _SelectRows(KeyedSource[Any]):
    def __init__(self, opened: Callable[[], AbstractContextManager[Any]], select: Any, chunk: int) -> None:
        super().__init__(chunk)
        is_query = isinstance(select, orm.Query)
        if is_query:
            select = select.statement
        _check_select(select)
        described = select.column_descriptions
        self._count = len(described)
        self._entities = [place for place, one in enumerate(described) if _is_entity(one)]
        _refuse(select, has_entities_only=len(self._entities) == self._count)
        self._opened = opened
        self.key = _key(select)
        # A Query returns a single column as a row.
        self._is_single = self._count == 1 and not (is_query and not self._entities)
        keys = [column.column.label(f"_key_{number}") for number, column in enumerate(self.key)]
        order = [column.column.desc() if column.descending else column.column.asc() for column in self.key]
        self._select = select.add_columns(*keys).order_by(None).order_by(*order)

    def read(self, cursor: Any) -> Pairs:
        """See :class:`Source`."""
        if cursor is not None:
            self.check(cursor)
        return self._pairs(cursor)

    def count(self) -> int:
        """Count the rows, with a query."""
        with self._opened() as session:
            rows = self._select.order_by(None).subquery()
            return int(session.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one())

    def _pairs(self, cursor: Any) -> Pairs:
        with self._opened() as session:
            if self._entities and isinstance(session, sa.Connection):
                raise InvalidStepError("a connection cannot load entities: use a session, or select from their tables")
            size = self.chunk
            while True:
                # One row more than the chunk: it could share the key of the last one.
                items, keys = self._fetch(session, cursor, size + 1)
                if not keys:
                    return
                keys = self.settled(keys, cursor)[:size]
                del items[size:]
                done = 0
                for item, key in zip(items, keys, strict=True):
                    # Loading it would cost a query of its own, and it may be gone: read it with the next chunk.
                    if done and self._is_stale(item):
                        break
                    yield item, key
                    cursor = key
                    done += 1
                is_cut = done < len(items) or self._is_stale(items[-1])
                size = done if is_cut else min(2 * size, self.chunk)

    def _fetch(self, session: Any, cursor: Any, limit: int) -> tuple[list[Any], list[Any]]:
        select = self._select
        if cursor is not None:
            bind = session if isinstance(session, sa.Connection) else session.get_bind(clause=select)
            select = select.where(self._after(cursor, bind.dialect.name))
        # yield_per would leave the result open while the task commits.
        result = session.execute(select.limit(limit), execution_options={"yield_per": None})
        if len(self._entities) == self._count:
            result = result.unique()  # joined eager loading of collections requires it
        count, columns = self._count, range(self._count + len(self.key))
        if self._is_single and len(self.key) == 1:
            rows = result.all()
            return [item for item, _ in rows], [key for _, key in rows]
        read = result.freeze()
        items = read().scalars(0) if self._is_single else read().columns(*columns[:count])
        keys = read().scalars(count) if len(self.key) == 1 else map(tuple, read().columns(*columns[count:]))
        return list(items), list(keys)

    def _after(self, cursor: Any, dialect: str) -> Any:
        is_ascending = following(self.key)
        if len(self.key) > 1 and is_ascending is not None and dialect in _COMPARING_ROWS:
            row = sa.tuple_(*(column.column for column in self.key))
            return row > cursor if is_ascending else row < cursor
        return after(self.key, cursor, _compare, sa.and_, sa.or_)

    def _is_stale(self, item: Any) -> bool:
        for place in self._entities:
            entity = item if self._is_single else item[place]
            if entity is not None:
                state = instance_state(entity)
                if state.expired or state.detached:
                    return True
        return False


# Databases that use all columns of an index for a comparison of rows.
_COMPARING_ROWS = frozenset(("postgresql", "sqlite"))

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "lt": operator.lt,
    "gte": operator.ge,
    "lte": operator.le,
    "exact": operator.eq,
}


def _compare(column: Column, name: str, value: Any) -> Any:
    return _OPERATORS[name](column.column, value)


def _is_entity(described: Any) -> bool:
    return described.get("entity") is not None and described["expr"] is described["entity"]


def _check_select(select: Any) -> None:
    if not isinstance(select, sa.Select):
        raise InvalidStepError(
            f"select_rows takes a select, not a {type(select).__name__}; if that is a union, combine conditions "
            "with or_() in one select, or loop over one after the other"
        )


def _refuse(select: Any, has_entities_only: bool) -> None:
    """Refuse a select that cannot be cut into chunks by a condition on the key."""
    problem = None
    # SQLAlchemy has no public names for these.
    if select._limit_clause is not None or select._offset_clause is not None or select._fetch_clause is not None:
        problem = "it has a limit or offset, and so have its chunks: end the loop with break instead"
    elif select._group_by_clauses or select._having_criteria:
        problem = "its rows are groups, which have no key: iterate over the rows of the groups"
    elif select._distinct and (select._distinct_on or not has_entities_only):
        problem = "distinct rows of columns have no key: select entities"
    elif any(map(_looks_at_other_rows, select.selected_columns)):
        problem = "an aggregate or window function depends on other rows, which a chunk lacks"
    if problem is not None:
        raise InvalidStepError(f"a select cannot be read by key: {problem}")


def _looks_at_other_rows(element: Any) -> bool:
    if isinstance(element, (sa.ScalarSelect, sa.SelectBase)):
        return False  # only at rows of its own
    if isinstance(element, sa.Over) or (
        isinstance(element, sa.sql.functions.FunctionElement) and _is_aggregate(element)
    ):
        return True
    return any(map(_looks_at_other_rows, element.get_children()))


def _is_aggregate(function: Any) -> bool:
    return function.name.lower() in _AGGREGATES


_AGGREGATES = frozenset((
    "count", "sum", "min", "max", "avg", "total", "array_agg", "string_agg", "group_concat", "aggregate_strings",
    "json_agg", "jsonb_agg", "json_object_agg", "jsonb_object_agg", "json_group_array", "json_group_object",
    "bool_and", "bool_or", "every", "stddev", "variance", "any_value",
))  # fmt: skip


# -- the key


def _key(select: Any) -> list[Column]:
    """Return the columns of the order, or of the primary key; an order that is not unique is refused."""
    unique_keys = _unique_keys(select)
    key = [_ordered(clause) for clause in select._order_by_clauses]
    if not key:
        if not unique_keys:
            raise InvalidStepError("a select cannot be read by key: its table has no primary key")
        return [_named(column, False) for column in unique_keys[0]]
    columns = {column.column for column in key}
    if not any(columns.issuperset(unique) for unique in unique_keys):
        primary = ", ".join(map(str, unique_keys[0])) if unique_keys else "no primary key"
        raise _order_error(key, f"rows can share the same place in it; end it with the primary key, {primary}")
    nullable = next((column.name for column in key if column.column.nullable), None)
    if nullable:
        raise _order_error(key, f"{nullable} can be NULL, and nothing comes after NULL; order by other columns")
    return key


def _named(column: Any, descending: bool) -> Column:
    return Column(str(column), column, descending)


def _ordered(clause: Any) -> Column:
    column, descending = clause, False
    while isinstance(column, UnaryExpression) and column.modifier in _MODIFIERS:
        descending = descending or column.modifier is operators.desc_op
        column = column.element
    if not isinstance(column, sa.Column):
        raise InvalidStepError(
            f"a select cannot be read by key: its order has {str(clause)!r}, which is not a column of a table; "
            "write the column itself, as in order_by(User.name.desc(), User.id)"
        )
    return _named(column, descending)


_MODIFIERS = (operators.desc_op, operators.asc_op, operators.nulls_first_op, operators.nulls_last_op)


def _order_error(key: list[Column], problem: str) -> InvalidStepError:
    order = ", ".join(column.name for column in key)
    return InvalidStepError(f"a select cannot be read by key: its order by {order} is not a unique key: {problem}")


def _unique_keys(select: Any) -> list[list[Any]]:
    """Return the unique keys of the first entity or table; its primary key, if it has one, comes first."""
    entity = next((one["entity"] for one in select.column_descriptions if one.get("entity") is not None), None)
    if entity is not None:
        mapper = sa.inspect(entity).mapper
        of = {
            column: getattr(entity, mapper.get_property_by_column(column).key).expression
            for table in mapper.tables
            for column in table.columns
            if column in mapper.columns.values()
        }
        keys = [list(mapper.primary_key), *(key for table in mapper.tables for key in _keys_of(table))]
    else:
        source = next(iter(select.get_final_froms()), None)
        while isinstance(source, sa.Join):
            source = source.left
        columns = () if source is None else source.columns
        of = {base: column for column in columns for base in column.base_columns}
        tables = {column.table: None for column in of}
        keys = _keys_of(next(iter(tables))) if len(tables) == 1 else []
    return [[of[column] for column in key] for key in keys if key and all(column in of for column in key)]


def _keys_of(table: Any) -> list[list[Any]]:
    """Return the sets of columns that are unique."""
    unique = [one for one in table.constraints if isinstance(one, sa.UniqueConstraint)]
    partial_or_not = [one for one in table.indexes if one.unique]
    whole = [one for one in partial_or_not if not any(name.endswith("_where") for name in one.dialect_kwargs)]
    plain = [one for one in whole if all(isinstance(part, sa.Column) for part in one.expressions)]
    return [list(one.columns) for one in (table.primary_key, *unique, *plain)]
