"""Interrupt a task at one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import states

from celery_continuations.core.order import check_name
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution.triggers import STOPPING
from celery_continuations.task import AppTask
from celery_continuations.testing.fault_plan import FaultPlan
from celery_continuations.testing.rehearsal import Rehearsal, resume_when_due, within

__all__ = ["interrupt_after_step", "interrupt_during_step"]

#: Any cursor.
ANY: Any = object()


@contextmanager
def interrupt_during_step(task: AppTask[..., Any] | Rehearsal, name: str, cursor: Any = ANY) -> Iterator[Rehearsal]:
    """Interrupt a task at a checkpoint inside a step, like a worker that is stopped there.

    Args:
        task: the task whose next call by ``apply()``, or ``delay()`` with ``task_always_eager``, is interrupted; or an
            interrupted run, to interrupt it again.
        name: the name of the step.
        cursor: where the step then resumes; by default at its first checkpoint.

    Yields:
        The run; after the block, it is at that place.

    Raises:
        AssertionError: at the end of the block, when the task has no such checkpoint, or was not called.

    >>> from celery import Celery
    >>> from celery_continuations import ContinuableTask
    >>> from celery_continuations.testing import run_until_done
    >>> app = Celery(set_as_current=False)
    >>> @app.task(base=ContinuableTask, bind=True)
    ... def import_rows(self, rows):
    ...     for row in self.iterate("import", rows):
    ...         print(row)
    >>> with interrupt_during_step(import_rows, "import", cursor=2) as run:
    ...     result = import_rows.apply((["a", "b", "c"],))
    a
    b
    >>> run.cursor
    2
    >>> run_until_done(run)
    c
    """
    check_name(name)
    with _interrupting(task, _During(name, cursor)) as run:
        yield run


@contextmanager
def interrupt_after_step(task: AppTask[..., Any] | Rehearsal, name: str) -> Iterator[Rehearsal]:
    """Interrupt a task at the checkpoint after a step, which is before the next one.

    There is none after the last step.  Arguments and the rest are those of :func:`interrupt_during_step`.

    >>> from celery import Celery
    >>> from celery_continuations import ContinuableTask
    >>> from celery_continuations.testing import run_until_done
    >>> app = Celery(set_as_current=False)
    >>> @app.task(base=ContinuableTask, bind=True)
    ... def add(self):
    ...     first = self.step("first", lambda: 1)
    ...     return first + self.step("second", lambda: 2)
    >>> with interrupt_after_step(add, "first") as run:
    ...     result = add.apply()
    >>> run.completed
    ('first',)
    >>> run_until_done(run)
    3
    """
    check_name(name)
    with _interrupting(task, _After(name)) as run:
        yield run


class _Place(FaultPlan):
    """Interrupt at one place."""

    attends_from = 0

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.seen: list[str] = []

    def checkpoint(self, execution: Any, run: Run) -> str | None:
        step = run.current
        self.seen.append("between steps" if step is None else f"{step.name}:{step.cursor}")
        return STOPPING if self.is_here(run) else None

    def is_here(self, run: Run) -> bool:
        """Whether a run is at the place."""
        raise NotImplementedError

    def was_left(self, run: Rehearsal) -> bool:
        """Whether a run was interrupted at the place."""
        raise NotImplementedError


class _During(_Place):
    def __init__(self, name: str, cursor: Any) -> None:
        super().__init__(name)
        self._cursor = cursor

    def is_here(self, run: Run) -> bool:
        step = run.current
        return step is not None and self._is(step.name, step.cursor)

    def was_left(self, run: Rehearsal) -> bool:
        return self._is(run.step, run.cursor)

    def _is(self, step: str | None, cursor: Any) -> bool:
        return step == self._name and (self._cursor is ANY or cursor == self._cursor)

    def __str__(self) -> str:
        return f"in step {self._name!r}" + ("" if self._cursor is ANY else f" with the cursor {self._cursor!r}")


class _After(_Place):
    def is_here(self, run: Run) -> bool:
        return self._is(run.current, run.snapshot)

    def was_left(self, run: Rehearsal) -> bool:
        snapshot = run.snapshot
        return self._is(snapshot.current, snapshot)

    def _is(self, current: object, snapshot: Snapshot) -> bool:
        return current is None and next(reversed(snapshot.completed), None) == self._name

    def __str__(self) -> str:
        return f"after step {self._name!r}"


@contextmanager
def _interrupting(target: AppTask[..., Any] | Rehearsal, place: _During | _After) -> Iterator[Rehearsal]:
    run = target if isinstance(target, Rehearsal) else Rehearsal(target)
    begun, before, run.faults = run.begun, run.faults, place
    try:
        with within(run):
            yield run
        if run.state == states.PENDING:
            raise AssertionError(
                f"{run.task.name} was not run in the block; call {run.task.__name__}.apply(...) in it, or what calls "
                "its delay() while task_always_eager is set"
            )
        while not run.ended and (run.begun == begun or not place.was_left(run)):
            resume_when_due(run)
        if run.ended:
            raise AssertionError(
                f"{run.task.name} ended ({run.state}) without a checkpoint {place}; {_listed(place.seen)}"
            ) from run.error
    finally:
        run.faults = before


def _listed(seen: list[str]) -> str:
    if not seen:
        return "it made no checkpoints"
    shown = seen if len(seen) <= 10 else [*seen[:7], "…", *seen[-2:]]
    return f"its checkpoints were at: {', '.join(shown)}"
