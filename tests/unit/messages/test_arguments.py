"""Each execution gets its arguments as they were sent, whatever an earlier one did to them."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery import signals as celery_signals
from celery.app.task import Context
from celery.app.trace import trace_task_ret
from celery.concurrency.solo import TaskPool
from celery.worker.request import Request as CeleryRequest
from celery.worker.request import create_request_cls
from celery.worker.strategy import proto1_to_proto2
from kombu import serialization
from kombu.exceptions import OperationalError
from kombu.message import Message

from celery_continuations import AppTask, ContinuableTask, StoreError
from celery_continuations.control import deliver
from celery_continuations.execution import (
    claiming,
    message,
)
from celery_continuations.execution.triggers import watcher
from celery_continuations.messages.body import Body, carried, received, written
from celery_continuations.messages.from_request import republish
from celery_continuations.messages.headers import GENERATION, SNAPSHOT
from celery_continuations.messages.publishing import publish_saved
from celery_continuations.process.identity import new_worker
from celery_continuations.process.stop_flag import new_flag
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.requests import Request
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Delivery, Killed, make_app

DEAD = "elsewhere.1.dead"

ARGS = [["header", {"name": "one", "tags": [1, 2]}, {"name": "two"}], "words"]
KWARGS = {"tenant": "acme", "options": {"deep": {"list": [1, 2, 3]}, "none": None}}

SERIALIZERS = ["json", "pickle", "msgpack", "yaml", "auth"]
EVERYTHING_ACCEPTED = ["json", "pickle", "msgpack", "yaml", "application/data"]


def ruin(args: Any, kwargs: Any) -> None:
    """Change arguments in every way that Python has."""
    rows = args[0]
    if rows:
        rows.pop(0)
    for row in rows:
        if isinstance(row, dict):
            row.setdefault("tags", []).append("more")
            row["name"] = row["name"].upper()
    rows.reverse()
    if "options" in kwargs:
        kwargs["options"]["deep"]["list"].clear()
        kwargs["options"].update(none=1, more=2)
    kwargs.pop("tenant", None)
    kwargs["added"] = True
    if isinstance(args, list):
        args.append("added")
        del args[1]


class Log:
    """What each execution got, at the first place that saw it."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.seen: list[tuple[list[Any], dict[str, Any]]] = []

    def at(self, place: str, args: Any, kwargs: Any) -> None:
        if place == self.place:
            self.seen.append(copy.deepcopy((list(args), dict(kwargs))))
            ruin(args, kwargs)


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Celery's serializer that signs, with keys of this session."""
    x509 = pytest.importorskip("cryptography.x509")
    from celery.security import register_auth
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as formats
    from cryptography.hazmat.primitives.asymmetric import rsa

    folder: Path = tmp_path_factory.mktemp("keys")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(formats.Encoding.PEM)
    )
    (folder / "one.pem").write_bytes(certificate)
    secret = key.private_bytes(formats.Encoding.PEM, formats.PrivateFormat.TraditionalOpenSSL, formats.NoEncryption())
    return lambda: register_auth(secret.decode(), None, certificate.decode(), str(folder / "*.pem"))


@pytest.fixture
def serializer(request: Any) -> Iterator[str]:
    name: str = getattr(request, "param", "json")
    if name == "auth":
        request.getfixturevalue("signing")()
    elif name in ("msgpack", "yaml"):
        pytest.importorskip(name)
    yield name
    if name == "auth":
        serialization.unregister("auth")  # type: ignore[no-untyped-call]


@pytest.fixture
def compression() -> str | None:
    return None


@pytest.fixture
def kept_in() -> str:
    return "memory"


@pytest.fixture
def app(serializer: str, compression: str | None, kept_in: str) -> Celery:
    made = make_app(
        task_serializer=serializer, accept_content=EVERYTHING_ACCEPTED, task_compression=compression,
        continuation_checkpoint_interval=0, continuation_resume_error_countdown=0,
    )  # fmt: skip
    made.conf.continuation_store = kept_in
    return made


class Driver:
    """Runs a task to its end, one execution after another, whatever happens to them."""

    def __init__(self, app: Celery, worker: Any) -> None:
        self.worker = worker
        self.store = open_store(app, app.conf.continuation_store)
        self.sweeper = Sweeper(app, self.store, new_worker(), lambda task_id: True)
        self.give_back = False

    def execute(self, task_id: str) -> None:
        if not self.worker.queued():
            self.sweeper.sweep(lambda: True)  # what waits for a moment has reached it
            return
        stopping, self.give_back = self.give_back, False
        try:
            self.worker.deliver(stopping=stopping)
        except TypeError:  # Killed, as Celery's solo pool passes it on
            found = self.store.read(task_id)
            assert found is not None
            lost = found.fence._replace(owner=f"{DEAD}/7.7/a")
            assert self.store.compare_and_swap(task_id, found.fence, Update(lost))
            self.sweeper.sweep(lambda: True)

    def until_ended(self, result: Any) -> None:
        for _ in range(60):
            if result.state in states.READY_STATES:
                return
            self.execute(result.id)
        raise AssertionError(f"not ended: {result.state} {result.info}")

    # -- what may happen to an execution: each is called in a step, after an item that made progress

    def stop(self, task: Any) -> None:
        self.worker.stop()

    def stop_and_give_back(self, task: Any) -> None:
        self.worker.stop()
        self.give_back = True

    def end_slice(self, task: Any) -> None:
        for watch in watcher.running:
            watch._leave_at = 0.0
            watch.check()

    def fail(self, task: Any) -> None:
        raise ValueError("after progress")

    def retry(self, task: Any) -> None:
        raise task.retry(countdown=0, max_retries=None)

    def kill(self, task: Any) -> None:
        raise Killed

    def wait(self, task: Any) -> None:
        task.resume_in(0)


ANYWHERE = (Driver.stop, Driver.stop_and_give_back, Driver.end_slice, Driver.fail, Driver.retry)
WITH_A_STORE = (*ANYWHERE, Driver.kill, Driver.wait)


@pytest.fixture
def driver(app: Celery, worker: Any) -> Driver:
    return Driver(app, worker)


@pytest.fixture
def through(app: Celery, driver: Driver) -> Iterator[Any]:
    """Run a task through a sequence of ways, changing its arguments at one place of each execution."""
    logs: list[Log] = []

    def on_prerun(args: Any = None, kwargs: Any = None, **_: Any) -> None:
        logs[-1].at("prerun", args, kwargs)

    def make(place: str, ways: Any, **options: Any) -> tuple[Any, Log]:
        log = Log(place)
        logs.append(log)
        passed: set[int] = set()

        class Tenant(ContinuableTask):
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                log.at("call", args, kwargs)
                return super().__call__(*args, **kwargs)

            def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
                log.at("before_start", args, kwargs)

        @app.task(base=Tenant, bind=True, name="ruining", **options)
        def run(self: Any, *args: Any, **kwargs: Any) -> int:
            log.at("body", args, kwargs)
            if place == "request":
                log.at("request", self.request.args, self.request.kwargs)
                self.request.args, self.request.kwargs = ["else"], {}
                self.request.callbacks = self.request.chain = None
            for number in self.iterate("rows", range(2 * len(ways) + 1)):
                if number % 2 and number not in passed:
                    passed.add(number)
                    ways[number // 2](driver, self)
            return len(passed)

        return run, log

    celery_signals.task_prerun.connect(on_prerun, weak=False)
    yield make
    celery_signals.task_prerun.disconnect(on_prerun)


PLACES = ["body", "request", "call", "before_start", "prerun"]


def check(driver: Driver, made: Any, ways: Any) -> None:
    task, log = made
    result = task.apply_async(copy.deepcopy(ARGS), copy.deepcopy(KWARGS))
    driver.until_ended(result)
    assert (result.state, result.result) == (states.SUCCESS, len(ways))
    assert len(log.seen) > len(ways)
    assert all(one == (ARGS, KWARGS) for one in log.seen)


def shuffled(ways: Any, seed: int) -> list[Callable[[Driver, Any], None]]:
    sequence = [*ways, *ways]
    random.Random(seed).shuffle(sequence)
    return sequence


@pytest.mark.exhaustive
@pytest.mark.parametrize("serializer", SERIALIZERS, indirect=True)
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("place", PLACES)
def test_arguments_come_as_they_were_sent(driver: Driver, through: Any, place: str) -> None:
    ways = shuffled(WITH_A_STORE, PLACES.index(place))
    check(driver, through(place, ways), ways)


@pytest.mark.exhaustive
@pytest.mark.parametrize("serializer", SERIALIZERS, indirect=True)
@pytest.mark.parametrize("kept_in", ["message"])
@pytest.mark.parametrize("place", PLACES)
def test_arguments_come_as_they_were_sent_without_a_store(driver: Driver, through: Any, place: str) -> None:
    ways = shuffled(ANYWHERE, 1)
    check(driver, through(place, ways), ways)


@pytest.mark.parametrize("way", WITH_A_STORE, ids=lambda way: way.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_each_way_alone(driver: Driver, through: Any, place: str, way: Any) -> None:
    check(driver, through(place, [way]), [way])


@pytest.mark.parametrize("serializer", ["pickle"], indirect=True)
def test_what_only_pickle_can_send_comes_as_it_was_sent(worker: Any, task: Any, driver: Driver) -> None:
    def run(self: Any, numbers: set[int], by_number: dict[int, str]) -> None:
        seen.append(copy.deepcopy((numbers, by_number)))
        numbers.pop()
        by_number.clear()
        for _ in self.iterate("rows", range(2)):
            worker.stop()

    seen: list[Any] = []
    driver.until_ended(task(run).delay({1, 2}, {1: "one"}))
    assert seen == 3 * [({1, 2}, {1: "one"})]


def test_handed_back_because_of_other_code(worker: Any, task: Any, driver: Driver, monkeypatch: Any) -> None:
    def run(self: Any, rows: list[int]) -> None:
        seen.append(rows[:])
        rows.clear()
        if len(seen) == 2:
            self.step("of other code", int)
        for _ in self.iterate("loop", range(2)):
            worker.stop()

    monkeypatch.setattr("celery_continuations.messages.requeue.REQUEUE_DELAY", 0.0)
    seen: list[Any] = []
    result = task(run).delay([1, 2, 3])
    worker.deliver()
    worker.deliver()
    assert str(result.info) == "Interrupted between steps (code changed)"
    driver.until_ended(result)
    assert seen == 4 * [[1, 2, 3]]


def test_given_back_because_of_the_store(worker: Any, task: Any, driver: Driver, monkeypatch: Any) -> None:
    def run(self: Any, rows: list[int]) -> None:
        seen.append(rows[:])
        for _ in self.iterate("loop", range(2)):
            worker.stop()

    def away(*args: Any, **kwargs: Any) -> Any:
        raise StoreError("memory", "away")

    def clear(args: Any = None, **_: Any) -> None:
        args[0].clear()

    monkeypatch.setattr(claiming, "CLAIM_COUNTDOWN", 0)
    seen: list[Any] = []
    result = task(run).delay([1, 2, 3])
    for _ in range(2):  # a fresh message, and one that carries a snapshot
        celery_signals.task_prerun.connect(clear, weak=False)
        with monkeypatch.context() as patch:
            patch.setattr(claiming, "claim", away)
            worker.deliver()
        celery_signals.task_prerun.disconnect(clear)
        worker.deliver()
    driver.until_ended(result)
    assert seen == 3 * [[1, 2, 3]]


# -- what redefines them


@pytest.mark.parametrize("serializer", SERIALIZERS, indirect=True)
@pytest.mark.parametrize("lost", [False, True])
def test_a_retry_redefines_what_was_sent(
    worker: Any, task: Any, driver: Driver, record: Any, serializer: str, lost: bool
) -> None:
    """It holds for the next execution, and if that is killed, for the one after it."""

    def run(self: Any, rows: list[int], mode: str = "first") -> str:
        seen.append((rows[:], mode))
        rows.clear()
        self.step("one", int)
        if mode == "first":
            raise self.retry(args=(["new", 1],), kwargs={"mode": "second"}, countdown=0)
        for _ in self.iterate("loop", range(2)):
            if len(seen) == 2:
                (driver.kill if lost else driver.stop)(self)
        return mode

    seen: list[Any] = []
    result = task(run).delay([1, 2, 3])
    driver.execute(result.id)
    driver.execute(result.id)
    delivery = worker.deliver()
    assert seen == [([1, 2, 3], "first"), (["new", 1], "second"), (["new", 1], "second")]
    assert result.get() == "second"
    assert delivery.headers["argsrepr"] == "(['new', 1],)"
    assert delivery.headers["kwargsrepr"] == "{'mode': 'second'}"
    assert serialization.registry.name_to_type[serializer] == delivery.message.content_type


def test_empty_arguments_redefine_as_well(worker: Any, task: Any, driver: Driver) -> None:
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))
        self.step("one", int)
        if len(seen) == 1:
            raise self.retry(args=[], kwargs={}, countdown=0)

    seen: list[Any] = []
    driver.until_ended(task(run).delay(1, two=2))
    assert seen == [((1,), {"two": 2}), ((), {})]


@pytest.mark.parametrize("killed", [False, True])
def test_a_retry_redefines_callbacks_and_chain(
    worker: Any, app: Celery, task: Any, driver: Driver, killed: bool
) -> None:
    def run(self: Any) -> str:
        self.step("one", int)
        if not retried:
            retried.append(True)
            raise self.retry(link=note.s("link"), chain=[note.s("chain")], countdown=0)
        for _ in self.iterate("loop", range(2)):
            if len(retried) == 1:
                retried.append(True)
                (driver.kill if killed else driver.stop)(self)
        return "value"

    @app.task(name="note")
    def note(value: str, what: str) -> None:
        noted.append((what, value))

    retried: list[bool] = []
    noted: list[Any] = []
    result = task(run).apply_async(link=note.s("first link"))
    driver.until_ended(result)
    worker.drain()
    assert sorted(noted) == [("chain", "value"), ("link", "value")]


@pytest.mark.parametrize("way", [Driver.stop, Driver.kill, Driver.retry], ids=lambda way: way.__name__)
def test_assigning_callbacks_counts_for_its_own_execution_only(
    worker: Any, app: Celery, task: Any, driver: Driver, way: Any
) -> None:
    def run(self: Any) -> str:
        self.step("one", int)
        if not done:
            done.append(True)
            self.request.chain = self.request.callbacks = None
            way(driver, self)
        self.step("two", int)
        return "value"

    @app.task(name="note")
    def note(value: str, what: str) -> None:
        noted.append(what)

    done: list[bool] = []
    noted: list[str] = []
    result = (task(run).s().set(link=[note.s("link")]) | note.s("chain")).apply_async()
    driver.until_ended(result.parent)
    worker.drain()
    assert sorted(noted) == ["chain", "link"]


def test_the_shown_arguments_stay_those_of_the_caller(worker: Any, task: Any, record: Any) -> None:
    def run(self: Any, rows: list[int]) -> None:
        rows.clear()
        for _ in self.iterate("rows", range(2)):
            worker.stop()

    result = task(run).apply_async(([1, 2],), argsrepr="(secret)")
    worker.deliver()
    assert json.loads(record(result.id).message)["headers"]["argsrepr"] == "(secret)"
    assert worker.deliver().headers["argsrepr"] == "(secret)"
    worker.drain()


def test_arguments_that_a_retry_cannot_serialize_fail_the_task(worker: Any, task: Any) -> None:
    def run(self: Any, value: Any) -> None:
        self.step("one", int)
        raise self.retry(args=[object()])

    result = task(run).delay(1)
    assert worker.drain() == 1
    assert (result.state, type(result.result).__name__) == (states.FAILURE, "EncodeError")


# -- the saved message


def interrupted(worker: Any, task: Any) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> int:
        got.append((list(args), kwargs))
        for _ in self.iterate("rows", range(3)):
            worker.stop()
        return 3

    got: list[Any] = []
    made = task(run)
    made.got = got
    return made


@pytest.mark.parametrize("serializer", SERIALIZERS, indirect=True)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_the_saved_message_has_the_received_body(
    app: Celery, worker: Any, task: Any, record: Any, compression: str | None
) -> None:
    made = interrupted(worker, task)
    result = made.apply_async(ARGS, {**KWARGS, "text": "Grüße \u2028 \x00"})
    delivery = worker.deliver()
    kept = json.loads(record(result.id).message)
    raw = delivery.message.body
    body = carried(kept["content"], kept["body"], app)
    assert (body.data if isinstance(body.data, bytes) else body.data.encode()) == raw
    assert kept["content"] == [delivery.message.content_type, delivery.message.content_encoding]
    assert worker.deliver_nothing().headers["continuation_generation"] == 1
    publish_saved(app, record(result.id).message, 1)
    again = worker.deliver()
    assert again.message.body == raw
    assert again.message.content_type == delivery.message.content_type
    assert again.headers.get("compression") == delivery.headers.get("compression")
    assert bool(again.headers.get("compression")) is bool(compression)
    worker.drain()
    assert result.get() == 3


def test_the_saved_message_serializes_nothing(worker: Any, task: Any, monkeypatch: Any) -> None:
    def run(self: Any, *args: Any) -> int:
        return len(args)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("serialized")

    result = task(run).delay(1, 2)
    monkeypatch.setattr("celery_continuations.messages.body.dumps", refuse)
    monkeypatch.setattr("celery_continuations.messages.body.loads", refuse)
    worker.deliver()
    assert result.get() == 2


def test_the_saved_message_of_a_lost_record_has_no_snapshot(
    app: Celery, worker: Any, task: Any, record: Any, store: Any
) -> None:
    """The message of a continuation carries one, which is older than those that its execution saves."""
    made = interrupted(worker, task)
    result = made.apply_async(ARGS, KWARGS)
    worker.deliver()
    fence = record(result.id).fence
    assert store.compare_and_swap(result.id, fence, Update(fence, expires_in=0))
    worker.deliver()
    kept = json.loads(record(result.id).message)
    args, kwargs, embed = carried(kept["content"], kept["body"], app).decode()
    assert (args, kwargs) == (ARGS, KWARGS)
    assert SNAPSHOT not in embed
    worker.drain()
    assert made.got == 4 * [(ARGS, KWARGS)]


def test_a_continuation_without_a_snapshot_drops_the_old_one(worker: Any, app: Celery, task: Any) -> None:
    made = interrupted(worker, task)
    made.apply_async(ARGS, KWARGS)
    worker.deliver()
    second = worker.deliver_nothing()
    assert SNAPSHOT in second.body[2]
    request = request_of(app, made, second)
    for snapshot in (None, "new"):
        republish(made, request, generation=1, snapshot=snapshot, body=received(made, request, None), options={})
        assert worker.deliver_nothing().body[2].get(SNAPSHOT) == snapshot


def request_of(app: Celery, made: Any, delivery: Delivery) -> Any:
    delivery.message.accept = None
    return Context({**Request(delivery.message, app=app, task=made).request_dict, **delivery.body[2]})


def test_a_serializer_that_claims_to_write_text(app: Celery) -> None:
    """Serializers are registered as utf-8 unless told otherwise, even those that write bytes."""
    raw = pickle.dumps((1, 2, {}))
    content, text = Body(raw, "application/x-bytes", "utf-8", app).as_text()
    assert content == ["application/x-bytes", "binary"]
    assert base64.b64decode(text) == raw == carried(content, text, app).data
    assert Body(memoryview(raw), "application/x-bytes", "binary", app).as_text()[1] == text


# -- what is in a request


def test_the_body_is_the_object_that_celery_sends_to_the_pool(app: Celery, task: Any, worker: Any) -> None:
    class Pool:
        def apply_async(self, target: Any, args: Any, **options: Any) -> None:
            jobs.append(args)

    jobs: list[Any] = []
    made = interrupted(worker, task)
    message = app.amqp.create_task_message("id", made.name, ("a" * 100_000,), {})
    _, _, data = serialization.dumps(message.body, "json")  # type: ignore[no-untyped-call]
    for cls in (Request, CeleryRequest):
        message_got = Message(data.encode(), content_type="application/json", headers=message.headers)
        message_got.content_encoding = "utf-8"
        request_cls = create_request_cls(cls, made, Pool(), "host", None, app=app)
        request = request_cls(message_got, app=app, task=made, hostname="host", body=message_got.body)
        request.execute_using_pool(Pool())
    assert jobs[0][2]["properties"]["continuation_body"][0] is jobs[0][3]
    ours, celerys = (len(pickle.dumps(job)) for job in jobs)
    assert ours - celerys < 300


def test_the_body_is_not_among_the_headers_that_are_sent_on(worker: Any, app: Celery, task: Any) -> None:
    """Celery's own retry sends `request.headers`, and so do tasks that hand headers on."""

    def run(self: Any, rows: list[int]) -> None:
        if not self.request.retries:
            raise self.retry(countdown=0)  # before any step: Celery's own

    result = task(run, base=AppTask).delay(["secret"])
    worker.deliver()
    assert "secret" not in repr({**worker.deliver().headers, "argsrepr": ""})
    assert result.state == states.SUCCESS


class OwnRequest(CeleryRequest):
    """A request of a project's own."""


@pytest.mark.parametrize("serializer", ["json", "pickle"], indirect=True)
@pytest.mark.parametrize("place", ["body", "request", "call"])
def test_a_request_class_of_its_own(driver: Driver, through: Any, app: Celery, serializer: str, place: str) -> None:
    ways = [Driver.fail, Driver.retry, Driver.kill]
    run, log = through(place, ways, Request=OwnRequest)
    check(driver, (run, log), ways)


def test_without_a_received_body_what_cannot_be_serialized_fails_only_when_it_is_sent(
    worker: Any, app: Celery, task: Any
) -> None:
    app.conf.task_serializer = "json"

    def run(self: Any, value: Any) -> str:
        if interrupt:
            for _ in self.iterate("rows", range(3)):
                worker.stop()
                raise ValueError if self.continuation.current.advanced else KeyError
        return "ended"

    interrupt: list[bool] = []
    made = task(run, base=AppTask, Request=OwnRequest)
    result = made.apply_async((object(),), serializer="pickle")
    worker.deliver()
    assert result.get() == "ended"
    interrupt.append(True)
    result = made.apply_async((object(),), serializer="pickle")
    worker.deliver()
    assert type(result.result).__name__ == "EncodeError"


def test_a_message_of_protocol_1(worker: Any, app: Celery, task: Any, driver: Driver) -> None:
    def run(self: Any, rows: list[int]) -> int:
        seen.append(rows[:])
        rows.clear()
        for _ in self.iterate("rows", range(3)):
            self.request.args.clear()
            worker.stop()
        return 3

    seen: list[Any] = []
    made = task(run)
    old = app.amqp.as_task_v1("the-id", made.name, ([1, 2],), {})
    content_type, encoding, data = serialization.dumps(old.body, "json")  # type: ignore[no-untyped-call]
    message = Message(
        data.encode(), content_type=content_type, content_encoding=encoding,
        delivery_info={"exchange": "", "routing_key": app.conf.task_default_queue},
    )  # fmt: skip
    body, headers, decoded, utc = proto1_to_proto2(message, message.payload)
    worker.flag = new_flag("old@test")
    pool = TaskPool()
    pool.start()
    trace = partial(trace_task_ret, app=app)
    request_cls = create_request_cls(Request, made, pool, "old@test", None, trace=trace, app=app)
    request = request_cls(
        message, app=app, task=made, hostname="old@test", body=body, headers=headers, decoded=decoded, utc=utc
    )
    request.execute_using_pool(pool)
    worker.flag.remove()
    worker.drain()
    assert seen == 4 * [[1, 2]]
    assert made.AsyncResult("the-id").get() == 3


# -- large ones


def test_large_arguments_are_warned_of_once(worker: Any, app: Celery, task: Any, caplog: Any) -> None:
    def run(self: Any, text: str) -> int:
        return len(text)

    made = task(run)
    other = task(run)
    for one in (made, made, other):
        one.delay("a" * 1024 * 1024)
        one.delay("a" * 1000)
    worker.drain()
    found = [record for record in caplog.records if getattr(record, "action", None) == "large_arguments"]
    assert [record.task_name for record in found] == [made.name, other.name]
    assert found[0].levelno == logging.WARNING
    assert "the message body has 10486" in found[0].getMessage()
    assert "pass a reference" in found[0].getMessage()


@pytest.mark.parametrize("kept_in", ["message"])
def test_large_arguments_that_are_not_kept_are_not_warned_of(worker: Any, task: Any, caplog: Any) -> None:
    def run(self: Any, text: str) -> None:
        self.step("one", int)

    task(run).delay("a" * 1024 * 1024)
    worker.drain()
    assert not [record for record in caplog.records if getattr(record, "action", None) == "large_arguments"]


# -- models


def test_pydantic_models_are_fresh_in_each_execution(worker: Any, app: Celery, driver: Driver) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        number: int
        tags: list[str]

    def run(self: Any, model: Any) -> Any:
        seen.append((model.number, list(model.tags)))
        for _ in self.iterate("rows", range(3)):
            model.number += 1
            model.tags.append("more")
            ways.pop()(driver, self) if ways else None
        return model.number

    run.__annotations__["model"] = Model
    seen: list[Any] = []
    ways = [Driver.kill, Driver.stop]
    made = app.task(base=ContinuableTask, bind=True, name="modelled", pydantic=True)(run)
    driver.until_ended(made.delay({"number": 1, "tags": ["a"]}))
    assert seen == 3 * [(1, ["a"])]


# -- other ways in


def test_delivered_waits_keep_the_arguments(worker: Any, app: Celery, task: Any) -> None:
    def run(self: Any, rows: list[int]) -> Any:
        seen.append(rows[:])
        rows.clear()
        return self.wait_for("answer")

    seen: list[Any] = []
    result = task(run).delay([1, 2])
    worker.deliver()
    deliver(result.id, "answer", "yes", app=app)
    worker.drain()
    assert (seen, result.get()) == ([[1, 2], [1, 2]], "yes")


def test_a_broker_that_is_away_gets_the_arguments_later(worker: Any, task: Any, monkeypatch: Any) -> None:
    def run(self: Any, rows: list[int]) -> None:
        seen.append(rows[:])
        rows.clear()
        for _ in self.iterate("rows", range(2)):
            worker.stop()

    def away(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(message, "republish", republish)
        raise OperationalError("away")

    monkeypatch.setattr(message, "republish", away)
    monkeypatch.setattr(message, "_PAUSE", 0.0)
    seen: list[Any] = []
    task(run).delay([1, 2])
    worker.drain()
    assert seen == 3 * [[1, 2]]


def test_receivers_of_before_task_publish_see_the_decoded_body(worker: Any, task: Any) -> None:
    bodies: list[Any] = []

    def note(body: Any = None, **_: Any) -> None:
        bodies.append(copy.deepcopy(body))
        body[1]["tenant"] = "acme"

    made = interrupted(worker, task)
    celery_signals.before_task_publish.connect(note, weak=False)
    try:
        made.delay([1])
        worker.drain()
    finally:
        celery_signals.before_task_publish.disconnect(note)
    assert [body[0] for body in bodies] == [([1],), [[1]], [[1]], [[1]]]
    assert made.got == 4 * [([[1]], {"tenant": "acme"})]


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("serializer", ["json", "pickle"], indirect=True)
def test_receivers_see_the_decoded_body_of_a_saved_message(
    worker: Any, app: Celery, task: Any, serializer: str, changes: bool
) -> None:
    def run(self: Any, rows: list[int], tenant: str = "") -> Any:
        return self.wait_for("answer"), rows, tenant

    def before(body: Any = None, headers: Any = None, **_: Any) -> None:
        args, kwargs, embed = body
        shown.append((list(args), dict(kwargs), embed["chord"], type(body)))
        if changes and GENERATION in headers:
            kwargs["tenant"] = "acme"

    shown: list[Any] = []
    result = task(run).delay([1])
    worker.deliver()
    for signal in (celery_signals.before_task_publish, celery_signals.after_task_publish):
        signal.connect(before, weak=False)
    try:
        deliver(result.id, "answer", "yes", app=app)
    finally:
        for signal in (celery_signals.before_task_publish, celery_signals.after_task_publish):
            signal.disconnect(before)
    kwargs = {"tenant": "acme"} if changes else {}
    assert shown == [([[1]], {}, None, tuple), ([[1]], kwargs, None, tuple)]
    worker.drain()
    assert list(result.get(timeout=1)) == ["yes", [1], "acme" if changes else ""]


def test_written_bodies_are_read_whatever_the_app_accepts() -> None:
    body = written([1], {}, {"chord": {"task": "x"}}, "pickle")
    assert body.in_chord
    assert body.decode() == ([1], {}, {"chord": {"task": "x"}})
    assert not body.changed({"chord": None}).in_chord


# -- messages and records of version 0.1

SAMPLES = {
    sample["serializer"]: sample
    for sample in json.loads((Path(__file__).parents[1] / "samples" / "arguments-0.1.json").read_text())
}
SAMPLED_ARGS = [["header", {"name": "one"}], "words"]
SAMPLED_KWARGS = {"tenant": "acme", "options": {"deep": [1, 2]}}


@pytest.mark.parametrize("serializer", SAMPLES, indirect=True)
@pytest.mark.parametrize("way", ["message", "record", "both"])
def test_what_0_1_has_left_is_resumed(worker: Any, app: Celery, store: Any, serializer: str, way: str) -> None:
    """A task of 0.1 that was stopped after two of four items: its message, and its record."""

    @app.task(base=ContinuableTask, bind=True, name="sample")
    def sample(self: Any, *args: Any, **kwargs: Any) -> int:
        seen.append(copy.deepcopy((list(args), kwargs)))
        args[0].pop()
        for item in self.iterate("rows", range(4)):
            items.append(item)
            if item == 2:
                worker.stop()
        return 4

    @app.task(name="note")
    def note(value: int, what: str) -> None:
        noted.append((what, value))

    seen: list[Any] = []
    items: list[int] = []
    noted: list[Any] = []
    app.conf.task_default_queue = "samples"
    message, record = SAMPLES[serializer]["message"], SAMPLES[serializer]["record"]
    task_id = message["headers"]["id"]
    sample.AsyncResult(task_id).forget()  # of an earlier test
    if way != "message":
        queued = Fence(record["generation"], Status.QUEUED)
        assert store.compare_and_swap(task_id, None, Update(queued, record["snapshot"], record["message"]))
    if way == "record":
        publish_saved(app, record["message"], record["generation"])
    else:
        headers = dict(message["headers"])
        with app.producer_or_acquire() as producer:
            producer.publish(
                base64.b64decode(message["body"]), exchange="", routing_key="samples",
                content_type=message["content_type"], content_encoding=message["content_encoding"],
                compression=headers.pop("compression", None), headers=headers,
                declare=[app.amqp.queues["samples"]], **message["properties"],
            )  # fmt: skip
    worker.drain()
    assert items == [2, 3]
    assert seen == 2 * [(SAMPLED_ARGS, SAMPLED_KWARGS)]
    assert noted == [("link", 4)]
    assert sample.AsyncResult(task_id).get() == 4
    assert [delivery.headers["customer"] for delivery in worker.deliveries[:2]] == 2 * ["acme"]


def test_headers_that_are_handed_on_to_another_task_have_none_of_the_progress(worker: Any, task: Any) -> None:
    done: list[int] = []

    def loops(self: Any) -> None:
        for number in self.iterate("numbers", range(4)):
            done.append(number)

    child = task(loops)

    def hands_on(self: Any) -> None:
        for number in self.iterate("numbers", range(4)):
            if number == 1 and self.continuation.resumptions == 0:
                worker.stop()
        child.apply_async(headers=self.request.headers)

    task(hands_on).apply_async(headers={"tenant": "acme"})
    worker.drain()
    assert done == [0, 1, 2, 3]
    assert worker.deliveries[-1].headers["tenant"] == "acme"
