"""Deliveries and operator commands, in each state of the task."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chord, states
from celery.exceptions import TaskRevokedError
from kombu.exceptions import OperationalError

from celery_continuations import DeliveryError, StoreError, control
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.process.identity import new_worker
from celery_continuations.protocol import retrying
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.requests import Request
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Killed, take_over


@pytest.fixture
def store(app: Celery) -> Any:
    return open_store(app, "memory")


@pytest.fixture
def sweep(app: Celery, store: Any) -> Callable[[], Any]:
    sweeper = Sweeper(app, store, new_worker(), lambda task_id: True)
    return lambda: sweeper.sweep(lambda: True)


@pytest.fixture
def loop(task: Any) -> Any:
    """A task of four items, which does ``act`` after the second, the first time."""

    def body(self: Any) -> str:
        for item in self.iterate("loop", range(4)):
            done.append(item)
            if item == 1 and done.count(1) == 1 and made.act is not None:
                made.act()
        self.step("after", done.append, "after")
        return "end"

    done: list[Any] = []
    made = task(body, continuation_checkpoint_interval=0)
    made.done = done
    made.act = None
    return made


WHOLE = [0, 1, 2, 3, "after"]


# -- pause, resume


def test_a_running_task_pauses_at_its_next_checkpoint(worker: Any, loop: Any, record: Any) -> None:
    loop.act = lambda: result.pause()
    result = loop.apply_async()
    worker.deliver()
    assert loop.done == [0, 1]
    assert worker.queued() == 0
    assert record(result.id).fence == Fence(1, Status.PAUSED)
    assert str(result.info) == "Interrupted at loop:2, 50 % (paused)"
    result.pause()
    result.resume()
    worker.drain()
    assert (result.get(), loop.done) == ("end", WHOLE)


def test_a_pause_that_is_taken_back_before_it_was_noticed(worker: Any, loop: Any) -> None:
    def both() -> None:
        result.pause()
        result.resume()

    loop.act = both
    result = loop.apply_async()
    worker.deliver()
    assert (result.get(), loop.done) == ("end", WHOLE)


def test_a_queued_task_is_paused(worker: Any, loop: Any, record: Any) -> None:
    loop.act = lambda: worker.stop()
    result = loop.apply_async()
    worker.deliver()
    result.pause()
    worker.drain()
    assert loop.done == [0, 1], "its message has ended without touching anything"
    result.resume()
    worker.drain()
    assert (result.get(), loop.done) == ("end", WHOLE)


@pytest.mark.parametrize("comes_first", [True, False], ids=["then its message comes", "then it is resumed"])
def test_a_task_is_paused_before_it_has_started(worker: Any, loop: Any, record: Any, comes_first: bool) -> None:
    result = loop.apply_async()
    result.pause()
    if comes_first:
        worker.drain()
        assert loop.done == []
        assert record(result.id).fence == Fence(0, Status.PAUSED, message_saved=True)
    result.resume()
    worker.drain()
    assert (result.get(), loop.done) == ("end", WHOLE)


def test_a_delivery_to_a_task_that_was_paused_before_it_started_leaves_its_times_as_they_are(
    worker: Any, loop: Any, store: Any, monkeypatch: Any
) -> None:
    result = loop.apply_async()
    result.pause()
    worker.drain()  # its message is kept in the record
    result.resume()
    before = store.read(result.id)
    written: list[Update] = []
    swap = store.compare_and_swap
    monkeypatch.setattr(store, "compare_and_swap", lambda *args: written.append(args[2]) or swap(*args))
    result.deliver("approval", "yes")
    assert [update.expires_in for update in written] == [None], "nothing unfinished expires"
    assert store.read(result.id).due == before.due is not None


def test_a_delivery_to_a_task_that_never_starts_expires(app: Celery, loop: Any, store: Any) -> None:
    clock = [1000.0]
    store._clock = lambda: clock[0]
    result = loop.AsyncResult("never")
    result.deliver("approval", "yes")
    result.deliver("another", "yes")
    assert store.read("never") is not None
    clock[0] += 31 * 86400
    assert store.read("never") is None


def test_a_process_that_dies_before_it_has_claimed_leaves_its_message_to_celery(
    worker: Any, app: Celery, loop: Any, store: Any
) -> None:
    """A record that a delivery has made has no message, by which the task could go on."""
    result = loop.apply_async()
    result.deliver("approval", "yes")
    sweeper = Sweeper(app, store, new_worker(), lambda task_id: True)
    maintenance = SimpleNamespace(sweeper_of=lambda store: sweeper)
    delivery = worker.deliver_nothing()
    lost = Request(
        delivery.message, on_ack=delivery.on_ack, on_reject=delivery.on_reject, app=app, task=loop, hostname="unit@test"
    )
    lost._maintenance = maintenance
    assert not lost._recovered()
    assert (delivery.end, worker.queued()) == (None, 0)


def test_a_waiting_task_is_paused_and_waits_again(worker: Any, task: Any, record: Any) -> None:
    def body(self: Any) -> Any:
        return self.wait_for("approval")

    result = task(body).apply_async()
    worker.deliver()
    result.pause()
    result.deliver("approval", "yes")
    assert (worker.queued(), record(result.id).fence.status) == (0, Status.PAUSED)
    result.resume()
    worker.drain()
    assert result.get() == "yes"


def test_a_pause_meets_an_interruption(worker: Any, loop: Any, record: Any, monkeypatch: Any, store: Any) -> None:
    """The command comes between the last save and the write that leaves the record to a message."""

    def act() -> None:
        worker.stop()
        swap = store.compare_and_swap

        def late(task_id: str, expected: Any, update: Update) -> Any:
            if update.fence.status == Status.QUEUED:
                monkeypatch.undo()
                result.pause()
            return swap(task_id, expected, update)

        monkeypatch.setattr(store, "compare_and_swap", late)

    loop.act = act
    result = loop.apply_async()
    worker.deliver()
    assert (worker.queued(), record(result.id).fence) == (0, Fence(1, Status.PAUSED))
    result.resume()
    worker.drain()
    assert (result.get(), loop.done) == ("end", WHOLE)


@pytest.mark.parametrize("command", ["pause", "cancel"])
def test_a_command_that_meets_the_end_is_too_late(
    worker: Any, loop: Any, monkeypatch: Any, store: Any, command: str
) -> None:
    swap = store.compare_and_swap

    def late(task_id: str, expected: Any, update: Update) -> Any:
        if update.fence.status == Status.RETURNED:
            monkeypatch.undo()
            getattr(result, command)()
        return swap(task_id, expected, update)

    monkeypatch.setattr(store, "compare_and_swap", late)
    result = loop.apply_async()
    worker.deliver()
    assert result.get() == "end"
    assert store.read(result.id).fence == Fence(1, Status.DONE)
    with pytest.raises(DeliveryError, match="it has ended"):
        getattr(result, command)()


def test_a_task_that_was_to_pause_and_whose_worker_was_killed_is_paused(
    worker: Any, loop: Any, store: Any, sweep: Any
) -> None:
    result = killed_after(loop, "pause", worker, store)
    sweep()
    assert (worker.queued(), store.read(result.id).fence) == (0, Fence(1, Status.PAUSED))
    result.resume()
    worker.drain()
    assert (result.get(), loop.done) == ("end", [0, 1, 1, 2, 3, "after"])


def killed_after(loop: Any, command: str, worker: Any, store: Any) -> Any:
    """Start the task; its worker is killed before it finds the command."""

    def act() -> None:
        getattr(result, command)()
        raise Killed

    loop.act = act
    result = loop.apply_async()
    worker.deliver_killed()
    lose(store, result.id)
    return result


def totalled(values: Any) -> Any:
    return values


def lose(store: Any, task_id: str) -> None:
    record = store.read(task_id)
    fence = record.fence._replace(owner="another-machine.7.7.abc/7.7/a")
    assert store.compare_and_swap(task_id, record.fence, Update(fence))
    store.renew("another-machine.7.7.abc", 0.0)


# -- cancel


def test_a_running_task_is_cancelled_at_its_next_checkpoint(
    worker: Any, loop: Any, app: Celery, record: Any, task: Any
) -> None:
    called: list[Any] = []

    def linked(*args: Any) -> None:
        called.append(args)

    link = app.task(name="linked")(linked)
    loop.act = lambda: result.cancel()
    result = loop.apply_async(link=link.s(), link_error=link.s())
    worker.drain()
    assert loop.done == [0, 1]
    assert result.state == states.REVOKED
    with pytest.raises(TaskRevokedError):
        result.get()
    assert called == []
    kept = record(result.id)
    assert (kept.fence, kept.snapshot, kept.message) == (Fence(1, Status.CANCELLED), "", "")
    result.cancel()
    assert result.snapshot() is None
    with pytest.raises(DeliveryError, match="it was cancelled"):
        result.deliver("x", 1)
    with pytest.raises(DeliveryError, match="it was cancelled"):
        result.resume()


@pytest.mark.parametrize("place", ["fresh", "queued", "waiting", "paused"])
def test_a_task_that_is_not_running_is_cancelled_at_once(worker: Any, task: Any, record: Any, place: str) -> None:
    def body(self: Any) -> None:
        done.append("run")
        if place == "queued":
            worker.stop()
        self.step("one", done.append, 1)
        self.wait_for("approval")

    done: list[Any] = []
    result = task(body).apply_async()
    if place != "fresh":
        worker.deliver()
    if place == "paused":
        result.pause()
    result.cancel()
    assert result.state == states.REVOKED
    count = len(done)
    worker.drain()
    assert len(done) == count, "a remaining message ends"
    assert result.state == states.REVOKED
    assert record(result.id).fence.status == Status.CANCELLED


def test_a_chord_hears_of_a_member_that_is_cancelled(worker: Any, app: Celery, task: Any) -> None:
    def body(self: Any) -> None:
        self.wait_for("approval")

    told: list[Any] = []
    app.backend.on_chord_part_return = lambda request, state, result, **_: told.append((request.id, state))
    total = app.task(name="total")(totalled)
    member = task(body)
    chord([member.s(), member.s()], total.s()).apply_async()
    worker.deliver()
    result = member.AsyncResult(worker.deliveries[0].headers["id"])
    result.cancel()
    assert told == [(result.id, states.REVOKED)]


def test_a_task_that_was_to_be_cancelled_and_whose_worker_was_killed_is(
    worker: Any, loop: Any, store: Any, sweep: Any
) -> None:
    result = killed_after(loop, "cancel", worker, store)
    sweep()
    assert (worker.queued(), result.state) == (0, states.REVOKED)
    assert store.read(result.id).fence == Fence(1, Status.CANCELLED)


def test_a_cancelled_execution_that_was_succeeded_touches_nothing(worker: Any, loop: Any, app: Celery) -> None:
    loop.act = lambda: take_over(app, result.id)
    result = loop.apply_async()
    worker.deliver()
    assert result.state == states.PENDING


def test_a_task_that_is_cancelled_while_its_interruption_is_stored_ends_revoked(
    worker: Any, loop: Any, app: Celery, monkeypatch: Any, caplog: Any
) -> None:
    """The record is queued already, and Celery's RETRY comes after the REVOKED."""
    store_result = app.backend.store_result

    def late(task_id: str, value: Any, state: str, **kwargs: Any) -> Any:
        if state == states.RETRY:
            result.cancel()
        return store_result(task_id, value, state, **kwargs)

    monkeypatch.setattr(app.backend, "store_result", late)
    loop.act = worker.stop
    caplog.set_level("INFO")
    result = loop.apply_async()
    worker.deliver()
    assert result.state == states.REVOKED
    worker.drain()
    assert (loop.done, result.state, caplog.text.count(f"Task {result.id} cancelled")) == ([0, 1], states.REVOKED, 1)


# -- retry


@pytest.fixture
def failing(task: Any) -> Any:
    def body(self: Any) -> str:
        for name in ("one", "two", "three"):
            self.step(name, act, name)
        return "end"

    def act(name: str) -> str:
        calls.append(name)
        if name == "two" and made.is_broken:
            raise ValueError("broken")
        return name

    calls: list[str] = []
    made = task(body, continuation_resume_errors_after_advancing=False)
    made.calls = calls
    made.is_broken = True
    return made


def test_a_failed_task_continues_from_its_failed_step(worker: Any, failing: Any, record: Any) -> None:
    result = failing.apply_async()
    worker.drain()
    assert result.state == states.FAILURE
    failing.is_broken = False
    result.retry()
    assert result.state == states.PENDING
    assert record(result.id).fence == Fence(1, Status.QUEUED)
    worker.drain()
    assert (result.get(), failing.calls) == ("end", ["one", "two", "two", "three"])


def test_a_failed_task_continues_from_a_named_step(worker: Any, failing: Any) -> None:
    result = failing.apply_async()
    worker.drain()
    failing.is_broken = False
    result.retry("one")
    worker.drain()
    assert failing.calls == ["one", "two", "one", "two", "three"]


def test_a_step_that_was_never_begun(worker: Any, failing: Any) -> None:
    result = failing.apply_async()
    worker.drain()
    with pytest.raises(DeliveryError, match="has not begun a step 'three'; its steps are: 'one', 'two'"):
        result.retry("three")
    assert result.state == states.FAILURE, "nothing was changed"


def test_only_a_failed_task_is_retried(worker: Any, failing: Any) -> None:
    result = failing.apply_async()
    with pytest.raises(DeliveryError, match="only a failed task can be retried; it has no record"):
        result.retry()
    failing.is_broken = False
    worker.drain()
    with pytest.raises(DeliveryError, match="only a failed task can be retried; it is done"):
        result.retry()


def test_a_wait_that_timed_out_waits_again_when_it_is_retried(worker: Any, task: Any, store: Any) -> None:
    def body(self: Any) -> Any:
        return self.wait_for("approval", timeout=0)

    result = task(body).apply_async()
    worker.drain()
    assert result.state == states.FAILURE
    result.retry("approval")
    result.deliver("approval", "late")
    worker.drain()
    assert result.get() == "late"


def test_a_late_delivery_to_a_failed_task_is_refused(worker: Any, failing: Any) -> None:
    result = failing.apply_async()
    worker.drain()
    with pytest.raises(DeliveryError, match="it has failed"):
        result.deliver("approval", 1)


def test_two_retries_take_it_up_once(worker: Any, failing: Any, store: Any) -> None:
    result = failing.apply_async()
    worker.drain()
    failing.is_broken = False
    result.retry()
    with pytest.raises(DeliveryError, match="it is queued"):
        result.retry()
    worker.drain()
    assert failing.calls == ["one", "two", "two", "three"]


# -- all of them


@pytest.mark.parametrize("what", ["pause", "resume", "cancel", "retry"])
def test_without_a_store_nothing_can_be_reached(app: Celery, what: str) -> None:
    with pytest.raises(StoreError, match="cannot be reached; set continuation_store"):
        getattr(control, what)("id", app=app, store="message")


def test_a_broker_that_is_away_leaves_it_to_a_sweep(
    worker: Any, task: Any, monkeypatch: Any, store: Any, sweep: Any
) -> None:
    def body(self: Any) -> Any:
        return self.wait_for("approval")

    def away(*args: Any) -> None:
        raise OperationalError("away")

    result = task(body).apply_async()
    worker.deliver()
    monkeypatch.setattr(control, "publish_saved", away)
    with pytest.raises(OperationalError):
        result.deliver("approval", "kept")
    record = store.read(result.id)
    assert record.fence == Fence(1, Status.QUEUED)
    monkeypatch.setattr(store, "_clock", lambda: record.due + 1)
    sweep()
    worker.drain()
    assert result.get() == "kept"


def test_a_snapshot_goes_back_by_its_steps() -> None:
    snapshot = Snapshot(current=("three", 7))
    assert retrying._rewind("id", snapshot, None) == ["three"]
    assert snapshot.current == ("three", 7)


def test_the_module_has_its_earlier_name_too() -> None:
    from celery_continuations import control, steering

    assert steering.pause is control.pause and set(steering.__all__) <= set(control.__all__)
