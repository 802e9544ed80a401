"""Celery events of a continuable task, for monitors.

Their group is ``continuation``, not ``task``: monitors store an unknown event ``task-something`` as the task's state.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["are_wanted", "describe", "plain", "send"]

logger = logging.getLogger("celery_continuations")

# One attempt, and one on a new connection: by Celery's own policy a task would wait for an unavailable broker.
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

# Seconds without events after a failed one: each attempt may take as long as the driver allows.
_PAUSE = 10.0
_paused_until = 0.0


def are_wanted(dispatcher: Any) -> bool:
    """Whether a worker sends task events.

    Args:
        dispatcher: the worker's, or None. Without ``-E`` there is one for the worker's heartbeats.
    """
    return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))


def send(app: Celery, hostname: str, action: str, producer: Any = None, **fields: Any) -> None:
    """Send one event, or log that it cannot be sent.

    Args:
        app: the app.
        hostname: the name of the worker.
        action: what happened, e.g. ``"step_started"``.
        producer: the producer to use; by default one from the app's pool.
        fields: the fields of the event, as JSON types.
    """
    global _paused_until
    if time.monotonic() < _paused_until:
        return
    try:
        with nullcontext(producer) if producer else app.producer_pool.acquire(block=True) as found:
            _send_by(app, hostname, action, found, fields)
    except _errors(app) as exc:
        # No task may fail because an event cannot be sent
        if not _paused_until:  # once in each process
            logger.warning("Events cannot be sent: %s: %s", type(exc).__name__, exc, extra={"action": "events_failed"})
        _paused_until = time.monotonic() + _PAUSE


def _send_by(app: Celery, hostname: str, action: str, producer: Any, fields: dict[str, Any]) -> None:
    # kombu would wait forever if it made the connection itself
    producer.connection.ensure_connection(max_retries=0)
    dispatcher = app.events.Dispatcher(enabled=False, hostname=hostname, buffer_while_offline=False)
    name = "continuation-" + action.replace("_", "-")
    dispatcher.publish(name, fields, producer, retry=True, retry_policy=_RETRY_POLICY)


def _errors(app: Celery) -> tuple[type[BaseException], ...]:
    """Return the errors of an unavailable or refusing broker; kombu's Redis transport raises AttributeError."""
    connection = app.connection_for_write()
    drivers = (*connection.connection_errors, *connection.channel_errors)
    return (OperationalError, OSError, AttributeError, *drivers)


def plain(value: Any) -> Any:
    """Return ``value`` if it can be written as JSON, else its repr.

    >>> plain((1, "a")), plain(b"a")
    ((1, 'a'), "b'a'")
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def describe(completed: list[str], step: str | None, cursor: Any) -> str:
    """Describe a task's progress in words.

    >>> describe([], None, None), describe(["validate"], None, None), describe(["validate"], "import", 500)
    ('not started', "after 'validate'", "at 'import', cursor 500")
    """
    if step is not None:
        return f"at {step!r}" if cursor is None else f"at {step!r}, cursor {cursor!r}"
    return f"after {completed[-1]!r}" if completed else "not started"
