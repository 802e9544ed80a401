"""Finding what dead workers have left, and putting it back into its queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery

from celery_continuations import events, signals
from celery_continuations.control import revoke
from celery_continuations.exceptions import InvalidStepError, StoreError, UnserializableValueError
from celery_continuations.messages.publishing import Publisher, publisher
from celery_continuations.messages.saved import SavedMessage
from celery_continuations.protocol.endings import ended, needs_chord_count, seconds_kept
from celery_continuations.protocol.liveness import Loss, loss_of
from celery_continuations.protocol.owned import OVERDUE_AFTER, OwnedRecord
from celery_continuations.protocol.recovery import overdue_after, recover, republish_overdue
from celery_continuations.stores import Command, Fence, Record, Scan, Status, Store

__all__ = ["Report", "Sweeper"]

logger = logging.getLogger("celery_continuations")

# A message that is overdue only after this many seconds is published again although its queue is not empty: Celery
# itself takes as long to requeue what a killed worker held, on Redis.
_LONG = 3600.0


class Report(NamedTuple):
    """What a sweep did with a task, or could not do.

    Attributes:
        task_id: the task.
        action: ``"recovered"``, ``"published_again"`` or ``"recovery_failed"``.
        text: continues the sentence that begins with the task's id.
    """

    task_id: str
    action: str
    text: str

    def __str__(self) -> str:
        return f"Task {self.task_id} {self.text}"


def log(report: Report) -> None:
    """Log what a sweep did."""
    task_id, action, text = report
    level = logging.ERROR if action == "recovery_failed" else logging.WARNING
    logger.log(level, "Task %s %s", task_id, text, extra={"action": action, "task_id": task_id})


class _Lost(NamedTuple):
    task_id: str
    owner: str
    loss: Loss


class Sweeper:
    """Recovers the tasks of dead workers from one store.

    Args:
        app: whose tasks.
        store: where their records are.
        worker: the id of the worker that sweeps.
        is_at_work: whether this worker has a task in hand.
        sends_as: returns the worker's name, while it sends events of tasks.
        report: called with what a sweep did with each task.
    """

    def __init__(
        self,
        app: Celery,
        store: Store,
        worker: str,
        is_at_work: Callable[[str], bool],
        sends_as: Callable[[], str | None] = lambda: None,
        report: Callable[[Report], None] = log,
    ) -> None:
        self._report = report
        self._sends_as = sends_as
        self._is_at_work = is_at_work
        self._app = app
        self._store = store
        self._worker = worker
        self._decided: dict[str, Status | None] = {}
        self._told: set[str] = set()
        self._idle: set[str] = set()  # owners that had nothing in hand at the last look

    def sweep(self, by_lease: Callable[[], bool]) -> Scan:
        """Scan once, and recover what dead workers left.

        Args:
            by_lease: asked after the scan; see :func:`loss_of`.

        Raises:
            StoreError: when the store is away.
            OSError, kombu.exceptions.OperationalError: when the broker is.
        """
        scan = self._store.scan(self._worker)
        judges = by_lease()
        lost: list[_Lost] = []
        dead = []
        for lease in scan.leases:
            loss = loss_of(lease.worker, scan.leases, by_lease=judges)
            if loss and lease.worker != self._worker:
                dead.append(lease.worker)
                owned = self._store.scan(lease.worker, 0).owned
                if len(owned) > 1 and loss is Loss.CRASH:
                    loss = Loss.SUSPECTED_CRASH
                lost += [_Lost(task_id, owner, loss) for task_id, owner in owned.items()]
        lost += self._lost_here(scan)
        if lost or scan.due:
            with publisher(self._app) as publishing:
                for one in lost:
                    self._carefully(self._recover, one.task_id, one, publishing)
                for task_id in scan.due:
                    self._carefully(self._republish_overdue, task_id, publishing)
        for worker in dead:
            self._store.retire(worker)
        return scan

    def _lost_here(self, scan: Scan) -> list[_Lost]:
        """Return what this worker owns and no longer works on."""
        lost = []
        idle: set[str] = set()
        for task_id, owner in scan.owned.items():
            loss = loss_of(owner, scan.leases, by_lease=False)
            if self._decided.get(task_id):
                self._carefully(self._settle, task_id)
            elif loss and task_id not in self._decided:
                lost.append(_Lost(task_id, owner, loss))
            elif not self._is_at_work(task_id):
                idle.add(owner)
                # Its claim was written and the answer lost, or its last write could not be made. Twice in a row,
                # for Celery forgets a request that it cancels before its process has ended.
                if owner in self._idle:
                    lost.append(_Lost(task_id, owner, Loss.STOP))
        self._idle = idle
        return lost

    def recover(self, task_id: str) -> None:
        """Recover one task of this worker, whose process has ended, if that has not been done yet.

        Raises: see :meth:`sweep`.
        """
        scan = self._store.scan(self._worker, 0)
        owner = scan.owned.get(task_id, "")
        loss = loss_of(owner, scan.leases, by_lease=False) if owner else None
        if loss:
            with publisher(self._app) as publishing:
                self._recover(task_id, _Lost(task_id, owner, loss), publishing)
        elif not owner and self._was_left_just_now(task_id):
            with publisher(self._app) as publishing:
                self._republish_overdue(task_id, publishing)

    def _was_left_just_now(self, task_id: str) -> bool:
        """Whether the record is left to a message that its process may not have lived to publish."""
        record = self._store.read(task_id)
        if record is None or record.fence != Fence(record.fence.generation, Status.QUEUED):
            return False
        # Not where it is to be run later, as after self.retry(countdown=3600). The times of two clocks: it is safe
        # to be wrong, for the record is due in the end.
        return record.due is not None and record.due - time.time() <= 2 * OVERDUE_AFTER

    def decide(self, task_id: str, status: Status | None = None) -> None:
        """The worker's main process ends a task itself: it is not to be recovered.

        Args:
            task_id: the task.
            status: that its record gets, now or as soon as the store can be reached; None while
                that is still to come.
        """
        self._decided[task_id] = status
        if status is not None:
            self._carefully(self._settle, task_id)

    def _settle(self, task_id: str) -> None:
        record = self._store.read(task_id)
        status = self._decided[task_id]
        assert status is not None
        if record is not None and self._is_ours(record.fence):
            owned = OwnedRecord(self._store, task_id, record.fence)
            if status == Status.RUNNING:
                owned.release(None)
            else:
                owned.end(status, None, seconds_kept(self._app, status))
        self._decided.pop(task_id, None)

    def _is_ours(self, fence: Fence) -> bool:
        return fence.status == Status.QUEUED or fence.worker == self._worker

    def _recover(self, task_id: str, lost: _Lost, publishing: Publisher) -> None:
        record = recover(
            self._store,
            task_id,
            ended=lambda found: self._ended(task_id, found),
            loss_of=lambda owner: lost.loss if owner == lost.owner else None,  # another may have it by now
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
        """It was to be cancelled, and its execution was lost before that."""
        revoke(self._app, task_id, record)
        seconds = seconds_kept(self._app, Status.CANCELLED)
        OwnedRecord(self._store, task_id, record.fence).end(Status.CANCELLED, "", seconds)

    def _ended(self, task_id: str, record: Record | None) -> tuple[Status, float] | None:
        message = SavedMessage.loads(record.message) if record and record.message else None
        owner = (self._app.tasks.get(message.task) if message else None) or self._app
        if record and message and needs_chord_count(record, message.in_chord, owner.backend):
            return None
        return ended(owner, task_id, owner.backend)

    def _republish_overdue(self, task_id: str, publishing: Publisher) -> None:
        def may_publish(record: Record) -> bool:
            if record.message is None or overdue_after(record.fence) >= _LONG:
                return True
            return not publishing.is_waiting(record.message)

        record = republish_overdue(self._store, task_id, may_publish)
        if record is not None:
            self._publish(task_id, record, publishing, "published_again", "published again: nobody has taken it up")

    def _publish(self, task_id: str, record: Record, publishing: Publisher, action: str, text: str) -> None:
        if record.message is None:
            raise StoreError("record", f"of task {task_id} keeps no message to publish")
        publishing.publish(record.message, record.fence.generation)
        self._tell(task_id, action, text)

    def _tell(self, task_id: str, action: str, text: str) -> None:
        self._report(Report(task_id, action, text))

    def _carefully(self, act: Callable[..., None], task_id: str, *args: Any) -> None:
        """A record that cannot be read must not keep the others from being recovered."""
        try:
            act(task_id, *args)
            self._told.discard(task_id)
        except (StoreError, UnserializableValueError, InvalidStepError) as exc:  # the last: of a later release
            if task_id not in self._told:
                self._told.add(task_id)
                self._tell(task_id, "recovery_failed", f"cannot be recovered, its record stays unchanged: {exc}")
