"""The core and the sources, with Celery blocked: importing it raises."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import pytest

for module in ("celery", "kombu", "billiard"):
    if module in sys.modules:
        raise pytest.UsageError(
            "tests/core runs with Celery blocked; run it on its own, with -p no:celery -p no:docker_tools"
        )
    sys.modules[module] = None  # type: ignore[assignment]

from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.core.step import Step
from celery_continuations.exceptions import ContinuationError, Interrupt
from celery_continuations.sources import opener


class Executions:
    """Runs a task repeatedly, each time from the snapshot of the previous execution.

    The snapshot goes through its JSON text each time.  ``stop_at`` holds the numbers of the
    checkpoints, counted from 1 in each execution, at which to interrupt.
    """

    def __init__(self) -> None:
        self.text = Snapshot().dumps()
        self.events: list[tuple[Any, ...]] = []
        self.saves: list[str] = []
        self.checkpoints = 0
        self.stop_at: set[int] = set()
        self.reason = "stopping"

    def guard(self, step: str | None, own: Any) -> None:
        """No transaction is open."""

    def attend(self, run: Run) -> str | None:
        run.attention = True
        self.checkpoints += 1
        return self.reason if self.checkpoints in self.stop_at else None

    def is_due(self, run: Run) -> bool:
        return False

    def many_steps(self, run: Run, step: Step, number: int) -> None:
        """Accept any number."""

    def save(self, run: Run) -> None:
        self.saves.append(run.take_snapshot().dumps())

    def join(self, run: Run) -> None:
        """Accept any unit of work."""

    def notify(self, event: str, run: Run, step: Step, **data: Any) -> None:
        self.events.append((event, step.name))

    def back_off(self, run: Run, seconds: float) -> NoReturn:
        run.interrupt(f"throttled for {seconds:g} s")

    def is_of_item(self, run: Run, step: Step, error: Exception) -> bool:
        return not isinstance(error, ContinuationError)

    def execute(self, body: Any, *, stop_at: set[int] = frozenset(), interruptible: bool = True) -> Any:  # type: ignore[assignment]
        """Run ``body(task)`` once; return its value, or the Interrupt that ended it."""
        self.checkpoints, self.stop_at = 0, set(stop_at)
        snapshot = Snapshot.loads(self.text)
        snapshot.executions += 1
        run = Run("some-id", snapshot, self, interruptible)
        run.attention = True
        outcome: Any
        try:
            outcome = body(FakeTask(run))
            if run.interrupted is not None:
                raise run.interrupted
            run.finish()
        except Interrupt as interrupt:
            outcome = interrupt
            snapshot.resumptions += 1
            snapshot.reason = interrupt.reason
        finally:
            self.text = run.take_snapshot().dumps()
        return outcome

    @property
    def snapshot(self) -> Snapshot:
        return Snapshot.loads(self.text)


class FakeTask:
    """The methods of a task that use its run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.saved = run.snapshot.saved
        self.checkpoint = run.checkpoint

    def step(self, name: Any, func: Any = None, *args: Any, **kwargs: Any) -> Any:
        if func is None:
            return self.run.declare(Step(self.run, name, **kwargs))
        return self.run.call(name, func, args, kwargs)

    def iterate(self, name: Any, source: Any, *, batch: Any = None, total: Any = None, **kwargs: Any) -> Iteration:
        return self.run.declare(Iteration(self.run, name, opener(name, source, batch, total), **kwargs))


@pytest.fixture
def executions() -> Executions:
    return Executions()
