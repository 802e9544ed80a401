"""What makes a checkpoint do something: a stop, a time slice, the task's own predicate, a save that is due.

In each process that runs continuable tasks, one operating system thread checks the clock and the stop flag, so that
tasks need not. It does no I/O: it sets ``run.attention``, and the task does what is due at its next checkpoint.
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

# Seconds between two calls of a task's own predicate.
_ASK_EVERY = 0.1

# Seconds between two checks of whether another execution owns the task, while the worker's lease is expired.
_VERIFY_EVERY = 0.1


class Triggers:
    """Decide when a run has something to do at its next checkpoint.

    Args:
        run: the run.
        flag: the stop flag of its worker.
        save_every: seconds between two saves within a step, 0 for each checkpoint; None if nothing is saved.
        runtime: seconds after which the execution is interrupted; None for no limit.
        predicate: the task's own predicate, or None; a true value that it returns is the reason to interrupt.

    Attributes:
        run: the run.
        answer: the reason that the predicate has returned, or None.
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
        self._verify = False  # whether to ask the store if another execution owns the task: the lease had expired
        self._verify_at = 0.0
        self._due_since = inf
        self._lapses = flag.lapses

    def check(self) -> None:
        """Set the run's attention if something is due."""
        now = time.monotonic()
        # A main process that was frozen may have renewed the lease before this process woke up.
        if now >= self._verify_at and (self.flag.lease_is_over or self._lapses != self.flag.lapses):
            self._verify = True
        if self.is_due(now):
            self._due_since = min(self._due_since, now)  # before the attention: the run reads it then
            self.run.attention = True

    def is_due(self, now: float) -> bool:
        """Whether a checkpoint at this time has something to do."""
        return bool(self._verify or self.flag.level or now >= min(self._save_at, self._leave_at, self._ask_at))

    def reason_to_leave(self) -> str | None:
        """Return why the execution must be interrupted at this checkpoint, or None."""
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
        """Whether to save at this checkpoint, which also shows whether this execution still owns the task."""
        return self._verify or time.monotonic() >= self._save_at

    def saving(self) -> None:
        """Note that a save begins: a lease that expires from now on needs another check."""
        self._verify, self._lapses = False, self.flag.lapses

    def saved(self, rest: float = 0.0) -> None:
        """Note that a save has ended; do not save again for at least ``rest`` seconds."""
        now = time.monotonic()
        self._verify_at = now + max(_VERIFY_EVERY, rest)
        self._save_at = now + max(self._interval, rest)

    def attended(self, is_leaving: bool) -> None:
        """Note that everything due at this checkpoint is done."""
        now = time.monotonic()
        if self._save_at <= now:  # at each checkpoint, for instance
            self.run.attention = True
        self._due_since = now if is_leaving or self.run.attention else inf

    @property
    def gap(self) -> float:
        """Seconds for which something has been due without a checkpoint."""
        return round(time.monotonic() - self._due_since, 1)  # negative if nothing is due


class Watcher:
    """The triggers of this process."""

    def __init__(self) -> None:
        self._running: set[Triggers] = set()
        self._leaving: set[Triggers] = set()
        self._lock = native.new_lock()
        self._is_checking = False

    @property
    def running(self) -> tuple[Triggers, ...]:
        """The triggers of tasks that can be interrupted at their next checkpoint."""
        return tuple(self._running)

    @property
    def leaving(self) -> bool:
        """Whether an interrupted task's message is not published yet."""
        return bool(self._leaving)

    def add(self, triggers: Triggers) -> None:
        """Start checking them."""
        with self._lock:
            self._running.add(triggers)
            start = not self._is_checking
            self._is_checking = True
        if start:
            native.start_thread(self._check)

    def leave(self, triggers: Triggers) -> None:
        """Stop checking them; the task's message is still to be published."""
        with self._lock:
            self._running.discard(triggers)
            self._leaving.add(triggers)

    def remove(self, triggers: Triggers) -> None:
        """Stop checking them."""
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

# Threads do not survive a fork, and the parent's tasks do not run in the child.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watcher.__init__)  # type: ignore[misc]
