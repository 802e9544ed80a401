"""The waits of a task: each is a step whose outcome comes from outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from celery_continuations import conf
from celery_continuations.core.inbox import TIMED_OUT
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Waiting
from celery_continuations.core.step import Step
from celery_continuations.exceptions import InvalidStepError, WaitTimeout

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["RAISE", "Waiter", "Waits", "resume_in", "seconds_of", "sleep", "wait_for", "wait_until"]

V = TypeVar("V")

#: The default of a wait that raises on timeout.
RAISE: Any = object()

# Seconds: times that are longer may not be dates that can be shown, and are mistakes.
_LONGEST = 100 * 366 * 86_400


class Waiter(Protocol):
    """What a wait needs of the execution that it is part of.

    Attributes:
        is_direct: whether the task runs without a worker.
        applied: the results of the children that were applied in place, by id; only without a worker.
    """

    is_direct: bool
    applied: dict[str, Any]

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""

    def is_over(self, until: float | None) -> bool:
        """Whether that moment has passed."""

    def delivery(self, name: str, close: bool) -> Outcome | None:
        """Return what was delivered under that name; ``close`` ends the wait, so that there is always an outcome."""

    def fits(self, size: int) -> bool:
        """Whether an outcome of that many characters may be kept in the snapshot."""

    def leave(self, waiting: Waiting, reason: str) -> NoReturn:
        """Free the worker.  Raises InvalidStepError if there is none."""

    def keep(self) -> None:
        """Save now; free the worker and try again later if that is not possible."""


class Waits:
    """The waits among the methods of a task."""

    if TYPE_CHECKING:
        app: Celery

        def _waits(self, name: str) -> tuple[Run, Waiter]:
            """Return the run of the task, and what its waits need, for the wait ``name``."""

    def wait_for(self, name: str, timeout: float | timedelta | None = None, default: Any = RAISE) -> Any:
        """Wait until a value is delivered under ``name``; see :meth:`ContinuableAsyncResult.deliver`.

        Meanwhile the task occupies no worker and no message.

        Args:
            name: the name of the wait, which is a step.
            timeout: seconds or a timedelta, from the first call; None to wait forever.
            default: what to return on timeout.

        Returns:
            The payload.

        Raises:
            WaitTimeout: on timeout, without a default.
            StoreError: when the store cannot keep a wait (``"message"``).

        >>> from celery import Celery
        >>> from celery_continuations import ContinuableTask
        >>> from celery_continuations.testing import delivered
        >>> app = Celery(set_as_current=False)
        >>> @app.task(base=ContinuableTask, bind=True)
        ... def publish(self):
        ...     return self.wait_for("approval", timeout=3600, default="no one")
        >>> publish()
        'no one'
        >>> with delivered(approval="ann"):
        ...     publish()
        'ann'
        """
        run, waiter = self._waits(name)
        return wait_for(run, waiter, name, timeout, default)

    def sleep(self, name: str, until: float | timedelta | datetime) -> None:
        """Continue at a moment, which the first call fixes.

        Args:
            name: the name of the step.
            until: seconds or a timedelta from now, or a datetime; a naive one is in the app's timezone.

        Raises:
            InvalidStepError: when ``until`` is not such a time, or more than 100 years away.
            StoreError: see :meth:`wait_for`.
        """
        run, waiter = self._waits(name)
        sleep(run, waiter, name, until, self.app)

    def wait_until(
        self,
        name: str,
        predicate: Callable[[], V | None],
        every: float | timedelta,
        timeout: float | timedelta | None = None,
    ) -> V:
        """Call ``predicate()`` until it returns a true value, and free the worker in between.

        Args:
            name: the name of the step.
            predicate: called until it returns a true value.
            every: seconds or a timedelta between two calls; only a worker's sweep, every
                ``continuation_sweep_interval``, resumes the task, so shorter times have no effect.
            timeout: seconds or a timedelta, from the first call.

        Returns:
            The value of the predicate.

        Raises:
            WaitTimeout: when it was not true in time; in a direct call, when it is not true immediately.
            StoreError: see :meth:`wait_for`.
        """
        run, waiter = self._waits(name)
        value: V = wait_until(run, waiter, name, predicate, every, timeout)
        return value

    def resume_in(self, delay: float | timedelta | datetime) -> NoReturn:
        """Inside a step: free the worker, and resume after ``delay`` at the same cursor.  No retry is counted.

        Args:
            delay: seconds or a timedelta from now, or a datetime, which may have passed; a naive one is in the app's
                timezone.

        Raises:
            InvalidStepError: outside of a step, in a direct call, and when ``delay`` is not such a time.
            StoreError: see :meth:`wait_for`.
        """
        resume_in(*self._waits("resume_in"), delay, self.app)


def wait_for(run: Run, waiter: Waiter, name: str, timeout: float | timedelta | None, default: Any) -> Any:
    """See :meth:`AppTask.wait_for`."""
    seconds = None if timeout is None else seconds_of(timeout, "timeout")

    def look(step: Step) -> Outcome | Exception:
        until = _fixed(step, lambda: None if seconds is None else waiter.now() + seconds)
        outcome = waiter.delivery(name, close=waiter.is_over(until))
        if outcome is None:
            waiter.leave(Waiting("delivery", until, name), f"waiting for {name!r}")
        if outcome != TIMED_OUT:
            return outcome
        if default is RAISE:
            return WaitTimeout(f"nothing was delivered to {name!r} in time")
        return Outcome.of_value(default, f"the default of wait {name!r}")

    return run.wait(name, "wait_for", look)


def sleep(run: Run, waiter: Waiter, name: str, until: float | timedelta | datetime, app: Any) -> None:
    """See :meth:`AppTask.sleep`."""
    moment = _moment(waiter.now(), until, "until", app)

    def look(step: Step) -> Outcome:
        fixed = _fixed(step, lambda: moment)
        if not waiter.is_over(fixed):
            waiter.leave(Waiting("time", fixed), f"sleeping in {name!r}")
        return Outcome()

    run.wait(name, "sleep", look)


def wait_until(
    run: Run,
    waiter: Waiter,
    name: str,
    predicate: Callable[[], Any],
    every: float | timedelta,
    timeout: float | timedelta | None,
) -> Any:
    """See :meth:`AppTask.wait_until`."""
    if not callable(predicate):
        raise InvalidStepError(f"wait_until {name!r} was given {predicate!r}, which is not callable", found=name)
    pause = seconds_of(every, "every")
    seconds = None if timeout is None else seconds_of(timeout, "timeout")

    def look(step: Step) -> Outcome | Exception:
        until = _fixed(step, lambda: None if seconds is None else waiter.now() + seconds)
        answer = predicate()
        if answer:
            return Outcome.of_value(answer, f"what the predicate of {name!r} returned")
        if waiter.is_over(until):
            return WaitTimeout(f"{name!r} did not come true in time")
        again = waiter.now() + pause
        waiter.leave(Waiting("time", again if until is None else min(again, until)), f"waiting until {name!r}")

    return run.wait(name, "wait_until", look)


def resume_in(run: Run, waiter: Waiter, delay: float | timedelta | datetime, app: Any) -> NoReturn:
    """See :meth:`AppTask.resume_in`."""
    now = waiter.now()
    moment = _moment(now, delay, "delay", app)
    if run.current is None:
        raise InvalidStepError("resume_in was called outside of a step; use sleep there")
    waiter.leave(Waiting("time", moment), f"resuming in {max(0.0, round(moment - now, 3)):g} s")


def _fixed(step: Step, moment: Callable[[], float | None]) -> float | None:
    """Return the moment that the first execution has fixed."""
    if not step.resumed or step.cursor is None:
        step.cursor = moment()
    until: float | None = step.cursor
    return until


def _moment(now: float, value: Any, what: str, app: Any) -> float:
    """Return the moment, in seconds since the epoch, that a datetime or a time from now names."""
    if not isinstance(value, datetime):
        return now + seconds_of(value, what, " or a datetime")
    try:
        moment = (value if value.tzinfo else value.replace(tzinfo=app.timezone)).timestamp()
    except OverflowError:  # the first and the last day, in some timezones
        moment = math.inf
    if moment - now > _LONGEST:
        raise InvalidStepError(f"{what} = {value!r} is not allowed; it takes a datetime within the next 100 years")
    return moment


def seconds_of(value: Any, what: str, or_else: str = "") -> float:
    """Return the seconds that a number or a timedelta names.  Raises InvalidStepError."""
    seconds = conf.seconds(value)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _LONGEST:
        raise InvalidStepError(
            f"{what} = {value!r} is not allowed; it takes seconds, 0 or more and at most {_LONGEST:,} (100 years), "
            f"or a timedelta{or_else}"
        )
    return float(seconds)
