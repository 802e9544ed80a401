"""Keep a SIGTERM to a pool child from cutting the current item while its worker is stopping.

systemd signals the whole process group by default, and a cold shutdown signals every busy child.  The handler that
billiard gives its children raises SystemExit wherever the task is.  Ours waits for the stop flag, which the main
process raises at about the same time.  If the flag is up and a continuable task is running, the task continues to its
next checkpoint.  Otherwise (revoke with terminate, hard time limits) the previous handler is called.

It is installed when a child first runs a continuable task, not when the child starts, because billiard resets its
children's handlers after their initializer.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from celery_continuations import celery_internals
from celery_continuations.execution.triggers import watcher
from celery_continuations.process import native
from celery_continuations.process.stop_flag import COLD, StopFlag

__all__ = ["defer_terminate"]

#: Seconds to wait for the flag: a child may receive the group's signal before the parent does.
PATIENCE = 1.0

#: Seconds that the current item gets in a cold shutdown.
COLD_GRACE = 1.0

_deferring = False


def defer_terminate(flag: StopFlag) -> None:
    """Install the handler once, if this is the main thread of a prefork pool's child."""
    global _deferring
    if _deferring or not celery_internals.in_pool_child() or threading.current_thread() is not threading.main_thread():
        return
    _deferring = True
    # SIGQUIT too: Ctrl-\ in a terminal sends it to the whole group. Each signal is deferred once, because a cold
    # shutdown sends the other one right after it.
    for number in {celery_internals.terminate_signal(), getattr(signal, "SIGQUIT", signal.SIGTERM)}:
        previous = signal.getsignal(number)
        if callable(previous):
            signal.signal(number, _deferred(number, previous, flag))


def _deferred(number: int, previous: Callable[..., Any], flag: StopFlag) -> Callable[..., None]:
    deferred = False

    def on_terminate(signum: int, frame: Any) -> None:
        nonlocal deferred
        until = time.monotonic() + PATIENCE
        while not flag.level and time.monotonic() < until:
            time.sleep(0.005)
        if flag.level and watcher.leaving:
            return  # do not interrupt the hand-over between the save and the publishing of the message
        if deferred or not flag.level or not watcher.running:
            previous(signum, frame)
            return
        deferred = True
        if flag.level == COLD:
            native.start_thread(insist)

    def insist() -> None:
        native.sleep(COLD_GRACE)
        if watcher.running:
            os.kill(os.getpid(), number)

    return on_terminate
