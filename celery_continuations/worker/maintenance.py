"""What a worker's main process does beside Celery: it keeps its lease, notices dead pool children, and sweeps.

Two threads, for a broker that does not answer must not cost the worker its lease.
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
from celery_continuations.process.stop_flag import StopFlag
from celery_continuations.protocol.liveness import Loss
from celery_continuations.stores import Store
from celery_continuations.stores.base import LIMIT
from celery_continuations.stores.factory import stores_of
from celery_continuations.worker.sweeper import Sweeper

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["Keeper", "keeper_of"]

logger = logging.getLogger("celery_continuations")

# Seconds between two looks at the pool's processes and at the stop flag.
_TICK = 0.25

# A lease is renewed so many times before it would be over.
_RENEWALS = 4

# Workers that start together must not sweep together: each interval is shorter by up to this part.
_JITTER = 0.2

_keepers: dict[str, Keeper] = {}


class Keeper:
    """Keeps a worker's lease in each store that its tasks use.

    Args:
        app: of the worker.
        flag: of the worker; tells the tasks until when the lease holds.
        processes: returns the pids of the pool's processes.
        sends_as: returns the worker's name, while it sends events of tasks.
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
        self._charges = [
            _Charge(store, Sweeper(app, store, flag.worker, self._may_be_at_work, sends_as))
            for store in stores_of(app)
            if store.keeps
        ]
        self._ending = threading.Event()
        _keepers[flag.worker] = self

    def start(self) -> None:
        """Take the lease, before the first task is run, and keep it from now on."""
        for charge in self._charges:
            self._renew(charge)
        if self._charges:
            for duty in (self._renew_all, self._sweep_all):
                threading.Thread(target=self._repeat, args=(duty,), name="continuations-keeper", daemon=True).start()

    def end(self) -> None:
        """The worker has ended, and its tasks have left."""
        _keepers.pop(self._flag.worker, None)
        if self._ending.is_set():
            return
        self._ending.set()
        for charge in self._charges:
            try:
                charge.store.retire(self._flag.worker)
            except StoreError as exc:
                logger.info(
                    "The lease of this worker could not be given back: %s", exc, extra={"action": "lease_failed"}
                )

    def sweeper_of(self, store: Store) -> Sweeper | None:
        """Return this worker's sweeper of a store, or None for one that keeps nothing."""
        return next((charge.sweeper for charge in self._charges if charge.store is store), None)

    def _repeat(self, duty: Callable[[], None]) -> None:
        while not self._ending.wait(_TICK):
            try:
                duty()
            except Exception:
                # The worker's lease and its tasks depend on these threads: whatever it was, go on.
                logger.exception(
                    "The keeper of this worker met an error, and goes on", extra={"action": "keeper_failed"}
                )

    def _renew_all(self) -> None:
        stopping = self._flag.level > 0
        for charge in self._charges:
            if time.monotonic() >= charge.renew_at or stopping != charge.told_stopping:
                self._renew(charge)

    def _sweep_all(self) -> None:
        child_ended = self._child_ended()
        for charge in self._charges:
            if child_ended or (self._interval and time.monotonic() >= charge.sweep_at):
                self._sweep(charge)

    def _child_ended(self) -> bool:
        """Whether a process of the pool has ended since the last look."""
        # The pool itself may not have noticed yet, so its list is not enough.
        before, self._pids = self._pids, {pid for pid in self._processes() if is_running(pid)}
        return bool(before - self._pids)

    def _renew(self, charge: _Charge) -> None:
        now = time.monotonic()
        stopping = self._flag.level > 0
        note = Loss.STOP.value if stopping else Loss.SUSPECTED_CRASH.value if charge.running > 1 else ""
        charge.renew_at = now + self._lease / _RENEWALS
        try:
            charge.store.renew(self._flag.worker, self._lease, note)
        except StoreError as exc:
            charge.away = True
            logger.warning("The lease of this worker could not be renewed: %s", exc, extra={"action": "lease_failed"})
            return
        charge.told_stopping = stopping
        if charge.away or self._was_slow(now):
            # All workers' leases may have run out meanwhile: each gets the time to renew its own before it is judged.
            charge.away, charge.judges_at = False, time.monotonic() + self._lease
        charge.held_until = now + self._lease
        self._flag.extend_lease(min(charge.held_until for charge in self._charges))

    def _sweep(self, charge: _Charge) -> None:
        now = time.monotonic()
        charge.sweep_at = now + self._interval * random.uniform(1 - _JITTER, 1)

        def judges() -> bool:
            return not charge.away and now >= charge.judges_at and not self._was_slow(now)

        try:
            look = charge.sweeper.sweep(judges)
        except (StoreError, OperationalError, OSError) as exc:
            logger.warning("Could not look for lost tasks: %s", exc, extra={"action": "sweep_failed"})
        else:
            charge.running = len(look.owned)
            if len(look.due) >= LIMIT:
                charge.sweep_at = now  # there may be more

    def _may_be_at_work(self, task_id: str) -> bool:
        # A stopping worker has Celery forget requests whose tasks are still on their way to a checkpoint.
        return self._flag.level > 0 or _is_at_work(task_id)

    def _was_slow(self, since: float) -> bool:
        """Whether the store took so long to answer that others may not have been able to renew."""
        return time.monotonic() - since > self._lease / _RENEWALS


def _is_at_work(task_id: str) -> bool:
    """Whether a worker of this process has received the task, and not yet seen it end."""
    while True:
        try:
            return any(one.id == task_id for known in (state.reserved_requests, state.active_requests) for one in known)
        except RuntimeError:  # the main thread has received another one meanwhile
            continue


class _Charge:
    """What is kept for one store.  Times are of ``time.monotonic``."""

    def __init__(self, store: Store, sweeper: Sweeper) -> None:
        self.store = store
        self.sweeper = sweeper
        self.renew_at = 0.0
        self.sweep_at = 0.0
        self.judges_at = 0.0
        self.held_until = 0.0
        self.away = True  # until the store has been reached
        self.told_stopping = False
        self.running = 0


def keeper_of(worker: str) -> Keeper | None:
    """Return the keeper of a worker of this process."""
    return _keepers.get(worker)
