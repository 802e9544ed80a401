"""Tasks that free their worker while they wait for a delivery, a time or other tasks."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery, chord, group, states

from celery_continuations import (
    DeliveryError,
    InvalidStepError,
    StoreError,
    UnserializableValueError,
    WaitTimeout,
    children,
)
from celery_continuations import deliver as deliver_to
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.execution import (
    leaving,
    waiting,
)
from celery_continuations.process.identity import new_worker
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.testing import delivered
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed


@pytest.fixture
def approval(task: Any) -> Any:
    def body(self: Any, timeout: Any = None, **default: Any) -> Any:
        runs.append("run")
        self.step("before", runs.append, "before")
        answer = self.wait_for("approval", timeout=timeout, **default)
        self.step("after", runs.append, "after")
        return answer

    runs: list[str] = []
    made = task(body)
    made.runs = runs
    return made


# -- wait_for


def test_a_task_frees_its_worker_and_continues_with_the_delivery(worker: Any, approval: Any, record: Any) -> None:
    result = approval.apply_async()
    worker.deliver()
    assert worker.queued() == 0, "no message is held"
    assert record(result.id).fence == Fence(1, Status.WAITING)
    assert record(result.id).due is None
    assert result.waiting == Waiting("delivery", None, "approval")
    assert result.state == states.RETRY
    assert str(result.info) == "Interrupted at approval (waiting for 'approval')"
    result.deliver("approval", {"by": ("ann", 7)})
    assert worker.queued() == 1
    worker.drain()
    assert result.get() == {"by": ["ann", 7]}  # as the result backend's JSON has it
    assert approval.runs == ["run", "before", "run", "after"]


def test_a_wait_shows_no_moment_and_no_ids_of_its_own(
    worker: Any, task: Any, approval: Any, parent: Any, caplog: Any
) -> None:
    def sleeper(self: Any) -> None:
        self.sleep("nap", 60)

    caplog.set_level("INFO")
    for made, args, shown in (
        (approval, (60,), "approval (waiting for 'approval')"),
        (task(sleeper), (), "nap (sleeping in 'nap')"),
        (parent, ([1, 2],), "doubles (waiting for the results of 'doubles')"),
    ):
        result = made.apply_async(args)
        worker.deliver()
        assert str(result.info) == f"Interrupted at {shown}"
    worker.drain()
    assert any(record.getMessage().endswith("step doubles resumed") for record in caplog.records)


def test_what_comes_before_the_wait_is_kept(worker: Any, task: Any, app: Celery) -> None:
    def body(self: Any) -> Any:
        deliver_to(self.request.id, "approval", "early", app=app)
        return self.wait_for("approval")

    result = task(body).apply_async()
    worker.deliver()
    assert result.get() == "early"


def test_what_comes_before_the_task_has_started_is_kept(worker: Any, approval: Any, record: Any) -> None:
    result = approval.apply_async()
    result.deliver("approval", "earlier")
    assert record(result.id).fence == Fence(0, Status.QUEUED)
    worker.deliver()
    assert result.get() == "earlier"
    assert approval.runs == ["run", "before", "after"]
    assert record(result.id).fence == Fence(1, Status.DONE)


def test_a_task_that_was_delivered_to_before_it_started_can_be_recovered(
    worker: Any, approval: Any, record: Any
) -> None:
    result = approval.apply_async()
    result.deliver("other", 1)
    worker.deliver()
    assert record(result.id).message, "the record was older than the message, and has it now"
    result.deliver("approval", 2)
    worker.drain()
    assert result.get() == 2


def test_the_same_again_changes_nothing_and_something_else_is_refused(worker: Any, approval: Any) -> None:
    result = approval.apply_async()
    worker.deliver()
    result.deliver("approval", "yes")
    result.deliver("approval", "yes")
    with pytest.raises(DeliveryError, match=f"task {result.id}: something else was delivered to 'approval' before"):
        result.deliver("approval", "no")
    assert worker.queued() == 1, "woken once"
    worker.drain()
    assert result.get() == "yes"
    with pytest.raises(DeliveryError, match="it has ended"):
        result.deliver("approval", "yes")


def test_a_payload_of_another_type_is_something_else(worker: Any, approval: Any) -> None:
    result = approval.apply_async()
    result.deliver("approval", 1)
    with pytest.raises(DeliveryError):
        result.deliver("approval", True)


def test_a_delivery_to_a_task_that_ended_long_ago_is_refused(worker: Any, approval: Any, store: Any) -> None:
    result = approval.apply_async()
    result.deliver("approval", 1)
    worker.deliver()
    fence = store.read(result.id).fence
    assert store.compare_and_swap(result.id, fence, Update(fence, expires_in=0))
    with pytest.raises(DeliveryError, match="it has ended: SUCCESS"):
        result.deliver("approval", 1)


@pytest.mark.parametrize("name", ["", 7, None])
def test_a_name_that_is_none(approval: Any, name: Any) -> None:
    with pytest.raises(InvalidStepError, match="must be a non-empty str"):
        approval.apply_async().deliver(name, 1)


def test_a_payload_that_cannot_be_saved(approval: Any, worker: Any) -> None:
    with pytest.raises(UnserializableValueError, match="the payload for 'approval'"):
        approval.apply_async().deliver("approval", object())


def test_a_payload_that_is_too_large(app: Celery, approval: Any) -> None:
    app.conf.continuation_max_snapshot = 100
    result = approval.apply_async()
    with pytest.raises(
        UnserializableValueError, match="'approval' is too large: it is 102 bytes, .* allows 100; deliver"
    ):
        result.deliver("approval", "x" * 100)
    result.deliver("another", "x" * 70)
    with pytest.raises(DeliveryError, match="'approval' is too large: 1.. bytes with all that was delivered before"):
        result.deliver("approval", "x" * 70)


def test_nothing_in_time_returns_the_default(worker: Any, approval: Any, later: Any, record: Any) -> None:
    result = approval.apply_async((60,), {"default": "timed out"})
    worker.deliver()
    assert record(result.id).due == pytest.approx(time.time() + 60, abs=5)
    later(59)
    assert worker.queued() == 0
    later(2)
    worker.drain()
    assert result.get() == "timed out"


def test_nothing_in_time_raises_without_a_default(worker: Any, approval: Any, later: Any) -> None:
    result = approval.apply_async((60,))
    worker.deliver()
    later(61)
    worker.drain()
    with pytest.raises(WaitTimeout, match="nothing was delivered to 'approval' in time"):
        result.get()


def test_the_timeout_counts_from_the_first_call(worker: Any, approval: Any, later: Any) -> None:
    result = approval.apply_async((60,), {"default": "timed out"})
    worker.deliver()
    later(30)
    result.pause()
    result.resume()
    worker.drain()
    later(31)
    worker.drain()
    assert result.get() == "timed out"


def test_a_wait_that_has_timed_out_takes_nothing_more(worker: Any, task: Any, later: Any) -> None:
    def body(self: Any) -> Any:
        first = self.wait_for("first", timeout=1, default="late")
        return first, self.wait_for("second")

    result = task(body).apply_async()
    worker.deliver()
    later(2)
    worker.drain()
    with pytest.raises(DeliveryError, match="the wait 'first' has timed out"):
        result.deliver("first", 1)
    result.deliver("second", 2)
    worker.drain()
    assert result.get() == ["late", 2]


def test_what_comes_while_the_time_out_is_on_its_way_counts(worker: Any, approval: Any, later: Any) -> None:
    result = approval.apply_async((60,))
    worker.deliver()
    later(61)
    result.deliver("approval", "just in time")
    worker.drain()
    assert result.get() == "just in time"


def test_several_waits(worker: Any, task: Any) -> None:
    def body(self: Any) -> Any:
        return [self.wait_for(name) for name in ("one", "two", "three")]

    result = task(body).apply_async()
    worker.deliver()
    result.deliver("three", 3)
    assert worker.queued() == 0, "it does not wait for that yet"
    result.deliver("one", 1)
    worker.drain()
    assert result.waiting.key == "two"
    result.deliver("two", 2)
    worker.drain()
    assert result.get() == [1, 2, 3]


def test_without_a_store_waiting_is_refused_with_the_reason(worker: Any, task: Any) -> None:
    def body(self: Any) -> None:
        self.wait_for("approval")

    result = task(body, continuation_store="message").apply_async()
    worker.deliver()
    with pytest.raises(StoreError, match="a message cannot be woken; set continuation_store"):
        result.get()
    with pytest.raises(StoreError, match="cannot be reached"):
        result.deliver("approval", 1)


def test_a_wait_in_a_chords_header_that_is_longer_than_results_last(
    worker: Any, app: Celery, approval: Any, caplog: Any
) -> None:
    app.conf.result_expires = 3600
    total = app.task(name="total")(totalled)
    chord([approval.s(), approval.s(timeout=60, default=None)], total.s()).apply_async()
    worker.deliver()
    worker.deliver()
    (record,) = [one for one in caplog.records if getattr(one, "action", "") == "short_results"]
    assert "waiting for 'approval' for longer than result_expires = 3600" in record.getMessage()


def totalled(values: Any) -> Any:
    return values


# -- sleep


@pytest.mark.parametrize(
    "until",
    [90, timedelta(seconds=90), lambda: datetime.now(timezone.utc) + timedelta(seconds=90)],
    ids=["seconds", "timedelta", "datetime"],
)
def test_sleep_ends_on_time(worker: Any, task: Any, later: Any, until: Any) -> None:
    moment = until() if callable(until) else until

    def body(self: Any) -> str:
        self.sleep("nap", moment)
        return "awake"

    result = task(body).apply_async()
    worker.deliver()
    assert result.waiting.kind == "time"
    later(80)
    assert worker.queued() == 0
    later(11)
    worker.drain()
    assert result.get() == "awake"


def test_a_naive_datetime_is_of_the_apps_timezone(worker: Any, app: Celery, task: Any) -> None:
    app.conf.timezone = "Asia/Tokyo"

    def body(self: Any) -> None:
        self.sleep("nap", datetime(2100, 1, 1))

    result = task(body).apply_async()
    worker.deliver()
    assert result.waiting.until == datetime(2099, 12, 31, 15, tzinfo=timezone.utc).timestamp()


def test_the_moment_is_fixed_at_the_first_call(worker: Any, task: Any, later: Any) -> None:
    def body(self: Any) -> str:
        self.sleep("nap", 60)
        return "awake"

    result = task(body).apply_async()
    worker.deliver()
    until = result.waiting.until
    later(30)
    result.pause()
    result.resume()
    worker.drain()
    assert result.waiting.until == until


@pytest.mark.parametrize("seconds", [-1, "60", True, None])
def test_bad_seconds(task: Any, seconds: Any) -> None:
    def body(self: Any) -> None:
        self.sleep("nap", seconds)

    with pytest.raises(InvalidStepError, match="takes seconds, 0 or more"):
        task(body)()


# -- wait_until, resume_in


def test_wait_until_asks_again_and_again(worker: Any, task: Any, later: Any) -> None:
    asked: list[int] = []

    def body(self: Any) -> Any:
        return self.wait_until("ready", lambda: asked.append(1) or (len(asked) == 3 and "ready"), every=10)

    result = task(body).apply_async()
    worker.deliver()
    for count in (1, 2):
        assert len(asked) == count
        assert worker.queued() == 0
        later(11)
        worker.drain()
    assert (result.get(), len(asked)) == ("ready", 3)


def test_wait_until_gives_up(worker: Any, task: Any, later: Any) -> None:
    def body(self: Any) -> Any:
        self.wait_until("ready", lambda: False, every=timedelta(seconds=10), timeout=15)

    result = task(body).apply_async()
    worker.deliver()
    later(11)
    worker.drain()
    later(5)
    worker.drain()
    with pytest.raises(WaitTimeout, match="'ready' did not come true in time"):
        result.get()


def test_resume_in_comes_back_at_the_same_cursor(worker: Any, task: Any, later: Any) -> None:
    calls: list[int] = []

    def body(self: Any) -> int:
        for page in self.step("pages", start=0):
            while page.cursor < 4:
                calls.append(page.cursor)
                if page.cursor == 2 and calls.count(2) == 1:
                    self.resume_in(30)
                page.advance()
        return int(self.request.retries)

    result = task(body).apply_async()
    worker.deliver()
    assert str(result.info) == "Interrupted at pages:2 (resuming in 30 s)"
    assert worker.queued() == 0
    later(31)
    worker.drain()
    assert (result.get(), calls) == (0, [0, 1, 2, 2, 3])


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [
        (lambda now: timedelta(minutes=1), 60),
        (lambda now: datetime.fromtimestamp(now + 60, timezone.utc), 60),
        (lambda now: datetime.fromtimestamp(now + 60, timezone(timedelta(hours=5))), 60),
        (lambda now: datetime.fromtimestamp(now + 60, timezone.utc).replace(tzinfo=None), 60),
        (lambda now: datetime(2020, 1, 1, tzinfo=timezone.utc), 0),
        (lambda now: 0, 0),
    ],
    ids=["timedelta", "aware", "elsewhere", "naive", "past", "zero"],
)
def test_resume_in_takes_what_a_sleep_takes(worker: Any, task: Any, later: Any, delay: Any, seconds: float) -> None:
    moment = delay(time.time())
    runs: list[str] = []

    def body(self: Any) -> None:
        for _ in self.step("page"):
            runs.append("run")
            if len(runs) == 1:
                self.resume_in(moment)

    task(body).apply_async()
    worker.deliver()
    if seconds:
        later(seconds - 5)
        worker.drain()
        assert runs == ["run"]
    later(10)
    worker.drain()
    assert runs == ["run", "run"]


WAITS: dict[str, Any] = {
    "until": lambda self, value: self.sleep("one", value),
    "delay": lambda self, value: self.resume_in(value),
    "timeout": lambda self, value: self.wait_for("one", timeout=value),
    "every": lambda self, value: self.wait_until("one", lambda: 0, every=value),
    "timeout of wait_until": lambda self, value: self.wait_until("one", lambda: 0, every=1, timeout=value),
}

NO_TIMES = [
    float("inf"), float("-inf"), float("nan"), -1, -0.001, 1e12, 10**400, 1e308, timedelta(seconds=-1), timedelta.max,
    "60", True, b"1", [1], datetime.now, Decimal(1),
]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("value", NO_TIMES, ids=lambda value: repr(value)[:20])
def test_what_is_no_time_is_refused_by_name(worker: Any, task: Any, record: Any, wait: str, value: Any) -> None:
    def body(self: Any) -> None:
        for _ in self.step("page") if wait == "delay" else [0]:
            WAITS[wait](self, value)

    result = task(body).apply_async()
    worker.drain()
    with pytest.raises(InvalidStepError, match=f"{wait.partition(' ')[0]} = .* is not allowed; it takes seconds, 0 or"):
        result.get()
    assert record(result.id).fence.status == Status.FAILED


@pytest.mark.parametrize("wait", ["until", "delay"])
@pytest.mark.parametrize("zone", [None, timezone.utc, timezone(timedelta(hours=-14))])
def test_a_date_that_is_too_far_away_is_refused(worker: Any, task: Any, wait: str, zone: Any) -> None:
    def body(self: Any) -> None:
        WAITS[wait](self, datetime.max.replace(tzinfo=zone))

    result = task(body).apply_async()
    worker.drain()
    with pytest.raises(InvalidStepError, match=f"{wait} = .* is not allowed; it takes a datetime within the next 100"):
        result.get()


def test_resume_in_outside_of_a_step(task: Any) -> None:
    def body(self: Any) -> None:
        self.resume_in(1)

    with pytest.raises(InvalidStepError, match="outside of a step"):
        task(body)()


def test_waits_do_not_count_as_resumptions(worker: Any, task: Any) -> None:
    def body(self: Any) -> Any:
        return [self.wait_for(name) for name in ("one", "two", "three")]

    result = task(body, continuation_max_resumptions=0).apply_async()
    for name in ("one", "two", "three"):
        worker.drain()
        result.deliver(name, name)
    worker.drain()
    assert result.get() == ["one", "two", "three"]


# -- wait_for_results


@pytest.fixture
def parent(task: Any, double: Any) -> Any:
    def body(self: Any, numbers: Any, shape: str = "list") -> Any:
        shapes: dict[str, Any] = {"list": list, "group": group, "one": lambda few: next(iter(few))}
        return self.wait_for_results("doubles", shapes[shape](double.s(one) for one in numbers))

    return task(body)


@pytest.mark.parametrize(("shape", "expected"), [("list", [2, 4, 6]), ("group", [2, 4, 6]), ("one", 2)])
def test_the_results_of_other_tasks(worker: Any, parent: Any, double: Any, shape: str, expected: Any) -> None:
    result = parent.apply_async(([1, 2, 3], shape))
    worker.deliver()
    assert result.waiting.kind == "result"
    worker.drain()
    assert result.get() == expected
    assert sorted(double.calls) == ([1] if shape == "one" else [1, 2, 3])


def test_a_failed_child_raises_its_error_here_once_and_for_all(worker: Any, parent: Any, double: Any) -> None:
    result = parent.apply_async(([1, -2, 3],))
    worker.drain()
    with pytest.raises(ValueError, match="-2 is negative"):
        result.get()
    assert sorted(double.calls) == [-2, 1, 3], "none was started again"


def test_children_may_be_continuable(worker: Any, app: Celery, task: Any, approval: Any) -> None:
    def body(self: Any) -> Any:
        return self.wait_for_results("children", [approval.s(), approval.s()])

    result = task(body).apply_async()
    worker.drain()
    cursor = Snapshot.loads(result.record().snapshot).current[1]
    first, second = (approval.AsyncResult(children._Begun.of(cursor).id_of(number)) for number in range(2))
    second.deliver("approval", 2)
    worker.drain()
    assert result.state == states.RETRY
    first.deliver("approval", 1)
    worker.drain()
    assert result.get() == [1, 2]


def test_a_parent_that_is_killed_starts_the_same_children_again(
    worker: Any, parent: Any, double: Any, monkeypatch: Any, store: Any
) -> None:
    start = children._Children.start

    def killed(self: Any, begun: Any, step: Any) -> None:
        start(self, begun, step)
        raise Killed

    monkeypatch.setattr(children._Children, "start", killed)
    result = parent.apply_async(([1, 2],))
    worker.deliver_killed()
    monkeypatch.undo()
    name, cursor = Snapshot.loads(store.read(result.id).snapshot).current
    begun = children._Begun.of(cursor)
    assert (name, begun.started) == ("doubles", 0), "what their ids are derived from is saved first"
    ids = [begun.id_of(number) for number in range(2)]
    lose(store, result.id)
    Sweeper(worker.app, store, new_worker(), lambda task_id: True).sweep(lambda: True)
    worker.drain()
    assert result.get() == [2, 4]
    assert [worker.app.AsyncResult(one).get() for one in ids] == [2, 4]
    assert sorted(double.calls) == [1, 1, 2, 2], "a plain task has no record that would keep it from running twice"


def test_a_child_that_has_not_told_of_its_end_is_looked_at_after_a_minute(
    worker: Any, parent: Any, double: Any, later: Any, monkeypatch: Any
) -> None:
    result = parent.apply_async(([2],))
    worker.deliver()
    assert result.waiting.until == pytest.approx(time.time() + 60, abs=1)
    with monkeypatch.context() as patch:
        patch.setattr(children.control, "wake", lambda *args, **kwargs: None)
        worker.drain()
    assert result.waiting is not None
    later(61)
    worker.drain()
    assert result.get() == [4]


def lose(store: Any, task_id: str) -> None:
    """The worker that had the task is gone."""
    record = store.read(task_id)
    assert store.compare_and_swap(
        task_id, record.fence, Update(record.fence._replace(owner="another-machine.7.7.abc/7.7/a"))
    )
    store.renew("another-machine.7.7.abc", 0.0)


@pytest.mark.parametrize("bad", [7, ["double"], [None]])
def test_values_that_are_not_signatures_are_refused(task: Any, bad: Any) -> None:
    def body(self: Any) -> None:
        self.wait_for_results("doubles", bad)

    with pytest.raises((InvalidStepError, TypeError)):
        task(body)()


# -- without a worker


def test_direct_calls_do_not_wait(task: Any, double: Any) -> None:
    def body(self: Any) -> Any:
        self.sleep("nap", timedelta(days=30))
        return [
            self.wait_for("given", timeout=5),
            self.wait_for("absent", default="timed out"),
            self.wait_for_results("doubles", [double.s(1), double.s(2)]),
        ]

    made = task(body)
    with delivered(given="payload"):
        assert made() == ["payload", "timed out", [2, 4]]
        assert made.apply().get() == ["payload", "timed out", [2, 4]]


def test_a_direct_call_without_a_delivery_times_out(task: Any) -> None:
    def body(self: Any) -> Any:
        return self.wait_for("approval")

    with pytest.raises(WaitTimeout):
        task(body)()


# -- an unavailable store


def away(*args: Any, **kwargs: Any) -> Any:
    raise StoreError("memory", "away")


def test_a_store_that_is_away_when_the_task_leaves_has_it_come_back_and_wait_then(
    worker: Any, approval: Any, store: Any, monkeypatch: Any
) -> None:
    result = approval.apply_async()
    wait = OwnedRecord.wait
    monkeypatch.setattr(OwnedRecord, "wait", away)
    worker.deliver()
    assert result.state == states.RETRY
    message = worker.deliver_nothing()
    assert message.headers["eta"], "it is tried again, later"
    assert "approval" in message.body[2]["continuation"], "the message carries what the store did not take"
    monkeypatch.setattr(OwnedRecord, "wait", wait)
    worker.execute(message)
    assert store.read(result.id).fence.status == Status.WAITING
    result.deliver("approval", 1)
    worker.drain()
    assert result.get() == 1


def test_a_store_that_is_away_when_the_task_looks_has_it_come_back(
    worker: Any, approval: Any, store: Any, monkeypatch: Any, later: Any
) -> None:
    result = approval.apply_async()
    read = store.read

    def once(task_id: str) -> Any:
        monkeypatch.setattr(store, "read", read)
        raise StoreError("memory", "away")

    is_over = waiting.Waiter.is_over
    monkeypatch.setattr(waiting.Waiter, "is_over", lambda *_: monkeypatch.setattr(store, "read", once))
    worker.deliver()
    monkeypatch.setattr(waiting.Waiter, "is_over", is_over)
    assert result.waiting.kind == "time"
    later(6)
    worker.drain()
    assert result.waiting.kind == "delivery"


def test_a_child_that_has_ended_is_found_at_the_next_look_if_the_store_is_away(
    worker: Any, parent: Any, double: Any, monkeypatch: Any, later: Any
) -> None:
    result = parent.apply_async(([2],), {"shape": "one"})
    monkeypatch.setattr(leaving.Leaving, "_is_result_there", lambda *_: True)
    monkeypatch.setattr(leaving.commands, "wake", away)
    worker.deliver()
    monkeypatch.undo()
    assert result.waiting is not None, "it still waits, because it could not end its own wait"


def test_the_names_that_a_task_waits_for_are_shown_only_while_it_waits(worker: Any, approval: Any) -> None:
    result = approval.apply_async()
    worker.deliver()
    assert result.waiting.key == "approval"
    result.deliver("approval", 1)
    assert result.waiting is None, "its message is in the queue"


def test_a_sleep_that_was_refused_is_refused_again(worker: Any, task: Any) -> None:
    def body(self: Any) -> None:
        self.step("before", int)
        self.sleep("night", "long")

    result = task(body, continuation_resume_error_countdown=0).apply_async()
    worker.drain()
    with pytest.raises(Exception, match="until"):
        result.get()


def test_children_are_not_started_while_their_ids_cannot_be_saved(
    worker: Any, parent: Any, double: Any, monkeypatch: Any, later: Any
) -> None:
    result = parent.apply_async(([1, 2],))
    save = OwnedRecord.save
    monkeypatch.setattr(OwnedRecord, "save", away)
    worker.deliver()
    assert double.calls == []
    monkeypatch.setattr(OwnedRecord, "save", save)
    later(6)
    worker.drain()
    assert (result.get(), sorted(double.calls)) == ([2, 4], [1, 2])
