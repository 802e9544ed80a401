"""What is saved of a run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from celery_continuations.core import codec
from celery_continuations.exceptions import InvalidStepError, RememberedError, UnserializableValueError

__all__ = ["ACCEPTED", "LOST", "UNKNOWN_KIND", "Outcome", "Saved", "Snapshot", "Waiting", "with_misfit"]

#: The newest format known here, and the oldest that can say the same: see :meth:`Snapshot.dumps`.
VERSION, _FIRST_VERSION = 2, 1

#: In place of a mark: an operator has accepted the source as it is now.
ACCEPTED = "accepted"

#: The kind of a step that version 0.1 completed, which did not save kinds.
UNKNOWN_KIND = "?"

#: The reason of a resumption after a lost execution.
LOST = "lost"

# Errors are kept for the operator, not for the task: a few are enough.
_ERRORS_KEPT = 20


class Saved(dict[str, Any]):
    """A dict that takes only what can be saved, and takes a copy of it.

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
        """As of dict; the value kept is a copy."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, other: Any = (), /, **more: Any) -> None:
        """As of dict."""
        for key, value in dict(other, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Saved:  # type: ignore[override,misc]
        self.update(other)
        return self


@dataclass(frozen=True)
class Outcome:
    """What a completed step left: items put aside, a value, an error, or a value that cannot be saved.

    Attributes:
        kind: ``"done"``, ``"value"``, ``"error"``, ``"lost"`` or ``"timeout"``.
        data: as ``Snapshot.aside``, or None; the encoded value; ``[type, args or None, text]``; or what is wrong with
            the value.
    """

    kind: str = "done"
    data: Any = None

    @classmethod
    def of_value(cls, value: Any, what: str) -> Outcome:
        """Remember ``value``.  Raises UnserializableValueError when it cannot be saved."""
        return cls("value", codec.encode(value, what))

    @classmethod
    def of_error(cls, error: Exception) -> Outcome:
        """Remember ``error``, by type and arguments."""
        kind = type(error)
        try:
            args = codec.encode(list(error.args))
        except UnserializableValueError:
            args = None
        return cls("error", [f"{kind.__module__}:{kind.__qualname__}", args, str(error)])

    def replay(self, name: str) -> Any:
        """Return the remembered value, or raise the remembered error."""
        if self.kind == "value":
            return codec.decode(self.data, f"the value of step {name!r}")
        if self.kind == "error":
            raise _rebuild_error(*self.data)
        if self.kind == "lost":
            raise UnserializableValueError(f"the value of step {name!r}", self.data)
        return None


def _rebuild_error(name: str, args: Any, text: str) -> Exception:
    """Make the error again.  Only classes already imported are considered: data never imports."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if args is not None and isinstance(found, type) and issubclass(found, Exception):
        try:
            error: Exception = found(*codec.decode(args))
            if str(error) == text:
                return error
        except Exception:  # a constructor that does not take its own args: any error may come of that
            pass
    return RememberedError(name, text)


class Waiting(NamedTuple):
    """What a task waits for that has given its worker back.

    Attributes:
        kind: ``"delivery"``, ``"time"`` or ``"result"``.
        until: when it goes on in any case, in seconds since the epoch, or None.
        key: of a delivery its name, of a result the id of its task.
    """

    kind: str
    until: float | None = None
    key: str | None = None


@dataclass
class Snapshot:
    """All that goes from one execution to the next.

    Attributes:
        completed: outcomes by step name, in the order of completion.
        current: name and encoded cursor of the current step, or None.
        saved: the task's ``self.saved``.
        executions: how many executions have begun.
        resumptions: how many times the task has left an execution to be resumed.
        counted: how many of them count against ``continuation_max_resumptions``.
        run_time: seconds spent in executions that have ended.
        reason: why the last execution left, or None.
        left_at: when, in seconds since the epoch.
        errors: the last errors that were resumed from, oldest first.
        progress: items done and items in all of the current step, where known.
        losses: how many executions in a row were lost at the same place: alone, and together with others.
        lost_at: that place.
        waiting: what the current step waits for, see :class:`Waiting`, or None.
        gap: the longest time seen between two checkpoints, in seconds; 0 up to a second.
        aside: items of the current step that failed: ``[encoded cursor, error]`` of each.
        kind: what the current step is, and of a loop what its cursor means; None where that is not known.
        mark: how the source of the current loop was found to be: JSON, read by the source that made it;
            :data:`ACCEPTED` once an operator has accepted the source as it is; None where nothing is known.
        kinds: the kind of each completed step, ``"call"`` left out.
        begun_as: the name that the current step had when it began, where it was renamed since.
        task_version: the ``continuation_version`` that the task began with.
        misfit: why a worker's code could not resume this snapshot, the last time that one could not.
        uses: the format version that the current step needs.
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
    aside: list[list[Any]] = field(default_factory=list)
    kind: str | None = None
    mark: Any = None
    kinds: dict[str, str] = field(default_factory=dict)
    begun_as: str | None = None
    task_version: int = 1
    misfit: str | None = None
    uses: int = _FIRST_VERSION

    @property
    def steps(self) -> list[str]:
        """Names of all steps recorded, the one in hand last."""
        return [*self.completed, *([self.current[0]] if self.current else [])]

    def remember_error(self, error: BaseException) -> None:
        """Keep ``error``, the reason why the task was resumed."""
        name, cursor = self.current or (None, None)
        entry = {"type": type(error).__name__, "message": str(error), "step": name, "cursor": cursor}
        self.errors = [*self.errors[1 - _ERRORS_KEPT :], entry]

    def lose(self, *, alone: bool = False, shared: bool = False) -> None:
        """An execution was lost that had come no further than this; ``alone`` or with others, or it does not count."""
        self.reason = LOST
        if not (alone or shared):
            return
        place = [len(self.completed), list(self.current) if self.current else None]
        if self.lost_at != place:
            self.losses = (0, 0)
        self.losses = (self.losses[0] + alone, self.losses[1] + shared)
        self.lost_at = place

    def kind_of(self, name: str) -> str:
        """Return the kind of a completed step."""
        return self.kinds.get(name, "call")

    def leave_step(self) -> None:
        """Forget the current step, with all that is kept of it alone."""
        self.current, self.kind, self.mark, self.begun_as = None, None, None, None
        self.progress, self.aside, self.uses = (None, None), [], _FIRST_VERSION

    def dumps(self) -> str:
        """Write the snapshot as JSON text.

        Its format version is the lowest whose readers understand it, so that an older release can go on with what
        uses nothing that it does not know.
        """
        data: dict[str, Any] = {
            "completed": [[name, one.kind, one.data] for name, one in self.completed.items()],
            "saved": {key: codec.encode(value, f"saved[{key!r}]") for key, value in self.saved.items()},
        }
        for name in _PLAIN:
            data[name] = getattr(self, name)
        # What is as in a new snapshot is left out: many a snapshot is a step and a cursor.
        kept = {name: value for name, value in data.items() if value != _NEW[name]}
        version = max(self.uses, VERSION if self.task_version > 1 else _FIRST_VERSION)
        return json.dumps({"version": version, **kept}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Snapshot:
        """Read what :meth:`dumps` wrote.

        The cursor stays encoded until its step asks for it, so that a cursor which can no
        longer be decoded raises inside the task.

        Raises:
            UnserializableValueError: when ``text`` is not a snapshot.
            InvalidStepError: when it is of a version that comes after the one known here.

        >>> Snapshot.loads(Snapshot(current=("import", 500)).dumps()).steps
        ['import']
        """
        try:
            data = json.loads(text)
            if type(data["version"]) is int and data["version"] > VERSION:
                raise InvalidStepError(
                    f"snapshot version {data['version']} is newer than the supported version {VERSION}; it takes "
                    "a later release of celery-continuations",
                    recorded=True,
                )
            if type(data["version"]) is not int or data["version"] < _FIRST_VERSION:
                raise ValueError(f"version {data['version']!r}, expected {_FIRST_VERSION} to {VERSION}")
            data = {**_NEW, **data}
            saved = Saved()
            for key, value in data["saved"].items():
                saved[key] = codec.decode(value, f"saved[{key!r}]")
            return cls(
                completed={name: Outcome(kind, value) for name, kind, value in data["completed"]},
                current=None if data["current"] is None else (data["current"][0], data["current"][1]),
                saved=saved,
                executions=data["executions"],
                resumptions=data["resumptions"],
                counted=data["counted"],
                run_time=data["run_time"],
                reason=data["reason"],
                left_at=data["left_at"],
                errors=list(data["errors"]),
                progress=(data["progress"][0], data["progress"][1]),
                losses=(data["losses"][0], data["losses"][1]),
                lost_at=data["lost_at"],
                waiting=None if data["waiting"] is None else Waiting(*data["waiting"]),
                gap=data["gap"],
                aside=list(data["aside"]),
                kind=data["kind"],
                mark=data["mark"],
                kinds=_kinds(data),
                begun_as=data["begun_as"],
                task_version=data["task_version"],
                misfit=data["misfit"],
                uses=data["uses"],
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as exc:
            raise UnserializableValueError("the snapshot", f"cannot be read: {type(exc).__name__}: {exc}") from exc

    def largest_part(self) -> str:
        """Name the part that takes the most room."""
        sizes = {f"the value of step {name!r}": len(json.dumps(one.data)) for name, one in self.completed.items()}
        sizes.update((f"saved[{key!r}]", len(codec.dumps(value))) for key, value in self.saved.items())
        if self.current is not None:
            sizes[f"the cursor of step {self.current[0]!r}"] = len(json.dumps(self.current[1]))
            sizes[f"what step {self.current[0]!r} has put aside"] = len(json.dumps(self.aside))
        return max(sizes, key=lambda part: sizes[part], default="nothing")


# The fields that are JSON as they are.
_PLAIN = (
    "current", "executions", "resumptions", "counted", "run_time", "reason",
    "left_at", "errors", "progress", "losses", "lost_at", "waiting", "gap", "aside",
    "kind", "mark", "kinds", "begun_as", "task_version", "misfit", "uses",
)  # fmt: skip

_NEW: dict[str, Any] = {
    "completed": [],
    "saved": {},
    **{name: getattr(Snapshot(), name) for name in _PLAIN},
    "kinds": None,  # always written: without it a snapshot is of version 0.1
}


def _kinds(data: dict[str, Any]) -> dict[str, str]:
    if data["kinds"] is None:
        return {name: UNKNOWN_KIND for name, *_ in data["completed"]}
    return dict(data["kinds"])


def with_misfit(text: str, problem: str) -> str:
    """Note in a snapshot's text why it could not be resumed; all else stays, also what is not known here.

    >>> Snapshot.loads(with_misfit(Snapshot(executions=3).dumps(), "step 'a' is unknown")).misfit
    "step 'a' is unknown"
    """
    return json.dumps({**json.loads(text), "misfit": problem}, separators=(",", ":"))
