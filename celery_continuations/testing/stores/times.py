"""Due times and expiry of records."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from celery_continuations.stores.base import Due, Fence, Record, Status, Tombstone, Update
from celery_continuations.testing.stores.suite import (
    RUNNING,
    SOON,
    Suite,
    update_to,
)


class Times(Suite):
    """Due times and expiry, by the clock of the store."""

    def test_due_is_by_the_stores_clock_and_goes_with_the_next_write(self) -> None:
        """The due time is by the store's clock, and each write sets it again."""
        self.store.compare_and_swap("near", None, Update(RUNNING, due_in=100))
        self.store.compare_and_swap("far", None, Update(RUNNING, due_in=10_100))
        near, far = self._due("near"), self._due("far")
        assert near is not None
        assert far is not None
        assert 9_940 < far - near < 10_060
        assert abs(near - 100 - time.time()) < 3600, "the time is not in seconds since the epoch"
        assert self.store.compare_and_swap("far", RUNNING, Update(RUNNING, due_in=100))
        assert (self._due("far") or far) < near + 60
        assert self.store.compare_and_swap("near", RUNNING, Update(RUNNING))
        assert self._due("near") is None
        self.store.take("far", RUNNING, RUNNING)
        assert self._due("far") is None

    def test_a_scan_has_what_is_due_the_longest_past_first(self) -> None:
        """A scan returns the earliest due records, up to its limit."""
        for task_id, due_in in (
            ("c", 0.02),
            ("a", 0.0),
            ("e", 0.04),
            ("b", 0.01),
            ("d", 0.03),
            ("late", 1000),
            ("no", None),
        ):
            self.store.compare_and_swap(task_id, None, Update(RUNNING._replace(status=Status.QUEUED), due_in=due_in))
        self._await(lambda: len(self.store.scan().due) == 5, "five records are due")
        expected = sorted("abcde", key=lambda task_id: self._due(task_id) or 0.0)
        assert self.store.scan().due == expected
        assert self.store.scan(limit=2).due == expected[:2]

    def test_what_is_written_again_or_removed_is_no_longer_due(self) -> None:
        """A record that is written, taken or removed stops being due."""
        fence = Fence(1, Status.QUEUED)
        for task_id in ("swapped", "taken", "removed", "later", "stays"):
            self.store.compare_and_swap(task_id, None, Update(fence, due_in=0))
        self._await(lambda: len(self.store.scan().due) == 5, "five records are due")
        assert self.store.compare_and_swap("swapped", fence, Update(fence))
        assert self.store.take("taken", fence, RUNNING)
        assert self.store.compare_and_swap("removed", fence, Update(fence, expires_in=0))
        assert self.store.compare_and_swap("later", fence, Update(fence, due_in=1000))
        assert self.store.scan().due == ["stays"]

    def test_an_expired_record_is_none(self) -> None:
        """Every method treats an expired record as missing, and a new one inherits nothing from it."""
        fence = Fence(3, Status.DONE)
        self.store.compare_and_swap("read", None, Update(fence, "old", "old", "old", expires_in=SOON))
        self._await(lambda: self.store.read("read") is None, "the record expires")
        assert not self.store.compare_and_swap("read", fence, Update(fence, "new"))
        assert self.store.take("read", fence, RUNNING) is None
        assert not self.store.compare_and_swap("read", fence, Update(fence, expires_in=0))
        assert self.store.read("read") is None
        assert self.store.compare_and_swap("read", None, Update(RUNNING, None, "new"))
        assert self._read("read") == Record(RUNNING, None, "new")

    def test_a_record_that_is_to_expire_is_there(self) -> None:
        """Until it expires, the record is found and not replaced."""
        fence = Fence(3, Status.DONE)
        self.store.compare_and_swap("id", None, Update(fence, "kept", expires_in=1000))
        assert not self.store.compare_and_swap("id", None, Update(RUNNING, "late"))
        assert self._read("id") == Record(fence, "kept")

    def test_an_expired_record_is_not_due(self) -> None:
        """A scan does not return expired records."""
        for task_id, expires_in in (("expires", SOON), ("stays", None)):
            self.store.compare_and_swap(task_id, None, Update(Fence(3, Status.QUEUED), due_in=0, expires_in=expires_in))
        self._await(lambda: self.store.read("expires") is None, "the record expires")
        assert self.store.scan().due == ["stays"]

    def test_expiry_is_taken_back_by_the_next_write(self) -> None:
        """``compare_and_swap`` and ``take`` cancel the expiry."""
        fence = Fence(3, Status.FAILED)
        for task_id in ("swapped", "saved", "taken", "expires"):
            self.store.compare_and_swap(task_id, None, Update(fence, "text", expires_in=1))
        assert self.store.compare_and_swap("swapped", fence, Update(RUNNING))
        assert self.store.compare_and_swap("saved", fence, Update(fence, "text"))
        assert self.store.take("taken", fence, RUNNING)
        assert self.store.compare_and_swap("expires", fence, Update(fence, expires_in=1))
        self._await(lambda: self.store.read("expires") is None, "a record expires")
        for task_id in ("swapped", "saved", "taken"):
            assert self.store.read(task_id) is not None, task_id

    def test_a_tombstone_that_waits_for_its_message_is_kept_until_it_has_come(self) -> None:
        """A cancelled task's tombstone refuses claims, and expires once its message has ended at it."""
        for tombstone in Tombstone:
            task_id, waits = f"id {tombstone}", Fence(3, Status.CANCELLED, tombstone=tombstone)
            texts = ("text", "text", "text", "text")
            self.store.compare_and_swap(task_id, None, Update(Fence(3, Status.QUEUED), *texts, due_in=1000))
            cancelled = Update(waits, "", "", "", "", expires_in=SOON)
            assert self.store.compare_and_swap(task_id, Fence(3, Status.QUEUED), replace(cancelled, expires_in=1000))
            assert not self.store.compare_and_swap(task_id, Fence(3, Status.CANCELLED), cancelled)
            assert not self.store.compare_and_swap(task_id, None, Update(RUNNING))
            found = self.store.read(task_id)
            assert found is not None
            assert (found.fence, found.due) == (waits, None)
            assert self.store.compare_and_swap(task_id, waits, Update(Fence(3, Status.CANCELLED), expires_in=SOON)), (
                "the message has ended"
            )
            self._await(partial(self._is_gone, task_id), "the tombstone expires")

    def test_due_can_be_left_as_it_was(self) -> None:
        """``Due.UNCHANGED`` keeps the due time in every write."""
        queued = Fence(1, Status.QUEUED)
        for task_id, due_in in (("later", 1000), ("now", 0), ("never", None)):
            self.store.compare_and_swap(task_id, None, Update(queued, due_in=due_in))
        self._await(lambda: self.store.scan().due == ["now"], "a record is due")
        for task_id in ("later", "now", "never"):
            due = self._due(task_id)
            fence = queued
            for new in (
                Record(queued),
                Record(queued, "snapshot", "message", "value"),
                Record(queued, "saved"),
                Record(queued, inbox="delivered"),
                Record(RUNNING),
                Record(RUNNING, "saved"),
            ):
                assert self.store.compare_and_swap(task_id, fence, update_to(new, due_in=Due.UNCHANGED))
                assert self._due(task_id) == due, f"{task_id}: {new}"
                fence = new.fence
            assert self.store.scan().due == ["now"]
        assert not self.store.compare_and_swap("later", queued, Update(queued, due_in=Due.UNCHANGED))
        assert self.store.compare_and_swap("now", RUNNING, Update(RUNNING))
        assert self.store.scan().due == []

    def test_a_new_record_that_is_to_stay_due_never_is(self) -> None:
        """A new record is not due, even if an expired record was."""
        fence = Fence(3, Status.QUEUED)
        for task_id in ("unchanged", "none"):
            self.store.compare_and_swap(task_id, None, Update(fence, due_in=0, expires_in=SOON))
            self._await(partial(self._is_gone, task_id), "the record expires")
        assert self.store.compare_and_swap("unchanged", None, Update(fence, due_in=Due.UNCHANGED))
        assert self.store.compare_and_swap("none", None, Update(fence))
        assert self.store.compare_and_swap("new", None, Update(fence, due_in=Due.UNCHANGED))
        for task_id in ("unchanged", "none", "new"):
            assert self._due(task_id) is None
        assert self.store.scan().due == []

    def test_a_record_that_stays_due_may_expire(self) -> None:
        """The due time does not affect the expiry."""
        self.store.compare_and_swap("id", None, Update(RUNNING, due_in=1000))
        assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, due_in=Due.UNCHANGED, expires_in=SOON))
        self._await(lambda: self.store.read("id") is None, "the record expires")

    def test_a_removed_record_is_none_at_once(self) -> None:
        """The id of a removed record is free for another task, which inherits nothing."""
        for number, status in enumerate((Status.RUNNING, Status.QUEUED, Status.FAILED)):
            task_id, fence = f"id{number}", Fence(3, status, "w/1/a" if status == Status.RUNNING else "")
            self.store.compare_and_swap(task_id, None, Update(fence, "old", "old", "old", "old", due_in=0))
            assert not self.store.compare_and_swap(task_id, RUNNING, Update(RUNNING, expires_in=0))
            removed = Update(Fence(3, Status.DONE), "", "", "", "", expires_in=0)
            assert self.store.compare_and_swap(task_id, fence, removed)
            assert self.store.read(task_id) is None
            assert not self.store.compare_and_swap(task_id, removed.fence, removed)
            assert self.store.take(task_id, removed.fence, RUNNING) is None
            assert (self.store.scan("w").owned, self.store.scan().due) == ({}, [])
            assert list(self.store.records()) == []
            assert self.store.compare_and_swap(task_id, None, Update(RUNNING, expected_inbox=""))
            assert self._read(task_id) == Record(RUNNING)
            assert self.store.compare_and_swap(task_id, RUNNING, Update(RUNNING, expires_in=0))
