"""Clocks that step, and stores that were unavailable: no task is taken that must not be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_continuations import ContinuableTask
from celery_continuations.exceptions import StoreError
from celery_continuations.execution import leaving
from celery_continuations.messages.requeue import CLAIM_COUNTDOWN
from celery_continuations.process.stop_flag import STOPPING, new_flag
from celery_continuations.protocol import liveness
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.maintenance import Maintenance
from tests.support.worker import Worker, make_app

LEASE, INTERVAL = 10, 2.5
OTHER = "another-machine.7.7.abc"
MESSAGE = (
    '{"task": "t", "route": {"exchange": "", "routing_key": "celery"}, "headers": {}, "properties": {}, "sending": {}, '
    '"content": ["application/json", "utf-8"], "body": "[[], {}, {}]"}'
)


class Clocks:
    """The monotonic clock of this machine, and the clock of the store, which may step."""

    def __init__(self, store: Any, monkeypatch: Any) -> None:
        self.now, self.store_ahead = 1000.0, 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        store._clock = lambda: 1_700_000_000 + self.now + self.store_ahead


@pytest.fixture
def clocks(store: Any, monkeypatch: Any) -> Clocks:
    return Clocks(store, monkeypatch)


@pytest.fixture
def maintenance(app: Celery, clocks: Clocks) -> Iterator[Any]:
    flag = new_flag(f"maintenance{time.perf_counter_ns()}@test")
    made = Maintenance(app, flag, list)
    yield made
    made.stop()
    flag.remove()


class Fleet:
    """A worker that sweeps, and one on another machine that runs a task."""

    def __init__(self, maintenance: Any, store: Any, clocks: Clocks) -> None:
        self.maintenance, self.store, self.clocks = maintenance, store, clocks
        self.maintained = maintenance._stores[0]
        self.lives = True
        store.compare_and_swap("a", None, Update(Fence(1, Status.RUNNING, f"{OTHER}/2.2/x"), None, MESSAGE))
        self.renew_other()
        self.renew()

    def renew(self) -> None:
        self.maintenance._renew(self.maintained)

    def renew_other(self) -> None:
        if self.lives:
            self.store.renew(OTHER, LEASE, "")

    def sweep(self) -> None:
        self.maintenance._sweep(self.maintained)

    def run(self, seconds: float) -> None:
        """Let time pass: both renew their leases, then this one sweeps."""
        until = self.clocks.now + seconds
        while self.clocks.now < until:
            self.clocks.now += INTERVAL
            self.renew()
            self.renew_other()
            self.sweep()

    @property
    def is_taken(self) -> bool:
        return bool(self.store.read("a").fence.status == Status.QUEUED)


@pytest.fixture
def fleet(maintenance: Any, store: Any, clocks: Clocks) -> Fleet:
    made = Fleet(maintenance, store, clocks)
    made.run(3 * LEASE)
    assert not made.is_taken
    return made


@pytest.mark.parametrize("order", ["sweep", "renew, sweep", "renew, sweep, sweep", "sweep, renew, sweep"])
@pytest.mark.parametrize("step", [15.0, 3600.0, -3600.0])
def test_a_step_of_the_stores_clock_takes_no_living_workers_task(fleet: Fleet, step: float, order: str) -> None:
    fleet.clocks.store_ahead += step
    for act in order.split(", "):
        fleet.clocks.now += 0.1
        getattr(fleet, act)()
    assert not fleet.is_taken
    fleet.run(LEASE)
    assert not fleet.is_taken


def test_a_machine_that_was_suspended_takes_no_living_workers_task(fleet: Fleet) -> None:
    fleet.clocks.store_ahead += 600.0  # the monotonic clock stands still meanwhile; both were suspended
    fleet.renew()
    fleet.sweep()
    fleet.clocks.now += 0.2
    fleet.sweep()
    assert not fleet.is_taken


def test_no_lease_is_judged_by_a_scan_in_which_the_workers_own_has_expired(fleet: Fleet) -> None:
    for _ in range(5):  # it renews its lease, but cannot sweep: no scan shows it that the other one does, too
        fleet.clocks.now += INTERVAL
        fleet.renew()
        fleet.renew_other()
    fleet.clocks.store_ahead += 15.0
    fleet.sweep()
    assert not fleet.is_taken


def test_a_worker_that_dies_after_a_step_is_found_by_its_lease(fleet: Fleet) -> None:
    fleet.clocks.store_ahead += 60.0
    fleet.run(INTERVAL)
    fleet.lives = False
    fleet.run(LEASE - INTERVAL)
    assert not fleet.is_taken
    fleet.run(2 * INTERVAL)
    assert fleet.is_taken


def test_without_a_step_a_death_is_found_as_soon_as_the_lease_has_expired(fleet: Fleet) -> None:
    fleet.lives = False
    fleet.run(LEASE)
    assert fleet.is_taken


def test_a_worker_that_starts_trusts_a_lease_after_a_whole_one(maintenance: Any, store: Any, clocks: Clocks) -> None:
    fleet = Fleet(maintenance, store, clocks)
    fleet.lives = False
    clocks.store_ahead = 60.0
    fleet.run(LEASE - INTERVAL)
    assert not fleet.is_taken
    fleet.run(2 * INTERVAL)
    assert fleet.is_taken


# -- after an outage


def away(*args: Any, **options: Any) -> Any:
    raise StoreError("test", "away")


def test_after_an_outage_no_provable_death_is_judged_before_delayed_messages_have_come(
    fleet: Fleet, monkeypatch: Any
) -> None:
    with monkeypatch.context() as outage:
        outage.setattr(fleet.store, "renew", away)
        fleet.renew()
    fleet.lives = False
    monkeypatch.setattr(liveness, "is_gone", lambda owner: owner.startswith(OTHER))
    fleet.run(LEASE + 2 * CLAIM_COUNTDOWN)
    assert not fleet.is_taken
    fleet.run(2 * INTERVAL)
    assert fleet.is_taken


def test_without_an_outage_a_provable_death_is_judged_at_once(fleet: Fleet, monkeypatch: Any) -> None:
    monkeypatch.setattr(liveness, "is_gone", lambda owner: owner.startswith(OTHER))
    fleet.sweep()
    assert fleet.is_taken


class Outage:
    """Makes every operation of a store fail."""

    def __init__(self, app: Celery, store: Any) -> None:
        self.app = app
        self._store = store
        self._patch = pytest.MonkeyPatch()

    def begin(self) -> None:
        for name in ("compare_and_swap", "take", "read", "scan", "renew", "retire"):
            self._patch.setattr(self._store, name, away)

    def end(self) -> None:
        self._patch.undo()


@pytest.fixture(params=["memory", "file"])
def outage(request: Any, tmp_path: Path) -> Iterator[Outage]:
    """An app whose store can be made unavailable."""
    app = make_app()
    app.conf.continuation_store = "memory" if request.param == "memory" else f"file://{tmp_path}/store"
    made = Outage(app, open_store(app, app.conf.continuation_store))
    yield made
    made.end()


def a_loop(outage: Any, worker: Worker, seen: list[int]) -> Any:
    def run(self: Any) -> str:
        for item in self.iterate("loop", range(20)):
            seen.append(item)
            if item == 5:
                outage.begin()
            if item == 8:  # later than the last save
                worker.stop()
        return "end"

    return run


def test_a_stopping_execution_waits_for_the_store(outage: Any, monkeypatch: Any) -> None:
    worker, seen, waited = Worker(outage.app), [], []
    made = outage.app.task(base=ContinuableTask, bind=True, name="waiting")(a_loop(outage, worker, seen))

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 10:
            outage.end()

    monkeypatch.setattr(leaving, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    outage.app.conf.continuation_grace_period = 20
    result = made.delay()
    worker.deliver()
    assert sum(waited) > 10
    record = result.record()
    assert (record.fence.status, result.progress.done) == (Status.QUEUED, 9)
    worker.drain()
    assert (result.get(), seen) == ("end", [*range(20)])


def test_a_store_that_stays_away_for_longer_than_the_grace_is_not_waited_for(outage: Any, monkeypatch: Any) -> None:
    worker, seen, now = Worker(outage.app), [], [time.monotonic()]
    made = outage.app.task(base=ContinuableTask, bind=True, name="leaving")(a_loop(outage, worker, seen))
    began = now[0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(leaving, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    outage.app.conf.continuation_grace_period = 20
    result = made.delay()
    worker.deliver()
    assert 8 < now[0] - began < 20
    assert worker.queued() == 1, "the message carries the progress"
    outage.end()
    worker.drain()
    assert (result.get(), seen) == ("end", [*range(20)])


def test_no_sweep_recovers_an_old_save_before_the_newer_message_is_claimed(outage: Any, monkeypatch: Any) -> None:
    """The store is unavailable at a stop and at the next claim, whose message then comes some seconds later."""
    worker, seen = Worker(outage.app), []
    made = outage.app.task(base=ContinuableTask, bind=True, name="delayed")(a_loop(outage, worker, seen))
    outage.app.conf.update(continuation_grace_period=0.01, continuation_checkpoint_interval=0)
    flag = new_flag(f"sweeping{time.perf_counter_ns()}@test")
    maintenance = Maintenance(outage.app, flag, list)
    (maintained,) = maintenance._stores
    maintenance._renew(maintained)
    result = made.delay()
    worker.deliver()
    maintenance._renew(maintained)  # it fails
    worker.deliver()  # the claim fails, and the message is requeued
    outage.end()
    monkeypatch.setattr(liveness, "is_gone", lambda owner: bool(owner) and not owner.startswith(flag.worker))
    maintenance._renew(maintained)
    maintenance._sweep(maintained)
    assert result.record().fence.status == Status.RUNNING
    worker.drain()
    assert (result.get(), seen) == ("end", [*range(20)])
    maintenance.stop()
    flag.remove()


def test_the_flag_says_since_when_a_worker_stops() -> None:
    flag = new_flag(f"stopped{time.perf_counter_ns()}@test")
    assert flag.stopped_at == 0
    flag.raise_to(STOPPING)
    at = flag.stopped_at
    assert 0 <= time.monotonic() - at < 5
    flag.raise_to(STOPPING + 1)
    assert flag.stopped_at == at
    flag.remove()
