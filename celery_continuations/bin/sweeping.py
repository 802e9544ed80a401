"""One sweep by a process that holds no lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from celery_continuations import conf
from celery_continuations.bin import facts
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import Store
from celery_continuations.worker.sweeper import Report, Sweeper

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["sweep"]

# Reads per lease: as many as a worker's renewals.
_READS = 4


def sweep(app: Celery, *, wait: bool) -> list[Report]:
    """Sweep each store once, and return what was done.

    Without ``wait`` only deaths that can be proved on this machine count.  A lease may have expired because no worker
    could reach the store, and this process has not watched the store long enough to know.

    Args:
        app: whose stores.
        wait: watch the store for a full lease first, as a worker does after an outage, and then judge by leases.

    Raises:
        StoreError: when a store is unavailable.
        OSError, kombu.exceptions.OperationalError: when the broker is unavailable.
    """
    found: list[Report] = []
    for store in facts.stores(app).values():
        if wait:
            _watch(store, float(conf.app_setting(app, "lease")))
        sweeper = Sweeper(app, store, new_worker(), _is_in_progress, report=found.append)
        sweeper.sweep(lambda: wait)
    return found


def _is_in_progress(task_id: str) -> bool:
    return True  # this process owns no tasks


def _watch(store: Store, lease: float) -> None:
    """Return when the store has answered quickly for a full lease: each living worker has then renewed its own."""
    since = time.monotonic()
    while time.monotonic() - since < lease:
        asked = time.monotonic()
        store.scan()
        if time.monotonic() - asked > lease / _READS:
            since = time.monotonic()
        time.sleep(lease / _READS)
