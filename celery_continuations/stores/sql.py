"""Shared by the two SQL stores: the columns, the limits, and reading a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from celery_continuations.stores.base import Fence, Lease, Record, Scan, Update, without_command
from celery_continuations.stores.problems import UnstorableError
from celery_continuations.stores.reading import lease_of

__all__ = [
    "CLOCK_OF_POSTGRESQL",
    "CLOCK_OF_SQLITE",
    "LONGEST",
    "PAGE",
    "TEXTS",
    "Cleaning",
    "checked",
    "owner_of",
    "record_of",
    "scan_of",
    "seconds_left",
    "worker_of",
]

#: The maximum length of a namespace, a task id or a worker.
LONGEST = 255

#: The columns that an update may leave unchanged.
TEXTS = ("snapshot", "message", "value", "inbox")

#: How many records are read at a time when all are read.
PAGE = 100

# clock_timestamp() would differ for each row, so that no index could be searched.
CLOCK_OF_POSTGRESQL = "CAST(extract(epoch from statement_timestamp()) AS DOUBLE PRECISION)"

# To the millisecond; unixepoch('subsec') came with SQLite 3.42.
CLOCK_OF_SQLITE = "((julianday('now') - 2440587.5) * 86400.0)"

# Expired rows are removed in batches of this size, at this interval in seconds.
_BATCH = 500
_CLEAN_EVERY = 60.0

_LONG_AGO = -1e9


class Cleaning:
    """Remove expired rows at intervals, in every namespace, including unused ones."""

    def __init__(self) -> None:
        self._next = 0.0

    def clean(self, remove: Callable[[int], int]) -> None:
        """Call ``remove`` if it is time: it removes at most the given number of rows, and returns how many it found."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _CLEAN_EVERY
            if remove(_BATCH) == _BATCH:
                self._next = now  # there are more


def checked(store: str, what: str, text: str) -> str:
    """Return the text.

    Raises:
        UnstorableError: when it is too long, which SQLite would accept, or is not a text that PostgreSQL accepts.
    """
    if len(text) > LONGEST:
        raise UnstorableError(store, f"{what} has at most {LONGEST} characters, not {len(text)}: {text}")
    if "\0" in text:
        raise UnstorableError(store, f"{what} must not contain NUL: {text!r}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise UnstorableError(store, f"{what} cannot be encoded: {text!r}") from exc
    return text


def seconds_left(update: Update) -> float | None:
    """Return the seconds until the record expires; for a removal long ago, in case the clock is set back."""
    return _LONG_AGO if update.expires_in == 0 else update.lasts


def worker_of(store: str, update: Update) -> str | None:
    """Return the worker that owns the updated record, or None; a removed record has no owner."""
    return None if update.expires_in == 0 else checked(store, "a worker", update.fence.worker) or None


def owner_of(fence: Any) -> str:
    """Return the owner in a fencing token, even in an invalid one: such a row must not hide the others."""
    return without_command(str(fence).split(" ", 2)[-1])


def scan_of(
    leases: Iterable[tuple[Any, Any, Any]],
    owners: Iterable[Any],
    due: Iterable[Any],
    owned: Iterable[tuple[Any, Any]],
) -> Scan:
    """Return a scan from its rows: worker, seconds left and note; workers; task ids; task ids and fencing tokens."""
    problems: list[str] = []

    def is_text(value: Any, what: str) -> bool:
        if not isinstance(value, str):
            problems.append(f"the {what} {value!r} is not text")
        return isinstance(value, str)

    known = {name: lease_of(name, left, note) for name, left, note in leases if is_text(name, "worker")}
    for name in owners:
        if is_text(name, "owner"):
            known.setdefault(name, Lease(name, 0.0))
    return Scan(
        list(known.values()),
        [task_id for task_id in due if is_text(task_id, "due id")],
        {task_id: owner_of(fence) for task_id, fence in owned if is_text(task_id, "owned id")},
        tuple(problems),
    )


def record_of(
    fence: Any, snapshot: Any, message: Any = None, value: Any = None, due: Any = None, inbox: Any = None
) -> Record:
    """Return the record of a row.  Raises ValueError or TypeError if the row is not a record."""
    for text in (fence, snapshot, message, value, inbox):
        if not (text is None or isinstance(text, str)):
            raise TypeError(f"{text[:20]!r} is not text")
    return Record(Fence.loads(fence), snapshot, message, value, None if due is None else float(due), inbox)
