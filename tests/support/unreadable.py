"""One entry of a store that cannot be read, beside tasks that a sweep must handle all the same."""

from __future__ import annotations

import json
import uuid
from typing import Any

from celery import Celery

from celery_continuations.bin import facts
from celery_continuations.process.identity import new_worker
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.worker.sweeper import Sweeper

#: A saved message.
GOOD = {
    "task": "other", "route": {"exchange": "", "routing_key": "celery"}, "headers": {"id": "x", "task": "other"},
    "properties": {}, "sending": {}, "content": ["application/json", "utf-8"], "body": "[[], {}, {}]",
}  # fmt: skip

_DEEP = "[" * 100_000
_LOST = Fence(1, Status.RUNNING, "w1/1.1/a")
_TEXTS = {
    "snapshot": Update(_LOST, _DEEP, json.dumps(GOOD)),
    "message": Update(_LOST, None, _DEEP),
    "inbox": Update(_LOST, None, json.dumps(GOOD), inbox=_DEEP),
}

#: What cannot be read in an entry.
KINDS = ("record", "lease", *_TEXTS)

_opened: list[Any] = []


def opened(app: Celery, namespace: str) -> Any:
    """Return the store under test: ``continuation_store`` names this function."""
    return _opened[0]


def put_neighbours(store: Any) -> None:
    """Put a lost task, and one that has slept long enough, beside the bad record."""
    message = json.dumps(GOOD)
    store.compare_and_swap("lost", None, Update(Fence(1, Status.RUNNING, "w2/1.1/b"), None, message))
    slept = '{"version": 1, "waiting": ["time", 1.0, null]}'
    store.compare_and_swap("slept", None, Update(Fence(1, Status.WAITING), slept, message, due_in=-5))


def harms_no_other_task(app: Celery, suite: Any, kind: str) -> None:
    """Check that an entry which cannot be read is named once, and that every other task is handled and listed.

    Args:
        app: an app with a worker's settings.
        suite: the conformance suite of a store, whose hooks damage it.
        kind: one of ``KINDS``.
    """
    store = suite.make_store(uuid.uuid4().hex)
    put_neighbours(store)
    store.compare_and_swap("bad", None, _TEXTS.get(kind, _TEXTS["inbox"]))
    if kind == "record":
        suite.corrupt(store, "bad")
    if kind == "lease":
        store.renew("w3", 1000)
        next(suite.corrupt_lease(store, "w3"))
    reports: list[Any] = []
    sweeper = Sweeper(app, store, new_worker(), lambda task_id: True, report=reports.append)
    for _ in range(3):
        sweeper.sweep(lambda: True)
    assert [store.read(name).fence.status for name in ("lost", "slept")] == [Status.QUEUED, Status.QUEUED]
    failed = [one.task_id for one in reports if one.action == "recovery_failed"]
    named = [["bad"]] if kind in ("record", "snapshot", "message") else [[""], []] if kind == "lease" else [[]]
    assert failed in named, "it is named once"
    assert {task_id for task_id, _ in store.records()} == {"lost", "slept", "bad"}
    app.conf.continuation_store = f"{__name__}.opened"
    _opened[:] = [store]
    shown = {one["id"]: bool(one["error"]) for one in facts.listed(app)}
    assert shown == {"lost": False, "slept": False, "bad": kind in ("record", "snapshot", "message")}
    store.close()
