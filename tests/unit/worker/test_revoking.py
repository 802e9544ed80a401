"""Celery's remote control command `revoke`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chord, signals, states
from celery.worker import control as celery_control
from celery.worker import state as worker_state

from celery_continuations import celery_internals, control
from celery_continuations.exceptions import StoreError
from celery_continuations.stores import Command, Fence, Status, Update
from celery_continuations.worker.revoking import Revocations


class Cluster:
    """Some workers' main processes, which all receive the command."""

    def __init__(self, app: Celery, store: Any, panel: Any, count: int) -> None:
        self.app = app
        self.panel = panel
        self.workers = {f"w{number}": Revocations(app, [store]) for number in range(count)}
        self.of_celery: list[Any] = []

    def revoke(self, task_id: str, command: str = "revoke", **options: Any) -> list[Any]:
        replies = []
        for hostname in self.workers:
            consumer = SimpleNamespace(call_soon=lambda call, *args: self.of_celery.append((call, args)))
            state = SimpleNamespace(app=self.app, hostname=hostname, consumer=consumer)
            replies.append(self.panel[command](state, task_id=task_id, **options))
        return replies

    def handle(self) -> None:
        for revocations in self.workers.values():
            revocations.handle()
        while self.of_celery:
            call, args = self.of_celery.pop()
            call(*args)


@pytest.fixture
def cluster(app: Celery, store: Any, monkeypatch: Any) -> Cluster:
    panel = {
        name: getattr(celery_control.Panel.data[name], "__wrapped__", celery_control.Panel.data[name])
        for name in ("revoke", "terminate")
    }
    monkeypatch.setattr(celery_control.Panel, "data", panel)
    monkeypatch.setattr(worker_state, "revoked", type(worker_state.revoked)())
    made = Cluster(app, store, panel, 2)
    celery_internals.take_over_revoke(
        lambda hostname, ids, of_celery: made.workers[hostname].add(ids, of_celery),
        lambda task: hasattr(task, "claims_at_start"),
    )
    return made


@pytest.fixture
def signalled() -> Any:
    seen: list[str] = []

    def receive(request: Any, **kwargs: Any) -> None:
        seen.append(request.id)

    signals.task_revoked.connect(receive)
    yield seen
    signals.task_revoked.disconnect(receive)


@pytest.fixture
def begun(worker: Any, task: Any) -> Callable[[str], Any]:
    """Start a task that then waits, is queued or is paused; return its result."""

    def begin(place: str) -> Any:
        def body(self: Any) -> None:
            ran.append(1)
            if place == "queued":
                worker.stop()
            self.step("one", int)
            self.wait_for("approval")

        ran: list[int] = []
        made = task(body)
        result = made.apply_async()
        worker.deliver()
        if place == "paused":
            result.pause()
        result.ran = ran
        return result

    return begin


@pytest.mark.parametrize("terminate", [False, True])
@pytest.mark.parametrize("place", ["waiting", "queued", "paused"])
def test_a_task_that_does_not_run_ends_at_once(
    cluster: Cluster, worker: Any, begun: Any, record: Any, signalled: list[str], place: str, terminate: bool
) -> None:
    """Also for workers that start later and know nothing of the command."""
    result = begun(place)
    cluster.revoke(result.id, terminate=terminate)
    assert result.state == states.RETRY, "nothing is stored before the record has ended"
    cluster.handle()
    assert (result.state, record(result.id).fence.status) == (states.REVOKED, Status.CANCELLED)
    worker.drain()
    assert (result.ran, result.state, signalled) == ([1], states.REVOKED, [result.id])
    assert result.id not in worker_state.revoked, "a message ends at the record, and is not reported again"


def test_a_running_task_ends_at_its_next_checkpoint(
    cluster: Cluster, worker: Any, task: Any, record: Any, signalled: list[str]
) -> None:
    def body(self: Any) -> None:
        for item in self.iterate("loop", range(4)):
            done.append(item)
            if item == 1:
                cluster.revoke(self.request.id)
                cluster.handle()
                seen.append((record(self.request.id).fence.command, self.AsyncResult(self.request.id).state))

    done: list[int] = []
    seen: list[Any] = []
    result = task(body, continuation_checkpoint_interval=0).apply_async()
    worker.deliver()
    assert seen == [(Command.CANCEL, states.PENDING)], "no worker stores a state while it runs"
    assert (done, result.state, signalled) == ([0, 1], states.REVOKED, [result.id])


def test_a_task_that_returns_before_it_notices_has_one_outcome(cluster: Cluster, worker: Any, task: Any) -> None:
    def body(self: Any) -> str:
        self.step("one", int)
        cluster.revoke(self.request.id)
        cluster.handle()
        states_seen.append(self.AsyncResult(self.request.id).state)
        return "end"

    states_seen: list[str] = []
    result = task(body).apply_async()
    worker.deliver()
    assert (states_seen, result.state, result.get()) == ([states.PENDING], states.SUCCESS, "end")


@pytest.mark.parametrize("terminate", [False, True])
def test_a_task_without_a_record_is_celerys(
    cluster: Cluster, app: Celery, store: Any, signalled: list[str], terminate: bool
) -> None:
    replies = cluster.revoke("plain", terminate=terminate)
    said = "terminate: tasks unknown" if terminate else "tasks {'plain'} flagged as revoked"
    assert replies == [{"ok": said}] * 2
    assert "plain" in worker_state.revoked, "its message may come now"
    cluster.handle()
    assert "plain" in worker_state.revoked
    # stored at once since Celery 5.7
    assert app.backend.get_state("plain") in (states.REVOKED, states.PENDING)
    assert store.read("plain") is None
    assert signalled == []


def test_a_task_that_has_ended_stays_as_it_is(cluster: Cluster, worker: Any, task: Any, record: Any) -> None:
    def body(self: Any) -> int:
        return 7

    result = task(body).apply_async()
    worker.deliver()
    cluster.revoke(result.id)
    cluster.handle()
    assert (result.state, record(result.id).fence.status) == (states.SUCCESS, Status.DONE)


def test_a_request_of_this_worker_is_terminated_by_celery(cluster: Cluster, monkeypatch: Any) -> None:
    terminated: list[Any] = []
    request = SimpleNamespace(
        id="mine", task=SimpleNamespace(claims_at_start=True), terminate=lambda pool, signal: terminated.append(signal)
    )
    monkeypatch.setattr(worker_state, "active_requests", [request])
    monkeypatch.setattr(worker_state, "requests", {"mine": request})
    monkeypatch.setattr(celery_control, "_find_requests_by_id", lambda ids: [request])
    consumer = SimpleNamespace(pool=None, call_soon=None)
    for command in ("revoke", "terminate"):
        state = SimpleNamespace(app=cluster.app, hostname="w0", consumer=consumer)
        options = {"terminate": True} if command == "revoke" else {}
        assert cluster.panel[command](state, task_id="mine", signal="KILL", **options) == {"ok": "terminate: mine"}
    assert len(terminated) == 2


def test_an_outage_of_the_store_delays_a_revoke(
    cluster: Cluster, worker: Any, begun: Any, store: Any, record: Any, monkeypatch: Any
) -> None:
    result = begun("waiting")
    cluster.revoke(result.id)
    with monkeypatch.context() as patched:
        patched.setattr(store, "read", unavailable)
        patched.setattr(store, "scan", unavailable)
        cluster.handle()
    assert record(result.id).fence.status == Status.WAITING
    for revocations in cluster.workers.values():
        revocations._next = 0.0
    cluster.handle()
    assert (result.state, record(result.id).fence.status) == (states.REVOKED, Status.CANCELLED)


def test_a_record_that_cannot_be_read_does_not_hold_up_the_others(
    cluster: Cluster, begun: Any, store: Any, record: Any, monkeypatch: Any
) -> None:
    result = begun("waiting")
    read = store.read
    monkeypatch.setattr(store, "read", lambda task_id: unavailable() if task_id == "spoilt" else read(task_id))
    cluster.revoke("spoilt")
    cluster.revoke(result.id)
    cluster.handle()
    assert record(result.id).fence.status == Status.CANCELLED


def test_a_worker_without_this_library_stores_revoked_first(
    cluster: Cluster, app: Celery, worker: Any, task: Any, signalled: list[str]
) -> None:
    """It notifies no chord, and sends no signal."""

    def body(self: Any) -> None:
        self.wait_for("approval")

    told: list[Any] = []
    total = app.task(name="total")(unavailable)
    member = task(body)
    chord([member.s(), member.s()], total.s()).apply_async()
    worker.deliver()
    result = member.AsyncResult(worker.deliveries[0].headers["id"])
    app.backend.mark_as_revoked(result.id, "revoked")
    app.backend.on_chord_part_return = lambda request, state, result, **_: told.append(state)
    cluster.revoke(result.id)
    cluster.handle()
    assert (result.state, signalled, told) == (states.REVOKED, [result.id], [states.REVOKED])


def test_the_command_is_taken_over_once_in_a_process(cluster: Cluster) -> None:
    before = dict(cluster.panel)
    celery_internals.take_over_revoke(lambda *args: True, lambda task: True)
    assert cluster.panel == before


def test_a_worker_without_a_store_leaves_all_to_celery(cluster: Cluster, app: Celery, store: Any) -> None:
    cluster.workers = {"w0": Revocations(app, [])}
    assert cluster.revoke("plain") == [{"ok": "tasks {'plain'} flagged as revoked"}]
    store.compare_and_swap("plain", None, Update(Fence(1, Status.WAITING)))
    control.cancel("plain", app=app)


def unavailable(*args: Any, **kwargs: Any) -> Any:
    raise StoreError("memory", "unavailable")
