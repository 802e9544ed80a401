"""The benchmarks, which are not run with the tests, fit the code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_continuations.core.host import Host
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import opener


def test_their_host_is_one() -> None:
    pytest.importorskip("rich", reason="the benchmarks print with it")
    from benchmarks.items import Quiet

    assert {name for name in vars(Host) if not name.startswith("_")} <= set(vars(Quiet))
    run = Run("benchmark", Snapshot(), Quiet())
    assert list(run.declare(Iteration(run, "items", opener("items", range(3))))) == [0, 1, 2]
    run.finish()


def test_each_loop_can_be_timed(monkeypatch: Any) -> None:
    pytest.importorskip("rich", reason="the benchmarks print with it")
    from benchmarks import items

    for case in items._cases():
        assert items._row(replace(case, items=case.items[:100]), rounds=1).measured


def test_a_task_times_its_own_loops(task: Any, worker: Any, monkeypatch: Any) -> None:
    pytest.importorskip("rich", reason="the benchmarks print with it")
    from benchmarks import loops

    monkeypatch.setattr(loops, "ITEMS", 100)
    monkeypatch.setattr(loops, "ROWS", 100)
    for case in loops.CASES:
        result = task(loops.time_items).apply_async([case, 3])
        worker.drain()
        assert {name: taken > 0 for name, taken in result.get().items()} == dict.fromkeys(
            ("bare", "floor", "ours"), True
        )
