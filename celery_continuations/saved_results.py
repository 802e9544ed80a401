"""Celery's results among the values that can be saved: as ids, without the state or the value of the task."""

from __future__ import annotations

from typing import Any

from celery import current_task
from celery.app import app_or_default
from celery.result import AsyncResult, GroupResult

from celery_continuations.core import codec
from celery_continuations.result import ContinuableAsyncResult

__all__ = ["allow"]


def allow() -> None:
    """Allow what ``delay()`` and ``apply_async()`` return as a value of a step.

    >>> allow()
    >>> codec.loads(codec.dumps({"sent": AsyncResult("7f3a")}))
    {'sent': <AsyncResult: 7f3a>}
    """
    codec.extend(AsyncResult, "result", _encode, _decode)
    codec.extend(GroupResult, "result", _encode, _decode)


def _encode(value: Any) -> list[Any]:
    parent = getattr(value, "parent", None)  # an EagerResult has none
    members = [_encode(one) for one in value.results or ()] if isinstance(value, GroupResult) else None
    return [value.id, isinstance(value, ContinuableAsyncResult), parent and _encode(parent), members]


def _decode(data: Any) -> Any:
    return _rebuilt(current_task.app if current_task else app_or_default(), *data)


def _rebuilt(app: Any, task_id: str, is_continuable: bool, parent: Any, members: Any) -> Any:
    parent = parent and _rebuilt(app, *parent)
    if members is not None:
        return app.GroupResult(task_id, [_rebuilt(app, *one) for one in members], parent=parent)
    if is_continuable:
        return ContinuableAsyncResult(task_id, app=app, parent=parent)
    return app.AsyncResult(task_id, parent=parent)
