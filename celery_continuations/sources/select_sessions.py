"""The session in which a loop reads a select: the task's own, or one that is opened for the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import orm

from celery_continuations.exceptions import InvalidStepError

__all__ = ["Opened", "Reading", "given", "opened_by"]

Opened: TypeAlias = orm.Session | orm.scoped_session[Any] | sa.Connection


class Reading:
    """A session of the task's, whose transaction is the task's as well.

    Attributes:
        session: the session or connection.
    """

    def __init__(self, session: Any) -> None:
        self.session = session

    def before_chunk(self) -> None:
        """No-op."""

    def is_idle(self) -> bool:
        """Return True: the transaction belongs to the task."""
        return True

    def end(self) -> None:
        """No-op."""


class _OwnReading(Reading):
    """A session that was opened for the loop, to read: no transaction is open while the task works on the rows.

    Rows stay in the session, so they can load their relations.  A transaction that this begins ends with the row,
    except one with changes of the task's, which the task must commit.
    """

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self._has_written = False
        if isinstance(session, orm.Session):
            sa.event.listen(session, "after_flush", self._on_flush)
            sa.event.listen(session, "do_orm_execute", self._on_execute)
            sa.event.listen(session, "after_transaction_end", self._on_end)

    def _on_flush(self, session: Any, context: Any) -> None:
        self._has_written = True

    def _on_execute(self, state: Any) -> None:
        if state.is_insert or state.is_update or state.is_delete:
            self._has_written = True

    def _on_end(self, session: Any, transaction: Any) -> None:
        if transaction.parent is None:
            self._has_written = False

    def before_chunk(self) -> None:
        """Refuse changes that would be lost."""
        session = self.session
        is_changed = isinstance(session, orm.Session) and (session.new or session.dirty or session.deleted)
        if is_changed or self._has_written:
            raise InvalidStepError(
                "rows were changed in the session that the loop has opened to read them, and not committed; to save "
                "changes, open a session and write self.iterate(name, select_rows(session, select), "
                "transaction=session)"
            )

    def is_idle(self) -> bool:
        """Whether no transaction is open."""
        return not self.session.in_transaction()

    def end(self) -> None:
        """End the transaction, unless it has changes; a commit or rollback would expire the rows."""
        transaction = self.session.get_transaction()
        if transaction is not None and not self._has_written and not self.session.in_nested_transaction():
            transaction.close()


@contextmanager
def given(session: Opened) -> Iterator[Reading]:
    """Read in a session of the task's, and leave it open."""
    yield Reading(session)


@contextmanager
def opened_by(factory: Callable[[], Any]) -> Iterator[Reading]:
    """Read in a session that the function opens, and close it."""
    with factory() as session:
        # A session with a transaction has been used before: it belongs to the task.
        yield Reading(session) if session.in_transaction() else _OwnReading(session)
