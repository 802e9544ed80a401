"""Records that cannot be read, and lost connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import Record, Update
from celery_continuations.testing.stores.suite import (
    RUNNING,
    Suite,
)


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

    def _assert_spoilt(self) -> None:
        problem = ""
        try:
            self.store.read("spoilt")
        except StoreError as exc:
            problem = str(exc)
        assert problem, "a spoilt record was read"
        assert "spoilt" in problem, "the error does not name the task"

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
