"""An item and its cursor in one transaction, and checkpoints inside another transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from celery import states
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connections, transaction
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from celery_continuations import CheckpointError, ErrorBudgetError, InvalidStepError
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import StoreError
from celery_continuations.sources import json_lines
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.testing import assert_resumable, rehearse, run_until_done
from tests.support.worker import Killed, Worker, make_app


class Base(DeclarativeBase):
    pass


class Effect(Base):
    __tablename__ = "effect"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[int]


class Database:
    """A SQLite file with a table of effects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = sa.create_engine(f"sqlite:///{path}")
        Base.metadata.create_all(self.engine)

    def effects(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(Effect.item).order_by(Effect.id)))


class BySession:
    def __init__(self, database: Database) -> None:
        self.transaction: Any = Session(database.engine)

    def add(self, item: int) -> None:
        self.transaction.add(Effect(item=item))

    def close(self) -> None:
        self.transaction.close()


class ByScopedSession(BySession):
    def __init__(self, database: Database) -> None:
        self.transaction = scoped_session(sessionmaker(database.engine))


class ByDjango:
    transaction = "effects"

    def __init__(self, database: Database) -> None:
        connections.settings["effects"] = {
            **connections.settings["default"],
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(database.path),
        }

    def add(self, item: int) -> None:
        with connections["effects"].cursor() as cursor:
            cursor.execute("INSERT INTO effect (item) VALUES (%s)", [item])

    def close(self) -> None:
        connections["effects"].close()
        del connections["effects"]
        del connections.settings["effects"]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "db")
    yield database
    database.engine.dispose()


@pytest.fixture(params=[BySession, ByScopedSession, ByDjango])
def ways(request: Any, database: Database) -> Iterator[Any]:
    way = request.param(database)
    yield way
    way.close()


@pytest.fixture
def app(database: Database) -> Any:
    app = make_app()
    app.conf.continuation_store = f"db+sqlite:///{database.path}"
    return app


@pytest.fixture
def task(task: Any) -> Any:
    """Make a continuable task of a function or a lambda."""

    def make(function: Any, **options: Any) -> Any:
        function.__name__ = "run"
        return task(function, **options)

    return make


def cursor_of(record: Any, task_id: str) -> Any:
    text = record(task_id).snapshot
    return text and Snapshot.loads(text).current


def items(self: Any, ways: Any, total: int = 4) -> Any:
    for item in self.iterate("items", range(total), transaction=ways.transaction):
        ways.add(item)
        yield item


def test_each_item_is_committed_with_the_cursor_after_it(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    seen: list[Any] = []

    def run(self: Any) -> None:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            ways.add(item)
            seen.append((database.effects(), cursor_of(record, self.request.id)))
            if item == 2:
                raise Killed

    result = task(run).delay()
    worker.deliver_killed()
    assert seen == [([], None), ([0], ("items", 1)), ([0, 1], ("items", 2))]
    assert database.effects() == [0, 1]
    assert cursor_of(record, result.id) == ("items", 2)


@pytest.mark.parametrize("store", ["db", "other interval"])
def test_a_stop_comes_after_the_commit(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any, store: str
) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            ways.add(item)
            if item == 1:
                worker.stop()
        return "done"

    options = {} if store == "db" else {"continuation_checkpoint_interval": 0}
    result = task(run, **options).delay()
    worker.deliver()
    assert (database.effects(), cursor_of(record, result.id)) == ([0, 1], ("items", 2))
    assert worker.drain() == 1
    assert (result.get(), database.effects()) == ("done", [0, 1, 2, 3])


def test_what_an_error_or_a_break_leaves_is_rolled_back(
    worker: Worker, task: Any, database: Database, ways: Any
) -> None:
    errors = iter([ValueError("once")])

    def run(self: Any) -> None:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            ways.add(item)
            for error in errors if item == 1 else ():
                raise error
            if item == 3:
                break

    result = task(run).delay()
    worker.deliver()
    assert (result.state, database.effects()) == (states.RETRY, [0])
    worker.drain()
    assert (result.state, database.effects()) == (states.SUCCESS, [0, 1, 2])


def test_a_block_commits_with_each_move_and_with_its_end(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    def run(self: Any) -> None:
        for step in self.step("items", start=0, transaction=ways.transaction):
            while step.cursor < 3:
                ways.add(step.cursor)
                step.advance()
            ways.add(100)
            raise Killed

    result = task(run).delay()
    worker.deliver_killed()
    assert (database.effects(), cursor_of(record, result.id)) == ([0, 1, 2], ("items", 3))


def test_the_last_of_a_block_takes_effect_with_the_step(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    def run(self: Any) -> None:
        for _ in self.step("only", transaction=ways.transaction):
            ways.add(7)
        assert list(Snapshot.loads(record(self.request.id).snapshot).completed) == ["only"]
        assert database.effects() == [7]
        raise Killed

    task(run).delay()
    worker.deliver_killed()
    assert database.effects() == [7]


def test_an_execution_that_was_succeeded_commits_nothing(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    def run(self: Any) -> None:
        store = open_store(worker.app, worker.app.conf.continuation_store)
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            if item == 2:
                known = record(self.request.id).fence
                other = Fence(known.generation + 1, Status.RUNNING, "another/1.1/a")
                assert store.compare_and_swap(self.request.id, known, Update(other))
            ways.add(item)

    result = task(run).delay()
    worker.deliver()
    assert database.effects() == [0, 1]
    assert record(result.id).fence.owner == "another/1.1/a"
    assert worker.queued() == 0


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_a_wish_is_heeded_after_the_commit(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any, command: str
) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            if item == 1:
                getattr(result, command)()
            ways.add(item)

    continuable = task(run)
    result = continuable.AsyncResult(continuable.delay().id)
    worker.deliver()
    assert database.effects() == [0, 1]
    assert record(result.id).fence.status == {"pause": Status.PAUSED, "cancel": Status.CANCELLED}[command]


def test_a_direct_call_commits_each_item(task: Any, database: Database, ways: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(3), transaction=ways.transaction):
            assert database.effects() == list(range(item))
            ways.add(item)
        for _ in self.step("block", transaction=ways.transaction):
            ways.add(100)

    task(run)()
    assert database.effects() == [0, 1, 2, 100]


def test_a_source_that_reads_by_the_same_session(worker: Worker, task: Any, database: Database) -> None:
    with Session(database.engine) as session:

        def run(self: Any) -> None:
            query = sa.select(Effect.item).order_by(Effect.id)
            for item in self.iterate("items", lambda: session.scalars(query).all(), transaction=session):
                session.add(Effect(item=item + 100))
            self.step("after", lambda: None)

        with Session(database.engine) as another, another.begin():
            another.add_all([Effect(item=1), Effect(item=2)])
        result = task(run).delay()
        worker.drain()
        assert (result.state, database.effects()) == (states.SUCCESS, [1, 2, 101, 102])


def test_a_commit_that_fails_leaves_the_cursor(
    worker: Worker, task: Any, database: Database, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(database.engine) as session:

        def fail() -> None:
            monkeypatch.undo()
            raise ValueError("not committed")

        def run(self: Any) -> None:
            for item in self.iterate("items", range(4), transaction=session):
                session.add(Effect(item=item))
                if item == 2 and not self.continuation.resumptions:
                    monkeypatch.setattr(session, "commit", fail)

        result = task(run).delay()
        worker.deliver()
        assert (database.effects(), cursor_of(record, result.id)) == ([0, 1], ("items", 2))
        worker.drain()
        assert (result.state, database.effects()) == (states.SUCCESS, [0, 1, 2, 3])


def test_a_commit_whose_answer_is_lost_is_one(
    worker: Worker, task: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(database.engine) as session:

        def commit_and_fail(connection: Any) -> None:
            monkeypatch.undo()
            connection.commit()
            raise ValueError("the answer is lost")

        def run(self: Any) -> None:
            for item in self.iterate("items", range(4), transaction=session):
                session.add(Effect(item=item))
                if item == 2:
                    monkeypatch.setattr(database.engine.dialect, "do_commit", commit_and_fail)

        result = task(run).delay()
        assert worker.drain() == 1
        assert (result.state, database.effects()) == (states.SUCCESS, [0, 1, 2, 3])


def hooked(way: Any, hook: Any) -> None:
    """Call a hook once the current transaction is committed."""
    if isinstance(way, ByDjango):
        transaction.on_commit(hook, using="effects")
    else:
        session = way.transaction() if isinstance(way, ByScopedSession) else way.transaction
        sa.event.listen(session, "after_commit", lambda _: hook(), once=True)


@pytest.fixture
def failing(ways: Any) -> Any:
    """Add four items, with a hook for each; that of item 3 fails once, and that of a last one without an item."""
    ran: list[int] = []
    errors: list[BaseException] = []

    def hook(item: int) -> None:
        if item == 3 and errors:
            raise errors.pop()
        ran.append(item)

    def run(self: Any) -> str:
        for item in self.iterate("items", range(1, 5), transaction=ways.transaction):
            ways.add(item)
            hooked(ways, lambda item=item: hook(item))
        return "done"

    return SimpleNamespace(run=run, ran=ran, errors=errors)


def test_an_error_of_a_hook_comes_after_the_commit_and_the_task_resumes(
    worker: Worker, task: Any, database: Database, failing: Any, record: Any
) -> None:
    failing.errors.append(ConnectionError("the broker is unavailable"))
    result = task(failing.run).delay()
    worker.deliver()
    assert (database.effects(), cursor_of(record, result.id)) == ([1, 2, 3], ("items", 3))
    assert result.state == states.RETRY
    assert "the broker is unavailable" in str(Snapshot.loads(record(result.id).snapshot).errors)
    worker.drain()
    assert (result.get(), database.effects(), failing.ran) == ("done", [1, 2, 3, 4], [1, 2, 4])


def test_a_soft_time_limit_in_a_hook_ends_the_task(worker: Worker, task: Any, database: Database, failing: Any) -> None:
    failing.errors.append(SoftTimeLimitExceeded())
    result = task(failing.run).delay()
    worker.drain()
    assert (result.state, database.effects()) == (states.FAILURE, [1, 2, 3])


def test_an_error_of_the_last_hook_leaves_the_block_complete(
    worker: Worker, task: Any, database: Database, ways: Any
) -> None:
    errors = [ConnectionError("once")]

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    def run(self: Any) -> str:
        for _ in self.step("block", transaction=ways.transaction):
            ways.add(1)
            hooked(ways, fail_once)
        return "done"

    result = task(run).delay()
    assert worker.drain() == 2
    assert (result.get(), database.effects()) == ("done", [1])


def test_a_rehearsal_shows_an_error_of_a_hook_as_a_worker_does(task: Any, database: Database, failing: Any) -> None:
    failing.errors.append(ConnectionError("the broker is unavailable"))
    run = rehearse(task(failing.run))
    assert (run.state, run.cursor, run.reason) == ("RETRY", 3, "ConnectionError: the broker is unavailable")
    assert run_until_done(run) == "done"
    assert (database.effects(), failing.ran) == ([1, 2, 3, 4], [1, 2, 4])


def test_a_block_whose_last_commit_fails_is_not_complete(
    worker: Worker, task: Any, database: Database, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(database.engine) as session:

        def fail() -> None:
            monkeypatch.undo()
            raise ValueError("not committed")

        def run(self: Any) -> None:
            for step in self.step("block", start=0, transaction=session):
                while step.cursor < 2:
                    session.add(Effect(item=step.cursor))
                    step.advance()
                session.add(Effect(item=100))
                if not self.continuation.resumptions:
                    monkeypatch.setattr(session, "commit", fail)

        result = task(run).delay()
        worker.deliver()
        assert (database.effects(), cursor_of(record, result.id)) == ([0, 1], ("block", 2))
        worker.drain()
        assert (result.state, database.effects()) == (states.SUCCESS, [0, 1, 100])


def test_a_broken_block_of_django_does_not_commit(worker: Worker, task: Any, database: Database) -> None:
    way = ByDjango(database)

    def run(self: Any) -> None:
        for item in self.iterate("items", range(3), transaction="effects"):
            way.add(item)
            if item == 1:
                with suppress(KeyError), transaction.atomic(using="effects", savepoint=False):
                    raise KeyError

    result = task(run).delay()
    worker.deliver()
    assert (result.state, database.effects()) == (states.RETRY, [0])
    way.close()


# -- invalid uses


@pytest.mark.parametrize("store", ["memory", "message"])
def test_a_store_in_no_database_is_refused(worker: Worker, task: Any, ways: Any, store: str) -> None:
    result = task(lambda self: list(items(self, ways)), continuation_store=store).delay()
    worker.drain()
    assert isinstance(result.result, StoreError)
    assert "transaction= needs a continuation_store in the database of the transaction" in str(result.result)


def test_another_database_is_refused(worker: Worker, task: Any, tmp_path: Path) -> None:
    another = Database(tmp_path / "another")
    with Session(another.engine) as session:
        result = task(lambda self: list(self.iterate("items", range(3), transaction=session))).delay()
        worker.drain()
    assert isinstance(result.result, StoreError)
    assert "no such table" in str(result.result)
    another.engine.dispose()


def test_another_table_of_records_is_refused(worker: Worker, task: Any, tmp_path: Path) -> None:
    from celery_continuations.stores.database import metadata

    another = Database(tmp_path / "another")
    metadata.create_all(another.engine)
    with Session(another.engine) as session:
        result = task(lambda self: list(self.iterate("items", range(3), transaction=session))).delay()
        worker.drain()
    assert "is not found through the SQLAlchemy session" in str(result.result)
    another.engine.dispose()


@pytest.mark.parametrize("wrong", [5, Session, object()])
def test_invalid_transactions_are_refused(task: Any, wrong: Any) -> None:
    for use in (
        lambda self: list(self.iterate("items", [1], transaction=wrong)),
        lambda self: list(self.step("items", transaction=wrong)),
    ):
        with pytest.raises(InvalidStepError, match="transaction must be a SQLAlchemy Session or the alias"):
            task(use)()


def test_a_body_that_commits_is_refused(worker: Worker, task: Any, database: Database) -> None:
    with Session(database.engine) as session:

        def run(self: Any) -> None:
            for item in self.iterate("items", range(3), transaction=session):
                session.add(Effect(item=item))
                if item == 1:
                    session.commit()

        result = task(run).delay()
        worker.drain()
        assert isinstance(result.result, InvalidStepError)
        assert "was committed in the body of the step" in str(result.result)


def test_a_body_may_undo_what_it_has_done(worker: Worker, task: Any, database: Database) -> None:
    with Session(database.engine) as session:

        def run(self: Any) -> None:
            for item in self.iterate("items", range(4), transaction=session):
                if item == 1:
                    with session.begin_nested() as savepoint:
                        session.add(Effect(item=item))
                        savepoint.rollback()
                else:
                    session.add(Effect(item=item))
                if item == 2:
                    session.flush()
                    session.rollback()

        result = task(run).delay()
        worker.drain()
        assert (result.state, database.effects()) == (states.SUCCESS, [0, 3])


# -- with an error budget


def load(self: Any, ways: Any, seen: Any = None) -> Any:
    rows = self.iterate("items", range(5), transaction=ways.transaction, on_error=2)
    for item in rows:
        with rows.attempt():
            ways.add(item)
            if item in (1, 3):
                raise ValueError(f"bad {item}")
        if seen is not None:
            seen(item)
    return rows.failed


def test_rows_that_cannot_be_read_are_put_aside_between_two_commits(
    worker: Worker, task: Any, database: Database, ways: Any, tmp_path: Path
) -> None:
    path = tmp_path / "values.jsonl"
    path.write_text("{\n1\n{\n2\n{\n")

    def run(self: Any) -> Any:
        rows = self.iterate("items", json_lines(path), transaction=ways.transaction, on_error=3)
        for item in rows:
            ways.add(item)
            if self.continuation.resumptions == 0:
                worker.stop()
        return len(rows.failed)

    result = task(run).delay()
    worker.drain()
    assert (result.state, result.result, database.effects()) == (states.SUCCESS, 3, [1, 2])


def test_an_item_that_fails_is_undone_and_put_aside_in_one_commit_with_its_cursor(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    snapshots: list[Any] = []

    def seen(item: int) -> None:
        snapshot = Snapshot.loads(record(result_id[0]).snapshot) if item else Snapshot()
        snapshots.append((item, database.effects(), snapshot.current, [aside[0] for aside in snapshot.failed_items]))

    result_id: list[str] = []

    def run(self: Any) -> Any:
        result_id.append(self.request.id)
        return load(self, ways, seen)

    result = task(run).delay()
    worker.drain()
    assert result.result == [[1, "ValueError: bad 1"], [3, "ValueError: bad 3"]]
    assert database.effects() == [0, 2, 4]
    assert snapshots == [
        (0, [], None, []),
        (1, [0], ("items", 1), []),
        (2, [0], ("items", 2), [1]),
        (3, [0, 2], ("items", 3), [1]),
        (4, [0, 2], ("items", 4), [1, 3]),
    ]


@pytest.mark.parametrize("at", range(5))
def test_items_put_aside_survive_a_kill(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any, at: int
) -> None:
    def seen(item: int) -> None:
        if item == at and not killed:
            killed.append(item)
            raise Killed

    killed: list[int] = []
    result = task(lambda self: load(self, ways, seen)).delay()
    worker.deliver_killed()
    assert killed == [at]
    assert database.effects() == [item for item in (0, 2, 4) if item < at]
    text = record(result.id).snapshot
    aside = Snapshot.loads(text).failed_items if text else []
    assert [cursor for cursor, _ in aside] == [item for item in (1, 3) if item < at]


def test_past_the_budget_the_items_before_are_kept(worker: Worker, task: Any, database: Database, ways: Any) -> None:
    def run(self: Any) -> None:
        rows = self.iterate("items", range(5), transaction=ways.transaction, on_error=1)
        for item in rows:
            with rows.attempt():
                ways.add(item)
                if item in (1, 3):
                    raise ValueError("bad")

    result = task(run, resume_errors_after_advancing=False).delay()
    worker.drain()
    assert isinstance(result.result, ErrorBudgetError)
    assert database.effects() == [0, 2]


# -- the guard


def refused(task: Any, body: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        task(body)()
    return caught.value


def test_a_checkpoint_inside_of_an_atomic_block(task: Any, database: Database) -> None:
    way = ByDjango(database)

    def inside(self: Any) -> None:
        for _ in self.iterate("items", range(2)):
            with transaction.atomic(using="effects"):
                self.checkpoint()

    def outside(self: Any) -> None:
        for _ in self.iterate("items", range(2)):
            with transaction.atomic(using="effects"):
                pass
            self.checkpoint()

    def between(self: Any) -> None:
        self.step("one", lambda: None)
        with transaction.atomic(using="effects"):
            self.step("two", lambda: None)

    def twice(self: Any) -> None:
        for step in self.step("items", start=0, transaction="effects"):
            with transaction.atomic(using="effects"):
                step.advance()

    def first(self: Any) -> None:
        with transaction.atomic(using="effects"):
            self.step("one", lambda: pytest.fail("was run"))

    def waiting(self: Any) -> None:
        with transaction.atomic(using="effects"):
            self.wait_for("approval")

    def beside(self: Any) -> None:
        for step in self.step("items", start=0, transaction="effects"):
            with transaction.atomic():
                step.advance()

    assert (refused(task, inside).step, refused(task, between).step) == ("items", None)
    assert (refused(task, first).step, refused(task, waiting).step) == (None, None)
    assert "the Django connection 'effects'" in str(refused(task, inside))
    assert "within that of transaction=" in str(refused(task, twice))
    assert "the Django connection 'default'" in str(refused(task, beside))
    task(outside)()
    way.close()


def test_the_blocks_of_a_testcase_do_not_count(task: Any, database: Database) -> None:
    way = ByDjango(database)
    block = transaction.atomic(using="effects")
    block._from_testcase = True
    with block:
        task(lambda self: [self.checkpoint() for _ in self.iterate("items", range(2))])()
        task(lambda self: [way.add(item) for item in self.iterate("items", range(2), transaction="effects")])()
    assert database.effects() == [0, 1]
    way.close()


def test_the_first_checkpoint_of_a_task_on_a_worker(worker: Worker, task: Any, database: Database) -> None:
    way = ByDjango(database)

    def run(self: Any) -> None:
        for _ in self.iterate("items", range(2)):
            with transaction.atomic(using="effects"):
                self.checkpoint()

    result = task(run).delay()
    worker.drain()
    assert (result.state, type(result.result)) == (states.FAILURE, CheckpointError)
    way.close()


class BeginsAndLeavesOpen:
    """Work that a task begins in a call step, and would end after it."""

    def __init__(self, way: Any) -> None:
        self._way = way
        self._block: Any = None

    def begin(self) -> None:
        if isinstance(self._way, ByDjango):
            self._block = transaction.atomic(using="effects")
            self._block.__enter__()
        self._way.add(1)

    def undo(self) -> None:
        if self._block is None:
            self._way.transaction.rollback()
        else:
            self._block.__exit__(ValueError, ValueError(), None)


def test_a_step_is_not_complete_while_what_it_has_begun_is_open(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    work = BeginsAndLeavesOpen(ways)

    def run(self: Any) -> None:
        self.step("before", lambda: None)
        try:
            self.step("work", work.begin)
        finally:
            work.undo()

    result = task(run).delay()
    worker.drain()
    assert isinstance(result.result, CheckpointError)
    assert (result.result.step, database.effects()) == ("work", [])
    assert list(Snapshot.loads(record(result.id).snapshot).completed) == ["before"]


def test_what_a_checkpoint_in_a_transaction_has_undone_is_not_saved_with_the_error(
    worker: Worker, task: Any, database: Database, record: Any
) -> None:
    way = ByDjango(database)

    def run(self: Any) -> None:
        rows = iter(self.iterate("items", range(4)))
        next(rows)
        way.add(next(rows))  # at the checkpoint before it nothing was open
        with transaction.atomic(using="effects"):
            for item in rows:
                way.add(item)

    result = task(run).delay()
    worker.drain()
    assert isinstance(result.result, CheckpointError)
    assert database.effects() == [1]
    assert cursor_of(record, result.id) in (None, ("items", 1), ("items", 2))
    way.close()


def test_a_loop_is_not_complete_while_what_its_last_item_has_begun_is_open(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    work = BeginsAndLeavesOpen(ways)

    def run(self: Any) -> None:
        try:
            for item in self.iterate("items", range(3)):
                if item == 2:
                    work.begin()
        finally:
            work.undo()

    result = task(run).delay()
    worker.drain()
    assert isinstance(result.result, CheckpointError)
    assert (result.result.step, record(result.id).fence.status) == ("items", Status.FAILED)
    assert not Snapshot.loads(record(result.id).snapshot or Snapshot().dumps()).completed


def test_a_refused_step_whose_error_is_caught_is_refused_in_each_execution(
    worker: Worker, task: Any, database: Database, ways: Any
) -> None:
    work = BeginsAndLeavesOpen(ways)

    def run(self: Any) -> Any:
        caught = False
        try:
            self.step("work", work.begin)
        except CheckpointError:
            caught = True
            if self.continuation.executions == 1:
                work.undo()
        self.step("between", worker.stop)
        self.step("after", lambda: None)
        return self.continuation.executions, caught

    result = task(run).delay()
    worker.drain()
    assert result.result == [2, True]


def insert(session: Session) -> None:
    session.execute(sa.insert(Effect).values(item=1))


def flush(session: Session) -> None:
    session.add(Effect(item=1))
    session.flush()


@pytest.mark.parametrize(
    ("work", "is_open"),
    [
        (lambda session: session.add(Effect(item=1)), True),
        (flush, True),
        (insert, True),
        (lambda session: session.begin(), True),
        (lambda session: session.begin_nested(), True),
        (lambda session: session.scalars(sa.select(Effect)).all(), False),
        (lambda session: (flush(session), session.commit()), False),
        (lambda session: (insert(session), session.rollback()), False),
        (lambda session: (insert(session), session.close()), False),
        (lambda session: (flush(session), session.commit(), session.scalars(sa.select(Effect)).all()), False),
    ],
)
def test_a_checkpoint_with_a_session_s_work_open(task: Any, database: Database, work: Any, is_open: bool) -> None:
    task(lambda self: self.checkpoint())()  # from here on sessions are noticed
    with Session(database.engine) as session:

        def run(self: Any) -> None:
            for _ in self.iterate("items", range(1)):
                work(session)
                self.checkpoint()

        if is_open:
            assert "the SQLAlchemy session" in refused(task, run).transaction
        else:
            task(run)()


def in_django(alias: str) -> Any:
    return lambda session: transaction.atomic(using=alias).__enter__()


def in_django_connected_there(session: Session) -> None:
    connections["effects"].close()
    del connections["effects"]
    transaction.atomic(using="effects").__enter__()


@pytest.mark.parametrize("is_in_a_testcase", [False, True])
@pytest.mark.parametrize("at", [0, 1, 6])
@pytest.mark.parametrize(
    "begin",
    [
        in_django("default"),
        in_django("effects"),
        in_django_connected_there,
        lambda session: session.add(Effect(item=1)),
        lambda session: session.execute(sa.insert(Effect).values(item=1)),
        lambda session: session.begin_nested(),
    ],
)
def test_a_direct_call_finds_what_an_item_leaves_open_at_that_item(
    task: Any, database: Database, begin: Any, at: int, is_in_a_testcase: bool
) -> None:
    way, seen = ByDjango(database), []
    of_test = transaction.atomic(using="effects")
    of_test._from_testcase = True
    with Session(database.engine) as session, ExitStack() as stack:
        if is_in_a_testcase:
            stack.enter_context(of_test)

        def run(self: Any) -> None:
            for item in self.iterate("items", range(8)):
                seen.append(item)
                if item == at:
                    begin(session)

        try:
            assert refused(task, run).step == "items"
        finally:
            for alias in ("default", "effects"):
                while len(connections[alias].atomic_blocks) > (alias == "effects" and is_in_a_testcase):
                    connections[alias].atomic_blocks[-1].__exit__(None, None, None)
    assert seen == list(range(at + 1))
    way.close()


def test_work_from_before_the_step_is_not_committed_by_it(worker: Worker, task: Any, database: Database) -> None:
    with Session(database.engine) as session:

        def run(self: Any) -> None:
            session.add(Effect(item=1))
            list(self.iterate("items", range(2), transaction=session))

        result = task(run).delay()
        worker.drain()
        assert isinstance(result.result, CheckpointError)
    assert database.effects() == []


def test_a_checkpoint_within_an_item_of_its_own_transaction_leaves_it_undone(
    worker: Worker, task: Any, database: Database, ways: Any, record: Any
) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            ways.add(item)
            if item == 2 and not self.continuation.resumptions:
                worker.stop()
            self.checkpoint()

    result = task(run).delay()
    worker.deliver()
    assert (database.effects(), cursor_of(record, result.id)) == ([0, 1], ("items", 2))
    worker.drain()
    assert database.effects() == [0, 1, 2, 3]


def test_an_iterator_that_is_kept_is_undone_too(worker: Worker, task: Any, database: Database, ways: Any) -> None:
    kept: list[Any] = []

    def run(self: Any) -> None:
        kept.append(iter(self.iterate("items", range(4), transaction=ways.transaction)))
        for _ in range(2):
            ways.add(next(kept[-1]))
            if len(kept) > 1:
                kept.pop(0)  # collected while another execution is at work in the same session
        if not self.continuation.resumptions:
            raise ValueError("once")

    task(run).delay()
    worker.deliver()
    assert database.effects() == [0]
    worker.drain()
    assert database.effects() == [0, 1]
    kept.clear()


# -- in tests of users


def empty(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(sa.delete(Effect))


@pytest.mark.exhaustive
def test_assert_resumable_finds_each_item_once_with_its_own_transaction(
    task: Any, database: Database, ways: Any
) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(4), transaction=ways.transaction):
            ways.add(item)
        for step in self.step("moves", start=4, transaction=ways.transaction):
            while step.cursor < 7:
                ways.add(step.cursor)
                step.advance()

    assert_resumable(task(run), check=database.effects, setup=lambda: empty(database))
    assert database.effects() == list(range(7))


def test_assert_resumable_finds_an_item_twice_without_one(task: Any, database: Database, ways: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("items", range(4)):
            ways.add(item)
            if ways.transaction == "effects":
                continue
            ways.transaction.commit()

    with pytest.raises(AssertionError):
        assert_resumable(task(run), check=database.effects, setup=lambda: empty(database))


def test_assert_resumable_finds_a_checkpoint_in_a_transaction(task: Any, database: Database) -> None:
    way = ByDjango(database)

    def run(self: Any) -> None:
        with transaction.atomic(using="effects"):
            for item in self.iterate("items", range(4)):
                way.add(item)

    with pytest.raises(CheckpointError):
        assert_resumable(task(run), check=database.effects, setup=lambda: empty(database))
    assert database.effects() == []
    way.close()
