"""A task that this worker's code cannot resume is requeued for other workers, for the grace period."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import pytest
from celery import Celery, states

from celery_continuations import ContinuableTask
from celery_continuations.core.snapshot import VERSION, Snapshot
from celery_continuations.exceptions import InvalidStepError, SourceChangedError
from celery_continuations.messages import requeue
from celery_continuations.messages.headers import CHANGED
from celery_continuations.process.stop_flag import new_flag
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker import unknown_tasks
from celery_continuations.worker.unknown_tasks import requeue_unknown


@pytest.fixture
def deploy(worker: Any, app: Celery, monkeypatch: Any) -> Any:
    """Run a task of new code, stop it, and put old code in its place."""
    monkeypatch.setattr("celery_continuations.messages.requeue.REQUEUE_DELAY", 0.0)
    ran: list[str] = []

    def new_code(self: Any) -> str:
        self.step("one", ran.append, "one")
        for item in self.iterate("two", range(4)):
            ran.append(f"two {item}")
            if item == 1 and self.continuation.resumptions == 0:
                worker.stop()
        return "new"

    def make(old: Any, **options: Any) -> Any:
        code = new_code

        @app.task(base=ContinuableTask, bind=True, name="changing", **options)
        def changing(self: Any) -> str:
            return code(self)

        def bring(other: Any) -> None:
            nonlocal code
            code = other

        result = changing.delay()
        worker.deliver()
        bring(lambda self: old(self, ran))
        return result, lambda: bring(new_code)

    make.ran = ran  # type: ignore[attr-defined]
    return make


def lacks_the_step(self: Any, ran: list[str]) -> str:
    self.step("one", ran.append, "one")
    return "old"


def has_another_step(self: Any, ran: list[str]) -> str:
    self.step("one", ran.append, "one")
    self.step("between", ran.append, "between")
    return "old"


def swallows(self: Any, ran: list[str]) -> str:
    try:
        self.step("another", ran.append, "another")
    except Exception:
        ran.append("swallowed")
    return "old"


@pytest.mark.parametrize("old", [lacks_the_step, has_another_step, swallows])
def test_old_code_requeues_the_task_and_new_code_continues(
    worker: Any, deploy: Any, record: Any, old: Any, caplog: Any
) -> None:
    result, bring_new_code = deploy(old)
    for _ in range(3):
        delivery = worker.deliver()
        assert delivery.end == "acked"
        assert (result.state, str(result.info)) == (states.RETRY, "Interrupted between steps (code changed)")
    assert record(result.id).fence.status == Status.QUEUED
    assert Snapshot.loads(record(result.id).snapshot).steps == ["one", "two"]
    assert "between" not in deploy.ran
    assert "requeued: this worker's code cannot resume its snapshot" in caplog.text
    bring_new_code()
    worker.drain()
    assert (result.get(), deploy.ran.count("two 1"), deploy.ran.count("one")) == ("new", 1, 1)


@pytest.mark.parametrize("old", [lacks_the_step, has_another_step, swallows])
def test_after_the_grace_it_fails_and_the_record_stays(worker: Any, deploy: Any, record: Any, old: Any) -> None:
    result, _ = deploy(old, continuation_change_grace=0)
    worker.drain()
    assert isinstance(result.result, InvalidStepError)
    found = record(result.id)
    assert found.fence.status == Status.FAILED
    assert Snapshot.loads(found.snapshot).steps[:2] == ["one", "two"]


def test_the_grace_begins_with_the_first_misfit(worker: Any, deploy: Any, monkeypatch: Any) -> None:
    result, _ = deploy(lacks_the_step, continuation_change_grace=100)
    first = worker.deliver()
    assert CHANGED not in first.headers
    second = worker.deliver()
    assert second.headers[CHANGED] == pytest.approx(time.time(), abs=5)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 101)
    worker.drain()
    assert result.state == states.FAILURE


def test_it_starts_over_where_the_task_says_so(worker: Any, deploy: Any) -> None:
    result, _ = deploy(lacks_the_step, continuation_change_grace=0, continuation_on_change="restart")
    worker.drain()
    assert (result.get(), deploy.ran) == ("old", ["one", "two 0", "two 1", "one"])


def test_a_snapshot_of_a_later_version_goes_back_too(worker: Any, app: Celery, deploy: Any, record: Any) -> None:
    result, bring_new_code = deploy(lacks_the_step)
    bring_new_code()
    found = record(result.id)
    later = json.dumps({**json.loads(found.snapshot), "version": VERSION + 1})
    open_store(app, "memory").compare_and_swap(result.id, found.fence, Update(found.fence, later))
    held = worker.deliver_nothing()
    args, kwargs, embed = json.loads(held.message.body)
    del embed["continuation"]
    held.message.body = json.dumps([args, kwargs, embed])
    worker.flag = new_flag("later@test")
    worker.execute(held, "later@test")
    worker.flag.remove()
    assert (result.state, str(result.info)) == (states.RETRY, "Interrupted between steps (code changed)")
    kept = json.loads(record(result.id).snapshot)
    assert kept.pop("misfit").startswith(f"snapshot version {VERSION + 1} is newer")
    assert kept == json.loads(later), "what is not known here is kept"


# -- the task is missing


class FakeConsumer:
    def __init__(self, app: Celery) -> None:
        self.app = app
        self.hostname = "worker@test"
        self.connection_errors = ()
        self.timer = self
        self.failed: list[str] = []
        self.later: list[Any] = []

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> None:
        self.failed.append(message.headers["id"])

    def call_after(self, seconds: float, act: Any) -> None:
        self.later.append((seconds, act))

    def call_soon(self, act: Any) -> None:
        act()


class FakeMessage:
    def __init__(self, **headers: Any) -> None:
        self.headers = headers
        self.requeued = 0

    def requeue(self) -> None:
        self.requeued += 1

    def ack_log_error(self, *args: Any) -> None:
        self.acknowledged = True


class FakeMaintenance:
    def __init__(self) -> None:
        self.decided: list[Any] = []

    def sweeper_of(self, store: Any) -> Any:
        return self

    def decide(self, *decision: Any) -> None:
        self.decided.append(decision[:2])  # without the error


def test_a_task_that_is_not_known_here_goes_back_for_the_grace(app: Celery, monkeypatch: Any) -> None:
    consumer, maintenance = FakeConsumer(app), FakeMaintenance()
    requeue_unknown(consumer, maintenance)  # type: ignore[arg-type]
    fresh = FakeMessage(id="fresh", task="x")
    consumer.on_unknown_task(None, fresh, None)
    assert consumer.failed == ["fresh"], "Celery handles that itself"
    message = FakeMessage(id="resumed", task="x", continuation_generation=3)
    consumer.on_unknown_task(None, message, None)
    ((delay, act),) = consumer.later
    assert message.requeued == 0
    assert 0.5 * requeue.REQUEUE_DELAY <= delay <= 1.5 * requeue.REQUEUE_DELAY
    act()
    assert (message.requeued, consumer.failed) == (1, ["fresh"])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    consumer.on_unknown_task(None, message, None)
    assert consumer.failed == ["fresh", "resumed"]
    assert [one[:2] for one in maintenance.decided] == [("resumed", Status.FAILED)], "the record is kept, as failed"


@pytest.mark.parametrize("generation", [3, 4, 5])
def test_an_unknown_task_is_failed_only_by_the_message_that_its_record_expects(
    app: Celery, store: Any, monkeypatch: Any, generation: int
) -> None:
    consumer, maintenance = FakeConsumer(app), FakeMaintenance()
    requeue_unknown(consumer, maintenance)  # type: ignore[arg-type]
    store.compare_and_swap("task", None, Update(Fence(4, Status.QUEUED)))
    message = FakeMessage(id="task", task="x", continuation_generation=generation)
    consumer.on_unknown_task(None, message, None)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    consumer.on_unknown_task(None, message, None)
    if generation < 4:
        assert message.acknowledged and not consumer.failed and not maintenance.decided
    else:
        assert (consumer.failed, maintenance.decided) == (["task"], [("task", Status.FAILED)])
        assert store.read("task").fence.generation == 5, "taken from any other message"


def test_the_grace_of_a_task_that_is_not_known_here_begins_with_each_message(app: Celery, monkeypatch: Any) -> None:
    consumer = FakeConsumer(app)
    requeue_unknown(consumer, FakeMaintenance())  # type: ignore[arg-type]
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for generation in range(1, 50):
        now += 300  # another worker executes a slice of it meanwhile
        consumer.on_unknown_task(None, FakeMessage(id="sliced", task="x", continuation_generation=generation), None)
    assert consumer.failed == []
    last = FakeMessage(id="sliced", task="x", continuation_generation=49)
    for _ in range(2):
        now += 599
        consumer.on_unknown_task(None, last, None)
    assert consumer.failed == ["sliced"], "the same message waits for the grace only"


def test_messages_that_do_not_come_back_are_forgotten(monkeypatch: Any) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waiting = unknown_tasks._Waiting(600)
    for number in range(20_000):
        assert waiting.may_wait((f"id{number}", 1))
    assert len(waiting._seen) <= 10_000
    now += 1201
    assert waiting.may_wait(("another", 1))
    assert len(waiting._seen) == 1


# -- arguments


def test_a_type_error_of_the_body_is_not_a_misfit(worker: Any, task: Any) -> None:
    """Also where a decorator gives the function an argument that its signature seems to ask of the caller."""
    done: list[str] = []

    def inject(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(self: Any, *args: Any) -> Any:
            return function(self, "session", *args)

        return wrapper

    @inject
    def body(self: Any, session: str, names: list[str]) -> None:
        for name in self.iterate("names", names):
            done.append(name)
            if name == "b" and self.continuation.resumptions == 0:
                worker.stop()
            if name == "d":
                raise TypeError("of the body's own")

    result = task(body, continuation_resume_errors_after_advancing=False).delay(["a", "b", "c", "d"])
    worker.drain()
    assert (result.state, str(result.result), done) == (states.FAILURE, "of the body's own", ["a", "b", "c", "d"])


# -- a source that has changed, and a task that catches the error


class ImportFailed(Exception):
    pass


def retries(self: Any, error: Exception) -> Any:
    raise self.retry(exc=error, countdown=0)


def raises_another(self: Any, error: Exception) -> Any:
    raise ImportFailed from error


def replaces(self: Any, error: Exception) -> Any:
    raise self.replace(self.app.signature("other"))


@pytest.mark.parametrize("handle", [retries, raises_another, replaces])
def test_it_fails_all_the_same(worker: Any, task: Any, record: Any, handle: Any) -> None:
    names = ["a", "b", "c", "d"]

    def body(self: Any) -> None:
        try:
            for name in self.iterate("names", list(names)):
                if name == "b" and self.continuation.resumptions == 0:
                    worker.stop()
        except Exception as error:
            handle(self, error)

    result = task(body, autoretry_for=(ImportFailed,)).delay()
    worker.deliver()
    names.remove("a")
    worker.drain()
    assert isinstance(result.result, SourceChangedError)
    assert record(result.id).fence.status == Status.FAILED
    assert len(worker.deliveries) == 2
