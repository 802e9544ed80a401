"""Records, leases, and the interface of a store.

A store has only a few primitives.  :mod:`celery_continuations.protocol` decides, for all stores, who may write what,
and when.

Every record has a *fencing token*, a ``Fence``.  ``compare_and_swap`` writes only if the token in the store is the one
that the writer knows, so that a superseded execution cannot change the record.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.fence import OWNED, Command, Fence, Status, Tombstone, without_command

__all__ = [
    "NOT_CLAIMABLE",
    "OWNED",
    "TERMINAL",
    "Command",
    "Due",
    "Fence",
    "Lease",
    "Record",
    "Scan",
    "Status",
    "Store",
    "Tombstone",
    "Update",
    "without_command",
]


class Due(enum.Enum):
    """For the ``due_in`` of an :class:`Update`: the record stays due when it was."""

    UNCHANGED = "unchanged"


#: The task has ended.
TERMINAL = frozenset((Status.DONE, Status.FAILED, Status.CANCELLED))

#: A message with such a record ends without touching anything.
NOT_CLAIMABLE = TERMINAL | {Status.WAITING, Status.PAUSED}

#: How many due records one sweep handles.
LIMIT = 100

# A hundred years, in seconds. Redis refuses much longer ones.
_FOREVER = 100 * 365 * 86400.0


@dataclass(frozen=True)
class Record:
    """A snapshot in a store, with its owner.

    Attributes:
        fence: the fencing token.
        snapshot: the snapshot's JSON text, or None if there is none yet.
        message: the saved message, opaque; written once.
        value: the encoded return value, once the body has returned; ``""`` once the result is stored.
        inbox: what was delivered to the task, opaque; None or ``""`` if nothing was.
        due: when a sweep must handle the record, by the store's clock, in seconds since the epoch; None for never.
    """

    fence: Fence
    snapshot: str | None = None
    message: str | None = None
    value: str | None = None
    due: float | None = None
    inbox: str | None = None


# What an update says but for its fencing token and snapshot, in a save.
_NOTHING_ELSE = (None,) * 6


@dataclass(frozen=True)
class Update:
    """What one write changes in a record.

    Attributes:
        fence: the new fencing token.
        snapshot: the new text; None keeps the old one, also in the next three.
        message: the new text.
        value: the new text.
        inbox: the new text.
        due_in: seconds until the record becomes due; None for never, ``Due.UNCHANGED`` to keep the due time.
        expires_in: seconds after which the record may be forgotten; 0 removes it, None keeps it forever.
        expected_inbox: write only if the record has this inbox, ``""`` for an empty one; None to ignore the inbox.
    """

    fence: Fence
    snapshot: str | None = None
    message: str | None = None
    value: str | None = None
    inbox: str | None = None
    due_in: float | Due | None = None
    expires_in: float | None = None
    expected_inbox: str | None = None

    @property
    def is_save(self) -> bool:
        """Whether it changes nothing but the snapshot, and the fencing token."""
        others = (self.message, self.value, self.inbox, self.due_in, self.expires_in, self.expected_inbox)
        return self.snapshot is not None and others == _NOTHING_ELSE

    def fits(self, found: Record | None, expected: Fence | None) -> bool:
        """Whether the record in the store is the one that the writer expects."""
        if (found.fence if found else None) != expected:
            return False
        return self.expected_inbox is None or ((found.inbox if found else None) or "") == self.expected_inbox

    def applied_to(self, found: Record | None, now: float) -> Record:
        """Return the updated record; ``now`` is by the store's clock."""
        record = found or Record(self.fence)
        return replace(
            record,
            fence=self.fence,
            snapshot=record.snapshot if self.snapshot is None else self.snapshot,
            message=record.message if self.message is None else self.message,
            value=record.value if self.value is None else self.value,
            inbox=record.inbox if self.inbox is None else self.inbox,
            due=self._due(record, now),
        )

    def _due(self, record: Record, now: float) -> float | None:
        if self.due_in is Due.UNCHANGED:
            return record.due
        return None if self.due_in is None else now + self.due_in

    @property
    def lasts(self) -> float | None:
        """``expires_in``, with None for times that no store can tell from forever."""
        return None if self.expires_in is None or self.expires_in > _FOREVER else self.expires_in

    def expires(self, now: float) -> float | None:
        """Return the time when the record expires: 0 for a removed record, None for never."""
        return self.lasts and now + self.lasts


class Lease(NamedTuple):
    """For how long a worker's ownership of its records remains valid.

    Attributes:
        worker: the worker's id.
        left: the remaining seconds, by the store's clock; 0 or less once expired.
        note: the worker's last note, for the sweep that finds it dead; one word or ``""``.
    """

    worker: str
    left: float
    note: str = ""


class Scan(NamedTuple):
    """The read that a sweep begins with.

    Attributes:
        leases: the leases of all workers that have not been retired.
        due: ids of records whose due time has passed, the earliest first.
        owned: the owner, without a pending command, of each record that the given worker's executions own, by task
            id.
        problems: sentences about entries that cannot be read, which the rest does not have.
    """

    leases: list[Lease]
    due: list[str]
    owned: dict[str, str]
    problems: tuple[str, ...] = ()


class Store(abc.ABC):
    """The interface of a store.  All times are in seconds, by the store's own clock.

    Every method raises StoreError when the store cannot be reached, or contains something that is not a record.  No
    method waits longer than its driver does.
    """

    #: False for a store that keeps nothing, so that nothing is saved while a task is running.
    keeps = True

    # -- records

    @abc.abstractmethod
    def read(self, task_id: str) -> Record | None:
        """Return the record, or None if there is none."""

    @abc.abstractmethod
    def compare_and_swap(self, task_id: str, expected: Fence | None, update: Update) -> bool:
        """Apply ``update`` atomically if the record in the store has the fencing token ``expected``.

        Args:
            task_id: the task of the record.
            expected: the expected token; None to write only a new record.
            update: what to write.

        Returns:
            Whether it was written.
        """

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        """Write only a new fencing token; return the new record, possibly without its message, or None if refused.

        Override it if the store can do it in one round trip.
        """
        if not self.compare_and_swap(task_id, expected, Update(fence)):
            return None
        record = self.read(task_id)
        # another execution may have superseded this one since
        return record if record is not None and record.fence == fence else None

    @abc.abstractmethod
    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record with its task's id, including those of ended tasks, in any order.

        For operators only, because it reads all records; running tasks does not use it.  A record that is written
        meanwhile may be missing, or be its old or new version.  A record that cannot be read is replaced by its
        StoreError.
        """

    # -- workers

    @abc.abstractmethod
    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """Renew the worker's lease for ``seconds`` from now."""

    @abc.abstractmethod
    def retire(self, worker: str) -> None:
        """Delete a worker's lease, unless the worker still owns a record."""

    @abc.abstractmethod
    def scan(self, worker: str = "", limit: int = LIMIT) -> Scan:
        """Return what a sweep begins with, at a cost that does not depend on the number of records.

        The leases include every worker that owns a record, even if it has never renewed a lease.  An entry that cannot
        be read never hides the others: such a lease has expired (:func:`lease_of`), or is named in ``problems``, as is
        an id that is not text.  A record that cannot be read may be due: the sweep reads it, and reports it.

        Args:
            worker: the worker whose own records are returned as well.
            limit: the maximum number of due records.
        """

    def check(self) -> None:
        """Check that the store can work as it is configured, when a worker starts; override it if that can be known.

        Raises:
            UnusableStoreError: when it never will.
            StoreError: when it cannot be reached now.
        """
        self.scan(limit=0)

    def within(self, connection: Any) -> Store:
        """Return a store whose ``read`` and ``compare_and_swap`` run on the caller's connection, in its transaction.

        They neither commit nor roll back.  Their StoreError has the driver's error as its cause.

        Args:
            connection: a PEP 249 connection of the driver.

        Raises:
            StoreError: when this store is not in a database, or in another kind of database.
        """
        raise StoreError(
            type(self).__name__,
            "transaction= needs a continuation_store in the database of the transaction: 'django', or a "
            "db+postgresql:// or db+sqlite:/// URL; this store is not in a database",
        )

    def close(self) -> None:
        """Close connections and files."""
