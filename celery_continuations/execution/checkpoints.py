"""What happens at a checkpoint: the host of a run in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from celery.exceptions import Ignore

from celery_continuations import conf, transactions
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupt, StoreError
from celery_continuations.execution.direct import is_of_item, snapshot_text, warn_of_many_steps
from celery_continuations.execution.message import CANCELLED, Message, pauses
from celery_continuations.execution.ownership import Ownership
from celery_continuations.execution.retries import Retries
from celery_continuations.execution.triggers import STOPPING, Triggers
from celery_continuations.process.stop_flag import COLD
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Command, Fence

__all__ = ["PAUSED", "Checkpoints"]

PAUSED = "paused"

# After a failed save, the task works for this many times its duration before the next attempt.
_UNHURRIED = 3


class Checkpoints:
    """Save a run's progress, commit its steps' own transactions, and interrupt the run when needed.

    Args:
        message: the message that the execution runs.
        ownership: the ownership of the task's record.
        snapshot: the snapshot to resume from.
        triggers_of: makes the triggers of the run.

    Attributes:
        run: the run.
        triggers: what makes its checkpoints do something.
        retries: the retries of the task.
        saved_text: the text of the last saved snapshot.
    """

    run_type = Run

    def __init__(
        self, message: Message, ownership: Ownership, snapshot: Snapshot, triggers_of: Callable[[Run], Triggers]
    ) -> None:
        self.message = message
        self.ownership = ownership
        self.run = self.run_type(message.request.id, snapshot, self)
        self.triggers = triggers_of(self.run)
        self.saved_text = ownership.record.snapshot
        self.retries = Retries(message, snapshot)
        if self.retries.pending:
            self.run.attention = True
        self.largest: int = message.setting("max_snapshot")
        self._began = time.monotonic()
        self._ran_before = snapshot.run_time

    # -- the run's host

    def guard(self, step: str | None, own: Any) -> None:
        """Refuse an open transaction of the task; see :func:`transactions.refuse_open`."""
        transactions.refuse_open(step, own)

    def attend(self, run: Run) -> str | None:
        """Do what is due; return a reason to interrupt, if there is one."""
        self._measure_gap(run)
        reason = self.triggers.reason_to_leave()
        if reason is None and run.unit is None and self.triggers.is_save_due():
            self.save(run)
        self.triggers.attended(reason is not None)
        self._count_retries(run)
        return reason

    def is_due(self, run: Run) -> bool:
        """Whether there is a reason to interrupt, or a save is due."""
        return self.triggers.is_due(time.monotonic())

    def save(self, run: Run) -> None:
        """Save the run's progress, if any, and obey a pending command.

        Raises:
            Interrupt: when another execution has superseded this one, or a pause or cancel command is pending.
        """
        self._measure_gap(run)  # while the step is still known
        self._count_retries(run)
        text = self.text()
        if run.unit is not None:
            self._commit(run, run.unit, text)
            return
        if not self.message.store.keeps:
            return
        self.triggers.saving()
        began = time.monotonic()
        try:
            with self.ownership.writing() as owned:
                owned.save(text)
        except StoreError as exc:
            self.message.reporter.not_saved("its progress", exc)
            # A store that does not answer must not take up all of the task's time.
            self.triggers.saved(rest=_UNHURRIED * (time.monotonic() - began))
            return
        self.saved_text = text
        _obey(run, owned)
        self.triggers.saved()

    def join(self, run: Run) -> None:
        """Make this step's saves part of the task's own transactions.

        Raises:
            StoreError: when the record is not in the same database.
        """
        unit = run.unit
        unit.begin()
        try:
            is_found = self.ownership.record.within(unit.connection()).is_found()
        except BaseException:
            unit.rollback()
            raise
        unit.commit()
        if not is_found:
            raise StoreError(
                type(self.message.store).__name__,
                f"the record of this task is not found through {unit.name}; transaction= needs a "
                "continuation_store in the same database and schema",
            )

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Report what happens to a step."""
        self.message.reporter.step(event, run, step, **data)

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Free the worker for ``seconds``.  Raises as :meth:`leave`."""
        self.leave(Waiting("time", self.message.now() + seconds), f"throttled for {seconds:g} s")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        """Whether the error affects the current item alone; report it if so."""
        is_alone = is_of_item(error)
        if is_alone:
            self.message.reporter.item_failed(step, error)
        return is_alone

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        """Warn of a task with many steps, and refuse one that might not fit into the snapshot."""
        warn_of_many_steps(run, step, number, self.largest, self.message.reporter)

    def unchecked(self, run: Run, step: Step) -> None:
        """Report that the items of a loop have no identity."""
        self.message.reporter.source_unchecked(step)

    # -- leaving, and the snapshot's text

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """Free the worker until the wait ends.

        Raises:
            StoreError: when no store can keep the wait.
            Interrupt: otherwise.
        """
        if not self.message.store.keeps:
            raise StoreError(
                "message",
                f"a task cannot wait in it ({reason}), because a message cannot be woken; set continuation_store to a "
                "redis://, db+postgresql://, db+sqlite:/// or file:// URL",
            )
        self._warn_of_short_results(waiting, reason)
        self.run.snapshot.waiting = waiting
        self.run.interrupt(reason)

    def text(self) -> str:
        """Return the text of the snapshot.  Raises SnapshotTooLargeError, UnserializableValueError."""
        return snapshot_text(self.run, self.largest)

    def timed_text(self) -> str:
        """Return :meth:`text` with the seconds that the task has run so far."""
        self.run.snapshot.run_time = self._ran_before + time.monotonic() - self._began
        return self.text()

    # -- inside

    def _commit(self, run: Run, unit: transactions.Unit, text: str) -> None:
        """Save as part of the task's own transaction, and commit both.

        Raises:
            Interrupt: see :meth:`save`; if another execution has superseded this one, nothing is committed.
            BaseException: what an ``on_commit`` hook of the task has raised; both are committed.
        """
        unit.begin()
        self.triggers.saving()
        try:
            with self.ownership.writing() as owned:
                joined = owned.within(unit.connection())
                joined.save(text)
        except StoreError as exc:
            raise exc.__cause__ or exc from None  # like an error of any of the task's own statements
        except (Interrupt, Ignore):
            unit.rollback()
            raise
        fence, error = joined.fence, None
        try:
            unit.commit()
        except BaseException as exc:
            if unit.committed:
                error = exc
            else:
                unit.rollback()
                if not self._was_committed(owned, fence, text):
                    raise
        run.committed()
        owned.fence, self.saved_text = fence, text
        self.triggers.saved()
        if error is not None:
            raise error
        _obey(run, owned)

    def _was_committed(self, owned: OwnedRecord, fence: Fence, text: str) -> bool:
        """Ask the store, until it answers, whether a commit whose answer was lost took effect.

        Raises:
            SystemExit: when the worker must stop immediately; the sweep that recovers the record finds the truth.
        """
        for pause in pauses():
            try:
                return owned.was_saved(fence, text)
            except StoreError as exc:
                if self.message.flag.level == COLD:
                    self.ownership.lose(STOPPING)
                    raise SystemExit(f"the store is unavailable and this worker must stop immediately: {exc}") from exc
                self.message.reporter.not_saved("its progress; it is unknown whether the commit took effect", exc)
            time.sleep(pause)
        raise AssertionError("unreachable")

    def _count_retries(self, run: Run) -> None:
        """Count retries from 0 once the task has made progress; until then each checkpoint looks for it."""
        self.retries.reset_after_progress(run)
        if self.retries.pending:
            run.attention = True

    def _measure_gap(self, run: Run) -> None:
        """Record how long the task went without a checkpoint while one was due."""
        gap = self.triggers.gap
        if gap > 1:
            run.snapshot.gap = max(gap, run.snapshot.gap)
            if gap > conf.grace_period(self.message.task.app):
                self.message.reporter.slow_checkpoint(run, gap)

    def _warn_of_short_results(self, waiting: Waiting, reason: str) -> None:
        """Warn if the wait outlasts ``result_expires``: Celery's chord then forgets its results and counts."""
        expires = conf.seconds(conf.celery_setting(self.message.task.app, "result_expires"))
        is_longer = waiting.until is None or waiting.until - self.message.now() > expires
        if self.message.request.chord and expires and is_longer:
            self.message.reporter.short_results(reason, expires)


def _obey(run: Run, owned: OwnedRecord) -> None:
    """Interrupt the run where a command is pending."""
    if owned.fence.command is not None:
        run.interrupt(PAUSED if owned.fence.command == Command.PAUSE else CANCELLED)
