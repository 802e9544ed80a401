"""Requests in the main process: what they add for the pool process, what they refuse, and what they decide.

A stopping worker neither runs nor holds a continuation: if it were killed before requeueing the message, Redis would
not deliver that again before the visibility timeout.

A hard time limit, ``revoke`` or the death of the pool process ends a task in the main process: first in the record,
then in the result backend.
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
from celery_continuations.process.identity import new_owner, runs_in
from celery_continuations.process.stop_flag import flag_of
from celery_continuations.stores import Record, Status, Store, open_store
from celery_continuations.stores.problems import UnstorableError
from celery_continuations.worker.maintenance import Maintenance, maintenance_of
from celery_continuations.worker.verdicts import is_claimed_by, is_outstanding, take_to_end

__all__ = ["Request", "decide", "strategy"]

logger = logging.getLogger("celery_continuations")


class Request(CeleryRequest):
    """Pass the pool process the stop flag, the message's body and serializer, and whether to send events."""

    def __init__(self, message: Any, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        flag = flag_of(self.hostname)
        self._maintenance: Maintenance | None = maintenance_of(flag.worker) if flag else None
        self._worker = flag.worker if flag else ""
        self._generation = (message.headers or {}).get(GENERATION) or 0
        self._is_being_ended = False  # by this process, so the death of the task's process is expected
        self._has_returned = False
        self._verdict: bool | None = None  # on a failure: see take_to_end
        self._is_judged = False
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

    def revoked(self) -> bool:
        """Whether the task was revoked or has expired.  False if it has returned: its callbacks may have been sent."""
        return bool(super().revoked()) and not self._has_returned

    def terminate(self, *args: Any, **kwargs: Any) -> Any:
        """Note that this process ends the task: it is revoked while it runs."""
        self._is_being_ended = True
        decide(self.task, self.id, self._maintenance, None)
        return super().terminate(*args, **kwargs)

    def cancel(self, *args: Any, **kwargs: Any) -> Any:
        """Note that this process ends the task: the broker connection is lost, and the message comes again."""
        self._is_being_ended = True
        return super().cancel(*args, **kwargs)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Store the state REVOKED and call the task's ``on_cancel``, unless the task continues, or ended, elsewhere."""
        may_end = self._may_expire if expired else self._may_revoke
        if self._takes(Status.CANCELLED, may_end) is not False:
            super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
            # the handler of task_revoked in bootstep.py ends the record
            call_on_cancel(self.task, self.id, self.args, self.kwargs)
        elif not self._has_returned or terminated:
            self._already_revoked = True
            self._end_quietly()

    def _announce_cancelled(self, *args: Any, **kwargs: Any) -> None:
        """Store the state RETRY, unless the task has gone on or ended without this request."""
        if self._is_current():
            super()._announce_cancelled(*args, **kwargs)  # type: ignore[misc]
        else:
            self._already_cancelled = True
            celery_state.task_ready(self)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Store a failure for a hard time limit, or give the message back; neither, if the task has gone on."""
        if soft or celery_state.should_terminate:
            super().on_timeout(soft, timeout)
            return
        verdict = self._fail(self._status_after_limit, self._may_end)
        if verdict is None or (verdict and self._status_after_limit == Status.FAILED):
            super().on_timeout(soft, timeout)
            self._settle(verdict, TimeLimitExceeded(timeout))
        elif verdict:  # Celery would store a failure for a task that runs again
            logger.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
            celery_state.task_ready(self)
            self.reject(requeue=True)

    @property
    def _status_after_limit(self) -> Status:
        """The status after a hard time limit."""
        # acks_on_timeout came with Celery 5.7
        acks = getattr(self.task, "acks_on_timeout", self.task.acks_on_failure_or_timeout)
        return Status.RUNNING if self.task.acks_late and not acks else Status.FAILED

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Recover a task whose process was lost, instead of failing it; fail no task that has gone on."""
        error = exc_info.exception
        comes_again = False
        if celery_internals.is_lost_process(error):
            if self._is_being_ended and (self._already_revoked or self._already_cancelled):
                return None
            if not self._is_being_ended and self._recovered():
                celery_state.task_ready(self)
                return None
            comes_again = self._comes_again_when_lost
        if not (return_ok or comes_again or self._is_being_ended) and celery_internals.is_stored_as_failure(error):
            is_limit = isinstance(celery_internals.unwrapped(error), TimeLimitExceeded)
            has_reported = celery_internals.is_unsendable(error)  # so it has not claimed the record, or not ended it
            may_end = self._is_running if has_reported else self._may_end
            if self._fail(self._status_after_limit if is_limit else Status.FAILED, may_end) is False:
                self._end_quietly()
                return None
        done = super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        self._settle(self._verdict, celery_internals.unwrapped(error))
        return done

    @property
    def _comes_again_when_lost(self) -> bool:
        """Whether Celery stores nothing for a process that was lost before it had claimed the task."""
        # retry_on_worker_lost came with Celery 5.7
        is_rejected = self.task.acks_late and self.task.reject_on_worker_lost
        return bool(is_rejected or getattr(self.task, "retry_on_worker_lost", False))

    def _settle(self, verdict: bool | None, error: BaseException) -> None:
        """End the record that was taken for a failure, which is stored by now."""
        if verdict and self._status_after_limit == Status.FAILED:
            decide(self.task, self.id, self._maintenance, Status.FAILED, error)

    def _fail(self, status: Status, may_end: Callable[[Record], bool]) -> bool | None:
        """Judge a failure once: Celery reports a time limit twice."""
        if not self._is_judged:
            self._verdict, self._is_judged = self._takes(status, may_end), True
        return self._verdict

    def _takes(self, status: Status, may_end: Callable[[Record], bool]) -> bool | None:
        """Take the record; see :func:`take_to_end`.  None also while the store is unavailable."""
        store = _store_of(self.task)
        if self._maintenance is None or not store.keeps:
            return None
        try:
            owner, releases = new_owner(self._worker), status == Status.RUNNING
            verdict = take_to_end(store, self.task, self.id, owner, may_end, releases=releases)
        except ContinuationError:
            decide(self.task, self.id, self._maintenance, status)  # the record follows in a later sweep
            return None
        if verdict is False:
            forget_decision(self.task, self.id, self._maintenance)
            logger.info(
                "Task %s[%s] continues, or has ended, without this message",
                self.name,
                self.id,
                extra={"action": "refused", "task_id": self.id, "task_name": self.name},
            )
        return verdict

    def _may_end(self, record: Record) -> bool:
        return self._may_expire(record) or self._is_running(record)

    def _is_running(self, record: Record) -> bool:
        return is_claimed_by(record, self._runs)

    def _may_expire(self, record: Record) -> bool:
        return is_outstanding(record, self._generation)

    def _may_revoke(self, record: Record) -> bool:
        self._has_returned = bool(record.value)
        if self._has_returned:
            return False
        known = record.fence
        is_nobodys = known.status in (Status.QUEUED, Status.WAITING, Status.PAUSED) or (
            known.status == Status.RUNNING and not known.owner
        )
        return is_nobodys or self._may_end(record)

    def _is_current(self) -> bool:
        try:
            record = _store_of(self.task).read(self.id)
        except ContinuationError:
            return True
        return record is None or self._may_end(record)

    def _runs(self, owner: str) -> bool:
        return runs_in(owner, self._worker, self.worker_pid)

    def _end_quietly(self) -> None:
        celery_state.task_ready(self)
        self.acknowledge()

    # -- a process that died

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


def forget_decision(task: Any, task_id: str, maintenance: Maintenance | None) -> None:
    """Let the task be recovered: the main process does not end it."""
    sweeper = maintenance.sweeper_of(_store_of(task)) if maintenance else None
    if sweeper is not None:
        sweeper.forget_decision(task_id)


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
