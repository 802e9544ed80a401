"""Commands on all tasks that match.  Ids are of these tests alone: the result backend keeps their states."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states

from celery_continuations.selecting import cancel_all
from celery_continuations.stores import Fence, Status, Update


def test_all_are_cancelled_in_each_store(app: Celery, worker: Any, task: Any, tmp_path: Path) -> None:
    def body(self: Any) -> None:
        self.wait_for("approval")

    made = [task(body), task(body, continuation_store=f"file://{tmp_path}")]
    results = [one.apply_async() for one in made]
    worker.drain()
    assert cancel_all(app=app, older_than=timedelta(hours=1)) == []
    assert sorted(cancel_all(app=app, older_than=0.0)) == sorted(result.id for result in results)
    assert [result.state for result in results] == [states.REVOKED] * 2
    assert cancel_all(app=app) == []


def test_one_that_cannot_be_read_or_ends_meanwhile_does_not_stop_the_others(
    app: Celery, store: Any, caplog: Any, monkeypatch: Any
) -> None:
    for task_id in ("first", "ends", "last"):
        assert store.compare_and_swap(task_id, None, Update(Fence(1, Status.WAITING)))
    assert store.compare_and_swap("unreadable", None, Update(Fence(1, Status.WAITING), message="not a message"))
    records = store.records

    def end_one(*args: Any) -> Any:
        yield from list(records())
        store.compare_and_swap("ends", Fence(1, Status.WAITING), Update(Fence(1, Status.DONE)))

    monkeypatch.setattr(store, "records", end_one)
    with caplog.at_level(logging.INFO, "celery_continuations"):
        assert cancel_all(app=app, task="*", status=["waiting"]) == []
        assert cancel_all(app=app, status=["waiting"]) == ["first", "last", "unreadable"]
    assert [one.action for one in caplog.records if one.levelno == logging.WARNING] == ["left_out"]


def test_what_has_ended_cannot_be_cancelled(app: Celery) -> None:
    with pytest.raises(ValueError, match="tasks that are 'done' cannot be cancelled; those that are running, queued"):
        cancel_all(app=app, status=["done"])
