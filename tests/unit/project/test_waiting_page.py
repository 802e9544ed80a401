"""The examples of docs/waiting.md run on a worker."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

PAGE = Path(__file__).parents[3] / "docs" / "waiting.md"


@pytest.fixture
def done() -> list[Any]:
    return []


@pytest.fixture
def names(app: Celery, done: list[Any]) -> dict[str, Any]:
    """The page's tasks, with what they call."""

    def answer(value: Any) -> Any:
        return lambda *args: done.append(args) or value

    app.conf.continuation_callback_url = "https://example.com/callbacks"
    app.conf.continuation_callback_secret = "only a test, of 32 characters or more"
    found: dict[str, Any] = {
        "app": app, "request_payment": answer(None), "ship": answer("shipped"), "cancel_order": answer("cancelled"),
        "send_mail": answer(None), "start_export": answer("job"), "photo_ids": answer([1, 2]),
        "shrink": lambda photo: 10 * photo, "__name__": "page",
    }  # fmt: skip
    for block in blocks():
        if "task_id" not in block:
            exec(block, found)
    return found


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("way", [block for block in blocks() if "task_id" in block])
def test_a_callback(worker: Any, names: dict[str, Any], done: list[Any], way: str) -> None:
    result = names["fulfil"].apply_async((1,))
    worker.deliver()
    assert str(result.info) == "Interrupted at payment (waiting for 'payment')"
    exec(way, {**names, "task_id": result.id})
    worker.drain()
    assert result.get() == "shipped"
    assert done[1:] == [(1, "pay_7")]


def test_a_callback_that_does_not_come(worker: Any, names: dict[str, Any], later: Any) -> None:
    result = names["fulfil"].apply_async((1,))
    worker.deliver()
    later(3 * 86400 + 1)
    worker.drain()
    assert result.get() == "cancelled"


def test_a_month(worker: Any, names: dict[str, Any], done: list[Any], later: Any) -> None:
    names["welcome"].apply_async((1,))
    worker.deliver()
    later(29 * 86400)
    assert worker.queued() == 0
    later(86400 + 1)
    worker.drain()
    assert done == [(1, "Welcome"), (1, "How is it?")]


def test_polling(worker: Any, names: dict[str, Any], later: Any) -> None:
    answers = [None, "https://example.com/report"]
    names["find_export"] = lambda job: answers.pop(0)
    result = names["export"].apply_async((1,))
    worker.deliver()
    later(61)
    worker.drain()
    assert result.get() == "https://example.com/report"


@pytest.mark.parametrize("after", ["30", "a date"])
def test_an_api_that_says_429(worker: Any, names: dict[str, Any], later: Any, after: str) -> None:
    after = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30)) if after == "a date" else after
    asked: list[int] = []
    kept: list[int] = []

    def fetch(account: int, page: int) -> Any:
        asked.append(page)
        status = 429 if page == 7 and asked.count(7) == 1 else 200
        return SimpleNamespace(status_code=status, page=page, headers={"Retry-After": after})

    names.update(fetch=fetch, keep=lambda response: kept.append(response.page))
    result = names["fetch_orders"].apply_async((1,))
    worker.deliver()
    assert worker.queued() == 0
    later(31)
    worker.drain()
    assert result.state == "SUCCESS"
    assert kept == list(range(100))
    assert asked == [*range(8), *range(7, 100)]


def test_children(worker: Any, names: dict[str, Any]) -> None:
    result = names["publish_album"].apply_async((1,))
    worker.drain()
    assert result.get() == 30


def test_the_tests_shown(names: dict[str, Any]) -> None:
    names["test_an_order_that_is_paid_is_shipped"]()
    names["test_an_order_that_is_not_paid_is_cancelled"]()


def test_what_is_delivered_before_the_task_was_sent(worker: Any, names: dict[str, Any]) -> None:
    task = names["fulfil"]
    task.AsyncResult("chosen").deliver("payment", {"id": "pay_7"})
    result = task.apply_async((1,), task_id="chosen")
    worker.drain()
    assert result.get() == "shipped"


def test_a_delivery_to_a_task_that_never_starts_is_kept_for_the_documented_time(
    app: Celery, names: dict[str, Any], store: Any, monkeypatch: Any
) -> None:
    app.conf.continuation_keep_failed = 3600
    clock = store._clock
    names["fulfil"].AsyncResult("never sent").deliver("payment", {"id": "pay_7"})
    monkeypatch.setattr(store, "_clock", lambda: clock() + 3590)
    assert store.read("never sent") is not None
    monkeypatch.setattr(store, "_clock", lambda: clock() + 3610)
    assert store.read("never sent") is None


def test_moments_that_passed_while_no_worker_ran(worker: Any, names: dict[str, Any], later: Any) -> None:
    result = names["welcome"].apply_async((1,))
    worker.deliver()
    later(365 * 86400)  # the first sweep since
    worker.drain()
    assert result.state == "SUCCESS"
