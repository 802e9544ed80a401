"""Find and requeue what dead workers left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from celery import Celery
from kombu.exceptions import OperationalError

from celery_continuations import events, signals
from celery_continuations.control import report_record, revoke
from celery_continuations.exceptions import StoreError
from celery_continuations.messages.publishing import Publisher, publisher
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.protocol.endings import ended, needs_chord_count, seconds_kept
from celery_continuations.protocol.liveness import Loss, loss_of
from celery_continuations.protocol.owned import OVERDUE_AFTER, OwnedRecord
from celery_continuations.protocol.recovery import not_published, overdue_after, recover, republish_overdue
from celery_continuations.stores import Command, Fence, Lease, Record, Scan, Status, Store
from celery_continuations.stores.base import LIMIT
from celery_continuations.worker.lease_clock import LeaseClock

__all__ = ["Report", "Sweeper"]

logger = logging.getLogger("celery_continuations")

# A message that is overdue after this many seconds or more is published again even if its queue is not empty: on Redis
# Celery itself takes that long to requeue what a killed worker held.
_LONG = 3600.0

# Other actions are warnings.
_LEVELS = {"recovery_failed": logging.ERROR, "woken": logging.INFO}


class Report(NamedTuple):
    """What a sweep did with a task, or failed to do.

    Attributes:
        task_id: the task; ``""`` for an entry of the store that belongs to none.
        action: ``"recovered"``, ``"woken"``, ``"published_again"`` or ``"recovery_failed"``.
        text: continues the sentence that begins with the task's id.
    """

    task_id: str
    action: str
    text: str

    def __str__(self) -> str:
        what = f"Task {self.task_id}" if self.task_id else "The store cannot be read completely:"
        return f"{what} {self.text}"


def log(report: Report) -> None:
    """Log what a sweep did."""
    task_id, action, _ = report
    level = _LEVELS.get(action, logging.WARNING)
    logger.log(level, "%s", report, extra={"action": action, "task_id": task_id})


class _Lost(NamedTuple):
    task_id: str
    owner: str
    loss: Loss


class Sweeper:
    """Recovers the tasks of dead workers from one store.

    Args:
        app: the app of the tasks.
        store: where their records are.
        worker: the id of the worker that sweeps.
        is_in_progress: whether this worker has received a task and not yet seen it end.
        sends_as: returns the worker's name, or None while it does not send task events.
        report: called with what a sweep did with each task.
        clock: what the worker knows of the leases in the store; None to believe the store.
    """

    def __init__(
        self,
        app: Celery,
        store: Store,
        worker: str,
        is_in_progress: Callable[[str], bool],
        sends_as: Callable[[], str | None] = lambda: None,
        report: Callable[[Report], None] = log,
        clock: LeaseClock | None = None,
    ) -> None:
        self._clock = clock
        self._report = report
        self._sends_as = sends_as
        self._is_in_progress = is_in_progress
        self._app = app
        self._store = store
        self._worker = worker
        self._decided: dict[str, Status | None] = {}
        self._errors: dict[str, BaseException] = {}  # with which it ends them
        self._reported: set[str] = set()  # tasks that cannot be recovered, and entries that cannot be read
        self._idle: set[str] = set()  # owners that had no task in progress at the last scan

    def sweep(self, by_lease: Callable[[], bool]) -> Scan:
        """Scan once, and recover what dead workers left.

        A task that cannot be recovered does not affect the others: it is reported once, and left out of the due tasks
        that are returned.

        Args:
            by_lease: called after the scan; see :func:`loss_of`.

        Raises:
            StoreError: when the store is unavailable.
            OSError, kombu.exceptions.OperationalError: when the broker is unavailable.
        """
        before = self._clock.read() if self._clock else None
        # Records that cannot be read stay due, before all others: without more room they would fill every scan.
        scan = self._store.scan(self._worker, LIMIT + len(self._reported))
        for problem in scan.problems:
            self._report_failure("", "", problem)
        trusts_leases = by_lease()
        leases = self._clock.judged(scan.leases, before) if self._clock and before else scan.leases
        lost: list[_Lost] = []
        dead: list[str] = []
        if self._clock is None or self._clock.trusts_proofs:
            lost = self._lost_elsewhere(leases, trusts_leases, dead)
        lost += self._lost_here(scan)
        if lost or scan.due:
            with publisher(self._app) as publishing:
                for one in lost:
                    self._attempt(self._recover, one.task_id, one, publishing)
                for task_id in scan.due:
                    self._attempt(self._republish_overdue, task_id, publishing)
        for worker in dead:
            self._store.retire(worker)
        return scan._replace(due=[task_id for task_id in scan.due if task_id not in self._reported])

    def _lost_elsewhere(self, leases: list[Lease], by_lease: bool, dead: list[str]) -> list[_Lost]:
        """Return the tasks of other workers that are dead, and add these to ``dead``."""
        lost: list[_Lost] = []
        for lease in leases:
            loss = loss_of(lease.worker, leases, by_lease=by_lease)
            if loss and lease.worker != self._worker:
                dead.append(lease.worker)
                owned = self._store.scan(lease.worker, 0).owned
                if len(owned) > 1 and loss is Loss.CRASH:
                    loss = Loss.SUSPECTED_CRASH
                lost += [_Lost(task_id, owner, loss) for task_id, owner in owned.items()]
        return lost

    def _lost_here(self, scan: Scan) -> list[_Lost]:
        """Return the tasks that this worker owns and no longer runs."""
        lost = []
        idle: set[str] = set()
        for task_id, owner in scan.owned.items():
            loss = loss_of(owner, scan.leases, by_lease=False)
            if self._decided.get(task_id):
                self._attempt(self._settle, task_id)
            elif self._clock is not None and not self._clock.trusts_proofs:
                continue
            elif loss and task_id not in self._decided:
                lost.append(_Lost(task_id, owner, loss))
            elif not self._is_in_progress(task_id):
                idle.add(owner)
                # The answer to its claim was lost, or its last write failed. Two scans in a row must find it idle,
                # because Celery forgets a request that it cancels before the process has ended.
                if owner in self._idle:
                    lost.append(_Lost(task_id, owner, Loss.STOP))
        self._idle = idle
        return lost

    def recover(self, task_id: str) -> None:
        """Recover one task of this worker, whose process has ended, unless that is done already.

        Raises: see :meth:`sweep`.
        """
        scan = self._store.scan(self._worker, 0)
        owner = scan.owned.get(task_id, "")
        loss = loss_of(owner, scan.leases, by_lease=False) if owner else None
        if loss:
            with publisher(self._app) as publishing:
                self._recover(task_id, _Lost(task_id, owner, loss), publishing)
        elif not owner and self._handed_over_recently(task_id):
            with publisher(self._app) as publishing:
                self._republish_overdue(task_id, publishing)

    def _handed_over_recently(self, task_id: str) -> bool:
        """Whether the record waits for a message that the process may have died before publishing."""
        record = self._store.read(task_id)
        if record is None or record.fence != Fence(record.fence.generation, Status.QUEUED):
            return False
        # False for a task scheduled for later, as by self.retry(countdown=3600). This compares two clocks: an error is
        # harmless, because the record becomes due eventually.
        return record.due is not None and record.due - time.time() <= 2 * OVERDUE_AFTER

    def decide(self, task_id: str, status: Status | None = None, error: BaseException | None = None) -> None:
        """Prevent the recovery of a task that the worker's main process ends itself.

        Args:
            task_id: the task.
            status: the record's new status, written now or as soon as the store can be reached; None while it is
                not known yet.
            error: the error with which it ends the task, if there is one.
        """
        if error is not None:
            self._errors[task_id] = error
        self._decided[task_id] = status
        if status is not None:
            try:
                self._settle(task_id)
            except Exception as exc:  # of a driver, or of a record that cannot be read: the next sweep tries again
                self._report_failure(task_id, "cannot be ended; its record is unchanged: ", exc)

    def forget_decision(self, task_id: str) -> None:
        """Let the task be recovered after all: its execution had gone on, or had ended, by itself."""
        self._decided.pop(task_id, None)

    def _settle(self, task_id: str) -> None:
        status = self._decided.get(task_id)
        if status is None:
            return  # another thread has settled it
        record = self._store.read(task_id)
        if record is not None and self._is_ours(record.fence):
            owned = OwnedRecord(self._store, task_id, record.fence)
            if status == Status.RUNNING:
                owned.release(None)
            elif status == Status.FAILED:
                owned.fail(self._errors.get(task_id), seconds_kept(self._app, status))
            else:
                owned.end(status, None, seconds_kept(self._app, status))
        self._decided.pop(task_id, None)
        self._errors.pop(task_id, None)

    def _is_ours(self, fence: Fence) -> bool:
        return fence.status == Status.QUEUED or fence.worker == self._worker

    def _recover(self, task_id: str, lost: _Lost, publishing: Publisher) -> None:
        record = recover(
            self._store,
            task_id,
            ended=lambda found: self._ended(task_id, found),
            loss_of=lambda owner: lost.loss if owner == lost.owner else None,  # another execution may own it by now
        )
        if record is not None and record.fence.command == Command.CANCEL:
            self._cancelled(task_id, record)
        elif record is not None:
            self._publish(task_id, record, publishing, "recovered", "recovered: its execution was lost")
            name, hostname = SavedMessage.loads(record.message or "").task, self._sends_as()
            if hostname is not None:
                events.send(self._app, hostname, "recovered", publishing.producer, uuid=task_id, name=name)
            signals.task_recovered.send(sender=self._app.tasks.get(name), task_id=task_id)

    def _cancelled(self, task_id: str, record: Record) -> None:
        """End a task whose execution was lost before it could obey a cancel command."""
        is_revoked = revoke(self._app, task_id, record)
        seconds = seconds_kept(self._app, Status.CANCELLED)
        if OwnedRecord(self._store, task_id, record.fence).end(Status.CANCELLED, "", seconds) and is_revoked:
            report_record(self._app, record)

    def _ended(self, task_id: str, record: Record | None) -> tuple[Status, float] | None:
        message = SavedMessage.loads(record.message) if record and record.message else None
        owner = (self._app.tasks.get(message.task) if message else None) or self._app
        if record and message and needs_chord_count(record, message.in_chord, owner.backend):
            return None
        return ended(owner, task_id, owner.backend, began=message.began if message else None)

    def _republish_overdue(self, task_id: str, publishing: Publisher) -> None:
        def may_publish(record: Record) -> bool:
            if record.message is None or overdue_after(record.fence) >= _LONG:
                return True
            try:
                return not publishing.is_waiting(record.message)
            except (OperationalError, StoreError):
                raise
            except Exception as exc:  # of any transport: in the end it is published without asking
                self._report_failure(task_id, "waits in a queue that cannot be counted: ", exc)
                return False

        record = republish_overdue(self._store, task_id, may_publish)
        if record is None:
            return
        if record.fence.status == Status.WAITING:
            self._publish(task_id, record, publishing, "woken", "woken: its time has come")
        else:
            self._publish(task_id, record, publishing, "published_again", "published again: no worker has claimed it")

    def _publish(self, task_id: str, record: Record, publishing: Publisher, action: str, text: str) -> None:
        if record.message is None:
            raise StoreError("record", f"task {task_id} has no saved message to publish")
        try:
            publishing.publish(record.message, record.fence.generation)
        except OperationalError:
            with suppress(StoreError):  # it becomes due later
                not_published(self._store, task_id, record.fence.generation)
            raise
        self._report_action(task_id, action, text)

    def _report_action(self, task_id: str, action: str, text: str) -> None:
        self._report(Report(task_id, action, text))

    def _attempt(self, act: Callable[..., None], task_id: str, *args: Any) -> None:
        """Call ``act``; report its error, so that one task does not block the recovery of the others."""
        try:
            act(task_id, *args)
        except OperationalError:
            raise  # the broker is unavailable, for all of them
        except Exception as exc:
            if task_id not in self._reported:
                self._store.scan(limit=0)  # raises if the store is unavailable, for all of them
            self._report_failure(task_id, "cannot be recovered; its record is unchanged: ", exc)
        else:
            self._reported.discard(task_id)

    def _report_failure(self, task_id: str, text: str, problem: object) -> None:
        """Report a task, or an entry of the store, that cannot be read; each once."""
        known = task_id or str(problem)
        if known not in self._reported:
            self._reported.add(known)
            named = f"{type(problem).__name__}: " if isinstance(problem, Exception) else ""
            self._report_action(task_id, "recovery_failed", f"{text}{named}{problem}")
