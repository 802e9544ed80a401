"""What callers and operators do to a task: deliver, pause, resume, cancel, retry.

All of it works while no worker is up: the record is in the store.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import Task, states
from celery.app import app_or_default
from celery.app.task import Context
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_continuations import celery_internals, conf
from celery_continuations.core.evolution import old_names
from celery_continuations.core.outcome import Outcome
from celery_continuations.exceptions import InvalidStepError, StoreError
from celery_continuations.messages.publishing import publish_saved
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.protocol import commands
from celery_continuations.stores import Record, Store, open_store

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["cancel", "deliver", "pause", "resume", "retry", "wake"]

logger = logging.getLogger("celery_continuations")


def deliver(task_id: str, name: str, payload: Any, *, app: Celery | None = None, store: str | None = None) -> None:
    """Deliver ``payload`` to the wait ``name`` of a task: ``self.wait_for(name)`` returns it.

    It may come before the wait has begun, and before the task has started; it is kept until then, for
    ``continuation_keep_failed`` where the task never starts.  The same payload again changes nothing.

    Args:
        task_id: the task.
        name: of the wait.
        payload: what can be saved: None, bool, int, float, str, and the other types of a cursor.
        app: the task's app; without it the current one.
        store: the task's setting ``continuation_store``; without it the app's.

    Raises:
        DeliveryError: when the task is over, or the wait has another outcome.
        UnserializableValueError: for a payload that cannot be saved.
        StoreError: when the store cannot be reached, or keeps nothing.
        kombu.exceptions.OperationalError: when the broker cannot be reached.  The payload is kept then, and a worker
            publishes the task.

    >>> from celery import Celery
    >>> app = Celery("proj", set_as_current=False)
    >>> app.conf.update(broker_url="memory://", continuation_store="memory")
    >>> deliver("7f3a", "approval", {"by": "ann"}, app=app)
    >>> deliver("7f3a", "approval", "no", app=app)
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.DeliveryError: task 7f3a: something else was delivered to 'approval' before
    """
    if type(name) is not str or not name:
        raise InvalidStepError(f"a wait's name must be a non-empty str, not {name!r}", found=name)
    outcome = Outcome.of_value(payload, f"the payload for {name!r}")
    app = app_or_default(app)
    record = commands.deliver(
        _store(app, store),
        task_id,
        name,
        outcome,
        ended=_ended(app, task_id),
        largest=conf.app_setting(app, "max_snapshot"),
        kept_for=float(conf.seconds(conf.app_setting(app, "keep_failed"))),
        earlier_names=lambda record: _earlier_names(app, record, name),
    )
    _log(task_id, "delivered", f"{name!r} was delivered")
    _publish(app, record)


def wake(task_id: str, key: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """End a task's wait for the result of another one, ``key``.  Raises as :func:`deliver`."""
    app = app_or_default(app)
    _publish(app, commands.wake(_store(app, store), task_id, key))


def pause(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """Have a task leave its worker at its next checkpoint, and stay away until :func:`resume`.

    Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.
        StoreError: when the store cannot be reached, or keeps nothing.
    """
    app = app_or_default(app)
    commands.pause(_store(app, store), task_id, ended=_ended(app, task_id))
    _log(task_id, "paused", "is to pause")


def resume(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """Let a paused task go on; one that is not paused is left as it is.  Arguments and errors as in :func:`pause`.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached; a worker publishes the task then.
    """
    app = app_or_default(app)
    record = commands.resume(_store(app, store), task_id, ended=_ended(app, task_id))
    _log(task_id, "unpaused", "may go on")
    _publish(app, record)


def cancel(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """End a task in the state REVOKED: at its next checkpoint, or immediately if it is not running.

    Its record is emptied, callbacks are not called; a chord that it is a member of fails, as for a revoked task.
    Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.  Cancelling twice is not an error.
        StoreError: when the store cannot be reached, or keeps nothing.
    """
    app = app_or_default(app)
    opened = _store(app, store)
    record = opened.read(task_id)
    kept_for = conf.tombstone_seconds(app)
    has_ended = commands.cancel(opened, task_id, ended=_ended(app, task_id), kept_for=kept_for)
    _log(task_id, "cancelled", "is cancelled" if has_ended else "is to be cancelled")
    if has_ended:
        revoke(app, task_id, record)


def revoke(app: Celery, task_id: str, record: Record | None) -> None:
    """Store the state REVOKED for a task that is not running, and tell its chord."""
    if celery_internals.keeps_results(app.backend) and app.backend.get_state(task_id) in states.READY_STATES:
        return
    request = None
    if record is not None and record.message:
        try:
            request = Context(**SavedMessage.loads(record.message).context(app))
        except (ContentDisallowed, DecodeError) as exc:
            # As a worker would that does not accept it: the state is stored all the same.
            logger.warning(
                "Task %s: a chord cannot be told: %s",
                task_id,
                exc,
                extra={"action": "chord_not_told", "task_id": task_id},
            )
    app.backend.mark_as_revoked(task_id, "cancelled", request=request, store_result=True)
    with app.events.default_dispatcher() as dispatcher:
        dispatcher.send("task-revoked", uuid=task_id, terminated=False, signum=None, expired=False)


def retry(
    task_id: str,
    step: str | None = None,
    *,
    accept_source: bool = False,
    app: Celery | None = None,
    store: str | None = None,
) -> None:
    """Take up a failed task: where it failed, or at the beginning of ``step``, which is forgotten with all after it.

    Args:
        task_id: the task.
        step: a step that was begun, or completed.
        accept_source: whether the loop that failed continues from its place in its source as that is now, after a
            :class:`SourceChangedError`; items may be left out, or done twice.
        app: the task's app; without it the current one.
        store: the task's setting ``continuation_store``; without it the app's.

    Raises:
        DeliveryError: when it has not failed, when its record is gone, or has no such step.
        StoreError: when the store cannot be reached, or keeps nothing.
        kombu.exceptions.OperationalError: when the broker cannot be reached; a worker publishes the task then.
    """
    app = app_or_default(app)
    opened = _store(app, store)
    commands.check_retry(opened, task_id, step, accept_source)
    # Before the record is reopened: an execution asks the result backend whether the task has ended.
    app.backend.store_result(task_id, None, states.PENDING)
    record = commands.retry(opened, task_id, step, accept_source)
    what = f", from step {step!r}" if step else ", with its source as it is now" if accept_source else ""
    _log(task_id, "retried", f"is taken up again{what}")
    _publish(app, record)


def _store(app: Celery, setting: str | None) -> Store:
    store = open_store(app, setting or conf.app_setting(app, "store"))
    if not store.keeps:
        raise StoreError(
            "message",
            "a task whose progress travels in its message cannot be reached; set continuation_store to a redis://, "
            "db+postgresql://, db+sqlite:/// or file:// URL",
        )
    return store


def _earlier_names(app: Celery, record: Record, name: str) -> list[str]:
    """Return the names that a wait had before, where the task's code is known here."""
    task = app.tasks.get(SavedMessage.loads(record.message).task) if record.message else None
    return old_names(name, conf.setting(task, "renamed_steps")) if isinstance(task, Task) else []


def _ended(app: Celery, task_id: str) -> commands.Ended:
    """Without a record the task has not started yet, or has ended long ago."""

    def ended() -> str | None:
        state = str(app.backend.get_state(task_id)) if celery_internals.keeps_results(app.backend) else states.PENDING
        return state if state in states.READY_STATES else None

    return ended


def _publish(app: Celery, record: Record | None) -> None:
    if record is not None and record.message:
        publish_saved(app, record.message, record.fence.generation)


def _log(task_id: str, action: str, text: str) -> None:
    logger.info("Task %s %s", task_id, text, extra={"action": action, "task_id": task_id})
