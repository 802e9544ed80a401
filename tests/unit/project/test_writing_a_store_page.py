"""The store on docs/writing-a-store.md passes the suite, and an app can use it."""

from __future__ import annotations

import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.stores import open_store

PAGE = Path(__file__).parents[3] / "docs" / "writing-a-store.md"

shown: dict[str, Any] = {"__name__": __name__}
for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
    exec(block, shown)
shown["app"].close()

SmallStore = shown["SmallStore"]


class TestSmallStore(shown["TestSmallStore"]):  # type: ignore[misc]
    many = 300  # each write is a transaction of its own

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        connect = sqlite3.connect

        def without_waiting_for_the_disk(*args: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*args, **options)
            connection.execute("PRAGMA synchronous = OFF")
            return connection

        monkeypatch.setattr(sqlite3, "connect", without_waiting_for_the_disk)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the setting names."""
    made: Any = ModuleType("shop.stores")
    made.open_store = shown["open_store"]
    made.no_store = lambda app, namespace: namespace
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.stores", made)
    return made


def test_a_task_is_kept_in_a_store_of_ones_own(
    app: Celery,
    worker: Any,
    task: Any,
    record: Any,
    module: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    app.conf.update(continuation_store="shop.stores.open_store", continuation_namespace="shop")
    done: list[int] = []

    def count(self: Any) -> None:
        for number in self.iterate("count", range(5)):
            done.append(number)
            if done == [0, 1, 2]:
                worker.stop()

    result = task(count).delay()
    worker.deliver()
    queued = record(result.id)
    assert (queued.fence.status, Snapshot.loads(queued.snapshot).current) == ("queued", ("count", 3))
    worker.deliver()
    assert done == list(range(5))
    assert record(result.id).fence.status == "done"
    assert type(open_store(app, app.conf.continuation_store)) is SmallStore


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("shop.stores.nothing", "cannot be imported: module 'shop.stores' has no attribute 'nothing'"),
        ("shop.stores.no_store", "returned 'any', which is not a celery_continuations.stores.Store"),
        ("shop.nothing.open_store", "cannot be imported: No module named 'shop.nothing'"),
    ],
)
def test_a_path_that_leads_to_no_store(module: Any, setting: str, problem: str) -> None:
    app = Celery("any", broker="memory://", set_as_current=False)
    app.conf.update(continuation_store=setting, continuation_namespace="any")
    with pytest.raises(ImproperlyConfigured, match=re.escape(f"continuation_store = {setting!r} {problem}")):
        open_store(app, setting)
