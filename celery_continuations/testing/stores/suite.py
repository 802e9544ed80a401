"""Shared by the tests of a store: its hooks, setup and teardown."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from celery_continuations.stores.base import Due, Fence, Record, Status, Store, Update

RUNNING = Fence(1, Status.RUNNING, "worker/7/a")

PATIENCE = 10.0
SOON = 0.05
THREADS = 8


class Suite:
    """The hooks of a store's tests, their setup and teardown."""

    #: False for a store that other processes cannot see.
    between_processes = True

    #: How many records are many; set fewer for a store with slow writes.
    many = 2500

    # -- hooks

    def make_store(self, namespace: str) -> Store:
        """Return a new store; stores with the same namespace share their records, except in-process ones."""
        raise NotImplementedError

    def corrupt(self, store: Store, task_id: str) -> None:
        """Corrupt the record, so that it can no longer be read."""
        skip("corrupt")

    def corrupt_lease(self, store: Store, worker: str) -> Iterator[None]:
        """Corrupt the worker's lease, in another way at each step."""
        skip("corrupt_lease")

    def break_connection(self, store: Store) -> None:
        """Close the store's connections from the other side, like a restarted server."""
        skip("break_connection")

    def connections(self, store: Store) -> int:
        """Return the number of connections, or files, that the store has open."""
        skip("connections")

    def entries(self, store: Store) -> int:
        """Return how many rows, keys or files hold records and what belongs to them, expired ones included.

        If the store removes expired ones only at intervals, the subclass makes these short.
        """
        skip("entries")

    def keys(self, store: Store) -> tuple[Sequence[str], Sequence[str]]:
        """Return the prefixes of the store's keys, by which access can be granted, and all keys of all stores."""
        skip("keys")

    # -- setup and teardown

    def setup_method(self) -> None:
        """Begin with a new namespace."""
        self._namespace = uuid.uuid4().hex
        self._made: dict[str, Store] = {}

    def teardown_method(self) -> None:
        """Close the stores of this test."""
        for store in self._made.values():
            store.close()

    @property
    def store(self) -> Store:
        """The store of this test."""
        return self._store_of("")

    def _store_of(self, suffix: str) -> Store:
        # made on first use: fixtures of a subclass run after setup_method
        if suffix not in self._made:
            self._made[suffix] = self.make_store(self._namespace + suffix)
        return self._made[suffix]

    # -- what the tests share

    def _read(self, task_id: str) -> Record | None:
        record = self.store.read(task_id)
        return record and plain(record)

    def _is_gone(self, task_id: str) -> bool:
        return self.store.read(task_id) is None

    def _records(self) -> dict[str, Record]:
        found = {}
        for task_id, record in self.store.records():
            assert isinstance(record, Record), record
            assert task_id not in found, f"{task_id!r} came twice"
            found[task_id] = plain(record)
        return found

    def _inbox(self, task_id: str) -> str:
        record = self.store.read(task_id)
        return (record and record.inbox) or ""

    def _due(self, task_id: str) -> float | None:
        record = self.store.read(task_id)
        assert record is not None
        return record.due

    def _assert_owned(self, **expected: dict[str, str]) -> None:
        for worker, records in expected.items():
            assert self.store.scan(worker).owned == records

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"not within {PATIENCE:.0f} s: {what}"
            time.sleep(0.005)

    def _in_threads(self, work: Callable[[int], None]) -> None:
        problems: list[BaseException] = []
        self.store.read("id")  # make the store before the threads start

        def run(number: int) -> None:
            try:
                work(number)
            except BaseException as exc:
                problems.append(exc)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]


def plain(record: Record) -> Record:
    """Return the record with None for an empty inbox, which may be read as "" or as None."""
    return replace(record, inbox=record.inbox or None)


def has_due(store: Store, ids: list[str]) -> bool:
    """Whether exactly these are due."""
    return sorted(store.scan().due) == sorted(ids)


def skip(hook: str) -> NoReturn:
    """Skip the test, which needs the hook."""
    import pytest

    pytest.skip(f"needs {hook}")


def update_to(
    record: Record,
    *,
    due_in: float | Due | None = None,
    expires_in: float | None = None,
    expected_inbox: str | None = None,
) -> Update:
    """Return the update that writes the record."""
    return Update(
        record.fence, record.snapshot, record.message, record.value, record.inbox, due_in, expires_in, expected_inbox
    )
