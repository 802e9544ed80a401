"""The errors of celery-continuations, each with its data as attributes.

All are under :class:`ContinuationError`.  :class:`Interrupt` is not an error: it
carries a run from its checkpoint to the task's boundary, and is a
:class:`BaseException` so that ``except Exception`` cannot stop it on its way.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CallbackError",
    "CheckpointError",
    "ChildError",
    "ContinuationError",
    "CrashLoopError",
    "DeliveryError",
    "ErrorBudgetError",
    "Interrupt",
    "Interrupted",
    "InvalidStepError",
    "RememberedError",
    "ResumeLimitError",
    "SnapshotTooLargeError",
    "SourceChangedError",
    "StoreError",
    "TooLateError",
    "UnadvanceableCursorError",
    "UnserializableValueError",
    "WaitTimeout",
]


class Interrupt(BaseException):
    """Leave the worker here: raised at a checkpoint, caught at the task's boundary.

    Attributes:
        step: name of the current step, or None between two steps.
        cursor: where that step resumes, or None.
        reason: why, as shown in logs and events, e.g. ``"stopping"``.
    """

    def __init__(self, step: str | None, cursor: Any, reason: str) -> None:
        super().__init__(step, cursor, reason)
        self.step, self.cursor, self.reason = step, cursor, reason

    def __str__(self) -> str:
        return _place("Interrupted", self.step, self.cursor, self.reason)


class Interrupted(Exception):
    """The result that the result backend and monitors show between two executions of a task.

    It is ``AsyncResult(id).info`` while the state is ``RETRY``.  Celery's log shows it as text, its events, and
    so Flower, as code.

    Attributes:
        step, cursor, reason: see :class:`Interrupt`.
        percent: how much of the step is done, rounded down, or None if it is not known.

    >>> Interrupted("import", 500, "stopping", percent=50)
    Interrupted('import', 500, 'stopping', percent=50)
    >>> str(Interrupted("import", 500, "stopping", percent=50))
    'Interrupted at import:500, 50 % (stopping)'
    >>> str(Interrupted("import", 500, "stopping"))
    'Interrupted at import:500 (stopping)'
    """

    def __init__(
        self, step: str | None = None, cursor: Any = None, reason: str = "", percent: int | None = None
    ) -> None:
        # A release without percentages can rebuild it too, if none is known.
        super().__init__(step, cursor, reason, *(() if percent is None else (percent,)))
        self.step, self.cursor, self.reason, self.percent = step, cursor, reason, percent

    def __repr__(self) -> str:
        percent = "" if self.percent is None else f", percent={self.percent}"
        return f"{type(self).__name__}({self.step!r}, {self.cursor!r}, {self.reason!r}{percent})"

    def __str__(self) -> str:
        return _place("Interrupted", self.step, self.cursor, self.reason, self.percent)


def _place(word: str, step: str | None, cursor: Any, reason: str, percent: int | None = None) -> str:
    if step is None:
        return f"{word} between steps ({reason})"
    where = step if cursor is None else f"{step}:{cursor}"
    done = "" if percent is None else f", {percent} %"
    return f"{word} at {where}{done} ({reason})"


class ContinuationError(Exception):
    """Base of every error of this package."""


class InvalidStepError(ContinuationError):
    """A step was used in a way that cannot be resumed.

    Attributes:
        found: the step that the code started, or None.
        expected: the step that the record has at this place, or None if it has none.
        recorded: whether the code does not fit an earlier execution's record; other code, older or newer,
            may fit it.
    """

    def __init__(self, message: str, found: object = None, expected: str | None = None, recorded: bool = False) -> None:
        super().__init__(message, found, expected, recorded)
        self.found, self.expected, self.recorded = found, expected, recorded

    def __str__(self) -> str:
        return str(self.args[0])


class CheckpointError(ContinuationError):
    """A checkpoint was reached inside an open database transaction.

    Attributes:
        transaction: the open one, e.g. ``"the Django connection 'default'"``.
        step: name of the current step, or None between two steps.
    """

    def __init__(self, transaction: str, step: str | None) -> None:
        super().__init__(transaction, step)
        self.transaction, self.step = transaction, step

    def __str__(self) -> str:
        where = "between two steps" if self.step is None else f"in step {self.step!r}"
        return (
            f"a checkpoint {where} is inside an open transaction of {self.transaction}: uncommitted work "
            "would be lost if the task stops there. End the transaction first, or let the step commit each item, or "
            "each move of the cursor: iterate(..., transaction=...) or step(..., transaction=...)"
        )


class UnadvanceableCursorError(ContinuationError):
    """``advance()`` does not know what comes after this cursor.

    Attributes:
        cursor: the cursor that has no known successor.
    """

    def __init__(self, cursor: Any) -> None:
        super().__init__(cursor)
        self.cursor = cursor

    def __str__(self) -> str:
        if self.cursor is None:
            return "cannot advance None: give the step a start, e.g. start=0"
        return (
            f"cannot advance {self.cursor!r} ({type(self.cursor).__name__}): successors are known "
            "for int and date, and for objects with a succ() method; use set(cursor) instead"
        )


class UnserializableValueError(ContinuationError):
    """A value cannot be saved, or a saved one cannot be read.

    Attributes:
        what: which value, e.g. ``"the cursor of step 'import'"``.
        problem: the rest of the sentence.
    """

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def __str__(self) -> str:
        return f"{self.what} {self.problem}"


class RememberedError(ContinuationError):
    """Replaces a call step's remembered error whose class cannot be rebuilt.

    Attributes:
        error_type: ``module:qualname`` of the original error.
        error_message: its text.
    """

    def __init__(self, error_type: str, error_message: str) -> None:
        super().__init__(error_type, error_message)
        self.error_type, self.error_message = error_type, error_message

    def __str__(self) -> str:
        return f"{self.error_type}: {self.error_message}"


class ResumeLimitError(ContinuationError):
    """The task was resumed more often than ``continuation_max_resumptions`` allows.

    Attributes:
        limit: the setting's value.
        reason: the reason of the resumption that exceeded it.
    """

    def __init__(self, limit: int, reason: str) -> None:
        super().__init__(limit, reason)
        self.limit, self.reason = limit, reason

    def __str__(self) -> str:
        return (
            f"resumed {self.limit} times already (continuation_max_resumptions={self.limit}); "
            f"the last reason was: {self.reason}"
        )


class CrashLoopError(ContinuationError):
    """The task's execution was lost repeatedly at the same place.

    Attributes:
        losses: the number of losses in a row.
        step: name of the current step, or None before the first and between two.
        cursor: of that step, encoded as in the snapshot, or None.
    """

    def __init__(self, losses: int, step: str | None, cursor: Any) -> None:
        super().__init__(losses, step, cursor)
        self.losses, self.step, self.cursor = losses, step, cursor

    def __str__(self) -> str:
        where = "before or between steps" if self.step is None else f"in step {self.step!r}"
        at = "" if self.cursor is None else f" at {self.cursor!r}"
        return f"the process that ran the task was lost {self.losses} times in a row {where}{at}"

    def hide_cursors(self) -> None:
        """Forget the cursor, before the error is reported."""
        self.__init__(self.losses, self.step, None)  # type: ignore[misc]


class ErrorBudgetError(ContinuationError):
    """More items of a loop have failed than ``on_error`` allows.

    Attributes:
        step: name of the loop.
        budget: the number of items that may fail.
        failed: for each failed item its cursor, and its error; the cursor is None with
            ``continuation_show_cursors = False``.

    >>> str(ErrorBudgetError("import", 1, [(3, "ValueError: no"), (8, "KeyError: 'id'")]))
    "step 'import': more items failed than on_error=1 allows; the last one, at 8: KeyError: 'id'"
    """

    def __init__(self, step: str, budget: int, failed: list[tuple[Any, str]]) -> None:
        super().__init__(step, budget, failed)
        self.step, self.budget, self.failed = step, budget, failed

    def __str__(self) -> str:
        cursor, text = self.failed[-1]
        at = "" if cursor is None else f", at {cursor!r}"
        return f"step {self.step!r}: more items failed than on_error={self.budget} allows; the last one{at}: {text}"

    def hide_cursors(self) -> None:
        """Forget the cursors, before the error is reported."""
        self.__init__(self.step, self.budget, [(None, text) for _, text in self.failed])  # type: ignore[misc]


class SnapshotTooLargeError(ContinuationError):
    """The snapshot is larger than ``continuation_max_snapshot``.

    Attributes:
        size: bytes of the snapshot.
        limit: bytes allowed.
        largest: the largest part of it, e.g. ``"saved['rows']"``.
        advice: what to write instead.
    """

    def __init__(
        self, size: int, limit: int, largest: str, advice: str = "Keep big data elsewhere and save a reference to it"
    ) -> None:
        super().__init__(size, limit, largest, advice)
        self.size, self.limit, self.largest, self.advice = size, limit, largest, advice

    def __str__(self) -> str:
        return (
            f"the snapshot has {self.size:,} bytes, continuation_max_snapshot allows {self.limit:,}; "
            f"its largest part is {self.largest}. {self.advice}"
        )


class SourceChangedError(ContinuationError):
    """A loop's source has changed since an earlier execution of the task.

    Continuing would skip items, or do them twice.  The task fails, and its record is kept; ``autoretry_for`` does
    not retry it.

    Attributes:
        step: name of the loop.
        task_id: of the task.
        problem: what has changed.
        advice: the code to write instead.

    >>> print(SourceChangedError("send", "7f3a", "it has 3 items, and 5 were done", "Write a queryset."))
    step 'send': it has 3 items, and 5 were done
    Write a queryset.
    Then: celery -A proj continuations retry 7f3a --step send (from its beginning), or retry 7f3a --accept-source (from its place in the source as it is now).
    """  # noqa: E501

    def __init__(self, step: str, task_id: str, problem: str, advice: str) -> None:
        super().__init__(step, task_id, problem, advice)
        self.step, self.task_id, self.problem, self.advice = step, task_id, problem, advice

    def __str__(self) -> str:
        retry = f"retry {self.task_id}"
        return (
            f"step {self.step!r}: {self.problem}\n{self.advice}\nThen: celery -A proj continuations {retry} --step "
            f"{self.step} (from its beginning), or {retry} --accept-source (from its place in the source as "
            "it is now)."
        )


class WaitTimeout(ContinuationError):
    """The timeout of a wait expired."""


class ChildError(ContinuationError):
    """A task that another one waits for has ended without a result, or with one that cannot be read.

    Attributes:
        task_id: of the task that has ended.
        problem: the rest of the sentence.
    """

    def __init__(self, task_id: str, problem: str) -> None:
        super().__init__(task_id, problem)
        self.task_id, self.problem = task_id, problem

    def __str__(self) -> str:
        return f"task {self.task_id} {self.problem}"


class DeliveryError(ContinuationError):
    """A delivery or a command was refused.

    Attributes:
        task_id: of the task.
        problem: why.
    """

    def __init__(self, task_id: str, problem: str) -> None:
        super().__init__(task_id, problem)
        self.task_id, self.problem = task_id, problem

    def __str__(self) -> str:
        return f"task {self.task_id}: {self.problem}"


class TooLateError(DeliveryError):
    """A delivery came too late: the wait has another outcome, or the task is over."""


class CallbackError(ContinuationError):
    """A callback was not delivered.

    Attributes:
        status: the HTTP status to answer with.
        problem: why, in words for the sender, which reveal nothing of the task.

    >>> str(CallbackError(410, "this address has expired"))
    '410: this address has expired'
    """

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(status, problem)
        self.status, self.problem = status, problem

    def __str__(self) -> str:
        return f"{self.status}: {self.problem}"


class StoreError(ContinuationError):
    """The store cannot be reached, or has a record that cannot be read.

    Attributes:
        store: the store.
        problem: what happened.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store, self.problem = store, problem

    def __str__(self) -> str:
        return f"store {self.store}: {self.problem}"
