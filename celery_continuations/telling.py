"""Log records and signals of what happens to a task."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery_continuations import signals
from celery_continuations.core.run import Continuation, Run
from celery_continuations.core.snapshot import LOST
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupted

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Teller"]

logger = logging.getLogger("celery_continuations")

_STEP_MESSAGES = {
    "step_started": "step %s started",
    "step_completed": "step %s completed",
    "step_skipped": "step %s skipped",
    "step_failed": "step %s failed",
}


class Teller:
    """Tells of one execution.  Each record has ``action``, ``task_id``, ``task_name`` and ``data``."""

    def __init__(self, task: Task, task_id: str) -> None:
        self._task = task
        self._task_id = task_id

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

    def step(self, event: str, step: Step, **data: Any) -> None:
        """Tell of a step: ``event`` is the name of its signal."""
        level = logging.DEBUG if event == "step_skipped" else logging.INFO
        message, args = _STEP_MESSAGES[event], [step.name]
        if event == "step_started" and step.resumed:
            message, args = "step %s resumed from %r", [step.name, step.cursor]
        self.log(level, event, message, *args, step=step.name, cursor=step.cursor)
        getattr(signals, event).send(sender=self._task, task_id=self._task_id, step=step, **data)

    def resumed(self, run: Run, lost: bool) -> None:
        """An execution goes on where another has left, or was ``lost``."""
        snapshot = run.snapshot
        reason = LOST if lost else snapshot.reason
        completed = list(snapshot.completed)
        self.log(
            logging.INFO,
            "resumed",
            "resumed (%s), completed: %s",
            reason,
            ", ".join(completed) or "nothing",
            reason=reason,
            completed=completed,
        )
        signals.task_resumed.send(sender=self._task, task_id=self._task_id, continuation=Continuation(run))

    def interrupted(self, shown: Interrupted, error: Exception | None) -> None:
        """The execution leaves; for ``error``, if there is one, whose traceback nothing else would keep."""
        level = logging.INFO if error is None else logging.WARNING
        data = {"step": shown.step, "cursor": shown.cursor, "reason": shown.reason}
        self.log(level, "interrupted", "%s", shown, exc_info=error, **data)
        signals.task_interrupted.send(sender=self._task, task_id=self._task_id, interrupt=shown)
