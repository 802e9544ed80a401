"""Operations on a task: deliver, pause, resume, cancel, retry.  For many tasks: :func:`selecting.cancel_all`.

They work without a running worker: the record is in the store.

In a transaction of Django's (``atomic``, ``ATOMIC_REQUESTS``) they wait for its commit, and do nothing if it is rolled
back.  What would be refused now is raised immediately; any other error is raised by the commit.  In a step with
``transaction=`` they do not wait.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Task, signals, states
from celery.app import app_or_default
from celery.app.task import Context

from celery_continuations import celery_internals, conf
from celery_continuations.commits import after_commit
from celery_continuations.core.evolution import old_names
from celery_continuations.core.outcome import Outcome
from celery_continuations.exceptions import InvalidStepError, StoreError
from celery_continuations.messages.publishing import publish_saved
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.protocol import commands, retrying
from celery_continuations.stores import Record, Store, open_store

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["cancel", "deliver", "pause", "resume", "retry", "wake"]

logger = logging.getLogger("celery_continuations")

#: Attribute of the request of a ``task_revoked`` signal that this library has sent: the record is up to date.
REPORTED = "continuation_cancel_reported"


def deliver(
    task_id: str,
    name: str,
    payload: Any,
    *,
    app: Celery | None = None,
    store: str | None = None,
    started: bool = False,
) -> None:
    """Deliver ``payload`` to the wait ``name`` of a task: ``self.wait_for(name)`` returns it.

    It may be delivered before the wait begins or the task starts, and is kept until then; if the task never starts, for
    ``continuation_keep_failed``.  Delivering an equal payload again changes nothing.

    Args:
        task_id: the task.
        name: the name of the wait.
        payload: a value that can be saved, as a cursor can; containers up to 64 levels deep.
        app: the task's app; by default the current one.
        store: the task's setting ``continuation_store``; by default the app's.
        started: whether the task has started; then nothing is kept for a task whose record is gone.

    Raises:
        TooLateError: when the task is over, or the wait has another outcome.
        DeliveryError: when it is too large with all that was delivered to the task before.
        UnserializableValueError: when the payload cannot be saved, is nested too deeply, or is too large alone.
        StoreError: when the store cannot be reached, or keeps nothing.
        kombu.exceptions.OperationalError: when the broker cannot be reached: a worker publishes the task later.

    >>> from celery import Celery
    >>> app = Celery("proj", set_as_current=False)
    >>> app.conf.update(broker_url="memory://", continuation_store="memory")
    >>> deliver("7f3a", "approval", {"by": "ann"}, app=app)
    >>> deliver("7f3a", "approval", "no", app=app)
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.TooLateError: task 7f3a: something else was delivered to 'approval' before
    """
    if type(name) is not str or not name:
        raise InvalidStepError(f"a wait's name must be a non-empty str, not {name!r}", found=name)
    app = app_or_default(app)
    largest = conf.app_setting(app, "max_snapshot")
    outcome = Outcome.of_payload(payload, f"the payload for {name!r}", largest)
    opened = _store(app, store)
    given: dict[str, Any] = {
        "ended": _ended(app, task_id),
        "largest": largest,
        "started": started,
        "earlier_names": partial(_earlier_names, app, name=name),
    }

    def act() -> None:
        kept_for = _kept_before_its_task(app)
        record = commands.deliver(opened, task_id, name, outcome, kept_for=kept_for, **given)
        _log(task_id, "delivered", f"{name!r} was delivered")
        _publish(app, record)

    after_commit(act, lambda: commands.check_delivery(opened, task_id, name, outcome, **given))


def wake(task_id: str, key: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """End a task's wait for the result of the task ``key``.  Raises as :func:`deliver`."""
    app = app_or_default(app)
    _publish(app, commands.wake(_store(app, store), task_id, key))


def pause(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """Stop a task at its next save, which is a checkpoint, until :func:`resume`.

    A pause of a task that has not started is kept as a delivery is: for ``continuation_keep_failed``.

    Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.
        StoreError: when the store cannot be reached, or keeps nothing.
    """
    app = app_or_default(app)
    kept_for = _kept_before_its_task(app)
    opened, ended = _store(app, store), _ended(app, task_id)

    def act() -> None:
        commands.pause(opened, task_id, ended=ended, kept_for=kept_for)
        _log(task_id, "paused", "pause requested")

    after_commit(act, lambda: commands.check_open(opened, task_id, ended=ended))


def resume(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """Resume a paused task; no-op for a task that is not paused.  Arguments and errors as in :func:`pause`.

    Raises:
        kombu.exceptions.OperationalError: when the broker cannot be reached; a worker publishes the task later.
    """
    app = app_or_default(app)
    kept_for = _kept_before_its_task(app)
    opened, ended = _store(app, store), _ended(app, task_id)

    def act() -> None:
        record = commands.resume(opened, task_id, ended=ended, kept_for=kept_for)
        _log(task_id, "unpaused", "resumed")
        _publish(app, record)

    after_commit(act, lambda: commands.check_open(opened, task_id, ended=ended))


def cancel(task_id: str, *, app: Celery | None = None, store: str | None = None) -> None:
    """End a task in the state REVOKED: at its next save, or immediately if it is not running.

    Its record is emptied and callbacks are not called; a chord that contains it fails, as for a revoked task.  Celery's
    signal ``task_revoked`` is sent and the task's ``on_cancel`` is called once: by this process if the task is not
    running and its code and arguments are known here; else by a worker, when the task notices the cancellation, or when
    its message arrives.  A task that has not started does not run if its message arrives later, for
    ``continuation_keep_failed`` at least.

    Arguments as in :func:`deliver`.

    Raises:
        DeliveryError: when the task is over.  Cancelling twice is not an error.
        StoreError: when the store cannot be reached, or keeps nothing.
    """
    app = app_or_default(app)
    opened, ended = _store(app, store), _ended(app, task_id)

    def act() -> None:
        cancelled = cancel_in(opened, task_id, app)
        _log(task_id, "cancelled", "cancelled" if cancelled.is_over else "cancel requested")
        if cancelled.is_over and not cancelled.is_first:
            revoke(app, task_id, None)  # the process that cancelled it may have died before storing the state

    after_commit(act, lambda: commands.check_open(opened, task_id, ended=ended, cancelled=True))


def cancel_in(store: Store, task_id: str, app: Celery) -> commands.Cancelled:
    """Cancel a task in an open store, and report it if this call has ended it.  Raises as :func:`cancel`."""
    cancelled = commands.cancel(
        store,
        task_id,
        ended=_ended(app, task_id),
        kept_for=conf.tombstone_seconds(app),
        awaited_for=_kept_before_its_task(app),
        can_report=lambda record: _task_of(app, record) is not None,
    )
    is_ended = cancelled.is_over and cancelled.is_first
    if is_ended and revoke(app, task_id, cancelled.record, is_first=True):
        report_record(app, cancelled.record)
    return cancelled


def revoke(app: Celery, task_id: str, record: Record | None, *, is_first: bool = False) -> bool:
    """Store the state REVOKED for a task that is not running, and notify its chord.

    Args:
        app: the task's app.
        task_id: the task.
        record: its record before it was cancelled, or None.
        is_first: whether it was cancelled just now: then a stored REVOKED is of a worker without this library, which
            notifies no chord.

    Returns:
        Whether REVOKED is its state; otherwise it has ended in another state.
    """
    state = app.backend.get_state(task_id) if celery_internals.keeps_results(app.backend) else states.PENDING
    if state in states.READY_STATES and not (is_first and state == states.REVOKED):
        return bool(state == states.REVOKED)
    app.backend.mark_as_revoked(task_id, "cancelled", request=_request_of(app, record), store_result=True)
    with app.events.default_dispatcher() as dispatcher:
        dispatcher.send("task-revoked", uuid=task_id, terminated=False, signum=None, expired=False)
    return True


def report_record(app: Celery, record: Record | None) -> None:
    """Report that a task was cancelled, by its record before that, if this process knows the task and its arguments."""
    task, request = _task_of(app, record), _request_of(app, record)
    if task is not None and request is not None:
        report_cancelled(task, request)


def report_cancelled(task: Any, request: Any) -> None:
    """Send Celery's signal ``task_revoked``, and call the task's hook.

    Args:
        task: the task, which has ended in the state REVOKED.
        request: its request, or a Context with its id and arguments.
    """
    setattr(request, REPORTED, True)
    signals.task_revoked.send(sender=task, request=request, terminated=False, signum=None, expired=False)
    call_on_cancel(task, request.id, request.args, request.kwargs)


def call_on_cancel(task: Any, task_id: str, args: Any, kwargs: Any) -> None:
    """Call a task's ``on_cancel``, and log its error: the task has ended already."""
    try:
        task.on_cancel(task_id, tuple(args or ()), dict(kwargs or {}))
    except Exception:
        logger.exception(
            "Task %s[%s]: its on_cancel has failed",
            task.name,
            task_id,
            extra={"action": "on_cancel_failed", "task_id": task_id, "task_name": task.name},
        )


def retry(
    task_id: str,
    step: str | None = None,
    *,
    accept_source: bool = False,
    app: Celery | None = None,
    store: str | None = None,
) -> None:
    """Retry a failed task where it failed, or from ``step``, which is then forgotten with all steps after it.

    Args:
        task_id: the task.
        step: a step that was begun or completed.
        accept_source: whether, after a :class:`SourceChangedError`, the failed loop continues at its cursor in the
            source as it is now; items may be skipped or repeated.
        app: the task's app; by default the current one.
        store: the task's setting ``continuation_store``; by default the app's.

    Raises:
        DeliveryError: when it has not failed, when its record is gone, or has no such step.
        StoreError: when the store cannot be reached, or keeps nothing.
        kombu.exceptions.OperationalError: when the broker cannot be reached; a worker publishes the task later.
    """
    app = app_or_default(app)
    opened = _store(app, store)
    what = f", from step {step!r}" if step else ", with its source as it is now" if accept_source else ""

    def act() -> None:
        retrying.check_retry(opened, task_id, step, accept_source)
        # Before the record is reopened: an execution asks the result backend whether the task has ended.
        app.backend.store_result(task_id, None, states.PENDING)
        record = retrying.retry(opened, task_id, step, accept_source)
        _log(task_id, "retried", f"retried{what}")
        _publish(app, record)

    after_commit(act, lambda: retrying.check_retry(opened, task_id, step, accept_source))


def _store(app: Celery, setting: str | None) -> Store:
    store = open_store(app, setting or conf.app_setting(app, "store"))
    if not store.keeps:
        raise StoreError(
            "message",
            "a task whose progress travels in its message cannot be reached; set continuation_store to a redis://, "
            "db+postgresql://, db+sqlite:/// or file:// URL",
        )
    return store


def _kept_before_its_task(app: Celery) -> float:
    """Return for how many seconds a delivery or a pause is kept if its task does not start."""
    return float(conf.seconds(conf.app_setting(app, "keep_failed")))


def _earlier_names(app: Celery, record: Record, name: str) -> list[str]:
    """Return the earlier names of a wait, if this process knows the task."""
    task = app.tasks.get(SavedMessage.loads(record.message).task) if record.message else None
    return old_names(name, conf.setting(task, "renamed_steps")) if isinstance(task, Task) else []


def _request_of(app: Celery, record: Record | None) -> Any:
    """Return the request of a record's message, or None if it has none that can be read."""
    message = _message_of(record)
    if message is None:
        return None
    try:
        return Context(**message.context(app))
    except Exception as exc:
        # Like a worker that does not accept the body, or cannot read it: store the state anyway.
        task_id = message.headers.get("id")
        logger.warning(
            "Task %s: its chord cannot be notified, nor its on_cancel called: %s",
            task_id,
            exc,
            extra={"action": "chord_not_told", "task_id": task_id},
        )
        return None


def _task_of(app: Celery, record: Record | None) -> Any:
    """Return the task of a record, or None if it is not known."""
    message = _message_of(record)
    task = app.tasks.get(message.task) if message else None
    return task if hasattr(task, "on_cancel") else None


def _message_of(record: Record | None) -> SavedMessage | None:
    try:
        return SavedMessage.loads(record.message) if record is not None and record.message else None
    except StoreError:
        return None  # nothing can be reported, but the task can be cancelled


def _ended(app: Celery, task_id: str) -> commands.Ended:
    """Return a check for a task without a record: it has not started yet, or ended long ago."""

    def ended() -> str | None:
        state = str(app.backend.get_state(task_id)) if celery_internals.keeps_results(app.backend) else states.PENDING
        return state if state in states.READY_STATES else None

    return ended


def _publish(app: Celery, record: Record | None) -> None:
    if record is not None and record.message:
        publish_saved(app, record.message, record.fence.generation)


def _log(task_id: str, action: str, text: str) -> None:
    logger.info("Task %s %s", task_id, text, extra={"action": action, "task_id": task_id})
