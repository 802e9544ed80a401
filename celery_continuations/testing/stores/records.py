"""Writing, reading and listing records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import partial

from celery_continuations.exceptions import StoreError
from celery_continuations.stores.base import NOT_CLAIMABLE, Command, Fence, Record, Status, Update
from celery_continuations.testing.stores.suite import (
    RUNNING,
    SOON,
    Suite,
    has_due,
    update_to,
)

#: Ids that a store may confuse with something else: paths, patterns, its own names, or each other.
ODD = (
    "0f3c10e2-1111-4222-8333-444455556666", "case", "CASE", "Case", ".", "..", "../../etc/passwd", "/", "a/b", "a:b",
    "a", "a ", " a", "a b\n", "a%3Ab", "a!b", "x!due", "x.lock", "due", "leases", "owned:worker", "*", "?", "[a]",
    "%", "_", "'", '"; --', "\\", "{0}", "ключ/🗝", "é", "e\u0301", "x" * 255, "x" * 254 + "y", "🗝" * 255,
)  # fmt: skip

# Each differs from the first in one thing, sometimes hard to see.
FENCES = (
    RUNNING,
    RUNNING._replace(generation=2),
    RUNNING._replace(generation=11),
    RUNNING._replace(status=Status.RETURNED),
    RUNNING._replace(status=Status.QUEUED),
    RUNNING._replace(owner=""),
    RUNNING._replace(owner="worker/7/A"),
    RUNNING._replace(owner="worker/7/a "),
    RUNNING._replace(owner="worker/7/a b"),
    RUNNING._replace(owner="wörker/7/a"),
    RUNNING._replace(owner="worker/7/%"),
    RUNNING.with_command(Command.PAUSE),
    RUNNING.with_command(Command.CANCEL),
)


class Records(Suite):
    """Compare and swap, and all records."""

    def test_a_record_is_read_as_it_was_written(self) -> None:
        """All parts are read as written, with any characters."""
        assert self.store.read("id") is None
        texts: Sequence[str | None]
        for number, texts in enumerate(
            [(None, None, None), ("", "", ""), ('{"a": "ü🗝 \\u0000"}', "message\n", "[1]"), ("'; --", "%s", "\\x00")]
        ):
            record = _record(texts)
            assert self.store.compare_and_swap(str(number), None, update_to(record)) is True
            assert self._read(str(number)) == record

    def test_only_the_right_fence_writes(self) -> None:
        """A write succeeds only if the expected fence, or none, is in the store."""
        numbers = itertools.count()
        for found, expected in itertools.product((None, *FENCES), repeat=2):
            for write in (self._swap, self._take, self._remove):
                if write != self._swap and expected is None:
                    continue
                task_id = f"id{next(numbers)}"
                before = None if found is None else Record(found, "before", "message", "value")
                if before is not None:
                    assert self.store.compare_and_swap(task_id, None, update_to(before))
                after = write(task_id, expected, before)
                if found == expected:
                    assert self._read(task_id) == after
                else:
                    assert after is None, f"{write.__name__} expected {expected}, found {found}, and wrote"
                    assert self._read(task_id) == before

    def _swap(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        new = Record(Fence(5, Status.RUNNING, "other/1/b"), "after", "message2", "value2")
        return new if self.store.compare_and_swap(task_id, expected, update_to(new)) else None

    def _take(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        fence = Fence(5, Status.RUNNING, "other/1/b")
        assert expected is not None
        taken = self.store.take(task_id, expected, fence)
        if taken is None:
            return None
        assert before is not None
        assert (taken.fence, taken.snapshot, taken.value) == (fence, before.snapshot, before.value)
        return Record(fence, before.snapshot, before.message, before.value)

    def _remove(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        assert expected is not None
        removed = Update(expected, expires_in=0)
        if self.store.compare_and_swap(task_id, expected, removed):
            assert not self.store.compare_and_swap(task_id, expected, removed)
        return None

    def test_texts_that_are_not_given_stay(self) -> None:
        """None keeps a text; the empty text replaces it."""
        for number, given in enumerate(itertools.product((None, "", "new"), repeat=3)):
            task_id = str(number)
            self.store.compare_and_swap(task_id, None, Update(RUNNING, "snapshot", "message", "value"))
            assert self.store.compare_and_swap(task_id, RUNNING, update_to(_record(given)))
            old = ("snapshot", "message", "value")
            expected = [was if text is None else text for text, was in zip(given, old, strict=True)]
            assert self._read(task_id) == _record(expected)

    def test_a_big_snapshot(self) -> None:
        """A snapshot of 2 MB of multi-byte characters is kept."""
        text = json.dumps("ü🗝" * 350_000, ensure_ascii=False)
        assert self.store.compare_and_swap("id", None, Update(RUNNING, text))
        assert self._read("id") == Record(RUNNING, text)
        assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, text + " "))
        taken = self.store.take("id", RUNNING, RUNNING._replace(generation=2))
        assert taken is not None
        assert taken.snapshot == text + " "

    def test_odd_ids(self) -> None:
        """Each odd id has its own record."""
        for task_id in ODD:
            assert self.store.read(task_id) is None, f"{task_id!r} is taken for another one"
            assert self.store.compare_and_swap(task_id, None, Update(RUNNING, task_id, due_in=0))
        for task_id in ODD:
            record = self.store.read(task_id)
            assert record is not None
            assert record.snapshot == task_id
        self._await(partial(has_due, self.store, list(ODD)), "all of the odd ids are due")
        assert self.store.scan("worker").owned == dict.fromkeys(ODD, RUNNING.owner)
        assert {task_id: record.snapshot for task_id, record in self._records().items()} == {odd: odd for odd in ODD}
        for number, task_id in enumerate(ODD):
            assert self.store.compare_and_swap(task_id, RUNNING, Update(RUNNING, expires_in=0))
            assert sorted(self.store.scan("worker").owned) == sorted(ODD[number + 1 :])

    def test_all_records_are_listed(self) -> None:
        """Records of ended tasks are listed, but not expired or removed ones."""
        assert list(self.store.records()) == []
        for number, status in enumerate((Status.RUNNING, Status.RETURNED, Status.QUEUED, *sorted(NOT_CLAIMABLE))):
            self.store.compare_and_swap(f"bare {status}", None, Update(Fence(number, status, "w/1/a")))
            full = Record(Fence(number, status, "w/1/a"), "snapshot ü", "message", "value", inbox="inbox")
            self.store.compare_and_swap(f"full {status}", None, update_to(full, due_in=1000, expires_in=1000))
        self.store.compare_and_swap("delivered", None, Update(Fence(0, Status.QUEUED), inbox="inbox"))
        expected = {task_id: self._read(task_id) for task_id in self._records()}
        self.store.compare_and_swap("expired", None, Update(RUNNING, expires_in=SOON))
        self.store.compare_and_swap("removed", None, Update(RUNNING))
        self.store.compare_and_swap("removed", RUNNING, Update(RUNNING, expires_in=0))
        self.store.renew("worker", 1000)
        self._await(lambda: self.store.read("expired") is None, "the record expires")
        assert len(expected) == 2 * (3 + len(NOT_CLAIMABLE)) + 1
        assert self._records() == expected

    def test_many_records_are_listed(self) -> None:
        """Each record is listed once, even while others are written and removed."""
        expected = {f"id{number}": Record(RUNNING, str(number)) for number in range(self.many)}
        for task_id, record in expected.items():
            self.store.compare_and_swap(task_id, None, update_to(record))
        self._store_of("another").compare_and_swap("another", None, Update(RUNNING))
        assert self._records() == expected
        records = self.store.records()
        found = dict([next(records)])
        for number in range(50):
            self.store.compare_and_swap(f"new{number}", None, Update(RUNNING))
            self.store.compare_and_swap(f"id{number}", RUNNING, Update(RUNNING, expires_in=0))
        found.update(records)
        assert {f"id{number}" for number in range(50, self.many)} <= found.keys()
        assert found.keys() <= expected.keys() | {f"new{number}" for number in range(50)}

    def test_a_spoilt_record_is_listed_with_the_others(self) -> None:
        """A corrupt record is listed as the error that reading it raises."""
        for task_id in ("a", "ruined", "z"):
            self.store.compare_and_swap(task_id, None, Update(RUNNING, task_id, "message"))
        self.corrupt(self.store, "ruined")
        found = dict(self.store.records())
        problem = found.pop("ruined")
        assert isinstance(problem, StoreError)
        assert "ruined" in str(problem)
        assert found == {task_id: self.store.read(task_id) for task_id in ("a", "z")}


def _record(texts: Sequence[str | None]) -> Record:
    snapshot, message, value = texts
    return Record(RUNNING, snapshot, message, value)
