"""The SQL statements, one for each operation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from celery_continuations.stores.database.tables import leases, records
from celery_continuations.stores.sql import CLOCK_OF_POSTGRESQL, CLOCK_OF_SQLITE, TEXTS

__all__ = [
    "CLEAN",
    "IDS",
    "INSERTS",
    "READ",
    "RECORDS",
    "RETIRE",
    "SCAN",
    "TAKE",
    "Statement",
    "inserting",
    "reading",
    "renewing",
    "updating",
]

#: The dialects that are supported.
INSERTS: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}

_row = records.c


class _Clock(FunctionElement[float]):
    """The database's time in seconds since the epoch, constant within a statement."""

    type = sa.Double()
    inherit_cache = True


@compiles(_Clock, "postgresql")
def _postgresql_clock(*args: Any, **kwargs: Any) -> str:
    return CLOCK_OF_POSTGRESQL


@compiles(_Clock, "sqlite")
def _sqlite_clock(*args: Any, **kwargs: Any) -> str:
    return CLOCK_OF_SQLITE


def _seconds(name: str) -> sa.ColumnElement[float]:
    """Return the time the given seconds from now; null for null."""
    return _Clock() + sa.cast(sa.bindparam(name), sa.Double)


_now = _Clock()
_lives = _row.expires.is_(None) | (_row.expires > _now)
_this = (_row.namespace == sa.bindparam("namespace_")) & (_row.task_id == sa.bindparam("task_id_")) & _lives
_as_expected = _this & (_row.fence == sa.bindparam("expected"))
_has_inbox = sa.func.coalesce(_row.inbox, sa.literal_column("''", sa.Text)) == sa.bindparam("expected_inbox")

_PARTS = (_row.fence, _row.snapshot, _row.message, _row.value, _row.due, _row.inbox)
READ = sa.select(*_PARTS).where(_this)
_living = (_row.namespace == sa.bindparam("namespace_")) & _lives
IDS = (
    sa.select(_row.task_id)
    .where(_living, _row.task_id > sa.bindparam("after"))
    .order_by(_row.task_id)
    .limit(sa.bindparam("limit_"))
)
RECORDS = sa.select(_row.task_id, *_PARTS).where(
    _living, _row.task_id >= sa.bindparam("first"), _row.task_id <= sa.bindparam("last")
)
TAKE = (
    sa.update(records)
    .where(_as_expected)
    .values(fence=sa.bindparam("fence_"), worker=sa.bindparam("worker_"), due=None, expires=None)
    .returning(_row.fence, _row.snapshot, _row.value)
)
_own = (_row.namespace == sa.bindparam("namespace_")) & (_row.worker == sa.bindparam("worker_")) & _lives
_lease = (leases.c.namespace == sa.bindparam("namespace_")) & (leases.c.worker == sa.bindparam("worker_"))
RETIRE = sa.delete(leases).where(_lease, ~sa.exists().where(_own))

# A writer that locks an expired row is about to replace it.
_EXPIRED = (
    sa.select(_row.namespace, _row.task_id)
    .where(_row.expires <= _now)
    .order_by(_row.expires)
    .limit(sa.bindparam("limit_"))
    .with_for_update(skip_locked=True)
)
CLEAN = sa.delete(records).where(sa.tuple_(_row.namespace, _row.task_id).in_(_EXPIRED))


def _scanning() -> sa.CompoundSelect[str, str, float | None, str]:
    """Return the query that a sweep begins with: rows of what, whose, when, and more."""
    space: sa.BindParameter[str] = sa.bindparam("namespace_")
    never = sa.cast(sa.null(), sa.Double)
    # The owners, by one index search each: DISTINCT would read all owned rows.
    first = sa.select(sa.func.min(_row.worker).label("worker"))
    # IS NOT NULL lets SQLite use the index
    owners = first.where(_row.namespace == space, _row.worker.is_not(None)).cte(recursive=True)
    following = sa.select(sa.func.min(_row.worker)).where(_row.namespace == space, _row.worker > owners.c.worker)
    owners = owners.union_all(sa.select(following.scalar_subquery()).where(owners.c.worker.is_not(None)))
    due = (
        sa.select(_row.task_id, _row.due)
        .where(_row.namespace == space, _row.due <= _now, _lives)
        .order_by(_row.due)
        .limit(sa.bindparam("limit_"))
        .subquery()
    )

    def part(what: str, *columns: Any) -> sa.Select[Any]:
        return sa.select(sa.literal_column(f"'{what}'", sa.String), *columns)

    return sa.union_all(
        part("lease", leases.c.worker, leases.c.until - _now, leases.c.note).where(leases.c.namespace == space),
        part("owner", owners.c.worker, never, sa.literal_column("''", sa.Text)).where(owners.c.worker.is_not(None)),
        part("due", due.c.task_id, due.c.due, sa.literal_column("''", sa.Text)),
        part("owned", _row.task_id, never, _row.fence).where(_own),
    )


SCAN = _scanning()


class Statement:
    """A statement executed directly by the driver: SQLAlchemy would make a save a quarter slower."""

    def __init__(self, construct: Any, dialect: Dialect) -> None:
        compiled = construct.compile(dialect=dialect)
        self._text = str(compiled)
        self._order: list[str] | None = compiled.positiontup
        self._error = dialect.loaded_dbapi.Error

    def written(self, connection: Connection, values: Mapping[str, Any]) -> bool:
        """Execute the statement; return whether a row was written."""
        arguments = self._arguments(values)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._text, arguments)
            return cursor.rowcount == 1
        except self._error:
            # Repeat it through SQLAlchemy, which interprets the error: after a lost server it resets the pool.
            return connection.exec_driver_sql(self._text, arguments).rowcount == 1
        finally:
            cursor.close()

    def execute(self, cursor: Any, values: Mapping[str, Any]) -> Any:
        """Execute it with a cursor of the driver, and return the cursor."""
        cursor.execute(self._text, self._arguments(values))
        return cursor

    def _arguments(self, values: Mapping[str, Any]) -> Any:
        return values if self._order is None else tuple([values[name] for name in self._order])


@lru_cache(maxsize=128)
def updating(dialect: Dialect, *changed: str, keeps_due: bool, asks_inbox: bool) -> Statement:
    """Return the update of the named columns and of both times, except ``due`` if it is kept."""
    values: dict[str, Any] = {"due": sa.null(), "expires": sa.null()}
    for name in changed:
        values[name] = _seconds(f"{name}_") if name in values else sa.bindparam(f"{name}_")
    if keeps_due:
        del values["due"]
    where = _as_expected & _has_inbox if asks_inbox else _as_expected
    return Statement(sa.update(records).where(where).values(values), dialect)


@lru_cache(maxsize=4)
def reading(dialect: Dialect) -> Statement:
    """Return the statement that reads one record."""
    return Statement(READ, dialect)


@lru_cache(maxsize=4)
def inserting(dialect: Dialect) -> Statement:
    """Return the insert for a task without a record, or with an expired one."""
    given: dict[str, Any] = {
        name: sa.bindparam(f"{name}_") for name in ("namespace", "task_id", "fence", "worker", *TEXTS)
    }
    times = {name: _seconds(f"{name}_") for name in ("due", "expires")}
    insert = INSERTS[dialect.name](records).values({**given, **times})
    return Statement(
        insert.on_conflict_do_update(
            index_elements=list(records.primary_key),
            set_={column.name: insert.excluded[column.name] for column in _row if not column.primary_key},
            where=~_lives,
        ),
        dialect,
    )


@lru_cache(maxsize=4)
def renewing(dialect: Dialect) -> Statement:
    """Return the statement that writes a lease."""
    given: dict[str, Any] = {name: sa.bindparam(f"{name}_") for name in ("namespace", "worker", "note")}
    insert = INSERTS[dialect.name](leases).values({**given, "until": _seconds("seconds_")})
    return Statement(
        insert.on_conflict_do_update(
            index_elements=list(leases.primary_key),
            set_={"until": insert.excluded.until, "note": insert.excluded.note},
        ),
        dialect,
    )
