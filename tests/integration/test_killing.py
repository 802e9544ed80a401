"""kill -9 of a pool child, of the main process, of both: nothing is lost, and little is repeated."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

COUNT = 60
SOON = {"continuation_lease": 2, "continuation_sweep_interval": 1}


def child_of(cluster: Any) -> int:
    """The process that ran the last item."""
    return int(cluster.trace.lines("item")[-1][2])


def repeated(items: list[int], count: int) -> int:
    """How many items were done more than once; fails when one is missing."""
    assert sorted(set(items)) == list(range(count)), "items are missing"
    return len(items) - count


def test_a_killed_child_is_noticed_and_its_task_goes_on(any_cluster: Any) -> None:
    worker = any_cluster.worker("-c", "2", continuation_checkpoint_interval=0)
    result = any_cluster.send("rows", COUNT)
    any_cluster.trace.await_items(8)
    killed = time.monotonic()
    os.kill(child_of(any_cluster), signal.SIGKILL)
    any_cluster.trace.await_items(2, "run")
    back = time.monotonic() - killed
    assert result.get(timeout=30) == COUNT
    assert repeated(any_cluster.trace.items(), COUNT) <= 1
    assert back < 2.5, f"{back:.1f} s until the task ran again"
    assert "WorkerLostError" not in worker.text.split("recovered")[-1]


def test_a_killed_worker_is_succeeded_by_another(any_cluster: Any) -> None:
    first = any_cluster.worker("-c", "1", continuation_checkpoint_interval=0, **SOON)
    result = any_cluster.send("rows", COUNT)
    any_cluster.trace.await_items(8)
    any_cluster.worker("-c", "1", **SOON)
    first.kill()
    assert result.get(timeout=30) == COUNT
    assert repeated(any_cluster.trace.items(), COUNT) <= 1
