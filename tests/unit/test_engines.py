"""``transaction=`` with sessions of several engines, and savepoints of SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import states
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from celery_continuations import InvalidStepError
from celery_continuations.testing import assert_resumable
from tests.support.worker import Worker, make_app
from tests.unit.test_transactions import Base, Database, Effect, empty


class Other(Base):
    __tablename__ = "other"
    id: Any = sa.Column(sa.Integer, primary_key=True)


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    """The one with the records, and another one."""
    found = Database(tmp_path / "one"), Database(tmp_path / "two")
    yield found
    for database in found:
        database.engine.dispose()


@pytest.fixture
def app(databases: tuple[Database, Database]) -> Any:
    app = make_app()
    app.conf.continuation_store = f"db+sqlite:///{databases[0].path}"
    return app


class Routing(Session):
    """Finds the engine itself, as Flask-SQLAlchemy's sessions do."""

    engines: dict[Any, sa.Engine] = {}

    def get_bind(self, mapper: Any = None, **options: Any) -> Any:
        return self.engines[getattr(mapper, "class_", None) is Other]


@pytest.fixture
def routing(databases: tuple[Database, Database]) -> Routing:
    Routing.engines = {False: databases[0].engine, True: databases[1].engine}
    return Routing()


def adding(session: Any, model: Any) -> Any:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(3), transaction=session):
            session.add(Effect(item=item))
            if model is Other:
                session.add(Other(id=item + 1))

    return run


@pytest.mark.parametrize(
    "make",
    [
        lambda one, two: Session(one, binds={Other: two}),
        lambda one, two: Session(binds={Effect: one, Other: two}),
        lambda one, two: Session(one, binds={Other.__table__: two}),
        lambda one, two: Session(one.connect(), binds={Other: two}),
        lambda one, two: scoped_session(sessionmaker(one, binds={Other: two})),
    ],
)
def test_a_session_of_several_engines_is_refused(task: Any, databases: tuple[Database, Database], make: Any) -> None:
    """By name, before the first item: their databases would not commit together."""
    one, two = databases
    session = make(one.engine, two.engine)
    with pytest.raises(InvalidStepError, match=r"step 'items': .* has several engines \(.*one and .*two\)"):
        task(adding(session, Effect))()
    assert one.effects() == []
    session.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda one: Session(binds={Effect: one, Other: one}),
        lambda one: Session(binds={Effect: one}),
        lambda one: Session(one, binds={Effect: one}),
    ],
)
def test_a_session_whose_binds_are_one_engine(
    worker: Worker, task: Any, databases: tuple[Database, Database], make: Any
) -> None:
    with make(databases[0].engine) as session:
        result = task(adding(session, Effect)).delay()
        worker.drain()
    assert (result.state, databases[0].effects()) == (states.SUCCESS, [0, 1, 2])


@pytest.mark.parametrize("is_direct", [False, True])
def test_work_that_goes_to_several_databases_is_refused(
    worker: Worker, task: Any, databases: tuple[Database, Database], routing: Routing, is_direct: bool
) -> None:
    """Nothing of it is committed in either."""
    made = task(adding(routing, Other))
    if is_direct:
        with pytest.raises(InvalidStepError, match="has used several engines"):
            made()
    else:
        result = made.delay()
        worker.drain()
        assert "has used several engines" in str(result.result)
    assert [database.effects() for database in databases] == [[], []]
    routing.close()


def test_a_session_that_could_use_several_engines_and_uses_one(
    worker: Worker, task: Any, databases: tuple[Database, Database], routing: Routing
) -> None:
    result = task(adding(routing, Effect)).delay()
    worker.drain()
    assert (result.state, databases[0].effects()) == (states.SUCCESS, [0, 1, 2])
    routing.close()


# -- savepoints


def by_the_session(session: Session, item: int) -> None:
    with session.begin_nested():
        session.add(Effect(item=item))


def after_a_read(session: Session, item: int) -> None:
    session.scalars(sa.select(Effect)).all()
    by_the_session(session, item)


def by_the_connection(session: Session, item: int) -> None:
    with session.connection().begin_nested():
        session.execute(sa.insert(Effect).values(item=item))


def within_another(session: Session, item: int) -> None:
    with session.begin_nested():
        by_the_session(session, item)


def after_one_that_was_undone(session: Session, item: int) -> None:
    with session.begin_nested() as savepoint:
        session.add(Effect(item=99))
        savepoint.rollback()
    by_the_session(session, item)


def after_a_rollback(session: Session, item: int) -> None:
    session.add(Effect(item=99))
    session.flush()
    session.rollback()
    by_the_session(session, item)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "add",
    [by_the_session, after_a_read, by_the_connection, within_another, after_one_that_was_undone, after_a_rollback],
)
@pytest.mark.parametrize("is_read_before", [False, True])
def test_work_in_a_savepoint_takes_effect_with_the_cursor(
    task: Any, databases: tuple[Database, Database], add: Any, is_read_before: bool
) -> None:
    """SQLite's driver alone would commit it when the savepoint is released."""
    database = databases[0]

    def run(self: Any) -> None:
        with Session(database.engine) as session:
            if is_read_before:
                session.scalars(sa.select(Effect)).all()
            for item in self.iterate("items", range(3), transaction=session):
                add(session, item)

    assert_resumable(task(run), check=database.effects, setup=lambda: empty(database))
    assert database.effects() == [0, 1, 2]
