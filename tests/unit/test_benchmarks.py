"""The benchmarks, which are not run with the tests, fit the code."""

from __future__ import annotations

import pytest

from celery_continuations.core.run import Host, Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import opener


def test_their_host_is_one() -> None:
    pytest.importorskip("rich", reason="the benchmarks print with it")
    from benchmarks.items import Quiet

    assert {name for name in vars(Host) if not name.startswith("_")} <= set(vars(Quiet))
    run = Run("benchmark", Snapshot(), Quiet())
    assert list(run.iterate("items", opener("items", range(3)))) == [0, 1, 2]
    run.finish()
