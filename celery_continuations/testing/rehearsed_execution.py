"""One execution of a rehearsed run: a real one, with the rehearsal's store, broker and clock."""

from __future__ import annotations

import traceback
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from celery import states
from celery.exceptions import Ignore, Retry

from celery_continuations.boundary import RetryMessage
from celery_continuations.core.inbox import Inbox
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.run import Run
from celery_continuations.core.step import Step
from celery_continuations.exceptions import Interrupted
from celery_continuations.execution.checkpoints import Checkpoints
from celery_continuations.execution.execution import Execution
from celery_continuations.execution.leaving import Leaving
from celery_continuations.execution.message import Message
from celery_continuations.execution.ownership import Ownership
from celery_continuations.execution.reporting import Reporter
from celery_continuations.execution.running import Running
from celery_continuations.execution.triggers import Triggers
from celery_continuations.execution.waiting import Waiter
from celery_continuations.messages.body import Body
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Status
from celery_continuations.testing.fault_plan import CountedRun, FaultPlan, Killed

if TYPE_CHECKING:
    from celery_continuations.testing.process_state import ProcessState
    from celery_continuations.testing.rehearsal import Rehearsal

__all__ = ["RehearsedExecution"]


# The code is the same in each execution, so a requeue could not help a snapshot that does not fit it.
_SETTINGS = {"change_grace": 0, "on_change": "fail"}


class RehearsedExecution(Execution):
    """An execution that a test disturbs."""

    def __init__(self, rehearsal: Rehearsal, task: Any, request: Any, body: Body, state: ProcessState) -> None:
        super().__init__(task, request, body)
        self.message = _Message(rehearsal, task, request, body)
        self._rehearsal = rehearsal
        self._killed = False
        self._state = state

    def begin(self) -> Run:
        if self.checkpoints is None:
            ownership = Ownership(self.message, _Record(self, self._rehearsal), self._lose)
            snapshot, faults = self._rehearsal.begin(), self._rehearsal.faults
            self.checkpoints = _Checkpoints(
                self, faults, self.message, ownership, snapshot, lambda run: _Triggers(self, run, faults)
            )
            self.phase = Running(self, self.checkpoints)
        return self.checkpoints.run

    @property
    def waiter(self) -> Waiter:
        assert self.checkpoints is not None
        return _Waiter(self.checkpoints, self._rehearsal.applied)

    def write(self, run: Run) -> None:
        """Save without consulting the fault plan."""
        assert self.checkpoints is not None
        self._rehearsal.save(self.checkpoints.text())

    def kill(self) -> NoReturn:
        """Kill the execution here: nothing more is saved.

        Raises:
            Killed: always.
        """
        self._killed = True
        assert self.run is not None
        self.run.attention = True
        raise Killed

    def disturb(self, what: str) -> None:
        """Let the fault plan kill the execution before a save, or before it is known to have returned."""
        assert self.run is not None
        self._rehearsal.faults.before(self, self.run, what)

    # -- what the boundary asks

    def finish(self, value: Any) -> None:
        if isinstance(value, Retry) and isinstance(_signature_of(value), RetryMessage):
            raise value  # retry(throw=False)
        if self.run is not None:
            self.disturb("end")
        self._rehearsal.end(states.SUCCESS, value)

    def left_by(self, error: BaseException) -> BaseException:
        if self._killed:
            _release(error)
            self._rehearsal.lost()
            return error if isinstance(error, Killed) else Killed()
        signature = _signature_of(error)
        if isinstance(signature, RetryMessage):
            signature.apply_async()
            vars(error)["sig"] = None  # or Celery would apply it
        try:
            instead = super().left_by(error)
        except Exception as exc:
            self._rehearsal.end(states.FAILURE, error=exc)
            raise
        if isinstance(self.phase, Leaving):
            _release(error)
            self.phase.publish()
            if self.message.task.app.conf.task_eager_propagates:
                instead = Ignore(str(instead))  # Celery would raise a Retry in the caller of the task
            return instead
        if not isinstance(error, Retry):
            self._rehearsal.end(states.IGNORED if isinstance(instead, Ignore) else states.FAILURE, error=instead)
        return instead

    def settle(self, state: str | None, result: Any) -> None:
        """No-op: the rehearsal knows the state."""

    def close(self) -> None:
        """Restore the attributes of the task: another process would not have what the body has changed."""
        if self.message.request is not None:
            self._state.restore()
        super().close()


class _Message(Message):
    """Replace the broker: a published message is the rehearsal's next execution."""

    store: Any = SimpleNamespace(keeps=True)

    def __init__(self, rehearsal: Rehearsal, task: Any, request: Any, body: Body) -> None:
        super().__init__(task, request, body)
        self.reporter = _Silent(task, request.id)
        self.generation = int(rehearsal.is_resumed)
        self._rehearsal = rehearsal

    def now(self) -> float:
        """Return the time of the rehearsal's clock, which a test moves."""
        return self._rehearsal.clock.now()

    def setting(self, name: str) -> Any:
        return _SETTINGS[name] if name in _SETTINGS else super().setting(name)

    def saved(self, **options: Any) -> str | None:
        return None

    def restore_cancelled(self) -> None:
        pass

    def publish(self, *, generation: int, snapshot: str | None, options: dict[str, Any]) -> None:
        self._rehearsal.left(str(snapshot), options)


class _Record(OwnedRecord):
    """Replace the store: the rehearsal keeps one snapshot, and what was delivered."""

    def __init__(self, execution: RehearsedExecution, rehearsal: Rehearsal) -> None:
        self.fence = Fence(1, Status.RUNNING, "rehearsal/0/0")
        self.snapshot = None
        self.value = None
        self._execution = execution
        self._rehearsal = rehearsal
        self._before: str | None = None

    def within(self, connection: Any) -> OwnedRecord:
        return self

    def is_found(self) -> bool:
        return True

    def save(self, snapshot: str) -> None:
        self._execution.disturb("save")
        self._before = self._rehearsal.save(snapshot)

    def was_saved(self, fence: Fence, snapshot: str) -> bool:
        """Undo the save, whose transaction was rolled back; return False."""
        self._rehearsal.save(self._before)
        return False

    def queue(self, snapshot: str, due_in: float, message: str | None = None) -> None:
        """No-op: the message carries the snapshot."""

    def wait(self, snapshot: str, due_in: float | None, is_there: Any) -> None:
        """No-op: the message carries the snapshot."""

    def delivered(self) -> Inbox:
        return self._rehearsal.inbox()

    def close_wait(self, name: str) -> Outcome:
        return self._rehearsal.close_wait(name)


class _Waiter(Waiter):
    """Apply children in place."""

    is_direct = True

    def __init__(self, checkpoints: Checkpoints, applied: dict[str, Any]) -> None:
        super().__init__(checkpoints)
        self.applied = applied


class _Checkpoints(Checkpoints):
    """Count the checkpoints; neither check nor save what the last save before the disturbance replaces."""

    run_type = CountedRun

    def __init__(self, execution: RehearsedExecution, faults: FaultPlan, *args: Any) -> None:
        self._execution = execution
        self._faults = faults
        super().__init__(*args)

    def guard(self, step: str | None, own: Any) -> None:
        if not self._faults.is_counting:
            super().guard(step, own)

    def save(self, run: Run) -> None:
        if run.unit is None and self._faults.is_counting:
            self._execution.disturb("save")
        else:
            super().save(run)


class _Triggers(Triggers):
    """Let only the fault plan make a checkpoint do something."""

    def __init__(self, execution: RehearsedExecution, run: Run, faults: FaultPlan) -> None:
        if isinstance(run, CountedRun):
            run.faults = faults
        self.answer = None
        self.runtime = None
        self._execution = execution
        self.run = run
        self._faults = faults

    def reason_to_leave(self) -> str | None:
        return self._faults.checkpoint(self._execution, self.run)

    def is_due(self, now: float) -> bool:
        return False  # batches are the same in each run, and places have the same numbers

    def is_save_due(self) -> bool:
        return False

    def saving(self) -> None:
        """No-op."""

    def saved(self, rest: float = 0.0) -> None:
        """No-op."""

    def attended(self, is_leaving: bool) -> None:
        self.run.attention = False

    @property
    def gap(self) -> float:
        return -inf


class _Silent(Reporter):
    """Send no signals and events; changes that a loop cannot detect show in the outcomes of the runs."""

    def many_steps(self, step: Step, number: int, size: int, limit: int) -> None:
        """No-op."""

    def source_unchecked(self, step: Step) -> None:
        """No-op."""

    def step(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """No-op."""

    def interrupted(self, shown: Interrupted, error: Exception | None, run: Run | None) -> None:
        """No-op."""


def _release(error: BaseException) -> None:
    """Close what the ended execution has open, like its process would: its error refers to its sources."""
    traceback.clear_frames(error.__traceback__)


def _signature_of(error: BaseException) -> Any:
    return error.sig if isinstance(error, Retry) else None  # type: ignore[attr-defined]
