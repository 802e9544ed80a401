"""The protocol: who may write what, and when.

Publishing may happen twice; claiming is what counts.  A message carries the generation *m*
that it continues, 0 when it is fresh; a record has a generation *g*, the number of its claims.
Each rule has a number, which docs/protocol.md explains and tests/model breaks in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from celery_continuations.core.snapshot import Snapshot
from celery_continuations.stores.base import CANCEL, ENDED, OWNED, PAUSE, UNCHANGED, Fence, Record, Status, Store

__all__ = [
    "PATIENCE",
    "Claim",
    "Death",
    "claim",
    "end",
    "finish",
    "interrupt",
    "patience",
    "recover",
    "release",
    "remind",
    "save",
    "wait",
]

#: Seconds after which an unclaimed message is looked for, and doubled each time.
PATIENCE = 10.0

# Looks that double it: up to more than a day.
_DOUBLINGS = 14


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


class Death:
    """What became of an owner that can no longer be at work.

    Its own crash counts towards ``continuation_max_crashes``; a shared one only as a tenth, for another task
    may have brought the worker down; and that of a worker which was stopping not at all.
    """

    CRASHED = "crashed"
    SHARED = "shared"
    STOPPED = "stopping"


def patience(fence: Fence) -> float:
    """Return the seconds until the message of a queued record is looked for."""
    return PATIENCE * 2.0 ** min(int(fence.owner or 0), _DOUBLINGS)


def claim(
    store: Store,
    task_id: str,
    generation: int,
    owner: str,
    *,
    snapshot: str | None,
    message: Callable[[], str | None],
    ended: Callable[[Record | None], tuple[str, float] | None],
    death: Callable[[str], str | None],
) -> Claim | None:
    """Take up the task of a message, or learn that the message is stale.

    Args:
        store: where the record is.
        task_id: the task.
        generation: that the message continues; 0 when it is fresh.
        owner: the claiming execution.
        snapshot: that the message carries.
        message: returns what is needed to publish the task again; written with a new record.
        ended: asks the result backend, given the record if there is one; returns the status that the record
            should have, and for how many seconds to keep it, or None.
        death: what became of an owner, see :class:`Death`; None while it may be at work.

    Returns:
        The claim, or None: then the message is to be ended without touching anything.
    """
    # The usual cases first, in one round trip: a fresh message without a record, and the
    # message that the record itself waits for.
    mine = Fence(generation + 1, Status.RUNNING, owner)
    if generation == 0:
        if store.swap(task_id, None, Record(mine, snapshot, message())):
            return Claim(mine, snapshot)
    else:
        taken = store.take(task_id, Fence(generation, Status.QUEUED), mine)
        if taken is not None:
            return Claim(mine, snapshot or taken.snapshot, taken.value or None)
    while True:
        record = store.read(task_id)
        if record is None:
            # Rule 1: a message that continues a record which is gone is trusted, unless the task has ended.
            if generation and ended(None) is not None:
                return None
            if store.swap(task_id, None, Record(mine, snapshot, message())):
                return Claim(mine, snapshot)
            continue
        known = record.fence
        if known.wishing("").owner == owner:  # written by the first attempt, whose answer was lost
            return Claim(known, snapshot or record.snapshot, record.value or None)
        # Rule 2: what has ended, waits or is paused is not touched by a message.
        if known.status in ENDED:
            if known.status == Status.PAUSED and record.message is None:
                # Paused before it came: from here on the record has what is needed to publish it. Who resumes it just
                # now has nothing to publish; the fence lets one of the two be first, and the other look again.
                kept = Fence(known.generation, Status.PAUSED, "kept")
                if not store.swap(task_id, known, Record(kept, message=message())):
                    continue
            return None
        # Rule 3: a message older than the last claim's is stale.
        if generation < known.generation - 1 or (generation < known.generation and known.status not in OWNED):
            return None
        dead = None
        if generation == known.generation - 1 and known.owner:
            # Rule 4: the second delivery of what a live owner works on ends; should that die, the sweep has it.
            dead = death(known.owner)
            if dead is None or known.wish:
                return None
            # Rule 5: before a dead owner is succeeded the result backend is asked; only the last write may be missing.
            result = ended(record)
            if result is not None:
                end(store, task_id, known, result[0], None, result[1])
                return None
        # Rule 6: each claim has a generation of its own, and an owner.
        mine = Fence(max(known.generation, generation) + 1, Status.RUNNING, owner).wishing(known.wish)
        # Rule 7: a message of the record's own generation was made after the record's last save.
        newest = snapshot if snapshot and generation >= known.generation else record.snapshot or snapshot
        if dead is not None:
            _with_loss(newest, dead)  # raises for what cannot be read, before anything is changed
            if store.swap(task_id, known, Record(mine)):
                counted = _count_loss(store, task_id, mine, dead)
                if counted is not None:
                    return Claim(mine, counted, record.value or None, lost=True)
            continue  # also where another execution has it by now
        text = message() if record.message is None else None  # the record is older than the task's first message
        if store.swap(task_id, known, Record(mine, newest, text)):
            return Claim(mine, newest, record.value or None)


def save(
    store: Store, task_id: str, fence: Fence, snapshot: str, message: Callable[[], str | None] = lambda: None
) -> Fence | None:
    """Save progress; None when another execution has taken over.

    Returns:
        The fence, with the command that may have been added to it.

    Args:
        store: where the record is.
        task_id: the task.
        fence: of the execution's claim.
        snapshot: the progress.
        message: see :func:`claim`.
    """
    # Rule 8: nobody writes but the owner, in its own generation. Here and below, swap holds it.
    while not store.swap(task_id, fence, Record(fence, snapshot)):
        found = store.read(task_id)
        if found is None:
            # Rule 14: a record that is gone was lost by its store, and not taken by another execution.
            return fence if store.swap(task_id, None, Record(fence, snapshot, message())) else None
        # Rule 15: a wish from outside does not take the record from its owner; nor does one that is taken back.
        if found.fence.wishing("") != fence.wishing(""):
            return None
        fence = found.fence
    return fence


def interrupt(
    store: Store, task_id: str, fence: Fence, snapshot: str, due_in: float, message: str | None = None
) -> Fence | None:
    """Save, and leave the task to the message of this generation, which the caller publishes.

    Returns:
        The fence of the record as it is now, or None when another execution has taken over.  Where it is not queued,
        nothing is to be published: it is paused, or still the execution's own, which is to cancel it.
    """
    queued = Record(Fence(fence.generation, Status.QUEUED), snapshot, message)
    return _leave(store, task_id, fence, queued, due_in + PATIENCE)


def wait(
    store: Store,
    task_id: str,
    fence: Fence,
    snapshot: str,
    due_in: float | None,
    is_there: Callable[[str | None], bool],
) -> Fence | None:
    """Save, and leave the task until a time or a delivery; see :func:`interrupt`.

    Args:
        store: where the record is.
        task_id: the task.
        fence: of the execution's claim.
        snapshot: the progress, with what it waits for.
        due_in: seconds from now when it goes on in any case, or None.
        is_there: whether what it waits for is in this inbox.
    """
    waiting = Record(Fence(fence.generation, Status.WAITING), snapshot)
    while True:
        found = store.read(task_id)
        if found is None:
            return Fence(fence.generation, Status.QUEUED)  # Rule 14: the message has all that is left
        inbox = found.inbox or ""
        # Rule 16: nobody waits for what is there. A delivery that comes just now changes the inbox, and the swap is
        # refused; one that comes later finds the record waiting.
        if is_there(inbox):
            return interrupt(store, task_id, fence, snapshot, 0.0)
        left = _leave(store, task_id, fence, waiting, due_in, inbox)
        if left is not None:
            return left
        found = store.read(task_id)
        if found is not None and found.fence.wishing("") != fence.wishing(""):
            return None


def release(store: Store, task_id: str, fence: Fence, snapshot: str | None) -> None:
    """Save, and let the message that was claimed with ``fence`` claim again."""
    # The generation stays, or that message's older snapshot would be taken for the newer. Due at once to
    # nobody: the sweep finds it should that message never come back.
    _leave(store, task_id, fence, Record(Fence(fence.generation, Status.RUNNING), snapshot), PATIENCE)


def finish(store: Store, task_id: str, fence: Fence, snapshot: str, value: str | None) -> Fence | None:
    """The body has returned; None when another execution has taken over."""
    # Rule 9: the value is kept before Celery passes it on, so that no user code runs again for it.
    # Who wishes to pause or to cancel it now is too late.
    finishing = fence.wishing("")._replace(status=Status.FINISHING)
    return _swap_own(store, task_id, fence, Record(finishing, snapshot, value=value), heeds_wishes=False)


def end(store: Store, task_id: str, fence: Fence, status: str, snapshot: str | None, expires_in: float) -> bool:
    """The result is stored: keep a tombstone, or the failed record, for ``expires_in`` seconds."""
    # Rule 10: a record that has ended stays, so that a late delivery ends too.
    ended = Fence(fence.generation, status)
    message = None if status == Status.FAILED else ""  # a failed task can be taken up again
    record = Record(ended, snapshot, message, "", inbox=None if status == Status.FAILED else "")
    return _swap_own(store, task_id, fence, record, expires_in=expires_in, heeds_wishes=False) is not None


def recover(
    store: Store,
    task_id: str,
    *,
    ended: Callable[[Record | None], tuple[str, float] | None],
    death: Callable[[str], str | None],
) -> Record | None:
    """Take a record from an owner that is dead, and leave it to a message.

    Args:
        store: where the record is.
        task_id: the task.
        ended: see :func:`claim`.
        death: see :func:`claim`.

    Returns:
        The record as it is now, for its message to be published, or, where it is not queued, to be cancelled; or None
        when there is nothing to do.
    """
    record = store.read(task_id)
    if record is None or record.fence.status not in OWNED or not record.fence.owner:
        return None
    known = record.fence
    dead = death(known.owner)
    if dead is None:
        return None
    # Rule 5, as in claim.
    result = ended(record)
    if result is not None:
        end(store, task_id, known, result[0], None, result[1])
        return None
    _with_loss(record.snapshot, dead)  # raises for what cannot be read, before anything is changed
    if known.wish == CANCEL:
        return record
    # Rule 11: of two sweepers one gets it, and only then is the message published.
    left = Fence(known.generation, Status.PAUSED if known.wish == PAUSE else Status.QUEUED)
    due_in = None if known.wish == PAUSE else PATIENCE
    if not store.swap(task_id, known, Record(left), due_in=due_in):
        return None
    snapshot = _count_loss(store, task_id, left, dead)
    return None if known.wish == PAUSE else Record(left, snapshot, record.message, record.value)


def remind(store: Store, task_id: str, may_publish: Callable[[Record], bool]) -> Record | None:
    """Look for the message of a queued record that is past due; a killed worker may hold it.

    Returns:
        The record, for its message to be published again; or None when there is nothing to do, or
        when the message may still be in its queue.
    """
    record = store.read(task_id)
    if record is None or record.due is None:
        return None
    known = record.fence
    if known.status == Status.WAITING:
        # Rule 17: whoever waits goes on when it is time. Of the time and a delivery one gets it.
        queued = Fence(known.generation, Status.QUEUED)
        return record if store.swap(task_id, known, Record(queued), due_in=PATIENCE) else None
    # Rule 12: a released record whose message has not come back is queued.
    if known.status not in (Status.QUEUED, Status.RUNNING) or (known.status == Status.RUNNING and known.owner):
        return None
    # Rule 13: each look doubles the patience, and the count in the fence lets one of two sweepers have it.
    looks = int(known.owner or 0) + 1 if known.status == Status.QUEUED else 0
    queued = Fence(known.generation, Status.QUEUED, str(looks) if looks else "")
    if not store.swap(task_id, known, Record(queued), due_in=patience(queued)):
        return None
    return record if may_publish(record) else None


def _leave(
    store: Store,
    task_id: str,
    fence: Fence,
    record: Record,
    due_in: float | None,
    inbox: str | None = None,
) -> Fence | None:
    """Swap from an execution's own fence, unless somebody outside wishes something else."""
    while fence.wish != CANCEL:
        if fence.wish == PAUSE:
            paused = Record(Fence(fence.generation, Status.PAUSED), record.snapshot, record.message)
            left = _swap_own(store, task_id, fence, paused)
        else:
            left = _swap_own(store, task_id, fence, record, due_in=due_in, inbox=inbox)
        found = store.read(task_id) if left is None else None
        if found is None or found.fence.wishing("") != fence.wishing(""):
            return left
        if found.fence == fence and inbox is not None:
            return None  # the inbox is another one, to be looked at first
        fence = found.fence
    return fence


def _swap_own(
    store: Store,
    task_id: str,
    fence: Fence,
    record: Record,
    *,
    due_in: float | None = None,
    expires_in: float | None = None,
    inbox: str | None = None,
    heeds_wishes: bool = True,
) -> Fence | None:
    """Swap from ``fence``, or from what an own write, whose answer was lost, has made of it."""
    if store.swap(task_id, fence, record, due_in=due_in, expires_in=expires_in, inbox=inbox):
        return record.fence
    found = store.read(task_id)
    if found is None:  # Rule 14: there is nothing to take over from anybody
        return record.fence
    # A sweep leaves the same fence, and another snapshot.
    if found.fence == record.fence and record.snapshot in (None, found.snapshot):
        return record.fence
    same = found.fence._replace(status=fence.status)
    if not heeds_wishes:
        same, fence = same.wishing(""), fence.wishing("")
    is_ours = bool(fence.owner) and same == fence
    if is_ours and store.swap(task_id, found.fence, record, due_in=due_in, expires_in=expires_in, inbox=inbox):
        return record.fence
    return None


def _count_loss(store: Store, task_id: str, fence: Fence, death: str) -> str | None:
    """Count a loss in a record that was taken from a dead owner; return its snapshot."""
    # Rule 23: it is read again. An owner that was only slow may have saved until its record was taken.
    while True:
        found = store.read(task_id)
        # A look for its message, or a wish, changes the fence, and takes it from nobody.
        if found is None or (found.fence.generation, found.fence.status) != (fence.generation, fence.status):
            return None
        snapshot = _with_loss(found.snapshot, death)
        if store.swap(task_id, found.fence, Record(found.fence, snapshot), due_in=UNCHANGED):
            return snapshot


def _with_loss(text: str | None, death: str) -> str:
    snapshot = Snapshot() if text is None else Snapshot.loads(text)
    snapshot.lose(alone=death == Death.CRASHED, shared=death == Death.SHARED)
    return snapshot.dumps()
