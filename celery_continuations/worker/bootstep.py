"""Four hooks that together detect every way of stopping a worker immediately.  No three of them do.

=============================  ==========================================================
``worker_shutting_down``       SIGTERM and the first SIGINT, immediately
``wait_for_soft_shutdown``     SIGQUIT, the second SIGINT and REMAP_SIGTERM, immediately; Celery sends
                               the signal above only after it has killed the tasks
a SIGHUP handler of our own    SIGHUP, for which Celery sends no signal; its event loop may notice it
                               only when the next message or heartbeat wakes it
the bootstep's ``close``       control.shutdown, fatal errors, the end of an embedded worker
=============================  ==========================================================
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from celery_continuations import celery_internals, conf, events
from celery_continuations.control import REPORTED
from celery_continuations.process import stop_flag as flags
from celery_continuations.stores import Status
from celery_continuations.stores.factory import check_stores, without_store
from celery_continuations.worker.maintenance import Maintenance, maintenance_of
from celery_continuations.worker.requests import decide
from celery_continuations.worker.unknown_tasks import requeue_unknown

__all__ = ["Hearing"]

logger = logging.getLogger(__name__)


class Hearing(bootsteps.StartStopStep):
    """Raise the worker's stop flag, and start and stop its maintenance."""

    name = "Continuations"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.flag = flags.new_flag(worker.hostname)
        self.maintenance: Maintenance | None = None
        celery_internals.around_soft_shutdown(
            worker,
            before=lambda: self.flag.raise_to(flags.STOPPING),
            after=lambda: self.flag.raise_to(flags.COLD),
        )
        signals.worker_shutting_down.connect(self._on_shutting_down, sender=worker.hostname, weak=False)
        signals.worker_shutdown.connect(self._on_shutdown, sender=worker, weak=False)
        signals.task_revoked.connect(self._on_revoked, weak=False)

    def start(self, worker: Any) -> None:
        """Start maintenance, and handle SIGHUP and the pool's end: Celery's handlers are in place.

        Warn if the app has no store.
        """
        if conf.app_setting(worker.app, "store") == "auto":
            problem = without_store(worker.app)
            if problem is not None:
                logger.warning("%s", problem)
        conf.predicate(conf.app_setting(worker.app, "should_interrupt"))  # a wrong path stops the worker here
        check_stores(worker.app)
        self._hear_hangup()
        celery_internals.read_all_results(worker)
        self.maintenance = Maintenance(
            worker.app, self.flag, lambda: celery_internals.pool_pids(worker), lambda: _sends_as(worker)
        )
        self.maintenance.start()
        requeue_unknown(worker.consumer, self.maintenance)
        celery_internals.take_over_revoke(_revoke, lambda task: hasattr(task, "claims_at_start"))

    def _hear_hangup(self) -> None:
        if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
            return
        restart = signal.getsignal(signal.SIGHUP)
        if not callable(restart):
            return

        def on_hangup(signum: int, frame: Any) -> None:
            restart(signum, frame)
            if state.should_stop is not None:  # the handler was Celery's own
                self.flag.raise_to(flags.STOPPING)

        signal.signal(signal.SIGHUP, on_hangup)

    def close(self, worker: Any) -> None:
        """Raise the flag: the worker stops, for whatever reason."""
        self.flag.raise_to(flags.STOPPING)

    def stop(self, worker: Any) -> None:
        """Raise the flag; called instead of :meth:`close` when the worker never started."""
        self.flag.raise_to(flags.STOPPING)

    def terminate(self, worker: Any) -> None:
        """Raise the flag."""
        self.flag.raise_to(flags.STOPPING)

    def _on_shutting_down(self, **kwargs: Any) -> None:
        self.flag.raise_to(flags.STOPPING)

    def _on_shutdown(self, **kwargs: Any) -> None:
        signals.task_revoked.disconnect(self._on_revoked)
        if self.maintenance is not None:
            self.maintenance.stop()
        self.flag.remove()

    def _on_revoked(self, sender: Any = None, request: Any = None, **kwargs: Any) -> None:
        if getattr(request, REPORTED, False):
            return  # this library has cancelled the task
        if self.maintenance is not None and hasattr(sender, "claims_at_start"):
            decide(sender, request.id, self.maintenance, Status.CANCELLED)


def _revoke(hostname: str, task_ids: set[str], of_celery: Callable[[set[str]], None]) -> bool:
    """Handle Celery's ``revoke`` in the worker of that name; return whether it has a store that keeps records."""
    flag = flags.flag_of(hostname)
    maintenance = maintenance_of(flag.worker) if flag else None
    return maintenance is not None and maintenance.revocations.add(task_ids, of_celery)


def _sends_as(worker: Any) -> str | None:
    """Return the worker's name, or None while it does not send task events."""
    wanted = events.are_wanted(getattr(worker.consumer, "event_dispatcher", None))
    return str(worker.hostname) if wanted else None
