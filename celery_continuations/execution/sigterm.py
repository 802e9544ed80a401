"""A SIGTERM for a pool child whose worker is stopping must not cut the current item.

systemd signals the whole process group by default, and a cold shutdown signals every busy
child.  The handler that billiard gives its children raises SystemExit wherever the task is.
Ours waits for the stop flag, which the main process raises about now; with the flag up and a
continuable task running it lets the task go on to its next checkpoint.  Otherwise (revoke
with terminate, hard time limits) it calls the handler that was there.

It is installed when a child first runs a continuable task, and not at the child's start,
because billiard resets its children's handlers after their initializer.
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

#: Seconds to wait for the flag: the child can get a group's signal before the parent does.
PATIENCE = 1.0

#: Seconds that a cold shutdown leaves the current item.
COLD_GRACE = 1.0

_deferring = False


def defer_terminate(flag: StopFlag) -> None:
    """Install the handler, once, where this is the main thread of a prefork pool's child."""
    global _deferring
    if _deferring or not celery_internals.in_pool_child() or threading.current_thread() is not threading.main_thread():
        return
    _deferring = True
    # SIGQUIT too: Ctrl-\ in a terminal sends it to the whole group. Each is deferred once, for a cold
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
            return  # and cut nothing between the saved progress and the message that carries it
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
