"""Records that cannot be read, and lost connections."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Fence, Record, Status, Update
from celery_continuations.testing.stores.suite import (
    PATIENCE,
    RUNNING,
    Suite,
    skip,
)


def _fork_until_closed(inward: int, outward: int) -> int:
    """Fork a child that waits until the pipe is closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork in a process with threads
        child = os.fork()
    if not child:
        os.close(outward)
        os.read(inward, 1)
        os._exit(0)
    return child


class Failures(Suite):
    """Problems are reported as StoreError."""

    def test_a_spoilt_record_is_named_and_kept(self) -> None:
        """A corrupt record is reported, and not treated as missing."""
        for task_id in ("spoilt", "sound"):
            self.store.compare_and_swap(task_id, None, Update(RUNNING, "text"))
        self.corrupt(self.store, "spoilt")
        self._assert_spoilt()
        other = RUNNING._replace(generation=2)
        writes: list[Callable[[], bool]] = [
            lambda: self.store.compare_and_swap("spoilt", None, Update(RUNNING, "new")),
            lambda: self.store.compare_and_swap("spoilt", other, Update(RUNNING, "new")),
            lambda: self.store.compare_and_swap("spoilt", other, Update(other, expires_in=0)),
        ]
        for write in writes:
            with suppress(StoreError):
                assert not write()
        self._assert_spoilt()
        assert self._read("sound") == Record(RUNNING, "text")

    def test_a_spoilt_record_hides_no_other(self) -> None:
        """Scans and lists contain every other record."""
        fence = Fence(1, Status.RUNNING, "w/1/a")
        for task_id in ("a", "spoilt", "z"):
            self.store.compare_and_swap(task_id, None, Update(fence, due_in=0))
        self.corrupt(self.store, "spoilt")
        self._await(lambda: {"a", "z"} <= set(self.store.scan().due), "all is due")
        found = self.store.scan("w")
        assert {"a": "w/1/a", "z": "w/1/a"}.items() <= found.owned.items()
        assert [lease.worker for lease in found.leases] == ["w"]
        listed = dict(self.store.records())
        assert isinstance(listed.pop("spoilt"), StoreError)
        assert set(listed) == {"a", "z"}

    def test_a_spoilt_lease_is_over_and_hides_no_other(self) -> None:
        """A lease that cannot be read does not protect its worker, until the worker renews it."""
        self.store.renew("sound", 1000, "note")
        self.store.compare_and_swap("id", None, Update(Fence(1, Status.RUNNING, "spoilt/1/a")))
        self.store.renew("spoilt", 1000)
        for _ in self.corrupt_lease(self.store, "spoilt"):
            found = {lease.worker: lease for lease in self.store.scan("spoilt").leases}
            assert sorted(found) == ["sound", "spoilt"]
            assert found["spoilt"].left <= 0
            assert found["sound"].left > 900
            assert found["sound"].note == "note"
        self.store.renew("spoilt", 1000)
        assert all(lease.left > 900 for lease in self.store.scan().leases)

    def _assert_spoilt(self) -> None:
        problem = ""
        try:
            self.store.read("spoilt")
        except StoreError as exc:
            problem = str(exc)
        assert problem, "a spoilt record was read"
        assert "spoilt" in problem, "the error does not name the task"

    def test_a_forked_child_keeps_nothing_locked(self) -> None:
        """Children forked while another thread writes do not block later writes."""
        if not self.between_processes or not hasattr(os, "fork"):
            skip("between_processes")
        fence, ends = RUNNING, threading.Event()
        self.store.compare_and_swap("id", None, Update(fence))

        def write() -> None:
            while not ends.is_set():
                self.store.compare_and_swap("id", fence, Update(fence, "text"))

        thread = threading.Thread(target=write)
        thread.start()
        inward, outward = os.pipe()
        children = [_fork_until_closed(inward, outward) for _ in range(20)]
        ends.set()
        thread.join(PATIENCE)
        try:
            assert not thread.is_alive(), "a write is blocked"
            assert self.store.compare_and_swap("id", fence, Update(fence, "later"))
        finally:
            os.close(outward)
            os.close(inward)
            for child in children:
                os.waitpid(child, 0)
            thread.join(PATIENCE)

    def test_a_lost_connection_is_made_anew(self) -> None:
        """After a lost connection one call may raise StoreError; the next one succeeds."""
        uses: list[Callable[[], object]] = [
            lambda: self.store.read("id"),
            lambda: self.store.compare_and_swap("id", RUNNING, Update(RUNNING, "again")),
            lambda: self.store.take("id", RUNNING, RUNNING),
            lambda: self.store.scan(),
            lambda: self.store.renew("w", 1000),
            lambda: list(self.store.records()),
        ]
        for number, use in enumerate(uses):
            task_id = f"id{number}"
            self.store.compare_and_swap("id", None, Update(RUNNING, "text"))
            assert self.store.compare_and_swap(task_id, None, Update(RUNNING, "text"))
            self.break_connection(self.store)
            try:
                use()
            except StoreError:
                use()
            assert self._read(task_id) == Record(RUNNING, "text")

    def test_no_connection_is_left_open(self) -> None:
        """No call leaves a connection open, whether it writes, is refused, or finds nothing."""
        self._use_all("first")
        before = self.connections(self.store)
        for turn in range(20):
            self._use_all(f"turn{turn}")
        assert self.connections(self.store) <= max(before, 1)

    def _use_all(self, task_id: str) -> None:
        store = self.store
        store.read(task_id)
        for _ in range(2):
            store.compare_and_swap(task_id, None, Update(RUNNING, "text", due_in=0))
        for generation in (9, 1):
            store.compare_and_swap(task_id, RUNNING._replace(generation=generation), Update(RUNNING))
            store.take(task_id, RUNNING._replace(generation=generation), RUNNING)
        store.renew("worker", 1000)
        store.scan("worker", 1)
        next(store.records())
        store.retire("worker")
        for _ in range(2):
            store.compare_and_swap(task_id, RUNNING, Update(RUNNING, expires_in=0))
