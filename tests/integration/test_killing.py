"""kill -9 of a pool child, the main process, or both: no item is lost, and few are repeated."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

COUNT = 60
SOON = {"continuation_lease": 2, "continuation_sweep_interval": 1}


def child_of(cluster: Any) -> int:
    """Return the process that ran the last item."""
    return int(cluster.trace.lines("item")[-1][2])


def repeated(items: list[int], count: int) -> int:
    """Return how many items were done more than once; fail if one is missing."""
    assert sorted(set(items)) == list(range(count)), "items are missing"
    return len(items) - count


def test_a_killed_child_is_noticed_and_its_task_continues(any_cluster: Any) -> None:
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
