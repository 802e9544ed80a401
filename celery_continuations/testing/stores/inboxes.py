"""Deliveries to a task."""

from __future__ import annotations

from dataclasses import replace

from celery_continuations.stores.base import Due, Fence, Record, Status, Update
from celery_continuations.testing.stores.suite import (
    RUNNING,
    SOON,
    Suite,
    update_to,
)


class Inboxes(Suite):
    """The inbox is compared, written and kept."""

    def test_the_inbox_is_compared(self) -> None:
        """The inbox is compared exactly, together with the fence; a refused write changes nothing."""
        inbox = ""
        self.store.compare_and_swap("id", None, Update(RUNNING, "snapshot"))
        for new in ("one", "One", "one ", "ü🗝\n", "=", "%", "\\", "'", "{}", "0", ""):
            before = self._read("id")
            for wrong in ("one", "ONE", " ", "*", "null", "None", ""):
                if wrong != inbox:
                    assert not self.store.compare_and_swap(
                        "id", RUNNING, Update(RUNNING, "new", inbox="new", expected_inbox=wrong)
                    )
                    assert not self.store.compare_and_swap("id", RUNNING, Update(RUNNING, "new", expected_inbox=wrong))
            other = RUNNING._replace(generation=2)
            assert not self.store.compare_and_swap("id", other, Update(other, inbox="new", expected_inbox=inbox))
            assert not self.store.compare_and_swap("id", None, Update(RUNNING, inbox="new", expected_inbox=inbox))
            assert self._read("id") == before
            assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, inbox=new, expected_inbox=inbox))
            inbox = new
            assert self._read("id") == Record(RUNNING, "snapshot", inbox=inbox or None)

    def test_the_inbox_does_not_matter_where_none_is_expected(self) -> None:
        """Without an expected inbox, any inbox is replaced or kept."""
        self.store.compare_and_swap("id", None, Update(RUNNING, inbox="one"))
        assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, inbox="two"))
        assert self._read("id") == Record(RUNNING, inbox="two")
        assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, "snapshot", expected_inbox="two"))
        assert self._read("id") == Record(RUNNING, "snapshot", inbox="two")
        assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, inbox=""))
        assert self._read("id") == Record(RUNNING, "snapshot")

    def test_the_inbox_of_no_record_is_empty(self) -> None:
        """An expired or removed record counts as having an empty inbox."""
        for task_id in ("expired", "removed"):
            self.store.compare_and_swap(task_id, None, Update(RUNNING, inbox="old", expires_in=SOON))
        self.store.compare_and_swap("removed", RUNNING, Update(RUNNING, expires_in=0))
        self._await(lambda: self.store.read("expired") is None, "the record expires")
        for task_id in ("new", "expired", "removed"):
            for wrong in ("old", " "):
                assert not self.store.compare_and_swap(
                    task_id, None, Update(RUNNING, inbox="new", expected_inbox=wrong)
                )
            assert self.store.read(task_id) is None
            assert self.store.compare_and_swap(task_id, None, Update(RUNNING, expected_inbox=""))
            assert self._read(task_id) == Record(RUNNING)

    def test_the_inbox_stays_where_it_is_not_given(self) -> None:
        """Saves, other writes and ``take`` keep the inbox."""
        queued, two = Fence(1, Status.QUEUED), Fence(2, Status.RUNNING, "w/1/b")
        self.store.compare_and_swap("id", None, Update(queued, "snapshot", "message", "value", inbox="delivered"))
        assert self.store.take("id", queued, RUNNING)
        assert self._inbox("id") == "delivered"
        fence = RUNNING
        for new in (Record(RUNNING, "saved"), Record(RUNNING, None, "", ""), Record(two), Record(two, "s", "m", "v")):
            assert self.store.compare_and_swap("id", fence, update_to(new))
            fence = new.fence
            assert self._inbox("id") == "delivered"
        assert self.store.compare_and_swap("id", two, Update(two, "saved", due_in=0, expires_in=1000))
        assert self._read("id") == Record(two, "saved", "m", "v", self._due("id"), "delivered")

    def test_a_record_may_have_nothing_but_an_inbox(self) -> None:
        """A delivery before the task starts is kept, or expires, together with its record."""
        fence = Fence(0, Status.QUEUED)
        for task_id in ("expires", "swapped", "saved", "taken"):
            assert self.store.compare_and_swap(
                task_id, None, Update(fence, inbox="a", due_in=1000, expires_in=1000, expected_inbox="")
            )
            new = Record(fence, inbox="b")
            assert self.store.compare_and_swap(
                task_id, fence, update_to(new, due_in=Due.UNCHANGED, expires_in=1, expected_inbox="a")
            )
            assert self._read(task_id) == replace(new, due=self._due(task_id))
        assert self.store.compare_and_swap("swapped", fence, Update(RUNNING, expected_inbox="b"))
        assert self.store.compare_and_swap("saved", fence, Update(fence, "text"))
        taken = self.store.take("taken", fence, RUNNING)
        assert taken is not None
        assert (taken.fence, taken.snapshot, taken.value) == (RUNNING, None, None)
        self._await(lambda: self.store.read("expires") is None, "a record expires")
        assert self._read("swapped") == self._read("taken") == Record(RUNNING, inbox="b")
        assert self._read("saved") == Record(fence, "text", inbox="b")
