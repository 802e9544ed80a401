"""The task's own transactions: the one that is committed with its cursor, and those that forbid a checkpoint.

Django and SQLAlchemy are imported only if the task has done so, or names a transaction of theirs.

:func:`refuse_open` notices, in this thread:

=============  ==============================================================================
Django         every connection in an ``atomic`` block, except the blocks of its own TestCase
SQLAlchemy     a session with objects that are added, changed or deleted; that has flushed, or has
               executed an INSERT, UPDATE or DELETE construct, since its last commit; or that is in
               a ``with session.begin()`` or ``begin_nested()`` block
=============  ==============================================================================

It does not notice a session that has only read, because every read begins a transaction; SQL written as ``text()``,
whose effect is not known; connections used without a session; Django's ``set_autocommit(False)``; nor
a session that began before the first checkpoint after ``sqlalchemy.orm`` was imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

from celery_continuations.commits import atomic_blocks, is_django, open_aliases, units
from celery_continuations.engines import configured_engines, connections_of, several_engines, watch_savepoints
from celery_continuations.exceptions import CheckpointError, InvalidStepError

__all__ = ["AliasUnit", "SessionUnit", "Unit", "blocks_of_tests", "refuse_open", "session_is_open", "tell", "unit_of"]


class Unit(Protocol):
    """A unit of work: the task's own work since its cursor last moved, committed with the next move."""

    name: str

    @property
    def committed(self) -> bool:
        """Whether the database has confirmed the commit: an ``on_commit`` hook or listener may fail after it."""

    def begin(self) -> None:
        """Begin it, unless it has begun."""

    def connection(self) -> Any:
        """Return the driver's connection, with all of the task's work sent to it."""

    def commit(self) -> None:
        """Commit it."""

    def rollback(self) -> None:
        """Roll it back, if it has begun."""

    def has_more_open(self) -> bool:
        """Whether the task has begun a nested transaction."""


class AliasUnit:
    """An ``atomic`` block of Django's, on the connection of one alias."""

    def __init__(self, alias: str) -> None:
        from django.db import connections

        connections[alias]  # raises for an unknown alias
        self.name = f"the Django connection {alias!r}"
        self.committed = False
        self._alias = alias
        self._block: Any = None

    @property
    def _connection(self) -> Any:
        from django.db import connections

        return connections[self._alias]

    def begin(self) -> None:
        """Enter the block."""
        from django.db import transaction

        if self._block is None:
            self.committed, is_tested = False, self._connection.in_atomic_block  # by a TestCase, which never commits
            block = transaction.atomic(using=self._alias, durable=True)
            block.__enter__()
            units.add(block)
            self._block = block
            if not is_tested:
                transaction.on_commit(self._note_commit, using=self._alias)  # before the task's own hooks

    def _note_commit(self) -> None:
        self.committed = True

    def connection(self) -> Any:
        """Return the connection; refuse a block that an error has broken, which Django would roll back silently."""
        connection = self._connection
        connection.validate_no_broken_transaction()
        connection.ensure_connection()
        return connection.connection

    def commit(self) -> None:
        """Leave the block."""
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(None, None, None)

    def rollback(self) -> None:
        """Leave the block with an error."""
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(Rollback, Rollback(), None)

    def has_more_open(self) -> bool:
        """See :class:`Unit`."""
        return any(block is not self._block for block in atomic_blocks(self._connection))


class Rollback(Exception):
    """Has a block of Django's roll back."""


class SessionUnit:
    """The work of a SQLAlchemy session between two commits."""

    def __init__(self, session: Any) -> None:
        self.name = "the SQLAlchemy session"
        self._given = session
        self._begun = False

    @property
    def session(self) -> Any:
        """The session; for a ``scoped_session`` that of this thread."""
        return self._given() if hasattr(self._given, "registry") else self._given

    @property
    def committed(self) -> bool:
        """See :class:`Unit`."""
        return self.session in _here.committed

    def begin(self) -> None:
        """Note that the task must not commit from now on; a session begins automatically."""
        if not self._begun:
            self._begun = True
            _listen()
            session = self.session
            _here.committed.discard(session)
            _here.units.add(session)
            for connection in connections_of(session):
                watch_savepoints(connection)

    def connection(self) -> Any:
        """Return the connection.

        Refuse a session that the task has committed, without the cursor, and work that went to several databases.
        """
        if self.session in _here.committed:
            raise InvalidStepError(
                f"{self.name} of transaction= was committed in the body of the step; leave the commit to the step, "
                "which commits the cursor too"
            )
        self.session.flush()
        configured = list(configured_engines(self.session))
        only = {"bind": configured[0]} if self.session.bind is None and len(configured) == 1 else None
        connection = self.session.connection(bind_arguments=only).connection.dbapi_connection
        engines = {connection.engine: None for connection in connections_of(self.session)}
        if len(engines) > 1 and not self.session.twophase:
            raise InvalidStepError(several_engines(engines, "has used"))
        return connection

    def commit(self) -> None:
        """See :class:`Unit`."""
        self._end()
        try:
            self.session.commit()
        except BaseException:
            if self.committed:
                self.session.close()  # a listener has failed, and left the session within the ended transaction
            raise

    def rollback(self) -> None:
        """See :class:`Unit`."""
        self._end()
        self.session.rollback()

    def _end(self) -> None:
        self._begun = False
        _here.units.discard(self.session)

    def has_more_open(self) -> bool:
        """See :class:`Unit`."""
        return bool(self.session.in_nested_transaction())  # begin_nested() makes the outer transaction explicit, too


def unit_of(name: str, transaction: Any) -> Unit | None:
    """Return the unit of work for ``transaction=`` of the step ``name``; None for None.

    Raises:
        InvalidStepError: for anything but a Session or a Django alias.

    >>> unit_of("import", 5)
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.InvalidStepError: step 'import': transaction must be a SQLAlchemy Session or the ...
    """
    if transaction is None:
        return None
    if isinstance(transaction, str):
        try:
            return AliasUnit(transaction)
        except ImportError as exc:
            raise InvalidStepError(
                f"step {name!r}: transaction={transaction!r} is the alias of a Django database, but Django is missing; "
                "run: pip install 'celery-continuations[django]'",
                found=name,
            ) from exc
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(transaction, (orm.Session, orm.scoped_session)):
        unit = SessionUnit(transaction)
        engines = configured_engines(unit.session)
        if len(engines) > 1 and not unit.session.twophase:
            raise InvalidStepError(f"step {name!r}: {several_engines(engines, 'has')}", found=name)
        return unit
    raise InvalidStepError(
        f"step {name!r}: transaction must be a SQLAlchemy Session or the alias of a Django database, e.g. 'default', "
        f"not {transaction!r}",
        found=name,
    )


def refuse_open(step: str | None, own: Unit | None = None) -> None:
    """Refuse a checkpoint inside an open transaction; the module lists those that are noticed.

    Args:
        step: the current step, or None between two.
        own: the unit of work that is committed with the cursor; None also at the beginning of its step.

    Raises:
        CheckpointError: when one is open.
    """
    if own is not None and own.has_more_open():
        raise CheckpointError(f"{own.name}, within that of transaction=", step)
    for found in (*_open_in_django(own), *_open_in_sqlalchemy(own)):
        raise CheckpointError(found, step)


class Told(Protocol):
    """A run whose ``attention`` is set when a transaction may have begun in its thread."""

    attention: bool


def tell(run: Told) -> None:
    """Set the attention of ``run`` whenever a session or a connection of this thread begins, as long as it exists."""
    _here.told.add(run)
    if is_django():
        _listen_to_django()
    if _is_sqlalchemy():
        _listen()


def session_is_open() -> bool:
    """Whether a SQLAlchemy session of this thread is in a transaction, which may be one that has only read."""
    return bool(_here.begun)


def blocks_of_tests() -> tuple[tuple[Any, list[Any]], ...]:
    """Return each Django connection of this thread, with the atomic blocks of a TestCase that it is in."""
    if not is_django():
        return ()
    from django.db import connections

    found = connections.all(initialized_only=True)
    return tuple((one, [block for block in one.atomic_blocks if block._from_testcase]) for one in found)


def _set_attention() -> None:
    for run in _here.told:
        run.attention = True


# -- Django


@cache
def _listen_to_django() -> None:
    """Listen to every connection from now on."""
    from django.db.backends.signals import connection_created

    connection_created.connect(_on_connect)


def _on_connect(**_: Any) -> None:
    _set_attention()


def _open_in_django(own: Unit | None) -> Iterator[str]:
    for alias in open_aliases():
        if not (isinstance(own, AliasUnit) and own._alias == alias):
            yield f"the Django connection {alias!r}"


# -- SQLAlchemy


class _Here(threading.local):
    """The sessions of this thread, and the runs that are told of them."""

    def __init__(self) -> None:
        self.told: WeakSet[Any] = WeakSet()
        self.begun: WeakSet[Any] = WeakSet()
        self.written: WeakSet[Any] = WeakSet()
        self.committed: WeakSet[Any] = WeakSet()
        self.units: WeakSet[Any] = WeakSet()  # those with a unit of work


_here = _Here()


def _is_sqlalchemy() -> bool:
    return hasattr(sys.modules.get("sqlalchemy.orm"), "Session")  # without it, its import has begun and not ended


def _open_in_sqlalchemy(own: Unit | None) -> Iterator[str]:
    if not _is_sqlalchemy():
        return
    _listen()
    if not _here.begun:
        return  # the usual case: iterating over a WeakSet is slow
    for session in list(_here.begun):
        if isinstance(own, SessionUnit) and own.session is session:
            continue
        if not session.in_transaction():
            continue
        if session in _here.written or session.new or session.dirty or session.deleted or _is_explicit(session):
            yield f"the SQLAlchemy session {session!r}"


def _is_explicit(session: Any) -> bool:
    transaction = session.get_transaction()
    return transaction is not None and (session.in_nested_transaction() or transaction.origin.name == "BEGIN")


@cache
def _listen() -> None:
    """Listen to every session from now on."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    event.listen(Session, "after_begin", _on_begin)
    event.listen(Session, "after_transaction_create", _on_create)
    event.listen(Session, "after_transaction_end", _on_end)
    event.listen(Session, "after_commit", _on_commit, insert=True)  # before the task's own listeners
    event.listen(Session, "after_flush", _on_flush)
    event.listen(Session, "do_orm_execute", _on_execute)


def _on_begin(session: Any, transaction: Any, connection: Any) -> None:
    if session in _here.units:
        watch_savepoints(connection)


def _on_create(session: Any, transaction: Any) -> None:
    _here.begun.add(session)
    _set_attention()


def _on_end(session: Any, transaction: Any) -> None:
    if transaction.parent is None:
        _here.begun.discard(session)
        _here.written.discard(session)


def _on_commit(session: Any) -> None:
    if not session.in_nested_transaction():
        _here.committed.add(session)


def _on_flush(session: Any, flush_context: Any) -> None:
    _here.written.add(session)


def _on_execute(state: Any) -> None:
    if state.is_insert or state.is_update or state.is_delete:
        _here.written.add(state.session)
