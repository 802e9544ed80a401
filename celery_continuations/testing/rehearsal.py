"""Run a task in this process, execution by execution: no broker, no worker, no sleeping.

Celery's own eager tracer runs it, with the errors and the settings of a worker.  The next execution receives only what
the text of the snapshot contains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from celery import states
from celery.exceptions import TaskRevokedError
from kombu.exceptions import EncodeError

from celery_continuations import conf
from celery_continuations.core import codec
from celery_continuations.core.evolution import adapt
from celery_continuations.core.inbox import TIMED_OUT, Inbox
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.snapshot import Saved, Snapshot, Waiting
from celery_continuations.core.typevars import P
from celery_continuations.exceptions import DeliveryError
from celery_continuations.execution import direct
from celery_continuations.execution.execution import Execution
from celery_continuations.task import AppTask
from celery_continuations.testing.clock import Clock
from celery_continuations.testing.fault_plan import FaultPlan, Killed
from celery_continuations.testing.process_state import ProcessState, Used
from celery_continuations.testing.rehearsed_execution import RehearsedExecution
from celery_continuations.testing.sent import Sent

__all__ = ["Rehearsal", "rehearse", "run_until_done"]

#: A run with more executions than this would never end.
EXECUTIONS = 1000


class Rehearsal:
    """One run of a task, as a test sees it: between two of its executions, or at its end.

    Attributes:
        task: the task.
        id: the task's id, once the run has begun.
        state: its Celery state: ``"PENDING"``, ``"RETRY"`` between two executions, ``"SUCCESS"``, ``"FAILURE"`` …
        clock: the time of the run, which passes only when it is skipped.
        begun: how many executions have begun.
    """

    def __init__(
        self,
        task: Any,
        *,
        faults: FaultPlan | None = None,
        task_id: str | None = None,
        start: float | None = None,
        used: Used | None = None,
        sent: Sent | None = None,
    ) -> None:
        if not isinstance(task, AppTask):
            raise TypeError(f"{task!r} is not a continuable task; give it base=ContinuableTask, or @continuable")
        self.task = task
        self.id = task_id
        self.state: str = states.PENDING
        self.clock = Clock(start)
        self.begun = 0
        self.faults = faults or FaultPlan()
        self._used = used
        self.value: Any = None
        self.error: BaseException | None = None
        self._text: str | None = None
        self._due = 0.0
        self._expires: float | None = None
        self._inbox = Inbox()
        self.sent = sent
        self._message = sent  # the latest one: a retry may redefine the arguments
        self._options: dict[str, Any] = {}
        self.applied: dict[str, Any] = {}  # results of children, by id

    # -- for a test to read

    @property
    def ended(self) -> bool:
        """Whether the task has returned or failed."""
        return self.state not in (states.PENDING, states.RETRY)

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot: everything that the next execution will know."""
        return Snapshot() if self._text is None else Snapshot.loads(self._text)

    @property
    def step(self) -> str | None:
        """Name of the current step, or None between two steps."""
        current = self.snapshot.current
        return current[0] if current else None

    @property
    def cursor(self) -> Any:
        """Where the current step resumes, or None."""
        current = self.snapshot.current
        return codec.decode(current[1], f"the cursor of step {current[0]!r}") if current else None

    @property
    def completed(self) -> tuple[str, ...]:
        """Names of the completed steps, in order."""
        return tuple(self.snapshot.completed)

    @property
    def saved(self) -> Saved:
        """What the task keeps across executions."""
        return self.snapshot.saved

    @property
    def reason(self) -> str | None:
        """Why the last execution was interrupted, or None."""
        return self.snapshot.reason

    @property
    def waiting(self) -> Waiting | None:
        """What the task waits for, with ``kind``, ``until`` and ``key``, or None."""
        return self.snapshot.waiting

    # -- for a test to call

    def deliver(self, name: str, payload: Any) -> None:
        """Deliver to the wait ``name``, even before the task waits.

        Raises:
            DeliveryError: when the task has ended, or the wait has another outcome.
            UnserializableValueError: when the payload cannot be saved.
        """
        outcome = Outcome.of_value(payload, f"the payload for {name!r}")
        if self.ended:
            raise DeliveryError(str(self.id), f"it has ended: {self.state}")
        if not self._inbox.setdefault(name, outcome).equals(outcome):
            raise DeliveryError(str(self.id), f"{name!r} has another outcome: {self._inbox[name].data!r}")

    def resume(self) -> None:
        """Run the next execution now, without moving the clock.

        Raises:
            ValueError: when the task has not begun, or has ended.
        """
        if self.state != states.RETRY:
            what = "has ended" if self.ended else "has not begun: apply it first"
            raise ValueError(f"{self!r} cannot be resumed, it {what}")
        assert self._message is not None
        if self._expires is not None and self.clock.now() > self._expires:
            self.end(states.REVOKED, error=TaskRevokedError("expired"))
            return
        self.apply(*self._message.arguments())

    def skip(self) -> None:
        """Skip to the time at which the task resumes.

        Raises:
            AssertionError: when it waits for a value that was not delivered.
        """
        waiting = self.waiting
        if waiting is None:
            self.clock.skip_to(self._due)
        elif waiting.kind == "delivery" and self.delivered(str(waiting.key)) is not None:
            return
        elif waiting.until is None:
            raise AssertionError(
                f"{self!r} waits forever: nothing was delivered to {waiting.key!r}; "
                f"call run.deliver({waiting.key!r}, payload), or use delivered({waiting.key}=payload)"
            )
        else:
            self.clock.skip_to(waiting.until)

    # -- for the helpers of this package

    def apply(self, args: Any, kwargs: Any) -> None:
        """Run one execution."""
        token = direct.rehearsing.set(self)
        try:
            self.task.apply(args, kwargs, task_id=self.id, throw=False, **self._options)
        except Killed:
            pass  # as the fault plan wanted; the process would end, so Celery must not handle it
        finally:
            direct.rehearsing.reset(token)

    def arguments(self, task: Any, task_id: str | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments of the run's first execution, as a message would carry them."""
        if self.begun or not self._is_of(task, task_id):
            return args, kwargs
        try:
            message = self._begin_with(self.sent or Sent.of(task, args, kwargs))
        except EncodeError:
            return args, kwargs  # raised when the execution begins, as the task's failure
        return message.arguments()

    def take(self, task: Any, request: Any) -> Execution | None:
        """Return the execution of this request, or None if it does not belong to this run."""
        if not self._is_of(task, request.id):
            return None
        if self.begun == 0:
            self.id = request.id
            if self._message is None:
                try:
                    self._begin_with(Sent.of(task, request.args, request.kwargs))
                except EncodeError as exc:
                    self.end(states.FAILURE, error=exc)
                    raise
            self._options = {"link": request.callbacks, "link_error": request.errbacks, "headers": request.headers}
        assert self._message is not None
        self.begun += 1
        state = ProcessState(self._used or Used(), objects=self._used is not None)
        state.keep_task(task)
        return RehearsedExecution(self, task, request, self._message.body, state)

    def _begin_with(self, sent: Sent) -> Sent:
        self.sent = self._message = sent
        return sent

    def _is_of(self, task: Any, task_id: str | None) -> bool:
        return bool(task.name == self.task.name and (self.id is None or task_id == self.id))

    def begin(self) -> Snapshot:
        """Return the snapshot that an execution starts with."""
        version = conf.setting(self.task, "version")
        if self._text is None:
            return Snapshot(executions=1, task_version=version)
        snapshot = self.snapshot
        adapt(snapshot, version, conf.setting(self.task, "renamed_steps"))
        snapshot.executions += 1
        snapshot.waiting = None
        return snapshot

    @property
    def is_resumed(self) -> bool:
        """Whether there is progress to resume from."""
        return self._text is not None

    def delivered(self, name: str) -> Outcome | None:
        """Return what was delivered under that name."""
        payloads = direct.delivered.get()
        if name not in self._inbox and name in payloads:
            self._inbox[name] = Outcome.of_value(payloads[name], f"the payload of {name!r}")
        return self._inbox.get(name)

    def inbox(self) -> Inbox:
        """Return everything that was delivered."""
        for name in direct.delivered.get():
            self.delivered(name)
        return Inbox(self._inbox)

    def close_wait(self, name: str) -> Outcome:
        """Close a wait that has timed out, and return its outcome."""
        return self.delivered(name) or self._inbox.setdefault(name, TIMED_OUT)

    def save(self, text: str | None) -> str | None:
        """Save a snapshot, as a store would; return the text that it replaces."""
        replaced, self._text = self._text, text
        return replaced

    def left(self, text: str, options: dict[str, Any]) -> None:
        """Note that an execution has handed over, with these options for the next message."""
        self._text, self.state = text, states.RETRY
        eta = options.get("eta")
        self._due = eta.timestamp() if eta else self.clock.now() + float(options.get("countdown") or 0)
        self._expires = self._moment(options.get("expires"))
        assert self._message is not None
        changes = {name: value for name, value in options.items() if name in ("args", "kwargs")}
        if changes:
            self._message = Sent(self._message.body.changed(changes))
        if "retries" in options:
            self._options["retries"] = options["retries"]
        self.faults.left(self.snapshot)

    def _moment(self, expires: Any) -> float | None:
        """Return when a message expires: after seconds, or at a datetime."""
        if isinstance(expires, datetime):
            return expires.timestamp()
        return None if expires is None else self.clock.now() + float(expires)

    def lost(self) -> None:
        """Note that an execution was killed."""
        snapshot = self.snapshot
        snapshot.lose()
        self._text, self.state = snapshot.dumps(), states.RETRY
        self._due = self.clock.now()
        self.faults.left(snapshot)

    def end(self, state: str, value: Any = None, error: BaseException | None = None) -> None:
        """Note that the task has ended."""
        self.state, self.value, self.error = state, value, error

    def __repr__(self) -> str:
        where = "" if self.ended or self._text is None else f" in {self.step!r} at {self.cursor!r} ({self.reason})"
        return f"<Rehearsal of {self.task.name}: {self.state}{where}>"


def rehearse(task: AppTask[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Rehearsal:
    """Run the first execution of a task: to its end, or until it waits or is interrupted.

    Args:
        task: the task.
        args: the task's arguments.
        kwargs: the task's keyword arguments.

    >>> from celery import Celery
    >>> from celery_continuations import ContinuableTask
    >>> app = Celery(set_as_current=False)
    >>> @app.task(base=ContinuableTask, bind=True)
    ... def publish(self, text):
    ...     return f"{text}, says {self.wait_for('approval')}"
    >>> run = rehearse(publish, "yes")
    >>> run.waiting.key
    'approval'
    >>> run.deliver("approval", "ann")
    >>> run_until_done(run)
    'yes, says ann'
    """
    run = Rehearsal(task)
    run.apply(args, kwargs)
    return run


def run_until_done(run: Rehearsal, *, executions: int = EXECUTIONS) -> Any:
    """Resume a run until its task has ended; its sleeps and timeouts pass immediately.

    Args:
        run: from :func:`rehearse`, :func:`interrupt_during_step` or :func:`interrupt_after_step`.
        executions: the maximum number of executions.

    Returns:
        The return value of the task.

    Raises:
        Exception: the error of the task.
        AssertionError: when it waits for a value that is never delivered, or does not end.
    """
    while not run.ended:
        resume_when_due(run, executions)
    if run.error is not None and run.state != states.IGNORED:
        raise run.error
    return run.value


def resume_when_due(run: Rehearsal, executions: int = EXECUTIONS) -> None:
    """Skip to when the next execution is due, and run it."""
    if run.begun >= executions:
        raise AssertionError(f"{run!r} has not ended after {run.begun} executions")
    run.skip()
    run.resume()


@contextmanager
def within(run: Rehearsal) -> Iterator[None]:
    """Make calls of the run's task, within the block, part of the run."""
    token = direct.rehearsing.set(run)
    try:
        yield
    finally:
        direct.rehearsing.reset(token)
