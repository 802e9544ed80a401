"""The database store on PostgreSQL: the suite for stores, query plans, and an unavailable server."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Fence, Record, Status, Store, Update
from celery_continuations.stores.database import DatabaseStore, metadata
from celery_continuations.stores.database.statements import CLEAN, READ, RETIRE, SCAN
from celery_continuations.testing.stores import StoreConformance
from tests.support import servers
from tests.support.postgresql import connect, end_others, others, url_of
from tests.support.processes import LocalProcess, await_condition
from tests.support.unreadable import KINDS, harms_no_other_task
from tests.support.worker import make_app

RUNNING = Fence(1, Status.RUNNING, "w/1/a")


@pytest.fixture
def client(postgres_server: LocalProcess) -> Iterator[psycopg.Connection[Any]]:
    with connect(postgres_server) as connection:
        yield connection


@pytest.fixture
def make_store(postgres_server: LocalProcess) -> Iterator[Callable[..., DatabaseStore]]:
    stores: list[DatabaseStore] = []

    def make(namespace: str | None = None, **options: Any) -> DatabaseStore:
        stores.append(DatabaseStore(url_of(postgres_server), namespace or uuid.uuid4().hex, options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


class TestDatabaseStoreOnPostgreSQL(StoreConformance):
    @pytest.fixture(autouse=True)
    def server(
        self, postgres_server: LocalProcess, client: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.url, self.client = url_of(postgres_server), client
        monkeypatch.setattr("celery_continuations.stores.sql._CLEAN_EVERY", 0.01)

    def make_store(self, namespace: str) -> Store:
        return DatabaseStore(self.url, namespace)

    def entries(self, store: Store) -> int:
        row = self.client.execute("SELECT count(*) FROM continuation_record").fetchone()
        return int(row[0]) if row else 0

    def corrupt(self, store: Store, task_id: str) -> None:
        self.client.execute("UPDATE continuation_record SET fence = 'nonsense' WHERE task_id = %s", (task_id,))

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        for value in ("NaN", "Infinity", "-Infinity"):
            self.client.execute("UPDATE continuation_lease SET until = %s WHERE worker = %s", (value, worker))
            yield

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_entry_of_any_kind_harms_another_task(self, kind: str) -> None:
        harms_no_other_task(make_app(), self, kind)

    def break_connection(self, store: Store) -> None:
        end_others(self.client)

    def connections(self, store: Store) -> int:
        return others(self.client)


def test_many_threads_leave_no_more_connections_than_the_pool_keeps(
    make_store: Callable[..., DatabaseStore], client: psycopg.Connection[Any]
) -> None:
    await_condition(lambda: not others(client), "the connections of other tests have ended")
    store = make_store(pool_size=2, max_overflow=6)

    def work(number: int) -> None:
        fence = Fence(1, Status.RUNNING, f"w{number}/1/a")
        store.compare_and_swap(f"id{number}", None, Update(fence))
        for turn in range(20):
            store.compare_and_swap(f"id{number}", fence, Update(fence, str(turn)))
            store.take(f"id{number}", RUNNING, RUNNING)
            store.scan(f"w{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await_condition(lambda: others(client) <= 2, "the connections beyond the pool have ended")
    store.close()
    await_condition(lambda: not others(client), "the connections have ended")


def test_a_parent_and_its_child_have_connections_of_their_own(
    make_store: Callable[..., DatabaseStore],
) -> None:
    store = make_store()
    store.compare_and_swap("id", None, Update(RUNNING))
    parents = store._engine
    store._engines = {-1: parents}  # as a child finds it
    assert store.read("id") is not None
    assert store._engine is not parents
    assert parents.pool.checkedin() == 1  # type: ignore[attr-defined]
    parents.dispose()


def plan_of(client: psycopg.Connection[Any], statement: Any, store: DatabaseStore, namespace: str) -> str:
    compiled = statement.compile(dialect=store._engine.dialect)
    values = {"namespace_": namespace, "worker_": "w1", "limit_": 100, "task_id_": "id7"}
    (plan,) = client.execute(f"EXPLAIN (FORMAT JSON) {compiled}", values).fetchone() or ("",)
    return json.dumps(plan, indent=1)


def test_a_scan_does_not_read_all_the_records(
    make_store: Callable[..., DatabaseStore], client: psycopg.Connection[Any]
) -> None:
    store = make_store("many")
    store.read("id")
    # 20,000 waiting or ended, 2,000 running in two workers, and some that are due
    client.execute(
        """
        INSERT INTO continuation_record (namespace, task_id, fence, worker, due, expires, snapshot)
        SELECT 'many', 'id' || n, CASE WHEN n % 10 = 0 THEN '1 running w' || n % 20 || '/1/a' ELSE '1 queued ' END,
               CASE WHEN n % 10 = 0 THEN 'w' || n % 20 END,
               CASE WHEN n % 1000 = 1 THEN 5 WHEN n % 2 = 1 THEN 1e10 END,
               CASE WHEN n % 4 = 2 THEN 1e10 END, repeat('x', 200)
        FROM generate_series(1, 20000) AS n
        """
    )
    client.execute("ANALYZE continuation_record")
    for statement in (READ, SCAN, RETIRE, CLEAN):
        plan = plan_of(client, statement, store, "many")
        assert '"Relation Name": "continuation_record"' in plan or '"Index Name": "ix_continuation_record' in plan
        for scan in plan.split('"Node Type": ')[1:]:
            assert not (scan.startswith('"Seq Scan"') and '"continuation_record"' in scan.partition("Plans")[0]), plan
    found = store.scan("w10")
    assert (len(found.due), len(found.owned)) == (20, 1000)
    assert sorted(lease.worker for lease in found.leases) == ["w0", "w10"]
    began = time.perf_counter()
    for _ in range(20):
        store.scan()
    assert time.perf_counter() - began < 1
    client.execute("DELETE FROM continuation_record WHERE namespace = 'many'")


def test_expired_rows_are_removed_also_while_another_cleans(
    make_store: Callable[..., DatabaseStore], postgres_server: LocalProcess, client: psycopg.Connection[Any]
) -> None:
    store = make_store("expired")
    for task_id in ("locked", "free"):
        store.compare_and_swap(task_id, None, Update(RUNNING, expires_in=-1))
    query = "SELECT task_id FROM continuation_record WHERE namespace = 'expired'"
    with connect(postgres_server) as other, other.transaction():
        other.execute(f"{query} AND task_id = 'locked' FOR UPDATE")
        make_store().renew("w", 10)
        assert client.execute(query).fetchall() == [("locked",)]
    make_store().renew("w", 10)
    assert client.execute(query).fetchall() == []


def test_the_tables_are_made_by_many_at_once(
    make_store: Callable[..., DatabaseStore], client: psycopg.Connection[Any]
) -> None:
    for _ in range(5):
        client.execute("DROP TABLE IF EXISTS continuation_record, continuation_lease")
        stores = [make_store("racing") for _ in range(8)]
        barrier = threading.Barrier(8)
        problems: list[Exception] = []

        def use(number: int, stores: Any = stores, barrier: Any = barrier, problems: Any = problems) -> None:
            stores[number]._engine.connect().close()
            barrier.wait()
            try:
                assert stores[number].compare_and_swap(str(number), None, Update(RUNNING))
            except Exception as exc:
                problems.append(exc)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
        assert not problems
        (found,) = client.execute(
            "SELECT array_agg(indexname::text) FROM pg_indexes WHERE tablename = 'continuation_record'"
        ).fetchone() or ([],)
        wanted = {str(index.name) for index in metadata.tables["continuation_record"].indexes}
        assert set(found) == wanted | {"continuation_record_pkey"}


def test_what_postgresql_does_not_take_is_refused(make_store: Callable[..., DatabaseStore]) -> None:
    store = make_store()
    with pytest.raises(StoreError, match="task 'id': DataError: .*NUL"):
        store.compare_and_swap("id", None, Update(RUNNING, "\x00"))
    with pytest.raises(StoreError, match="surrogates not allowed"):
        store.compare_and_swap("id", None, Update(RUNNING, "\ud800"))
    assert store.compare_and_swap("id", None, Update(RUNNING))


class CutError(Exception):
    """The exception of a time limit, raised at any point."""


def test_a_call_that_a_signal_cuts_leaves_no_answer_for_the_next_one(
    make_store: Callable[..., DatabaseStore], postgres_server: LocalProcess
) -> None:
    def cut(*args: Any) -> None:
        raise CutError

    store = make_store("cut")
    store.compare_and_swap("id", None, Update(RUNNING, "0"))
    calls: list[Callable[[], Any]] = [
        lambda: store.compare_and_swap("id", RUNNING, Update(RUNNING, "cut")),
        lambda: store.take("id", RUNNING, RUNNING),
    ]
    previous = signal.signal(signal.SIGALRM, cut)
    try:
        for call in calls:
            with connect(postgres_server) as other, other.transaction():
                other.execute("SELECT 1 FROM continuation_record WHERE namespace = 'cut' FOR UPDATE")
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(CutError):
                    call()
            for turn in range(3):
                assert store.compare_and_swap("id", RUNNING, Update(RUNNING, str(turn)))
                assert store.read("id") == Record(RUNNING, str(turn))
            assert store._engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def own_server(postgres_server: LocalProcess, server_folder: Path) -> Iterator[LocalProcess]:
    """A server that a test may kill."""
    folder = server_folder / uuid.uuid4().hex
    folder.mkdir()
    process = servers.start_postgres(folder)
    yield process
    process.process.send_signal(signal.SIGINT)
    process.end(timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def start_again(server: LocalProcess) -> None:
    ready = "database system is ready to accept connections"
    times = server.text.count(ready)

    def there() -> bool:
        # the children of a killed server live a moment longer and prevent its restart
        if server.process.poll() is not None:
            server.start()
        return server.text.count(ready) > times

    await_condition(there, "the server is ready again")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
def test_a_server_that_is_killed_and_comes_back(own_server: LocalProcess, number: int) -> None:
    store = DatabaseStore(url_of(own_server), "n")
    store.compare_and_swap("id", None, Update(RUNNING, "0"))
    written = 0
    problems: list[BaseException] = []
    done = threading.Event()

    def save() -> None:
        nonlocal written
        while not done.is_set():
            try:
                assert store.compare_and_swap("id", RUNNING, Update(RUNNING, str(written + 1)))
                written += 1
            except StoreError:
                problems.append(StoreError("database", "away"))
            except BaseException as exc:
                problems.append(exc)
                return

    thread = threading.Thread(target=save)
    thread.start()
    try:
        await_condition(lambda: written > 20, "some saves")
        own_server.kill(number)
        own_server.await_exit()
        await_condition(lambda: problems, "a save fails")
        with pytest.raises(StoreError, match="store database: continuation_record, task 'id': OperationalError: "):
            store.read("id")
        before = written
        start_again(own_server)
        await_condition(lambda: written > before + 20, "saves after the restart")
    finally:
        done.set()
        thread.join()
    assert {type(problem) for problem in problems} == {StoreError}
    assert store.read("id") == Record(RUNNING, str(written))
    with connect(own_server) as client:
        await_condition(lambda: others(client) <= 2, "no connection has leaked")
    store.close()


def test_a_restart_between_two_calls_is_not_noticed(own_server: LocalProcess) -> None:
    store = DatabaseStore(url_of(own_server), "n")
    store.compare_and_swap("id", None, Update(RUNNING, "text"))
    calls: list[Callable[[], Any]] = [
        lambda: store.read("id"),
        lambda: store.compare_and_swap("id", RUNNING, Update(RUNNING, "text")),
        lambda: store.take("id", RUNNING, RUNNING),
        lambda: store.scan("w").owned == {"id": "w/1/a"},
    ]
    for call in calls:
        own_server.kill("SIGINT")
        own_server.await_exit()
        start_again(own_server)
        assert call()
    store.close()
