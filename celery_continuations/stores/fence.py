"""The fencing token of a record."""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["OWNED", "Command", "Fence", "Status", "Tombstone", "without_command"]


class _Text(str, enum.Enum):
    """An enum of texts, shown as they are stored."""

    __str__ = str.__str__


class Status(_Text):
    """The status of a record."""

    RUNNING = "running"
    QUEUED = "queued"
    WAITING = "waiting"
    PAUSED = "paused"
    #: The body has returned, and its value is saved.
    RETURNED = "finishing"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DONE = "done"


class Command(_Text):
    """A command to a running execution: stop until the task is resumed, or end."""

    PAUSE = "pause"
    CANCEL = "cancel"


class Tombstone(_Text):
    """What a cancelled task's record says of a message that may still come."""

    #: It is kept longer, until the message has ended at it.
    AWAITED = "awaited"
    #: Likewise; the message's worker also has to report the cancellation, for which the caller lacked the arguments.
    UNREPORTED = "unreported"


#: An execution owns the record.
OWNED = frozenset((Status.RUNNING, Status.RETURNED))

_PARTS_OF_OWNER = 3

_STATUSES = {status.value: status for status in Status}
_COMMANDS = {command.value: command for command in Command}
_TOMBSTONES = {tombstone.value: tombstone for tombstone in Tombstone}

# Written in the owner's place of a paused record whose message was saved after the pause.
_MESSAGE_SAVED = "kept"


class Fence(NamedTuple):
    """The fencing token: what a write must still find in the record.

    Attributes:
        generation: how many times the task was claimed.
        status: the status of the record.
        owner: the execution that runs the task, ``worker/process/execution``; ``""`` if there is none.
        command: the pending command to that execution; it makes the next save fail, which then finds the command.
        republished: how many times the message of a queued record was found overdue.
        message_saved: whether the message of a paused record was saved after the pause.
        tombstone: that the message of a cancelled record may still come; None once it has ended.

    >>> Fence(2, Status.RUNNING, "worker/7/a").dumps()
    '2 running worker/7/a'
    >>> Fence.loads("2 running worker/7/a").worker
    'worker'
    >>> Fence(2, Status.RUNNING, "worker/7/a", Command.PAUSE).dumps()
    '2 running worker/7/a/pause'
    >>> Fence.loads("3 queued 2").republished
    2
    >>> Fence(3, Status.CANCELLED, tombstone=Tombstone.AWAITED).dumps()
    '3 cancelled awaited'
    """

    generation: int
    status: Status
    owner: str = ""
    command: Command | None = None
    republished: int = 0
    message_saved: bool = False
    tombstone: Tombstone | None = None

    def with_command(self, command: Command | None) -> Fence:
        """Return the token with another pending command, or without one."""
        return self._replace(command=command)

    @property
    def worker(self) -> str:
        """The worker whose execution owns the record, or ``""``."""
        return self.owner.partition("/")[0] if self.status in OWNED else ""

    def dumps(self) -> str:
        """Return the token as one line."""
        place = self.owner
        if self.command is not None:
            place = f"{place}/{self.command}"
        elif self.republished:
            place = str(self.republished)
        elif self.message_saved:
            place = _MESSAGE_SAVED
        elif self.tombstone is not None:
            place = self.tombstone.value
        return f"{self.generation} {self.status.value} {place}"

    @classmethod
    def loads(cls, text: str) -> Fence:
        """Read what :meth:`dumps` wrote.  Raises ValueError for anything else."""
        generation, name, place = text.split(" ", 2)
        status = _STATUSES.get(name)
        if status is None:
            raise ValueError(f"unknown status {name!r}")
        number = int(generation)
        if status in OWNED:
            owner = without_command(place)
            return cls(number, status, owner, _command(place[len(owner) + 1 :]))
        if status == Status.QUEUED and place.isdecimal():
            return cls(number, status, republished=int(place))
        if status == Status.PAUSED and place == _MESSAGE_SAVED:
            return cls(number, status, message_saved=True)
        if status == Status.CANCELLED and place in _TOMBSTONES:
            return cls(number, status, tombstone=_TOMBSTONES[place])
        return cls(number, status, place)


def without_command(place: str) -> str:
    """Return the owner from the text of a fencing token, without a pending command.

    >>> without_command("worker/7/a/pause")
    'worker/7/a'
    """
    return "/".join(place.split("/")[:_PARTS_OF_OWNER])


def _command(name: str) -> Command | None:
    if name and name not in _COMMANDS:
        raise ValueError(f"unknown command {name!r}")
    return _COMMANDS.get(name)
