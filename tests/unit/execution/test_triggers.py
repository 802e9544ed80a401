"""The watcher, which has checkpoints do something."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from celery_continuations.execution.triggers import Watch, Watcher
from celery_continuations.process import stop_flag as flags
from tests.support.watched import await_, make_run


@pytest.mark.parametrize("due", ["flag", "save_at", "leave_at", "ask_at"])
def test_the_watcher_raises_attention_when_something_is_due(due: str, monkeypatch: Any) -> None:
    flag = flags.new_flag("watched@test")
    monkeypatch.delenv("CELERY_CONTINUATIONS_FLAG")
    watcher = Watcher()
    idle, busy = Watch(make_run(), flags.flag_at(None)), Watch(make_run(), flag)
    watcher.add(idle)
    watcher.add(busy)
    assert not busy.run.attention
    if due == "flag":
        flag.raise_to(flags.STOPPING)
    else:
        setattr(busy, due, time.monotonic())
    await_(lambda: busy.run.attention, "attention")
    assert not idle.run.attention
    watcher.remove(idle)
    watcher.remove(busy)
    await_(lambda: not watcher._looking, "the thread's end")
    watcher.add(idle)
    idle.save_at = time.monotonic()
    await_(lambda: idle.run.attention, "a thread again")
    watcher.remove(idle)
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
from celery_continuations.execution.triggers import Watch, watcher
flag = new_flag("green@test")
run = Run("id", Snapshot(), None)
watcher.add(Watch(run, flag))
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

    watch = Watch(make_run(), flags.flag_at(None))
    watcher.add(watch)
    child = os.fork()
    if child == 0:
        os._exit(int(watcher.running or watcher._looking))
    assert os.waitpid(child, 0)[1] == 0
    watcher.remove(watch)
