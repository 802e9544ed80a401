"""What makes a checkpoint do something: a stop, a time slice, the task's own predicate, a save that is due.

One thread of the operating system in each process that runs continuable tasks checks the clock and the stop flag, so
that tasks need not. It does no I/O: it sets ``run.attention``, and the task itself does what is due, at its next
checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import inf
from typing import Any

from celery_continuations.core.run import Run
from celery_continuations.process import native
from celery_continuations.process.stop_flag import StopFlag

__all__ = ["MAX_RUNTIME", "STOPPING", "TICK", "Triggers", "Watcher", "watcher"]

STOPPING = "stopping"
MAX_RUNTIME = "max_runtime"

#: Seconds between two checks.
TICK = 0.02

# Seconds between two questions to a task's own predicate.
_ASK_EVERY = 0.1

# Seconds between two checks for another execution that has the task, while the worker's lease is over.
_VERIFY_EVERY = 0.1


class Triggers:
    """When a run has something to do at its next checkpoint.

    Args:
        run: whose triggers these are.
        flag: of the worker that runs it.
        save_every: seconds between two saves within a step, 0 for each checkpoint; None where nothing is saved.
        runtime: seconds after which the execution has run long enough; None for no limit.
        predicate: the task's own, or None; what it returns is the reason to leave.

    Attributes:
        run: the run.
        answer: of the predicate, until it has been acted on.
    """

    def __init__(
        self,
        run: Run,
        flag: StopFlag,
        *,
        save_every: float | None = None,
        runtime: float | None = None,
        predicate: Callable[[], Any] | None = None,
    ) -> None:
        now = time.monotonic()
        self.flag = flag
        self.runtime = runtime
        self.answer: str | None = None
        self.run = run
        self._interval = inf if save_every is None else save_every
        self._predicate = predicate
        self._save_at = now + self._interval
        self._leave_at = inf if runtime is None else now + runtime
        self._ask_at = inf if predicate is None else now
        self._verify = False  # whether to ask the store if another execution has the task: the lease was over
        self._verify_at = 0.0
        self._due_since = inf
        self._lapses = flag.lapses

    def check(self) -> None:
        """Set the run's attention when something is due."""
        now = time.monotonic()
        # A main process that was frozen may have renewed the lease before this process was awake.
        if now >= self._verify_at and (self.flag.lease_is_over or self._lapses != self.flag.lapses):
            self._verify = True
        if self._is_due(now):
            self._due_since = min(self._due_since, now)  # first: with its attention set, the run reads it
            self.run.attention = True

    def _is_due(self, now: float) -> bool:
        return bool(self._verify or self.flag.level or now >= min(self._save_at, self._leave_at, self._ask_at))

    def reason_to_leave(self) -> str | None:
        """Return why the execution is to leave at this checkpoint, or None."""
        now = time.monotonic()
        if self.flag.level:
            return STOPPING
        if now >= self._leave_at:
            return MAX_RUNTIME
        if self.answer is None and self._predicate is not None and now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY
            answer = self._predicate()
            if answer:
                self.answer = answer if isinstance(answer, str) else repr(answer)
        return self.answer

    def is_save_due(self) -> bool:
        """Whether to save at this checkpoint, and learn from the store who has the task."""
        return self._verify or time.monotonic() >= self._save_at

    def saving(self) -> None:
        """The store is asked now; what happens to the lease from here on is to be asked about again."""
        self._verify, self._lapses = False, self.flag.lapses

    def saved(self, rest: float = 0.0) -> None:
        """The store was asked; leave it alone for ``rest`` seconds at least."""
        now = time.monotonic()
        self._verify_at = now + max(_VERIFY_EVERY, rest)
        self._save_at = now + max(self._interval, rest)

    def attended(self, is_leaving: bool) -> None:
        """What was due at this checkpoint is done."""
        now = time.monotonic()
        if self._save_at <= now:  # at each checkpoint, for instance
            self.run.attention = True
        self._due_since = now if is_leaving or self.run.attention else inf

    @property
    def gap(self) -> float:
        """For how many seconds something has been due, and the task has come to no checkpoint."""
        return round(time.monotonic() - self._due_since, 1)  # less than nothing where nothing is due


class Watcher:
    """The triggers of this process."""

    def __init__(self) -> None:
        self._running: set[Triggers] = set()
        self._leaving: set[Triggers] = set()
        self._lock = native.new_lock()
        self._is_checking = False

    @property
    def running(self) -> tuple[Triggers, ...]:
        """Of the tasks that can leave at their next checkpoint."""
        return tuple(self._running)

    @property
    def leaving(self) -> bool:
        """Whether a task has left whose message is not out yet."""
        return bool(self._leaving)

    def add(self, triggers: Triggers) -> None:
        """Check them from now on."""
        with self._lock:
            self._running.add(triggers)
            start = not self._is_checking
            self._is_checking = True
        if start:
            native.start_thread(self._check)

    def leave(self, triggers: Triggers) -> None:
        """Check them no more; but the message is still to go out."""
        with self._lock:
            self._running.discard(triggers)
            self._leaving.add(triggers)

    def remove(self, triggers: Triggers) -> None:
        """Check them no more."""
        with self._lock:
            self._running.discard(triggers)
            self._leaving.discard(triggers)

    def _check(self) -> None:
        while True:
            native.sleep(TICK)
            with self._lock:
                running = tuple(self._running)
                if not running:
                    self._is_checking = False
                    return
            for triggers in running:
                triggers.check()


watcher = Watcher()

# Threads do not survive a fork; what the parent watched is not the child's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watcher.__init__)  # type: ignore[misc]
