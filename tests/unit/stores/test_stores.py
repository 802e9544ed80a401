"""Every store passes the suite for stores, and names what is wrong; a setting opens it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from sqlalchemy.engine import make_url

from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Saved, Snapshot
from celery_continuations.exceptions import StoreError
from celery_continuations.process.identity import new_owner, new_worker
from celery_continuations.protocol.claim import claim as claim_message
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Due, Fence, Record, Scan, Status, Store, Update, factory, files, open_store
from celery_continuations.stores.database import DatabaseStore, metadata
from celery_continuations.stores.factory import without_store
from celery_continuations.stores.filesystem import FilesystemStore
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore
from celery_continuations.testing.stores import StoreConformance
from tests.support.processes import await_condition
from tests.support.redis_server import redis_store
from tests.support.worker import make_app

RUNNING = Fence(1, Status.RUNNING, "me on a host/7")


class TestMemoryStore(StoreConformance):
    between_processes = False

    def make_store(self, namespace: str) -> Store:
        return MemoryStore()

    def entries(self, store: Any) -> int:
        return len(store._records)


class TestRedisStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def server(self, redis_url: str) -> Iterator[None]:
        from redis import Redis

        self.url = redis_url
        self.client = Redis.from_url(redis_url)
        yield
        self.client.flushdb()
        self.client.close()

    def make_store(self, namespace: str) -> Store:
        return redis_store(self.url, namespace)

    def corrupt(self, store: Store, task_id: str) -> None:
        (key,) = self.client.scan_iter(f"continuation:*:{task_id}")
        self.client.set(key, "nonsense")

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        (key,) = self.client.scan_iter("continuations:*:leases")
        for text in ("", "soon", "nan stopping", "inf ", "-", b"\xff", b"1e400 \xff"):
            self.client.hset(key, worker, text)
            yield

    def break_connection(self, store: Store) -> None:
        self.client.client_kill_filter(_type="normal", skipme=True)

    def connections(self, store: Store) -> int:
        return len(self.client.client_list()) - 1

    def entries(self, store: Any) -> int:
        index = store._index
        owned = sum(self.client.hlen(key) for key in self.client.scan_iter(f"{index}owned:*"))
        return len(self.client.keys("*")) + self.client.zcard(f"{index}due") + owned

    def keys(self, store: Any) -> tuple[Sequence[str], Sequence[str]]:
        return store.prefixes, [key.decode() for key in self.client.keys("*")]


class TestFilesystemStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_store(self, namespace: str) -> Store:
        return FilesystemStore(self.path, namespace)

    def corrupt(self, store: Store, task_id: str) -> None:
        (path,) = self.path.rglob(f"{task_id}.json")
        path.write_text("{")

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        (path,) = self.path.rglob(f"leases/{worker}")
        whole = {"worker": worker, "until": time.time() + 1000, "note": ""}
        wrong = [{"until": "soon"}, {"until": None}, {"until": math.nan}, {"until": math.inf}, {"until": 10**400},
                 {"note": 5}, {"worker": 5}]  # fmt: skip
        for text in ("", "{", "[]", "null", "\xff", "[" * 100_000, *(json.dumps({**whole, **one}) for one in wrong)):
            path.write_text(text, "latin-1")
            yield

    def connections(self, store: Store) -> int:
        return len(os.listdir("/proc/self/fd"))

    def entries(self, store: Store) -> int:
        return sum(path.is_file() and path.suffix != ".lock" for path in self.path.rglob("*"))

    def keys(self, store: Any) -> tuple[Sequence[str], Sequence[str]]:
        return [f"{store._folder}/"], [str(path) for path in self.path.rglob("*") if path.is_file()]


class TestDatabaseStoreOnSQLite(StoreConformance):
    many = 300

    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path / "some progress.db"
        monkeypatch.setattr("celery_continuations.stores.sql._CLEAN_EVERY", 0.01)

    def entries(self, store: Store) -> int:
        ((count,),) = sqlite_rows(self.path, "SELECT count(*) FROM continuation_record")
        return int(count)

    def make_store(self, namespace: str) -> Store:
        return DatabaseStore(f"sqlite:///{self.path}", namespace)

    def corrupt(self, store: Store, task_id: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE continuation_record SET fence = 'nonsense' WHERE task_id = ?", (task_id,))

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        for value in ("'soon'", "x'ff'", "9e999"):
            sqlite_rows(self.path, f"UPDATE continuation_lease SET until = {value} WHERE worker = '{worker}'")
            yield
        sqlite_rows(self.path, f"UPDATE continuation_lease SET note = x'ff' WHERE worker = '{worker}'")
        yield

    def connections(self, store: Store) -> int:
        return len(os.listdir("/proc/self/fd"))


def test_the_message_store_keeps_nothing_and_agrees() -> None:
    store = MessageStore()
    assert not store.keeps
    assert store.compare_and_swap("id", None, Update(RUNNING))
    assert store.compare_and_swap("id", RUNNING, Update(RUNNING, expected_inbox="unknown"))
    assert store.take("id", RUNNING, RUNNING) == Record(RUNNING)
    assert store.compare_and_swap("id", RUNNING, Update(RUNNING, expires_in=0))
    store.renew("w", 10)
    store.retire("w")
    assert (store.read("id"), store.scan("w"), store.scan("w").owned) == (None, Scan([], [], {}), {})
    assert list(store.records()) == []


# -- databases


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "progress.db"


def sqlite_rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize(
    "change",
    [
        "fence = 'nonsense'",
        "fence = '1 lost x'",
        "fence = '1'",
        "fence = x'ff'",
        "snapshot = x'ff'",
        "snapshot = CAST(x'ff' AS TEXT)",
        "inbox = x'ff'",
        "inbox = CAST(x'ff' AS TEXT)",
        "due = 'soon'",
    ],
)
def test_wrong_values_in_a_row_are_named(database: Path, change: str) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.compare_and_swap("id", None, Update(RUNNING, "text"))
    sqlite_rows(database, f"UPDATE continuation_record SET {change}")
    store.compare_and_swap("sound", None, Update(RUNNING, "text"))
    query = "SELECT hex(fence), hex(snapshot), hex(inbox), due FROM continuation_record"
    before = sqlite_rows(database, query)
    for _ in range(2):
        with pytest.raises(StoreError, match="continuation_record, task 'id'") as caught:
            store.read("id")
        assert caught.value.store == "database"
        assert not store.compare_and_swap("id", None, Update(RUNNING))
        found = dict(store.records())
        assert str(found.pop("id")) == str(caught.value)
        assert found == {"sound": Record(RUNNING, "text")}
    assert sqlite_rows(database, query) == before


def test_a_row_that_is_wrong_does_not_hide_the_others(database: Path) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    for task_id in ("wrong", "right"):
        store.compare_and_swap(task_id, None, Update(Fence(1, Status.RUNNING, "w/1/a"), due_in=0))
    sqlite_rows(database, "UPDATE continuation_record SET fence = 'nonsense' WHERE task_id = 'wrong'")
    assert store.scan("w").owned == {"wrong": "nonsense", "right": "w/1/a"}


def test_expired_rows_are_removed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_continuations.stores.sql._BATCH", 2)
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.renew("w", 10)
    for number in range(5):
        store.compare_and_swap(f"ended{number}", None, Update(RUNNING, expires_in=-1))
    store.compare_and_swap("recent", None, Update(RUNNING, expires_in=1000))
    store.compare_and_swap("unfinished", None, Update(RUNNING))
    store.renew("w", 10)
    (count,) = sqlite_rows(database, "SELECT count(*) FROM continuation_record")
    assert count == (7,), "it is too soon to look again"
    another = DatabaseStore(f"sqlite:///{database}", "another service")
    another.read("id")
    for left in (3, 1, 0, 0):
        (count,) = sqlite_rows(database, "SELECT count(*) FROM continuation_record WHERE task_id LIKE 'ended%'")
        assert count == (left,), "a full batch is followed by the next one"
        another.renew("w", 10)
    assert sorted(sqlite_rows(database, "SELECT task_id FROM continuation_record")) == [("recent",), ("unfinished",)]


def test_a_scan_does_not_read_all_the_records(database: Path) -> None:
    from celery_continuations.stores.database.statements import CLEAN, RETIRE, SCAN

    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.read("id")
    for statement in (SCAN, RETIRE, CLEAN):
        compiled = statement.compile(dialect=store._engine.dialect)
        values = {**compiled.params, "namespace_": "n", "worker_": "w", "limit_": 100}
        with closing(sqlite3.connect(database)) as connection:
            order = [values[name] for name in compiled.positiontup or ()]
            plan = connection.execute(f"EXPLAIN QUERY PLAN {compiled}", order).fetchall()
        steps = [step for *_, step in plan if "continuation_record" in step]
        assert steps
        for step in steps:
            assert re.search(r"SEARCH .* INDEX (ix_|\S+ \(namespace=\? AND task_id=\?\))", step), plan


def test_the_tables_are_made_by_many_at_once(database: Path) -> None:
    problems: list[Exception] = []
    barrier = threading.Barrier(8)

    def use(number: int) -> None:
        store = DatabaseStore(f"sqlite:///{database}", "n")
        barrier.wait()
        try:
            assert store.compare_and_swap(str(number), None, Update(RUNNING))
        except Exception as exc:
            problems.append(exc)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    names = {row[0] for row in sqlite_rows(database, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")}
    indexes = {index.name for table in metadata.tables.values() for index in table.indexes}
    assert names == {"continuation_record", "continuation_lease"} | indexes


def test_the_tables_are_made_again_when_they_are_gone(database: Path) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.compare_and_swap("id", None, Update(RUNNING))
    database.unlink()
    with pytest.raises(StoreError, match="OperationalError: no such table: continuation_record"):
        store.compare_and_swap("id", None, Update(RUNNING))
    assert store.compare_and_swap("id", None, Update(RUNNING))


def test_a_database_that_another_process_writes_to_is_waited_for(database: Path) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.compare_and_swap("id", None, Update(RUNNING))
    with closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.execute, ["COMMIT"])
        timer.start()
        assert store.compare_and_swap("id", RUNNING, Update(RUNNING, "text"))
        timer.join()
        other.execute("BEGIN EXCLUSIVE")
        impatient = DatabaseStore(f"sqlite:///{database}", "n", {"connect_args": {"timeout": 0.01}})
        with pytest.raises(StoreError, match="task 'id': OperationalError: database is locked"):
            impatient.compare_and_swap("id", RUNNING, Update(RUNNING, "text"))


def test_take_without_returning(database: Path) -> None:
    """SQLite before 3.35 lacks RETURNING."""
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store._engine.dialect.update_returning = False
    store.compare_and_swap("id", None, Update(RUNNING, "text", "message", "value"))
    fence = RUNNING._replace(generation=2)
    assert store.take("id", fence, fence) is None
    assert store.take("id", RUNNING, fence) == Record(fence, "text", "message", "value")


@pytest.mark.parametrize(
    ("driver", "expected"), [("psycopg", {"prepare_threshold": None}), ("psycopg2", {}), ("psycopg", 5)]
)
def test_psycopg_3_prepares_no_statements(driver: str, expected: Any) -> None:
    """PgBouncer would execute them on other connections; an explicit option is kept."""
    from celery_continuations.stores.database.store import _engine_options

    dialect = make_url(f"postgresql+{driver}://localhost/x").get_dialect()
    given = {"connect_args": {"prepare_threshold": expected}} if expected == 5 else {}
    found = _engine_options(dialect, given)["connect_args"]
    assert {name: found[name] for name in found if name == "prepare_threshold"} == (
        {"prepare_threshold": 5} if expected == 5 else expected
    )


@pytest.mark.parametrize("text", ["\ud800", "lone \udfff"])
def test_values_that_are_not_text_are_refused(database: Path, text: str) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    with pytest.raises(StoreError, match="UnicodeEncodeError"):
        store.compare_and_swap("id", None, Update(RUNNING, text))
    with pytest.raises(StoreError, match="a task id cannot be encoded"):
        store.read(text)
    assert store.compare_and_swap("id", None, Update(RUNNING, "text"))


def test_ids_and_namespaces_of_a_database_have_a_limit(database: Path) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n" * 255)
    assert store.compare_and_swap("x" * 255, None, Update(RUNNING))
    for call in (store.read, lambda task_id: store.compare_and_swap(task_id, None, Update(RUNNING))):
        with pytest.raises(StoreError, match="a task id has at most 255 characters, not 256: xxx"):
            call("x" * 256)
    fence = Fence(1, Status.RUNNING, "w" * 256 + "/1/a")
    for refused in (
        lambda: store.renew("w" * 256, 10),
        lambda: store.compare_and_swap("id", None, Update(fence)),
        lambda: store.take("x" * 255, RUNNING, fence),
    ):
        with pytest.raises(StoreError, match="a worker has at most 255 characters, not 256: www"):
            refused()
    with pytest.raises(StoreError, match="a namespace has at most 255 characters, not 256"):
        DatabaseStore(f"sqlite:///{database}", "n" * 256)


def test_an_error_shows_no_snapshot(database: Path) -> None:
    store = DatabaseStore(f"sqlite:///{database}", "n")
    store.compare_and_swap("id", None, Update(RUNNING))
    sqlite_rows(database, "ALTER TABLE continuation_record RENAME COLUMN snapshot TO other")
    with pytest.raises(StoreError) as caught:
        store.compare_and_swap("id", RUNNING, Update(RUNNING, "private"))
    error: BaseException | None = caught.value
    while error is not None:
        assert "private" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://localhost/x", "mysql://localhost/x is not supported; sqlite:/// and postgresql:// are"),
        ("sqlite+aiosqlite:///x", r"sqlite\+aiosqlite:///x is not supported; .*drivers that block"),
        ("postgresql+asyncpg://me:secret@localhost/x", r"postgresql\+asyncpg://me:\*\*@localhost/x is not supported"),
        ("sqlite://", "sqlite:// is in memory, where no other process could find it"),
        ("sqlite:///:memory:", "is in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "is in memory"),
        ("nonsense", "cannot read the URL"),
        ("postgresql+psycopg2cffi://localhost/x", "cannot open postgresql"),
        ("nonsense://localhost", "cannot read the URL"),
    ],
)
def test_a_database_that_is_not_supported(url: str, problem: str) -> None:
    with pytest.raises(StoreError, match=problem):
        DatabaseStore(url, "n")


def test_options_of_the_engine_are_honoured_that_leave_the_store_its_way(database: Path) -> None:
    app = make_app(
        database_engine_options={
            "pool_pre_ping": True, "pool_recycle": 3600, "max_overflow": 5, "poolclass": None,
            "isolation_level": "SERIALIZABLE", "connect_args": {"timeout": 7}, "echo_pool": True,
        },
        continuation_namespace="n",
    )  # fmt: skip
    store = open_store(app, f"db+sqlite:///{database}")
    assert isinstance(store, DatabaseStore)
    assert store.compare_and_swap("id", None, Update(RUNNING))
    assert store._options["connect_args"] == {"timeout": 7}
    with pytest.raises(StoreError, match="cannot open sqlite:///.*Invalid argument"):
        DatabaseStore(f"sqlite:///{database}", "n", {"unknown": 1})
    with pytest.raises(StoreError, match="TypeError: .*'nonsense'"):
        DatabaseStore(f"sqlite:///{database}", "n", {"connect_args": {"nonsense": 1}}).read("id")


# -- files


def files_of(folder: Path) -> int:
    return sum(path.is_file() and path.suffix != ".lock" for path in folder.rglob("*"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("expires_in", [20, 60, 86400, 30 * 86400])
def test_expired_files_are_removed_while_the_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expires_in: float
) -> None:
    monkeypatch.setattr("celery_continuations.stores.files._LOOK_AGAIN", 0.0)
    store = FilesystemStore(tmp_path, "n")
    began = time.time()
    clock = began
    monkeypatch.setattr(time, "time", lambda: clock)
    for number in range(1000):
        clock = began + number * expires_in / 100
        assert store.compare_and_swap(f"id{number}", None, Update(RUNNING))
        assert store.compare_and_swap(f"id{number}", RUNNING, Update(Fence(1, Status.DONE), expires_in=expires_in))
    assert files_of(tmp_path) < 300, "of the last hundred, each with its mark"
    assert store.read("id999") == Record(Fence(1, Status.DONE))
    assert len(os.listdir(tmp_path / "continuations-n" / "ending")) < 60
    assert store.compare_and_swap("kept", None, Update(RUNNING))
    clock += 2 * expires_in + 2
    for _ in range(10):  # each removes a number that does not depend on how many there are
        store.renew("w", 10)
    assert {path.stem for path in tmp_path.rglob("*.json")} == {"kept"}
    assert files_of(tmp_path) == 4, "the record and its mark, the lease, and the mark that all are marked"


def test_a_record_that_is_kept_after_all_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_continuations.stores.files._LOOK_AGAIN", 0.0)
    store = FilesystemStore(tmp_path, "n")
    failed = Fence(1, Status.FAILED)
    for name, change in (("retried", Update(RUNNING)), ("again", Update(failed, expires_in=5000))):
        store.compare_and_swap(name, None, Update(failed, expires_in=10))
        store.compare_and_swap(name, failed, change)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    store.renew("w", 10)
    assert {task_id for task_id, _ in store.records()} == {"retried", "again"}


def test_a_record_that_cannot_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_continuations.stores.files._LOOK_AGAIN", 0.0)
    store = FilesystemStore(tmp_path, "n")
    for name in ("a", "b", "c", "d"):
        store.compare_and_swap(name, None, Update(Fence(1, Status.DONE), expires_in=10))
    (tmp_path / "continuations-n" / "b.json").write_text("[" * 100_000)
    (tmp_path / "continuations-n" / "c.json").unlink()
    (tmp_path / "continuations-n" / "c.json").mkdir()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    store.renew("w", 10)
    assert {path.stem for path in tmp_path.rglob("*.json")} == {"b", "c"}


def test_files_of_version_0_1_are_removed_when_they_expire(tmp_path: Path) -> None:
    folder = tmp_path / "continuations-n"
    folder.mkdir(0o755)
    (folder / "leases").mkdir(0o755)
    done = {"fence": "1 done ", "snapshot": None, "message": None, "value": None, "inbox": None, "due": None}
    for name, expires in (("ended", time.time() - 5), ("recent", time.time() + 500), ("unfinished", None)):
        (folder / f"{name}.json").write_text(json.dumps({**done, "task_id": name, "expires": expires}))
    (folder / "strange.json").write_text("?")
    left = [folder / "ended.json.77.1", folder / "leases" / "w.77.1", folder / "young.json.77.1"]
    for path in left:
        path.write_text("{")
    for path in left[:2]:
        os.utime(path, (1, 1))
    store = FilesystemStore(tmp_path, "n")
    store.renew("w", 10)
    assert [path.exists() for path in left] == [False, False, True]
    assert {path.stem for path in folder.glob("*.json")} == {"recent", "unfinished", "strange"}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemStore(tmp_path, "n")
    script = """if True:
        import os, signal, sys
        from pathlib import Path
        from celery_continuations.stores import Fence, Status, Update
        from celery_continuations.stores.filesystem import FilesystemStore
        store = FilesystemStore(sys.argv[1], "n")
        Path.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "me")))
    """
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (path,) = (tmp_path / "continuations-n" / "writing").iterdir()
    store.renew("w", 10)
    assert path.exists(), "its writer may be slow"
    os.utime(path, (1, 1))
    FilesystemStore(tmp_path, "n").renew("w", 10)
    assert not path.exists()
    assert store.compare_and_swap("id", None, Update(RUNNING)), "nor does it hold a lock"


def test_a_store_of_many_files_opens_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FilesystemStore(tmp_path, "n")
    seen: list[object] = []
    monkeypatch.setattr(Path, "glob", lambda *args: seen.append(args) or iter(()))
    monkeypatch.setattr(os, "listdir", lambda *args: seen.append(args) or [])
    FilesystemStore(tmp_path, "n")
    assert seen == []


def test_files_are_readable_by_their_user_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = FilesystemStore(tmp_path / "a" / "b", "n")
        store.compare_and_swap("id", None, Update(RUNNING, "private", due_in=5, expires_in=50))
        store.renew("w", 10)
    finally:
        os.umask(before)
    found = list((tmp_path / "a" / "b").rglob("*"))
    assert len(found) >= 9
    assert {oct(path.stat().st_mode & 0o777) for path in found} == {"0o700", "0o600"}


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_folder_that_others_may_have_prepared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_a_link: bool
) -> None:
    folder = made = tmp_path / "continuations-n"
    if through_a_link:
        made = tmp_path / "elsewhere"
        folder.symlink_to(made)
    made.mkdir()
    made.chmod(0o777)
    with pytest.raises(StoreError, match="other users can write in .*continuations-n: .* run chmod -R go-rwx"):
        FilesystemStore(tmp_path, "n")
    made.chmod(0o755)
    user = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(StoreError, match=f"belongs to user {user}, this process runs as user {user + 1}: run all"):
            FilesystemStore(tmp_path, "n")
    assert FilesystemStore(tmp_path, "n").compare_and_swap("id", None, Update(RUNNING))


def test_a_child_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with files.locked(path):
            holds.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(10)
    inward, outward = os.pipe()
    is_ready, ready = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        child = os.fork()
    if not child:
        os.close(outward)
        os.write(ready, b".")
        os.read(inward, 1)
        os._exit(0)
    os.close(inward)
    os.read(is_ready, 1)
    release.set()
    thread.join(10)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError
    for end in (outward, is_ready, ready):
        os.close(end)
    os.waitpid(child, 0)


def test_an_id_that_is_the_file_name_of_another_task_is_refused(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path, "n")
    store.compare_and_swap("Order 7", None, Update(RUNNING))
    ((name,),) = [[path.stem for path in tmp_path.rglob("*.json")]]
    for call in (store.read, lambda task_id: store.compare_and_swap(task_id, None, Update(RUNNING))):
        with pytest.raises(StoreError, match=f"has the record of task 'Order 7', not of '{name}'"):
            call(name)
    assert store.read("Order 7") == Record(RUNNING)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fence": 5}', "null", '{"fence": "1 lost x"}', "\xff"])
def test_wrong_bytes_in_a_file_are_named(tmp_path: Path, text: str) -> None:
    store = FilesystemStore(tmp_path, "n")
    store.compare_and_swap("id", None, Update(RUNNING))
    (path,) = tmp_path.rglob("id.json")
    path.write_text(text, "latin-1")
    with pytest.raises(StoreError, match=r"id\.json") as caught:
        store.read("id")
    assert caught.value.store == "filesystem"
    with pytest.raises(StoreError):
        store.compare_and_swap("id", RUNNING, Update(RUNNING))
    ((task_id, problem),) = store.records()
    assert (task_id, str(problem)) == ("id", str(caught.value))


def test_wrong_bytes_in_redis_are_named(redis_url: str) -> None:
    import redis

    store = redis_store(redis_url, "wrong")
    client = redis.Redis.from_url(redis_url)
    store.compare_and_swap("wrong bytes", None, Update(RUNNING))
    (key,) = client.scan_iter("continuation:*:wrong bytes")
    for text in ("nonsense", "x running y\n{}", "1 strolling y\n{}", b"1 running \xff", b"1 running x\n\xff"):
        client.set(key, text)
        with pytest.raises(StoreError, match="continuation:[0-9a-f]+:wrong bytes is not a record"):
            store.read("wrong bytes")
        assert client.get(key) in (text, text if isinstance(text, bytes) else text.encode()), "the record is kept"
    client.delete(key)
    client.hset(key, "a", "hash")
    with pytest.raises(StoreError, match="continuation:[0-9a-f]+:wrong bytes: .*WRONGTYPE"):
        store.compare_and_swap("wrong bytes", None, Update(RUNNING))
    client.close()
    store.close()


@pytest.mark.parametrize("decodes", [False, True])
def test_wrong_bytes_in_redis_do_not_hide_the_others(redis_url: str, decodes: bool) -> None:
    import redis

    from celery_continuations.stores.redis import RedisStore

    client = redis.Redis.from_url(redis_url, decode_responses=decodes)
    store = RedisStore(client, f"wrong {decodes}")
    for task_id in ("a", "bytes", "inbox", "hash", "z"):
        store.compare_and_swap(task_id, None, Update(RUNNING, "ü", "message", inbox="inbox", due_in=1000))
    client.set(f"{store._prefix}bytes", b"1 running \xff")
    client.hset(f"{store._kept}inbox", "inbox", b"\xff")
    client.delete(f"{store._prefix}hash")
    client.hset(f"{store._prefix}hash", "a", "hash")
    found = dict(store.records())
    for task_id in ("bytes", "inbox", "hash"):
        problem = found.pop(task_id)
        assert isinstance(problem, StoreError)
        assert f":{task_id}" in str(problem)
    assert found == {task_id: store.read(task_id) for task_id in ("a", "z")}
    client.flushdb()
    client.close()


def test_records_in_redis_are_read_many_at_a_time(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import redis.client

    store, sent = counted_store(redis_url)
    for number in range(250):
        store.compare_and_swap(f"id{number}", None, Update(RUNNING))
    executed: list[object] = []
    execute = redis.client.Pipeline.execute
    monkeypatch.setattr(redis.client.Pipeline, "execute", lambda *args: executed.append(1) or execute(*args))
    sent.clear()
    assert len(list(store.records())) == 250
    assert set(sent) == {"SCAN"}
    assert len(executed) <= 6
    store._client.flushdb()
    store.close()


def test_a_key_that_a_scan_returns_twice_is_listed_once(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = redis_store(redis_url, "twice")
    key = f"{store._prefix}id".encode()
    store.compare_and_swap("id", None, Update(RUNNING))
    answers = iter([(7, [key, key]), (0, [key])])
    monkeypatch.setattr(store._client, "scan", lambda *args: next(answers))
    assert [task_id for task_id, _ in store.records()] == ["id"]
    store.close()


def test_a_tombstone_in_redis_is_one_small_key(redis_url: str) -> None:
    store = redis_store(redis_url, "tombstone")
    task_id = "1d1b2b7e-3e4f-4a55-9d6f-1f2e3d4c5b6a"
    store.compare_and_swap(task_id, None, Update(RUNNING, "{}" * 1000, "message", "value", "inbox", due_in=5))
    snapshot = Snapshot(
        completed={"validate": Outcome("value", "x" * 100), "import": Outcome()}, saved=Saved(mail="ann@example.com")
    )
    OwnedRecord(store, task_id, RUNNING).end(Status.DONE, snapshot.dumps_done(), 86400)
    keys = [key.decode() for key in store.client.scan_iter(f"*{task_id}")]
    assert keys == [f"{store._prefix}{task_id}"]
    assert store.client.memory_usage(keys[0]) <= 200
    assert store.client.ttl(keys[0]) > 86000
    assert store.read(task_id) == Record(Fence(1, Status.DONE), snapshot.dumps_done())
    assert store.scan(RUNNING.worker).owned == {}
    store.client.flushdb()
    store.close()


def test_a_store_in_redis_that_is_closed_leaves_no_connection(redis_url: str) -> None:
    from redis import Redis

    store = open_store(make_app(), redis_url)
    with Redis.from_url(redis_url) as client:
        before = len(client.client_list())
        store.read("id")
        assert len(client.client_list()) == before + 1
        store.close()
        await_condition(lambda: len(client.client_list()) == before, "the connection is closed")


def test_an_owned_entry_in_redis_without_its_record_is_removed(redis_url: str) -> None:
    store = redis_store(redis_url, "entries")
    one, two = Fence(1, Status.RUNNING, "w/1/a"), Fence(1, Status.RUNNING, "other/1/a")
    for task_id in ("sound", "deleted", "another's", "queued", "spoilt", "hash"):
        store.compare_and_swap(task_id, None, Update(one))
    for task_id in ("deleted", "another's", "queued", "hash"):
        store.client.delete(f"{store._prefix}{task_id}")
    store.compare_and_swap("another's", None, Update(two))
    store.compare_and_swap("queued", None, Update(Fence(1, Status.QUEUED)))
    store.client.set(f"{store._prefix}spoilt", "nonsense")
    store.client.hset(f"{store._prefix}hash", "a", "b")
    assert set(store.scan("w").owned) == {"sound", "spoilt", "hash"}, "what cannot be read is not forgotten"
    assert set(store.scan("other").owned) == {"another's"}
    for task_id in ("sound", "spoilt", "hash"):
        store.client.delete(f"{store._prefix}{task_id}")
    assert store.scan("w").owned == {}
    store.retire("w")
    assert [lease.worker for lease in store.scan().leases] == ["other"]
    store.client.flushdb()
    store.close()


def test_what_is_left_of_a_record_in_redis_is_not_the_next_ones(redis_url: str) -> None:
    store = redis_store(redis_url, "left")
    store.compare_and_swap("id", None, Update(RUNNING, "old", "old", "old", inbox="old", due_in=1000))
    store._client.delete(f"{store._prefix}id")
    assert store.compare_and_swap("id", None, Update(RUNNING, expected_inbox=""))
    assert store.read("id") == Record(RUNNING)
    store.close()


def test_stores_that_are_away_say_so(tmp_path: Path) -> None:

    store = redis_store("redis://127.0.0.1:1/0", "n")
    with pytest.raises(StoreError, match="store redis: .*ConnectionError"):
        store.read("id")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="store filesystem: cannot make"):
        FilesystemStore(tmp_path / "file", "n")
    files = FilesystemStore(tmp_path, "n")
    shutil.rmtree(tmp_path / "continuations-n")
    with pytest.raises(StoreError, match="store filesystem: "):
        files.compare_and_swap("id", None, Update(RUNNING))
    for away in (store, files):
        with pytest.raises(StoreError):
            list(away.records())


@pytest.mark.parametrize(
    ("module", "url", "message"),
    [
        (
            "redis",
            "redis://",
            "StoreError store redis: redis-py is missing; run: pip install 'celery-continuations[redis]'",
        ),
        (
            "sqlalchemy",
            "db+sqlite:///x",
            "StoreError store database: SQLAlchemy 2.0 or later is missing; "
            "run: pip install 'celery-continuations[sqlalchemy]'",
        ),
    ],
)
def test_without_its_driver_the_error_says_what_to_install(module: str, url: str, message: str) -> None:
    code = f"""
import sys
sys.modules["{module}"] = None
from celery import Celery
from celery_continuations.stores import open_store
try:
    open_store(Celery("x"), "{url}")
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == message


@pytest.mark.parametrize(
    ("backend", "broker", "expected"),
    [
        ("redis://localhost/1", "amqp://", "RedisStore"),
        ("rediss://localhost/1?ssl_cert_reqs=required", "amqp://", "RedisStore"),
        ("file:///FOLDER", "filesystem://", "FilesystemStore"),
        ("rpc://", "redis://localhost/0", "RedisStore"),
        ("db+sqlite:///FOLDER/x.db", "redis://localhost/0", "DatabaseStore"),
        ("db+postgresql+psycopg://localhost/x", "amqp://", "DatabaseStore"),
        ("db+sqlite://", "redis://localhost/0", "RedisStore"),
        ("db+mysql://localhost/x", "redis://localhost/0", "RedisStore"),
        ("db+mysql://localhost/x", "amqp://", "MessageStore"),
        ("rpc://", "amqp://", "MessageStore"),
        (None, "memory://", "MessageStore"),
        ("cache+memory://", "amqp://", "MessageStore"),
    ],
)
def test_auto_chooses(backend: Any, broker: str, expected: str, tmp_path: Path) -> None:
    if backend:
        backend = backend.replace("/FOLDER", str(tmp_path))
    app = Celery("auto", broker=broker, backend=backend, set_as_current=False)
    store = open_store(app, "auto")
    assert type(store).__name__ == expected
    assert open_store(app, "auto") is store
    problem = without_store(app)
    assert (problem is None) == (expected != "MessageStore")
    if problem:
        assert "a worker that is stopped loses nothing, but one that is killed starts its tasks over" in problem


@pytest.mark.parametrize("url", ["db+mysql://x", "db://x", "sqlite:///x", "nonsense", "http://x"])
def test_a_store_of_an_unknown_kind(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"continuation_store = {url!r} is not allowed; it takes")):
        open_store(make_app(), url)


@pytest.mark.parametrize(
    "url",
    [
        "db+sqlite://",
        "db+sqlite:///",
        "db+sqlite+pysqlite:///:memory:",
        "db+sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_no_store(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"is not allowed: other processes cannot see a database in memory"):
        open_store(make_app(), url)
    app = Celery("memory", broker="amqp://", backend=url, set_as_current=False)
    assert isinstance(open_store(app, "auto"), MessageStore)
    assert "other processes cannot see a database in memory) nor the broker (amqp)" in (without_store(app) or "")


def counted_store(url: str) -> tuple[Any, list[str]]:
    """A store on a client that writes down the commands it sends."""
    store = redis_store(url, "counted")
    store.scan()
    sent: list[str] = []
    execute = store._client.execute_command

    def counting(*args: Any, **kwargs: Any) -> Any:
        sent.append(str(args[0]))
        return execute(*args, **kwargs)

    store._client.execute_command = counting
    return store, sent


def test_a_claim_and_a_save_are_one_round_trip_each_on_redis(redis_url: str) -> None:
    store, sent = counted_store(redis_url)
    store.compare_and_swap("warm", None, Update(RUNNING))
    store.take("warm", Fence(9, Status.QUEUED), RUNNING)

    def claim(generation: int) -> OwnedRecord:
        sent.clear()
        found = claim_message(
            store, "round trips", generation, f"worker/1.1/{generation}",
            snapshot=None, message=lambda: "message", ended=lambda message: None, loss_of=lambda owner: None,
        )  # fmt: skip
        assert found is not None
        return found

    first = claim(0)
    assert sent == ["EVALSHA"]
    sent.clear()
    first.save('{"version":1}')
    assert sent == ["EVALSHA"]
    sent.clear()
    assert store.compare_and_swap(
        "round trips", first.fence, Update(first.fence, inbox="text", due_in=Due.UNCHANGED, expected_inbox="")
    )
    assert sent == ["EVALSHA"]
    first.queue('{"version":1,"executions":1}', 0.0)
    second = claim(1)
    assert sent == ["EVALSHA"]
    assert second.snapshot == '{"version":1,"executions":1}'
    store.close()


def test_a_small_record_in_redis_is_small_and_stays_so(redis_url: str) -> None:
    import redis

    store = redis_store(redis_url, "proj@redis:redis-master.production.svc.cluster.local:6379/0")
    client = redis.Redis.from_url(redis_url)
    task_id = "01234567-89ab-cdef-0123-456789abcdef"
    fence = Fence(1, Status.RUNNING, new_owner(new_worker()))
    sizes = set()
    assert store.compare_and_swap(task_id, None, Update(fence, message="x" * 900))
    for cursor in range(100_000, 101_000):
        snapshot = Snapshot(current=("import", cursor), executions=1, progress=(cursor, 1_000_000))
        OwnedRecord(store, task_id, fence).save(snapshot.dumps())
        (key,) = client.scan_iter(f"continuation:*:{task_id}")
        sizes.add(client.memory_usage(key))
    assert len(sizes) == 1
    assert max(sizes) <= 300
    client.close()
    store.close()


def test_threads_that_open_a_store_at_once_get_the_same(app: Celery, tmp_path: Path, monkeypatch: Any) -> None:
    both = threading.Barrier(2, timeout=10)
    really = factory._open

    def together(app: Celery, setting: str) -> Store:
        both.wait()
        return really(app, setting)

    monkeypatch.setattr(factory, "_open", together)
    found: list[Store] = []
    threads = [threading.Thread(target=lambda: found.append(open_store(app, tmp_path.as_uri()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] is found[1]
