"""The snapshot: what is saved of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery_continuations.core import codec
from celery_continuations.core.errors import cut, described
from celery_continuations.core.outcome import Outcome
from celery_continuations.core.written import Written
from celery_continuations.exceptions import InvalidStepError, UnserializableValueError

__all__ = ["ACCEPTED", "LOST", "UNKNOWN_KIND", "Saved", "Snapshot", "Waiting", "with_misfit"]

#: The newest supported format, and the oldest: see :meth:`Snapshot.dumps`.
VERSION, _FIRST_VERSION = 2, 1

#: Replaces a mark once an operator has accepted the source as it is now.
ACCEPTED = "accepted"

#: The kind of a step completed by version 0.1, which did not save kinds.
UNKNOWN_KIND = "?"

#: The reason for resuming after a lost execution.
LOST = "lost"

# Errors are kept for the operator, not for the task: a few are enough.
_ERRORS_KEPT = 20

# An error that comes fewer items than this after the one before it is close to it.
_CLOSE = 10


class Saved(dict[str, Any]):
    """A dict that accepts only values that can be saved, and copies them.

    >>> saved = Saved()
    >>> saved["rows"] = object()
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.UnserializableValueError: saved['rows'] cannot be saved: object is not one of None, bool, int, float, str, Decimal, datetime, date, time, timedelta, UUID, bytes, and lists, tuples and dicts of them
    """  # noqa: E501

    def __setitem__(self, key: str, value: Any) -> None:
        if type(key) is not str:
            raise UnserializableValueError(f"saved[{key!r}]", "needs a key of type str")
        super().__setitem__(key, codec.copy(value, f"saved[{key!r}]"))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Like ``dict.setdefault``, but keep a copy of the value."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Like ``dict.update``, but keep copies of the values."""
        for key, value in dict(other, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Saved:  # type: ignore[override,misc]
        self.update(other)
        return self


class Waiting(NamedTuple):
    """What a suspended task waits for.

    Attributes:
        kind: ``"delivery"``, ``"time"`` or ``"result"``.
        until: when the task continues in any case, in seconds since the epoch, or None.
        key: the name of a delivery, or the task id of a result.
    """

    kind: str
    until: float | None = None
    key: str | None = None


def _write_completed(name: str, outcome: Outcome) -> str:
    return json.dumps([name, outcome.kind, outcome.data], separators=(",", ":"))


def _write_kind(name: str, kind: str) -> str:
    return f"{json.dumps(name)}:{json.dumps(kind)}"


@dataclass
class Snapshot:
    """Everything that is passed from one execution to the next.

    Attributes:
        completed: outcomes by step name, in the order of completion.
        current: name and encoded cursor of the current step, or None.
        saved: the task's ``self.saved``.
        executions: how many executions have begun.
        resumptions: how many times the task was interrupted to be resumed.
        counted: how many resumptions count against ``continuation_max_resumptions``.
        run_time: seconds spent in executions that have ended.
        reason: why the last execution was interrupted, or None.
        left_at: when it was interrupted, in seconds since the epoch.
        errors: the last errors that the task was resumed from, oldest first.
        progress: the number of items done and of all items of the current step, as far as known.
        losses: how many executions in a row were lost at the same place: alone, and together with others.
        lost_at: that place.
        waiting: what the current step waits for, see :class:`Waiting`, or None.
        gap: the longest time between two checkpoints, in seconds; 0 up to a second.
        failed_items: the failed items of the current step, each ``[encoded cursor, error]``; stored as ``aside``.
        kind: the kind of the current step, including what a loop's cursor means; None if unknown.
        mark: the state of the current loop's source: JSON, read by the source that made it; :data:`ACCEPTED` once an
            operator has accepted the source as it is; None if unknown.
        kinds: the kind of each completed step, except ``"call"``.
        begun_as: the name with which the current step began, if it was renamed since.
        task_version: the ``continuation_version`` that the task began with.
        misfit: why a worker's code could not resume this snapshot, the last time this happened.
        uses: the format version that the current step needs.
        moves_of_saved: how many checkpoints of the task's own have found ``saved`` changed: that is progress, too.
        retried_at: the place at which ``self.retry()`` was last called, or None.
        resumed_errors: how many errors the task was resumed from.
        close_errors: how many of them in a row were close to the one before, and where the last one was.
        error: the error that has ended the task: type, message, step, cursor; None before.
        raised_by: the completed step whose remembered outcome is that error, or None.
    """

    completed: dict[str, Outcome] = field(default_factory=dict)
    current: tuple[str, Any] | None = None
    saved: Saved = field(default_factory=Saved)
    executions: int = 0
    resumptions: int = 0
    counted: int = 0
    run_time: float = 0.0
    reason: str | None = None
    left_at: float = 0.0
    errors: list[dict[str, Any]] = field(default_factory=list)
    progress: tuple[int | None, int | None] = (None, None)
    losses: tuple[int, int] = (0, 0)
    lost_at: Any = None
    waiting: Waiting | None = None
    gap: float = 0.0
    failed_items: list[list[Any]] = field(default_factory=list)
    kind: str | None = None
    mark: Any = None
    kinds: dict[str, str] = field(default_factory=dict)
    begun_as: str | None = None
    task_version: int = 1
    misfit: str | None = None
    uses: int = _FIRST_VERSION
    moves_of_saved: int = 0
    retried_at: Any = None
    resumed_errors: int = 0
    close_errors: tuple[int, Any] = (0, None)
    error: dict[str, Any] | None = None
    raised_by: str | None = None
    _found_saved: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _completed_text: Written = field(
        default_factory=lambda: Written(_write_completed), init=False, repr=False, compare=False
    )
    _kinds_text: Written = field(default_factory=lambda: Written(_write_kind), init=False, repr=False, compare=False)

    @property
    def steps(self) -> list[str]:
        """Names of all steps recorded, the current one last."""
        return [*self.completed, *([self.current[0]] if self.current else [])]

    @property
    def place(self) -> list[Any]:
        """How far the task is: equal for two snapshots without progress between them."""
        place = [len(self.completed), list(self.current) if self.current else None]
        return [*place, self.moves_of_saved] if self.moves_of_saved else place

    def note_saved(self) -> bool:
        """Note at a checkpoint of the task's own whether ``saved`` has changed since the last one."""
        try:
            found = {key: codec.encode(value) for key, value in self.saved.items()}
        except UnserializableValueError:  # the next save reports it
            return False
        if found == self._found_saved:
            return False
        self._found_saved = found
        self.moves_of_saved += 1
        return True

    def remember_error(self, error: BaseException) -> None:
        """Keep ``error``, from which the task is resumed."""
        self.errors = [*self.errors[1 - _ERRORS_KEPT :], described(error, self.current)]
        self.resumed_errors += 1
        in_a_row, before = self.close_errors
        now = [len(self.completed), self.progress[0]]
        self.close_errors = (in_a_row + 1 if _is_close(before, now) else 0, now)

    def forget_errors(self) -> bool:
        """Forget the errors but for the last one, which matter less than progress; return whether there were any."""
        kept, self.errors = self.errors, self.errors[-1:]
        return len(kept) > 1

    def lose(self, *, alone: bool = False, shared: bool = False) -> None:
        """Note a lost execution at this place; it counts if it was lost ``alone``, or ``shared`` with others."""
        self.reason = LOST
        if not (alone or shared):
            return
        place = self.place
        if self.lost_at != place:
            self.losses = (0, 0)
        self.losses = (self.losses[0] + alone, self.losses[1] + shared)
        self.lost_at = place

    def kind_of(self, name: str) -> str:
        """Return the kind of a completed step."""
        return self.kinds.get(name, "call")

    def complete(self, name: str, kind: str, outcome: Outcome) -> None:
        """Complete the current step, which has run to its end."""
        self.completed[name] = outcome
        if kind != "call":
            self.kinds[name] = kind
        self.leave_step()

    def reopen(self, name: str, failed_items: list[list[Any]]) -> None:
        """Reopen the step that was completed last."""
        del self.completed[name]
        self.kinds.pop(name, None)
        self._forget_texts()
        self.failed_items = failed_items

    def return_to(self, name: str) -> None:
        """Return to a call step, to repeat it: forget its outcome and all steps after it."""
        names = list(self.completed)
        for later in names[names.index(name) :]:
            del self.completed[later]
            self.kinds.pop(later, None)
        self._forget_texts()
        self.leave_step()
        self.current, self.kind = (name, None), "call"

    def _forget_texts(self) -> None:
        self._completed_text.clear()
        self._kinds_text.clear()

    @property
    def size_of_completed(self) -> int:
        """The number of characters that the completed steps had in the last text."""
        return len(self._completed_text.text) + len(self._kinds_text.text)

    def leave_step(self) -> None:
        """Forget the current step, with everything kept for it alone."""
        self.current, self.kind, self.mark, self.begun_as = None, None, None, None
        self.progress, self.failed_items, self.uses = (None, None), [], _FIRST_VERSION

    def dumps(self) -> str:
        """Write the snapshot as JSON text.

        Its format version is the lowest whose readers understand it, so that an older release can resume a snapshot
        that uses no newer feature.
        """
        data: dict[str, Any] = {
            "saved": {key: codec.encode(value, f"saved[{key!r}]") for key, value in self.saved.items()},
            "aside": self.failed_items,
        }
        for name in _PLAIN:
            if name != "kinds":
                data[name] = getattr(self, name)
        # Default values are left out: many a snapshot is only a step and a cursor.
        kept = {name: value for name, value in data.items() if value != _NEW[name]}
        rest = json.dumps(kept, separators=(",", ":"))[1:-1]
        # A save must not take longer with each step that is complete.
        steps = f'"completed":[{self._completed_text.of(self.completed)}],' if self.completed else ""
        is_newer = self.task_version > 1 or codec.has_newer(rest) or codec.has_newer(steps)
        version = max(self.uses, VERSION if is_newer else _FIRST_VERSION)
        kinds = self._kinds_text.of(self.kinds)
        return f'{{"version":{version},{rest}{"," if rest else ""}{steps}"kinds":{{{kinds}}}}}'

    def dumps_done(self) -> str:
        """Write what the tombstone of a task that is done keeps: no values, and little space.

        >>> Snapshot(resumptions=2, completed={"check": Outcome("value", "ann")}, saved=Saved(a=1)).dumps_done()
        '{"version":1,"resumptions":2,"completed":[["check","done",null]]}'
        """
        data: dict[str, Any] = {"version": _FIRST_VERSION}
        if self.resumptions:
            data["resumptions"] = self.resumptions
        if self.completed:
            data["completed"] = [[name, "done", None] for name in self.completed]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Snapshot:
        """Read what :meth:`dumps` wrote.

        The cursor stays encoded until its step needs it, so that a cursor that can no longer be decoded raises inside
        the task.

        Raises:
            UnserializableValueError: when ``text`` is not a snapshot.
            InvalidStepError: when its version is newer than the supported one.

        >>> Snapshot.loads(Snapshot(current=("import", 500)).dumps()).steps
        ['import']
        """
        try:
            data = json.loads(text)
            if type(data["version"]) is int and data["version"] > VERSION:
                raise InvalidStepError(
                    f"snapshot version {data['version']} is newer than the supported version {VERSION}; "
                    "install a later release of celery-continuations",
                    recorded=True,
                )
            if type(data["version"]) is not int or data["version"] < _FIRST_VERSION:
                raise ValueError(f"version {data['version']!r}, expected {_FIRST_VERSION} to {VERSION}")
            data = {**_NEW, **data}
            saved = Saved()
            for key, value in data["saved"].items():
                saved[key] = codec.decode(value, f"saved[{key!r}]")
            found = cls(
                completed={name: Outcome(kind, value) for name, kind, value in data["completed"]},
                current=None if data["current"] is None else (data["current"][0], data["current"][1]),
                saved=saved,
                progress=(data["progress"][0], data["progress"][1]),
                losses=(data["losses"][0], data["losses"][1]),
                waiting=None if data["waiting"] is None else Waiting(*data["waiting"]),
                failed_items=list(data["aside"]),
                kinds=_kinds(data),
                close_errors=(data["close_errors"][0], data["close_errors"][1]),
                errors=list(data["errors"]),
                **{name: data[name] for name in _UNCHANGED},
            )
            found._found_saved = data["saved"]
            return found
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
            raise UnserializableValueError("the snapshot", f"cannot be read: {type(exc).__name__}: {exc}") from exc

    def largest_part(self) -> str:
        """Return the name of the largest part."""
        sizes = {f"the value of step {name!r}": len(json.dumps(one.data)) for name, one in self.completed.items()}
        sizes.update((f"saved[{key!r}]", len(codec.dumps(value))) for key, value in self.saved.items())
        if self.current is not None:
            sizes[f"the cursor of step {self.current[0]!r}"] = len(json.dumps(self.current[1]))
            sizes[f"the failed items of step {self.current[0]!r}"] = len(json.dumps(self.failed_items))
        return max(sizes, key=lambda part: sizes[part], default="nothing")


# The fields whose values are JSON already.
_PLAIN = (
    "current", "executions", "resumptions", "counted", "run_time", "reason",
    "left_at", "errors", "progress", "losses", "lost_at", "waiting", "gap",
    "kind", "mark", "kinds", "begun_as", "task_version", "misfit", "uses",
    "moves_of_saved", "retried_at", "resumed_errors", "close_errors", "error", "raised_by",
)  # fmt: skip

# Those of them that are read as they were written.
_UNCHANGED = set(_PLAIN) - {"current", "errors", "progress", "losses", "waiting", "kinds", "close_errors"}

_NEW: dict[str, Any] = {
    "completed": [],
    "saved": {},
    "aside": [],
    **{name: getattr(Snapshot(), name) for name in _PLAIN},
    "kinds": None,  # always written: without it a snapshot comes from version 0.1
}


def _kinds(data: dict[str, Any]) -> dict[str, str]:
    if data["kinds"] is None:
        return {name: UNKNOWN_KIND for name, *_ in data["completed"]}
    return dict(data["kinds"])


def with_misfit(text: str, problem: str) -> str:
    """Note in a snapshot's text why it could not be resumed; keep everything else, also unknown fields.

    >>> Snapshot.loads(with_misfit(Snapshot(executions=3).dumps(), "step 'a' is unknown")).misfit
    "step 'a' is unknown"
    """
    return json.dumps({**json.loads(text), "misfit": cut(problem)}, separators=(",", ":"))


def _is_close(before: Any, now: list[Any]) -> bool:
    """Whether little was done between two errors, each with the number of completed steps and of items done."""
    if before is None or before[0] != now[0]:
        return False
    return None in (before[1], now[1]) or 0 <= now[1] - before[1] < _CLOSE
