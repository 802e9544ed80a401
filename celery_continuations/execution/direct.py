"""Runs without a worker: direct calls and eager mode."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

from celery.exceptions import SoftTimeLimitExceeded

from celery_continuations import celery_internals, conf, transactions
from celery_continuations.core.inbox import TIMED_OUT
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.run import MANY_STEPS, Run
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.core.step import Step
from celery_continuations.exceptions import ContinuationError, InvalidStepError, SnapshotTooLargeError
from celery_continuations.execution.reporting import Reporter

__all__ = [
    "ATTRIBUTE",
    "DirectExecution",
    "delivered",
    "execution_of",
    "is_of_item",
    "rehearsed",
    "rehearsed_arguments",
    "rehearsing",
    "snapshot_text",
    "warn_of_many_steps",
]

#: The attribute of a request that holds its execution; each request has one.
ATTRIBUTE = "continuation_execution"


def execution_of(request: Any) -> Any:
    """Return the execution of a request, or None."""
    return None if request is None else getattr(request, ATTRIBUTE, None)


def is_of_item(error: Exception) -> bool:
    """Return whether an error in a loop's body may affect the item alone, and not the whole task."""
    return not isinstance(
        error, (SoftTimeLimitExceeded, MemoryError, ContinuationError)
    ) and not celery_internals.is_predicate(error)


#: What a test delivers to the waits of tasks that it calls directly, by wait name.
delivered: ContextVar[Mapping[str, Any]] = ContextVar("delivered", default=MappingProxyType({}))


class _Rehearsal(Protocol):
    def take(self, task: Any, request: Any) -> Any:
        """Return the execution of a task and its request, or None if they are not part of the rehearsal."""

    def arguments(self, task: Any, task_id: str | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments that a task receives when applied with these."""


#: The rehearsal that this code runs in.
rehearsing: ContextVar[_Rehearsal | None] = ContextVar("rehearsing", default=None)


def rehearsed(task: Any, request: Any) -> Any:
    """Return the execution that a rehearsal has for this request, or None."""
    rehearsal = rehearsing.get()
    return rehearsal and rehearsal.take(task, request)


def rehearsed_arguments(task: Any, task_id: str | None, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments that a task receives: within a rehearsal as a message carries them, else unchanged."""
    rehearsal = rehearsing.get()
    return (args, kwargs) if rehearsal is None else rehearsal.arguments(task, task_id, args, kwargs)


def snapshot_text(run: Run, limit: int) -> str:
    """Return the text of the run's snapshot.

    Raises:
        SnapshotTooLargeError: when it is longer than ``limit``.
        UnserializableValueError: when a part of it cannot be saved.
    """
    snapshot = run.take_snapshot()
    text = snapshot.dumps()
    if len(text) > limit and snapshot.forget_errors():
        text = snapshot.dumps()
    if len(text) > limit:
        raise SnapshotTooLargeError(len(text), limit, snapshot.largest_part())
    return text


class _NoConnection:
    """Stands for Django's connections where it has none."""

    in_atomic_block = False


class _Connections:
    """Django's connections, each with the blocks that its TestCase has opened, asked as one connection."""

    def __init__(self, found: tuple[Any, ...]) -> None:
        self._found = found

    @property
    def in_atomic_block(self) -> bool:
        """Whether a connection is in a block of the task."""
        return any(connection.atomic_blocks != blocks for connection, blocks in self._found)


class _DirectRun(Run):
    """A run that notices an open transaction at each checkpoint, so that a misplaced one is found without a worker.

    A worker looks only when a checkpoint has something to do.  Here the attention is computed: a session or a
    connection that begins sets it, and a Django connection is asked whether it is in a block.
    """

    __slots__ = ("__weakref__", "_connection", "_is_set")

    @property
    def attention(self) -> bool:
        """Whether a transaction may be open, or an attention was set."""
        return self._is_set or self._connection.in_atomic_block

    @attention.setter
    def attention(self, value: bool) -> None:
        self._is_set = value

    def __post_init__(self) -> None:
        super().__post_init__()
        self._connection: Any = _NoConnection
        transactions.tell(self)

    def look(self) -> None:
        """Look which transactions are open, at a checkpoint that none of them forbids."""
        found = transactions.blocks_of_tests()
        # Each item asks, so what is asked is as near as it can be: mostly one connection outside of all blocks.
        if not found:
            self._connection = _NoConnection
        elif len(found) == 1 and not found[0][1]:
            self._connection = found[0][0]
        else:
            self._connection = _Connections(found)
        self._is_set = transactions.session_is_open()
        transactions.tell(self)  # Django or SQLAlchemy may have been imported meanwhile


# One part in this many of a snapshot stays free for what is not a completed step.
_FREE = 16


def warn_of_many_steps(run: Run, step: Step, number: int, limit: int, reporter: Reporter) -> None:
    """Warn of a task with many steps; refuse another one before it begins, if it might not fit into the snapshot.

    Raises:
        SnapshotTooLargeError: when the completed steps take up nearly all of ``limit``.
    """
    size = run.snapshot.size_of_completed
    if number == MANY_STEPS:
        reporter.many_steps(step, number, size, limit)
    if size > limit - limit // _FREE:
        raise SnapshotTooLargeError(
            size,
            limit,
            f"{number - 1:,} completed steps",
            f"Step {step.name!r} was not begun. Loop over the items with `for item in self.iterate(name, items):`, "
            "which saves one cursor; to let this task continue, raise continuation_max_snapshot and retry it",
        )


class DirectExecution:
    """The host of a run without interruptions; it validates steps and values."""

    is_direct = True

    def __init__(self, task: Any, request: Any) -> None:
        self.task = task
        self.in_body = False
        self.called_with: tuple[Any, Any] = ((), {})
        self.applied: dict[str, Any] = {}
        snapshot = Snapshot(executions=1, task_version=conf.setting(task, "version"))
        self.run = _DirectRun(request.id or str(uuid.uuid4()), snapshot, self, interruptible=False)
        setattr(request, ATTRIBUTE, self)

    @property
    def waiter(self) -> DirectExecution:
        """What the task's waits need."""
        return self

    def begin(self) -> Run:
        """No-op: there is nothing to claim."""
        return self.run

    def run_body(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the task's own code."""
        return run(*args, **kwargs)

    guard = staticmethod(transactions.refuse_open)  # so that a misplaced checkpoint is found here, too

    def attend(self, run: Run) -> None:
        """Note which transactions are open, so that each checkpoint notices another one."""
        self.run.look()

    def is_due(self, run: Run) -> bool:
        """Return False: direct calls are not interrupted, and save nothing."""
        return False

    def join(self, run: Run) -> None:
        """No-op: direct calls have no store."""

    def save(self, run: Run) -> None:
        """Raise for what could not be saved, without saving it."""
        snapshot_text(run, conf.setting(self.task, "max_snapshot"))
        if run.unit is not None:
            run.unit.begin()
            run.unit.connection()
            run.unit.commit()
            run.committed()

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """No-op: there are no listeners."""

    # -- waiting

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return time.time()

    def is_over(self, until: float | None) -> bool:
        """Return True: direct calls do not wait."""
        return True

    def delivery(self, name: str, close: bool) -> Outcome | None:
        """Return what the test has delivered, or a timeout."""
        payloads = delivered.get()
        return Outcome.of_value(payloads[name], f"the payload of {name!r}") if name in payloads else TIMED_OUT

    def fits(self, size: int) -> bool:
        """Return whether a worker's snapshot would have room for an outcome of that many characters."""
        limit: int = conf.setting(self.task, "max_snapshot")
        return len(snapshot_text(self.run, limit)) + size <= limit // 2

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """Refuse: a direct call has no worker to free, and no other worker could continue it.

        Raises:
            InvalidStepError: always.
        """
        raise InvalidStepError(
            f"{reason}: not possible in a task called directly or applied eagerly, because no worker could continue it"
        )

    def keep(self) -> None:
        """No-op: direct calls have no store."""

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        """Refuse; see :meth:`leave`."""
        self.leave(Waiting("time"), f"throttled for {seconds:g} s")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        """Whether the error may affect the item alone."""
        return is_of_item(error)

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        """Warn as a worker does, and refuse what it would."""
        reporter = Reporter(self.task, run.id)
        warn_of_many_steps(run, step, number, conf.setting(self.task, "max_snapshot"), reporter)

    def unchecked(self, run: Run, step: Step) -> None:
        """No-op: a direct call has a single execution, so no items could differ."""

    def failed(self, error: Exception) -> None:
        """No-op: the error is raised unchanged."""

    def returned(self) -> None:
        """Finish the run: the task's body has returned."""
        self.run.finish()
        self.save(self.run)
