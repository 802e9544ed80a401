"""Whether the owner of a record can still be at work, and what became of it if not."""

from __future__ import annotations

from collections.abc import Iterable

from celery_continuations.process.identity import is_gone
from celery_continuations.protocol.rules import Death
from celery_continuations.stores import Lease

__all__ = ["death_of"]


def death_of(owner: str, leases: Iterable[Lease], *, by_lease: bool = True) -> str | None:
    """Return what became of an owner, see :class:`Death`; None while it may be at work.

    Args:
        owner: of a record.
        leases: as the store knows them.
        by_lease: whether a lease that is over proves a death.  It does not for a worker that could
            not reach the store itself of late: it would take the tasks of all the others.
    """
    worker = owner.partition("/")[0]
    if not worker:
        return Death.CRASHED  # something else than a worker runs tasks here, and renews no lease
    lease = next((one for one in leases if one.worker == worker), Lease(worker, 0.0))
    if is_gone(worker):
        return lease.note or Death.CRASHED
    if is_gone(owner):
        return Death.STOPPED if lease.note == Death.STOPPED else Death.CRASHED
    if by_lease and lease.left <= 0:
        return lease.note or Death.CRASHED
    return None
