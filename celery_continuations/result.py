"""A task's result, with its progress and the operations on the task."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import states
from celery.result import AsyncResult

from celery_continuations import celery_internals, conf, control
from celery_continuations.core.errors import text_of
from celery_continuations.core.notes import error_in
from celery_continuations.core.progress import Progress
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.core.typevars import R_co
from celery_continuations.stores import Record, Status, open_store

if TYPE_CHECKING:
    from typing import Generic

    from celery import Celery
    from celery.result import ResultBase

    class GenericResult(AsyncResult[R_co], Generic[R_co]):
        """See :class:`celery.result.AsyncResult`."""

else:

    class GenericResult(AsyncResult):
        """See :class:`celery.result.AsyncResult`, which cannot be subscripted before Celery 5.7."""

        def __class_getitem__(cls, types):
            return cls


__all__ = ["ContinuableAsyncResult", "Progress", "TaskError"]


class TaskError(NamedTuple):
    """The error that has ended a task.

    Attributes:
        type: the name of its class.
        message: its text; a long one is cut.
        step: the step in which it was raised, or None.

    >>> str(TaskError("ValueError", "no", "import"))
    'ValueError: no'
    """

    type: str
    message: str
    step: str | None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}".removesuffix(": ")


class ContinuableAsyncResult(GenericResult[R_co]):
    """An AsyncResult that also reports what the task's store knows.

    Each property reads the store again, and raises StoreError when the store cannot be reached.

    Args:
        id: the task's id.
        store: the task's setting ``continuation_store``; by default the app's.
        backend, task_name, app, parent: see AsyncResult.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: ResultBase | None = None,
        *,
        store: str | None = None,
    ) -> None:
        super().__init__(id, backend, task_name, app, parent)
        self._store = store

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[..., Any] | None = None,
        on_interval: Callable[..., Any] | None = None,
        disable_sync_subtasks: bool = True,
        EXCEPTION_STATES: frozenset[str] = states.EXCEPTION_STATES,  # noqa: N803
        PROPAGATE_STATES: frozenset[str] = states.PROPAGATE_STATES,  # noqa: N803
    ) -> R_co:
        """Wait for the task's end and return its value, like AsyncResult.

        For a failed task that any process has retried by :meth:`retry`, wait for the new end: the old one may still
        arrive from the result backend.
        """
        until = None if timeout is None else monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - monotonic())
            try:
                value = super().get(
                    left,
                    propagate,
                    interval,
                    no_ack,
                    follow_parents,
                    on_message=on_message,
                    on_interval=on_interval,
                    disable_sync_subtasks=disable_sync_subtasks,
                    EXCEPTION_STATES=EXCEPTION_STATES,
                    PROPAGATE_STATES=PROPAGATE_STATES,
                )
            except Exception:
                if not celery_internals.heard_late(self):
                    raise
            else:
                if not celery_internals.heard_late(self):
                    if callback is not None:
                        callback(self.id, value)
                    return value
            celery_internals.forget_cached(self)

    def record(self) -> Record | None:
        """Return the task's record, or None if there is none."""
        return open_store(self.app, self._store or conf.app_setting(self.app, "store")).read(self.id)

    def snapshot(self) -> Snapshot | None:
        """Return the last saved snapshot, or None if there is none."""
        record = self.record()
        return Snapshot.loads(record.snapshot) if record and record.snapshot else None

    # -- what can be done to it

    def deliver(self, name: str, payload: Any) -> None:
        """Deliver ``payload`` to the task's wait ``name``; see :func:`celery_continuations.deliver`."""
        control.deliver(self.id, name, payload, app=self.app, store=self._store)

    def pause(self) -> None:
        """Stop the task at its next save; see :func:`celery_continuations.control.pause`."""
        control.pause(self.id, app=self.app, store=self._store)

    def resume(self) -> None:
        """Resume a paused task; see :func:`celery_continuations.control.resume`."""
        control.resume(self.id, app=self.app, store=self._store)

    def cancel(self) -> None:
        """Cancel the task; its state becomes REVOKED; see :func:`celery_continuations.control.cancel`."""
        control.cancel(self.id, app=self.app, store=self._store)

    def retry(self, step: str | None = None, *, accept_source: bool = False) -> None:
        """Retry a failed task; see :func:`celery_continuations.control.retry`."""
        control.retry(self.id, step, accept_source=accept_source, app=self.app, store=self._store)
        celery_internals.forget_cached(self)

    # -- what is known of it

    @property
    def status_of_record(self) -> str | None:
        """The status of the task's record, e.g. ``"waiting"`` or ``"paused"``; None without a record."""
        record = self.record()
        return record.fence.status.value if record else None

    @property
    def waiting(self) -> Waiting | None:
        """What the task waits for, or None if it is not waiting."""
        record = self.record()
        if record is None or record.fence.status != Status.WAITING:
            return None
        return Snapshot.loads(record.snapshot).waiting if record.snapshot else None

    @property
    def error(self) -> TaskError | None:
        """The error that has ended the task, or None if it has not failed.

        The record keeps it for ``continuation_keep_failed``, also for a task that ignores its result.
        """
        record = self.record()
        if record is not None and record.fence.status != Status.FAILED:
            return None
        kept = error_in(record.snapshot) if record else None
        if kept is not None:
            return TaskError(kept["type"], kept["message"], kept["step"])
        if self.state != states.FAILURE or not isinstance(self.result, BaseException):
            return None
        return TaskError(type(self.result).__name__, text_of(self.result), None)

    @property
    def progress(self) -> Progress | None:
        """The progress of the current step, or None if nothing is saved."""
        snapshot = self.snapshot()
        if snapshot is None:
            return None
        return Progress(snapshot.current[0] if snapshot.current else None, *snapshot.progress)

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the completed steps, in order."""
        snapshot = self.snapshot()
        return tuple(snapshot.completed) if snapshot else ()

    @property
    def resumptions(self) -> int:
        """How many times the task was interrupted to be resumed."""
        snapshot = self.snapshot()
        return snapshot.resumptions if snapshot else 0
