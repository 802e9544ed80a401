"""A loop closes what it opened, however it ends, although errors and variables still refer to it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from celery_continuations import InvalidStepError, SourceChangedError
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import Interrupt
from celery_continuations.sources import batched, keyed, nested, opener, throttled
from celery_continuations.sources.sqlalchemy import from_select, select_rows, sessions
from tests.support.changing import Host, Killed
from tests.support.worker import Worker

pytestmark = pytest.mark.exhaustive

OPEN: list[str] = []


def numbers(name: str = "outer", total: int = 4) -> Iterator[int]:
    """Numbers that are open from the first to the last."""
    OPEN.append(name)
    try:
        yield from range(total)
    finally:
        OPEN.remove(name)


class Numbers:
    """A custom source."""

    def read(self, cursor: Any) -> Iterator[tuple[int, int]]:
        for number in numbers():
            if cursor is None or number > cursor:
                yield number, number


class Closable:
    """Like :class:`Numbers`, but its iterator is not a generator."""

    def read(self, cursor: Any) -> Any:
        class Pairs:
            def __init__(self) -> None:
                self.pairs = Numbers().read(cursor)

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> Any:
                return next(self.pairs)

            def close(self) -> None:
                self.pairs.close()

        return Pairs()


SOURCES: dict[str, Callable[[], Any]] = {
    "a generator": numbers,
    "a function of a generator": lambda: numbers,
    "a generator by key": lambda: keyed(numbers(), key=lambda number: number),
    "a function by key": lambda: keyed(numbers, key=lambda number: number),
    "a custom source": Numbers,
    "a custom source with an iterator": Closable,
    "batches": lambda: batched(numbers, 1),
    "batches of a custom source": lambda: batched(Numbers(), 1),
    "nested": lambda: nested(numbers, lambda number: numbers("inner")),
    "nested in generators": lambda: nested(numbers(), lambda number: numbers("inner")),
    "nested custom sources": lambda: nested(Numbers(), lambda number: Numbers()),
    "nested batches": lambda: nested(numbers, lambda number: batched(numbers("inner"), 1)),
    "nested twice": lambda: nested(nested(numbers, lambda number: numbers("inner")), lambda pair: numbers("innermost")),
    "throttled": lambda: throttled(numbers, lambda: False, 1),
    "a throttled custom source": lambda: throttled(Numbers(), lambda: False, 1),
}


def to_the_end(self: Any, loop: Any) -> None:
    for _ in loop:
        assert OPEN


def left_by_break(self: Any, loop: Any) -> None:
    for _ in loop:
        break
    assert not OPEN


def left_by_return(self: Any, loop: Any) -> None:
    for _ in loop:
        return


def left_by_an_error(self: Any, loop: Any) -> None:
    for _ in loop:
        raise ValueError("the body")


def closed(self: Any, loop: Any) -> None:
    rows = iter(loop)
    next(rows)
    rows.close()
    assert not OPEN


def never_begun(self: Any, loop: Any) -> None:
    """Neither iterated nor opened."""


ENDS = [to_the_end, left_by_break, left_by_return, left_by_an_error, closed, never_begun]


@pytest.fixture(autouse=True)
def without_collections() -> Iterator[None]:
    """Without the garbage collector, which would close things sometime."""
    gc.collect()
    assert not OPEN
    gc.disable()
    yield
    gc.enable()
    OPEN.clear()


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_loop_closes_its_source(task: Any, source: str, end: Any, batch: int | None) -> None:
    kept: list[Any] = []

    def body(self: Any) -> None:
        loop = self.iterate("numbers", SOURCES[source](), batch=batch)
        kept.append(loop)
        end(self, loop)

    try:
        task(body)()
    except (ValueError, InvalidStepError) as exc:
        kept.append(exc)  # its traceback refers to all frames
    assert not OPEN
    assert len(kept) == (2 if end in (left_by_an_error, never_begun) else 1)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_a_stop_closes_the_source(worker: Worker, task: Any, source: str, batch: int | None) -> None:
    kept: list[BaseException] = []

    def body(self: Any) -> None:
        try:
            for _ in self.iterate("numbers", SOURCES[source](), batch=batch):
                worker.stop()
        except BaseException as exc:
            kept.append(exc)
            raise

    task(body).delay()
    worker.drain(limit=300)
    assert kept
    assert not OPEN


@pytest.mark.parametrize(
    "source",
    [
        batched(numbers, 1),
        nested(numbers, lambda number: numbers("inner")),
        throttled(numbers, lambda: False, 1),
        keyed(numbers, key=lambda number: number),
        throttled(nested(numbers, lambda number: numbers("inner")), lambda: False, 1),
    ],
)
def test_a_source_that_executions_share_is_opened_by_each(worker: Worker, task: Any, source: Any) -> None:
    seen: list[Any] = []

    def body(self: Any) -> None:
        for item in self.iterate("numbers", source):
            seen.append(item)
            worker.stop()

    expected = [item for item, _ in source.read(None)]
    task(body).delay()
    worker.drain()
    assert seen == expected
    assert not OPEN


@pytest.mark.parametrize("make", [lambda rows: rows(), lambda rows: rows])
def test_a_source_that_has_changed_is_closed(worker: Worker, task: Any, make: Any) -> None:
    kept: list[BaseException] = []

    def changing() -> Iterator[int]:
        yield from (number + 10 * len(kept) for number in numbers())

    def body(self: Any) -> None:
        try:
            for _ in self.iterate("numbers", make(changing)):
                worker.stop()
        except BaseException as exc:
            kept.append(exc)
            raise

    task(body).delay()
    worker.drain()
    assert isinstance(kept[-1], SourceChangedError)
    assert not OPEN


# -- sessions


class Base(orm.DeclarativeBase):
    pass


class Poem(Base):
    __tablename__ = "poems"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    poet_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("poets.id"))
    poet: orm.Mapped[Poet] = orm.relationship()


class Poet(Base):
    __tablename__ = "poets"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]


TOTAL = 10


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """A pool of one connection."""
    monkeypatch.setattr("celery_continuations.sources.sqlalchemy._factory", None)
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/poems", poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0
    )
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session, session.begin():
        session.add(Poet(id=1, name="Blake"))
        session.add_all(Poem(id=number, title=str(number), poet_id=1) for number in range(TOTAL))
    sessions(orm.sessionmaker(engine))
    yield engine
    engine.dispose()


def test_no_session_is_left_by_a_thousand_disturbed_runs(engine: sa.Engine) -> None:
    """By stops, errors and kills in turn, all of which are kept with their tracebacks."""
    kept: list[BaseException] = []
    snapshot = Snapshot(executions=1)
    for number in range(1000):
        host = Host()
        run = Run("run", snapshot, host)
        try:
            for _ in run.declare(Iteration(run, "poems", opener("poems", sa.select(Poem)))):
                assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
                if number % 3 == 1:
                    raise ConnectionError
                if number % 3 == 2:
                    raise Killed
                host.wish, run.attention = "stop", True
        except (Interrupt, ConnectionError, Killed) as exc:
            kept.append(exc)
            snapshot = Snapshot.loads(run.take_snapshot().dumps())
        else:
            snapshot = Snapshot(executions=1)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert set(map(type, kept)) == {Interrupt, ConnectionError, Killed}
    assert len(kept) > 900


def test_no_transaction_is_open_while_rows_are_worked_on(task: Any, engine: sa.Engine) -> None:
    """Although they are attached to their session, and can load their relations."""
    done: list[str] = []

    def body(self: Any) -> None:
        for poem in self.iterate("poems", sa.select(Poem).where(Poem.id < 3)):
            session = orm.object_session(poem)
            assert session is not None
            assert not session.in_transaction()
            done.append(poem.poet.name)  # a query, in a transaction that lasts as long as this row
            session.expire(poem.poet)

    task(body)()
    assert done == ["Blake"] * 3
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def change(session: orm.Session, poem: Poem) -> None:
    poem.title = "changed"


def flush(session: orm.Session, poem: Poem) -> None:
    poem.title = "changed"
    session.flush()


def execute(session: orm.Session, poem: Poem) -> None:
    session.execute(sa.update(Poem).where(Poem.id == poem.id).values(title="changed"))


@pytest.mark.parametrize("write", [change, flush, execute])
@pytest.mark.parametrize("ends", [False, True])
def test_changes_in_a_session_of_the_loop_are_not_lost_silently(
    task: Any, engine: sa.Engine, write: Any, ends: bool
) -> None:
    def body(self: Any) -> None:
        for poem in self.iterate("poems", sa.select(Poem).where(Poem.id < 3)):
            session = orm.object_session(poem)
            assert session is not None
            write(session, poem)
            if ends:
                session.commit()

    if ends:
        task(body)()
    else:
        with pytest.raises(Exception, match=r"write self.iterate\(name, select_rows\(session|SQLAlchemy session"):
            task(body)()
    with orm.Session(engine) as session:
        found = session.scalars(sa.select(Poem.title).where(Poem.id < 3)).all()
    assert found == (["changed"] * 3 if ends else ["0", "1", "2"])


def test_a_session_that_was_used_before_stays_in_its_transaction(task: Any, engine: sa.Engine) -> None:
    with orm.Session(engine) as session:
        session.add(Poem(id=TOTAL, title="new", poet_id=1))
        session.flush()
        sessions(lambda: session)
        first, _ = next(select_rows(session, sa.select(Poem)).read(TOTAL - 1))
        assert first.title == "new"
        assert [poem.title for poem, _ in from_select(sa.select(Poem)).read(TOTAL - 1)] == ["new"]
