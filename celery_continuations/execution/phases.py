"""The phases of an execution, each with what exists only in it.

:class:`Unclaimed`; then ``Running``, or ``Unfit`` if the code cannot resume the snapshot; then ``Leaving`` if the task
is resumed later, or :class:`Ended`. :class:`Over` if the execution may not write anything to the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from celery_continuations.core.run import Run
from celery_continuations.ends import NotEnded
from celery_continuations.exceptions import Interrupt

if TYPE_CHECKING:
    from celery_continuations.execution.checkpoints import Checkpoints

__all__ = ["Ended", "Final", "Over", "Passive", "Phase", "Phased", "Unclaimed"]


class Final(BaseException):
    """Carry an error that must not be retried past ``autoretry_for``, from the task's body to its boundary.

    Attributes:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Phase(Protocol):
    """What the boundary calls on an execution, in every phase."""

    def begun(self) -> Run:
        """Return the run, for the task's code.  Raises the reason if there is none."""

    def failed(self, error: Exception) -> None:
        """Handle an error of the task's body.  Raises the error to replace it with."""

    def returned(self) -> None:
        """Handle the return of the task's body.  Raises again what the body has swallowed."""

    def finish(self, value: Any) -> None:
        """Save the return value, before Celery passes it on."""

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in place of ``error``, which leaves the task."""

    def settle(self, state: str | None, result: Any) -> None:
        """Update the record: Celery has stored ``state``."""


class Phased(Protocol):
    """An execution, as its phases know it.

    Attributes:
        phase: the current phase.
        in_body: whether the task's own code is running.
        called_with: the arguments passed to the task's function.
        retry_options: the options of the next message, once ``self.retry()`` was called.
        checkpoints: the host of the run, once the task is claimed.
    """

    phase: Phase
    checkpoints: Checkpoints | None
    in_body: bool
    called_with: tuple[Any, Any]
    retry_options: dict[str, Any] | None

    def close(self) -> None:
        """Close the execution; only a message may still have to be published."""


class Passive:
    """A phase without a run, in which Celery's behavior is unchanged.  Other phases override parts of it."""

    def begun(self) -> Run:
        """Raise: the task's own code does not run in this phase."""
        raise AssertionError(f"no task begins in the phase {type(self).__name__}")

    def failed(self, error: Exception) -> None:
        """Let the error pass."""

    def returned(self) -> None:
        """Let the value pass."""

    def finish(self, value: Any) -> None:
        """No-op: the execution owns no record."""

    def left_by(self, error: BaseException) -> BaseException:
        """Return the error itself."""
        return error.error if isinstance(error, Final) else error

    def settle(self, state: str | None, result: Any) -> None:
        """No-op: the execution owns no record."""


class Unclaimed(Passive):
    """The task has not used its run yet."""


class Over(Passive):
    """The execution may not write to the store: it was refused or superseded, or has ended.

    Args:
        why: the reason, in a word or two.
        run: the run, if there was one.
    """

    def __init__(self, why: str, run: Run | None = None) -> None:
        self._why = why
        self._run = run

    def begun(self) -> Run:
        """Return the run, whose steps raise its interruption."""
        if self._run is None:
            raise Interrupt(None, None, self._why)
        return self._run

    def returned(self) -> None:
        """Raise the interruption that the task has swallowed."""
        raise Interrupt(None, None, self._why)

    def left_by(self, error: BaseException) -> BaseException:
        """Raise Ignore: the execution that owns the task now stores its outcome."""
        if self._run is not None:
            self._run.abandon()
        raise NotEnded(self._why)


class Ended(Passive):
    """The record has been updated to the state that Celery stored."""
