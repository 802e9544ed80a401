"""Orders whose values a database stores in another form than it returns: read rightly, or refused."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, time, timezone
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa
from django.db import connection, models
from sqlalchemy import orm

from celery_continuations import InvalidStepError
from celery_continuations.sources.django import query_rows
from celery_continuations.sources.sqlalchemy import select_rows
from tests.support.django_models import model

pytestmark = pytest.mark.exhaustive

ROWS = 6


class Base(orm.DeclarativeBase):
    pass


class Event(Base):
    __tablename__ = "event"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    created: orm.Mapped[datetime]
    at: orm.Mapped[time]
    price: orm.Mapped[Decimal] = orm.mapped_column(sa.Numeric(10, 2))
    token: orm.Mapped[uuid.UUID]


Row = model(
    "StoredOtherwise",
    created=models.DateTimeField(),
    at=models.TimeField(),
    price=models.DecimalField(max_digits=10, decimal_places=2),
    token=models.UUIDField(),
)

#: A value of each column that Python writes, and one that other programs write.
VALUES: dict[str, tuple[Any, Any]] = {
    "created": (datetime(2026, 12, 1, 2, 3, 4), "2026-12-01 02:03:04.000"),
    "at": (time(2, 3, 4), "02:03:04.000"),
    "price": (Decimal("3.33"), 3.3333),
    "token": (uuid.UUID(int=7), str(uuid.UUID(int=7))),
}
OTHERS = {name: of_others for name, (_, of_others) in VALUES.items()}
OF_PYTHON = {name: of_python for name, (of_python, _) in VALUES.items()}


@pytest.fixture
def session() -> Iterator[Any]:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add_all([Event(id=number + 1, **OF_PYTHON) for number in range(ROWS)])
        session.commit()
        yield session
    engine.dispose()


def read(source: Any) -> list[int]:
    """Read it, and from each cursor on; return the ids."""
    pairs = [(row.id, cursor) for row, cursor in islice(source.read(None), 3 * ROWS)]
    for place, (_, cursor) in enumerate(pairs, 1):
        assert [row.id for row, _ in islice(source.read(cursor), 3 * ROWS)] == [one for one, _ in pairs[place:]]
    return [one for one, _ in pairs]


@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("descends", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("which", ["none", "all", "one"])
def test_a_select(session: Any, name: str, descends: tuple[bool, bool], chunk: int, which: str) -> None:
    if which != "none":
        where = "" if which == "all" else " WHERE id = 4"
        session.execute(sa.text(f"UPDATE event SET {name} = :value{where}"), {"value": OTHERS[name]})
        session.commit()
    columns = [getattr(Event, name), Event.id]
    order = [one.desc() if down else one for one, down in zip(columns, descends, strict=True)]
    select = sa.select(Event).order_by(*order)
    plain = [row.id for row in session.scalars(select)]
    if which == "none":
        assert read(select_rows(session, select, chunk=chunk)) == plain
    else:
        with pytest.raises(InvalidStepError, match=f"is not found by that, because .*{name}"):
            read(select_rows(session, select, chunk=chunk))


@pytest.mark.parametrize("chunk", [2, 1000])
@pytest.mark.parametrize("descends", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("which", ["none", "all", "one"])
def test_a_queryset(name: str, descends: tuple[bool, bool], chunk: int, which: str) -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Row)
    try:
        aware = {**OF_PYTHON, "created": OF_PYTHON["created"].replace(tzinfo=timezone.utc)}
        Row.objects.bulk_create([Row(id=number + 1, **aware) for number in range(ROWS)])
        if which != "none":
            where = "" if which == "all" else " WHERE id = 4"
            with connection.cursor() as cursor:
                cursor.execute(f"UPDATE rows_storedotherwise SET {name} = %s{where}", [OTHERS[name]])
        query = Row.objects.order_by(
            *("-" * down + column for column, down in zip((name, "id"), descends, strict=True))
        )
        plain = [row.id for row in query]
        if which == "none":
            assert read(query_rows(query, chunk=chunk)) == plain
        else:
            with pytest.raises(InvalidStepError, match=f"is not found by that, because .*{name}"):
                read(query_rows(query, chunk=chunk))
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Row)


def test_a_row_that_changes_while_it_is_read_is_no_error(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = select_rows(session, sa.select(Event).order_by(Event.created, Event.id), chunk=3)
    real, gone = source._matching, []

    def matching(session: Any, keys: list[Any], places: Any) -> list[Any]:
        if not gone:
            gone.append(session.execute(sa.delete(Event).where(Event.id == 2)))
        return real(session, keys, places)

    monkeypatch.setattr(source, "_matching", matching)
    assert [row.id for row, _ in source.read(None)] == [1, 2, 3, 4, 5, 6]
