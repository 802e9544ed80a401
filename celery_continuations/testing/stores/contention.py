"""Concurrent use by many threads and by two processes."""

from __future__ import annotations

import os
import threading
import warnings

from celery_continuations.protocol.claim import claim as claim_message
from celery_continuations.stores.base import Due, Fence, Record, Status, Update
from celery_continuations.testing.stores.suite import (
    PATIENCE,
    RUNNING,
    THREADS,
    Suite,
    skip,
)


class Contention(Suite):
    """Exactly one of many writers succeeds."""

    def test_of_many_writers_one_wins(self) -> None:
        """In each generation, exactly one writer succeeds."""
        won: list[int] = []
        barrier = threading.Barrier(THREADS, timeout=PATIENCE * 3)

        def write(number: int) -> None:
            for generation in range(20):
                expected = Fence(generation, Status.RUNNING) if generation else None
                barrier.wait()
                if self.store.compare_and_swap(
                    "id", expected, Update(Fence(generation + 1, Status.RUNNING), str(number))
                ):
                    won.append(generation)

        self._in_threads(write)
        assert won == list(range(20))

    def test_of_many_takers_one_wins(self) -> None:
        """Exactly one ``take`` succeeds, and returns the record."""
        won: list[Record] = []
        barrier = threading.Barrier(THREADS, timeout=PATIENCE * 3)
        for generation in range(1, 11):
            self.store.compare_and_swap(
                str(generation), None, Update(Fence(generation, Status.QUEUED), f"saved {generation}")
            )

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
        """While its owner is alive, a message is claimed once."""
        won: list[str] = []
        barrier = threading.Barrier(THREADS, timeout=PATIENCE * 3)

        def claim(number: int) -> None:
            for turn in range(10):
                owner = f"w/{number}/{turn}"
                barrier.wait()
                found = claim_message(
                    self.store,
                    f"id{turn}",
                    0,
                    owner,
                    snapshot=None,
                    message=lambda: "{}",
                    ended=_no,
                    loss_of=_no,
                )
                if found is not None:
                    won.append(owner)

        self._in_threads(claim)
        assert [owner.rpartition("/")[2] for owner in won] == [str(turn) for turn in range(10)]
        assert sorted(self.store.scan("w").owned.values()) == sorted(won)

    def test_of_many_deliveries_to_one_inbox_one_wins(self) -> None:
        """Each time, exactly one delivery succeeds."""
        won: list[int] = []
        barrier = threading.Barrier(THREADS, timeout=PATIENCE * 3)
        self.store.compare_and_swap("id", None, Update(RUNNING, inbox="0"))

        def deliver(number: int) -> None:
            for turn in range(20):
                barrier.wait()
                if self.store.compare_and_swap(
                    "id", RUNNING, Update(RUNNING, inbox=str(turn + 1), expected_inbox=str(turn))
                ):
                    won.append(turn)

        self._in_threads(deliver)
        assert won == list(range(20))

    def test_no_delivery_is_lost(self) -> None:
        """Concurrent deliveries and saves lose no delivery."""
        self.store.compare_and_swap("id", None, Update(RUNNING, "0", due_in=1000))

        def deliver(number: int) -> None:
            for turn in range(5):
                inbox = self._inbox("id")
                mine = f"{inbox}{number}.{turn} "
                while not self.store.compare_and_swap(
                    "id", RUNNING, Update(RUNNING, inbox=mine, due_in=Due.UNCHANGED, expected_inbox=inbox)
                ):
                    inbox = self._inbox("id")
                    mine = f"{inbox}{number}.{turn} "
                assert self.store.compare_and_swap("id", RUNNING, Update(RUNNING, "saved"))

        self._in_threads(deliver)
        delivered = self._inbox("id").split()
        assert sorted(delivered) == sorted(f"{number}.{turn}" for number in range(THREADS) for turn in range(5))
        assert self._read("id") == Record(RUNNING, "saved", inbox=self._inbox("id"))

    def test_records_of_their_own_do_not_disturb_one_another(self) -> None:
        """Each thread reads what it wrote to its own record."""

        def work(number: int) -> None:
            task_id = f"id{number}"
            fence = Fence(1, Status.RUNNING, f"w{number}/1/a")
            assert self.store.compare_and_swap(task_id, None, Update(fence, "0"))
            for turn in range(1, 20):
                assert self.store.compare_and_swap(task_id, fence, Update(fence, str(turn)))
                assert self._read(task_id) == Record(fence, str(turn))
                assert self.store.scan(f"w{number}").owned == {task_id: fence.owner}
                self.store.renew(f"w{number}", 1000)
                assert f"w{number}" in [lease.worker for lease in self.store.scan(f"w{number}").leases]

        self._in_threads(work)

    def test_a_child_uses_the_store_of_its_parent(self) -> None:
        """A forked child and its parent use the same store, as in a worker's pool."""
        if not self.between_processes:
            skip("between_processes")
        if not hasattr(os, "fork"):
            skip("os.fork")
        self.store.compare_and_swap("parent", None, Update(RUNNING, "0"))
        self.store.compare_and_swap("child", None, Update(RUNNING, "0"))
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
            assert self._read(task_id) == Record(RUNNING, str(turn))
            assert self.store.compare_and_swap(task_id, RUNNING, Update(RUNNING, str(turn + 1)))


def _no(*args: object) -> None:
    """Return None: the task has not ended, and its owner lives."""
