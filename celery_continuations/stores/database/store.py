"""The store in a database, by SQLAlchemy."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Dialect, Engine, make_url
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from celery_continuations.exceptions import StoreError
from celery_continuations.masking import masked
from celery_continuations.stores.base import LIMIT, Due, Fence, Record, Scan, Store, Update
from celery_continuations.stores.database import statements
from celery_continuations.stores.database.statements import Statement
from celery_continuations.stores.database.tables import create_tables, records
from celery_continuations.stores.reading import each
from celery_continuations.stores.sql import PAGE, TEXTS, Cleaning, checked, record_of, scan_of, seconds_left, worker_of

__all__ = ["DatabaseStore"]

T = TypeVar("T")

# A child must not inherit a SQLite connection that is in use, nor the locks that SQLite keeps for it: that corrupts the
# file. So there is one connection at a time, closed after each operation, and none during a fork.
_in_sqlite = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_in_sqlite.acquire, after_in_parent=_in_sqlite.release, after_in_child=_in_sqlite.release
    )

#: Seconds to wait for a SQLite file that another process has locked.
_BUSY = 10.0

# Drivers over libpq, and how long they wait for a server that cannot be reached or has stopped responding.
_LIBPQ = frozenset(("psycopg", "psycopg2"))
_IMPATIENT = {"connect_timeout": 3, "tcp_user_timeout": 3000}

# psycopg 3 prepares what it executes often. PgBouncer before 1.21 in transaction mode gives a prepared statement to
# other connections.
_UNPREPARED = {"prepare_threshold": None}

# Options of the engine that only the store sets. It notices a dead connection when it uses it: pool_pre_ping, which
# Celery sets, would double the round trips.
_OWN = frozenset(("isolation_level", "execution_options", "pool", "poolclass", "pool_pre_ping", "pool_reset_on_return"))


class DatabaseStore(Store):
    """A row for each record.

    The first use connects, and creates the tables.

    Args:
        url: the database URL of SQLAlchemy.
        namespace: separates services that share a database.
        options: options of SQLAlchemy's engine; those that would change how the store works are ignored.

    >>> import tempfile
    >>> from celery_continuations.stores import Status
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = DatabaseStore(f"sqlite:///{folder.name}/progress.db", "service")
    >>> store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "me")))
    True
    >>> store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "you")))
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
        except NoSuchModuleError as exc:
            raise StoreError("database", f"cannot read the URL: {exc}") from exc
        except (SQLAlchemyError, ValueError):  # their texts may have the password in them
            raise StoreError("database", f"cannot read the URL {masked(str(url))}") from None
        shown = masked(self._url.render_as_string())
        if dialect.name not in statements.INSERTS or dialect.is_async:
            raise StoreError(
                "database", f"{shown} is not supported; sqlite:/// and postgresql:// are, with drivers that block"
            )
        if dialect.name == "sqlite" and _in_memory(self._url):
            raise StoreError("database", f"{shown} is in memory, where no other process could find it")
        self._namespace = _checked("a namespace", namespace)
        self._guard: AbstractContextManager[Any] = _in_sqlite if dialect.name == "sqlite" else nullcontext()
        self._options = _engine_options(dialect, options or {})
        # One for each process: connections must not be shared with a parent, which may still use them.
        self._engines = {os.getpid(): self._make_engine()}
        self._prepared = False
        self._cleaning = Cleaning()

    def read(self, task_id: str) -> Record | None:
        values = self._values(task_id)
        row = self._run(lambda connection: connection.execute(statements.READ, values).one_or_none(), task_id)
        return None if row is None else self._record(task_id, *row)

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        if expected is None and update.expected_inbox:
            return False
        dialect = self._engine.dialect
        keeps_due = update.due_in is Due.UNCHANGED
        values = self._values(task_id, expected)
        values.update(
            fence_=update.fence.dumps(),
            worker_=worker_of("database", update),
            due_=None if keeps_due else update.due_in,
            expires_=seconds_left(update),
            expected_inbox=update.expected_inbox,
            **{f"{name}_": getattr(update, name) for name in TEXTS},
        )
        if expected is None:
            statement = statements.inserting(dialect)
        else:
            changed = [name for name in (*TEXTS, "due", "expires") if values[f"{name}_"] is not None]
            if update.fence != expected or update.expires_in == 0:
                changed += ("fence", "worker")
            asks_inbox = update.expected_inbox is not None
            statement = statements.updating(dialect, *changed, keeps_due=keeps_due, asks_inbox=asks_inbox)
        return self._write(statement, values, task_id)

    def within(self, connection: Any) -> Store:
        return _Within(self, connection)

    def _write(self, statement: Statement, values: Mapping[str, Any], task_id: str) -> bool:
        return self._run(lambda connection: statement.written(connection, values), task_id)

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        if not self._engine.dialect.update_returning:  # SQLite before 3.35
            return super().take(task_id, expected, fence)
        values = self._values(task_id, expected)
        values.update(fence_=fence.dumps(), worker_=_checked("a worker", fence.worker) or None)
        row = self._run(lambda connection: connection.execute(statements.TAKE, values).one_or_none(), task_id)
        return None if row is None else self._record(task_id, row.fence, row.snapshot, None, row.value)

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record, read a page at a time."""
        ids = self._ids_after("")
        while ids:
            yield from self._records_of(ids)
            ids = self._ids_after(ids[-1])

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """Renew the lease, and remove expired records at intervals."""
        statement = statements.renewing(self._engine.dialect)
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
        values = {"namespace_": self._namespace, "worker_": worker}
        self._run(lambda connection: connection.execute(statements.RETIRE, values).close())

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        values = {"namespace_": self._namespace, "worker_": worker, "limit_": limit}
        rows = self._run(lambda connection: connection.execute(statements.SCAN, values).all())
        found: dict[str, list[Any]] = {"lease": [], "owner": [], "due": [], "owned": []}
        for what, *row in rows:
            found[what].append(row)
        found["due"].sort(key=lambda row: float(row[1]))
        return scan_of(
            found["lease"],
            [name for name, _, _ in found["owner"]],
            [task_id for task_id, _, _ in found["due"]],
            [(task_id, fence) for task_id, _, fence in found["owned"]],
        )

    def _ids_after(self, after: str) -> list[str]:
        values = {"namespace_": self._namespace, "after": after, "limit_": PAGE}
        return self._run(lambda connection: list(connection.execute(statements.IDS, values).scalars()))

    def _records_of(self, ids: list[str]) -> Iterator[tuple[str, Record | StoreError]]:
        values = {"namespace_": self._namespace, "first": ids[0], "last": ids[-1]}
        try:
            rows = self._run(lambda connection: connection.execute(statements.RECORDS, values).all())
        except StoreError:
            if self._engine.dialect.name != "sqlite":
                raise
            yield from each(ids, self.read)  # its driver returns no rows at all if one has bytes that are not text
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
        # setdefault, so that two threads that find none use the same one
        return self._engines.get(pid) or self._engines.setdefault(pid, self._make_engine())

    def _make_engine(self) -> Engine:
        try:
            return sa.create_engine(self._url, **self._options)
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as exc:
            shown = masked(self._url.render_as_string())
            raise StoreError("database", f"cannot open {shown}: {type(exc).__name__}: {exc}") from exc

    def _values(self, task_id: str, expected: Fence | None = None) -> dict[str, Any]:
        values = {"namespace_": self._namespace, "task_id_": _checked("a task id", task_id)}
        return values if expected is None else {**values, "expected": expected.dumps()}

    def _run(self, work: Callable[[Connection], T], task_id: str | None = None) -> T:
        where = "" if task_id is None else f"{records.name}, task {task_id!r}: "
        engine = self._engine
        again = True
        while True:
            try:
                with self._guard, engine.connect() as connection:
                    return self._work(connection, work)
            except DBAPIError as exc:
                if again and exc.connection_invalidated:
                    # The server was unavailable, and the pool has dropped its connections. The interrupted write may
                    # still have taken effect: callers of compare_and_swap check for that when the retry is refused.
                    again = False
                    continue
                self._prepared = False  # perhaps the tables are gone
                raise StoreError("database", f"{where}{type(exc.orig).__name__}: {exc.orig}") from exc
            except (
                SQLAlchemyError,
                ValueError,
                TypeError,
            ) as exc:  # or an error of the driver, for a value that it cannot write
                raise StoreError("database", f"{where}{type(exc).__name__}: {exc}") from exc

    def _work(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            if not self._prepared:
                create_tables(connection)
                self._prepared = True
                self._clean(connection)
            return work(connection)
        except SQLAlchemyError:
            raise
        except BaseException:
            # Raised by a signal handler in the middle: the answer would be taken for that of the next statement.
            connection.invalidate()
            raise

    def _clean(self, connection: Connection) -> None:
        self._cleaning.clean(lambda most: connection.execute(statements.CLEAN, {"limit_": most}).rowcount)

    def _record(self, task_id: str, *parts: Any) -> Record:
        try:
            return record_of(*parts)
        except (ValueError, TypeError) as exc:
            raise StoreError(
                "database", f"{records.name}, task {task_id!r} of {self._namespace}: not a record: {exc!r}"
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
        values = self._values(task_id)
        row = self._executed(
            lambda cursor: statements.reading(self._engine.dialect).execute(cursor, values).fetchone(), task_id
        )
        return None if row is None else self._record(task_id, *row)

    def _write(self, statement: Statement, values: Mapping[str, Any], task_id: str) -> bool:
        return self._executed(lambda cursor: bool(statement.execute(cursor, values).rowcount == 1), task_id)

    def _executed(self, work: Callable[[Any], T], task_id: str) -> T:
        cursor = self._connection.cursor()
        try:
            return work(cursor)
        except self._driver.Error as exc:
            raise StoreError(
                "database", f"{records.name}, task {task_id!r}, in the task's own transaction: {exc}"
            ) from exc
        finally:
            cursor.close()


def _checked(what: str, text: str) -> str:
    return checked("database", what, text)


def _in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    return ":memory:" in name or url.query.get("mode") == "memory" or "mode=memory" in name


def _engine_options(dialect: type[Dialect], options: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in options.items() if name not in _OWN}
    found.setdefault("hide_parameters", True)  # snapshots must not be logged
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
            own = {**_IMPATIENT, **(_UNPREPARED if dialect.driver == "psycopg" else {})}
            found["connect_args"] = {**own, **found.get("connect_args", {})}
    return found
