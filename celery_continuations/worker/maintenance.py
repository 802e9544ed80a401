"""The main process's maintenance: renew the worker's lease, detect dead pool children, and sweep.

Three threads, so an unresponsive broker or result backend cannot delay lease renewal: for the lease, for sweeps, and
for what Celery's ``revoke`` names.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.worker import state
from kombu.exceptions import OperationalError

from celery_continuations import conf
from celery_continuations.exceptions import StoreError
from celery_continuations.process.identity import is_running
from celery_continuations.process.reminder import Reminder
from celery_continuations.process.stop_flag import StopFlag
from celery_continuations.protocol.liveness import Loss
from celery_continuations.stores import Store
from celery_continuations.stores.base import LIMIT
from celery_continuations.stores.factory import stores_of
from celery_continuations.worker.lease_clock import RENEWALS, LeaseClock
from celery_continuations.worker.revoking import Revocations
from celery_continuations.worker.sweeper import Sweeper

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Maintenance", "maintenance_of"]

logger = logging.getLogger("celery_continuations")

# Seconds between two checks of the pool's processes and of the stop flag.
_TICK = 0.25

# Each sweep interval is shortened by up to this fraction, so that workers started together do not sweep together.
_JITTER = 0.2

_by_worker: dict[str, Maintenance] = {}


class Maintenance:
    """Renew a worker's lease in, and sweep, each store that its tasks use.

    Args:
        app: the worker's app.
        flag: the worker's stop flag, through which its tasks learn when the lease expires.
        processes: returns the pids of the pool's processes.
        sends_as: returns the worker's name, or None while it does not send task events.
    """

    def __init__(
        self, app: Celery, flag: StopFlag, processes: Any, sends_as: Callable[[], str | None] = lambda: None
    ) -> None:
        self._app = app
        self._flag = flag
        self._processes = processes
        self._pids: set[int] = set()
        self._lease = float(conf.app_setting(app, "lease"))
        self._interval = float(conf.app_setting(app, "sweep_interval"))
        self._sends_as = sends_as
        self._stores = [self._maintained(store) for store in stores_of(app) if store.keeps]
        self.revocations = Revocations(app, [maintained.store for maintained in self._stores])
        self._ending = threading.Event()
        _by_worker[flag.worker] = self

    def _maintained(self, store: Store) -> _MaintainedStore:
        worker, clock = self._flag.worker, LeaseClock(self._flag.worker, self._lease)
        sweeper = Sweeper(self._app, store, worker, self._may_be_in_progress, self._sends_as, clock=clock)
        return _MaintainedStore(store, sweeper, clock)

    def start(self) -> None:
        """Take the lease before the first task runs, and start the threads."""
        for maintained in self._stores:
            self._renew(maintained)
        if self._stores:
            for job in (self._renew_all, self._sweep_all, self.revocations.handle):
                thread = threading.Thread(
                    target=self._repeat, args=(job,), name="continuations-maintenance", daemon=True
                )
                thread.start()

    def stop(self) -> None:
        """Stop the threads and release the lease, once the worker's tasks have ended or handed over."""
        _by_worker.pop(self._flag.worker, None)
        if self._ending.is_set():
            return
        self._ending.set()
        for maintained in self._stores:
            try:
                maintained.store.retire(self._flag.worker)
            except StoreError as exc:
                logger.info("This worker's lease could not be released: %s", exc, extra={"action": "lease_failed"})

    def sweeper_of(self, store: Store) -> Sweeper | None:
        """Return this worker's sweeper of a store; None for a store that keeps nothing."""
        return next((maintained.sweeper for maintained in self._stores if maintained.store is store), None)

    def _repeat(self, job: Callable[[], None]) -> None:
        while not self._ending.wait(_TICK):
            try:
                job()
            except Exception:
                # The worker's lease and its tasks depend on these threads: continue after any error.
                logger.exception(
                    "Unexpected error in worker maintenance; continuing", extra={"action": "keeper_failed"}
                )

    def _renew_all(self) -> None:
        stopping = self._flag.level > 0
        for maintained in self._stores:
            if time.monotonic() >= maintained.renew_at or stopping != maintained.reported_stopping:
                self._renew(maintained)

    def _sweep_all(self) -> None:
        child_ended = self._child_ended()
        for maintained in self._stores:
            if child_ended or (self._interval and time.monotonic() >= maintained.sweep_at):
                self._sweep(maintained)

    def _child_ended(self) -> bool:
        """Whether a pool process has ended since the last check."""
        # The pool itself may not have noticed yet, so its list is not enough.
        before, self._pids = self._pids, {pid for pid in self._processes() if is_running(pid)}
        return bool(before - self._pids)

    def _renew(self, maintained: _MaintainedStore) -> None:
        now = time.monotonic()
        stopping = self._flag.level > 0
        note = Loss.STOP.value if stopping else Loss.SUSPECTED_CRASH.value if maintained.running > 1 else ""
        maintained.renew_at = now + self._lease / RENEWALS
        try:
            maintained.store.renew(self._flag.worker, self._lease, note)
        except StoreError as exc:
            maintained.unavailable = True
            maintained.clock.unavailable()
            if maintained.renewal_reminder.is_due():
                logger.warning("This worker's lease could not be renewed: %s", exc, extra={"action": "lease_failed"})
            return
        lasted = maintained.renewal_reminder.reset()
        if lasted is not None:
            text = "This worker's lease is renewed again, after %.0f s without its store"
            logger.info(text, lasted, extra={"action": "lease_renewed"})
        maintained.reported_stopping = stopping
        if maintained.unavailable or self._was_slow(now):
            # Every worker's lease may have expired meanwhile: give each worker the time to renew its own.
            maintained.unavailable, maintained.trusts_leases_at = False, time.monotonic() + self._lease
        maintained.held_until = now + self._lease
        maintained.clock.renewed(now)
        self._flag.extend_lease(min(maintained.held_until for maintained in self._stores))

    def _sweep(self, maintained: _MaintainedStore) -> None:
        now = time.monotonic()
        maintained.sweep_at = now + self._interval * random.SystemRandom().uniform(1 - _JITTER, 1)

        def trusts_leases() -> bool:
            return not maintained.unavailable and now >= maintained.trusts_leases_at and not self._was_slow(now)

        try:
            scan = maintained.sweeper.sweep(trusts_leases)
        except (StoreError, OperationalError, OSError) as exc:
            if isinstance(exc, StoreError):
                maintained.clock.unavailable()
            # the lease reports an outage of the store
            is_reported = isinstance(exc, StoreError) and maintained.renewal_reminder.is_active
            if not is_reported and maintained.sweep_reminder.is_due():
                logger.warning("Could not sweep for lost tasks: %s", exc, extra={"action": "sweep_failed"})
        else:
            lasted = maintained.sweep_reminder.reset()
            if lasted is not None:
                logger.info("Sweeps succeed again, after %.0f s", lasted, extra={"action": "swept_again"})
            maintained.running = len(scan.owned)
            if len(scan.due) >= LIMIT:
                maintained.sweep_at = now  # there may be more

    def _may_be_in_progress(self, task_id: str) -> bool:
        # While a worker stops, Celery forgets requests whose tasks have not reached their next checkpoint yet.
        return self._flag.level > 0 or _is_in_progress(task_id)

    def _was_slow(self, since: float) -> bool:
        """Whether the store answered so slowly that other workers may have failed to renew."""
        return time.monotonic() - since > self._lease / RENEWALS


def _is_in_progress(task_id: str) -> bool:
    """Whether a worker in this process has received the task and not yet seen it end."""
    while True:
        try:
            return any(one.id == task_id for known in (state.reserved_requests, state.active_requests) for one in known)
        except RuntimeError:  # the main thread has received another request meanwhile
            continue


class _MaintainedStore:
    """The lease and sweeps of one store.  Times are by ``time.monotonic``."""

    def __init__(self, store: Store, sweeper: Sweeper, clock: LeaseClock) -> None:
        self.store = store
        self.clock = clock
        self.sweeper = sweeper
        self.renew_at = 0.0
        self.sweep_at = 0.0
        self.trusts_leases_at = 0.0
        self.held_until = 0.0
        self.unavailable = True  # until the store has been reached
        self.renewal_reminder = Reminder()
        self.sweep_reminder = Reminder()
        self.reported_stopping = False
        self.running = 0


def maintenance_of(worker: str) -> Maintenance | None:
    """Return the maintenance of a worker in this process."""
    return _by_worker.get(worker)
