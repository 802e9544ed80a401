"""What every store has to do, as tests: run them on a store of your own."""

from __future__ import annotations

from celery_continuations.testing.stores.contention import Contention
from celery_continuations.testing.stores.failures import Failures
from celery_continuations.testing.stores.inboxes import Inboxes
from celery_continuations.testing.stores.records import Records
from celery_continuations.testing.stores.times import Times
from celery_continuations.testing.stores.workers import Workers

__all__ = ["StoreConformance"]


class StoreConformance(Records, Times, Inboxes, Workers, Contention, Failures):
    """The tests of a store; pytest runs them in a subclass that says how to make one.

    What a hook is missing for is skipped.  Fixtures that the hooks need can be asked for by an autouse
    fixture of the subclass.

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
