"""How often an outage is logged."""

from __future__ import annotations

import time

__all__ = ["Reminder"]

# Seconds between two warnings about one outage.
_REMIND_EVERY = 60.0


class Reminder:
    """Limits how often an outage is logged: when it begins, each minute, and when it ends."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._next = 0.0

    @property
    def is_active(self) -> bool:
        """Whether the outage lasts."""
        return self._began is not None

    def is_due(self) -> bool:
        """Note that the outage lasts; return whether to warn of it now."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if now < self._next:
            return False
        self._next = now + _REMIND_EVERY
        return True

    def reset(self) -> float | None:
        """Note that the store answers; return for how many seconds an outage has lasted until now, or None."""
        began, self._began, self._next = self._began, None, 0.0
        return None if began is None else time.monotonic() - began
