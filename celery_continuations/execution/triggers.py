"""Looks at the clock and the stop flag, so that tasks need not.

One thread of the operating system in each process that runs continuable tasks.  It does no
I/O: it raises ``run.attention``, and the task itself does what is due, at its next checkpoint.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from math import inf

from celery_continuations.core.run import Run
from celery_continuations.process import native
from celery_continuations.process.stop_flag import StopFlag

__all__ = ["TICK", "Watch", "Watcher", "watcher"]

#: Seconds between two looks.
TICK = 0.02


@dataclass(eq=False)
class Watch:
    """When a run needs attention.  Times are of ``time.monotonic``.

    Attributes:
        run: whose attention to raise.
        flag: of the worker that runs it.
        save_at: when progress is to be saved.
        leave_at: when the execution has run long enough.
        ask_at: when the task's own predicate is to be asked.
        verify_at: when to check again whether another execution has the task, while the worker's lease is over.
        verify: whether to ask that now.
        due_since: since when the run's attention has been wanted, if it is.
    """

    run: Run
    flag: StopFlag
    save_at: float = inf
    leave_at: float = inf
    ask_at: float = inf
    verify_at: float = 0.0
    verify: bool = False
    due_since: float = inf
    _lapses: int = field(init=False)

    def __post_init__(self) -> None:
        self._lapses = self.flag.lapses

    def look(self) -> None:
        """Raise the run's attention when something is due."""
        now = time.monotonic()
        # A main process that was frozen may have renewed the lease before this process was awake.
        if now >= self.verify_at and (self.flag.lease_is_over or self._lapses != self.flag.lapses):
            self.verify = True
        due = self.verify or self.flag.level or now >= min(self.save_at, self.leave_at, self.ask_at)
        if due:
            self.due_since = min(self.due_since, now)  # first: with its attention raised, the run reads it
            self.run.attention = True

    def verifying(self) -> None:
        """The store is asked now; what happens to the lease from here on is to be asked about again."""
        self.verify, self._lapses = False, self.flag.lapses


class Watcher:
    """The watched runs of this process."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._leaving: set[Watch] = set()
        self._lock = native.new_lock()
        self._looking = False

    @property
    def running(self) -> bool:
        """Whether a task is running that can leave at its next checkpoint."""
        return bool(self._watches)

    @property
    def leaving(self) -> bool:
        """Whether a task has left whose message is not out yet."""
        return bool(self._leaving)

    def add(self, watch: Watch) -> None:
        """Watch from now on."""
        with self._lock:
            self._watches.add(watch)
            start = not self._looking
            self._looking = True
        if start:
            native.start_thread(self._look)

    def leave(self, watch: Watch) -> None:
        """Watch no more; but its message is still to go out."""
        with self._lock:
            self._watches.discard(watch)
            self._leaving.add(watch)

    def remove(self, watch: Watch) -> None:
        """Watch no more."""
        with self._lock:
            self._watches.discard(watch)
            self._leaving.discard(watch)

    def _look(self) -> None:
        while True:
            native.sleep(TICK)
            with self._lock:
                watches = tuple(self._watches)
                if not watches:
                    self._looking = False
                    return
            for watch in watches:
                watch.look()


watcher = Watcher()

# Threads do not survive a fork; what the parent watched is not the child's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watcher.__init__)  # type: ignore[misc]
