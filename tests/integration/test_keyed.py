"""Querysets and selects, read by key, on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import django
import pytest
import sqlalchemy as sa
from django.db import connections
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import orm

import tests.support.django_project  # noqa: F401 - a process has one Django project
from celery_continuations import InvalidStepError
from celery_continuations.sources.django import query_rows
from celery_continuations.sources.sqlalchemy import from_select, select_rows
from tests.support.keyed_properties import resumes_everywhere, saved, sees_what_comes_after
from tests.support.processes import LocalProcess
from tests.support.tables import KEYS, DjangoTable, SQLAlchemyTable


@pytest.fixture(scope="module")
def engine(postgres_server: LocalProcess) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"postgresql+psycopg://test@127.0.0.1:{postgres_server.port}/postgres")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def session(engine: sa.Engine) -> Iterator[orm.Session]:
    with orm.Session(engine) as session:
        # Differs from the zone of the generated keys.
        session.execute(sa.text("SET SESSION TIME ZONE 'America/New_York'"))
        yield session


@pytest.fixture(scope="module")
def django_alias(postgres_server: LocalProcess) -> Iterator[str]:
    """A second Django database, without the models."""
    import tests.support.django_models

    alias = "postgres"
    connections.settings[alias] = connections.configure_settings(
        {
            "default": {},
            alias: {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": "127.0.0.1",
                "PORT": postgres_server.port,
                "USER": "test",
                "NAME": "postgres",
            },
        }
    )[alias]
    tests.support.django_models.create_tables(alias)
    yield alias
    connections[alias].close()
    del connections.settings[alias]
    del connections[alias]


DJANGO_KINDS = [kind for kind in KEYS if kind != "composite" or django.VERSION >= (5, 2)]


@pytest.fixture(
    scope="module", params=[*(f"django {kind}" for kind in DJANGO_KINDS), *(f"sqlalchemy {kind}" for kind in KEYS)]
)
def kind_and_table(request: pytest.FixtureRequest, session: orm.Session, django_alias: str) -> tuple[str, Any]:
    library, kind = request.param.split()
    if library == "sqlalchemy":
        return kind, SQLAlchemyTable(kind, session)
    return kind, DjangoTable(kind, django_alias)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_rows_resume_at_every_position(kind_and_table: tuple[str, Any], data: st.DataObject) -> None:
    """Multi-column, composite, time-zone and date keys, up and down, by rows and batches."""
    kind, table = kind_and_table
    resumes_everywhere(table, kind, data)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_rows_that_come_and_go_meanwhile(kind_and_table: tuple[str, Any], data: st.DataObject) -> None:
    kind, table = kind_and_table
    sees_what_comes_after(table, kind, data)


def test_moments_of_an_hour_that_comes_twice(session: orm.Session) -> None:
    """The driver returns times in the session's zone, where two instants can have equal times."""
    table = SQLAlchemyTable("datetime", session)
    table.clear()
    first = datetime(2026, 11, 1, 5, tzinfo=timezone.utc)  # 01:00 in New York, and again an hour later
    moments = [first + timedelta(minutes=15 * number) for number in range(10)]
    table.insert(moments)
    assert isinstance(session.scalars(sa.select(table.entity.key)).first().tzinfo, ZoneInfo)  # type: ignore[union-attr]
    source = select_rows(session, sa.select(table.entity.key), chunk=3)
    pairs = list(source.read(None))
    assert [cursor for _, cursor in pairs] == moments
    assert {cursor.tzinfo for _, cursor in pairs} == {timezone.utc}
    for place, (_, cursor) in enumerate(pairs, 1):
        assert [key.astimezone(timezone.utc) for key, _ in source.read(saved(cursor))] == moments[place:]


def test_a_key_that_the_database_has_more_exactly_than_python(session: orm.Session) -> None:
    """Otherwise it would be read repeatedly."""
    inexact = sa.Table("inexact", sa.MetaData(), sa.Column("key", sa.REAL, primary_key=True))
    inexact.create(session.connection())
    session.execute(inexact.insert(), [{"key": 0.1}])
    with pytest.raises(InvalidStepError, match=r"two rows have the key 0.1 .*more precision than Python"):
        list(select_rows(session, sa.select(inexact)).read(None))
    session.rollback()


@pytest.mark.skipif(django.VERSION < (5, 2), reason="it has no composite keys")
def test_no_query_has_an_offset_and_no_cursor_of_the_database_is_left(django_alias: str, session: orm.Session) -> None:
    from django.test.utils import CaptureQueriesContext

    table = DjangoTable("composite", django_alias)
    table.clear()
    day = datetime(2026, 1, 1).date()
    table.insert([(day, number) for number in range(7)])
    with CaptureQueriesContext(connections[django_alias]) as captured:
        assert len(list(query_rows(table.rows, chunk=3).read(None))) == 7
    assert len(captured) == 4
    assert not any("OFFSET" in query["sql"] or "DECLARE" in query["sql"] for query in captured)
    assert session.scalar(sa.text("SELECT count(*) FROM pg_cursors")) == 0


def test_a_composite_key_enters_the_index_with_all_of_its_columns(engine: sa.Engine, session: orm.Session) -> None:
    """Rows before the cursor are not scanned, however many share the first column."""
    table = SQLAlchemyTable("composite", session)
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        found.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    day = datetime(2026, 1, 1).date()
    list(table.source(3).read((day, 5)))
    sa.event.remove(engine, "before_cursor_execute", note)
    condition = found[0].partition("WHERE")[2]
    assert condition.startswith(" (of_composite.day, of_composite.number) > (")


def test_no_transaction_is_idle_while_a_loop_works_on_rows(engine: sa.Engine, session: orm.Session) -> None:
    """A server may end such connections (idle_in_transaction_session_timeout)."""
    table = SQLAlchemyTable("int", session)
    table.clear()
    table.insert(range(5))
    session.commit()
    named = sa.create_engine(engine.url, connect_args={"application_name": "loop"})
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'loop' AND state <> 'idle'")
    factory = orm.sessionmaker(named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery_continuations.sources.sqlalchemy._factory", factory)
        for row, _ in from_select(sa.select(table.entity)).read(None):
            assert orm.object_session(row) is not None
            with engine.connect() as connection:
                assert connection.scalar(query) == 0
    named.dispose()
