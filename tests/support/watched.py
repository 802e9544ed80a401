"""Runs that a watcher watches, and conditions that come true soon."""

from __future__ import annotations

import time
from typing import Any

from celery_continuations.core.run import Run
from celery_continuations.execution.direct import DirectExecution


def await_(condition: Any, what: Any) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, what() if callable(what) else what
        time.sleep(0.002)


def make_run() -> Run:
    class Request:
        id = "some-id"

    return DirectExecution(type("Task", (), {"continuation_version": 1})(), Request()).run
