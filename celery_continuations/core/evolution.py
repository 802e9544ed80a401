"""Code that changes while tasks are running: renamed steps, versions, and kinds of steps."""

from __future__ import annotations

from collections.abc import Mapping

from celery_continuations.core.snapshot import UNKNOWN_KIND, Snapshot
from celery_continuations.exceptions import InvalidStepError

__all__ = ["NO_LOOPS", "adapt", "described", "misfit", "misfit_of_loop", "misfit_of_step", "old_names"]

_WORDS = {
    "call": "a call",
    "block": "a block",
    "wait_for": "a wait_for",
    "sleep": "a sleep",
    "wait_until": "a wait_until",
    "wait_for_results": "a wait_for_results",
}

#: The kinds of steps other than loops; any other kind is a loop's, and describes what its cursor means.
NO_LOOPS = frozenset(_WORDS)


def described(kind: str) -> str:
    """Return a kind in words.

    >>> described("call"), described("key auth.User(id)")
    ('a call', 'a loop by key auth.User(id)')
    """
    return _WORDS.get(kind) or ("a loop" if kind == "loop" else f"a loop by {kind}")


def misfit(problem: str, *, found: str | None = None, expected: str | None = None) -> InvalidStepError:
    """Return the error for code that does not fit the snapshot; older or newer code may fit."""
    return InvalidStepError(problem, found=found, expected=expected, recorded=True)


def misfit_of_step(name: str, saved: str, found: str) -> InvalidStepError | None:
    """Return the misfit of a step that was saved with another kind, or None."""
    if saved in (found, UNKNOWN_KIND):
        return None
    return misfit(
        f"step {name!r} is {described(found)} here, but was {described(saved)} in an earlier execution; give the "
        "new step another name",
        found=name,
        expected=name,
    )


def misfit_of_loop(name: str, saved: str, found: str) -> InvalidStepError:
    """Return the misfit of a loop whose saved cursor has another meaning than its source's cursors."""
    return misfit(
        f"step {name!r} is {described(found)} here, but was begun as {described(saved)}, whose cursor has another "
        "meaning; give the new loop another name, or let the running tasks end first",
        found=name,
        expected=name,
    )


def adapt(snapshot: Snapshot, version: int, renamed: Mapping[str, str | None]) -> None:
    """Adapt a snapshot of older code to the current step names.

    Args:
        snapshot: changed in place.
        version: the ``continuation_version`` of the current code.
        renamed: ``continuation_renamed_steps``: new names by old ones, None for a removed step.

    Raises:
        InvalidStepError: when newer code has begun the task, or a new name is taken.

    >>> snapshot = Snapshot(current=("load", 500))
    >>> adapt(snapshot, 1, {"load": "import"})
    >>> snapshot.current, snapshot.begun_as
    (('import', 500), 'load')
    """
    if snapshot.task_version > version:
        raise misfit(
            f"the task was begun by version {snapshot.task_version} of its code, and this worker has version "
            f"{version} (continuation_version)"
        )
    for old in [name for name in snapshot.steps if name in renamed]:
        new = renamed[old]
        if new is None:
            _drop(snapshot, old)
        elif new in snapshot.steps:
            raise misfit(
                f"step {old!r} cannot be renamed to {new!r} (continuation_renamed_steps): the task already has a step "
                f"{new!r}",
                found=new,
                expected=old,
            )
        else:
            _rename(snapshot, old, new)


def old_names(name: str, renamed: Mapping[str, str | None]) -> list[str]:
    """Return the earlier names of a step.

    >>> old_names("import", {"load": "import", "gone": None})
    ['load']
    """
    return [old for old, new in renamed.items() if new == name]


def _drop(snapshot: Snapshot, old: str) -> None:
    snapshot.completed.pop(old, None)
    snapshot.kinds.pop(old, None)
    if snapshot.current is not None and snapshot.current[0] == old:
        snapshot.leave_step()


def _rename(snapshot: Snapshot, old: str, new: str) -> None:
    snapshot.completed = {new if name == old else name: one for name, one in snapshot.completed.items()}
    if old in snapshot.kinds:
        snapshot.kinds[new] = snapshot.kinds.pop(old)
    if snapshot.current is not None and snapshot.current[0] == old:
        snapshot.current = (new, snapshot.current[1])
        snapshot.begun_as = snapshot.begun_as or old  # idempotency keys stay those of the old name
