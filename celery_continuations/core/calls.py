"""Steps with an outcome: calls and waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery_continuations.core.outcome import ELSEWHERE, Outcome
from celery_continuations.core.step import Begun, Step
from celery_continuations.exceptions import UnserializableValueError

if TYPE_CHECKING:
    from celery_continuations.core.run import Run

__all__ = ["Call", "Wait"]


class Call(Step):
    """A step that calls a function once, and remembers its value or error."""

    __slots__ = ()

    def perform(self, run: Run, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function, unless an earlier execution has done so; return its value or raise its error."""
        if not run.enter(self):
            return _replayed(self, run)
        try:
            value = func(*args, **kwargs)
            run.guard()
        except Exception as exc:
            # remembered only if the task catches it and continues
            self.left, self.outcome = True, Outcome.of_error(exc)
            run.step_failed(self, exc)
            raise
        try:
            self.outcome = Outcome.of_value(value, f"the value of step {self.name!r}")
        except UnserializableValueError as exc:
            self.outcome = Outcome("lost", exc.problem)
            run.complete(self)
            run.raised.note(self.name, exc)
            raise
        run.complete(self)
        return value

    def let_follow(self, name: str) -> None:
        """Allow it: the error of a call is remembered and raised again, unless it finally leaves the task."""


class Wait(Step):
    """A step whose outcome comes from outside.  Its cursor is the value fixed by its first call."""

    __slots__ = ()

    def perform(
        self, run: Run, find: Callable[[Step], Outcome | Exception], read: Callable[[Any], Any] | None = None
    ) -> Any:
        """Return, or raise, the outcome that ``find`` or an earlier execution has found.

        ``read`` returns the value of an outcome that is not in the snapshot, by the data of the outcome.
        """
        if run.enter(self):
            found = find(self)
            self.outcome = found if isinstance(found, Outcome) else Outcome.of_error(found)
            run.complete(self)
            if isinstance(found, Exception):
                run.raised.note(self.name, found)
                raise found
        return _replayed(self, run, read if self.outcome.kind == ELSEWHERE else None)

    def to_resume(self) -> Begun:
        """Return what the next execution must know; before 0.2 no cursor of a wait was a dict."""
        begun = super().to_resume()
        return begun._replace(uses=2) if isinstance(self.cursor, dict) else begun


def _replayed(step: Step, run: Run, read: Callable[[Any], Any] | None = None) -> Any:
    """Return, or raise, the remembered outcome of a completed step; ``read`` its value if that is elsewhere."""
    try:
        return step.outcome.replay(step.name) if read is None else read(step.outcome.data)
    except Exception as exc:
        run.raised.note(step.name, exc)
        raise
