"""A sweep recovers the tasks of dead workers, each once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from celery import Celery, states
from celery.exceptions import QueueNotFound
from kombu.exceptions import OperationalError
from redis import Redis

from celery_continuations import signals
from celery_continuations.core.snapshot import VERSION, Snapshot
from celery_continuations.exceptions import CrashLoopError, StoreError
from celery_continuations.messages.publishing import Publisher
from celery_continuations.process import identity
from celery_continuations.process.identity import is_gone, new_owner, new_worker
from celery_continuations.process.stop_flag import new_flag
from celery_continuations.protocol.liveness import Loss, loss_of
from celery_continuations.protocol.owned import OVERDUE_AFTER
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.stores.base import LIMIT
from celery_continuations.stores.filesystem import FilesystemStore
from celery_continuations.worker.maintenance import Maintenance
from celery_continuations.worker.sweeper import Sweeper
from tests.support.redis_server import redis_store
from tests.support.unreadable import GOOD, KINDS, harms_no_other_task, put_neighbours
from tests.support.worker import Killed
from tests.unit.stores import test_stores as conformance

ELSEWHERE = "another-machine.7.7.abc"


def always() -> bool:
    return True


def at_work(task_id: str) -> bool:
    return True


@pytest.fixture
def store(app: Celery) -> Any:
    return open_store(app, "memory")


@pytest.fixture
def sweeper(app: Celery, store: Any) -> Sweeper:
    return Sweeper(app, store, new_worker(), at_work)


@pytest.fixture
def lost(worker: Any, app: Celery, task: Any, store: Any, monkeypatch: Any) -> Callable[..., Any]:
    """Run a task until its worker dies after two items; return its result."""

    def body(self: Any, count: int) -> str:
        for item in self.iterate("loop", range(count)):
            done.append(item)
            if item == 1 and len(done) == 2:
                raise Killed
        return "end"

    done: list[int] = []
    made = task(body, continuation_checkpoint_interval=0)

    def lose(lease: float = 0.0, note: str = "", of: str = ELSEWHERE, **options: Any) -> Any:
        done.clear()
        result = made.apply_async((4,), **options)
        worker.deliver_killed()
        record = store.read(result.id)
        fence = record.fence._replace(owner=f"{of}/7.7/a")
        assert store.compare_and_swap(result.id, record.fence, Update(fence))
        store.renew(of, lease, note)
        result.done = done
        return result

    return lose


def losses(store: Any, task_id: str) -> tuple[int, int]:
    return Snapshot.loads(store.read(task_id).snapshot).losses


def test_a_lost_execution_is_recovered_and_resumes(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, caplog: Any
) -> None:
    result = lost()
    told: list[Any] = []

    def on_recovered(sender: Any, task_id: str, **kwargs: Any) -> None:
        told.append((sender.name, task_id))

    signals.task_recovered.connect(on_recovered)
    sweeper.sweep(always)
    signals.task_recovered.disconnect(on_recovered)
    assert store.read(result.id).fence == Fence(1, Status.QUEUED)
    assert [name for name, _ in told] and told[0][1] == result.id
    assert f"Task {result.id} recovered" in caplog.text
    worker.drain()
    assert (result.get(), result.done) == ("end", [0, 1, 1, 2, 3])
    assert not store.scan().leases, "the dead worker is forgotten"


def test_the_result_of_an_earlier_task_with_the_same_id_ends_no_lost_task(
    worker: Any, app: Celery, sweeper: Sweeper, lost: Any, monkeypatch: Any
) -> None:
    """The backend keeps it for longer than the store kept the record."""
    result = {"status": states.SUCCESS, "date_done": "2020-01-02T03:04:05", "result": "earlier"}
    monkeypatch.setattr(app.backend, "get_task_meta", lambda *_, **__: result)
    done = lost(task_id="nightly").done
    sweeper.sweep(always)
    worker.drain()
    assert done == [0, 1, 1, 2, 3]


def test_a_worker_whose_lease_holds_is_left_alone(sweeper: Sweeper, lost: Any, store: Any, worker: Any) -> None:
    result = lost(lease=60)
    sweeper.sweep(always)
    assert store.read(result.id).fence.status == Status.RUNNING
    assert worker.queued() == 0


def test_a_lease_proves_nothing_while_the_sweeper_cannot_trust_its_own(sweeper: Sweeper, lost: Any, store: Any) -> None:
    result = lost()
    sweeper.sweep(lambda: False)
    assert store.read(result.id).fence.status == Status.RUNNING


def test_two_sweepers_recover_once(app: Celery, worker: Any, lost: Any, store: Any) -> None:
    lost()
    barrier = threading.Barrier(2)
    swap = store.compare_and_swap

    def together(*args: Any) -> bool:
        if args[1].status == Status.RUNNING:
            barrier.wait(5)
        return bool(swap(*args))

    store.compare_and_swap = together
    threads = [
        threading.Thread(target=Sweeper(app, store, new_worker(), at_work).sweep, args=(always,)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.compare_and_swap = swap
    assert worker.queued() == 1


@pytest.mark.parametrize("left", ["owned", "queued", "waiting"])
@pytest.mark.parametrize("queue", ["empty", "not empty"])
def test_a_broker_that_was_away_delays_nothing(
    worker: Any, app: Celery, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any, left: str, queue: str
) -> None:
    """However often the sweeps have found it away, the first one after that publishes the message."""
    result = lost()
    passed = [0.0]
    monkeypatch.setattr(store, "_clock", lambda: time.time() + passed[0])
    if left != "owned":
        status = Status.QUEUED if left == "queued" else Status.WAITING
        assert store.compare_and_swap(result.id, store.read(result.id).fence, Update(Fence(1, status), due_in=0.0))
    if queue == "not empty":
        app.send_task("other", queue=app.conf.task_default_queue)

    def away(*args: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as patches:
        patches.setattr(Publisher, "publish", away)
        patches.setattr(Publisher, "is_waiting", away)
        for _ in range(8):
            with pytest.raises(OperationalError):
                sweeper.sweep(always)
            passed[0] += 3
    before = worker.queued()
    sweeper.sweep(always)
    is_presumed = left == "queued" and queue == "not empty"  # then its message may be among the others
    assert worker.queued() == before + (0 if is_presumed else 1)
    assert store.read(result.id).fence.republished <= 1


def test_a_store_that_fails_in_the_middle_loses_nothing(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any, caplog: Any
) -> None:
    result = lost()

    def away(*args: Any) -> None:
        raise StoreError("memory", "away")

    monkeypatch.setattr(store, "read", away)
    sweeper.sweep(always)
    monkeypatch.undo()
    assert "store memory: away" in caplog.text
    sweeper.sweep(always)
    worker.drain()
    assert result.get() == "end"


@pytest.mark.parametrize(
    ("state", "status"),
    [(states.SUCCESS, Status.DONE), (states.FAILURE, Status.FAILED), (states.REVOKED, Status.CANCELLED)],
)
def test_a_task_whose_result_is_stored_is_not_run_again(
    app: Celery, worker: Any, sweeper: Sweeper, lost: Any, store: Any, state: str, status: str
) -> None:
    result = lost()
    app.backend.store_result(result.id, None if state == states.SUCCESS else ValueError("in the end"), state)
    sweeper.sweep(always)
    assert (store.read(result.id).fence.status, worker.queued()) == (status, 0)


def test_the_losses_at_one_place_are_counted(sweeper: Sweeper, lost: Any, store: Any) -> None:
    result = lost()
    sweeper.sweep(always)
    assert losses(store, result.id) == (1, 0)


def test_a_worker_that_was_stopping_is_not_counted(sweeper: Sweeper, lost: Any, store: Any) -> None:
    result = lost(note=Loss.STOP.value)
    sweeper.sweep(always)
    assert losses(store, result.id) == (0, 0)
    assert Snapshot.loads(store.read(result.id).snapshot).reason == "lost"


def test_neighbours_lost_with_their_worker_are_counted_as_shared(sweeper: Sweeper, lost: Any, store: Any) -> None:
    results = [lost(), lost()]
    sweeper.sweep(always)
    assert [losses(store, result.id) for result in results] == [(0, 1), (0, 1)]


def test_a_neighbour_that_is_recovered_later_is_still_one(sweeper: Sweeper, lost: Any, store: Any) -> None:
    result = lost(note=Loss.SUSPECTED_CRASH.value)
    sweeper.sweep(always)
    assert losses(store, result.id) == (0, 1)


def test_progress_resets_the_count() -> None:
    snapshot = Snapshot(current=("loop", 1))
    for _ in range(3):
        snapshot.lose(alone=True)
    assert Snapshot.loads(snapshot.dumps()).losses == (3, 0)
    snapshot.current = ("loop", 2)
    snapshot.lose(alone=True)
    assert snapshot.losses == (1, 0)


@pytest.mark.parametrize("interval", [0, 60])
def test_a_crash_loop_ends(
    worker: Any, app: Celery, sweeper: Sweeper, task: Any, store: Any, record: Any, interval: float
) -> None:
    def body(self: Any) -> None:
        runs.append(self.continuation.executions)
        if interval:
            raise Killed  # before the first step
        for item in self.iterate("loop", range(5)):
            if item == 2:
                raise Killed

    runs: list[int] = []
    result = task(body, continuation_checkpoint_interval=interval, continuation_max_crashes=3).delay()
    for _ in range(3):
        worker.deliver_killed()
        found = record(result.id)
        store.compare_and_swap(result.id, found.fence, Update(found.fence._replace(owner=f"{ELSEWHERE}/7.7/a")))
        sweeper.sweep(always)
    worker.drain()
    assert len(runs) == 3
    assert isinstance(result.result, CrashLoopError)
    assert result.state == states.FAILURE
    place = "before or between steps" if interval else "in step 'loop' at 2"
    assert f"was lost 3 times in a row {place}" in str(result.result)
    assert record(result.id).fence.status == Status.FAILED, "the record stays"


def test_a_message_that_is_never_claimed_is_published_again(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any
) -> None:
    result = lost()
    sweeper.sweep(always)
    held = worker.deliver_nothing()  # a killed worker holds it
    assert worker.queued() == 0
    sweeper.sweep(always)
    assert worker.queued() == 0, "it is not due yet"
    now = time.time()
    monkeypatch.setattr(store, "_clock", lambda: now + OVERDUE_AFTER + 1)
    sweeper.sweep(always)
    assert worker.queued() == 1
    assert store.read(result.id).fence == Fence(1, Status.QUEUED, republished=1)
    assert store.read(result.id).due - now - OVERDUE_AFTER - 1 == pytest.approx(2 * OVERDUE_AFTER)
    worker.drain()
    assert result.get() == "end"
    worker.execute(held)
    assert (held.end, result.done) == ("acked", [0, 1, 1, 2, 3]), "the late one ends without touching anything"


def test_a_message_that_a_killed_process_has_not_published_is_published_at_once(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any
) -> None:
    result = lost()
    sweeper.sweep(always)
    worker.deliver_nothing()
    sweeper.recover(result.id)
    assert worker.queued() == 1
    sweeper.recover(result.id)
    assert worker.queued() == 1, "once"
    worker.drain()
    assert result.get() == "end"


def test_what_is_to_be_run_later_is_not_published_at_once(worker: Any, app: Celery, task: Any, store: Any) -> None:
    def body(self: Any) -> None:
        self.step("begin", int)
        raise self.retry(countdown=3600)

    result = task(body).apply_async()
    worker.deliver()
    worker.deliver_nothing()
    Sweeper(app, store, new_worker(), at_work).recover(result.id)
    assert worker.queued() == 0


def test_overdue_messages_do_not_hide_one_another(worker: Any, app: Celery, sweeper: Sweeper, store: Any) -> None:
    """What a sweep has published itself says nothing of the other messages of the queue."""
    message = json.dumps({**GOOD, "route": {"exchange": "", "routing_key": app.conf.task_default_queue}})
    for number in range(5):
        store.compare_and_swap(f"id{number}", None, Update(Fence(1, Status.QUEUED), None, message, due_in=-1))
    sweeper.sweep(always)
    assert worker.queued() == 5


def test_a_queue_that_cannot_be_counted_uses_up_the_check(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any, caplog: Any
) -> None:
    def uncounted(*args: Any) -> None:
        raise PermissionError("GetQueueAttributes")

    monkeypatch.setattr(Publisher, "_count", uncounted)
    result = lost()
    sweeper.sweep(always)
    worker.deliver_nothing()
    now = time.time()
    for look in range(1, 12):
        monkeypatch.setattr(store, "_clock", lambda look=look: now + look * 86400)
        sweeper.sweep(always)
    assert worker.queued() >= 1, "in the end it is published without asking"
    assert "waits in a queue that cannot be counted: PermissionError" in caplog.text
    worker.drain()
    assert result.get() == "end"


def test_a_backlog_does_not_grow_by_it(worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any) -> None:
    lost()
    sweeper.sweep(always)
    now = time.time()
    for hours in (0.1, 0.5, 1, 2, 4, 8):
        monkeypatch.setattr(store, "_clock", lambda hours=hours: now + hours * 3600)
        for _ in range(20):
            sweeper.sweep(always)
    assert worker.queued() == 1


def test_a_queue_that_is_never_empty_gets_it_again_in_the_end(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, monkeypatch: Any
) -> None:
    result = lost()
    sweeper.sweep(always)
    now = time.time()
    for look in range(1, 12):
        monkeypatch.setattr(store, "_clock", lambda look=look: now + look * 86400)
        sweeper.sweep(always)
    assert worker.queued() > 1
    worker.drain()
    assert (result.get(), result.done) == ("end", [0, 1, 1, 2, 3])


def test_a_record_that_cannot_be_read_keeps_nothing_else_from_being_recovered(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, caplog: Any
) -> None:
    bad, good = lost(), lost()
    found = store.read(bad.id)
    store.compare_and_swap(bad.id, found.fence, Update(found.fence, "no snapshot"))
    for _ in range(3):
        sweeper.sweep(always)
    assert caplog.text.count(f"Task {bad.id} cannot be recovered; its record is unchanged") == 1
    assert store.read(bad.id).snapshot == "no snapshot"
    worker.drain()
    assert good.get() == "end"


BAD_MESSAGES = [
    "", "null", "[]", "[" * 100_000, json.dumps(list(GOOD)),
    *(json.dumps({**GOOD, "z": {"__type__": kind, "__value__": value}})
      for kind, value in (("decimal", "x"), ("uuid", {}), ("datetime", 5))),
    *(json.dumps({**GOOD, name: value}) for name in GOOD for value in (None, 5, [], {"a": 1}, ["a"], "x")
      if (name, value) not in (("task", "x"), ("body", "x"), ("headers", {"a": 1}), ("properties", {"a": 1}))),
    json.dumps({**GOOD, "content": ["application/json", "binary"], "body": "abc"}),
    json.dumps({**GOOD, "sending": {"exchange": "x"}}),
    json.dumps({**GOOD, "began": "yesterday"}),
]  # fmt: skip

BAD_SNAPSHOTS = [
    "[" * 100_000, "null", '{"version": 99}', '{"version": 1, "losses": ["a", "b"]}', '{"version": 1, "saved": []}',
    '{"version": 1, "executions": ' + "9" * 5000 + "}", '{"version": 1, "waiting": [1, 2, 3, 4, 5]}',
]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("fence", [Fence(1, Status.RUNNING, "w1/1.1/a"), Fence(1, Status.QUEUED)], ids=str)
@pytest.mark.parametrize(
    ("message", "snapshot"),
    [*((text, None) for text in BAD_MESSAGES), *((json.dumps(GOOD), text) for text in BAD_SNAPSHOTS)],
    ids=lambda text: None if text is None else text[:60],
)
def test_no_record_keeps_another_from_being_recovered_or_woken(
    worker: Any, store: Any, app: Celery, fence: Fence, message: str, snapshot: str | None
) -> None:
    store.compare_and_swap(" bad", None, Update(fence, snapshot, message, due_in=None if fence.owner else -10))
    put_neighbours(store)
    reports: list[Any] = []
    sweeper = Sweeper(app, store, new_worker(), at_work, report=reports.append)
    for _ in range(3):
        sweeper.sweep(always)
    assert [store.read(name).fence.status for name in ("lost", "slept")] == [Status.QUEUED, Status.QUEUED]
    assert sum(one.task_id == " bad" for one in reports) <= 1, "it is named once"
    assert sum(one.action != "recovery_failed" for one in reports if one.task_id != " bad") == 2


@pytest.mark.parametrize("error", [ChannelError("refused"), QueueNotFound("x"), ValueError("x"), RecursionError("x")])
def test_a_message_that_is_refused_keeps_no_other_from_being_published(
    store: Any, app: Celery, sweeper: Sweeper, monkeypatch: Any, error: Exception, caplog: Any
) -> None:
    caplog.set_level("INFO", "celery_continuations")
    send = app.amqp.send_task_message

    def refusing(producer: Any, name: str, *args: Any, **options: Any) -> Any:
        if name == "refused":
            producer.channel.close()  # as AMQP does
            raise error
        return send(producer, name, *args, **options)

    monkeypatch.setattr(app.amqp, "send_task_message", refusing)
    refused = json.dumps({**GOOD, "task": "refused"})
    store.compare_and_swap("a", None, Update(Fence(1, Status.RUNNING, "w2/1.1/b"), None, refused))
    put_neighbours(store)
    sweeper.sweep(always)
    assert [caplog.text.count(f"Task {name}") for name in ("lost recovered", "slept woken")] == [1, 1]
    assert caplog.text.count("Task a cannot be recovered") == 1


def test_records_that_cannot_be_read_do_not_fill_every_scan(worker: Any, app: Celery, tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path, "n")
    for number in range(LIMIT):
        store.compare_and_swap(f"bad{number}", None, Update(Fence(1, Status.QUEUED), due_in=-10))
        next(tmp_path.rglob(f"bad{number}.json")).write_text("")
    put_neighbours(store)
    reports: list[Any] = []
    sweeper = Sweeper(app, store, new_worker(), at_work, report=reports.append)
    assert sweeper.sweep(always).due == [], "a sweep at once would not do more"
    sweeper.sweep(always)
    assert [one.task_id for one in reports if one.action != "recovery_failed"] == ["lost", "slept"]
    assert len(reports) == LIMIT + 2


def test_an_entry_that_is_not_text_is_named_once(app: Celery, redis_url: str, worker: Any) -> None:
    store = redis_store(redis_url, "bytes")
    put_neighbours(store)
    index = store._index
    for key in (store._prefix.encode(), f"{store._kept}".encode()):
        store.client.set(key + b"\xff", "1 queued ")
    store.client.zadd(f"{index}due", {b"\xff": 1})
    store.client.hset(f"{index}leases", b"\xff", "1 ")
    reports: list[Any] = []
    sweeper = Sweeper(app, store, new_worker(), at_work, report=reports.append)
    for _ in range(2):
        sweeper.sweep(always)
    assert [one.task_id for one in reports if one.action != "recovery_failed"] == ["lost", "slept"]
    assert [str(one) for one in reports if one.action == "recovery_failed"] == [
        f"The store cannot be read completely: {index}{key} has an entry that is not text: b'\\xff'"
        for key in ("leases", "due")
    ]
    assert [task_id for task_id, found in store.records() if isinstance(found, StoreError)] == ["\\xff"]
    store.client.flushdb()
    store.close()


def test_a_store_that_is_unavailable_ends_the_sweep(
    app: Celery, store: Any, sweeper: Sweeper, monkeypatch: Any, worker: Any, caplog: Any
) -> None:
    put_neighbours(store)
    scan = store.scan

    def away(*args: Any, **options: Any) -> None:
        raise StoreError("memory", "away")

    def then_away(*args: Any) -> Any:
        monkeypatch.setattr(store, "scan", away)
        return scan(*args)

    monkeypatch.setattr(store, "_owned", lambda name: {"lost": "w2/1.1/b"} if name == "w2" else {})
    monkeypatch.setattr(store, "read", away)
    calls = iter([scan, then_away])
    monkeypatch.setattr(store, "scan", lambda *args: next(calls)(*args))
    with pytest.raises(StoreError, match="away"):
        sweeper.sweep(always)
    assert "cannot be recovered" not in caplog.text, "it is not about one record"


def test_what_the_main_process_ends_itself_is_not_recovered(app: Celery, lost: Any, store: Any, worker: Any) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = new_worker()
    sweeper = Sweeper(app, store, mine, at_work)
    result = lost(of=mine)
    found = store.read(result.id)
    gone = found.fence._replace(owner=f"{mine}/{dead.pid}.1/a")
    store.compare_and_swap(result.id, found.fence, Update(gone))
    sweeper.decide(result.id)
    sweeper.sweep(lambda: False)
    assert store.read(result.id).fence == gone
    sweeper.decide(result.id, Status.CANCELLED)
    assert store.read(result.id).fence.status == Status.CANCELLED
    assert worker.queued() == 0


def test_two_threads_may_settle_one_task(app: Celery, lost: Any, store: Any, monkeypatch: Any) -> None:
    mine = new_worker()
    sweeper = Sweeper(app, store, mine, at_work)
    result = lost(of=mine)
    read = store.read

    def settled_by_another(task_id: str) -> Any:
        store.read = read
        sweeper.sweep(lambda: False)  # in the maintenance thread
        return read(task_id)

    store.read = settled_by_another
    reports: list[Any] = []
    sweeper._report = reports.append
    sweeper.decide(result.id, Status.FAILED)
    sweeper.sweep(lambda: False)
    assert store.read(result.id).fence.status == Status.FAILED
    assert reports == []


def test_a_decision_that_cannot_be_written_yet_is_written_later(
    app: Celery, lost: Any, store: Any, monkeypatch: Any
) -> None:
    mine = new_worker()
    sweeper = Sweeper(app, store, mine, at_work)
    result = lost(of=mine)

    def away(*args: Any) -> None:
        raise StoreError("memory", "away")

    monkeypatch.setattr(store, "read", away)
    sweeper.decide(result.id, Status.FAILED)
    monkeypatch.undo()
    assert store.read(result.id).fence.status == Status.RUNNING
    sweeper.sweep(lambda: False)
    assert store.read(result.id).fence.status == Status.FAILED


def test_what_the_worker_owns_and_does_not_work_on_is_recovered(
    app: Celery, lost: Any, store: Any, worker: Any
) -> None:
    """A claim was written and its answer lost; or the last write of an execution could not be made."""
    mine = new_worker()
    result = lost(of=mine)
    found = store.read(result.id)
    store.compare_and_swap(result.id, found.fence, Update(found.fence._replace(owner=new_owner(mine))))
    Sweeper(app, store, mine, at_work).sweep(always)
    assert worker.queued() == 0
    sweeper = Sweeper(app, store, mine, lambda task_id: False)
    sweeper.sweep(always)
    assert worker.queued() == 0, "once may be by chance"
    sweeper.sweep(always)
    assert losses(store, result.id) == (0, 0)
    worker.drain()
    assert result.get() == "end"


def test_a_task_that_was_taken_up_meanwhile_is_left_alone(
    app: Celery, lost: Any, store: Any, worker: Any, sweeper: Sweeper, monkeypatch: Any
) -> None:
    result = lost()
    taken = Fence(2, Status.RUNNING, "third-machine.1.1.a/1.1/b")
    scan = store.scan

    def claimed_now(name: str, *limit: int) -> Any:
        found = scan(name, *limit)
        store.compare_and_swap(result.id, store.read(result.id).fence, Update(taken))
        return found

    monkeypatch.setattr(store, "scan", claimed_now)
    sweeper.sweep(always)
    assert store.read(result.id).fence == taken


# -- who is dead


def test_processes_that_have_ended_are_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = identity._stat(child.pid)
    assert start is not None
    worker = new_worker()
    alive = f"{worker}/{child.pid}.{start[1]}/a"
    assert not is_gone(alive)
    assert is_gone(f"{worker}/{child.pid}.{int(start[1]) - 1}/a"), "another process has that pid now"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(alive), "a zombie has ended"
    child.communicate()
    assert is_gone(alive)


def test_nothing_is_proved_of_another_machine_with_the_same_host_name() -> None:
    """Another container may have the same host name, and the same pids."""
    name = new_owner(new_worker())
    _, _, rest = name.partition(".")
    assert not is_gone(f"00000000.{rest}".replace(str(os.getpid()), "999999"))


def test_where_processes_of_others_are_hidden_nothing_is_proved(monkeypatch: Any) -> None:
    """hidepid=2, or systemd's ProtectProc=invisible; and hidepid=1, where they are seen and not read."""
    gone = f"{new_worker().partition('.')[0]}.999999999.1.a"
    assert is_gone(gone)
    monkeypatch.setattr(identity, "_sees_all", lambda: False)
    assert not is_gone(gone)

    def refused(pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(identity, "_stat", refused)
    assert not is_gone(gone)


def test_a_machine_is_a_boot_and_a_pid_namespace(tmp_path: Any) -> None:
    script = "from celery_continuations.process.identity import new_worker; print(new_worker().partition('.')[0])"
    here = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert here.strip() == new_worker().partition(".")[0]
    unshared = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if unshared.returncode:
        pytest.skip(f"no PID namespace can be made here: {unshared.stderr.strip()}")
    assert unshared.stdout != here


def test_the_note_of_a_lease_says_how_its_worker_died() -> None:
    from celery_continuations.stores import Lease

    assert loss_of(f"{ELSEWHERE}/1.1/a", [Lease(ELSEWHERE, 5.0)]) is None
    assert loss_of(f"{ELSEWHERE}/1.1/a", [Lease(ELSEWHERE, -1.0)]) == Loss.CRASH
    assert loss_of(f"{ELSEWHERE}/1.1/a", [Lease(ELSEWHERE, -1.0, "stopping")]) == Loss.STOP
    assert loss_of(f"{ELSEWHERE}/1.1/a", []) == Loss.CRASH
    assert loss_of(f"{ELSEWHERE}/1.1/a", [], by_lease=False) is None
    assert loss_of("/1.1/a", []) == Loss.CRASH


def test_a_record_that_the_store_has_lost_is_written_again(worker: Any, task: Any, store: Any, record: Any) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(4)):
            seen.append(item)
            if item == 1:
                fence = store.read(self.request.id).fence
                store.compare_and_swap(self.request.id, fence, Update(fence, expires_in=0))
            if item == 2:
                found = store.read(self.request.id)
                assert found.message
                assert Snapshot.loads(found.snapshot).current == ("loop", 2)
        return "end"

    seen: list[int] = []
    result = task(run, continuation_checkpoint_interval=0).delay()
    worker.drain()
    assert (result.get(), seen) == ("end", [0, 1, 2, 3])
    assert record(result.id).fence.status == Status.DONE


@pytest.mark.parametrize("end", ["stop", "return", "error"])
def test_a_record_that_is_lost_in_the_end_does_not_end_the_task(worker: Any, task: Any, store: Any, end: str) -> None:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(4)):
            seen.append(item)
            if item == 2 and len(seen) == 3:
                fence = store.read(self.request.id).fence
                store.compare_and_swap(self.request.id, fence, Update(fence, expires_in=0))
                if end == "stop":
                    worker.stop()
                if end == "error":
                    raise KeyError("once")
        return "end"

    seen: list[int] = []
    result = task(run, continuation_resume_error_countdown=0).delay()
    worker.drain()
    assert (result.get(), seen) == ("end", [0, 1, 2, 2, 3] if end == "error" else [0, 1, 2, 3])


# -- maintenance


@pytest.fixture
def maintenance(app: Celery) -> Any:
    flag = new_flag(f"maintenance{time.monotonic_ns()}@test")
    pids: list[int] = []
    made = Maintenance(app, flag, lambda: pids)
    made.test = (flag, pids, made._stores[0])  # type: ignore[attr-defined]
    yield made
    made.stop()
    flag.remove()


def test_maintenance_renews_the_lease_and_notes_when_the_worker_stops(maintenance: Any, store: Any) -> None:
    flag, _, maintained = maintenance.test
    maintenance._renew(maintained)
    (lease,) = store.scan().leases
    assert lease.worker == flag.worker
    assert lease.left == pytest.approx(10, abs=0.5)
    assert not flag.lease_is_over
    flag.raise_to(1)
    maintenance._renew_all()
    assert store.scan().leases[0].note == Loss.STOP


def test_a_worker_that_lost_its_store_judges_no_lease_at_first(maintenance: Any, store: Any, monkeypatch: Any) -> None:
    _, _, maintained = maintenance.test
    asked: list[bool] = []
    monkeypatch.setattr(maintained.sweeper, "sweep", lambda by_lease: asked.append(by_lease()) or store.scan())
    maintenance._renew(maintained)
    maintenance._sweep(maintained)
    maintained.trusts_leases_at = 0.0
    maintenance._sweep(maintained)
    monkeypatch.setattr(store, "renew", lambda *args: (_ for _ in ()).throw(StoreError("memory", "away")))
    maintenance._renew(maintained)
    maintenance._sweep(maintained)
    monkeypatch.undo()
    monkeypatch.setattr(maintained.sweeper, "sweep", lambda by_lease: asked.append(by_lease()) or store.scan())
    maintenance._renew(maintained)
    maintenance._sweep(maintained)
    assert asked == [False, True, False, False]


@pytest.mark.parametrize("level", [0, 1])
def test_an_unavailable_store_is_logged_at_once_and_then_each_minute(
    maintenance: Any, store: Any, monkeypatch: Any, caplog: Any, level: int
) -> None:
    flag, _, maintained = maintenance.test
    maintenance._renew(maintained)
    flag.raise_to(level)

    def away(*args: Any, **options: Any) -> None:
        raise StoreError("memory", "away")

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name in ("renew", "scan"):
        monkeypatch.setattr(store, name, away)
    for _ in range(4 * 150):
        now += 0.25
        maintenance._renew_all()
        maintenance._sweep_all()
    assert caplog.text.count("This worker's lease could not be renewed") == 3
    assert caplog.text.count("Could not sweep for lost tasks") <= 1, "the lease reports an outage of the store"
    caplog.clear()
    caplog.set_level(logging.INFO, "celery_continuations")
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    now += 10
    maintenance._renew_all()
    maintenance._sweep_all()
    assert [lease.note for lease in store.scan().leases] == [Loss.STOP if level else ""]
    assert caplog.text.count("This worker's lease is renewed again, after 1") == 1
    for name in ("renew", "scan"):
        monkeypatch.setattr(store, name, away)
    now += 10
    maintenance._renew_all()
    maintenance._sweep_all()
    assert caplog.text.count("away") == 1, "the next outage is logged at once"


def test_a_sweep_that_fails_alone_is_logged(maintenance: Any, store: Any, monkeypatch: Any, caplog: Any) -> None:
    """A server may accept the lease and refuse the scan."""
    caplog.set_level(logging.INFO, "celery_continuations")
    _, _, maintained = maintenance.test
    scan, fails = store.scan, [True]

    def refuse(*args: Any, **options: Any) -> Any:
        if fails[0]:
            raise StoreError("memory", "away")
        return scan(*args, **options)

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(store, "scan", refuse)
    for _ in range(40):
        now += 1
        maintenance._renew(maintained)
        maintenance._sweep(maintained)
    assert caplog.text.count("Could not sweep for lost tasks") == 1
    fails[0] = False
    maintenance._sweep(maintained)
    maintenance._sweep(maintained)
    assert caplog.text.count("Sweeps succeed again, after 39 s") == 1


def test_maintenance_sweeps_when_a_process_of_the_pool_has_ended(maintenance: Any, monkeypatch: Any) -> None:
    _, pids, maintained = maintenance.test
    swept: list[int] = []
    monkeypatch.setattr(maintenance, "_sweep", lambda maintained: swept.append(1))
    maintained.sweep_at = time.monotonic() + 60
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pids.append(child.pid)
    maintenance._sweep_all()
    assert not swept
    child.kill()
    child.communicate()
    maintenance._sweep_all()
    assert swept == [1]


def test_an_error_does_not_end_maintenance(maintenance: Any, caplog: Any) -> None:
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        if len(calls) == 2:
            maintenance._ending.set()
        raise ZeroDivisionError

    maintenance._repeat(broken)
    assert len(calls) == 2
    assert "Unexpected error in worker maintenance; continuing" in caplog.text


def test_what_is_published_again_is_the_message_that_it_was(
    worker: Any, sweeper: Sweeper, lost: Any, app: Celery
) -> None:
    lost(headers={"tenant": "acme"}, link=app.signature("some.link"), priority=3, argsrepr="(secret)")
    sweeper.sweep(always)
    delivery = worker.deliver_nothing()
    headers = delivery.headers
    assert (headers["tenant"], headers["argsrepr"], headers["continuation_generation"]) == ("acme", "(secret)", 1)
    assert delivery.message.properties["priority"] == 3
    args, kwargs, embed = delivery.body
    assert (args, kwargs) == ([4], {})
    assert embed["callbacks"][0]["task"] == "some.link"


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_the_body_that_is_kept_is_never_read_but_by_a_worker(
    worker: Any, sweeper: Sweeper, lost: Any, app: Celery, store: Any, serializer: str, compression: str | None
) -> None:
    app.conf.accept_content = ["json", serializer]
    result = lost(serializer=serializer, compression=compression)
    assert json.loads(store.read(result.id).message)["content"][0] != ""
    sweeper.sweep(always)
    worker.drain()
    assert result.get() == "end"


@pytest.mark.parametrize("content", ["application/x-python-serialize", "application/x-yaml", "unknown", None])
def test_what_no_worker_accepts_is_not_published_and_keeps_no_other_from_it(
    app: Celery, store: Any, sweeper: Sweeper, monkeypatch: Any, caplog: Any, content: str | None
) -> None:
    caplog.set_level("INFO", "celery_continuations")
    sent: list[str] = []
    monkeypatch.setattr(app.amqp, "send_task_message", lambda producer, name, *args, **options: sent.append(name))
    assert tuple(app.conf.accept_content) == ("json",)
    text = json.dumps({**GOOD, "task": "refused", "content": [content, "binary"], "body": "gASVCQAAAAAAAACMBXBvcw=="})
    store.compare_and_swap("a", None, Update(Fence(1, Status.RUNNING, "w2/1.1/b"), None, text))
    waited = '{"version": 1, "waiting": ["time", 1.0, null]}'
    store.compare_and_swap("b", None, Update(Fence(1, Status.WAITING), waited, text, due_in=-10))
    put_neighbours(store)
    for _ in range(2):
        sweeper.sweep(always)
    assert [caplog.text.count(f"Task {name}") for name in ("lost recovered", "slept woken")] == [1, 1]
    for name in ("a", "b"):
        assert caplog.text.count(f"Task {name} cannot be recovered") == 1
    assert caplog.text.count(f"the content type {content!r}, not in accept_content") == 2
    assert sent == ["other", "other"]


def of_a_later_release(store: Any, task_id: str) -> str:
    """Have a record hold a snapshot that this release cannot read."""
    record = store.read(task_id)
    text = json.dumps({**json.loads(record.snapshot), "version": VERSION + 1, "new": "field"})
    assert store.compare_and_swap(task_id, record.fence, Update(record.fence, text))
    return text


def test_a_record_of_a_later_release_keeps_no_other_from_being_recovered(
    worker: Any, sweeper: Sweeper, lost: Any, store: Any, caplog: Any
) -> None:
    first, second = lost(), lost()
    later = of_a_later_release(store, first.id)
    for _ in range(2):
        sweeper.sweep(always)
    assert store.read(second.id).fence == Fence(1, Status.QUEUED)
    assert (store.read(first.id).fence.status, store.read(first.id).snapshot) == (Status.RUNNING, later)
    assert caplog.text.count(f"Task {first.id} cannot be recovered") == 1
    worker.drain()
    assert second.get() == "end"


def test_a_second_delivery_of_such_a_task_is_given_back(
    worker: Any, lost: Any, store: Any, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr("celery_continuations.execution.claiming.loss_of", lambda *args, **kwargs: Loss.CRASH)
    result = lost()
    later = of_a_later_release(store, result.id)
    worker.flag = new_flag("again@test")
    worker.execute(worker.deliveries[-1], "again@test")
    worker.flag.remove()
    assert worker.queued() == 1
    assert f"snapshot version {VERSION + 1} is newer" in caplog.text
    assert store.read(result.id).snapshot == later
    assert result.state == states.PENDING


# -- one entry of each kind that cannot be read, in each store


def suite_of(kind: str, path: Path, request: pytest.FixtureRequest) -> Any:
    """Return the conformance suite of a store, whose hooks damage it."""
    if kind == "redis":
        suite = conformance.TestRedisStore()
        suite.url = request.getfixturevalue("redis_url")
        suite.client = Redis.from_url(suite.url)
        request.addfinalizer(suite.client.flushdb)
        return suite
    files: Any = conformance.TestFilesystemStore() if kind == "files" else conformance.TestDatabaseStoreOnSQLite()
    files.path = path / "progress.db" if kind == "sqlite" else path
    return files


@pytest.mark.parametrize("of", ["files", "redis", "sqlite"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_of_any_kind_in_any_store_harms_another_task(
    app: Celery, worker: Any, tmp_path: Path, request: pytest.FixtureRequest, of: str, kind: str
) -> None:
    harms_no_other_task(app, suite_of(of, tmp_path, request), kind)
