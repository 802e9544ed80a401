"""The two tables, and their creation."""

from __future__ import annotations

import random
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from celery_continuations.stores.sql import LONGEST

__all__ = ["create_tables", "leases", "metadata", "records"]

#: The two tables, for migrations.  The first use of a store creates them if they are missing.
metadata = sa.MetaData()

_ATTEMPTS_TO_CREATE = 10

records = sa.Table(
    "continuation_record",
    metadata,
    sa.Column("namespace", sa.String(LONGEST), primary_key=True),
    sa.Column("task_id", sa.String(LONGEST), primary_key=True),
    sa.Column("fence", sa.Text, nullable=False),
    sa.Column("worker", sa.String(LONGEST)),
    sa.Column("due", sa.Double),
    sa.Column("expires", sa.Double),
    sa.Column("snapshot", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("value", sa.Text),
    sa.Column("inbox", sa.Text),
)
leases = sa.Table(
    "continuation_lease",
    metadata,
    sa.Column("namespace", sa.String(LONGEST), primary_key=True),
    sa.Column("worker", sa.String(LONGEST), primary_key=True),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)


def _index(*columns: sa.Column[Any]) -> None:
    """Index the few rows whose last given column is not null."""
    name = "_".join(["ix", records.name, *(column.name for column in columns)])
    where = columns[-1].is_not(None)
    sa.Index(name, *columns, postgresql_where=where, sqlite_where=where)


_index(records.c.namespace, records.c.due)
_index(records.c.namespace, records.c.worker)
_index(records.c.expires)


def create_tables(connection: Connection) -> None:
    """Create the tables, all or nothing, unless they exist."""
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
            # Another process has created them since the check; it will finish soon.
            if exc.connection_invalidated or attempt + 1 == _ATTEMPTS_TO_CREATE:
                raise
            time.sleep(random.SystemRandom().uniform(0, 0.01) * 2**attempt)
