"""A claimed task: how its body may end, and what follows."""

from __future__ import annotations

import inspect
import sys
import traceback
from typing import Any

from celery import states
from celery.exceptions import Reject, Retry, SoftTimeLimitExceeded

from celery_continuations import celery_internals
from celery_continuations.core import codec
from celery_continuations.core.calls import Wait
from celery_continuations.core.errors import summary
from celery_continuations.core.evolution import misfit
from celery_continuations.core.progress import Progress
from celery_continuations.core.run import Run
from celery_continuations.core.step import Step
from celery_continuations.ends import NotEnded
from celery_continuations.exceptions import (
    CheckpointError,
    ContinuationError,
    CrashLoopError,
    Interrupt,
    Interrupted,
    InvalidStepError,
    ResumeLimitError,
    SnapshotTooLargeError,
    StoreError,
    UnserializableValueError,
)
from celery_continuations.execution.checkpoints import Checkpoints
from celery_continuations.execution.leaving import RETRY, HandOver, Leaving
from celery_continuations.execution.message import CANCELLED
from celery_continuations.execution.phases import Ended, Final, Phased
from celery_continuations.execution.retries import error_countdown
from celery_continuations.execution.triggers import STOPPING
from celery_continuations.execution.unfit import refuse_changed_code
from celery_continuations.stores import Command, Status

__all__ = ["Running"]


class Running:
    """The task is claimed, and its body runs.

    Args:
        execution: the execution in this phase.
        checkpoints: the host of the run.
        crash_loop: why the body must not run, or None.

    Attributes:
        run: the run.
    """

    def __init__(self, execution: Phased, checkpoints: Checkpoints, crash_loop: CrashLoopError | None = None) -> None:
        self.run = checkpoints.run
        self.checkpoints = checkpoints
        self.ownership = checkpoints.ownership
        self._execution = execution
        self._message = checkpoints.message
        self._task = checkpoints.message.task
        self._crash_loop = crash_loop
        self._error: Exception | None = None  # the error that the task resumes from
        self._left_by: BaseException | None = None  # the error that the task ends with

    def begun(self) -> Run:
        """Return the run.  Raises the CrashLoopError."""
        if self._crash_loop is not None:
            raise self._crash_loop
        return self.run

    # -- the body has ended

    def failed(self, error: Exception) -> None:
        """Interrupt instead, if the task has advanced in this execution and may resume.

        Raises:
            Interrupt: when the task is resumed.
            Final: when its code, or a source, does not fit the snapshot, even if the task caught that error.
        """
        run = self.run
        self._message.reporter.hide_cursors(error)
        if run.misfit is None and self._is_continued and self._does_not_bind(error):
            run.refusal = misfit(
                f"its arguments do not fit {self._task.name}{inspect.signature(self._task.run)}: {error}"
            )
        self._refuse_changed_code()
        if run.refusal is not None:
            run.failed(run.refusal)
            raise Final(run.refusal)
        if run.interrupted is not None or celery_internals.is_predicate(error):
            return
        run.failed(error)
        self.checkpoints.retries.reset_after_progress(run)
        if not run.progressed or not self._message.setting("resume_errors_after_advancing"):
            return
        if isinstance(error, (SoftTimeLimitExceeded, MemoryError, ContinuationError)):
            return
        if self._task.throws and isinstance(error, self._task.throws):
            return
        run.take_snapshot().remember_error(error)
        self._error = error
        run.interrupt(summary(error))

    def returned(self) -> None:
        """Raise again what the body has swallowed."""
        run = self.run
        if self._crash_loop is not None:
            raise self._crash_loop
        self._refuse_changed_code()
        if run.refusal is not None:
            raise run.refusal
        if run.interrupted is not None:
            raise run.interrupted
        if self._execution.retry_options is not None:
            raise Retry("retry(throw=False)")
        try:
            run.finish()
        except InvalidStepError:
            self._refuse_changed_code()
            raise

    def finish(self, value: Any) -> None:
        """Save the return value.

        Raises:
            Ignore: when another execution has superseded this one.
        """
        try:
            encoded: str | None = codec.dumps(value)
        except UnserializableValueError:
            encoded = None
        if encoded is not None and len(encoded) > self.checkpoints.largest:
            encoded = None  # the body computes it again after a loss; completed steps are remembered
        try:
            with self.ownership.writing() as owned:
                owned.finish(self.checkpoints.timed_text(), encoded)
        except StoreError as exc:
            self._message.reporter.not_saved("that it has finished", exc)

    def _refuse_changed_code(self) -> None:
        if self.run.misfit is not None:
            refuse_changed_code(self._execution, self._message, self.ownership, self.run, self.run.misfit)

    @property
    def _is_continued(self) -> bool:
        """Whether an earlier execution has begun the task."""
        return self._message.generation > 0 or self.ownership.record.snapshot is not None

    def _does_not_bind(self, error: Exception) -> bool:
        """Whether the body never ran because the function does not accept these arguments."""
        code = getattr(inspect.unwrap(self._task.run), "__code__", None)
        ran = any(frame.f_code is code for frame, _ in traceback.walk_tb(error.__traceback__))
        if type(error) is not TypeError or ran:
            return False
        args, kwargs = self._execution.called_with
        try:
            inspect.signature(self._task.run).bind(*args, **kwargs)
        except TypeError:
            return True
        return False

    # -- control leaves the task

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in place of ``error``: a Retry for an interruption, which Celery stores.

        Raises:
            Ignore: when another execution has superseded this one, or the task is cancelled.
            ResumeLimitError: when the task was resumed too often.
        """
        if isinstance(error, Final):
            error = error.error
        self.run.abandon()
        interrupt = self._interruption(error)
        if interrupt is not None:
            try:
                return self._hand_over(interrupt)
            except ResumeLimitError as exc:
                self._save_failure(exc)
                raise
        options = self._execution.retry_options
        if isinstance(error, Retry) and options is not None:
            self.checkpoints.retries.retried(self.run)
            self._leave(RETRY, options, None, self._message.saved(**options))
        elif isinstance(error, Exception) and _is_failure(error):
            self._left_by = error
            self._save_failure(error)
        return error

    def _interruption(self, error: BaseException) -> Interrupt | None:
        """Return the interruption that ``error`` is, or replaced, or None."""
        if self.run.interrupted is not None:
            return self.run.interrupted
        # The stopping worker kills the task: SystemExit on prefork, GreenletExit on gevent.
        killed = isinstance(error, SystemExit) or type(error).__name__ == "GreenletExit"
        return Interrupt(None, None, STOPPING) if killed and self._message.flag.level else None

    def _hand_over(self, interrupt: Interrupt) -> BaseException:
        if self.ownership.record.fence.command == Command.CANCEL:
            self.ownership.cancel()
            self._execution.phase = Ended()
            raise NotEnded(CANCELLED)
        snapshot = self.run.take_snapshot()
        if self._error is not None or interrupt.reason is self.checkpoints.triggers.answer:
            limit = self._message.setting("max_resumptions")
            if limit is not None and snapshot.counted >= limit:
                raise ResumeLimitError(limit, interrupt.reason) from self._error
            snapshot.counted += 1
        options = dict(self._message.setting("resume_options"))
        if self._error is not None:
            options["countdown"] = error_countdown(snapshot, self._message.setting("resume_error_countdown"))
        shown = self._shown(self.run.current, interrupt.reason)
        self._leave(interrupt.reason, options, shown)
        countdown: Any = options.get("countdown") or 0
        retry: BaseException = Retry(str(shown), exc=shown, when=countdown)
        retry.__cause__ = self._error  # not the Interrupt, whose traceback is useless
        return retry

    def _shown(self, step: Step | None, reason: str) -> Interrupted:
        """Return the interruption as users see it."""
        if step is None:
            return Interrupted(None, None, reason)
        if isinstance(step, Wait):
            return Interrupted(step.name, None, reason)
        cursor = self._message.reporter.shown(step.cursor)
        return Interrupted(step.name, cursor, reason, Progress(step.name, *step.progress()).percent)

    def _leave(
        self, reason: str, options: dict[str, Any], shown: Interrupted | None, message: str | None = None
    ) -> None:
        """Hand the record over to the next message."""
        snapshot = self.run.snapshot
        snapshot.resumptions += 1
        snapshot.reason = reason
        snapshot.left_at = self._message.now()
        given = HandOver(self.checkpoints.timed_text(), options, shown, self._error, self.run, message)
        Leaving(self._execution, self._message, self.ownership, given).enter()

    def _save_failure(self, error: Exception) -> None:
        """Save a last time before Celery stores an error; raises Ignore if another execution owns the record."""
        if isinstance(error, CheckpointError):
            return  # the error has rolled back the transaction with the work since the last save
        try:
            with self.ownership.writing() as owned:
                owned.save(self.checkpoints.timed_text())
        except (StoreError, SnapshotTooLargeError, UnserializableValueError) as exc:
            self._message.reporter.not_saved("its last progress", exc)

    # -- Celery has stored the state

    def settle(self, state: str | None, result: Any) -> None:
        """Update the record."""
        if state == states.REJECTED and getattr(result, "requeue", False):
            self.ownership.release(self.checkpoints.timed_text())
        elif state in (states.FAILURE, states.REJECTED):
            self.ownership.fail(self._left_by or result)  # _save_failure has saved the progress
        elif state in (states.SUCCESS, states.IGNORED) and sys.exc_info()[1] is None:
            # Celery reports SUCCESS also if a signal's receiver or the backend has prevented it from storing that. Then
            # the value is kept, and the execution that recovers the task returns it.
            self.ownership.end(Status.DONE, self.run.snapshot.dumps_done())
        else:
            return
        self._execution.phase = Ended()


def _is_failure(error: Exception) -> bool:
    """Whether Celery stores FAILURE for ``error``; for a rejected message, which does not come back, it does."""
    is_rejected = isinstance(error, Reject) and not getattr(error, "requeue", False)
    return is_rejected or not celery_internals.is_predicate(error)
