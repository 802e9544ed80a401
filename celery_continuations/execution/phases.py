"""The phases of an execution, each with what exists only in it.

:class:`Unclaimed`; then ``Running``, or ``Unfit`` where the code cannot resume the snapshot; then ``Leaving`` where the
task is resumed later, or :class:`Ended`. :class:`Over` where nothing in the store is the execution's to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from celery.exceptions import Ignore

from celery_continuations.core.run import Run
from celery_continuations.exceptions import Interrupt

if TYPE_CHECKING:
    from celery_continuations.execution.checkpoints import Checkpoints

__all__ = ["Ended", "Final", "Over", "Passive", "Phase", "Phased", "Unclaimed"]


class Final(BaseException):
    """Carries an error that no retry can help past ``autoretry_for``, from the task's body to its boundary.

    Attributes:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Phase(Protocol):
    """What the boundary asks of an execution, in whatever phase."""

    def begun(self) -> Run:
        """Return the run, for the task's code.  Raises what keeps the task from having one."""

    def failed(self, error: Exception) -> None:
        """The task's body has raised.  Raises what is to leave it instead."""

    def returned(self) -> None:
        """The task's body has returned.  Raises once more what it has swallowed."""

    def finish(self, value: Any) -> None:
        """Write down the return value, before Celery passes it on."""

    def left_by(self, error: BaseException) -> BaseException:
        """Return what to raise in the place of ``error``, which leaves the task."""

    def settle(self, state: str | None, result: Any) -> None:
        """Celery has stored ``state``: the record follows."""


class Phased(Protocol):
    """An execution, as its phases know it.

    Attributes:
        phase: where it is.
        in_body: whether the task's own code is running.
        called_with: the arguments that its function was given.
        retry_options: what ``self.retry()`` wants of the next message, once it was called.
        checkpoints: the host of its run, once there is one.
    """

    phase: Phase
    checkpoints: Checkpoints | None
    in_body: bool
    called_with: tuple[Any, Any]
    retry_options: dict[str, Any] | None

    def close(self) -> None:
        """The execution is over, but for a message that is still to go out."""


class Passive:
    """A phase in which everything is as Celery does it, and no run is to be had; others change some of it."""

    def begun(self) -> Run:
        """Never: the task's own code does not run."""
        raise AssertionError(f"no task begins in the phase {type(self).__name__}")

    def failed(self, error: Exception) -> None:
        """Let the error pass."""

    def returned(self) -> None:
        """Let the value pass."""

    def finish(self, value: Any) -> None:
        """Do nothing: there is no record."""

    def left_by(self, error: BaseException) -> BaseException:
        """Let the error pass."""
        return error.error if isinstance(error, Final) else error

    def settle(self, state: str | None, result: Any) -> None:
        """Do nothing: there is no record."""


class Unclaimed(Passive):
    """The task has used nothing of a run yet."""


class Over(Passive):
    """Nothing in the store is the execution's to write: it was refused, superseded, or has ended.

    Args:
        why: in a word or two.
        run: the run, where there was one.
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
        """Raise Ignore: what came of the task is stored by the execution that has it now."""
        if self._run is not None:
            self._run.abandon()
        raise Ignore(self._why)


class Ended(Passive):
    """The record has followed the state that Celery stored."""
