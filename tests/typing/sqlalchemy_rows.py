"""Selects of SQLAlchemy."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from typing_extensions import assert_type

from celery_continuations import ContinuableTask, continuable
from celery_continuations.sources.sqlalchemy import select_rows, sessions


class Base(orm.DeclarativeBase):
    """Of all models."""


class Account(Base):
    """A model."""

    __tablename__ = "accounts"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]


@continuable
def import_accounts(self: ContinuableTask, session: orm.Session) -> None:
    for account in self.iterate("entities", select_rows(session, sa.select(Account))):
        assert_type(account, Account)
    for name in self.iterate("column", select_rows(session, sa.select(Account.name), chunk=500)):
        assert_type(name, str)
    for batch in self.iterate("batches", select_rows(session, sa.select(Account)), batch=500):
        assert_type(batch, list[Account])
    for anything in self.iterate("select", sa.select(Account)):
        assert_type(anything, Any)
    for account in self.iterate("query", session.query(Account)):
        assert_type(account, Account)
    # wrong: mypy=call-overload pyright=reportArgumentType,reportCallIssue
    select_rows(3, sa.select(Account))
    # wrong: mypy=call-overload pyright=reportCallIssue
    select_rows(session, sa.select(Account), chunks=500)


sessions(orm.sessionmaker(sa.create_engine("sqlite://")))
# wrong: mypy=arg-type pyright=reportArgumentType
sessions(3)
