"""How often an outage is logged."""

from __future__ import annotations

import time
from typing import Any

from celery_continuations.process.reminder import Reminder


def test_an_outage_is_logged_when_it_begins_each_minute_and_when_it_ends(monkeypatch: Any) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reminder, warned = Reminder(), []
    assert reminder.reset() is None
    for _ in range(150):
        if reminder.is_due():
            warned.append(now[0])
        now[0] += 1
    assert (warned, reminder.is_active) == ([1000.0, 1060.0, 1120.0], True)
    assert (reminder.reset(), reminder.reset(), reminder.is_active) == (150.0, None, False)
    assert reminder.is_due(), "another outage"
