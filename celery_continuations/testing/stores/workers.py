"""Leases, and the records that workers own."""

from __future__ import annotations

from functools import partial

from celery_continuations.stores.base import NOT_CLAIMABLE, Command, Fence, Scan, Status, Update
from celery_continuations.testing.stores.suite import (
    RUNNING,
    SOON,
    Suite,
    has_due,
)


class Workers(Suite):
    """Leases and ownership are kept for each worker."""

    def test_a_worker_owns_what_its_executions_are_at_work_on(self) -> None:
        """A worker owns running and finishing records, until another worker takes them."""
        one, two = Fence(1, Status.RUNNING, "one/1/a"), Fence(2, Status.RUNNING, "two/1/b")
        for task_id in ("a", "b"):
            self.store.compare_and_swap(task_id, None, Update(one))
        self._assert_owned(one={"a": "one/1/a", "b": "one/1/a"}, two={})
        self.store.compare_and_swap("a", one, Update(one._replace(status=Status.RETURNED)))
        self.store.compare_and_swap("b", one, Update(one._replace(owner="one/2/c")))
        self._assert_owned(one={"a": "one/1/a", "b": "one/2/c"}, two={})
        self.store.compare_and_swap("a", one._replace(status=Status.RETURNED), Update(two))
        self.store.take("b", one._replace(owner="one/2/c"), two)
        self._assert_owned(one={}, two={"a": "two/1/b", "b": "two/1/b"})
        self.store.compare_and_swap("a", two, Update(two, "saved"))
        self._assert_owned(one={}, two={"a": "two/1/b", "b": "two/1/b"})
        self.store.compare_and_swap("a", two, Update(two, expires_in=0))
        self._assert_owned(one={}, two={"b": "two/1/b"})
        fence = two
        for status in (Status.QUEUED, *sorted(NOT_CLAIMABLE)):
            self.store.compare_and_swap("b", fence, Update(Fence(2, status, "two/1/b")))
            fence = Fence(2, status, "two/1/b")
            self._assert_owned(one={}, two={})
        self.store.compare_and_swap("b", fence, Update(two.with_command(Command.PAUSE)))
        self._assert_owned(one={}, two={"b": "two/1/b"})
        fence = two.with_command(Command.PAUSE)
        self.store.compare_and_swap("b", fence, Update(two._replace(owner="")))
        self._assert_owned(one={}, two={})

    def test_worker_names_are_told_apart(self) -> None:
        """Similar names of workers are distinguished."""
        names = ["w", "W", "w ", "w1", "celery@höst", "celery@host.example", "w:due", "%", "_", "w*"]
        for number, name in enumerate(names):
            self.store.compare_and_swap(str(number), None, Update(Fence(1, Status.RUNNING, f"{name}/1/a")))
            self.store.renew(name, 1000 + number, f"note{number}")
        for number, name in enumerate(names):
            assert self.store.scan(name).owned == {str(number): f"{name}/1/a"}
        found = {lease.worker: lease.note for lease in self.store.scan().leases}
        assert found == {name: f"note{number}" for number, name in enumerate(names)}

    def test_a_lease_counts_down_and_is_renewed(self) -> None:
        """A lease counts down, is renewed, and is listed even after it has expired."""
        assert self.store.scan().leases == []
        self.store.renew("w", 1000, "note")
        (lease,) = self.store.scan().leases
        assert (lease.worker, lease.note) == ("w", "note")
        assert 940 < lease.left <= 1000.1
        self.store.renew("w", 2000, "other")
        (lease,) = self.store.scan().leases
        assert lease.note == "other"
        assert 1940 < lease.left <= 2000.1
        self.store.renew("w", SOON)
        self._await(lambda: self.store.scan().leases[0].left <= 0, "the lease ends")
        assert [(lease.worker, lease.note) for lease in self.store.scan().leases] == [("w", "")]

    def test_a_worker_that_owns_is_listed_without_a_lease(self) -> None:
        """A worker without a lease is listed as expired, so that a sweep finds its records."""
        self.store.renew("listed", 1000)
        for worker in ("listed", "unlisted", "another"):
            for number in range(3):
                task_id, owner = f"{worker}{number}", f"{worker}/{number}/a"
                self.store.compare_and_swap(task_id, None, Update(Fence(1, Status.RUNNING, owner)))
        self.store.compare_and_swap("free", None, Update(Fence(1, Status.QUEUED, "other")))
        found = {lease.worker: lease.left for lease in self.store.scan().leases}
        assert sorted(found) == ["another", "listed", "unlisted"]
        assert found["unlisted"] <= 0
        assert found["another"] <= 0
        assert found["listed"] > 900

    def test_a_worker_is_retired_once_it_owns_nothing(self) -> None:
        """A worker's lease stays while the worker owns a record."""
        self.store.renew("w", 1000, "note")
        self.store.renew("other", 1000)
        fence = Fence(1, Status.RUNNING, "w/1/a")
        self.store.compare_and_swap("id", None, Update(fence))
        self.store.retire("w")
        (lease,) = [lease for lease in self.store.scan().leases if lease.worker == "w"]
        assert lease.note == "note"
        assert lease.left > 900
        self.store.compare_and_swap("id", fence, Update(Fence(1, Status.DONE)))
        self.store.retire("w")
        self.store.retire("w")
        self.store.retire("unknown")
        assert [lease.worker for lease in self.store.scan().leases] == ["other"]

    def test_namespaces_are_apart(self) -> None:
        """Namespaces share no records, due times, leases or owners."""
        suffixes = ["", ":", ":a", ":a:b", "a", "A", " ", "/a", "/..", "!due", "%3A", "ü", "*", "x" * 100]
        ids = ["id", "a:id", "b:id", ":id", "due", "leases"]
        for suffix in suffixes:
            store = self._store_of(suffix)
            for task_id in ids:
                assert store.compare_and_swap(task_id, None, Update(RUNNING, suffix + task_id, suffix, due_in=0)), (
                    suffix,
                    task_id,
                )
            store.renew("worker", 1000, f"n{suffixes.index(suffix)}")
        for number, suffix in enumerate(suffixes):
            store = self._store_of(suffix)
            self._await(partial(has_due, store, ids), f"all is due in {suffix!r}")
            assert store.scan("worker").owned == dict.fromkeys(ids, RUNNING.owner)
            assert [lease.note for lease in store.scan().leases] == [f"n{number}"]
            assert sorted(task_id for task_id, _ in store.records()) == sorted(ids), f"not those of {suffix!r}"
            for task_id in ids:
                record = store.read(task_id)
                assert record is not None
                assert (record.snapshot, record.message) == (suffix + task_id, suffix)
                assert store.compare_and_swap(task_id, RUNNING, Update(RUNNING, expires_in=0))
            store.retire("worker")
            assert store.scan("worker") == Scan([], [], {})
