"""Tables of keys in Django and SQLAlchemy, for the tests of sources by key."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy import orm

from celery_continuations.sources.keyed import KeyedSource
from celery_continuations.sources.sqlalchemy import select_rows

INTS = st.integers(-(2**63), 2**63 - 1)
DATES = st.dates(date(1000, 1, 1))

#: Values of each type that a key can have.
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "int": INTS,
    "uuid": st.integers(0, 2**128 - 1).map(lambda number: UUID(int=number)),
    "date": DATES,
    "datetime": st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30), timezones=st.just(timezone.utc)),
    "str": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    "decimal": st.integers(-(10**7), 10**7).map(lambda cents: Decimal(cents).scaleb(-2)),
    "composite": st.tuples(st.dates(date(2026, 1, 1), date(2026, 1, 3)), st.integers(0, 9)),
}


class DjangoTable:
    """A model with only a key that matters."""

    def __init__(self, kind: str, alias: str = "default") -> None:
        from tests.support.django_models import BY_KIND, create_tables

        create_tables(alias)
        self.model = BY_KIND[kind]
        self.rows = self.model.objects.using(alias)

    def clear(self) -> None:
        self.rows.all().delete()

    def insert(self, keys: Collection[Any]) -> None:
        self.rows.bulk_create(self.model(pk=key) for key in keys)

    def delete(self, keys: Collection[Any]) -> None:
        for key in keys:
            self.rows.filter(pk=key).delete()

    def source(self, chunk: int, *, descending: bool = False) -> KeyedSource:
        from celery_continuations.sources.django import query_rows

        query = self.rows.all()
        return query_rows(query.order_by("-pk") if descending else query, chunk=chunk)

    def key_of(self, row: Any) -> Any:
        return row.key


class Base(orm.DeclarativeBase):
    pass


_TYPES: dict[str, Any] = {
    "int": sa.BigInteger(),
    "uuid": sa.Uuid(),
    "date": sa.Date(),
    "datetime": sa.DateTime(timezone=True),
    "str": sa.String(100, collation="C").with_variant(sa.String(100), "sqlite"),
    "decimal": sa.Numeric(8, 2),
}

ENTITIES: dict[str, Any] = {
    kind: type(
        f"Of_{kind}", (Base,), {"__tablename__": f"of_{kind}", "key": orm.mapped_column(type_, primary_key=True)}
    )
    for kind, type_ in _TYPES.items()
}


class OfComposite(Base):
    __tablename__ = "of_composite"
    day: orm.Mapped[date] = orm.mapped_column(primary_key=True)
    number: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)

    def __init__(self, key: Any) -> None:
        self.day, self.number = key

    @property
    def key(self) -> Any:
        return self.day, self.number


ENTITIES["composite"] = OfComposite


class SQLAlchemyTable:
    """An entity with only a key that matters."""

    def __init__(self, kind: str, session: orm.Session) -> None:
        self.entity = ENTITIES[kind]
        self.session = session
        Base.metadata.create_all(session.get_bind())

    def clear(self) -> None:
        self.session.execute(sa.delete(self.entity))
        self.session.commit()

    def insert(self, keys: Collection[Any]) -> None:
        self.session.add_all(self.entity(key=key) for key in keys)
        self.session.commit()

    def delete(self, keys: Collection[Any]) -> None:
        columns = sa.inspect(self.entity).primary_key
        for key in keys:
            values = key if len(columns) > 1 else (key,)
            same = (column == value for column, value in zip(columns, values, strict=True))
            self.session.execute(sa.delete(self.entity).where(*same))
        self.session.commit()

    def source(self, chunk: int, *, descending: bool = False) -> KeyedSource:
        select = sa.select(self.entity)
        if descending:
            select = select.order_by(*(column.desc() for column in sa.inspect(self.entity).primary_key))
        return select_rows(self.session, select, chunk=chunk)

    def key_of(self, row: Any) -> Any:
        return row.key
