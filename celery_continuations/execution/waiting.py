"""What a wait needs of an execution in a worker."""

from __future__ import annotations

from typing import Any, NoReturn

from celery_continuations.core.evolution import old_names
from celery_continuations.core.inbox import TIMED_OUT
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Waiting
from celery_continuations.exceptions import StoreError
from celery_continuations.execution.checkpoints import Checkpoints

__all__ = ["CHECK_AGAIN", "Waiter"]

#: Seconds until a task whose store is unavailable checks again.
CHECK_AGAIN = 5


class Waiter:
    """See :class:`celery_continuations.waits.Waiter`."""

    is_direct = False

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._message = checkpoints.message
        self.applied: dict[str, Any] = {}

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._message.now()

    def is_over(self, until: float | None) -> bool:
        """Whether ``until``, in seconds since the epoch, has passed."""
        return until is not None and self.now() >= until

    def delivery(self, name: str, close: bool) -> Outcome | None:
        """Return what was delivered under that name; ``close`` ends the wait, so that there is always an outcome."""
        if not self._message.store.keeps:
            return None
        # A delivery under an earlier name of the wait counts as well.
        names = [name, *old_names(name, self._message.setting("renamed_steps"))]
        try:
            with self._checkpoints.ownership.writing() as owned:
                if not close:
                    inbox = owned.delivered()
                    return next((inbox[one] for one in names if one in inbox), None)
                outcomes = [owned.close_wait(one) for one in names]
            return next((one for one in outcomes if one != TIMED_OUT), TIMED_OUT)
        except StoreError as exc:
            self._message.reporter.not_saved(f"the end of wait {name!r}", exc)
            self._leave_for_store()

    def fits(self, size: int) -> bool:
        """Whether an outcome of that many characters may be kept: half of the snapshot stays free."""
        return len(self._checkpoints.text()) + size <= self._checkpoints.largest // 2

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """Free the worker; see :meth:`Checkpoints.leave`."""
        self._checkpoints.leave(waiting, reason)

    def keep(self) -> None:
        """Save now; free the worker and try again later if that is not possible."""
        checkpoints = self._checkpoints
        checkpoints.save(checkpoints.run)
        if checkpoints.saved_text != checkpoints.text():
            self._leave_for_store()

    def _leave_for_store(self) -> NoReturn:
        self.leave(Waiting("time", self.now() + CHECK_AGAIN), "the store is unavailable")
