"""Whether a record's owner may still be running its task; if not, why the execution was lost."""

from __future__ import annotations

import enum
from collections.abc import Iterable

from celery_continuations.process.identity import is_gone
from celery_continuations.stores import Lease

__all__ = ["Loss", "loss_of"]


class Loss(str, enum.Enum):
    """Why an execution was lost; a worker notes it on its lease for the sweep that finds it dead."""

    #: It counts towards ``continuation_max_crashes``.
    CRASH = "crashed"
    #: It counts as a tenth of a crash: another task may have crashed the worker.
    SUSPECTED_CRASH = "shared"
    #: The worker was stopping: it does not count.
    STOP = "stopping"


_BY_NOTE = {"": Loss.CRASH, **{loss.value: loss for loss in Loss}}


def loss_of(owner: str, leases: Iterable[Lease], *, by_lease: bool = True) -> Loss | None:
    """Return why an owner's execution was lost; None while the owner may be running it.

    Args:
        owner: the owner of a record.
        leases: the leases in the store.
        by_lease: whether an expired lease proves that its worker is dead.  False for a sweeping worker that itself
            could not reach the store recently: it would take the tasks of all other workers.
    """
    worker = owner.partition("/")[0]
    if not worker:
        return Loss.CRASH  # a task run outside of a worker, without a lease
    lease = next((one for one in leases if one.worker == worker), Lease(worker, 0.0))
    if is_gone(worker):
        return _noted(lease)
    if is_gone(owner):
        return Loss.STOP if lease.note == Loss.STOP else Loss.CRASH
    if by_lease and lease.left <= 0:
        return _noted(lease)
    return None


def _noted(lease: Lease) -> Loss:
    return _BY_NOTE.get(lease.note, Loss.STOP)
