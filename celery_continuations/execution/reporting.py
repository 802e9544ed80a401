"""Log records, signals and events of what happens to a task."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery_continuations import events, signals
from celery_continuations.core import codec
from celery_continuations.core.run import Continuation, Run
from celery_continuations.core.snapshot import LOST, Snapshot
from celery_continuations.core.step import Step, Wait
from celery_continuations.exceptions import Interrupted, UnserializableValueError

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Teller"]

logger = logging.getLogger("celery_continuations")

_STEP_MESSAGES = {
    "step_started": "step %s started",
    "step_completed": "step %s completed",
    "step_skipped": "step %s skipped",
    "step_interrupted": "step %s interrupted at %r",
    "step_failed": "step %s failed",
}


class Teller:
    """Tells of one execution.  Each record has ``action``, ``task_id``, ``task_name`` and ``data``.

    Args:
        task: the task.
        task_id: of the execution.
        sends_as: the name of the worker, where it sends events of tasks.
    """

    def __init__(self, task: Task[..., object], task_id: str, sends_as: str | None = None) -> None:
        self._task = task
        self._task_id = task_id
        self._sends_as = sends_as
        self._began = self._step_began = time.monotonic()
        self._left: float | None = None

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

    def leaves(self) -> None:
        """The execution is leaving: what comes now is not part of its duration."""
        self._left = time.monotonic()

    def step(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Tell of a step.

        Args:
            event: the name of its signal.
            run: that it is part of.
            step: the step.
            data: what its signal has besides: ``error`` or ``reason``.
        """
        level = logging.INFO if event not in ("step_skipped", "step_interrupted") else logging.DEBUG
        message, args = _STEP_MESSAGES[event], [step.name]
        if event == "step_started":
            self._step_began = time.monotonic()
            if step.resumed:
                message = "step %s resumed" if isinstance(step, Wait) else "step %s resumed from %r"
        if "%r" in message:
            args.append(step.cursor)
        self.log(level, event, message, *args, **(fields := self._step_fields(event, run, step, data)))
        self._send(event, fields)
        getattr(signals, event).send(sender=self._task, task_id=self._task_id, step=step, **data)

    def _step_fields(self, event: str, run: Run, step: Step, data: dict[str, Any]) -> dict[str, Any]:
        if event == "step_skipped":
            return {"step": step.name, "resumptions": run.snapshot.resumptions}
        done, total = step.progress()
        fields = {
            "step": step.name,
            "cursor": events.plain(step.cursor),
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
        """An execution goes on where another has left, or was ``lost``."""
        snapshot = run.snapshot
        reason = LOST if lost else snapshot.reason
        completed = list(snapshot.completed)
        step, cursor = _current(snapshot)
        fields = {"reason": reason, **_place(snapshot, step, cursor)}
        self.log(
            logging.INFO,
            "resumed",
            "resumed (%s), completed: %s",
            reason,
            ", ".join(completed) or "nothing",
            **fields,
        )
        self._send("resumed", fields)
        signals.task_resumed.send(sender=self._task, task_id=self._task_id, continuation=Continuation(run))

    def interrupted(self, shown: Interrupted, error: Exception | None, run: Run | None) -> None:
        """The execution has left.

        Args:
            shown: what the result backend shows of it.
            error: for which it left, if there is one, whose traceback nothing else would keep.
            run: of it, unless the task goes back as it came.
        """
        level = logging.INFO if error is None else logging.WARNING
        # An error has been told of as the step's failure
        if run is not None and run.current is not None and error is None:
            self.step("step_interrupted", run, run.current, reason=shown.reason)
        fields = {
            "reason": shown.reason,
            **_place(run.snapshot if run else Snapshot(), shown.step, shown.cursor),
            "duration": self._since(self._began),
            "error": _error(error),
        }
        self.log(level, "interrupted", "%s", shown, exc_info=error, **fields)
        self._send("interrupted", fields)
        signals.task_interrupted.send(sender=self._task, task_id=self._task_id, interrupt=shown, error=error)

    def _since(self, began: float) -> float:
        return round((self._left or time.monotonic()) - began, 3)

    def _send(self, action: str, fields: dict[str, Any]) -> None:
        if self._sends_as is not None:
            events.send(self._task.app, self._sends_as, action, uuid=self._task_id, name=self._task.name, **fields)


def _place(snapshot: Snapshot, step: str | None, cursor: Any) -> dict[str, Any]:
    """Return the fields that say how far a task has come."""
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
    """Return name and cursor of the current step; the cursor as it is saved, where it cannot be read."""
    step, cursor = snapshot.current or (None, None)
    try:
        return step, codec.decode(cursor, "")
    except UnserializableValueError:
        return step, cursor  # told of by the step that asks for it


def _error(error: BaseException | None) -> dict[str, str] | None:
    return None if error is None else {"type": type(error).__name__, "message": str(error)}
