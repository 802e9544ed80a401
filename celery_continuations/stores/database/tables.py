"""The two tables."""

from __future__ import annotations

import random
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from celery_continuations.stores.sql import LONGEST

__all__ = ["create_tables", "leases", "metadata", "records"]

#: The two tables, for migrations.  They are made when a store is first used, if they are missing.
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
    """Index the few rows where the last of the columns is not null."""
    name = "_".join(["ix", records.name, *(column.name for column in columns)])
    where = columns[-1].is_not(None)
    sa.Index(name, *columns, postgresql_where=where, sqlite_where=where)


_index(records.c.namespace, records.c.due)
_index(records.c.namespace, records.c.worker)
_index(records.c.expires)


def create_tables(connection: Connection) -> None:
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
