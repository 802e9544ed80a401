"""Three hooks that together hear every way of stopping a worker.  No two of them do.

=============================  ==========================================================
``worker_shutting_down``       SIGTERM and the first SIGINT, at once
``wait_for_soft_shutdown``     SIGQUIT, the second SIGINT, REMAP_SIGTERM, at once; the signal
                               above comes only after the tasks were killed
the bootstep's ``close``       control.shutdown, SIGHUP, fatal errors, an embedded worker's end
=============================  ==========================================================
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps, signals

from celery_continuations import seams
from celery_continuations.worker import flag as flags

__all__ = ["Hearing"]


class Hearing(bootsteps.StartStopStep):  # type: ignore[misc]
    """Raises the worker's stop flag."""

    name = "Continuations"
    requires = {"celery.worker.components:Pool"}

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self.flag = flags.new_flag(worker.hostname)
        seams.around_soft_shutdown(
            worker,
            before=lambda: self.flag.raise_to(flags.STOPPING),
            after=lambda: self.flag.raise_to(flags.COLD),
        )
        signals.worker_shutting_down.connect(self._on_shutting_down, sender=worker.hostname, weak=False)
        signals.worker_shutdown.connect(self._on_shutdown, sender=worker, weak=False)

    def close(self, worker: Any) -> None:
        """The worker stops, however it was told to."""
        self.flag.raise_to(flags.STOPPING)

    def stop(self, worker: Any) -> None:
        """As :meth:`close`; called in its place when the worker never started."""
        self.flag.raise_to(flags.STOPPING)

    def terminate(self, worker: Any) -> None:
        """As :meth:`close`."""
        self.flag.raise_to(flags.STOPPING)

    def _on_shutting_down(self, **kwargs: Any) -> None:
        self.flag.raise_to(flags.STOPPING)

    def _on_shutdown(self, **kwargs: Any) -> None:
        self.flag.remove()
