"""The requirements of a store, as tests: run them on your own store."""

from __future__ import annotations

from celery_continuations.testing.stores.contention import Contention
from celery_continuations.testing.stores.failures import Failures
from celery_continuations.testing.stores.inboxes import Inboxes
from celery_continuations.testing.stores.records import Records
from celery_continuations.testing.stores.space import Space
from celery_continuations.testing.stores.times import Times
from celery_continuations.testing.stores.workers import Workers

__all__ = ["StoreConformance"]


class StoreConformance(Records, Times, Inboxes, Workers, Contention, Failures, Space):
    """The tests of a store; pytest runs them in a subclass whose ``make_store`` returns one.

    Tests whose hook is missing are skipped.  An autouse fixture of the subclass can request the fixtures that the hooks
    need.

    >>> from celery_continuations.stores.memory import MemoryStore
    >>> class TestMemoryStore(StoreConformance):
    ...     between_processes = False
    ...
    ...     def make_store(self, namespace):
    ...         return MemoryStore()
    >>> test = TestMemoryStore()
    >>> test.setup_method()
    >>> test.test_only_the_right_fence_writes()
    >>> test.teardown_method()
    """
