"""One worker's run of one delivered message: from the claim to the hand-over."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from celery import signals as celery_signals
from celery.exceptions import Ignore

from celery_continuations import conf
from celery_continuations.core.run import Run
from celery_continuations.exceptions import Interrupt
from celery_continuations.execution.checkpoints import Checkpoints
from celery_continuations.execution.claiming import Claiming, Refused
from celery_continuations.execution.direct import ATTRIBUTE, execution_of
from celery_continuations.execution.leaving import Leaving
from celery_continuations.execution.message import CANCELLED, Message
from celery_continuations.execution.ownership import SUPERSEDED
from celery_continuations.execution.phases import Ended, Over, Phase, Unclaimed
from celery_continuations.execution.running import Running
from celery_continuations.execution.soft_limit import soft_limit
from celery_continuations.execution.triggers import watcher
from celery_continuations.execution.waiting import Waiter
from celery_continuations.messages.body import Body

if TYPE_CHECKING:
    from celery import Task

__all__ = ["Execution"]

T = TypeVar("T")


class Execution:
    """The execution of a task in a worker.

    Args:
        task: the task.
        request: the request of the message.
        body: the message's body, if it is not the one that the request carries.

    Attributes:
        phase: see :mod:`celery_continuations.execution.phases`.
        in_body: whether the task's own code is running.
        called_with: the arguments passed to the task's function.
        retry_options: the options of the next message, once ``self.retry()`` was called.
        checkpoints: the host of the run, once the task is claimed.
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
    def has_claimed(self) -> bool:
        """Whether the task was claimed, or its claim refused."""
        return not isinstance(self.phase, Unclaimed)

    @property
    def returned_value(self) -> str | None:
        """The encoded return value of an earlier execution that was lost after its body had returned."""
        return self.phase.ownership.record.value if isinstance(self.phase, Running) else None

    def begin(self) -> Run:
        """Claim the task, unless that is done already, and return its run.

        Raises:
            Interrupt: when the message is stale, or was requeued.
            ImproperlyConfigured: when the app uses message protocol 1.
        """
        if isinstance(self.phase, Unclaimed):
            conf.refuse_protocol(self.message.task.app, self.message.task.name)
            _hear_postrun()
            with soft_limit.held():
                self._claim()
        return self.phase.begun()

    def _claim(self) -> None:
        try:
            self.phase = Claiming(self, self.message, self._lose).next_phase()
        except Refused as exc:
            self.phase = Over(exc.why)
            raise Interrupt(None, None, exc.why) from None

    def _lose(self, why: str) -> None:
        """End the execution: it does not own the record any more.  Raises Interrupt within the task's own code."""
        run = self.run
        self.phase = Over(why, run)
        if run is not None and self.in_body and why == SUPERSEDED:
            run.interrupt(why)

    @property
    def waiter(self) -> Waiter:
        """What the task's waits need; available after :meth:`begin`."""
        assert self.checkpoints is not None
        return Waiter(self.checkpoints)

    # -- what the boundary asks

    def failed(self, error: Exception) -> None:
        """Handle an error of the task's body.  Raises the error to replace it with, if that is another one."""
        self.phase.failed(error)

    def returned(self) -> None:
        """Handle the return of the task's body.  Raises again what the body has swallowed."""
        self.phase.returned()

    def finish(self, value: Any) -> None:
        """Save the return value before Celery passes it on.  Raises Ignore if another execution owns the record."""
        self.phase.finish(value)

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in place of ``error``, which leaves the task.

        That is a Retry for an interruption: Celery stores it, and then :meth:`publish` is called.

        Raises:
            Ignore: when another execution has superseded this one, or this one never began.
            ResumeLimitError: when the task was resumed too often.
        """
        return self.phase.left_by(error)

    def publish(self) -> None:
        """Publish the message: Celery has stored the state RETRY."""
        if isinstance(self.phase, Leaving):
            self.phase.publish()

    def settle(self, state: str | None, result: Any) -> None:
        """Update the record: Celery has stored ``state``, or has tried to."""
        self.phase.settle(state, result)

    def run_body(self, run: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Run the task's own code: only here a soft time limit may come up."""
        return soft_limit.around(run, args, kwargs)

    def close(self) -> None:
        """Close the execution; only a message may still have to be published."""
        if self.checkpoints is not None:
            if not isinstance(self.phase, Leaving):
                watcher.remove(self.checkpoints.triggers)
        elif isinstance(self.phase, (Unclaimed, Over)):
            self.detach()

    def detach(self) -> None:
        """Drop the request, which would otherwise live, with its arguments, until a garbage collection."""
        vars(self.message.request).pop(ATTRIBUTE, None)
        self.message.release()

    # -- replace()

    def refuse_if_changed(self) -> None:
        """Raise the misfit, or the changed source of a loop, that the task has caught."""
        if self.run is not None and self.run.refusal is not None:
            raise self.run.refusal

    def forget(self) -> None:
        """Remove the record, so that the task that ``self.replace()`` puts under this id does not inherit it.

        Raises:
            Ignore: when another execution has superseded this one, or the task was cancelled.
        """
        if not isinstance(self.phase, Running):
            return
        ownership = self.phase.ownership
        with ownership.writing() as owned:
            is_removed = owned.remove()
        self.phase = Ended()
        if not is_removed:
            ownership.cancel()
            raise Ignore(CANCELLED)


@cache
def _hear_postrun() -> None:
    """Update records when Celery stores states, from this process's first claim on."""
    celery_signals.task_postrun.connect(_on_postrun, dispatch_uid="celery_continuations")


def _on_postrun(sender: Any = None, state: str | None = None, retval: Any = None, **kwargs: Any) -> None:
    request = sender.request_stack.top if sender is not None else None
    execution = execution_of(request)
    try:
        if isinstance(execution, Execution):
            execution.settle(state, retval)
            execution.detach()
    finally:
        if request is not None and not request.is_eager:
            soft_limit.drop()
