"""Notes in the text of a snapshot, which may be unreadable otherwise."""

from __future__ import annotations

import json
from typing import Any

from celery_continuations.core.errors import described
from celery_continuations.core.snapshot import Snapshot

__all__ = ["error_in", "with_error"]


def with_error(text: str | None, error: BaseException) -> str:
    """Note in a snapshot's text which error has ended the task; keep everything else, also unknown fields.

    Raises ValueError for a text that is not JSON.

    >>> Snapshot.loads(with_error(Snapshot(current=("a", 1)).dumps(), ValueError("no"))).error
    {'type': 'ValueError', 'message': 'no', 'step': 'a', 'cursor': 1}
    """
    data = json.loads(text or Snapshot().dumps())
    return json.dumps({**data, "error": described(error, data.get("current"))}, separators=(",", ":"))


def error_in(text: str | None) -> dict[str, Any] | None:
    """Return the error that has ended the task, from a snapshot's text that may be unreadable otherwise.

    >>> error_in("not a snapshot")
    >>> error_in(with_error(None, ValueError("no")))["type"]
    'ValueError'
    """
    try:
        found = json.loads(text or "{}").get("error")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"type", "message", "step"} <= found.keys() else None
