"""docs/quickstart.md as a reader follows it, and the store of docs/writing-a-store.md under real workers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import ROOT, filesystem_conf, redis_url
from tests.support.processes import LocalProcess, await_condition

QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
STORE = (ROOT / "docs" / "writing-a-store.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Any]:
    """Runs a page's commands in a folder; workers run until the end of the test."""
    folder = tmp_path / "project"
    folder.mkdir()
    workers: list[LocalProcess] = []

    class Project:
        path = folder

        def run(self, command: str) -> Any:
            name, *words = shlex.split(command)
            argv = [str(Path(sys.executable).parent / name), *words]
            if words[2] != "worker":
                return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True).stdout
            workers.append(LocalProcess(argv, folder, name=f"worker{len(workers)}"))
            return workers[-1]

    yield Project()
    for worker in workers:
        worker.kill(9)


def numbers(worker: LocalProcess) -> list[int]:
    return [int(number) for number in re.findall(r"WARNING/\S+ (\d+)$", worker.logs().decode(), flags=re.M)]


def await_numbers(worker: LocalProcess, count: int) -> None:
    await_condition(lambda: len(numbers(worker)) > count, f"more than {count} numbers in the log of {worker.name}")


def test_the_quickstart(project: Any, redis_server: Any) -> None:
    tasks = blocks(QUICKSTART, "python")[0]
    assert tasks.count("redis://localhost") == 2
    (project.path / "tasks.py").write_text(tasks.replace("redis://localhost", redis_url(redis_server, 6)))
    _, start, call = blocks(QUICKSTART, "sh")
    first = project.run(start)
    project.run(call)
    await_numbers(first, 3)
    first.kill("SIGINT")
    first.await_exit()
    assert re.search(r"Interrupted at count:\d+", first.logs().decode())
    second = project.run(start)
    await_numbers(second, 3)
    assert re.search(r"step count resumed from \d+", second.logs().decode())
    seen = numbers(first) + numbers(second)
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize("signal", ["SIGINT", 9])
def test_a_store_of_ones_own(project: Any, tmp_path: Path, signal: Any) -> None:
    shown = blocks(STORE, "python")
    (project.path / "stores.py").write_text(shown[0] + "\n\n" + shown[2].partition("app = Celery")[0])
    conf = {
        **filesystem_conf(tmp_path),
        "continuation_store": "stores.open_store",
        "continuation_lease": 1,
        "continuation_sweep_interval": 0.2,
        "continuation_checkpoint_interval": 0.1,
    }
    tasks = blocks(QUICKSTART, "python")[0].replace('broker="redis://localhost", backend="redis://localhost"', "")
    tasks = tasks.replace('app = Celery("tasks", )', f'app = Celery("tasks")\napp.conf.update({conf!r})')
    (project.path / "tasks.py").write_text(tasks)
    _, start, call = blocks(QUICKSTART, "sh")
    first = project.run(start)
    project.run(call)
    await_numbers(first, 5)
    first.kill(signal)
    first.await_exit()
    second = project.run(start)
    await_numbers(second, 3)
    before, after = numbers(first), numbers(second)
    assert before[: after[0]] + after == list(range(after[-1] + 1))
    assert after[0] > 0
    if signal == "SIGINT":
        assert after[0] == len(before)
