"""Snapshots of release 0.1 are resumed, and it can read the snapshots written now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import csv_rows, keys, nested, pages
from celery_continuations.testing import delivered, interrupt_during_step, run_until_done
from celery_continuations.testing.rehearsal import Rehearsal
from tests.support.django_models import Letter, create_tables

SAMPLES: dict[str, str] = json.loads((Path(__file__).parents[1] / "samples/snapshots-0.1.json").read_text())
ITEMS = ["a", "b", "c", "d", "e", "f"]


def page(token: int | None) -> tuple[list[str], int | None]:
    start = token or 0
    return ITEMS[start : start + 2], start + 2 if start + 2 < len(ITEMS) else None


SOURCES: dict[str, Any] = {
    "list": lambda: list(ITEMS),
    "range": lambda: range(6),
    "generator": lambda: lambda: iter(ITEMS),
    "keys": lambda: keys(dict.fromkeys(ITEMS)),
    "pages": lambda: pages(page),
    "nested": lambda: nested(["x", "y"], lambda one: ITEMS[:3]),
    "csv": lambda: csv_rows("rows.csv"),
}


@pytest.fixture
def loop(task: Any, tmp_path: Path, monkeypatch: Any) -> Any:
    """A task with the loop of a sample, and what it has done."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,name\n" + "".join(f"{number},user {number}\n" for number in range(6)))

    def make(name: str) -> tuple[Any, list[Any]]:
        done: list[Any] = []

        def function(self: Any) -> int:
            self.step("first", lambda: 2)
            for item in self.iterate("loop", SOURCES[name]()):
                done.append(item)
            return len(done)

        return task(function), done

    return make


def resume(made: Any, text: str) -> Rehearsal:
    run = Rehearsal(made)
    run.save(text)
    run.apply((), {})
    return run


@pytest.mark.parametrize("name", SOURCES)
def test_a_loop_of_0_1_resumes(loop: Any, name: str) -> None:
    made, done = loop(name)
    run = resume(made, SAMPLES[name])
    assert (run.state, run.value) == ("SUCCESS", 3), run.error
    made_again, whole = loop(name)
    made_again()
    assert done == whole[3:]


def test_a_loop_of_0_1_is_checked_from_its_next_save_on(loop: Any) -> None:
    made, _ = loop("list")
    with interrupt_during_step(made, "loop", cursor=5) as second:
        second.save(SAMPLES["list"])
        made.apply()
    saved = second.snapshot
    assert (saved.kind, saved.mark[0], saved.kinds) == ("position", 6, {"first": "?"})


def test_a_list_of_0_1_that_has_become_shorter_than_what_is_done(loop: Any, monkeypatch: Any) -> None:
    made, _ = loop("list")
    monkeypatch.setitem(SOURCES, "list", lambda: ITEMS[:2])
    run = resume(made, SAMPLES["list"])
    assert run.state == "FAILURE"
    assert "3 items of this loop were done, but it has 2 now" in str(run.error)


def test_a_block_and_a_wait_of_0_1_go_on(task: Any) -> None:
    done: list[int] = []

    def block(self: Any) -> None:
        self.step("first", lambda: 2)
        for step in self.step("loop", start=0):
            while step.cursor < 6:
                done.append(step.cursor)
                step.advance()

    assert resume(task(block), SAMPLES["block"]).state == "SUCCESS"
    assert done == [3, 4, 5]

    def waits(self: Any) -> Any:
        self.step("first", lambda: 2)
        return self.wait_for("loop")

    with delivered(loop="yes"):
        assert resume(task(waits), SAMPLES["wait"]).value == "yes"


# -- the other direction


def read_as_0_1(text: str) -> dict[str, Any]:
    """Read a snapshot like release 0.1: required fields are unchanged, others are ignored."""
    data = json.loads(text)
    assert data["version"] == 1
    for name, kind, _ in data.get("completed", []):
        assert isinstance(name, str)
        assert kind in ("done", "value", "error", "lost", "timeout")
    if data.get("current") is not None:
        name, _ = data["current"]
        assert isinstance(name, str)
    assert len(data.get("progress", (None, None))) == 2
    assert type(data.get("executions", 0)) is type(data.get("resumptions", 0)) is int
    return data


@pytest.mark.parametrize("name", SOURCES)
def test_what_uses_nothing_new_is_of_the_format_of_0_1(loop: Any, name: str) -> None:
    made, _ = loop(name)
    with interrupt_during_step(made, "loop") as run:
        made.apply()
    sample, written = json.loads(SAMPLES[name]), read_as_0_1(run.snapshot.dumps())
    assert written["completed"][0][:2] == sample["completed"][0][:2]
    assert type(written["current"][1]) is type(sample["current"][1])
    assert run_until_done(run) == 6


def by_instances(self: Any) -> None:
    for _ in self.iterate("loop", list(Letter.objects.order_by("pk"))):
        pass


def by_iterator(self: Any) -> None:
    for _ in self.iterate("loop", Letter.objects.order_by("pk").iterator()):
        pass


def by_query(self: Any) -> None:
    for _ in self.iterate("loop", Letter.objects.order_by("pk")):
        pass


@pytest.mark.parametrize(("function", "version"), [(by_instances, 2), (by_iterator, 2), (by_query, 1)])
def test_what_0_1_would_read_as_something_else_it_refuses(
    django_database: Path, task: Any, function: Any, version: int
) -> None:
    create_tables()
    for text in "abc":
        Letter.objects.create(text=text)
    made = task(function)
    with interrupt_during_step(made, "loop") as run:
        made.apply()
    assert json.loads(run.snapshot.dumps())["version"] == version
    assert json.loads(Snapshot.loads(run.snapshot.dumps()).dumps())["version"] == version


def test_so_is_what_a_later_version_of_the_task_has_begun(task: Any) -> None:
    made = task(by_range, continuation_version=2)
    with interrupt_during_step(made, "loop") as run:
        made.apply()
    assert json.loads(run.snapshot.dumps())["version"] == 2


def by_range(self: Any) -> None:
    for _ in self.iterate("loop", range(3)):
        pass
