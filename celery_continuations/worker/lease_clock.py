"""Compare the leases in a store, whose clock may step, with this worker's own monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from celery_continuations.messages.requeue import CLAIM_COUNTDOWN
from celery_continuations.stores import Lease

__all__ = ["RENEWALS", "LeaseClock", "Reading"]

#: How many times a lease is renewed before it would expire.
RENEWALS = 4


class Reading(NamedTuple):
    """When a scan began, and until when this worker's lease was held then; both by ``time.monotonic``."""

    began: float
    held_until: float


class LeaseClock:
    """Decide which expired leases, and which proofs of a death, a sweep may act on.

    A lease proves a death only if it has also run out by this worker's own clock.  If the store's clock steps, or this
    machine was suspended, all leases seem to have expired, including those of living workers, and this worker's own.

    Args:
        worker: the id of this worker.
        lease: for how many seconds it renews its lease.

    >>> clock = LeaseClock("me", 10)
    >>> clock.renewed(time.monotonic())
    >>> [lease.left > 0 for lease in clock.judged([Lease("me", 10), Lease("other", -50)], clock.read())]
    [True, True]
    """

    def __init__(self, worker: str, lease: float) -> None:
        self._worker = worker
        self._lease = lease
        self._held_until = 0.0
        self._unseen_until = time.monotonic() + lease  # when the leases that the first scan finds expired have run out
        self._until: dict[str, float] = {}
        self._quiet_until = 0.0

    def renewed(self, at: float) -> None:
        """Note that this worker's lease was renewed by a write that began ``at`` this time."""
        self._held_until = at + self._lease
        self.answered()

    def unavailable(self) -> None:
        """Note that the store did not answer."""
        self._quiet_until = inf

    def answered(self) -> None:
        """Note that the store has answered."""
        if self._quiet_until == inf:
            self._quiet_until = time.monotonic() + self._lease + 2 * CLAIM_COUNTDOWN

    @property
    def trusts_proofs(self) -> bool:
        """Whether to recover the tasks of processes that have provably ended.

        Not after an outage of the store: a message may carry newer progress than the record, and may be due only some
        seconds later, because it could not be claimed during the outage.
        """
        return time.monotonic() >= self._quiet_until

    def read(self) -> Reading:
        """Return what :meth:`judged` needs from before a scan."""
        return Reading(time.monotonic(), self._held_until)

    def judged(self, leases: Iterable[Lease], before: Reading) -> list[Lease]:
        """Return the leases that a scan has found; those that have time left by this clock are not expired."""
        now = time.monotonic()
        found = list(leases)
        if not self._agrees(found, before, now):
            return [lease._replace(left=max(lease.left, self._lease)) for lease in found]
        until = {}
        for lease in found:
            known = self._until.get(lease.worker, self._unseen_until)
            until[lease.worker] = now + lease.left if lease.left > 0 else known
        self._until, self._unseen_until = until, now + self._lease
        return [lease._replace(left=max(lease.left, until[lease.worker] - now)) for lease in found]

    def _agrees(self, leases: list[Lease], before: Reading, now: float) -> bool:
        """Whether this worker's own lease has as much time left as it should, within a renewal interval."""
        own = next((lease for lease in leases if lease.worker == self._worker), None)
        if own is None:
            return False
        slack = self._lease / RENEWALS
        return before.held_until - now - slack <= own.left <= self._held_until - before.began + slack
