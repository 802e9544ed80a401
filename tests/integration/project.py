"""The project that the tests' workers run."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery

from celery_continuations import ContinuableTask

app = Celery("project", set_as_current=True)
app.conf.update(json.loads(os.environ.get("TEST_CONF", "{}")))


def trace(*words: Any) -> None:
    with open(os.environ["TEST_TRACE"], "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@app.task(base=ContinuableTask, bind=True, name="project.rows")
def rows(self: Any, count: int, delay: float = 0.03, value: Any = None) -> Any:
    """Work through rows, one at a time."""
    trace("run", self.request.id, os.getpid(), self.request.retries)
    for row in self.iterate("rows", range(count)):
        time.sleep(delay)
        trace("item", row, os.getpid())
    return count if value is None else value
