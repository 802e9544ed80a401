"""``celery continuations`` as a user runs it: in a process of its own, on a terminal and in a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Cluster
from tests.integration.processes import await_condition

pytestmark = pytest.mark.redis

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shell:
    """Runs commands on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")},
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            "TERM": "xterm",
            "TEST_CONF": json.dumps(cluster.conf),
            "TEST_TRACE": str(cluster.trace.path),
        }

    def argv(self, *words: str) -> list[str]:
        celery = str(Path(sys.executable).parent / "celery")
        return [celery, "-A", "tests.integration.project", "continuations", *words]

    def piped(self, *words: str, code: int = 0, **options: Any) -> str:
        ran = subprocess.run(
            self.argv(*words), env=self.env, capture_output=True, text=True, timeout=60, check=False, **options
        )
        assert ran.returncode == code, (ran.stdout, ran.stderr)
        self.errors = ran.stderr
        assert "Traceback" not in ran.stderr
        assert "\x1b" not in ran.stdout + ran.stderr
        return ran.stdout

    def on_terminal(self, *words: str, code: int = 0) -> str:
        """Run on a terminal of 80 columns, and return what it shows."""
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with subprocess.Popen(self.argv(*words), env=self.env, stdin=terminal, stdout=terminal, stderr=terminal) as ran:
            os.close(terminal)
            shown = b""
            while True:
                try:
                    part = os.read(main, 65536)
                except OSError:  # the last one that wrote has gone
                    break
                if not part:
                    break
                shown += part
        os.close(main)
        text = shown.decode()
        assert ran.returncode == code, text
        for line in re.split(r"[\r\n]+", ESCAPES.sub("", text)):
            assert len(line) <= 80, line
        return text


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
    assert "will cancel" in shell.piped("cancel", other, "nobody", "--yes")
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
    text = shell.on_terminal("doctor", code=1)  # the tests' Redis keeps nothing on its disk
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
    """Keep what was shown, for whoever looks at it."""

    def keep(name: str, text: str) -> None:
        folder = os.environ.get("SHOWN")
        if folder:
            (Path(folder) / name.split()[0]).write_text(text)

    return keep
