"""Threads, locks and sleeps of the operating system, even if gevent has replaced them.

A greenlet could not check a task's triggers while the task computes.
"""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["new_lock", "sleep", "start_thread"]


def _original(module: Any, name: str) -> Any:
    gevent_monkey = sys.modules.get("gevent.monkey")
    if gevent_monkey is not None:
        return gevent_monkey.get_original(module.__name__, name)
    return getattr(module, name)


def new_lock() -> Any:
    """Return a lock of the operating system."""
    return _original(_thread, "allocate_lock")()


def sleep(seconds: float) -> None:
    """Block this operating system thread."""
    _original(time, "sleep")(seconds)


def start_thread(func: Callable[[], None]) -> None:
    """Run ``func`` in an operating system thread that does not keep the process alive."""
    _original(_thread, "start_new_thread")(func, ())
