"""The watcher, which has checkpoints do something."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from celery_continuations.execution.triggers import Triggers, Watcher
from celery_continuations.process import stop_flag as flags
from tests.support.watched import await_, make_run


@pytest.mark.parametrize(
    "due",
    [{}, {"save_every": 0.0}, {"runtime": 0.0}, {"predicate": lambda: None}],
    ids=lambda due: next(iter(due), "flag"),
)
def test_the_watcher_raises_attention_when_something_is_due(due: dict[str, Any], monkeypatch: Any) -> None:
    flag = flags.new_flag("watched@test")
    monkeypatch.delenv("CELERY_CONTINUATIONS_FLAG")
    watcher = Watcher()
    idle, busy = Triggers(make_run(), flags.flag_at(None)), Triggers(make_run(), flag, **due)
    watcher.add(idle)
    assert not busy.run.attention
    watcher.add(busy)
    if not due:
        flag.raise_to(flags.STOPPING)
    await_(lambda: busy.run.attention, "attention")
    assert not idle.run.attention
    watcher.remove(idle)
    watcher.remove(busy)
    await_(lambda: not watcher._is_checking, "the thread's end")
    later = Triggers(make_run(), flags.flag_at(None), runtime=0.0)
    watcher.add(later)
    await_(lambda: later.run.attention, "a thread again")
    watcher.remove(later)
    flag.remove()


def test_the_watcher_looks_while_gevent_computes() -> None:
    pytest.importorskip("gevent")
    code = """
from gevent import monkey
monkey.patch_all()
import time
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.process.stop_flag import new_flag, STOPPING
from celery_continuations.execution.triggers import Triggers, watcher
flag = new_flag("green@test")
run = Run("id", Snapshot(), None)
watcher.add(Triggers(run, flag))
flag.raise_to(STOPPING)
until = time.monotonic() + 10
while not run.attention and time.monotonic() < until:
    pass  # never gives the hub a turn
print(run.attention)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_what_the_parent_watches_is_not_the_childs() -> None:
    from celery_continuations.execution.triggers import watcher

    watch = Triggers(make_run(), flags.flag_at(None))
    watcher.add(watch)
    child = os.fork()
    if child == 0:
        os._exit(int(bool(watcher.running) or watcher._is_checking))
    assert os.waitpid(child, 0)[1] == 0
    watcher.remove(watch)
