"""SQLAlchemy selects, by key."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.types import TypeDecorator

from celery_continuations.core.reader import Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.keyed import Column, KeyedSource, after, cannot_be_key, following, saveable
from celery_continuations.sources.select_keys import Stored, decorated, shape_of, statement_of
from celery_continuations.sources.select_sessions import Opened, Reading, given, opened_by

if TYPE_CHECKING:
    from sqlalchemy.sql.selectable import TypedReturnsRows

__all__ = ["from_select", "select_rows", "sessions"]

Item = TypeVar("Item")

_factory: Callable[[], Any] | None = None


def sessions(factory: Callable[[], Any]) -> None:
    """Set the function that opens sessions for selects that are passed to ``iterate`` directly.

    Args:
        factory: a sessionmaker, a scoped_session, or another function that returns a session.  A session is opened
            for each loop, to read: it has no open transaction while the loop works on its rows, and is closed at the
            end.  The session of a scoped_session stays open.

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
    if select._for_update_arg is not None:
        raise InvalidStepError(
            "with_for_update() locks rows until a transaction ends, and none is open while the loop works on its rows: "
            "open a session and write self.iterate(name, select_rows(session, select), transaction=session), or lock "
            "the row in the loop"
        )
    return _SelectRows(partial(opened_by, factory), select, 1000)


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
    return _SelectRows(partial(given, session), select, chunk)


class _SelectRows(KeyedSource[Any]):
    without_repeats = "add .distinct() to a select of entities, or order by the keys of all joined tables"

    def __init__(self, opened: Callable[[], AbstractContextManager[Reading]], select: Any, chunk: int) -> None:
        super().__init__(chunk)
        is_query = isinstance(select, orm.Query)
        if is_query:
            select = statement_of(select)
        _check_select(select)
        self._opened = opened
        self._shape = shape = shape_of(select, is_query)
        self.key = shape.key
        # A Query returns a single column as a row.
        self._is_single = shape.columns == 1 and not (is_query and not shape.entities)
        self._stored = [column._replace(column=_as_stored(column.column)) for column in self.key]
        self._enums = [_enum_of(column.column.type) for column in self.key]
        self.has_integers = len(self.key) == 1 and type(self.key[0].column.type) in _INTEGERS
        order = [column.column.desc() if column.descending else column.column.asc() for column in shape.order]
        keys = [column.column.label(f"_key_{number}") for number, column in enumerate(self._stored)]
        self._select = select.order_by(None).order_by(*order)
        self._keys = self._select.with_only_columns(*keys, maintain_column_froms=True)
        self._keys._with_options = ()  # they are for loading entities
        if shape.identity is None:
            self._select = self._select.add_columns(*keys)

    def read(self, cursor: Any) -> Pairs:
        """See :class:`Source`."""
        if cursor is not None:
            self.check(cursor)
        return self._pairs(cursor)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on; release 0.1 saved no kind, and cursors in the form that the task sees."""
        if cursor is not None and kind is None:
            cursor = self._of_release_0_1(self._shortened(cursor))
        return super().resume(cursor, kind, mark)

    def _of_release_0_1(self, cursor: Any) -> Any:
        """Return a cursor with the values of decorated types as the database has them."""
        types = [decorated(column.column) for column in self.key]
        if not any(types):
            return cursor
        self.check(cursor)
        with self._opened() as opened:
            dialect = _bind_of(opened.session, self._select).dialect
        values = cursor if len(types) > 1 else (cursor,)
        pairs = zip(types, values, strict=True)
        stored = tuple(value if one is None else one.process_bind_param(value, dialect) for one, value in pairs)
        return stored if len(types) > 1 else stored[0]

    def _shortened(self, cursor: Any) -> Any:
        """Return a cursor that release 0.1 saved with all columns of the order."""
        count = len(self.key)
        if type(cursor) is not tuple or count == len(self._shape.order) or len(cursor) != len(self._shape.order):
            return cursor
        return cursor[:count] if count > 1 else cursor[0]

    def count(self) -> int:
        """Count the rows, with a query."""
        with self._opened() as opened:
            keys = self._keys.distinct() if self._shape.is_unique else self._keys
            rows = keys.order_by(None).subquery()
            return int(opened.session.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one())

    def _pairs(self, cursor: Any) -> Pairs:
        with self._opened() as opened:
            self._check_session(opened.session)
            is_stale = self._staleness()
            size = self.chunk
            while True:
                opened.before_chunk()
                items, keys = self._chunk(opened.session, cursor, size)
                if not keys:
                    return
                opened.end()
                done = 0
                for item, key in zip(items, keys, strict=True):
                    # Loading it would cost a query of its own, and it may be gone: read it with the next chunk.
                    if done and is_stale(item):
                        break
                    yield item, key
                    cursor = key
                    done += 1
                    if not opened.is_idle():
                        opened.end()
                is_cut = done < len(items) or is_stale(items[-1])
                size = done if is_cut else min(2 * size, self.chunk)
                del items, keys, item, key  # before the next ones are made

    def _check_session(self, session: Any) -> None:
        if self._shape.entities and isinstance(session, sa.Connection):
            raise InvalidStepError("a connection cannot load entities: use a session, or select from their tables")
        bind = _bind_of(session, self._select)
        if bind.dialect.name in ("mysql", "mariadb"):
            for column in self.key:
                if isinstance(column.column.type, sa.Enum) and column.column.type.native_enum:
                    raise cannot_be_key(column, "MySQL orders its values by number and compares them as texts")

    # -- chunks

    def _chunk(self, session: Any, cursor: Any, size: int) -> tuple[list[Any], list[Any]]:
        """Return the rows after a cursor, and their keys."""
        if self._shape.is_whole:
            return self._whole_chunk(session, cursor, size)
        # One row more than the chunk: it could share the key of the last one.
        items, keys = self._fetch(session, self._after(session, self._select, cursor).limit(size + 1))
        keys = self.settled(keys, cursor)[:size]
        del items[size:]
        self._verify(session, keys)
        return items, keys

    def _verify(self, session: Any, keys: list[Any]) -> None:
        dialect = _bind_of(session, self._select).dialect.name
        for start in range(0, len(keys), _AT_A_TIME):
            self.verify(keys[start : start + _AT_A_TIME], dialect, partial(self._matching, session))

    def _matching(self, session: Any, keys: list[Any], places: Sequence[int]) -> list[Any]:
        """See :meth:`KeyedSource.verify`."""
        loaded = list(map(self._loaded, keys))
        same = [self._stored[place].column.in_({key[place] for key in loaded}) for place in places]
        rows = session.execute(self._keys.order_by(None).where(*same)).all()
        return saveable(self._saved(list(map(self._key_of, rows))), several=True)

    def _whole_chunk(self, session: Any, cursor: Any, size: int) -> tuple[list[Any], list[Any]]:
        """Return the rows up to the key that row ``size`` has, and all of that key: a limit would cut collections."""
        while True:
            found = session.execute(self._after(session, self._keys, cursor).offset(size - 1).limit(1)).all()
            select = self._after(session, self._select, cursor)
            if found:
                [last] = self.settled(self._saved(list(map(self._key_of, found))), cursor)
                select = select.where(sa.not_(self._condition(session, last)))
            items, keys = self._fetch(session, select)
            if keys or not found:
                keys = self.settled(keys, cursor)
                self._verify(session, keys)
                return items, keys
            cursor = last  # its rows are gone meanwhile

    def _fetch(self, session: Any, select: Any) -> tuple[list[Any], list[Any]]:
        # yield_per would leave the result open while the task commits.
        options = {"yield_per": None}
        if self._shape.identity is not None:
            return self._fetch_entities(session.scalars(select, execution_options=options), self._shape.identity)
        result = session.execute(select, execution_options=options)
        if self._shape.is_unique:
            result = result.unique()
        if self._is_single and len(self.key) == 1:
            rows = result.all()
            return [item for item, _ in rows], self._saved([key for _, key in rows])
        count = self._shape.columns
        read = result.freeze()
        items = read().scalars(0) if self._is_single else read().columns(*range(count))
        keys = read().columns(*range(count, count + len(self.key)))
        return list(items), self._saved(list(map(self._key_of, keys)))

    def _fetch_entities(self, result: Any, places: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
        """Take the keys from the entities: rows of entities alone are loaded faster."""
        items = (result.unique() if self._shape.is_unique else result).all()
        key_of, missing = operator.itemgetter(*places), (None,) * len(places)
        keys = [key_of(missing if item is None else sa.inspect(item).identity) for item in items]
        return items, self._saved(keys)

    def _key_of(self, row: Any) -> Any:
        return tuple(row) if len(self.key) > 1 else row[0]

    # -- cursors

    def _after(self, session: Any, select: Any, cursor: Any) -> Any:
        return select if cursor is None else select.where(self._condition(session, cursor))

    def _condition(self, session: Any, cursor: Any) -> Any:
        """Return the condition for rows after a cursor."""
        cursor = self._loaded(cursor)
        dialect = _bind_of(session, self._select).dialect.name
        is_ascending = following(self.key)
        if len(self.key) > 1 and is_ascending is not None and dialect in _COMPARING_ROWS:
            row = sa.tuple_(*(column.column for column in self._stored))
            return row > cursor if is_ascending else row < cursor
        return after(self._stored, cursor, _compare, sa.and_, sa.or_)

    def _saved(self, keys: list[Any]) -> list[Any]:
        """Return keys with the names of enums' members."""
        if not any(self._enums):
            return keys
        if len(self.key) == 1:
            return list(map(_name_of, keys))
        return [tuple(map(_name_of, key)) for key in keys]

    def _loaded(self, cursor: Any) -> Any:
        """Return a cursor with the members of enums."""
        if not any(self._enums):
            return cursor
        values = cursor if len(self.key) > 1 else (cursor,)
        loaded = tuple(map(self._member, self.key, self._enums, values))
        return loaded if len(self.key) > 1 else loaded[0]

    def _member(self, column: Column, enum: Any, value: Any) -> Any:
        if enum is None:
            return value
        if value not in enum.__members__:
            raise InvalidStepError(
                f"rows by {column.name} cannot be read from {value!r}: {enum.__name__} has no such member now",
                found=self.step,
            )
        return enum[value]

    # -- rows that a commit has expired

    def _staleness(self) -> Callable[[Any], bool]:
        """Return a function that tells whether a row must be loaded again."""
        entities = self._shape.entities
        if entities and self._is_single:
            return _is_stale
        return lambda row: any(_is_stale(row[place]) for place in entities)


def _is_stale(entity: Any) -> bool:
    if entity is None:
        return False
    state = instance_state(entity)
    return state.expired or state.session_id is None


def _as_stored(column: Any) -> Any:
    kind = decorated(column)
    return column if kind is None else sa.type_coerce(column, Stored(kind))


def _enum_of(kind: Any) -> Any:
    while isinstance(kind, TypeDecorator):
        kind = kind.impl_instance
    return getattr(kind, "enum_class", None)


def _name_of(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def _bind_of(session: Any, select: Any) -> Any:
    return session if isinstance(session, sa.Connection) else session.get_bind(clause=select)


# How many keys are verified with one query: each of their values is a parameter.
_AT_A_TIME = 200

# Types whose values are integers; those derived from them may have others.
_INTEGERS = (sa.Integer, sa.BigInteger, sa.SmallInteger)

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


def _check_select(select: Any) -> None:
    if not isinstance(select, sa.Select):
        raise InvalidStepError(
            f"select_rows takes a select, not a {type(select).__name__}; if that is a union, combine conditions "
            "with or_() in one select, or loop over one after the other"
        )
