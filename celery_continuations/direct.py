"""A run without a worker: a direct call, or eager mode."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NoReturn

from celery_continuations.core.inbox import TIMED_OUT
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Outcome, Snapshot, Waiting
from celery_continuations.core.step import Step
from celery_continuations.exceptions import InvalidStepError

__all__ = ["ATTRIBUTE", "DirectExecution", "delivered", "execution_of"]

#: The attribute of a request that holds its execution: one request is one execution.
ATTRIBUTE = "continuation_execution"


def execution_of(request: Any) -> Any:
    """Return the execution of a request, or None."""
    return None if request is None else getattr(request, ATTRIBUTE, None)


#: What a test has delivered to the waits of tasks that it calls directly, by their names.
delivered: ContextVar[Mapping[str, Any]] = ContextVar("delivered", default=MappingProxyType({}))


class DirectExecution:
    """The host of a run that goes straight through, validated."""

    is_direct = True

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

    # -- waiting

    def is_over(self, until: float | None) -> bool:
        """Nothing is waited for."""
        return True

    def delivery(self, name: str, close: bool) -> Outcome | None:
        """What the test has delivered, or nothing in time."""
        payloads = delivered.get()
        return Outcome.of_value(payloads[name], f"the payload of {name!r}") if name in payloads else TIMED_OUT

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """There is no worker to be given back, and nobody to take up the rest.

        Raises:
            InvalidStepError: always.
        """
        raise InvalidStepError(
            f"{reason}: not in a task that was called directly or applied eagerly, for no worker could take up the rest"
        )

    def keep(self) -> None:
        """There is no store."""

    def failed(self, error: Exception) -> None:
        """Errors are raised as they are."""

    def returned(self) -> None:
        """The task's body has returned."""
        self.run.finish()
        self.save(self.run)
