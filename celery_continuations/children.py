"""A task waits for others, its children; they report when they have ended."""

from __future__ import annotations

import logging
import random
import uuid
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery import group, states
from celery.canvas import Signature
from kombu.exceptions import OperationalError

from celery_continuations import celery_internals, conf, control
from celery_continuations.core import codec
from celery_continuations.core.outcome import ELSEWHERE, Outcome
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Waiting
from celery_continuations.core.step import Step
from celery_continuations.ends import (
    BackendUnavailable,
    End,
    NotEnded,
    ends_of,
    error_of,
    note_end,
    store_end,
    without_result,
)
from celery_continuations.exceptions import ChildError, InvalidStepError, StoreError, WaitTimeout
from celery_continuations.messages.headers import AWAITED, PARENT
from celery_continuations.parts import parts_of, with_options
from celery_continuations.waits import Waiter, seconds_of

if TYPE_CHECKING:
    from celery import Task

__all__ = ["tell_parent", "wait_for_results"]

logger = logging.getLogger("celery_continuations")

# Seconds between two checks of children, whose ends are not reported if their worker was killed or lacks this package.
_CHECK_AGAIN = 60.0

# The same while the result backend is unavailable.
_ASK_AGAIN = 5.0

# How many children an error names.
_NAMED = 3


def wait_for_results(
    run: Run,
    waiter: Waiter,
    name: str,
    signatures: Any,
    parent: Task[..., object],
    timeout: float | timedelta | None = None,
) -> Any:
    """See :meth:`AppTask.wait_for_results`."""
    seconds = None if timeout is None else seconds_of(timeout, "timeout")
    children = _Children(name, signatures, parent, waiter)

    def look(step: Step) -> Outcome | Exception:
        if step.resumed and step.cursor is not None:
            begun = _Begun.of(step.cursor)
        else:
            children.refuse_without_results()
            begun = children.begin(None if seconds is None else waiter.now() + seconds)
            step.cursor = begun.cursor()
            waiter.keep()
        children.check(begun)
        begun = children.start(begun, step)
        return children.outcome(begun, step)

    return run.wait(name, "wait_for_results", look, lambda data: children.read(_Begun.of(codec.decode(data))))


@dataclass(frozen=True)
class _Begun:
    """What is saved of a wait for children.

    Attributes:
        token: the ids of the children are derived from it.
        count: how many children there are.
        started: how many of them were started.
        until: when the wait times out, in seconds since the epoch.
        ended: this many children from the first on have ended.
        has_waited: whether the task has waited for a child.
        is_unavailable: whether the result backend did not answer the last time.
        given: ids that the signatures had, by the number of the child.
        ids: the ids of all children, where release 0.1 has stored them.
    """

    token: str
    count: int
    started: int = 0
    until: float | None = None
    ended: int = 0
    has_waited: bool = False
    is_unavailable: bool = False
    given: dict[int, str] = field(default_factory=dict)
    ids: list[str] | None = None

    @classmethod
    def of(cls, cursor: Any) -> _Begun:
        if isinstance(cursor, dict):
            return cls(**cursor)
        ids, are_started = cursor  # of release 0.1
        return cls("", len(ids), len(ids) if are_started else 0, ids=ids)

    def cursor(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key in ("token", "count") or value}

    def id_of(self, number: int) -> str:
        if self.ids is not None:
            return self.ids[number]
        return self.given.get(number) or str(uuid.uuid5(uuid.UUID(self.token), str(number)))


_random = random.SystemRandom()


class _Children:
    """The tasks that another one waits for."""

    def __init__(self, name: str, signatures: Any, parent: Task[..., object], waiter: Waiter) -> None:
        self._name = name
        self._parent = parent
        self._app = parent.app
        self._waiter = waiter
        self._ends: dict[int, End] = {}
        self._is_one = isinstance(signatures, Signature) and not isinstance(signatures, group)
        if isinstance(signatures, group):
            signatures = signatures.tasks
        self._signatures = [signatures] if self._is_one else list(signatures)
        for one in self._signatures:
            if not isinstance(one, Signature) or isinstance(one, group):
                raise InvalidStepError(
                    f"wait_for_results {name!r} was given {one!r}; it takes a signature, a group, or a list of "
                    "signatures, e.g. task.s(...)",
                    found=name,
                )

    # -- starting them

    def refuse_without_results(self) -> None:
        if not self._waiter.is_direct and not celery_internals.keeps_results(self._app.backend):
            raise InvalidStepError(
                f"wait_for_results {self._name!r} needs a result backend that any process can read; set result_backend",
                found=self._name,
            )

    def begin(self, until: float | None) -> _Begun:
        given = {number: one.options.get("task_id") for number, one in enumerate(self._signatures)}
        return _Begun(
            uuid.uuid4().hex,
            len(self._signatures),
            until=until,
            given={number: task_id for number, task_id in given.items() if task_id},
        )

    def check(self, begun: _Begun) -> None:
        """Refuse signatures that differ from those in an earlier execution."""
        if begun.count != len(self._signatures):
            raise InvalidStepError(
                f"wait_for_results {self._name!r} was given {len(self._signatures)} tasks, an earlier execution "
                f"{begun.count}; they may depend on the arguments and on remembered values only",
                found=self._name,
            )

    def start(self, begun: _Begun, step: Step) -> _Begun:
        """Start those that were not started yet; the task may stop after each."""
        if begun.started == begun.count:
            return begun
        if self._waiter.is_direct:
            for number, one in enumerate(self._signatures):
                task_id = begun.id_of(number)
                self._waiter.applied[task_id] = _without_id(one).apply(task_id=task_id)
            return replace(begun, started=begun.count)
        if begun.started == 0:
            self._report_plain()
        with self._app.producer_or_acquire() as producer:
            for number in range(begun.started, begun.count):
                self._start_child(self._signatures[number], begun.id_of(number), producer)
                begun = replace(begun, started=number + 1)
                step.cursor = begun.cursor()
                if begun.started < begun.count:
                    step.checkpoint()
        return begun

    def _start_child(self, one: Signature[Any], task_id: str, producer: Any) -> None:
        headers: dict[str, Any] = {PARENT: [self._parent.request.id, self._parent.name]}
        # Its result is needed, even if its task ignores results.
        options: dict[str, Any] = {"ignore_result": False}
        if one.get("subtask_type"):
            told = with_options(one, {**options, "headers": {**headers, AWAITED: task_id}})
            _without_id(told).apply_async(task_id=task_id)
            return
        options["headers"] = {**(one.options.get("headers") or {}), **headers}
        # Celery would keep all children in the parent's result.
        one.apply_async(task_id=task_id, producer=producer, add_to_parent=False, **options)

    def _report_plain(self) -> None:
        tasks = {str(part.task) for one in self._signatures for part in parts_of(one)}
        known = {name: self._app.tasks[name] for name in sorted(tasks) if name in self._app.tasks}
        plain = [name for name, task in known.items() if not getattr(task, "claims_at_start", False)]
        if plain:
            names = ", ".join(plain[:_NAMED]) + (", …" if len(plain) > _NAMED else "")
            self._log(
                logging.INFO,
                "plain_children",
                f"waits for tasks that are not continuable: {names}. After a kill of their worker they start again "
                "when the broker delivers them again, on Redis after the visibility timeout; with acks_late off, never",
            )

    # -- their ends

    def outcome(self, begun: _Begun, step: Step) -> Outcome | Exception:
        """Return the outcome of the wait; free the worker while there is none."""
        waiter = self._waiter
        try:
            pending = self._pending(begun)
            begun = self._report_backend(begun, None)
            if not pending:
                return self._collected(begun)
        except BackendUnavailable as exc:
            step.cursor = self._report_backend(begun, exc).cursor()
            waiter.leave(Waiting("time", waiter.now() + _ASK_AGAIN), "the result backend is unavailable")
        if begun.until is not None and waiter.is_over(begun.until):
            return self._timeout(begun, pending)
        # First the last one: when it ends, most others have usually ended too. Then any one: whatever the order of
        # their ends, half of those that are left have ended before it, on average.
        number = _random.choice(pending) if begun.has_waited else pending[-1]
        step.cursor = replace(begun, ended=pending[0], has_waited=True).cursor()
        again = waiter.now() + _CHECK_AGAIN
        until = again if begun.until is None else min(again, begun.until)
        waiter.leave(Waiting("result", until, begun.id_of(number)), f"waiting for the results of {self._name!r}")

    def read(self, begun: _Begun) -> Any:
        """Return the values that are not in the snapshot."""
        try:
            found = self._values(begun)
        except BackendUnavailable:
            again = self._waiter.now() + _ASK_AGAIN
            self._waiter.leave(Waiting("time", again), "the result backend is unavailable")
        if isinstance(found, Exception):
            raise found
        return found

    def _collected(self, begun: _Begun) -> Outcome | Exception:
        values = self._values(begun)
        if isinstance(values, Exception):
            return values
        outcome = Outcome.of_value(values, f"the results of {self._name!r}")
        if self._waiter.fits(outcome.size):
            return outcome
        where = replace(begun, ended=0, until=None, has_waited=False)
        return Outcome(ELSEWHERE, codec.encode(where.cursor()))

    def _values(self, begun: _Begun) -> Any:
        """Return the values, or the error of the first child that has one."""
        self._learn(begun, [number for number in range(begun.count) if number not in self._ends])
        values = []
        for number in range(begun.count):
            end = self._ends.get(number)
            if end is None:
                task_id = begun.id_of(number)
                return ChildError(task_id, "has ended, and its result is gone: it is older than result_expires")
            if end.error is not None:
                return end.error
            values.append(end.value)
        return values[0] if self._is_one else values

    def _pending(self, begun: _Begun) -> list[int]:
        """Return the numbers of the children that have not ended."""
        numbers = list(range(begun.ended, begun.count))
        self._learn(begun, numbers)
        return [number for number in numbers if number not in self._ends]

    def _learn(self, begun: _Begun, numbers: list[int]) -> None:
        ids = {begun.id_of(number): number for number in numbers}
        if self._waiter.is_direct:
            found = {task_id: _end_of_applied(task_id, self._waiter.applied[task_id]) for task_id in ids}
        else:
            found = ends_of(self._app.backend, list(ids))
        self._ends.update((ids[task_id], end) for task_id, end in found.items())

    def _timeout(self, begun: _Begun, pending: list[int]) -> WaitTimeout:
        names = [f"{self._signatures[number].task}[{begun.id_of(number)}]" for number in pending[:_NAMED]]
        more = ", …" if len(pending) > _NAMED else ""
        return WaitTimeout(
            f"{len(pending):,} of {begun.count:,} tasks of {self._name!r} have not ended in time: "
            f"{', '.join(names)}{more}"
        )

    def _report_backend(self, begun: _Begun, problem: BackendUnavailable | None) -> _Begun:
        """Report that the backend is unavailable, or answers again: once for each change."""
        is_unavailable = problem is not None
        if begun.is_unavailable == is_unavailable:
            return begun
        if is_unavailable:
            self._log(logging.WARNING, "results_unavailable", f"cannot read the results that it waits for: {problem}")
        else:
            self._log(logging.INFO, "results_available", "can read the results that it waits for again")
        return replace(begun, is_unavailable=is_unavailable)

    def _log(self, level: int, action: str, text: str) -> None:
        parent, task_id = self._parent.name, self._parent.request.id
        extra = {"action": action, "task_id": task_id, "task_name": parent}
        logger.log(level, "Task %s[%s] %s", parent, task_id, text, extra=extra)


def _without_id(one: Signature[Any]) -> Signature[Any]:
    signature = one.clone()
    signature.options.pop("task_id", None)
    return signature


def _end_of_applied(task_id: str, result: Any) -> End:
    if result.state == states.SUCCESS:
        return End(result.get())
    return End(error=error_of(task_id, result.state, result.result))


def tell_parent(
    sender: Any = None, task_id: str = "", state: str | None = None, retval: Any = None, **kwargs: Any
) -> None:
    """Wake the task that waits for this one, which has ended."""
    headers = getattr(getattr(sender, "request", None), "headers", None) or {}
    parent = headers.get(PARENT)
    if not parent or state is None or state == states.RETRY:
        return
    parent_id, parent_name = parent
    awaited = headers.get(AWAITED, task_id)
    task = sender.app.tasks.get(parent_name)
    try:
        is_stored = awaited == task_id and state in states.READY_STATES and not sender.ignore_result
        if is_stored or _is_known(sender, task_id, awaited, state, retval):
            control.wake(parent_id, awaited, app=sender.app, store=conf.setting(task, "store") if task else None)
    except (StoreError, OperationalError, BackendUnavailable) as exc:
        # The parent checks again itself.
        logger.warning(
            "Task %s could not be notified that %s has ended: %s",
            parent_id,
            task_id,
            exc,
            extra={"action": "parent_not_told", "task_id": parent_id},
        )


def _is_known(task: Any, task_id: str, awaited: str, state: str, retval: Any) -> bool:
    """Whether the backend knows the end that the parent waits for, after storing what Celery does not store."""
    backend = task.app.backend
    if ends_of(backend, [awaited]):
        return True
    if state in states.READY_STATES:
        if awaited == task_id:
            store_end(backend, task_id, retval, state)
        return awaited == task_id
    how = _ending(state, retval)
    if how is None:
        return False
    who = "" if awaited == task_id else f"did not end: its part {task.name}[{task_id}] "
    note_end(backend, awaited, f"{who}{how}")
    return True


def _ending(state: str, retval: Any) -> str | None:
    """Return how a task without a result has ended, or None if another message continues it."""
    is_requeued = state == states.REJECTED and getattr(retval, "requeue", False)
    if is_requeued or isinstance(retval, NotEnded) or celery_internals.is_replacement(retval):
        return None
    return without_result(retval)
