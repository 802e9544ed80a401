"""One execution of a rehearsed run."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from celery import states
from celery.exceptions import Ignore, Retry

from celery_continuations import conf
from celery_continuations.core.evolution import old_names
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Waiting
from celery_continuations.core.step import Step
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.execution.execution import Execution
from celery_continuations.messages.body import Body
from celery_continuations.task import _RetryMessage
from celery_continuations.testing.fault_plan import Killed

if TYPE_CHECKING:
    from celery_continuations.testing.rehearsal import Rehearsal

__all__ = ["RehearsedExecution"]


class RehearsedExecution(Execution):
    """An execution whose store, broker and clock are those of a :class:`Rehearsal`."""

    is_direct = True  # children are applied in place

    def __init__(self, rehearsal: Rehearsal, task: Any, request: Any, body: Body) -> None:
        super().__init__(task, request, body)
        self._rehearsal = rehearsal
        self._killed = False
        self._left = False
        self._attributes = dict(vars(task))

    @property
    def resumed(self) -> bool:
        return self._rehearsal.is_resumed

    def begin(self) -> Run:
        if self.run is None:
            self.run = Run(self.request.id, self._rehearsal.begin(), self)
            self.run.attention = self._rehearsal.faults.attentive
            self._largest = conf.setting(self.task, "max_snapshot")
        return self.run

    def attend(self, run: Run) -> str | None:
        faults = self._rehearsal.faults
        reason = faults.checkpoint(self, run)
        run.attention = faults.attentive
        return reason

    def save(self, run: Run) -> None:
        self._disturb("save")
        if run.unit is not None:
            run.unit.begin()
            run.unit.connection()
            run.unit.commit()
        self.write(run)
        if run.unit is not None:
            run.committed()

    def join(self, run: Run) -> None:
        """No-op: no store is in another database."""

    def write(self, run: Run) -> None:
        """Save without a fault."""
        self._rehearsal.save(self._snapshot_text())

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        """No-op: there are no listeners."""

    def unchecked(self, run: Run, step: Step) -> None:
        """No-op: the outcomes of the runs show what changes."""

    def kill(self) -> NoReturn:
        """Die here: nothing more is saved.

        Raises:
            Killed: always.
        """
        self._killed = True
        assert self.run is not None
        self.run.attention = True
        raise Killed

    # -- waiting

    def now(self) -> float:
        return self._rehearsal.clock.now()

    def delivery(self, name: str, close: bool) -> Outcome | None:
        rehearsal = self._rehearsal
        for one in (name, *old_names(name, conf.setting(self.task, "renamed_steps"))):
            found = rehearsal.delivered(one)
            if found is not None:
                return found
        return rehearsal.close_wait(name) if close else None

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        assert self.run is not None
        self.run.snapshot.waiting = waiting
        self.run.interrupt(reason)

    def keep(self) -> None:
        assert self.run is not None
        self.save(self.run)

    # -- leaving

    def finish(self, value: Any) -> None:
        if isinstance(value, Retry) and isinstance(value.sig, _RetryMessage):
            raise value  # retry(throw=False)
        if self.run is not None:
            self._disturb("end")
        self._rehearsal.end(states.SUCCESS, value)

    def left_by(self, error: BaseException) -> BaseException:
        if self._killed:
            _release(error)
            self._rehearsal.lost()
            killed: BaseException = Ignore("killed")
            return killed
        if isinstance(error, Retry) and isinstance(error.sig, _RetryMessage):
            error.sig.apply_async()
            error.sig = None  # or Celery would apply it
        try:
            instead = super().left_by(error)
        except Exception as exc:
            self._rehearsal.end(states.FAILURE, error=exc)
            raise
        if self._left:
            _release(error)
            if self.task.app.conf.task_eager_propagates:
                instead = Ignore(str(instead))  # Celery would raise a Retry in the caller of the task
            return instead
        if not isinstance(error, Retry):
            self._rehearsal.end(states.IGNORED if isinstance(instead, Ignore) else states.FAILURE, error=instead)
        return instead

    def close(self) -> None:
        """Forget the attributes that the body set on the task: another process would not know them."""
        own = vars(self.task)
        own.clear()
        own.update(self._attributes)
        super().close()

    def _leave_to_message(self, text: str, options: dict[str, Any], message: str | None = None) -> None:
        self._left = True
        self._rehearsal.left(text, options)

    def _saved_message(self, **options: Any) -> str | None:
        return None

    def _hand_back_if_changed(self, error: InvalidStepError) -> None:
        """No-op: the code is the same in each execution, so other workers cannot resume it either."""

    def _disturb(self, what: str) -> None:
        assert self.run is not None
        self._rehearsal.faults.before(self, self.run, what)


def _release(error: BaseException) -> None:
    """Close what the ended execution has open, as its process would: its error refers to the sources it read."""
    traceback.clear_frames(error.__traceback__)
