"""``celery continuations`` as a user runs it: as a separate process, on a terminal and in a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import await_condition
from tests.support.shell import Shell

pytestmark = pytest.mark.redis


@pytest.fixture
def shell(on_redis: Cluster) -> Shell:
    return Shell(on_redis)


def test_the_life_of_a_task(on_redis: Cluster, shell: Shell, show: Callable[[str, str], None]) -> None:
    worker = on_redis.worker()
    task = on_redis.send("rows", 600, 0.03).id
    on_redis.trace.await_items(40)
    for words in (("list",), ("show", task)):
        text = shell.on_terminal(*words)
        show(" ".join(words), text)
        assert task in text
        assert "\x1b[" in text
        assert "running" in text
        shell.piped(*words)
    assert shell.piped("pause", task) == f"{task}: will pause at its next checkpoint\n"
    await_condition(lambda: "paused" in shell.piped("list"), "the task is paused")
    worker.process.terminate()
    worker.process.wait()
    # with no worker
    [facts] = json.loads(shell.piped("show", task, "--json"))
    assert (facts["state"], facts["task"], facts["step"]) == ("paused", "project.rows", "rows")
    assert 0 < facts["done"] < facts["total"] == 600
    assert shell.piped("resume", task) == f"{task}: queued\n"
    assert shell.piped("pause", task, "--json", code=0)
    shell.piped("resume", task)
    shell.piped("retry", task, "--step", "rows", code=1)
    assert shell.errors.count("\n") == 1
    on_redis.worker()
    text = shell.on_terminal("watch", task)
    show("watch", text[:2000])
    assert "━" in text
    assert sorted(on_redis.trace.items()) == list(range(600))
    assert shell.piped("list") == "no such tasks\n"
    assert task in shell.piped("list", "--state", "done")


def test_changes_on_lines_and_a_cancel(on_redis: Cluster, shell: Shell) -> None:
    on_redis.worker()
    task = on_redis.send("rows", 60, 0.03).id
    seen = [json.loads(line) for line in shell.piped("watch", task, "--json").splitlines()]
    assert seen[-1]["state"] == "done"
    assert len({line["done"] for line in seen}) > 1
    other = on_redis.send("rows", 1000, 0.03).id
    on_redis.trace.await_items(80)
    assert "will cancel" in shell.piped("cancel", other, "unknown", "--yes", code=1), "it says that one is unknown"
    await_condition(lambda: "cancelled" in shell.piped("list", "--all"), "the task is cancelled")


def test_a_sweep_recovers_the_task_of_a_killed_worker(
    on_redis: Cluster, shell: Shell, show: Callable[[str, str], None]
) -> None:
    worker = on_redis.worker("-P", "solo")
    task = on_redis.send("rows", 30, 0.03).id
    on_redis.trace.await_items(5)
    worker.process.kill()
    worker.process.wait()
    text = shell.piped("sweep")
    show("sweep", text)
    assert f"{task} recovered" in text
    assert shell.piped("sweep", "--json") == "[]\n"
    assert "queued" in shell.piped("list")


def test_the_doctor(on_redis: Cluster, shell: Shell, show: Callable[[str, str], None]) -> None:
    text = shell.on_terminal("doctor", code=1)  # the tests' Redis does not write to disk
    show("doctor", text)
    found = json.loads(shell.piped("doctor", "--json", code=1))
    levels = {(one["name"], one["level"]) for one in found}
    assert {("redis of the store: persistence", "problem"), ("reach", "ok"), ("acks_late", "problem")} <= levels
    assert any(one["text"].startswith("project.early: ") for one in found if one["level"] == "problem")


def test_a_store_that_is_away_is_one_line(on_redis: Cluster) -> None:
    away = Cluster({**on_redis.conf, "broker_url": "redis://127.0.0.1:1/0", "result_backend": "redis://127.0.0.1:1/1"},
                   on_redis.folder)  # fmt: skip
    shell = Shell(away)
    for words in (("list",), ("pause", "x")):
        shell.piped(*words, code=1)
        assert shell.errors.count("\n") == 1
        assert "store redis" in shell.errors
    assert "cannot be reached" in shell.piped("doctor", code=1)
    away.client.close()


@pytest.fixture
def show(tmp_path: Path) -> Callable[[str, str], None]:
    """Keep the output, to look at after the test."""

    def keep(name: str, text: str) -> None:
        folder = os.environ.get("SHOWN")
        if folder:
            (Path(folder) / name.split()[0]).write_text(text)

    return keep
