"""A clock that stands still until a test moves it."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """The time of a rehearsed run, in which waits pass immediately.

    Args:
        start: seconds since the epoch; by default the current time in whole seconds.

    >>> clock = Clock()
    >>> clock.skip(3600)
    >>> clock.skipped
    3600.0
    """

    def __init__(self, start: float | None = None) -> None:
        self.start = float(int(time.time()) if start is None else start)
        self._now = self.start

    @property
    def skipped(self) -> float:
        """The seconds skipped so far: how long the run would have waited."""
        return round(self._now - self.start, 6)

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._now

    def skip(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: when it would go backwards.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not go backwards: skip({seconds!r})")
        self._now += seconds

    def skip_to(self, moment: float) -> None:
        """Let time pass until ``moment``; no-op for a moment in the past."""
        self._now = max(self._now, moment)
