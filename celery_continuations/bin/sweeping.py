"""One sweep, as a worker would make it, by a process that holds no lease."""

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

# As often as workers renew a lease.
_LOOKS = 4


def sweep(app: Celery, *, wait: bool) -> list[Report]:
    """Look once in each store, recover what is to be recovered, and say what was.

    Without ``wait`` only a death that can be proved on this machine counts.  A lease that is over may be so because
    no worker could reach the store, which this process, that has just come, cannot know.

    Args:
        app: whose stores.
        wait: watch the store for a whole lease first, as a worker does after an outage, and judge by leases then.

    Raises:
        StoreError: when a store is away.
        OSError, kombu.exceptions.OperationalError: when the broker is.
    """
    found: list[Report] = []
    for store in facts.stores(app).values():
        if wait:
            _watch(store, float(conf.app_setting(app, "lease")))
        sweeper = Sweeper(app, store, new_worker(), _is_at_work, report=found.append)
        sweeper.sweep(lambda: wait)
    return found


def _is_at_work(task_id: str) -> bool:
    return True  # this process owns nothing that it could have lost


def _watch(store: Store, lease: float) -> None:
    """Return when the store has answered quickly for a whole lease, so that each living worker has renewed its own."""
    since = time.monotonic()
    while time.monotonic() - since < lease:
        asked = time.monotonic()
        store.scan()
        if time.monotonic() - asked > lease / _LOOKS:
            since = time.monotonic()
        time.sleep(lease / _LOOKS)
