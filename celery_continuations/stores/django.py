"""Records in a Django project's database, through its ORM and connection.

The tables belong to :mod:`celery_continuations.contrib.django` and are created by its migrations.  Every statement
commits automatically, unless the caller has a transaction open, and all times are by the database's clock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import LIMIT, Due, Fence, Record, Scan, Store, Update
from celery_continuations.stores.reading import each
from celery_continuations.stores.sql import (
    CLOCK_OF_POSTGRESQL,
    CLOCK_OF_SQLITE,
    PAGE,
    TEXTS,
    Cleaning,
    checked,
    record_of,
    scan_of,
    seconds_left,
    worker_of,
)

try:
    from django.apps import apps
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error, IntegrityError, connections, transaction
    from django.db.models import Exists, F, FloatField, Func, OuterRef, Q, Value
except ImportError as exc:  # pragma: no cover - tested in a subprocess without Django
    raise StoreError(
        "django", "Django 4.2 or later is missing; run: pip install 'celery-continuations[django]'"
    ) from exc

__all__ = ["DjangoStore"]

T = TypeVar("T")

_APP = "celery_continuations"
_PARTS = ("fence", "snapshot", "message", "value", "due", "inbox")


class _Clock(Func):
    """The database's time in seconds since the epoch, constant within a statement."""

    output_field = FloatField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, list[Any]]:
        return CLOCK_OF_POSTGRESQL, []

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> tuple[str, list[Any]]:
        return CLOCK_OF_SQLITE, []


def _from_now(seconds: float) -> Any:
    return _Clock() + Value(float(seconds), output_field=FloatField())


# A child must not inherit a SQLite connection that is in use, nor the locks that SQLite keeps for it.
_in_sqlite = threading.RLock()

# The stores' databases; and their connections from before a fork, which are kept: collecting them could close what the
# parent still uses.
_aliases: set[str] = set()
_inherited: list[Any] = []


def _after_fork() -> None:
    for alias in _aliases:
        connection = connections[alias]
        if connection.connection is not None:
            _inherited.append(connection.connection)
            connection.connection = None
    _in_sqlite.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_in_sqlite.acquire, after_in_parent=_in_sqlite.release, after_in_child=_after_fork)


class DjangoStore(Store):
    """A row for each record.

    Args:
        alias: the alias of the database in ``DATABASES``.
        namespace: separates services that share a database.

    Raises:
        StoreError: when the app is not installed, or the kind of database is not supported.
    """

    def __init__(self, alias: str, namespace: str) -> None:
        try:
            if not apps.is_installed("celery_continuations.contrib.django"):
                raise StoreError(
                    "django", "add 'celery_continuations.contrib.django' to INSTALLED_APPS and run migrate"
                )
            vendor = connections[alias].vendor
        except (ImproperlyConfigured, Error, LookupError) as exc:
            raise StoreError("django", f"database {alias!r}: {exc}") from exc
        if vendor not in ("sqlite", "postgresql"):
            raise StoreError("django", f"database {alias!r} is {vendor}; sqlite and postgresql are supported")
        self._alias = alias
        self._namespace = _checked("a namespace", namespace)
        self._guard: AbstractContextManager[Any] = _in_sqlite if vendor == "sqlite" else nullcontext()
        self._cleaning = Cleaning()
        _aliases.add(alias)

    def read(self, task_id: str) -> Record | None:
        rows = self._this(task_id).values_list(*_PARTS)
        row = self._run(lambda: next(iter(rows), None), task_id)
        return None if row is None else self._record(task_id, *row)

    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        if expected is None and update.expected_inbox:
            return False
        due_in, expires_in, inbox = update.due_in, seconds_left(update), update.expected_inbox
        values: dict[str, Any] = {
            "fence": update.fence.dumps(),
            "worker": worker_of("django", update),
            "due": None if due_in is None or due_in is Due.UNCHANGED else _from_now(due_in),
            "expires": None if expires_in is None else _from_now(expires_in),
        }
        texts = {name: getattr(update, name) for name in TEXTS}
        if expected is None:
            return self._run(lambda: self._add(task_id, {**values, **texts}), task_id)
        if due_in is Due.UNCHANGED:
            del values["due"]
        values.update((name, text) for name, text in texts.items() if text is not None)
        rows = self._this(task_id).filter(fence=expected.dumps())
        if inbox is not None:
            rows = rows.filter(Q(inbox=inbox) if inbox else Q(inbox="") | Q(inbox__isnull=True))
        return self._run(lambda: bool(rows.update(**values) == 1), task_id)

    def within(self, connection: Any) -> Store:
        """Return this store, which uses the transaction on Django's own connection."""
        if connections[self._alias].connection is not connection:
            raise StoreError(
                "django",
                f"transaction= needs the alias of the database in which the records are, which is {self._alias!r}",
            )
        return self

    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record, read a page at a time."""
        after = 0
        while True:
            page = self._living().filter(id__gt=after).order_by("id").values_list("id", "task_id")[:PAGE]
            ids = self._run(lambda page=page: list(page))  # type: ignore[misc]
            if not ids:
                return
            yield from each([task_id for _, task_id in ids], self.read)
            after = ids[-1][0]

    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """Renew the lease, and remove expired records at intervals."""
        _checked("a worker", worker)
        row = {"namespace": self._namespace, "worker": worker}
        values = {"until": _from_now(seconds), "note": note}

        def work() -> None:
            leases = self._leases().filter(worker=worker)
            while not leases.update(**values) and not self._insert(self._leases(), {**row, **values}):
                pass  # another thread has just created it
            self._cleaning.clean(self._remove_expired)

        self._run(work)

    def retire(self, worker: str) -> None:
        owned = self._living().filter(worker=OuterRef("worker"))
        idle = self._leases().filter(~Exists(owned), worker=worker)
        self._run(lambda: idle._raw_delete(self._alias))  # one statement: delete() would query the rows first

    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        leases = self._leases().values_list("worker", F("until") - _Clock(), "note")
        owners = self._rows().filter(worker__isnull=False).values_list("worker", flat=True).distinct()
        due = self._living().filter(due__lte=_Clock()).order_by("due").values_list("task_id", flat=True)[:limit]

        def work() -> Scan:
            return scan_of(leases, owners, due, self._living().filter(worker=worker).values_list("task_id", "fence"))

        return self._run(work)

    def close(self) -> None:
        """Close this thread's connection, unless a transaction is open on it."""
        if not connections[self._alias].in_atomic_block:
            connections[self._alias].close()

    def _rows(self) -> Any:
        return apps.get_model(_APP, "RecordRow")._base_manager.using(self._alias).filter(namespace=self._namespace)

    def _leases(self) -> Any:
        return apps.get_model(_APP, "LeaseRow")._base_manager.using(self._alias).filter(namespace=self._namespace)

    def _living(self) -> Any:
        return self._rows().filter(Q(expires__isnull=True) | Q(expires__gt=_Clock()))

    def _this(self, task_id: str) -> Any:
        return self._living().filter(task_id=_checked("a task id", task_id))

    def _add(self, task_id: str, values: dict[str, Any]) -> bool:
        """Insert a record; if the task has one, replace it only if it has expired."""
        row = {"namespace": self._namespace, "task_id": _checked("a task id", task_id)}
        if self._insert(self._rows(), {**row, **values}):
            return True
        expired = self._rows().filter(task_id=task_id, expires__lte=_Clock())
        return bool(expired.update(**values) == 1)

    def _insert(self, rows: Any, values: dict[str, Any]) -> bool:
        is_open = connections[self._alias].in_atomic_block
        try:
            # A refused row would make the rest of an open transaction fail.
            with transaction.atomic(using=self._alias) if is_open else nullcontext():
                rows.create(**values)
        except IntegrityError:
            return False
        return True

    def _run(self, work: Callable[[], T], task_id: str | None = None) -> T:
        where = "" if task_id is None else f"task {task_id!r}: "
        again = True
        while True:
            connection = connections[self._alias]
            try:
                with self._guard:
                    return work()
            except Error as exc:
                if not connection.in_atomic_block and not self._is_usable(connection):
                    connection.close()
                    if again:
                        # The server was unavailable. The interrupted write may still have taken effect: callers of
                        # compare_and_swap check for that when the retry is refused.
                        again = False
                        continue
                raise StoreError("django", f"{where}{type(exc).__name__}: {exc}") from exc
            except (ValueError, TypeError) as exc:  # the driver cannot write a value
                raise StoreError("django", f"{where}{type(exc).__name__}: {exc}") from exc

    def _is_usable(self, connection: Any) -> bool:
        return connection.connection is not None and bool(connection.is_usable())

    def _remove_expired(self, most: int) -> int:
        rows = apps.get_model(_APP, "RecordRow")._base_manager.using(self._alias)
        expired = list(rows.filter(expires__lte=_Clock()).order_by("expires").values_list("id", flat=True)[:most])
        # Checked again: a row may have been replaced since.
        rows.filter(id__in=expired, expires__lte=_Clock()).delete()
        return len(expired)

    def _record(self, task_id: str, *parts: Any) -> Record:
        try:
            return record_of(*parts)
        except (ValueError, TypeError) as exc:
            raise StoreError("django", f"task {task_id!r} of {self._namespace}: not a record: {exc!r}") from exc


def _checked(what: str, text: str) -> str:
    return checked("django", what, text)
