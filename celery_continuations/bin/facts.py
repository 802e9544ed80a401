"""The facts about a task, as JSON types: the output of ``--json``, and the input of the text output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from celery import states

from celery_continuations import celery_internals, conf
from celery_continuations.bin import shown
from celery_continuations.core import codec
from celery_continuations.core.inbox import Inbox
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import ContinuationError, StoreError
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.result import Progress
from celery_continuations.stores import Record, Status, Store, open_store

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["STATES", "brief", "find", "given", "is_known", "key", "listed", "nothing", "stores", "whole"]

#: Every status of a record.
STATES = sorted(status.value for status in Status)


def stores(app: Celery) -> dict[str, Store]:
    """Return the stores of the app's tasks that keep records, each once, by setting."""
    app.loader.import_default_modules()
    settings = [conf.app_setting(app, "store"), *(conf.setting(task, "store") for task in app.tasks.values())]
    opened: dict[str, Store] = {}
    for setting in settings:
        store = open_store(app, setting)
        if store.keeps and not any(store is known for known in opened.values()):
            opened[setting] = store
    if not opened:
        raise StoreError("message", "no configured store keeps records; run `doctor` for advice")
    return opened


def given(app: Celery, task_id: str) -> dict[str, Any] | None:
    """Return the facts of a task for a list, or None without a record."""
    try:
        _, record = find(app, task_id)
    except StoreError as exc:
        return _unreadable(task_id, exc)
    return None if record is None else brief(task_id, record)


def find(app: Celery, task_id: str) -> tuple[str, Record | None]:
    """Return the setting of the task's store, and its record; without a record the first store's, and None."""
    known = stores(app)
    for setting, store in known.items():
        record = store.read(task_id)
        if record is not None:
            return setting, record
    return next(iter(known)), None


def is_known(app: Celery, task_id: str) -> bool:
    """Whether the task has a record, or a state in the result backend."""
    _, record = find(app, task_id)
    has_state = celery_internals.keeps_results(app.backend) and app.backend.get_state(task_id) != states.PENDING
    return record is not None or has_state


def listed(app: Celery) -> Iterator[dict[str, Any]]:
    """Yield the facts of every task that has a record; for one that cannot be read, its id and the error."""
    for store in stores(app).values():
        for task_id, found in store.records():
            if isinstance(found, Record):
                yield brief(task_id, found)
            else:
                yield _unreadable(task_id, found)


def brief(task_id: str, record: Record) -> dict[str, Any]:
    """Return the facts for a list of tasks."""
    return _shown(task_id, record, _brief, shown.cells)


def whole(task_id: str, record: Record) -> dict[str, Any]:
    """Return all facts of a task."""
    return _shown(task_id, record, _whole, shown.whole)


def _shown(
    task_id: str,
    record: Record,
    collect: Callable[[str, Record], dict[str, Any]],
    show: Callable[[dict[str, Any]], Iterable[str]],
) -> dict[str, Any]:
    """Return the facts, once they have been formatted: values of any type may come up in a damaged record."""
    try:
        facts = collect(task_id, record)
        for _ in show(facts):
            pass
        shown.as_json(facts)
    except ContinuationError as exc:
        return _unreadable(task_id, exc)
    except Exception as exc:  # one record must not hide the others
        return _unreadable(task_id, f"{type(exc).__name__}: {exc}")
    return facts


def _brief(task_id: str, record: Record) -> dict[str, Any]:
    snapshot = Snapshot.loads(record.snapshot) if record.snapshot else Snapshot()
    message = SavedMessage.loads(record.message) if record.message else None
    step = snapshot.current[0] if snapshot.current else None
    progress = Progress(step, *snapshot.progress)
    waits = record.fence.status == Status.WAITING and snapshot.waiting
    return {
        "id": task_id,
        "task": message.task if message else None,
        "state": record.fence.status.value,
        "wish": record.fence.command and record.fence.command.value,
        "completed": len(snapshot.completed),
        "step": step,
        "cursor": snapshot.current[1] if snapshot.current else None,
        "done": progress.done,
        "total": progress.total,
        "percent": progress.percent,
        "waiting": waits._asdict() if waits else None,
        "began": message.began if message else None,
        "version": snapshot.task_version,
        "misfit": snapshot.misfit,
        "failure": snapshot.error if record.fence.status == Status.FAILED else None,
        "error": None,
    }


def _whole(task_id: str, record: Record) -> dict[str, Any]:
    facts = _brief(task_id, record)
    snapshot = Snapshot.loads(record.snapshot) if record.snapshot else Snapshot()
    message = SavedMessage.loads(record.message) if record.message else None
    return {
        **facts,
        "generation": record.fence.generation,
        "owner": record.fence.owner or None,
        "args": message.headers.get("argsrepr") if message else None,
        "kwargs": message.headers.get("kwargsrepr") if message else None,
        "due": record.due,
        "executions": snapshot.executions,
        "resumptions": snapshot.resumptions,
        "counted": snapshot.counted,
        "run_time": snapshot.run_time,
        "reason": snapshot.reason,
        "left_at": snapshot.left_at or None,
        "losses": {"alone": snapshot.losses[0], "shared": snapshot.losses[1]},
        "steps": [{"name": name, "kind": one.kind} for name, one in snapshot.completed.items()],
        "kind": snapshot.kind,
        "saved": {name: codec.encode(value) for name, value in snapshot.saved.items()},
        "errors": snapshot.errors,
        "inbox": [{"name": name, "kind": one.kind} for name, one in Inbox.loads(record.inbox).items()],
    }


def key(facts: dict[str, Any]) -> float:
    """Return a key that sorts the oldest task first, and those of unknown age last."""
    return float(facts["began"] or time.time())


def nothing(task_id: str, state: str | None) -> dict[str, Any]:
    """Return the facts of a task of which only a state is known."""
    names = (
        "task",
        "wish",
        "step",
        "cursor",
        "done",
        "total",
        "percent",
        "waiting",
        "began",
        "version",
        "misfit",
        "failure",
        "error",
    )
    return {"id": task_id, **dict.fromkeys(names), "state": state, "completed": 0}


def _unreadable(task_id: str, error: Exception | str) -> dict[str, Any]:
    return {**nothing(task_id, None), "error": str(error)}
