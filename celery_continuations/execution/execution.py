"""One delivery of a message being run by one worker: from the claim to the hand-over."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from celery import signals as celery_signals

from celery_continuations.core.run import Run
from celery_continuations.exceptions import Interrupt
from celery_continuations.execution.checkpoints import Checkpoints
from celery_continuations.execution.claiming import Claiming, Refused
from celery_continuations.execution.direct import ATTRIBUTE, execution_of
from celery_continuations.execution.leaving import Leaving
from celery_continuations.execution.message import Message
from celery_continuations.execution.ownership import SUPERSEDED
from celery_continuations.execution.phases import Ended, Over, Phase, Unclaimed
from celery_continuations.execution.running import Running
from celery_continuations.execution.triggers import watcher
from celery_continuations.execution.waiting import Waiter
from celery_continuations.messages.body import Body

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Execution"]


class Execution:
    """The execution of a task in a worker.

    Args:
        task: the task.
        request: of the message being run.
        body: the message's, where it is not the one that the request carries.

    Attributes:
        phase: where it is; see :mod:`celery_continuations.execution.phases`.
        in_body: whether the task's own code is running.
        called_with: the arguments that its function was given.
        retry_options: what ``self.retry()`` wants of the next message, once it was called.
        checkpoints: the host of the run, once there is one.
    """

    def __init__(self, task: Task[..., object], request: Any, body: Body | None = None) -> None:
        self.message = Message(task, request, body)
        self.phase: Phase = Unclaimed()
        self.in_body = False
        self.called_with: tuple[Any, Any] = ((), {})
        self.retry_options: dict[str, Any] | None = None
        self.checkpoints: Checkpoints | None = None
        setattr(request, ATTRIBUTE, self)

    @property
    def run(self) -> Run | None:
        """The run, once the task is claimed."""
        return None if self.checkpoints is None else self.checkpoints.run

    @property
    def resumed(self) -> bool:
        """Whether the message continues an earlier execution."""
        return self.message.generation > 0

    @property
    def returned_value(self) -> str | None:
        """The encoded return value of an execution that was lost after its body had returned."""
        return self.phase.ownership.record.value if isinstance(self.phase, Running) else None

    def begin(self) -> Run:
        """Claim the task, unless that has been done, and return its run.

        Raises:
            Interrupt: when the message is stale, or was requeued.
        """
        if isinstance(self.phase, Unclaimed):
            _hear_postrun()
            try:
                self.phase = Claiming(self, self.message, self._lose).next_phase()
            except Refused as exc:
                self.phase = Over(exc.why)
                raise Interrupt(None, None, exc.why) from None
        return self.phase.begun()

    def _lose(self, why: str) -> None:
        """The record is another execution's to write.  Raises Interrupt within the task's own code."""
        run = self.run
        self.phase = Over(why, run)
        if run is not None and self.in_body and why == SUPERSEDED:
            run.interrupt(why)

    @property
    def waiter(self) -> Waiter:
        """What the task's waits need; after :meth:`begin`."""
        assert self.checkpoints is not None
        return Waiter(self.checkpoints)

    # -- what the boundary asks

    def failed(self, error: Exception) -> None:
        """The task's body has raised.  Raises what is to leave it instead, where that is another error."""
        self.phase.failed(error)

    def returned(self) -> None:
        """The task's body has returned; what it has swallowed is raised once more."""
        self.phase.returned()

    def finish(self, value: Any) -> None:
        """Write down the return value before Celery passes it on.  Raises Ignore when another execution has it."""
        self.phase.finish(value)

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in the place of ``error``, which leaves the task.

        That is a Retry for an interruption: Celery stores it and then has :meth:`publish` called.

        Raises:
            Ignore: when another execution has taken over, or this one never began.
            ResumeLimitError: when the task was resumed too often.
        """
        return self.phase.left_by(error)

    def publish(self) -> None:
        """Celery has stored the state RETRY: now the message may go out."""
        if isinstance(self.phase, Leaving):
            self.phase.publish()

    def settle(self, state: str | None, result: Any) -> None:
        """Celery has stored ``state``, or has tried to: the record follows."""
        self.phase.settle(state, result)

    def close(self) -> None:
        """The execution is over, but for a message that is still to go out."""
        if self.checkpoints is not None:
            if not isinstance(self.phase, Leaving):
                watcher.remove(self.checkpoints.triggers)
        elif isinstance(self.phase, (Unclaimed, Over)):
            self.detach()

    def detach(self) -> None:
        """Let go of the request, which would else live, arguments and all, until a garbage collection."""
        vars(self.message.request).pop(ATTRIBUTE, None)
        self.message.release()

    # -- replace()

    def refuse_if_changed(self) -> None:
        """Raise the misfit, or the change of a loop's source, that the task has caught."""
        if self.run is not None and self.run.refusal is not None:
            raise self.run.refusal

    def forget(self) -> None:
        """``self.replace()`` puts another task under this id, which must not inherit the record.

        Raises:
            Ignore: when another execution has taken over.
        """
        if isinstance(self.phase, Running):
            with self.phase.ownership.writing() as owned:
                owned.remove()
            self.phase = Ended()


@cache
def _hear_postrun() -> None:
    """Have records follow the states that Celery stores, from this process's first claim on."""
    celery_signals.task_postrun.connect(_on_postrun, dispatch_uid="celery_continuations")


def _on_postrun(sender: Any = None, state: str | None = None, retval: Any = None, **kwargs: Any) -> None:
    execution = execution_of(sender.request_stack.top if sender is not None else None)
    if isinstance(execution, Execution):
        execution.settle(state, retval)
        execution.detach()
