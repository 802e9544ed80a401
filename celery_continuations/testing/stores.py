"""What every store has to do, as tests: run them on a store of your own."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NoReturn

from celery_continuations.exceptions import StoreError
from celery_continuations.protocol import rules
from celery_continuations.stores.base import ENDED, UNCHANGED, Fence, Look, Record, Status, Store

__all__ = ["StoreConformance"]

_RUNNING = Fence(1, Status.RUNNING, "worker/7/a")

#: Ids that a store may take for something else: paths, patterns, names of its own, or one another.
ODD = (
    "0f3c10e2-1111-4222-8333-444455556666", "case", "CASE", "Case", ".", "..", "../../etc/passwd", "/", "a/b", "a:b",
    "a", "a ", " a", "a b\n", "a%3Ab", "a!b", "x!due", "x.lock", "due", "leases", "owned:worker", "*", "?", "[a]",
    "%", "_", "'", '"; --', "\\", "{0}", "ключ/🗝", "é", "e\u0301", "x" * 255, "x" * 254 + "y", "🗝" * 255,
)  # fmt: skip

# Each differs from the first in one thing, of which some are easily overlooked.
_FENCES = (
    _RUNNING,
    _RUNNING._replace(generation=2),
    _RUNNING._replace(generation=11),
    _RUNNING._replace(status=Status.FINISHING),
    _RUNNING._replace(status=Status.QUEUED),
    _RUNNING._replace(owner=""),
    _RUNNING._replace(owner="worker/7/A"),
    _RUNNING._replace(owner="worker/7/a "),
    _RUNNING._replace(owner="worker/7/a b"),
    _RUNNING._replace(owner="wörker/7/a"),
    _RUNNING._replace(owner="worker/7/%"),
)

_PATIENCE = 10.0
_SOON = 0.05
_THREADS = 8


class StoreConformance:
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

    #: False for a store that other processes do not see.
    between_processes = True

    #: How many records are many; fewer for a store that takes long to write one.
    many = 2500

    # -- hooks

    def make_store(self, namespace: str) -> Store:
        """Return a new store; those of one namespace share their records, but for a store of one process."""
        raise NotImplementedError

    def corrupt(self, store: Store, task_id: str) -> None:
        """Spoil the record, so that it can no longer be read."""
        _skip("corrupt")

    def break_connection(self, store: Store) -> None:
        """End the store's connections from the other side, as a server does that is restarted."""
        _skip("break_connection")

    def connections(self, store: Store) -> int:
        """Return how many connections, or files, the store has open."""
        _skip("connections")

    # -- around each test

    def setup_method(self) -> None:
        """Begin with a namespace that no other test has."""
        self._namespace = uuid.uuid4().hex
        self._made: dict[str, Store] = {}

    def teardown_method(self) -> None:
        """Close what was made."""
        for store in self._made.values():
            store.close()

    @property
    def store(self) -> Store:
        """The store of this test."""
        return self._store_of("")

    def _store_of(self, suffix: str) -> Store:
        # made when it is asked for: fixtures of a subclass come after setup_method
        if suffix not in self._made:
            self._made[suffix] = self.make_store(self._namespace + suffix)
        return self._made[suffix]

    # -- records

    def test_a_record_is_read_as_it_was_written(self) -> None:
        """All its parts, whatever characters are in them."""
        assert self.store.read("id") is None
        texts: Sequence[str | None]
        for number, texts in enumerate(
            [(None, None, None), ("", "", ""), ('{"a": "ü🗝 \\u0000"}', "message\n", "[1]"), ("'; --", "%s", "\\x00")]
        ):
            record = _record(texts)
            assert self.store.swap(str(number), None, record) is True
            assert self._read(str(number)) == record

    def test_only_the_right_fence_writes(self) -> None:
        """Of every two fences, and of none at all."""
        numbers = itertools.count()
        for found, expected in itertools.product((None, *_FENCES), repeat=2):
            for write in (self._swap, self._take, self._delete):
                if write != self._swap and expected is None:
                    continue
                task_id = f"id{next(numbers)}"
                before = None if found is None else Record(found, "before", "message", "value")
                if before is not None:
                    assert self.store.swap(task_id, None, before)
                after = write(task_id, expected, before)
                if found == expected:
                    assert self._read(task_id) == after
                else:
                    assert after is None, f"{write.__name__} expected {expected}, found {found}, and wrote"
                    assert self._read(task_id) == before

    def _swap(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        new = Record(Fence(5, Status.RUNNING, "other/1/b"), "after", "message2", "value2")
        return new if self.store.swap(task_id, expected, new) else None

    def _take(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        fence = Fence(5, Status.RUNNING, "other/1/b")
        assert expected is not None
        taken = self.store.take(task_id, expected, fence)
        if taken is None:
            return None
        assert before is not None
        assert (taken.fence, taken.snapshot, taken.value) == (fence, before.snapshot, before.value)
        return Record(fence, before.snapshot, before.message, before.value)

    def _delete(self, task_id: str, expected: Fence | None, before: Record | None) -> Record | None:
        assert expected is not None
        if self.store.delete(task_id, expected):
            assert not self.store.delete(task_id, expected)
        return None

    def test_texts_that_are_not_given_stay(self) -> None:
        """None is not the empty text."""
        for number, given in enumerate(itertools.product((None, "", "new"), repeat=3)):
            task_id = str(number)
            self.store.swap(task_id, None, Record(_RUNNING, "snapshot", "message", "value"))
            assert self.store.swap(task_id, _RUNNING, _record(given))
            old = ("snapshot", "message", "value")
            expected = [was if text is None else text for text, was in zip(given, old, strict=True)]
            assert self._read(task_id) == _record(expected)

    def test_a_big_snapshot(self) -> None:
        """2 MB of characters of several bytes."""
        text = json.dumps("ü🗝" * 350_000, ensure_ascii=False)
        assert self.store.swap("id", None, Record(_RUNNING, text))
        assert self._read("id") == Record(_RUNNING, text)
        assert self.store.swap("id", _RUNNING, Record(_RUNNING, text + " "))
        taken = self.store.take("id", _RUNNING, _RUNNING._replace(generation=2))
        assert taken is not None
        assert taken.snapshot == text + " "

    def test_odd_ids(self) -> None:
        """No id is another one, nor anything else."""
        for task_id in ODD:
            assert self.store.read(task_id) is None, f"{task_id!r} is taken for another one"
            assert self.store.swap(task_id, None, Record(_RUNNING, task_id), due_in=0)
        for task_id in ODD:
            record = self.store.read(task_id)
            assert record is not None
            assert record.snapshot == task_id
        self._await(partial(_has_due, self.store, list(ODD)), "all of the odd ids are due")
        assert self.store.owned("worker") == dict.fromkeys(ODD, _RUNNING.owner)
        assert {task_id: record.snapshot for task_id, record in self._records().items()} == {odd: odd for odd in ODD}
        for number, task_id in enumerate(ODD):
            assert self.store.delete(task_id, _RUNNING)
            assert sorted(self.store.owned("worker")) == sorted(ODD[number + 1 :])

    # -- times

    def test_due_is_by_the_stores_clock_and_goes_with_the_next_write(self) -> None:
        """A write says again when the record is due."""
        self.store.swap("near", None, Record(_RUNNING), due_in=100)
        self.store.swap("far", None, Record(_RUNNING), due_in=10_100)
        near, far = self._due("near"), self._due("far")
        assert near is not None
        assert far is not None
        assert 9_940 < far - near < 10_060
        assert abs(near - 100 - time.time()) < 3600, "the time is not in seconds since the epoch"
        assert self.store.swap("far", _RUNNING, Record(_RUNNING), due_in=100)
        assert (self._due("far") or far) < near + 60
        assert self.store.swap("near", _RUNNING, Record(_RUNNING))
        assert self._due("near") is None
        self.store.take("far", _RUNNING, _RUNNING)
        assert self._due("far") is None

    def test_look_has_what_is_due_the_longest_past_first(self) -> None:
        """And no more than it is asked for."""
        for task_id, due_in in (
            ("c", 0.02),
            ("a", 0.0),
            ("e", 0.04),
            ("b", 0.01),
            ("d", 0.03),
            ("late", 1000),
            ("no", None),
        ):
            self.store.swap(task_id, None, Record(_RUNNING._replace(status=Status.QUEUED)), due_in=due_in)
        self._await(lambda: len(self.store.look().due) == 5, "five records are due")
        expected = sorted("abcde", key=lambda task_id: self._due(task_id) or 0.0)
        assert self.store.look().due == expected
        assert self.store.look(limit=2).due == expected[:2]

    def test_what_is_written_again_or_deleted_is_no_longer_due(self) -> None:
        """Also what is taken."""
        fence = Fence(1, Status.QUEUED)
        for task_id in ("swapped", "taken", "deleted", "later", "stays"):
            self.store.swap(task_id, None, Record(fence), due_in=0)
        self._await(lambda: len(self.store.look().due) == 5, "five records are due")
        assert self.store.swap("swapped", fence, Record(fence))
        assert self.store.take("taken", fence, _RUNNING)
        assert self.store.delete("deleted", fence)
        assert self.store.swap("later", fence, Record(fence), due_in=1000)
        assert self.store.look().due == ["stays"]

    def test_an_expired_record_is_none(self) -> None:
        """To every method; and nothing of it is in the next one."""
        fence = Fence(3, Status.DONE)
        self.store.swap("read", None, Record(fence, "old", "old", "old"), expires_in=_SOON)
        self._await(lambda: self.store.read("read") is None, "the record expires")
        assert not self.store.swap("read", fence, Record(fence, "new"))
        assert self.store.take("read", fence, _RUNNING) is None
        assert not self.store.delete("read", fence)
        assert self.store.read("read") is None
        assert self.store.swap("read", None, Record(_RUNNING, None, "new"))
        assert self._read("read") == Record(_RUNNING, None, "new")

    def test_a_record_that_is_to_expire_is_there(self) -> None:
        """Until then a late message finds it, and nothing is written in its place."""
        fence = Fence(3, Status.DONE)
        self.store.swap("id", None, Record(fence, "kept"), expires_in=1000)
        assert not self.store.swap("id", None, Record(_RUNNING, "late"))
        assert self._read("id") == Record(fence, "kept")

    def test_an_expired_record_is_not_due(self) -> None:
        """There is nothing left to do."""
        for task_id, expires_in in (("expires", _SOON), ("stays", None)):
            self.store.swap(task_id, None, Record(Fence(3, Status.QUEUED)), due_in=0, expires_in=expires_in)
        self._await(lambda: self.store.read("expires") is None, "the record expires")
        assert self.store.look().due == ["stays"]

    def test_expiry_is_taken_back_by_the_next_write(self) -> None:
        """By a swap, and by a take."""
        fence = Fence(3, Status.FAILED)
        for task_id in ("swapped", "saved", "taken", "expires"):
            self.store.swap(task_id, None, Record(fence, "text"), expires_in=1)
        assert self.store.swap("swapped", fence, Record(_RUNNING))
        assert self.store.swap("saved", fence, Record(fence, "text"))
        assert self.store.take("taken", fence, _RUNNING)
        assert self.store.swap("expires", fence, Record(fence), expires_in=1)
        self._await(lambda: self.store.read("expires") is None, "a record expires")
        for task_id in ("swapped", "saved", "taken"):
            assert self.store.read(task_id) is not None, task_id

    def test_due_can_be_left_as_it_was(self) -> None:
        """Whatever else is written."""
        queued = Fence(1, Status.QUEUED)
        for task_id, due_in in (("later", 1000), ("now", 0), ("never", None)):
            self.store.swap(task_id, None, Record(queued), due_in=due_in)
        self._await(lambda: self.store.look().due == ["now"], "a record is due")
        for task_id in ("later", "now", "never"):
            due = self._due(task_id)
            fence = queued
            for new in (
                Record(queued),
                Record(queued, "snapshot", "message", "value"),
                Record(queued, "saved"),
                Record(queued, inbox="delivered"),
                Record(_RUNNING),
                Record(_RUNNING, "saved"),
            ):
                assert self.store.swap(task_id, fence, new, due_in=UNCHANGED)
                assert self._due(task_id) == due, f"{task_id}: {new}"
                fence = new.fence
            assert self.store.look().due == ["now"]
        assert not self.store.swap("later", queued, Record(queued), due_in=UNCHANGED)
        assert self.store.swap("now", _RUNNING, Record(_RUNNING))
        assert self.store.look().due == []

    def test_a_new_record_that_is_to_stay_due_never_is(self) -> None:
        """Not even when the one that has expired was."""
        fence = Fence(3, Status.QUEUED)
        for task_id in ("unchanged", "none"):
            self.store.swap(task_id, None, Record(fence), due_in=0, expires_in=_SOON)
            self._await(partial(self._is_gone, task_id), "the record expires")
        assert self.store.swap("unchanged", None, Record(fence), due_in=UNCHANGED)
        assert self.store.swap("none", None, Record(fence))
        assert self.store.swap("new", None, Record(fence), due_in=UNCHANGED)
        for task_id in ("unchanged", "none", "new"):
            assert self._due(task_id) is None
        assert self.store.look().due == []

    def test_a_record_that_stays_due_may_expire(self) -> None:
        """One time is not the other."""
        self.store.swap("id", None, Record(_RUNNING), due_in=1000)
        assert self.store.swap("id", _RUNNING, Record(_RUNNING), due_in=UNCHANGED, expires_in=_SOON)
        self._await(lambda: self.store.read("id") is None, "the record expires")

    # -- the inbox

    def test_the_inbox_is_compared(self) -> None:
        """Exactly, together with the fence; and what is refused writes nothing."""
        inbox = ""
        self.store.swap("id", None, Record(_RUNNING, "snapshot"))
        for new in ("one", "One", "one ", "ü🗝\n", "=", "%", "\\", "'", "{}", "0", ""):
            before = self._read("id")
            for wrong in ("one", "ONE", " ", "*", "null", "None", ""):
                if wrong != inbox:
                    assert not self.store.swap("id", _RUNNING, Record(_RUNNING, "new", inbox="new"), inbox=wrong)
                    assert not self.store.swap("id", _RUNNING, Record(_RUNNING, "new"), inbox=wrong)
            other = _RUNNING._replace(generation=2)
            assert not self.store.swap("id", other, Record(other, inbox="new"), inbox=inbox)
            assert not self.store.swap("id", None, Record(_RUNNING, inbox="new"), inbox=inbox)
            assert self._read("id") == before
            assert self.store.swap("id", _RUNNING, Record(_RUNNING, inbox=new), inbox=inbox)
            inbox = new
            assert self._read("id") == Record(_RUNNING, "snapshot", inbox=inbox or None)

    def test_the_inbox_does_not_matter_where_none_is_expected(self) -> None:
        """It is written, or stays."""
        self.store.swap("id", None, Record(_RUNNING, inbox="one"))
        assert self.store.swap("id", _RUNNING, Record(_RUNNING, inbox="two"))
        assert self._read("id") == Record(_RUNNING, inbox="two")
        assert self.store.swap("id", _RUNNING, Record(_RUNNING, "snapshot"), inbox="two")
        assert self._read("id") == Record(_RUNNING, "snapshot", inbox="two")
        assert self.store.swap("id", _RUNNING, Record(_RUNNING, inbox=""))
        assert self._read("id") == Record(_RUNNING, "snapshot")

    def test_the_inbox_of_no_record_is_empty(self) -> None:
        """Also where one with something in it has expired or was deleted."""
        for task_id in ("expired", "deleted"):
            self.store.swap(task_id, None, Record(_RUNNING, inbox="old"), expires_in=_SOON)
        self.store.delete("deleted", _RUNNING)
        self._await(lambda: self.store.read("expired") is None, "the record expires")
        for task_id in ("new", "expired", "deleted"):
            for wrong in ("old", " "):
                assert not self.store.swap(task_id, None, Record(_RUNNING, inbox="new"), inbox=wrong)
            assert self.store.read(task_id) is None
            assert self.store.swap(task_id, None, Record(_RUNNING), inbox="")
            assert self._read(task_id) == Record(_RUNNING)

    def test_the_inbox_stays_where_it_is_not_given(self) -> None:
        """In saves, in other writes, when the record is taken."""
        queued, two = Fence(1, Status.QUEUED), Fence(2, Status.RUNNING, "w/1/b")
        self.store.swap("id", None, Record(queued, "snapshot", "message", "value", inbox="delivered"))
        assert self.store.take("id", queued, _RUNNING)
        assert self._inbox("id") == "delivered"
        fence = _RUNNING
        for new in (Record(_RUNNING, "saved"), Record(_RUNNING, None, "", ""), Record(two), Record(two, "s", "m", "v")):
            assert self.store.swap("id", fence, new)
            fence = new.fence
            assert self._inbox("id") == "delivered"
        assert self.store.swap("id", two, Record(two, "saved"), due_in=0, expires_in=1000)
        assert self._read("id") == Record(two, "saved", "m", "v", self._due("id"), "delivered")

    def test_a_record_may_have_nothing_but_an_inbox(self) -> None:
        """What is delivered to a task may come before it starts; and expires with its record, or stays with it."""
        fence = Fence(0, Status.QUEUED)
        for task_id in ("expires", "swapped", "saved", "taken"):
            assert self.store.swap(task_id, None, Record(fence, inbox="a"), due_in=1000, expires_in=1000, inbox="")
            new = Record(fence, inbox="b")
            assert self.store.swap(task_id, fence, new, due_in=UNCHANGED, expires_in=1, inbox="a")
            assert self._read(task_id) == replace(new, due=self._due(task_id))
        assert self.store.swap("swapped", fence, Record(_RUNNING), inbox="b")
        assert self.store.swap("saved", fence, Record(fence, "text"))
        taken = self.store.take("taken", fence, _RUNNING)
        assert taken is not None
        assert (taken.fence, taken.snapshot, taken.value) == (_RUNNING, None, None)
        self._await(lambda: self.store.read("expires") is None, "a record expires")
        assert self._read("swapped") == self._read("taken") == Record(_RUNNING, inbox="b")
        assert self._read("saved") == Record(fence, "text", inbox="b")

    def _inbox(self, task_id: str) -> str:
        record = self.store.read(task_id)
        return (record and record.inbox) or ""

    # -- all of them

    def test_all_records_are_listed(self) -> None:
        """Those that have ended, too, but not what has expired or was deleted."""
        assert list(self.store.records()) == []
        for number, status in enumerate((Status.RUNNING, Status.FINISHING, Status.QUEUED, *sorted(ENDED))):
            self.store.swap(f"bare {status}", None, Record(Fence(number, status, "w/1/a")))
            full = Record(Fence(number, status, "w/1/a"), "snapshot ü", "message", "value", inbox="inbox")
            self.store.swap(f"full {status}", None, full, due_in=1000, expires_in=1000)
        self.store.swap("delivered", None, Record(Fence(0, Status.QUEUED), inbox="inbox"))
        expected = {task_id: self._read(task_id) for task_id in self._records()}
        self.store.swap("expired", None, Record(_RUNNING), expires_in=_SOON)
        self.store.swap("deleted", None, Record(_RUNNING))
        self.store.delete("deleted", _RUNNING)
        self.store.renew("worker", 1000)
        self._await(lambda: self.store.read("expired") is None, "the record expires")
        assert len(expected) == 2 * (3 + len(ENDED)) + 1
        assert self._records() == expected

    def test_many_records_are_listed(self) -> None:
        """Each once, also those that come while others are written and deleted."""
        expected = {f"id{number}": Record(_RUNNING, str(number)) for number in range(self.many)}
        for task_id, record in expected.items():
            self.store.swap(task_id, None, record)
        self._store_of("another").swap("another", None, Record(_RUNNING))
        assert self._records() == expected
        records = self.store.records()
        found = dict([next(records)])
        for number in range(50):
            self.store.swap(f"new{number}", None, Record(_RUNNING))
            self.store.delete(f"id{number}", _RUNNING)
        found.update(records)
        assert {f"id{number}" for number in range(50, self.many)} <= found.keys()
        assert found.keys() <= expected.keys() | {f"new{number}" for number in range(50)}

    def test_a_spoilt_record_is_listed_with_the_others(self) -> None:
        """As the error that reading it raises."""
        for task_id in ("a", "ruined", "z"):
            self.store.swap(task_id, None, Record(_RUNNING, task_id, "message"))
        self.corrupt(self.store, "ruined")
        found = dict(self.store.records())
        problem = found.pop("ruined")
        assert isinstance(problem, StoreError)
        assert "ruined" in str(problem)
        assert found == {task_id: self.store.read(task_id) for task_id in ("a", "z")}

    # -- workers

    def test_a_worker_owns_what_its_executions_are_at_work_on(self) -> None:
        """Running and finishing, from one worker to the next."""
        one, two = Fence(1, Status.RUNNING, "one/1/a"), Fence(2, Status.RUNNING, "two/1/b")
        for task_id in ("a", "b"):
            self.store.swap(task_id, None, Record(one))
        self._assert_owned(one={"a": "one/1/a", "b": "one/1/a"}, two={})
        self.store.swap("a", one, Record(one._replace(status=Status.FINISHING)))
        self.store.swap("b", one, Record(one._replace(owner="one/2/c")))
        self._assert_owned(one={"a": "one/1/a", "b": "one/2/c"}, two={})
        self.store.swap("a", one._replace(status=Status.FINISHING), Record(two))
        self.store.take("b", one._replace(owner="one/2/c"), two)
        self._assert_owned(one={}, two={"a": "two/1/b", "b": "two/1/b"})
        self.store.swap("a", two, Record(two, "saved"))
        self._assert_owned(one={}, two={"a": "two/1/b", "b": "two/1/b"})
        self.store.delete("a", two)
        self._assert_owned(one={}, two={"b": "two/1/b"})
        fence = two
        for status in (Status.QUEUED, *sorted(ENDED)):
            self.store.swap("b", fence, Record(Fence(2, status, "two/1/b")))
            fence = Fence(2, status, "two/1/b")
            self._assert_owned(one={}, two={})
        self.store.swap("b", fence, Record(two._replace(owner="")))
        self._assert_owned(one={}, two={})

    def test_worker_names_are_told_apart(self) -> None:
        """Also those that look alike."""
        names = ["w", "W", "w ", "w1", "celery@höst", "celery@host.example", "w:due", "%", "_", "w*"]
        for number, name in enumerate(names):
            self.store.swap(str(number), None, Record(Fence(1, Status.RUNNING, f"{name}/1/a")))
            self.store.renew(name, 1000 + number, f"note{number}")
        for number, name in enumerate(names):
            assert self.store.owned(name) == {str(number): f"{name}/1/a"}
        found = {lease.worker: lease.note for lease in self.store.look().leases}
        assert found == {name: f"note{number}" for number, name in enumerate(names)}

    def test_a_lease_counts_down_and_is_renewed(self) -> None:
        """It is listed also when it is over."""
        assert self.store.look().leases == []
        self.store.renew("w", 1000, "note")
        (lease,) = self.store.look().leases
        assert (lease.worker, lease.note) == ("w", "note")
        assert 940 < lease.left <= 1000.1
        self.store.renew("w", 2000, "other")
        (lease,) = self.store.look().leases
        assert lease.note == "other"
        assert 1940 < lease.left <= 2000.1
        self.store.renew("w", _SOON)
        self._await(lambda: self.store.look().leases[0].left <= 0, "the lease ends")
        assert [(lease.worker, lease.note) for lease in self.store.look().leases] == [("w", "")]

    def test_a_worker_that_owns_is_listed_without_a_lease(self) -> None:
        """Its lease has expired, so a sweep has to find what it owns."""
        self.store.renew("listed", 1000)
        for worker in ("listed", "unlisted", "another"):
            for number in range(3):
                task_id, owner = f"{worker}{number}", f"{worker}/{number}/a"
                self.store.swap(task_id, None, Record(Fence(1, Status.RUNNING, owner)))
        self.store.swap("free", None, Record(Fence(1, Status.QUEUED, "nobody")))
        found = {lease.worker: lease.left for lease in self.store.look().leases}
        assert sorted(found) == ["another", "listed", "unlisted"]
        assert found["unlisted"] <= 0
        assert found["another"] <= 0
        assert found["listed"] > 900

    def test_a_worker_is_retired_once_it_owns_nothing(self) -> None:
        """And not before."""
        self.store.renew("w", 1000, "note")
        self.store.renew("other", 1000)
        fence = Fence(1, Status.RUNNING, "w/1/a")
        self.store.swap("id", None, Record(fence))
        self.store.retire("w")
        (lease,) = [lease for lease in self.store.look().leases if lease.worker == "w"]
        assert lease.note == "note"
        assert lease.left > 900
        self.store.swap("id", fence, Record(Fence(1, Status.DONE)))
        self.store.retire("w")
        self.store.retire("w")
        self.store.retire("unknown")
        assert [lease.worker for lease in self.store.look().leases] == ["other"]

    def test_namespaces_are_apart(self) -> None:
        """Their records, what is due, their leases, and what their workers own."""
        suffixes = ["", ":", ":a", ":a:b", "a", "A", " ", "/a", "/..", "!due", "%3A", "ü", "*", "x" * 100]
        ids = ["id", "a:id", "b:id", ":id", "due", "leases"]
        for suffix in suffixes:
            store = self._store_of(suffix)
            for task_id in ids:
                assert store.swap(task_id, None, Record(_RUNNING, suffix + task_id, suffix), due_in=0), (
                    suffix,
                    task_id,
                )
            store.renew("worker", 1000, f"n{suffixes.index(suffix)}")
        for number, suffix in enumerate(suffixes):
            store = self._store_of(suffix)
            self._await(partial(_has_due, store, ids), f"all is due in {suffix!r}")
            assert store.owned("worker") == store.look("worker").owned == dict.fromkeys(ids, _RUNNING.owner)
            assert [lease.note for lease in store.look().leases] == [f"n{number}"]
            assert sorted(task_id for task_id, _ in store.records()) == sorted(ids), f"not those of {suffix!r}"
            for task_id in ids:
                record = store.read(task_id)
                assert record is not None
                assert (record.snapshot, record.message) == (suffix + task_id, suffix)
                assert store.delete(task_id, _RUNNING)
            store.retire("worker")
            assert store.look("worker") == Look([], [], {})

    # -- many at once

    def test_of_many_writers_one_wins(self) -> None:
        """Generation after generation."""
        won: list[int] = []
        barrier = threading.Barrier(_THREADS, timeout=_PATIENCE * 3)

        def write(number: int) -> None:
            for generation in range(20):
                expected = Fence(generation, Status.RUNNING) if generation else None
                barrier.wait()
                if self.store.swap("id", expected, Record(Fence(generation + 1, Status.RUNNING), str(number))):
                    won.append(generation)

        self._in_threads(write)
        assert won == list(range(20))

    def test_of_many_takers_one_wins(self) -> None:
        """And is told what it took."""
        won: list[Record] = []
        barrier = threading.Barrier(_THREADS, timeout=_PATIENCE * 3)
        for generation in range(1, 11):
            self.store.swap(str(generation), None, Record(Fence(generation, Status.QUEUED), f"saved {generation}"))

        def take(number: int) -> None:
            for generation in range(1, 11):
                mine = Fence(generation + 1, Status.RUNNING, f"w/{number}/a")
                barrier.wait()
                taken = self.store.take(str(generation), Fence(generation, Status.QUEUED), mine)
                if taken is not None:
                    assert taken.fence == mine
                    won.append(taken)

        self._in_threads(take)
        assert [record.snapshot for record in won] == [f"saved {generation}" for generation in range(1, 11)]

    def test_of_many_claims_of_one_message_one_wins(self) -> None:
        """While its owner is alive."""
        won: list[str] = []
        barrier = threading.Barrier(_THREADS, timeout=_PATIENCE * 3)

        def claim(number: int) -> None:
            for turn in range(10):
                owner = f"w/{number}/{turn}"
                barrier.wait()
                found = rules.claim(
                    self.store,
                    f"id{turn}",
                    0,
                    owner,
                    snapshot=None,
                    message=lambda: "{}",
                    ended=_no,
                    death=_no,
                )
                if found is not None:
                    won.append(owner)

        self._in_threads(claim)
        assert [owner.rpartition("/")[2] for owner in won] == [str(turn) for turn in range(10)]
        assert sorted(self.store.owned("w").values()) == sorted(won)

    def test_of_many_deliveries_to_one_inbox_one_wins(self) -> None:
        """Time after time."""
        won: list[int] = []
        barrier = threading.Barrier(_THREADS, timeout=_PATIENCE * 3)
        self.store.swap("id", None, Record(_RUNNING, inbox="0"))

        def deliver(number: int) -> None:
            for turn in range(20):
                barrier.wait()
                if self.store.swap("id", _RUNNING, Record(_RUNNING, inbox=str(turn + 1)), inbox=str(turn)):
                    won.append(turn)

        self._in_threads(deliver)
        assert won == list(range(20))

    def test_no_delivery_is_lost(self) -> None:
        """Among others, and while the task is saved."""
        self.store.swap("id", None, Record(_RUNNING, "0"), due_in=1000)

        def deliver(number: int) -> None:
            for turn in range(5):
                inbox = self._inbox("id")
                mine = f"{inbox}{number}.{turn} "
                while not self.store.swap("id", _RUNNING, Record(_RUNNING, inbox=mine), due_in=UNCHANGED, inbox=inbox):
                    inbox = self._inbox("id")
                    mine = f"{inbox}{number}.{turn} "
                assert self.store.swap("id", _RUNNING, Record(_RUNNING, "saved"))

        self._in_threads(deliver)
        delivered = self._inbox("id").split()
        assert sorted(delivered) == sorted(f"{number}.{turn}" for number in range(_THREADS) for turn in range(5))
        assert self._read("id") == Record(_RUNNING, "saved", inbox=self._inbox("id"))

    def test_records_of_their_own_do_not_disturb_one_another(self) -> None:
        """Each thread reads what it wrote."""

        def work(number: int) -> None:
            task_id = f"id{number}"
            fence = Fence(1, Status.RUNNING, f"w{number}/1/a")
            assert self.store.swap(task_id, None, Record(fence, "0"))
            for turn in range(1, 20):
                assert self.store.swap(task_id, fence, Record(fence, str(turn)))
                assert self._read(task_id) == Record(fence, str(turn))
                assert self.store.owned(f"w{number}") == {task_id: fence.owner}
                self.store.renew(f"w{number}", 1000)
                assert f"w{number}" in [lease.worker for lease in self.store.look(f"w{number}").leases]

        self._in_threads(work)

    def test_a_child_uses_the_store_of_its_parent(self) -> None:
        """Which has used it before, and goes on: as in a worker's pool."""
        if not self.between_processes:
            _skip("between_processes")
        if not hasattr(os, "fork"):
            _skip("os.fork")
        self.store.swap("parent", None, Record(_RUNNING, "0"))
        self.store.swap("child", None, Record(_RUNNING, "0"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests may be left
            children = [os.fork()]
        if not children[0]:
            code = 1
            try:
                self._write_in_turns("child")
                code = 0
            finally:
                os._exit(code)
        self._write_in_turns("parent")
        _, status = os.waitpid(children[0], 0)
        assert status == 0, "the child failed"
        self._write_in_turns("child", first=50)

    def _write_in_turns(self, task_id: str, first: int = 0) -> None:
        for turn in range(first, first + 50):
            assert self._read(task_id) == Record(_RUNNING, str(turn))
            assert self.store.swap(task_id, _RUNNING, Record(_RUNNING, str(turn + 1)))

    # -- what goes wrong

    def test_a_spoilt_record_is_named_and_kept(self) -> None:
        """It is not taken for a missing record."""
        for task_id in ("spoilt", "sound"):
            self.store.swap(task_id, None, Record(_RUNNING, "text"))
        self.corrupt(self.store, "spoilt")
        self._assert_spoilt()
        writes: list[Callable[[], bool]] = [
            lambda: self.store.swap("spoilt", None, Record(_RUNNING, "new")),
            lambda: self.store.swap("spoilt", _RUNNING._replace(generation=2), Record(_RUNNING, "new")),
            lambda: self.store.delete("spoilt", _RUNNING._replace(generation=2)),
        ]
        for write in writes:
            with suppress(StoreError):
                assert not write()
        self._assert_spoilt()
        assert self._read("sound") == Record(_RUNNING, "text")

    def _assert_spoilt(self) -> None:
        problem = ""
        try:
            self.store.read("spoilt")
        except StoreError as exc:
            problem = str(exc)
        assert problem, "a spoilt record was read"
        assert "spoilt" in problem, "the error does not name the task"

    def test_a_lost_connection_is_made_anew(self) -> None:
        """One call may fail, with a StoreError; the next one does not."""
        uses: list[Callable[[], object]] = [
            lambda: self.store.read("id"),
            lambda: self.store.swap("id", _RUNNING, Record(_RUNNING, "again")),
            lambda: self.store.take("id", _RUNNING, _RUNNING),
            lambda: self.store.look(),
            lambda: self.store.renew("w", 1000),
            lambda: list(self.store.records()),
        ]
        for number, use in enumerate(uses):
            task_id = f"id{number}"
            self.store.swap("id", None, Record(_RUNNING, "text"))
            assert self.store.swap(task_id, None, Record(_RUNNING, "text"))
            self.break_connection(self.store)
            try:
                use()
            except StoreError:
                use()
            assert self._read(task_id) == Record(_RUNNING, "text")

    def test_no_connection_is_left_open(self) -> None:
        """Whether a call writes, is refused, or finds nothing."""
        self._use_all("first")
        before = self.connections(self.store)
        for turn in range(20):
            self._use_all(f"turn{turn}")
        assert self.connections(self.store) <= max(before, 1)

    def _use_all(self, task_id: str) -> None:
        store = self.store
        store.read(task_id)
        for _ in range(2):
            store.swap(task_id, None, Record(_RUNNING, "text"), due_in=0)
        for generation in (9, 1):
            store.swap(task_id, _RUNNING._replace(generation=generation), Record(_RUNNING))
            store.take(task_id, _RUNNING._replace(generation=generation), _RUNNING)
        store.renew("worker", 1000)
        store.look("worker", 1)
        store.owned("worker")
        next(store.records())
        store.retire("worker")
        for _ in range(2):
            store.delete(task_id, _RUNNING)

    # -- what the tests share

    def _read(self, task_id: str) -> Record | None:
        # an empty inbox may be read as "" or as None
        record = self.store.read(task_id)
        return record and _plain(record)

    def _is_gone(self, task_id: str) -> bool:
        return self.store.read(task_id) is None

    def _records(self) -> dict[str, Record]:
        found = {}
        for task_id, record in self.store.records():
            assert isinstance(record, Record), record
            assert task_id not in found, f"{task_id!r} came twice"
            found[task_id] = _plain(record)
        return found

    def _due(self, task_id: str) -> float | None:
        record = self.store.read(task_id)
        assert record is not None
        return record.due

    def _assert_owned(self, **expected: dict[str, str]) -> None:
        for worker, records in expected.items():
            assert self.store.owned(worker) == records
            assert self.store.look(worker).owned == records

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not condition():
            assert time.monotonic() < until, f"not within {_PATIENCE:.0f} s: {what}"
            time.sleep(0.005)

    def _in_threads(self, work: Callable[[int], None]) -> None:
        problems: list[BaseException] = []
        self.store.read("id")  # made before several ask for it

        def run(number: int) -> None:
            try:
                work(number)
            except BaseException as exc:
                problems.append(exc)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]


def _plain(record: Record) -> Record:
    return replace(record, inbox=record.inbox or None)


def _record(texts: Sequence[str | None]) -> Record:
    snapshot, message, value = texts
    return Record(_RUNNING, snapshot, message, value)


def _has_due(store: Store, ids: list[str]) -> bool:
    return sorted(store.look().due) == sorted(ids)


def _no(*args: object) -> None:
    """Neither has the task ended, nor has its owner died."""


def _skip(hook: str) -> NoReturn:
    import pytest

    pytest.skip(f"needs {hook}")
