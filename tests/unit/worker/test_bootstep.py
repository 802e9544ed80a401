"""The hooks that notice a worker's stop."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from celery_continuations.control import REPORTED
from celery_continuations.process import stop_flag as flags
from celery_continuations.stores import Status


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


@pytest.mark.parametrize("is_own", [True, False])
def test_the_record_follows_a_revoke_that_is_celerys(is_own: bool, task: Any, store: Any) -> None:
    """A cancellation by this library has ended the record before it sends Celery's signal."""
    from celery_continuations.worker.bootstep import Hearing

    decided: list[Any] = []
    sweeper = SimpleNamespace(decide=lambda *args: decided.append(args))
    hearing = Hearing.__new__(Hearing)
    hearing.maintenance = SimpleNamespace(sweeper_of=lambda store: sweeper)  # type: ignore[assignment]
    request = SimpleNamespace(id="7f3a", **({REPORTED: True} if is_own else {}))
    hearing._on_revoked(sender=task(nothing), request=request)
    assert decided == ([] if is_own else [("7f3a", Status.CANCELLED, None)])


def nothing(self: Any) -> None:
    """Do nothing."""
