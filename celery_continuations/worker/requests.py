"""Requests in the main process: what they add for the pool process, what they refuse, and what they decide.

A stopping worker neither runs nor holds a continuation: if it were killed before requeueing the message, Redis would
not deliver that again before the visibility timeout.

A hard time limit, ``revoke`` or the death of the pool process ends a task in the main process.  The record is updated
here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.exceptions import TimeLimitExceeded
from celery.worker import state as celery_state
from celery.worker import strategy as celery_strategy
from celery.worker.request import Request as CeleryRequest
from kombu.exceptions import OperationalError

from celery_continuations import celery_internals, conf, events
from celery_continuations.control import call_on_cancel
from celery_continuations.exceptions import ContinuationError
from celery_continuations.messages.body import BODY
from celery_continuations.messages.headers import DELIVERY, GENERATION
from celery_continuations.process.stop_flag import flag_of
from celery_continuations.stores import Status, Store, open_store
from celery_continuations.stores.problems import UnstorableError
from celery_continuations.worker.maintenance import Maintenance, maintenance_of

__all__ = ["Request", "decide", "strategy"]

logger = logging.getLogger("celery_continuations")


class Request(CeleryRequest):
    """Pass the pool process the stop flag, the message's body and serializer, and whether to send events."""

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        flag = flag_of(self.hostname)
        self._maintenance: Maintenance | None = maintenance_of(flag.worker) if flag else None
        self._is_being_ended = False  # by this process, so the death of the task's process is expected
        self.request_dict[DELIVERY] = {
            "flag": flag.path if flag else None,
            "content_type": message.content_type,
            "sends_as": self.hostname if self.task.send_events and events.are_wanted(self.eventer) else None,
        }
        if not self._decoded:  # type: ignore[attr-defined]
            # The same object that Celery also sends to the pool process: pickle writes it once.
            body = (self._body, self._content_type, self._content_encoding)  # type: ignore[attr-defined]
            self.request_dict["properties"] = {**self.request_dict["properties"], BODY: body}

    # -- what the main process decides

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        """Note that this process ends the task: it is revoked while it runs."""
        self._is_being_ended = True
        decide(self.task, self.id, self._maintenance, None)
        was_revoked = self._already_revoked  # type: ignore[attr-defined]
        terminated = super().terminate(*args, **kwargs)
        self._call_on_cancel(was_revoked)
        return terminated

    def revoked(self) -> bool:
        """Return whether the message must not run; call the task's ``on_cancel`` if it was revoked or has expired."""
        was_revoked = self._already_revoked  # type: ignore[attr-defined]
        found = bool(super().revoked())
        self._call_on_cancel(was_revoked)
        return found

    def _call_on_cancel(self, was_revoked: bool) -> None:
        if self._already_revoked and not was_revoked:  # type: ignore[attr-defined]
            call_on_cancel(self.task, self.id, self.args, self.kwargs)

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        """Note that this process ends the task: the broker connection is lost, and the message comes again."""
        self._is_being_ended = True
        return super().cancel(*args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Update the record on a hard time limit."""
        if soft or celery_state.should_terminate:
            super().on_timeout(soft, timeout)
            return
        decide(self.task, self.id, self._maintenance, None)
        super().on_timeout(soft, timeout)
        # acks_on_timeout came with Celery 5.7
        acks = getattr(self.task, "acks_on_timeout", self.task.acks_on_failure_or_timeout)
        is_requeued = self.task.acks_late and not acks
        status, error = (Status.RUNNING, None) if is_requeued else (Status.FAILED, TimeLimitExceeded(timeout))
        decide(self.task, self.id, self._maintenance, status, error)

    # -- a process that died

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Recover a task whose process was lost, instead of failing it."""
        if not self._is_being_ended and celery_internals.is_lost_process(exc_info.exception) and self._recovered():
            celery_state.task_ready(self)
            return None
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _recovered(self) -> bool:
        """Recover a claimed task from its record; return False for a task that was not claimed."""
        if self._maintenance is None:
            return False
        store = _store_of(self.task)
        sweeper = self._maintenance.sweeper_of(store)
        if sweeper is None:
            return False
        try:
            record = store.read(self.id)
            if record is None or (record.fence.generation == 0 and record.message is None):
                return False  # a delivery or a command may have made the record before the task was claimed
            sweeper.recover(self.id)
        except UnstorableError:
            return False  # it cannot have been claimed
        except ContinuationError as exc:  # the store is unavailable, or the record cannot be read
            self._report_delay("recovered", exc)
            self.reject(requeue=True)
            return True
        except (OperationalError, OSError) as exc:
            # The record is in the store: the next sweep publishes it.
            self._report_delay("published", exc)
        self.acknowledge()
        return True

    def _report_delay(self, what: str, exc: Exception) -> None:
        logger.warning(
            "Task %s[%s] was lost and cannot be %s yet: %s",
            self.name,
            self.id,
            what,
            exc,
            extra={"action": "recovery_delayed", "task_id": self.id, "task_name": self.name},
        )


def decide(
    task: Any,
    task_id: str,
    maintenance: Maintenance | None,
    status: Status | None,
    error: BaseException | None = None,
) -> None:
    """Prevent the recovery of a task that the main process ends, or write its status; see :meth:`Sweeper.decide`."""
    sweeper = maintenance.sweeper_of(_store_of(task)) if maintenance else None
    if sweeper is not None:
        sweeper.decide(task_id, status, error)


def _store_of(task: Any) -> Store:
    return open_store(task.app, conf.setting(task, "store"))


def strategy(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Return Celery's default strategy, except that a stopping worker requeues continuations."""
    handle = celery_strategy.default(task, app, consumer, **kwargs)
    flag = flag_of(consumer.hostname)

    def on_message(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **kwargs: Any) -> Any:
        if flag is not None and flag.level and (message.headers or {}).get(GENERATION):
            # Stop consuming first, or the requeued message would be delivered here again immediately.
            if consumer.task_consumer is not None:
                consumer.task_consumer.cancel()
            message.requeue()
            logger.info(
                "Task %s[%s] requeued: this worker is stopping",
                task.name,
                message.headers["id"],
                extra={"action": "given_back", "task_id": message.headers["id"], "task_name": task.name},
            )
            return None
        return handle(message, body, ack, reject, callbacks, **kwargs)

    return on_message
