"""A task that changes its list of rows gets the whole list again, whatever happens to its worker."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

COUNT = 40
SOON = {"continuation_lease": 2, "continuation_sweep_interval": 1, "continuation_checkpoint_interval": 0}


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("how", ["stopped", "child killed", "killed", "stopped and killed"])
def test_the_header_and_all_rows(on_redis: Any, serializer: str, how: str) -> None:
    options = {"accept_content": ["json", "pickle"], "env": {"C_FORCE_ROOT": "1"}, **SOON}
    worker = on_redis.worker("-c", "1", **options)
    result = on_redis.send("table", ["header", *range(COUNT)], serializer=serializer)
    done = 0
    for what in how.split(" and "):
        done += 8
        on_redis.trace.await_items(done)
        if what == "child killed":
            os.kill(int(on_redis.trace.lines("item")[-1][2]), signal.SIGKILL)
            continue
        if what == "stopped":
            worker.kill("SIGTERM")
            worker.await_exit()
            assert result.state == "RETRY"
        else:
            worker.kill()
        worker = on_redis.worker("-c", "1", **options)
    assert result.get(timeout=30) == ["header", COUNT]
    assert sorted(set(on_redis.trace.items())) == list(range(COUNT))
    assert len(on_redis.trace.items()) <= COUNT + 1  # a kill may repeat its last item
    runs = on_redis.trace.lines("run")
    assert runs == [["run", "header"]] * (2 + how.count(" and "))
