"""Report what happens to a task: log records, signals and events."""

from __future__ import annotations

import logging
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery_continuations import conf, events, signals
from celery_continuations.core import codec
from celery_continuations.core.calls import Wait
from celery_continuations.core.continuation import Continuation
from celery_continuations.core.errors import text_of
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import LOST, Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import CrashLoopError, ErrorBudgetError, Interrupted, UnserializableValueError

if TYPE_CHECKING:
    from celery import Task

__all__ = ["MANY_ERRORS", "Reporter"]

logger = logging.getLogger("celery_continuations")

#: The number of errors that a task was resumed from at which a warning is logged; then at each doubling.
MANY_ERRORS = 100

_STEP_MESSAGES = {
    "step_started": "step %s started",
    "step_completed": "step %s completed",
    "step_skipped": "step %s skipped",
    "step_interrupted": "step %s interrupted",
    "step_failed": "step %s failed",
}

# Actions that this process has reported, each with the name of the task.
_reported: set[tuple[str, str]] = set()


class Reporter:
    """Report what happens to one execution.  Each record has ``action``, ``task_id``, ``task_name`` and ``data``.

    Args:
        task: the task.
        task_id: the task's id.
        sends_as: the name of the worker, or None if it does not send task events.
    """

    def __init__(self, task: Task[..., object], task_id: str, sends_as: str | None = None) -> None:
        self._task = task
        self._task_id = task_id
        self._sends_as = sends_as
        self._began = self._step_began = time.monotonic()
        self._left: float | None = None

    @cached_property
    def _shows_cursors(self) -> bool:
        return bool(conf.setting(self._task, "show_cursors"))

    def shown(self, cursor: Any) -> Any:
        """Return a cursor, or None if the task's cursors must not be shown."""
        return cursor if self._shows_cursors else None

    def hide_cursors(self, error: Exception) -> None:
        """Remove cursors from an error of this package, if they must not be shown."""
        if isinstance(error, (CrashLoopError, ErrorBudgetError)) and not self._shows_cursors:
            error.hide_cursors()

    # -- once for each task and process

    def large_arguments(self, size: int) -> None:
        """Warn of a message body of ``size`` bytes."""
        if self._is_first("large_arguments"):
            self.log(
                logging.WARNING,
                "large_arguments",
                "the message body has %d bytes and stays in the store until the task ends; pass a reference to the "
                "data instead",
                size,
                bytes=size,
            )

    def slow_checkpoint(self, run: Run, gap: float) -> None:
        """Warn that the run has made no checkpoint for ``gap`` seconds."""
        if not self._is_first("slow_checkpoint"):
            return
        step = run.current.name if run.current else next(reversed(run.snapshot.completed), None)
        where = "before its first step" if step is None else f"in or after step {step!r}"
        self.log(
            logging.WARNING,
            "slow_checkpoint",
            "made no checkpoint for %.1f s, %s; a worker that is stopped may be killed before the next one",
            gap,
            where,
            step=step,
            seconds=gap,
        )

    def source_unchecked(self, step: Step) -> None:
        """Report that the items of a loop have no identity."""
        if self._is_first("source_unchecked"):
            self.log(
                logging.INFO,
                "source_unchecked",
                "the items of step %s have no identity, so a changed source is only detected if it becomes shorter; "
                "pass iterate identity=, or a source that is read by key",
                step.name,
                step=step.name,
            )

    def many_steps(self, step: Step, number: int, size: int, limit: int) -> None:
        """Warn of a task that has a step for each item."""
        if self._is_first("many_steps"):
            self.log(
                logging.WARNING,
                "many_steps",
                "step %s is number %d of this task: all of them stay in its snapshot, in which about %d would fit; if "
                "they are the items of a loop, write `for item in self.iterate(name, items):`, which saves one cursor",
                step.name,
                number,
                number * limit // max(size, 1),
                step=step.name,
                steps=number,
                bytes=size,
            )

    def _is_first(self, action: str) -> bool:
        known = (action, self._task.name)
        if known in _reported:
            return False
        _reported.add(known)
        return True

    # -- each time

    def item_failed(self, step: Step, error: Exception) -> None:
        """Report an item that failed within the error budget."""
        self.log(
            logging.WARNING,
            "item_failed",
            "step %s: %s failed: %s: %s",
            step.name,
            "an item" if (cursor := self.shown(step.cursor)) is None else f"the item at {cursor!r}",
            type(error).__name__,
            error,
            exc_info=error,
            step=step.name,
        )

    def slow_queue(self, waited: float, slice_seconds: float) -> None:
        """Warn that a time slice was followed by a longer wait in the queue."""
        self.log(
            logging.WARNING,
            "slow_queue",
            "waited %.0f s in the queue after a slice of %.0f s; continuation_resume_options can name a queue "
            "that is consumed first",
            waited,
            slice_seconds,
        )

    def short_results(self, reason: str, expires: float) -> None:
        """Warn that a chord's member waits for longer than the chord's results are kept."""
        self.log(
            logging.WARNING,
            "short_results",
            "is in a chord's header and %s for longer than result_expires = %s s: the chord may forget its other "
            "members; set result_expires to more than the wait",
            reason,
            expires,
        )

    def not_saved(self, what: str, error: Exception) -> None:
        """Warn that the store could not be reached."""
        self.log(logging.WARNING, "save_failed", "could not save %s: %s", what, error)

    def log(
        self, level: int, action: str, message: str, *args: Any, exc_info: Exception | None = None, **data: Any
    ) -> None:
        """Write one record."""
        logger.log(
            level,
            "Task %s[%s] " + message,
            self._task.name,
            self._task_id,
            *args,
            exc_info=exc_info,
            extra={"action": action, "task_id": self._task_id, "task_name": self._task.name, "data": data},
        )

    def handing_over(self) -> None:
        """Note that the execution hands over: its duration ends here."""
        self._left = time.monotonic()

    def step(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Report a step.

        Args:
            event: the name of the signal.
            run: the step's run.
            step: the step.
            data: further arguments of the signal: ``error`` or ``reason``.
        """
        level = logging.INFO if event not in ("step_skipped", "step_interrupted") else logging.DEBUG
        message, at = _STEP_MESSAGES[event], ""
        if event == "step_started":
            self._step_began = time.monotonic()
            if step.resumed:
                message, at = "step %s resumed", "" if isinstance(step, Wait) else " from %r"
        elif event == "step_interrupted":
            at = " at %r"
        if not self._shows_cursors:
            at = ""
        args = (step.name, step.cursor) if at else (step.name,)
        self.log(level, event, message + at, *args, **(fields := self._step_fields(event, run, step, data)))
        self._send(event, fields)
        getattr(signals, event).send(sender=self._task, task_id=self._task_id, step=step, **data)

    def _step_fields(self, event: str, run: Run, step: Step, data: dict[str, Any]) -> dict[str, Any]:
        if event == "step_skipped":
            return {"step": step.name, "resumptions": run.snapshot.resumptions}
        done, total = step.progress()
        fields = {
            "step": step.name,
            "cursor": events.plain(self.shown(step.cursor)),
            "resumed": step.resumed,
            "resumptions": run.snapshot.resumptions,
            "done": done,
            "total": total,
        }
        if event != "step_started":
            fields.update(advanced=step.advanced, duration=self._since(self._step_began))
        if "reason" in data:
            fields["reason"] = data["reason"]
        if "error" in data:
            fields["error"] = _error(data["error"])
        return fields

    def resumed(self, run: Run, lost: bool) -> None:
        """Report that the execution continues an earlier one that handed over, or was ``lost``."""
        snapshot = run.snapshot
        reason = LOST if lost else snapshot.reason
        completed = list(snapshot.completed)
        step, cursor = _current(snapshot)
        fields = {"reason": reason, **_place(snapshot, step, self.shown(cursor))}
        self.log(
            logging.INFO,
            "resumed",
            "resumed (%s), completed: %s",
            reason,
            _listed(completed) or "nothing",
            **fields,
        )
        self._send("resumed", fields)
        signals.task_resumed.send(sender=self._task, task_id=self._task_id, continuation=Continuation(run))

    def interrupted(self, shown: Interrupted, error: Exception | None, run: Run | None) -> None:
        """Report that the execution has handed over.

        Args:
            shown: the interruption as the result backend shows it.
            error: the error that caused it, if any, whose traceback is logged only here.
            run: the run, or None if the task is requeued unchanged.
        """
        number = run.snapshot.resumed_errors if run is not None and error is not None else 0
        # The traceback of each would fill the log. The last error, with which a task fails, is logged by Celery.
        level, shown_error = (logging.WARNING, error) if number == 1 else (logging.INFO, None)
        # An error was reported as the step's failure
        if run is not None and run.current is not None and error is None:
            self.step("step_interrupted", run, run.current, reason=shown.reason)
        fields = {
            "reason": shown.reason,
            **_place(run.snapshot if run else Snapshot(), shown.step, shown.cursor),
            "duration": self._since(self._began),
            "error": _error(error),
        }
        self.log(level, "interrupted", "%s", shown, exc_info=shown_error, **fields)
        if number >= MANY_ERRORS and (number // MANY_ERRORS).bit_count() == 1 and number % MANY_ERRORS == 0:
            self._many_errors(number, error)
        self._send("interrupted", fields)
        signals.task_interrupted.send(sender=self._task, task_id=self._task_id, interrupt=shown, error=error)

    def _many_errors(self, number: int, error: Exception | None) -> None:
        """Warn of a task that is resumed after errors, perhaps without an end: its state never shows them."""
        self.log(
            logging.WARNING,
            "many_errors",
            "was resumed from %d errors; each came after progress, so none has failed it",
            number,
            exc_info=error,
            errors=number,
        )

    def _since(self, began: float) -> float:
        return round((self._left or time.monotonic()) - began, 3)

    def _send(self, action: str, fields: dict[str, Any]) -> None:
        if self._sends_as is not None:
            events.send(self._task.app, self._sends_as, action, uuid=self._task_id, name=self._task.name, **fields)


# How many completed steps a log record names.
_NAMED = 20


def _listed(steps: list[str]) -> str:
    if len(steps) <= _NAMED:
        return ", ".join(steps)
    return f"{len(steps):,} steps, the last ones {', '.join(steps[-_NAMED:])}"


def _place(snapshot: Snapshot, step: str | None, cursor: Any) -> dict[str, Any]:
    """Return the fields that describe a task's progress."""
    completed = list(snapshot.completed)
    done, total = snapshot.progress
    return {
        "description": events.describe(completed, step, cursor),
        "step": step,
        "cursor": events.plain(cursor),
        "completed": completed,
        "resumptions": snapshot.resumptions,
        "done": done,
        "total": total,
    }


def _current(snapshot: Snapshot) -> tuple[str | None, Any]:
    """Return name and cursor of the current step; a cursor that cannot be decoded stays encoded."""
    step, cursor = snapshot.current or (None, None)
    try:
        return step, codec.decode(cursor, "")
    except UnserializableValueError:
        return step, cursor  # the step that decodes it reports the error


def _error(error: BaseException | None) -> dict[str, str] | None:
    return None if error is None else {"type": type(error).__name__, "message": text_of(error)}
