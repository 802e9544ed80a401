"""How soon a worker requeues a message that its code cannot run, for another worker to try."""

from __future__ import annotations

import random

__all__ = ["CLAIM_COUNTDOWN", "requeue_delay"]

#: Seconds until a worker whose code cannot resume a task requeues it, on average.
REQUEUE_DELAY = 5.0

#: Seconds until the next attempt to claim a message while the store is unavailable.
CLAIM_COUNTDOWN = 5


def requeue_delay() -> float:
    """Return the seconds until a worker whose code cannot resume a task requeues it.

    They vary: kombu's Redis transport polls in turns of one second, so after the same whole number of seconds the same
    one of two idle workers would receive the message every time.

    >>> 2.5 <= requeue_delay() <= 7.5
    True
    """
    return round(REQUEUE_DELAY * random.SystemRandom().uniform(0.5, 1.5), 2)
