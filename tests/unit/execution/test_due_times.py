"""When a message that the task publishes itself is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.request import Request

from celery_continuations.execution.leaving import _delay


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/New_York"])
def local_zone(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("offset", [None, 0, 5])
@pytest.mark.parametrize("as_text", [False, True])
def test_an_eta_is_due_when_a_worker_executes_it(
    app: Celery, local_zone: None, zone: str, offset: int | None, as_text: bool
) -> None:
    app.conf.timezone = zone
    info = None if offset is None else timezone(timedelta(hours=offset))
    eta = datetime.now(info) + timedelta(hours=20)
    headers = {"id": "id", "task": "t", "eta": eta.isoformat()}
    message = SimpleNamespace(headers=headers, delivery_info={}, properties={}, body=b"", decode=lambda: None)
    request: Any = Request(
        message, app=app, task=app.tasks["celery.backend_cleanup"], decoded=True, headers=headers, body=((), {}, {})
    )
    expected = max(0.0, request.eta.timestamp() - time.time())
    assert _delay(app, {"eta": eta.isoformat() if as_text else eta}) == pytest.approx(expected, abs=5)


def test_without_an_eta_the_countdown_counts(app: Celery) -> None:
    assert [_delay(app, options) for options in ({}, {"countdown": 5}, {"eta": None})] == [0, 5, 0]
