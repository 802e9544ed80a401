"""Records in a database: SQLite or PostgreSQL, by SQLAlchemy Core; one statement for each operation.

=======================  =====================================================================
``continuation_record``  a row for each record; ``worker`` is null unless it owns the record,
                         ``due`` and ``expires`` are null for never, ``inbox`` where
                         nothing was delivered
``continuation_lease``   a row for each worker
=======================  =====================================================================

Every statement commits by itself, and all times are by the database's clock.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, UNCHANGED, Fence, Lease, Look, Record, Store, each

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
    from sqlalchemy.exc import DatabaseError, DBAPIError, SQLAlchemyError
    from sqlalchemy.ext.compiler import compiles
    from sqlalchemy.pool import NullPool
    from sqlalchemy.sql.functions import FunctionElement
except ImportError as exc:  # pragma: no cover - tested in a subprocess without SQLAlchemy
    raise StoreError(
        "database", "SQLAlchemy 2.0 or later is missing; run: pip install 'celery-continuations[sqlalchemy]'"
    ) from exc

__all__ = ["DatabaseStore", "metadata"]

T = TypeVar("T")

#: The two tables, for migrations.  They are made when a store is first used, if they are missing.
metadata = sa.MetaData()

_LONGEST = 255

_records = sa.Table(
    "continuation_record",
    metadata,
    sa.Column("namespace", sa.String(_LONGEST), primary_key=True),
    sa.Column("task_id", sa.String(_LONGEST), primary_key=True),
    sa.Column("fence", sa.Text, nullable=False),
    sa.Column("worker", sa.String(_LONGEST)),
    sa.Column("due", sa.Double),
    sa.Column("expires", sa.Double),
    sa.Column("snapshot", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("value", sa.Text),
    sa.Column("inbox", sa.Text),
)
_leases = sa.Table(
    "continuation_lease",
    metadata,
    sa.Column("namespace", sa.String(_LONGEST), primary_key=True),
    sa.Column("worker", sa.String(_LONGEST), primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)


def _index(*columns: sa.Column[Any]) -> None:
    """Index the few rows where the last of the columns is not null."""
    name = "_".join(["ix", _records.name, *(column.name for column in columns)])
    where = columns[-1].is_not(None)
    sa.Index(name, *columns, postgresql_where=where, sqlite_where=where)


_row = _records.c
_index(_row.namespace, _row.due)
_index(_row.namespace, _row.worker)
_index(_row.expires)


class _Clock(FunctionElement[float]):
    """The database's time in seconds since the epoch; one for all of a statement."""

    type = sa.Double()
    inherit_cache = True


@compiles(_Clock, "postgresql")
def _postgresql_clock(*args: Any, **kwargs: Any) -> str:
    # clock_timestamp() would be another one for each row, which no index can be searched for
    return "CAST(extract(epoch from statement_timestamp()) AS DOUBLE PRECISION)"


@compiles(_Clock, "sqlite")
def _sqlite_clock(*args: Any, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # to the millisecond; unixepoch('subsec') came with 3.42


def _seconds(name: str) -> sa.ColumnElement[float]:
    """Return the time so many seconds from now; null for null."""
    return _Clock() + sa.cast(sa.bindparam(name), sa.Double)


_now = _Clock()
_lives = _row.expires.is_(None) | (_row.expires > _now)
_this = (_row.namespace == sa.bindparam("namespace_")) & (_row.task_id == sa.bindparam("task_id_")) & _lives
_as_expected = _this & (_row.fence == sa.bindparam("expected"))
_has_inbox = sa.func.coalesce(_row.inbox, sa.literal_column("''", sa.Text)) == sa.bindparam("expected_inbox")
_TEXTS = ("snapshot", "message", "value", "inbox")

_PARTS = (_row.fence, _row.snapshot, _row.message, _row.value, _row.due, _row.inbox)
_READ = sa.select(*_PARTS).where(_this)
_living = (_row.namespace == sa.bindparam("namespace_")) & _lives
_IDS = (
    sa.select(_row.task_id)
    .where(_living, _row.task_id > sa.bindparam("after"))
    .order_by(_row.task_id)
    .limit(sa.bindparam("limit_"))
)
_RECORDS = sa.select(_row.task_id, *_PARTS).where(
    _living, _row.task_id >= sa.bindparam("first"), _row.task_id <= sa.bindparam("last")
)
_DELETE = sa.delete(_records).where(_as_expected)
_TAKE = (
    sa.update(_records)
    .where(_as_expected)
    .values(fence=sa.bindparam("fence_"), worker=sa.bindparam("worker_"), due=None, expires=None)
    .returning(_row.fence, _row.snapshot, _row.value)
)
_own = (_row.namespace == sa.bindparam("namespace_")) & (_row.worker == sa.bindparam("worker_")) & _lives
_OWNED = sa.select(_row.task_id, _row.fence).where(_own)
_lease = (_leases.c.namespace == sa.bindparam("namespace_")) & (_leases.c.worker == sa.bindparam("worker_"))
_RETIRE = sa.delete(_leases).where(_lease, ~sa.exists().where(_own))

# A writer that locks an expired row is about to replace it.
_EXPIRED = (
    sa.select(_row.namespace, _row.task_id)
    .where(_row.expires <= _now)
    .order_by(_row.expires)
    .limit(sa.bindparam("limit_"))
    .with_for_update(skip_locked=True)
)
_CLEAN = sa.delete(_records).where(sa.tuple_(_row.namespace, _row.task_id).in_(_EXPIRED))


def _looked() -> sa.CompoundSelect[str, str, float | None, str]:
    """Return one query for all that a sweep looks at: what it is, whose, when, and more."""
    space: sa.BindParameter[str] = sa.bindparam("namespace_")
    never = sa.cast(sa.null(), sa.Double)
    # The owners, one search of the index for each: DISTINCT would read all that is owned.
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
        part("lease", _leases.c.worker, _leases.c.until - _now, _leases.c.note).where(_leases.c.namespace == space),
        part("owner", owners.c.worker, never, sa.literal_column("''", sa.Text)).where(owners.c.worker.is_not(None)),
        part("due", due.c.task_id, due.c.due, sa.literal_column("''", sa.Text)),
        part("owned", _row.task_id, never, _row.fence).where(_own),
    )


_LOOK = _looked()


class _Statement:
    """A statement that goes past SQLAlchemy to the driver: what lies between would cost a save a quarter more."""

    def __init__(self, construct: Any, dialect: Dialect) -> None:
        compiled = construct.compile(dialect=dialect)
        self._text = str(compiled)
        self._order: list[str] | None = compiled.positiontup
        self._error = dialect.loaded_dbapi.Error

    def written(self, connection: Connection, values: Mapping[str, Any]) -> bool:
        """Return whether a row was written."""
        arguments = self._arguments(values)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(self._text, arguments)
            return cursor.rowcount == 1
        except self._error:
            # Repeated by SQLAlchemy, which knows what the error means: for the pool, when the server has gone.
            return connection.exec_driver_sql(self._text, arguments).rowcount == 1
        finally:
            cursor.close()

    def execute(self, cursor: Any, values: Mapping[str, Any]) -> Any:
        """Execute it with a cursor of the driver, which is returned."""
        cursor.execute(self._text, self._arguments(values))
        return cursor

    def _arguments(self, values: Mapping[str, Any]) -> Any:
        return values if self._order is None else tuple([values[name] for name in self._order])


@lru_cache(maxsize=128)
def _swap(dialect: Dialect, *changed: str, keeps_due: bool, asks_inbox: bool) -> _Statement:
    """Write over what is there: of the columns those named, and the two times unless one is to be kept."""
    values: dict[str, Any] = {"due": sa.null(), "expires": sa.null()}
    for name in changed:
        values[name] = _seconds(f"{name}_") if name in values else sa.bindparam(f"{name}_")
    if keeps_due:
        del values["due"]
    where = _as_expected & _has_inbox if asks_inbox else _as_expected
    return _Statement(sa.update(_records).where(where).values(values), dialect)


@lru_cache(maxsize=4)
def _reading(dialect: Dialect) -> _Statement:
    return _Statement(_READ, dialect)


@lru_cache(maxsize=4)
def _add(dialect: Dialect) -> _Statement:
    """Write where there is nothing, or nothing that lives."""
    given: dict[str, Any] = {
        name: sa.bindparam(f"{name}_") for name in ("namespace", "task_id", "fence", "worker", *_TEXTS)
    }
    times = {name: _seconds(f"{name}_") for name in ("due", "expires")}
    insert = _INSERTS[dialect.name](_records).values({**given, **times})
    return _Statement(
        insert.on_conflict_do_update(
            index_elements=list(_records.primary_key),
            set_={column.name: insert.excluded[column.name] for column in _row if not column.primary_key},
            where=~_lives,
        ),
        dialect,
    )


@lru_cache(maxsize=4)
def _renew(dialect: Dialect) -> _Statement:
    given: dict[str, Any] = {name: sa.bindparam(f"{name}_") for name in ("namespace", "worker", "note")}
    insert = _INSERTS[dialect.name](_leases).values({**given, "until": _seconds("seconds_")})
    return _Statement(
        insert.on_conflict_do_update(
            index_elements=list(_leases.primary_key),
            set_={"until": insert.excluded.until, "note": insert.excluded.note},
        ),
        dialect,
    )


_INSERTS: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}

# A child must not inherit a SQLite connection that is in use, nor the locks that SQLite believes to hold
# for it: that corrupts the file. So there is one at a time, closed after each operation, and none in a fork.
_in_sqlite = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_in_sqlite.acquire, after_in_parent=_in_sqlite.release, after_in_child=_in_sqlite.release
    )

#: Seconds for which a SQLite file may be locked by another process.
_BUSY = 10.0

# Drivers over libpq, and how long they wait for a server that cannot be reached, or takes nothing any more.
_LIBPQ = frozenset(("psycopg", "psycopg2"))
_IMPATIENT = {"connect_timeout": 3, "tcp_user_timeout": 3000}

# Options of the engine that are the store's own affair. A dead connection is noticed when it is used:
# pool_pre_ping, which Celery sets, would make two round trips of each.
_OWN = frozenset(("isolation_level", "execution_options", "pool", "poolclass", "pool_pre_ping", "pool_reset_on_return"))

# Expired records are removed so many at a time, and looked for so often (in seconds).
_BATCH = 500
_CLEAN_EVERY = 60.0

# So many records are read at a time where all are.
_PAGE = 100

_ATTEMPTS_TO_CREATE = 10


class DatabaseStore(Store):
    """A row for each record.

    Nothing is connected to before it is first used; that makes the tables, too.

    Args:
        url: of the database, as SQLAlchemy has it.
        namespace: keeps apart services that share a database.
        options: of SQLAlchemy's engine; those that would change how the store works are passed over.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = DatabaseStore(f"sqlite:///{folder.name}/progress.db", "service")
    >>> store.swap("id", None, Record(Fence(1, "running", "me")))
    True
    >>> store.swap("id", None, Record(Fence(1, "running", "you")))
    False
    >>> DatabaseStore("sqlite://", "service")
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.StoreError: store database: sqlite:// is in memory, ...
    >>> folder.cleanup()
    """

    def __init__(self, url: str | URL, namespace: str, options: Mapping[str, Any] | None = None) -> None:
        try:
            self._url = make_url(url)
            dialect = self._url.get_dialect()
        except (SQLAlchemyError, ValueError) as exc:
            raise StoreError("database", f"cannot read the URL: {exc}") from exc
        if dialect.name not in _INSERTS or dialect.is_async:
            raise StoreError(
                "database", f"{self._url} is not supported; sqlite:/// and postgresql:// are, with drivers that block"
            )
        if dialect.name == "sqlite" and _in_memory(self._url):
            raise StoreError("database", f"{self._url} is in memory, where no other process could find it")
        self._namespace = _checked("a namespace", namespace)
        self._guard: AbstractContextManager[Any] = _in_sqlite if dialect.name == "sqlite" else nullcontext()
        self._options = _engine_options(dialect, options or {})
        # One for each process: connections must not be shared with a parent, which may go on using them.
        self._engines = {os.getpid(): self._make_engine()}
        self._prepared = False
        self._next_cleaning = 0.0

    def read(self, task_id: str) -> Record | None:
        """See :class:`Store`."""
        values = self._values(task_id)
        row = self._run(lambda connection: connection.execute(_READ, values).one_or_none(), task_id)
        return None if row is None else self._record(task_id, *row)

    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
        inbox: str | None = None,
    ) -> bool:
        """See :class:`Store`."""
        if expected is None and inbox:
            return False
        dialect = self._engine.dialect
        keeps_due = due_in == UNCHANGED
        values = self._values(task_id, expected)
        values.update(
            fence_=record.fence.dumps(),
            worker_=_checked("a worker", record.fence.worker) or None,
            due_=None if keeps_due else due_in,
            expires_=expires_in,
            snapshot_=record.snapshot,
            message_=record.message,
            value_=record.value,
            inbox_=record.inbox,
            expected_inbox=inbox,
        )
        if expected is None:
            statement = _add(dialect)
        else:
            changed = [name for name in (*_TEXTS, "due", "expires") if values[f"{name}_"] is not None]
            if record.fence != expected:
                changed += ("fence", "worker")
            statement = _swap(dialect, *changed, keeps_due=keeps_due, asks_inbox=inbox is not None)
        return self._write(statement, values, task_id)

    def within(self, connection: Any) -> Store:
        """See :class:`Store`."""
        return _Within(self, connection)

    def _write(self, statement: _Statement, values: Mapping[str, Any], task_id: str) -> bool:
        return self._run(lambda connection: statement.written(connection, values), task_id)

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        """See :class:`Store`."""
        if not self._engine.dialect.update_returning:  # SQLite before 3.35
            return super().take(task_id, expected, fence)
        values = self._values(task_id, expected)
        values.update(fence_=fence.dumps(), worker_=_checked("a worker", fence.worker) or None)
        row = self._run(lambda connection: connection.execute(_TAKE, values).one_or_none(), task_id)
        return None if row is None else self._record(task_id, row.fence, row.snapshot, None, row.value)

    def delete(self, task_id: str, expected: Fence) -> bool:
        """See :class:`Store`."""
        values = self._values(task_id, expected)
        return self._run(lambda connection: connection.execute(_DELETE, values).rowcount == 1, task_id)

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """See :class:`Store`; reads a page at a time."""
        ids = self._ids_after("")
        while ids:
            yield from self._records_of(ids)
            ids = self._ids_after(ids[-1])

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """See :class:`Store`; now and then removes what has expired."""
        statement = _renew(self._engine.dialect)
        values = {
            "namespace_": self._namespace,
            "worker_": _checked("a worker", worker),
            "seconds_": seconds,
            "note_": note,
        }

        def work(connection: Connection) -> None:
            statement.written(connection, values)
            self._clean(connection)

        self._run(work)

    def retire(self, worker: str) -> None:
        """See :class:`Store`."""
        values = {"namespace_": self._namespace, "worker_": worker}
        self._run(lambda connection: connection.execute(_RETIRE, values).close())

    def look(self, worker: str = "", limit: int = LIMIT) -> Look:
        """See :class:`Store`."""
        values = {"namespace_": self._namespace, "worker_": worker, "limit_": limit}
        rows = self._run(lambda connection: connection.execute(_LOOK, values).all())
        found: dict[str, list[Any]] = {"lease": [], "owner": [], "due": [], "owned": []}
        for what, *row in rows:
            found[what].append(row)
        leases = {name: Lease(name, left, note) for name, left, note in found["lease"]}
        for name, _, _ in found["owner"]:
            leases.setdefault(name, Lease(name, 0.0))
        due = [task_id for task_id, _, _ in sorted(found["due"], key=lambda row: row[1])]
        return Look(list(leases.values()), due, {task_id: _owner(fence) for task_id, _, fence in found["owned"]})

    def owned(self, worker: str) -> dict[str, str]:
        """See :class:`Store`."""
        values = {"namespace_": self._namespace, "worker_": worker}
        rows = self._run(lambda connection: connection.execute(_OWNED, values).all())
        return {task_id: _owner(fence) for task_id, fence in rows}

    def _ids_after(self, after: str) -> list[str]:
        values = {"namespace_": self._namespace, "after": after, "limit_": _PAGE}
        return self._run(lambda connection: list(connection.execute(_IDS, values).scalars()))

    def _records_of(self, ids: list[str]) -> Iterator[tuple[str, Record | StoreError]]:
        values = {"namespace_": self._namespace, "first": ids[0], "last": ids[-1]}
        try:
            rows = self._run(lambda connection: connection.execute(_RECORDS, values).all())
        except StoreError:
            if self._engine.dialect.name != "sqlite":
                raise
            yield from each(ids, self.read)  # its driver gives none of the rows if one has bytes that are no text
        else:
            parts = {task_id: row for task_id, *row in rows}
            yield from each(parts, lambda task_id: self._record(task_id, *parts[task_id]))

    def close(self) -> None:
        """Close the connections of this process."""
        engine = self._engines.get(os.getpid())
        if engine is not None:
            engine.dispose()

    @property
    def _engine(self) -> Engine:
        pid = os.getpid()
        # setdefault, so that of two threads which find none both use the same
        return self._engines.get(pid) or self._engines.setdefault(pid, self._make_engine())

    def _make_engine(self) -> Engine:
        try:
            return sa.create_engine(self._url, **self._options)
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as exc:
            raise StoreError("database", f"cannot open {self._url}: {type(exc).__name__}: {exc}") from exc

    def _values(self, task_id: str, expected: Fence | None = None) -> dict[str, Any]:
        values = {"namespace_": self._namespace, "task_id_": _checked("a task id", task_id)}
        return values if expected is None else {**values, "expected": expected.dumps()}

    def _run(self, work: Callable[[Connection], T], task_id: str | None = None) -> T:
        where = "" if task_id is None else f"{_records.name}, task {task_id!r}: "
        engine = self._engine
        again = True
        while True:
            try:
                with self._guard, engine.connect() as connection:
                    return self._work(connection, work)
            except DBAPIError as exc:
                if again and exc.connection_invalidated:
                    # The server has been away since, and the pool has forgotten its connections. What was cut off
                    # may have been written all the same: whoever swaps asks for that when it is refused.
                    again = False
                    continue
                self._prepared = False  # perhaps the tables are gone
                raise StoreError("database", f"{where}{type(exc.orig).__name__}: {exc.orig}") from exc
            except (
                SQLAlchemyError,
                ValueError,
                TypeError,
            ) as exc:  # or a driver's, of what it cannot write or does not know
                raise StoreError("database", f"{where}{type(exc).__name__}: {exc}") from exc

    def _work(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            if not self._prepared:
                _create_tables(connection)
                self._prepared = True
                self._clean(connection)
            return work(connection)
        except SQLAlchemyError:
            raise
        except BaseException:
            # Raised in the middle by a signal's handler: the answer would be taken for the next statement's.
            connection.invalidate()
            raise

    def _clean(self, connection: Connection) -> None:
        """Remove what has expired, of any namespace, also of those that are no longer opened."""
        now = time.monotonic()
        if now >= self._next_cleaning:
            self._next_cleaning = now + _CLEAN_EVERY
            if connection.execute(_CLEAN, {"limit_": _BATCH}).rowcount == _BATCH:
                self._next_cleaning = now  # there is more

    def _record(
        self,
        task_id: str,
        fence: Any,
        snapshot: Any,
        message: Any,
        value: Any,
        due: Any = None,
        inbox: Any = None,
    ) -> Record:
        try:
            for text in (snapshot, message, value, inbox):
                if not (text is None or isinstance(text, str)):
                    raise TypeError(f"{text[:20]!r} is not text")
            due = None if due is None else float(due)
            return Record(Fence.loads(fence), snapshot, message, value, due, inbox)
        except (ValueError, TypeError) as exc:
            raise StoreError(
                "database", f"{_records.name}, task {task_id!r} of {self._namespace}: no record: {exc!r}"
            ) from exc


class _Within(DatabaseStore):
    """The same records, in the caller's transaction."""

    def __init__(self, store: DatabaseStore, connection: Any) -> None:
        vars(self).update(vars(store))
        self._connection = connection
        self._driver = sys.modules[type(connection).__module__.partition(".")[0]]
        style = getattr(self._driver, "paramstyle", None)
        dialect = self._engine.dialect
        if style != dialect.paramstyle:
            raise StoreError(
                "database",
                f"transaction= has a connection of {self._driver.__name__}, this store is of {dialect.name} by "
                f"{dialect.driver}; both must be the same database, by the same driver",
            )

    def read(self, task_id: str) -> Record | None:
        """See :class:`Store`."""
        values = self._values(task_id)
        row = self._executed(lambda cursor: _reading(self._engine.dialect).execute(cursor, values).fetchone(), task_id)
        return None if row is None else self._record(task_id, *row)

    def _write(self, statement: _Statement, values: Mapping[str, Any], task_id: str) -> bool:
        return self._executed(lambda cursor: bool(statement.execute(cursor, values).rowcount == 1), task_id)

    def _executed(self, work: Callable[[Any], T], task_id: str) -> T:
        cursor = self._connection.cursor()
        try:
            return work(cursor)
        except self._driver.Error as exc:
            raise StoreError(
                "database", f"{_records.name}, task {task_id!r}, in the task's own transaction: {exc}"
            ) from exc
        finally:
            cursor.close()


def _checked(what: str, text: str) -> str:
    # PostgreSQL would cut it where SQLAlchemy casts it, and SQLite would take it
    if len(text) > _LONGEST:
        raise StoreError("database", f"{what} has at most {_LONGEST} characters, not {len(text)}: {text}")
    return text


def _owner(fence: Any) -> str:
    # Not Fence.loads: one row that is wrong must not hide the others; reading it says what is wrong.
    return str(fence).split(" ", 2)[-1]


def _in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    return ":memory:" in name or url.query.get("mode") == "memory" or "mode=memory" in name


def _engine_options(dialect: type[Dialect], options: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name not in _OWN}
    found.setdefault("hide_parameters", True)  # snapshots are nothing for a log
    found["isolation_level"] = "AUTOCOMMIT"
    if dialect.name == "sqlite":
        found = {
            name: value for name, value in found.items() if not name.startswith(("pool_", "echo_pool", "max_over"))
        }
        found["poolclass"] = NullPool
        found["connect_args"] = {"timeout": _BUSY, **found.get("connect_args", {})}
    else:
        found["pool_reset_on_return"] = None  # each statement has been committed
        if dialect.driver in _LIBPQ:
            found["connect_args"] = {**_IMPATIENT, **found.get("connect_args", {})}
    return found


def _create_tables(connection: Connection) -> None:
    """Make the tables, unless they are there; all or nothing."""
    for attempt in range(_ATTEMPTS_TO_CREATE):
        if all(sa.inspect(connection).has_table(name) for name in metadata.tables):
            return
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
            try:
                metadata.create_all(connection)
            except SQLAlchemyError:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
            return
        except DatabaseError as exc:
            # Another process made them since they were looked for; it will have finished soon.
            if exc.connection_invalidated or attempt + 1 == _ATTEMPTS_TO_CREATE:
                raise
            time.sleep(random.uniform(0, 0.01) * 2**attempt)
