"""Keep a soft time limit from ending a task while its outcome is written.

billiard's signal handler raises SoftTimeLimitExceeded wherever the main thread is.  After a state is stored, or while
a record is handed over, Celery would take that for the task's error: it stores a second state, calls errbacks and fails
the chord, and the message is published nevertheless.  So the limit ends the task's own code only.  A limit that comes
while it is held waits until the task's code continues, and is dropped if the code has ended.

The handler decides, not the thread's signal mask: the kernel delivers a blocked signal to any other thread of the
process, and Python would run the handler in the main thread nevertheless.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from celery_continuations import celery_internals

__all__ = ["SoftLimit", "soft_limit"]

T = TypeVar("T")


class SoftLimit:
    """The soft time limit of the task that this process runs; no-op outside of a prefork pool."""

    def __init__(self) -> None:
        self._previous: Callable[..., Any] | None = None
        self._is_held = False
        self._has_come = False

    def hold(self) -> None:
        """Make a limit wait from now on."""
        if self._is_heard():
            self._is_held = True

    def let(self) -> None:
        """Let a limit end the task's code from now on.  Raises the one that has waited."""
        if not self._is_heard():
            return
        self._is_held = False
        if self._has_come:
            self._has_come = False
            assert self._previous is not None
            self._previous(celery_internals.SOFT_LIMIT, None)

    def drop(self) -> None:
        """Drop a limit that has waited: the task has ended."""
        if self._is_heard():
            self._is_held = self._has_come = False

    def around(self, run: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Run the task's own code, which a limit may end."""
        try:
            self.let()
            return run(*args, **kwargs)
        finally:
            self.hold()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the limit within the task's own code.  Raises one that has waited at the end."""
        was_held = self._is_held
        self.hold()
        try:
            yield
        finally:
            if not was_held:
                self.let()

    def _is_heard(self) -> bool:
        """Install the handler once; return whether this is the thread that signals interrupt.

        Not earlier than in a task: billiard sets its children's handlers after their initializer.
        """
        if threading.current_thread() is not threading.main_thread() or not celery_internals.in_pool_child():
            return False
        if self._previous is None:
            previous = signal.getsignal(celery_internals.SOFT_LIMIT)
            self._previous = previous if callable(previous) else _ignore
            signal.signal(celery_internals.SOFT_LIMIT, self._on_limit)
        return True

    def _on_limit(self, signum: int, frame: Any) -> None:
        if self._is_held:
            self._has_come = True
        elif self._previous is not None:
            self._previous(signum, frame)


def _ignore(signum: int, frame: Any) -> None:
    """Stand in for a handler that is not a function."""


soft_limit = SoftLimit()
