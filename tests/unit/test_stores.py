"""Every store keeps records, writes only on the right fence, and names what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_continuations.exceptions import StoreError
from celery_continuations.stores import Claim, Fence, Record, Status, Store, open_store
from celery_continuations.stores.filesystem import FilesystemStore
from celery_continuations.stores.memory import MemoryStore
from celery_continuations.stores.message import MessageStore
from celery_continuations.stores.opening import without_store
from tests.unit.conftest import make_app

RUNNING = Fence(1, Status.RUNNING, "me on a host/7")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: Any) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        message = "redis-server is missing; install it to test the Redis store"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"],
        cwd=tmp_path_factory.mktemp("redis"),
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.01)
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait()


@pytest.fixture(params=["memory", "filesystem", "redis"])
def store(request: Any, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "filesystem":
        yield FilesystemStore(tmp_path, "some namespace")
    else:
        made = redis_store(request.getfixturevalue("redis_url"), os.urandom(8).hex())
        yield made
        made.close()


def redis_store(url: str, namespace: str) -> Any:
    from redis import Redis

    from celery_continuations.stores.redis import RedisStore

    return RedisStore(Redis.from_url(url), namespace)


IDS = ["simple", "0f3c10e2-1111-4222-8333-444455556666", "", "../../etc/passwd", "a b\n", "ключ/🗝", "x" * 500, "UPPER",
       "upper", "*?[]"]  # fmt: skip


def test_a_record_is_read_as_it_was_written(store: Store) -> None:
    for number, task_id in enumerate(IDS):
        record = Record(RUNNING, snapshot=f"{number} ü \x00 \ud7ff", message="{}", value="5")
        assert store.read(task_id) is None
        assert store.swap(task_id, None, record)
    for number, task_id in enumerate(IDS):
        assert store.read(task_id) == Record(RUNNING, f"{number} ü \x00 \ud7ff", "{}", "5")


def test_only_the_right_fence_may_write(store: Store) -> None:
    assert not store.swap("id", RUNNING, Record(RUNNING, "1"))
    assert store.swap("id", None, Record(RUNNING, "1"))
    assert not store.swap("id", None, Record(RUNNING, "2"))
    for wrong in (Fence(2, *RUNNING[1:]), RUNNING._replace(status=Status.QUEUED), RUNNING._replace(owner="you")):
        assert not store.swap("id", wrong, Record(wrong, "2"))
        assert not store.delete("id", wrong)
    assert store.read("id") == Record(RUNNING, "1")
    assert store.swap("id", RUNNING, Record(RUNNING, "2"))
    assert store.delete("id", RUNNING)
    assert store.read("id") is None
    assert not store.delete("id", RUNNING)


def test_texts_that_are_not_given_stay(store: Store) -> None:
    store.swap("id", None, Record(RUNNING, "snapshot", "message"))
    store.swap("id", RUNNING, Record(RUNNING, value="value"))
    assert store.read("id") == Record(RUNNING, "snapshot", "message", "value")


def test_due_is_by_the_stores_clock_and_goes_with_the_next_write(store: Store) -> None:
    store.swap("id", None, Record(RUNNING), due_in=100)
    record = store.read("id")
    assert record is not None
    assert record.due is not None
    assert 90 < record.due - time.time() <= 101
    store.swap("id", RUNNING, Record(RUNNING))
    record = store.read("id")
    assert record is not None
    assert record.due is None


def test_expiry_is_kept_and_taken_back(store: Store) -> None:
    store.swap("ends", None, Record(RUNNING), expires_in=0.02)
    store.swap("stays", None, Record(RUNNING), expires_in=0.02)
    store.swap("stays", RUNNING, Record(RUNNING))
    until = time.monotonic() + 5
    while store.read("ends") is not None:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert store.read("stays") is not None
    assert store.swap("ends", None, Record(RUNNING)), "an expired record is none"


def test_a_big_snapshot(store: Store) -> None:
    text = json.dumps("ü" * 1_000_000)
    store.swap("id", None, Record(RUNNING, text))
    assert store.read("id") == Record(RUNNING, text)


def test_of_many_writers_one_wins(store: Store) -> None:
    barrier = threading.Barrier(8)
    won: list[int] = []

    def write(number: int) -> None:
        for generation in range(20):
            expected = Fence(generation, Status.RUNNING) if generation else None
            barrier.wait()
            if store.swap("id", expected, Record(Fence(generation + 1, Status.RUNNING), str(number))):
                won.append(generation)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == list(range(20))


def claim(store: Store, generation: int, owner: str = "o", snapshot: str | None = None, finished: bool = False) -> Any:
    return store.claim("id", generation, owner, snapshot, lambda: finished)


def test_claims_of_fresh_and_resumed_messages(store: Store) -> None:
    first = claim(store, 0, "first")
    assert first == Claim(Fence(1, Status.RUNNING, "first"), None)
    assert store.save("id", first.fence, "saved")
    assert store.interrupt("id", first.fence, "left", due_in=60)
    assert not store.save("id", first.fence, "late")
    second = claim(store, 1, "second", "carried")
    assert second == Claim(Fence(2, Status.RUNNING, "second"), "carried")
    record = store.read("id")
    assert record is not None
    assert (record.snapshot, record.due) == ("carried", None)


def test_stale_messages_are_refused(store: Store) -> None:
    fence = claim(store, 0).fence
    store.interrupt("id", fence, "left", due_in=60)
    assert claim(store, 0) is None, "the first message again, while the second waits"
    fence = claim(store, 1, snapshot="left").fence
    assert claim(store, 0) is None, "the first message again, while the second runs"
    for status in (Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED, Status.WAITING):
        assert store.swap("id", fence, Record(fence._replace(status=status)))
        fence = fence._replace(status=status)
        for generation in (0, 1, 2):
            assert claim(store, generation) is None


def test_a_second_delivery_of_what_runs_takes_over_and_goes_on_from_the_last_save(store: Store) -> None:
    first = claim(store, 0, "first")
    store.save("id", first.fence, "saved")
    second = claim(store, 0, "second")
    assert second == Claim(Fence(2, Status.RUNNING, "second"), "saved", lost=True)
    assert not store.save("id", first.fence, "late")
    assert store.finish("id", first.fence, "late", "5") is None


def test_a_finished_execution_leaves_its_value(store: Store) -> None:
    fence = claim(store, 0).fence
    finishing = store.finish("id", fence, "at the end", "[1]")
    assert finishing == fence._replace(status=Status.FINISHING)
    assert claim(store, 0, "next") == Claim(Fence(2, Status.RUNNING, "next"), "at the end", "[1]", lost=True)


def test_a_store_that_lost_its_data_trusts_the_message_unless_the_task_has_ended(store: Store) -> None:
    assert claim(store, 3, finished=True) is None
    assert claim(store, 3, "o", "carried") == Claim(Fence(4, Status.RUNNING, "o"), "carried")
    store.swap("older", None, Record(Fence(1, Status.QUEUED), "old"))
    found = store.claim("older", 4, "o", "new", lambda: False)
    assert found is not None
    assert (found.fence.generation, found.snapshot) == (5, "new")


def test_release_lets_the_same_message_claim_again(store: Store) -> None:
    fence = claim(store, 0).fence
    assert store.release("id", fence, "progress")
    again = claim(store, 0, "again", "older")
    assert (again.fence.generation, again.snapshot) == (2, "progress")


def test_the_message_store_keeps_nothing_and_agrees() -> None:
    store = MessageStore()
    assert not store.keeps
    assert claim(store, 0).fence.generation == 1
    assert claim(store, 3, "o", "carried") == Claim(Fence(4, Status.RUNNING, "o"), "carried")
    assert store.read("id") is None


def test_files_of_tasks_long_ended_are_removed_when_a_store_opens(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path, "n")
    store.swap("ended", None, Record(RUNNING), expires_in=-1)
    store.swap("recent", None, Record(RUNNING), expires_in=-1)
    store.swap("unfinished", None, Record(RUNNING))
    (tmp_path / "continuations-n" / "strange.json").write_text("?")
    long_ago = time.time() - 2 * 86400
    for name in ("ended", "unfinished", "strange"):
        os.utime(tmp_path / "continuations-n" / f"{name}.json", (long_ago, long_ago))
    FilesystemStore(tmp_path, "n")
    assert {path.stem for path in tmp_path.rglob("*.json")} == {"recent", "unfinished", "strange"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fence": 5}', "null", '{"fence": "1 lost x"}', "\xff"])
def test_wrong_bytes_in_a_file_are_named(tmp_path: Path, text: str) -> None:
    store = FilesystemStore(tmp_path, "n")
    store.swap("id", None, Record(RUNNING))
    (path,) = tmp_path.rglob("id.json")
    path.write_text(text, "latin-1")
    with pytest.raises(StoreError, match=r"id\.json") as caught:
        store.read("id")
    assert caught.value.store == "filesystem"
    with pytest.raises(StoreError):
        store.swap("id", RUNNING, Record(RUNNING))


def test_wrong_bytes_in_redis_are_named(redis_url: str) -> None:
    import redis

    store = redis_store(redis_url, "wrong")
    client = redis.Redis.from_url(redis_url)
    for fields in (
        {"fence": "nonsense"},
        {"snapshot": "5"},
        {"fence": "1 running x", "due": "soon"},
        {"fence": b"\xff"},
    ):
        client.delete("continuation:wrong:id")
        client.hset("continuation:wrong:id", mapping=fields)
        with pytest.raises(StoreError, match="continuation:wrong:id is no record"):
            store.read("id")
    client.delete("continuation:wrong:id")
    client.set("continuation:wrong:id", "a string")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        store.swap("id", None, Record(RUNNING))
    client.close()
    store.close()


def test_stores_that_are_away_say_so(tmp_path: Path) -> None:

    store = redis_store("redis://127.0.0.1:1/0", "n")
    with pytest.raises(StoreError, match="store redis: ConnectionError"):
        store.read("id")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="store filesystem: cannot make"):
        FilesystemStore(tmp_path / "file", "n")
    files = FilesystemStore(tmp_path, "n")
    shutil.rmtree(tmp_path / "continuations-n")
    with pytest.raises(StoreError, match="store filesystem: "):
        files.swap("id", None, Record(RUNNING))


def test_namespaces_keep_stores_apart(tmp_path: Path, redis_url: str) -> None:

    for one, two in (
        (FilesystemStore(tmp_path, "one"), FilesystemStore(tmp_path, "two")),
        (redis_store(redis_url, "one"), redis_store(redis_url, "two")),
    ):
        one.swap("id", None, Record(RUNNING))
        assert two.read("id") is None
        one.close()
        two.close()


def test_without_redis_py_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["redis"] = None
from celery import Celery
from celery_continuations.stores import open_store
try:
    open_store(Celery("x"), "redis://")
except Exception as exc:
    print(type(exc).__name__, exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StoreError store redis: redis-py is missing; run: pip install 'celery-conti")


@pytest.mark.parametrize(
    ("backend", "broker", "expected"),
    [
        ("redis://localhost/1", "amqp://", "RedisStore"),
        ("rediss://localhost/1?ssl_cert_reqs=required", "amqp://", "RedisStore"),
        ("file:///tmp", "filesystem://", "FilesystemStore"),
        ("rpc://", "redis://localhost/0", "RedisStore"),
        ("db+sqlite://", "redis://localhost/0", "RedisStore"),
        ("rpc://", "amqp://", "MessageStore"),
        (None, "memory://", "MessageStore"),
        ("cache+memory://", "amqp://", "MessageStore"),
    ],
)
def test_auto_chooses(backend: Any, broker: str, expected: str, tmp_path: Path) -> None:
    if backend == "file:///tmp":
        backend = f"file://{tmp_path}"
    app = Celery("auto", broker=broker, backend=backend, set_as_current=False)
    store = open_store(app, "auto")
    assert type(store).__name__ == expected
    assert open_store(app, "auto") is store
    problem = without_store(app)
    assert (problem is None) == (expected != "MessageStore")
    if problem:
        assert "a worker that is stopped loses nothing, but one that is killed starts its tasks over" in problem


@pytest.mark.parametrize("url", ["db+sqlite://", "nonsense", "http://x"])
def test_a_store_of_an_unknown_kind(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"continuation_store = {url!r} is not allowed; it takes")):
        open_store(make_app(), url)
