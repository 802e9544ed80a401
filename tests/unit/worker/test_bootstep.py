"""The hooks that notice a worker's stop."""

from __future__ import annotations

import signal

from celery_continuations.process import stop_flag as flags


def test_a_hangup_that_is_not_celerys_does_not_stop_anything() -> None:
    from celery.worker import state

    from celery_continuations.worker.bootstep import Hearing

    heard: list[str] = []
    before = signal.signal(signal.SIGHUP, lambda *args: heard.append("own"))
    hearing = Hearing.__new__(Hearing)
    hearing.flag = flags.new_flag("hangup@test")
    try:
        hearing._hear_hangup()
        signal.raise_signal(signal.SIGHUP)
        assert (heard, hearing.flag.level) == (["own"], flags.RUNNING)
        state.should_stop = 0
        signal.raise_signal(signal.SIGHUP)
        assert hearing.flag.level == flags.STOPPING
    finally:
        state.should_stop = None
        signal.signal(signal.SIGHUP, before)
        hearing.flag.remove()
