"""The events, log records and signals of a task, and that reporting never delays or fails it."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.events.state import State
from kombu.exceptions import OperationalError

from celery_continuations import ContinuationError, events, signals
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution import (
    checkpoints,
    message,
    reporting,
    triggers,
)
from celery_continuations.execution.triggers import watcher
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed, rows

PAGE = Path(__file__).parents[2] / "docs" / "events.md"

# Of every event of Celery.
CELERYS = {"type", "uuid", "name", "hostname", "timestamp", "utcoffset", "pid", "clock", "local_received"}


class Seen:
    """The events that a worker has sent, as a receiver gets them from the broker."""

    def __init__(self, app: Celery, connection: Any) -> None:
        self._all: list[Any] = []
        receiver = app.events.Receiver(connection, handlers={"*": self._all.append})
        self._consumer = receiver.get_consumers(connection.Consumer, connection.default_channel)[0]
        self._consumer.consume()
        self._connection = connection

    def all(self) -> list[dict[str, Any]]:
        while True:
            try:
                self._connection.drain_events(timeout=0.05)
            except TimeoutError:
                return self._all

    def fields(self, kind: str) -> list[dict[str, Any]]:
        """The fields of our own of each event of a kind, without the durations."""
        found = [event for event in self.all() if event["type"] == f"continuation-{kind}"]
        return [{key: value for key, value in one.items() if key not in CELERYS and key != "duration"} for one in found]

    def kinds(self) -> list[str]:
        return [event["type"].removeprefix("continuation-") for event in self.all()]


@pytest.fixture
def seen(app: Celery, worker: Any, monkeypatch: Any) -> Iterator[Seen]:
    monkeypatch.setattr(events, "_paused_until", 0.0)
    worker.eventer = SimpleNamespace(enabled=True, groups=set(), send=lambda *args, **kwargs: None)
    with app.connection_for_read() as connection:
        yield Seen(app, connection)


def test_the_event_of_an_interruption(worker: Any, task: Any, seen: Seen) -> None:
    result = task(rows(worker)).delay()
    worker.deliver()
    (event,) = (event for event in seen.all() if event["type"] == "continuation-interrupted")
    assert (event["uuid"], event["name"], event["hostname"]) == (
        result.id, worker.deliveries[0].headers["task"], event["hostname"],
    )  # fmt: skip
    assert re.fullmatch(r"unit\d+@test", event["hostname"])
    assert 0 <= event["duration"] < 60
    assert seen.fields("interrupted") == [
        {
            "reason": "stopping",
            "description": "at 'import', cursor 3",
            "step": "import",
            "cursor": 3,
            "completed": ["validate"],
            "resumptions": 1,
            "done": 3,
            "total": 5,
            "error": None,
        }
    ]
    worker.drain()


def test_an_interruption_between_steps_and_one_for_an_error(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        self.step("one", worker.stop)
        for item in self.iterate("two", range(2)):
            if item == 1:
                raise ValueError("no")

    task(run).delay()
    worker.drain()
    first, second = seen.fields("interrupted")
    assert (first["description"], first["step"], first["cursor"], first["error"]) == ("after 'one'", None, None, None)
    assert (second["description"], second["reason"]) == ("at 'two', cursor 1", "ValueError: no")
    assert second["error"] == {"type": "ValueError", "message": "no"}
    assert "step-interrupted" not in seen.kinds(), "it has failed"


def test_what_it_takes_to_publish_is_not_part_of_the_duration(
    worker: Any, task: Any, seen: Seen, monkeypatch: Any
) -> None:
    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.3)
        republish(*args, **kwargs)

    republish = message.republish
    monkeypatch.setattr(message, "republish", slow)
    task(rows(worker)).delay()
    worker.drain()
    assert [event["duration"] < 0.3 for event in seen.all() if "interrupted" in event["type"]] == [True, True]


def test_the_event_of_a_resumption(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.drain()
    assert seen.fields("resumed") == [
        {
            "reason": "stopping",
            "description": "at 'import', cursor 3",
            "step": "import",
            "cursor": 3,
            "completed": ["validate"],
            "resumptions": 1,
            "done": 3,
            "total": 5,
        }
    ]


def test_a_cursor_that_cannot_be_read_is_reported_as_it_is_saved() -> None:
    from celery_continuations.execution.reporting import _current

    assert _current(Snapshot(current=("a", {"of": "another version"}))) == ("a", {"of": "another version"})


def test_the_event_of_a_skipped_step(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.drain()
    assert seen.fields("step-skipped") == [{"step": "validate", "resumptions": 1}]


def test_the_event_of_a_step_that_starts(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.deliver()
    validate, fresh = seen.fields("step-started")
    assert validate["step"] == "validate"
    assert fresh == {"step": "import", "cursor": None, "resumed": False, "resumptions": 0, "done": 0, "total": None}
    worker.drain()


def test_the_event_of_a_step_that_is_resumed(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.drain()
    resumed = seen.fields("step-started")[2]
    assert resumed == {"step": "import", "cursor": 3, "resumed": True, "resumptions": 1, "done": 3, "total": 5}


def test_the_event_of_a_completed_step(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.drain()
    validate, imported, told = seen.fields("step-completed")
    assert (validate["step"], validate["advanced"], told["step"]) == ("validate", False, "tell")
    assert imported == {
        "step": "import", "cursor": 5, "resumed": True, "resumptions": 1, "done": 5, "total": 5, "advanced": True,
    }  # fmt: skip


def test_the_event_of_an_interrupted_step(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker)).delay()
    worker.deliver()
    assert seen.fields("step-interrupted") == [
        {
            "step": "import", "cursor": 3, "resumed": False, "resumptions": 1, "done": 3, "total": 5,
            "advanced": True, "reason": "stopping",
        }
    ]  # fmt: skip
    assert seen.kinds()[-2:] == ["step-interrupted", "interrupted"]
    worker.drain()


def test_a_retry_interrupts_the_current_step(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        for _ in self.step("one"):
            if not self.request.retries:
                raise self.retry(countdown=0)

    task(run).delay()
    worker.drain()
    assert [event["reason"] for event in seen.fields("step-interrupted")] == ["retry"]


def test_the_event_of_a_failed_step(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        self.step("call", lambda: None)
        for step in self.step("block", start=0):
            step.advance()
            raise ValueError("no")

    task(run, continuation_resume_errors_after_advancing=False).delay()
    worker.drain()
    assert seen.fields("step-failed") == [
        {
            "step": "block", "cursor": 1, "resumed": False, "resumptions": 0, "done": None, "total": None,
            "advanced": True, "error": {"type": "ValueError", "message": "no"},
        }
    ]  # fmt: skip
    assert "step-interrupted" not in seen.kinds()


def test_a_call_step_that_fails_is_reported_once(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        try:
            self.step("caught", [].pop)
        except IndexError:
            pass
        self.step("raised", {}.popitem)

    task(run, throws=(KeyError,)).delay()
    worker.drain()
    assert [event["step"] for event in seen.fields("step-failed")] == ["caught", "raised"]
    assert [event["step"] for event in seen.fields("step-completed")] == ["caught"]


@pytest.fixture
def recovered(app: Celery, worker: Any, task: Any) -> Any:
    """Lose a task, and recover it; return its result."""

    def body(self: Any) -> None:
        if not killed:
            killed.append(True)
            raise Killed

    killed: list[bool] = []

    def recover(sends_as: str | None) -> Any:
        store = open_store(app, "memory")
        result = task(body).delay()
        worker.deliver_killed()
        record = store.read(result.id)
        assert record is not None
        fence = record.fence._replace(owner="another-machine.7.7.abc/7.7/a")
        assert store.compare_and_swap(result.id, record.fence, Update(fence))
        store.renew("another-machine.7.7.abc", 0.0, "")
        Sweeper(app, store, new_worker(), lambda task_id: True, lambda: sends_as).sweep(lambda: True)
        assert store.read(result.id).fence == Fence(1, Status.QUEUED)  # type: ignore[union-attr]
        return result

    return recover


def test_the_event_of_a_recovery(worker: Any, recovered: Any, seen: Seen) -> None:
    result = recovered("sweeper@test")
    (event,) = (event for event in seen.all() if event["type"] == "continuation-recovered")
    assert set(event) == CELERYS
    assert (event["uuid"], event["name"]) == (result.id, worker.deliveries[0].headers["task"])
    assert event["hostname"] == "sweeper@test"
    worker.drain()


def test_no_event_of_a_recovery_by_a_worker_that_sends_none(worker: Any, recovered: Any, seen: Seen) -> None:
    recovered(None)
    assert "recovered" not in seen.kinds()
    worker.drain()


# -- all of them


def documented() -> dict[str, set[str]]:
    found = re.findall(r"^\| `continuation-([\w-]+)` \|[^|]*\|([^|]*)\|$", PAGE.read_text(), flags=re.M)
    return {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in found}


def test_every_event_is_documented_with_its_fields(worker: Any, task: Any, recovered: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        try:
            self.step("fails", [].pop)
        except IndexError:
            pass
        for item in self.iterate("import", range(5)):
            if item == 1:
                worker.stop()

    task(run).delay()
    worker.drain()
    recovered("sweeper@test")
    worker.drain()
    sent: dict[str, set[str]] = {}
    for event in seen.all():
        kind = event["type"].removeprefix("continuation-")
        assert sent.setdefault(kind, set(event) - CELERYS) == set(event) - CELERYS, f"not always the same: {kind}"
    assert sent == documented()
    explained = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE.read_text(), flags=re.M)))
    )
    assert set().union(*sent.values()) <= explained


def test_log_records_and_events_have_the_same_data(worker: Any, task: Any, seen: Seen, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "celery_continuations")
    task(rows(worker)).delay()
    worker.drain()
    logged = [(one.action.replace("_", "-"), one.data) for one in caplog.records if hasattr(one, "data")]
    sent = [
        (event["type"].removeprefix("continuation-"), {key: event[key] for key in event if key not in CELERYS})
        for event in seen.all()
    ]
    assert logged == sent


def test_each_event_has_a_signal_of_its_name(worker: Any, task: Any, seen: Seen) -> None:
    heard: list[str] = []
    receivers = {}
    for name in signals.__all__:
        receivers[name] = lambda _name=name, **kwargs: heard.append(_name.removeprefix("task_").replace("_", "-"))
        getattr(signals, name).connect(receivers[name])
    task(rows(worker)).delay()
    worker.drain()
    for name, receiver in receivers.items():
        getattr(signals, name).disconnect(receiver)
    assert heard == seen.kinds()


def test_they_leave_the_state_of_a_task_in_monitors_alone(worker: Any, task: Any, seen: Seen) -> None:
    state = State()
    result = task(rows(worker)).delay()
    worker.drain()
    state.event(
        {"type": "task-received", "uuid": result.id, "clock": 0, "timestamp": 0.0, "hostname": "a", "local_received": 0}
    )
    for event in seen.all():
        state.event(dict(event))
    assert state.tasks[result.id].state == states.RECEIVED


def test_a_cursor_that_is_not_json_is_reported_as_its_repr(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        for step in self.step("bytes", start=b"a"):
            step.set((1, b"b"))

    task(run).delay()
    worker.drain()
    assert seen.fields("step-started")[0]["cursor"] == "b'a'"
    assert seen.fields("step-completed")[0]["cursor"] == "(1, b'b')"
    assert events.plain(float("nan")) == "nan"


# -- when they are sent


@pytest.mark.parametrize(
    ("dispatcher", "wanted"),
    [
        (None, False),
        (SimpleNamespace(enabled=True, groups=set()), True),
        (SimpleNamespace(enabled=True, groups={"worker"}), False),
        (SimpleNamespace(enabled=True, groups={"worker", "task"}), True),
        (SimpleNamespace(enabled=False, groups=set()), False),
    ],
)
def test_they_are_wanted_where_events_of_tasks_are(dispatcher: Any, wanted: bool) -> None:
    assert events.are_wanted(dispatcher) is wanted


def test_none_are_sent_unless_wanted(worker: Any, task: Any, seen: Seen) -> None:
    worker.eventer = None
    task(rows(worker)).delay()
    worker.drain()
    assert seen.all() == []


def test_none_are_sent_of_a_task_that_sends_none(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker), send_events=False).delay()
    worker.drain()
    assert seen.all() == []


def test_none_are_sent_for_an_item(worker: Any, task: Any, seen: Seen) -> None:
    task(rows(worker, stop_after=-1, total=1000)).delay()
    worker.drain()
    assert len(seen.all()) == 6


# -- a broker that does not take them


@pytest.mark.parametrize("error", [OperationalError("away"), ConnectionResetError("cut"), AttributeError("no channel")])
def test_a_broker_that_takes_no_events_costs_one_warning_and_one_attempt(
    worker: Any, task: Any, seen: Seen, monkeypatch: Any, caplog: Any, error: Exception
) -> None:
    def fail(*args: Any) -> None:
        attempts.append(args)
        raise error

    attempts: list[Any] = []
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(events, "_send_by", fail)
    result = task(rows(worker)).delay()
    worker.drain()
    assert result.state == states.SUCCESS
    assert len(attempts) == 1
    clock.now += 11
    task(rows(worker, stop_after=-1)).delay()
    worker.drain()
    assert len(attempts) == 2
    warnings = [record for record in caplog.records if getattr(record, "action", "") == "events_failed"]
    assert [record.levelname for record in warnings] == ["WARNING"]


def test_an_error_of_our_own_is_not_swallowed(app: Celery, seen: Seen, monkeypatch: Any) -> None:
    monkeypatch.setattr(events, "_send_by", lambda *args: [].pop())
    with pytest.raises(IndexError):
        events.send(app, "a@test", "resumed")


def test_a_broker_that_is_away_is_not_waited_for(seen: Seen, caplog: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening
        away = Celery(broker=f"amqp://127.0.0.1:{taken.getsockname()[1]}", set_as_current=False)
        began = time.monotonic()
        events.send(away, "a@test", "resumed")
        assert time.monotonic() - began < 1
    assert "Events cannot be sent: OperationalError" in caplog.text


# -- gaps between checkpoints


class Clock:
    """The time of the execution and of its watch."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now = 1000.0
        for module in (checkpoints, reporting, triggers):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def work(self, *seconds: float) -> None:
        """Let time pass, and the watcher look."""
        for some in seconds:
            self.now += some
            for watch in watcher.running:
                watch.check()


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    monkeypatch.setattr(reporting, "_reported", set())
    while watcher._is_checking:
        time.sleep(0.001)  # the thread of an earlier test is about to end
    monkeypatch.setattr("celery_continuations.execution.triggers.native.start_thread", lambda look: None)
    yield Clock(monkeypatch)  # type: ignore[misc]
    watcher._is_checking = False


def slow(caplog: Any) -> list[dict[str, Any]]:
    return [record.data for record in caplog.records if getattr(record, "action", "") == "slow_checkpoint"]


def test_a_gap_longer_than_the_grace_period_is_warned_of_once(
    worker: Any, task: Any, clock: Clock, caplog: Any
) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("rows", range(4)):
            clock.work(2, 40 + item)

    result = task(run)
    for _ in range(2):
        result.delay()
        worker.drain()
    assert slow(caplog) == [{"step": "rows", "seconds": 40.0}]
    assert "made no checkpoint for 40.0 s, in or after step 'rows'" in caplog.text


def test_each_task_is_warned_of(worker: Any, task: Any, clock: Clock, caplog: Any) -> None:
    def run(self: Any) -> None:
        clock.work(2, 31)
        self.checkpoint()

    for _ in range(2):
        task(run).delay()
    worker.drain()
    assert slow(caplog) == [{"step": None, "seconds": 31.0}] * 2
    assert "before its first step" in caplog.text


def test_the_step_of_a_long_call_is_named_even_at_the_end(worker: Any, task: Any, clock: Clock, caplog: Any) -> None:
    def run(self: Any) -> None:
        self.step("long", clock.work, 2, 50)

    task(run).delay()
    worker.drain()
    assert slow(caplog) == [{"step": "long", "seconds": 50.0}]


@pytest.mark.parametrize(
    ("conf", "gap", "warned"),
    [
        ({}, 29, False),
        ({}, 31, True),
        ({"worker_soft_shutdown_timeout": 10.0}, 11, True),
        ({"worker_soft_shutdown_timeout": 60.0}, 31, False),
        ({"worker_soft_shutdown_timeout": 60.0, "continuation_grace_period": 20}, 21, True),
    ],
)
def test_the_grace_period(
    worker: Any, task: Any, app: Celery, clock: Clock, caplog: Any, conf: Any, gap: float, warned: bool
) -> None:
    def run(self: Any) -> None:
        self.step("long", clock.work, 2, gap)

    app.conf.update(conf)
    task(run).delay()
    worker.drain()
    assert bool(slow(caplog)) is warned


def test_the_longest_gap_is_kept_in_the_snapshot(worker: Any, task: Any, clock: Clock) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("rows", range(5)):
            clock.work(2, (3.04, 7.26, 5, 1.5, 1)[item])
            if item in (2, 3):
                worker.stop()

    result = task(run).delay()
    gaps = []
    for _ in range(2):
        worker.deliver()
        gaps.append(result.snapshot().gap)
    assert gaps == [7.3, 7.3]


def test_a_task_that_comes_to_checkpoints_keeps_no_gap(worker: Any, task: Any, clock: Clock) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("rows", range(20)):
            clock.work(0.5, 0.5)

    result = task(run).delay()
    worker.drain()
    assert result.snapshot().gap == 0.0
    assert '"gap"' not in result.snapshot().dumps()


def test_with_a_save_at_every_checkpoint_the_gap_is_the_time_between_two(worker: Any, task: Any, clock: Clock) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("rows", range(4)):
            clock.now += (1, 9, 2, 1)[item]
        gaps.append(result.snapshot().gap)

    gaps: list[float] = []
    result = task(run, continuation_checkpoint_interval=0).delay()
    worker.drain()
    assert gaps == [9.0]


def test_an_error_of_ours_leaves_a_failed_step(worker: Any, task: Any, seen: Seen) -> None:
    def run(self: Any) -> None:
        for _ in self.step("one"):
            raise ContinuationError("x")

    task(run).delay()
    worker.drain()
    assert seen.kinds() == ["step-started", "step-failed"]
