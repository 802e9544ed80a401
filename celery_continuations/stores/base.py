"""What a record is, what a lease is, and what a store does with them.

A store is a few primitives.  What is written when, and who may, is decided in
:mod:`celery_continuations.protocol.rules`, once, for all of them.

Every record has a *fence*: generation, status and owner.  ``swap`` writes only if
the fence in the store is the one the writer knows, so that an execution which has
been succeeded by another changes nothing any more.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from celery_continuations.exceptions import StoreError

__all__ = [
    "CANCEL",
    "ENDED",
    "OWNED",
    "PAUSE",
    "UNCHANGED",
    "Fence",
    "Lease",
    "Look",
    "Record",
    "Status",
    "Store",
    "due_at",
    "each",
    "fits",
    "merge",
]

#: For ``due_in``: the record stays due when it was.
UNCHANGED = -1.0


class Status:
    """The statuses of a record."""

    RUNNING = "running"
    QUEUED = "queued"
    WAITING = "waiting"
    PAUSED = "paused"
    FINISHING = "finishing"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DONE = "done"


#: A message that finds one of these ends without touching anything.
ENDED = frozenset((Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED, Status.WAITING))

#: An execution is at work on these.
OWNED = frozenset((Status.RUNNING, Status.FINISHING))

#: The commands: to stop until it is resumed; and to end.
PAUSE, CANCEL = "pause", "cancel"

#: How many due records a sweep looks at, one sweep after the other.
LIMIT = 100

_PARTS_OF_OWNER = 3

_KNOWN = frozenset(value for name, value in vars(Status).items() if not name.startswith("_"))


class Fence(NamedTuple):
    """Who may write: the generation, the status and the owner that the writer knows.

    The owner is an execution, ``worker/process/execution``; ``""`` where no execution works on the
    record.  Of a queued record it is how often its message has been looked for.  A wish from outside
    is a fourth part of the owner: the execution finds it at its next save, which is refused.

    >>> Fence(2, "running", "worker/7/a").dumps()
    '2 running worker/7/a'
    >>> Fence.loads("2 running worker/7/a").worker
    'worker'
    >>> Fence(2, "running", "worker/7/a").wishing(PAUSE).wish
    'pause'
    """

    generation: int
    status: str
    owner: str = ""

    @property
    def wish(self) -> str:
        """The pending command to the execution that owns the record: one of the two, or ``""``."""
        return "".join(self.owner.split("/")[_PARTS_OF_OWNER:]) if self.status in OWNED else ""

    def wishing(self, wish: str) -> Fence:
        """Return the fence with another wish, ``""`` for none."""
        parts = self.owner.split("/")[:_PARTS_OF_OWNER]
        return self._replace(owner="/".join([*parts, wish] if wish else parts))

    @property
    def worker(self) -> str:
        """The worker whose execution owns the record, or ``""``."""
        return self.owner.partition("/")[0] if self.status in OWNED else ""

    def dumps(self) -> str:
        """Write it as one line."""
        return f"{self.generation} {self.status} {self.owner}"

    @classmethod
    def loads(cls, text: str) -> Fence:
        """Read what :meth:`dumps` wrote.  Raises ValueError for anything else."""
        generation, status, owner = text.split(" ", 2)
        if status not in _KNOWN:
            raise ValueError(f"unknown status {status!r}")
        return cls(int(generation), status, owner)


@dataclass(frozen=True)
class Record:
    """A snapshot in a store, with who owns it.

    Attributes:
        fence: generation, status, owner.
        snapshot: the snapshot's JSON text, or None where there is none yet.
        message: what is needed to publish the task again, opaque; written once.
        value: the encoded return value, from ``finishing`` on; ``""`` once the result is stored.
        inbox: what was delivered to the task, opaque; None or ``""`` where nothing was.
        due: the time by the store's clock, in seconds since the epoch, from which on something
            is to be done; None for never.  Only read: ``swap`` is told how far away it is.
    """

    fence: Fence
    snapshot: str | None = None
    message: str | None = None
    value: str | None = None
    due: float | None = None
    inbox: str | None = None


class Lease(NamedTuple):
    """For how long a worker's ownership of its records still counts.

    Attributes:
        worker: its id.
        left: seconds by the store's clock; 0 or less once it is over.
        note: what the worker last said of itself, for the sweep that finds it dead; one word or ``""``.
    """

    worker: str
    left: float
    note: str = ""


class Look(NamedTuple):
    """What a sweep looks at.

    Attributes:
        leases: of every worker that has not been retired.
        due: ids of records whose due time has passed, the longest past first.
        owned: the records of the asking worker, see :meth:`Store.owned`.
    """

    leases: list[Lease]
    due: list[str]
    owned: dict[str, str]


def each(task_ids: Iterable[str], read: Callable[[str], Record | None]) -> Iterator[tuple[str, Record | StoreError]]:
    """Read them one by one, for :meth:`Store.records`."""
    for task_id in task_ids:
        found: Record | StoreError | None
        try:
            found = read(task_id)
        except StoreError as exc:
            found = exc
        if found is not None:
            yield task_id, found


def merge(found: Record | None, record: Record, due: float | None) -> Record:
    """Lay ``record`` over ``found``, as :meth:`Store.swap` does; texts that are None stay as they were."""
    if found is None:
        return replace(record, due=due)
    return replace(
        found,
        fence=record.fence,
        due=due,
        snapshot=found.snapshot if record.snapshot is None else record.snapshot,
        message=found.message if record.message is None else record.message,
        value=found.value if record.value is None else record.value,
        inbox=found.inbox if record.inbox is None else record.inbox,
    )


def due_at(found: Record | None, due_in: float | None, now: float) -> float | None:
    """Return when the record becomes due: ``due_in`` see :meth:`Store.swap`, ``now`` by the store's clock."""
    if due_in == UNCHANGED:
        return found.due if found else None
    return None if due_in is None else now + due_in


def fits(found: Record | None, inbox: str | None) -> bool:
    """Whether the inbox is the one that is expected, see :meth:`Store.swap`."""
    return inbox is None or ((found.inbox if found else None) or "") == inbox


class Store(abc.ABC):
    """Where records live.  All times are in seconds, and by the store's own clock.

    Every method raises StoreError when the store cannot be reached, or holds something
    that is not a record; none of them waits for longer than its driver does.
    """

    #: False for a store that keeps nothing, so that nothing is saved while a task runs.
    keeps = True

    # -- records

    @abc.abstractmethod
    def read(self, task_id: str) -> Record | None:
        """Return the record, or None where there is none."""

    @abc.abstractmethod
    def swap(
        self,
        task_id: str,
        expected: Fence | None,
        record: Record,
        *,
        due_in: float | None = None,
        expires_in: float | None = None,
        inbox: str | None = None,
    ) -> bool:
        """Write ``record`` if the one in the store has the fence ``expected``; atomically.

        Args:
            task_id: whose record.
            expected: None to write only if there is no record.
            record: what to write.  Texts that are None are left as they are in the store; its
                ``due`` is not looked at.
            due_in: seconds from now when the record becomes due; None for never, :data:`UNCHANGED` to leave it.
            expires_in: seconds after which the record may be forgotten; None for never.
            inbox: write only if the record's inbox is this, ``""`` for an empty one; None where it does not matter.

        Returns:
            Whether it was written.
        """

    def take(self, task_id: str, expected: Fence, fence: Fence) -> Record | None:
        """Write only a new fence; return the record then, its message aside, or None if refused.

        A store that can do it in one round trip should.
        """
        if not self.swap(task_id, expected, Record(fence)):
            return None
        record = self.read(task_id)
        return record if record is not None and record.fence == fence else None  # it may have been succeeded by now

    @abc.abstractmethod
    def delete(self, task_id: str, expected: Fence) -> bool:
        """Remove the record if it has the fence ``expected``; return whether it did."""

    @abc.abstractmethod
    def records(self) -> Iterator[tuple[str, Record | StoreError]]:
        """Yield every record with its task's id, those that have ended too, in no order.

        For people, and never part of running a task: it reads them all.  A record that is written meanwhile may be
        missed, or come as it was or as it is.  In the place of one that cannot be read comes the StoreError.
        """

    # -- workers

    @abc.abstractmethod
    def renew(self, worker: str, seconds: float, note: str = "") -> None:
        """Let the worker's ownership of its records count for so many seconds from now."""

    @abc.abstractmethod
    def retire(self, worker: str) -> None:
        """Forget the lease of a worker, unless it still owns a record."""

    @abc.abstractmethod
    def look(self, worker: str = "", limit: int = LIMIT) -> Look:
        """Return what a sweep has to look at; at a cost that does not depend on how many records there are.

        A worker that owns a record is among the leases also when it has never renewed one.

        Args:
            worker: whose own records to return as well.
            limit: how many due records to return at most.
        """

    @abc.abstractmethod
    def owned(self, worker: str) -> dict[str, str]:
        """Return the owner of each record that an execution of ``worker`` owns, by task id."""

    def within(self, connection: Any) -> Store:
        """Return a store of which ``read`` and ``swap`` run on the caller's connection, in its transaction.

        They neither commit nor roll back.  Their StoreError has the driver's error as its cause.

        Args:
            connection: a connection of the driver, as of PEP 249.

        Raises:
            StoreError: when this store is in no database, or in one of another kind.
        """
        raise StoreError(
            type(self).__name__,
            "transaction= needs a continuation_store in the database of the transaction: 'django', or a "
            "db+postgresql:// or db+sqlite:/// URL; this one is in none",
        )

    def close(self) -> None:
        """Give back connections and files."""
