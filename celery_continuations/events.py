"""Celery events of what happens to a continuable task, for monitors.

They are of the group ``continuation``, and not of ``task``: monitors keep an event ``task-something`` of a type
that they do not know as the task's state.
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

# One attempt, and one on a new connection: a task is not to wait for a broker that is away, as by Celery's policy.
_RETRY_POLICY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}

# Seconds without events after one that could not be sent: each attempt may take as long as the driver lets it.
_PAUSE = 10.0
_paused_until = 0.0


def are_wanted(dispatcher: Any) -> bool:
    """Whether a worker sends events of tasks.

    Args:
        dispatcher: of the worker, or None. Without ``-E`` there is one for the worker's heartbeats.
    """
    return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups))


def send(app: Celery, hostname: str, action: str, producer: Any = None, **fields: Any) -> None:
    """Send one event, or log that it cannot be sent.

    Args:
        app: whose broker.
        hostname: the name of the worker.
        action: what happened, e.g. ``"step_started"``.
        producer: to send it with; without one, one from the app's pool.
        fields: of the event; JSON.
    """
    global _paused_until
    if time.monotonic() < _paused_until:
        return
    try:
        with nullcontext(producer) if producer else app.producer_pool.acquire(block=True) as found:
            _send_by(app, hostname, action, found, fields)
    except _errors(app) as exc:
        # No task is to fail for want of a monitor
        if not _paused_until:  # once in each process
            logger.warning("Events cannot be sent: %s: %s", type(exc).__name__, exc, extra={"action": "events_failed"})
        _paused_until = time.monotonic() + _PAUSE


def _send_by(app: Celery, hostname: str, action: str, producer: Any, fields: dict[str, Any]) -> None:
    # kombu would wait forever where it makes the connection by itself
    producer.connection.ensure_connection(max_retries=0)
    dispatcher = app.events.Dispatcher(enabled=False, hostname=hostname, buffer_while_offline=False)
    name = "continuation-" + action.replace("_", "-")
    dispatcher.publish(name, fields, producer, retry=True, retry_policy=_RETRY_POLICY)


def _errors(app: Celery) -> tuple[type[BaseException], ...]:
    """Return what is raised where the broker is away, or refuses; AttributeError by kombu's Redis transport."""
    connection = app.connection_for_write()
    drivers = (*connection.connection_errors, *connection.channel_errors)
    return (OperationalError, OSError, AttributeError, *drivers)


def plain(value: Any) -> Any:
    """Return ``value`` where it is JSON, else its repr.

    >>> plain((1, "a")), plain(b"a")
    ((1, 'a'), "b'a'")
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def describe(completed: list[str], step: str | None, cursor: Any) -> str:
    """Say in words how far a task has come.

    >>> describe([], None, None), describe(["validate"], None, None), describe(["validate"], "import", 500)
    ('not started', "after 'validate'", "at 'import', cursor 500")
    """
    if step is not None:
        return f"at {step!r}" if cursor is None else f"at {step!r}, cursor {cursor!r}"
    return f"after {completed[-1]!r}" if completed else "not started"
