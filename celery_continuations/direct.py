"""A run without a worker: a direct call, or eager mode."""

from __future__ import annotations

import uuid
from typing import Any

from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step

__all__ = ["ATTRIBUTE", "DirectExecution", "execution_of"]

#: The attribute of a request that holds its execution: one request is one execution.
ATTRIBUTE = "continuation_execution"


def execution_of(request: Any) -> Any:
    """Return the execution of a request, or None."""
    return None if request is None else getattr(request, ATTRIBUTE, None)


class DirectExecution:
    """The host of a run that goes straight through, validated."""

    def __init__(self, request: Any) -> None:
        self.in_body = False
        self.run = Run(request.id or str(uuid.uuid4()), Snapshot(executions=1), self, interruptible=False)
        setattr(request, ATTRIBUTE, self)

    def begin(self) -> Run:
        """There is nothing to claim."""
        return self.run

    def attend(self, run: Run) -> str | None:
        """Nothing could take up the rest."""
        run.attention = False
        return None

    def save(self, run: Run) -> None:
        """There is no store; but what could not be saved is found here, as it would be there."""
        run.take_snapshot().dumps()

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """Nobody listens."""

    def failed(self, error: Exception) -> None:
        """Errors are raised as they are."""

    def returned(self) -> None:
        """The task's body has returned."""
        self.run.finish()
        self.save(self.run)
