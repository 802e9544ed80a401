"""What a record is, and what a store does with it.

A store implements three primitives: :meth:`Store.read`, :meth:`Store.swap` and
:meth:`Store.delete`.  What to write when, and who may, is decided here, once.

Every record has a *fence*: generation, status and owner.  ``swap`` writes only if
the fence in the store is the one the writer knows, so that an execution which has
been succeeded by another changes nothing any more.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ENDED", "Claim", "Fence", "Record", "Status", "Store"]


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

_KNOWN = frozenset(value for name, value in vars(Status).items() if not name.startswith("_"))


class Fence(NamedTuple):
    """Who may write: the generation, the status and the owner that the writer knows.

    >>> Fence(2, "running", "worker@host/7").dumps()
    '2 running worker@host/7'
    >>> Fence.loads("2 running worker@host/7").generation
    2
    """

    generation: int
    status: str
    owner: str = ""

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
        value: the encoded return value, from ``finishing`` on.
        due: the time by the store's clock, in seconds since the epoch, from which on something
            is to be done; None for never.  Only read: ``swap`` is told how far away it is.
    """

    fence: Fence
    snapshot: str | None = None
    message: str | None = None
    value: str | None = None
    due: float | None = None


class Claim(NamedTuple):
    """An execution's right to run.

    Attributes:
        fence: to be shown at every write.
        snapshot: what to go on from, or None for a fresh start.
        value: the encoded return value of an execution that was lost after it had finished, or None.
        lost: whether the execution before this one did not come to its end.
    """

    fence: Fence
    snapshot: str | None
    value: str | None = None
    lost: bool = False


class Store(abc.ABC):
    """Where records live.  All times are in seconds.

    Every primitive raises StoreError when the store cannot be reached, or holds
    something that is no record; none of them waits for longer than its driver does.
    """

    #: False for a store that keeps nothing, so that nothing is saved while a task runs.
    keeps = True

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
    ) -> bool:
        """Write ``record`` if the one in the store has the fence ``expected``; atomically.

        Args:
            task_id: whose record.
            expected: None to write only if there is no record.
            record: what to write.  Texts that are None are left as they are in the store; its
                ``due`` is not looked at.
            due_in: seconds from now, by the store's clock, when the record becomes due; None for never.
            expires_in: seconds after which the record may be forgotten; None for never.

        Returns:
            Whether it was written.
        """

    @abc.abstractmethod
    def delete(self, task_id: str, expected: Fence) -> bool:
        """Remove the record if it has the fence ``expected``; return whether it did."""

    def close(self) -> None:
        """Give back connections and files."""

    # -- the protocol, on these primitives

    def claim(
        self,
        task_id: str,
        generation: int,
        owner: str,
        snapshot: str | None,
        is_finished: Callable[[], bool],
    ) -> Claim | None:
        """Take up the task of a message, or learn that the message is stale.

        Args:
            task_id: the task.
            generation: that the message continues; 0 when it is fresh.
            owner: the claiming execution.
            snapshot: that the message carries.
            is_finished: asks the result backend whether the task has ended; only called where
                the store has no record of a message that continues one.

        Returns:
            The claim, or None: then the message is to be ended without touching anything.
        """
        # The usual cases first, in one round trip: a fresh message without a record, and the
        # message that the record itself waits for.
        mine = Fence(generation + 1, Status.RUNNING, owner)
        expected = Fence(generation, Status.QUEUED) if generation else None
        if self.swap(task_id, expected, Record(mine, snapshot)):
            return Claim(mine, snapshot)
        while True:
            record = self.read(task_id)
            if record is None:
                if generation and is_finished():
                    return None
                if self.swap(task_id, None, Record(mine, snapshot)):
                    return Claim(mine, snapshot)
                continue
            known = record.fence
            if known.status in ENDED or not self._may_own(known, generation):
                return None
            mine = Fence(max(known.generation, generation) + 1, Status.RUNNING, owner)
            # A message of the record's own generation was made after the record's last save.
            newest = snapshot if snapshot and generation >= known.generation else record.snapshot or snapshot
            if self.swap(task_id, known, Record(mine, newest)):
                value = record.value if known.status == Status.FINISHING else None
                return Claim(mine, newest, value, lost=bool(known.owner))

    @staticmethod
    def _may_own(known: Fence, generation: int) -> bool:
        if generation >= known.generation:
            return True  # whoever published it had stopped working; or the store has lost data
        # A second delivery of what is running. Whether the owner still lives cannot be told without
        # leases, so the newer delivery goes on, and the older is refused at its next save.
        return generation == known.generation - 1 and known.status in (Status.RUNNING, Status.FINISHING)

    def save(self, task_id: str, fence: Fence, snapshot: str) -> bool:
        """Save progress; False when another execution has taken over."""
        return self.swap(task_id, fence, Record(fence, snapshot))

    def interrupt(self, task_id: str, fence: Fence, snapshot: str, due_in: float) -> bool:
        """Save, and leave the task to the message of this generation; False as of :meth:`save`."""
        queued = Fence(fence.generation, Status.QUEUED)
        return self.swap(task_id, fence, Record(queued, snapshot), due_in=due_in)

    def release(self, task_id: str, fence: Fence, snapshot: str) -> bool:
        """Save, and let the message that was claimed with ``fence`` claim again."""
        # The generation stays, or that message's older snapshot would be taken for the newer.
        return self.swap(task_id, fence, Record(Fence(fence.generation, Status.RUNNING), snapshot), due_in=0)

    def finish(self, task_id: str, fence: Fence, snapshot: str, value: str | None) -> Fence | None:
        """The body has returned; None when another execution has taken over."""
        finishing = fence._replace(status=Status.FINISHING)
        written = self.swap(task_id, fence, Record(finishing, snapshot, value=value))
        return finishing if written else None

    def end(self, task_id: str, fence: Fence, status: str, snapshot: str | None, expires_in: float) -> bool:
        """The result is stored: keep a tombstone, or the failed record, for ``expires_in`` seconds."""
        ended = Record(Fence(fence.generation, status), snapshot, value="")
        return self.swap(task_id, fence, ended, expires_in=expires_in)
