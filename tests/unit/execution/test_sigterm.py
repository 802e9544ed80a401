"""A pool child that receives SIGTERM."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from celery_continuations import celery_internals
from celery_continuations.execution.triggers import Triggers, Watcher
from celery_continuations.process import stop_flag as flags
from tests.support.watched import await_, make_run


@pytest.fixture
def child(monkeypatch: Any) -> Any:
    """The handler of a pool child in this process, with a previous handler that only counts."""
    from celery_continuations.execution import sigterm

    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *args: calls.append(1))
    flag = flags.new_flag("child@test")
    monkeypatch.setattr(sigterm, "_deferring", False)
    monkeypatch.setattr(sigterm, "PATIENCE", 0.2)
    monkeypatch.setattr(sigterm, "COLD_GRACE", 0.05)
    monkeypatch.setattr(celery_internals, "in_pool_child", lambda: True)
    watcher = Watcher()
    monkeypatch.setattr(sigterm, "watcher", watcher)
    sigterm.defer_terminate(flag)
    watch = Triggers(make_run(), flag)
    yield flag, watcher, watch, calls
    watcher.remove(watch)
    signal.signal(signal.SIGTERM, before)
    flag.remove()


def test_a_child_told_to_end_while_its_worker_runs_on_ends(child: Any) -> None:
    """revoke(terminate=True), hard time limits."""
    _, watcher, watch, calls = child
    watcher.add(watch)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_a_child_waits_for_the_flag_that_its_parent_is_about_to_raise(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    threading.Timer(0.05, flag.raise_to, [flags.STOPPING]).start()
    signal.raise_signal(signal.SIGTERM)
    assert calls == [], "the task stops at its next checkpoint"
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1], "a second signal ends the child at once"


def test_an_idle_child_ends_with_its_worker(child: Any) -> None:
    flag, _, _, calls = child
    flag.raise_to(flags.STOPPING)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]


def test_a_cold_stop_gives_the_current_item_limited_time(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    flag.raise_to(flags.COLD)
    signal.raise_signal(signal.SIGTERM)
    assert calls == []
    await_(lambda: calls == [1], "the second signal, by itself")


def test_no_signal_cuts_what_is_between_a_saved_progress_and_its_message(child: Any) -> None:
    flag, watcher, watch, calls = child
    watcher.add(watch)
    flag.raise_to(flags.COLD)
    watcher.leave(watch)
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert calls == []
    watcher.remove(watch)
    signal.raise_signal(signal.SIGTERM)
    assert calls == [1]
