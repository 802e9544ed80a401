"""What a store leaves on its server or disk."""

from __future__ import annotations

from celery_continuations.stores.base import Fence, Record, Status, Update
from celery_continuations.testing.stores.suite import RUNNING, SOON, Suite

# More than one batch of any store's cleaning that is limited by time, few enough for slow writes.
_MANY = 60


class Space(Suite):
    """Expired records take no space, and keys can be told apart by their prefix."""

    def test_expired_records_are_removed_while_the_process_lives(self) -> None:
        """A worker that renews its lease and sweeps leaves no expired record, without opening the store again."""
        self.store.renew("w", 1000)
        self.store.compare_and_swap("stays", None, Update(RUNNING, "text"))
        before = self.entries(self.store)
        for number in range(_MANY):
            status = (Status.DONE, Status.FAILED, Status.QUEUED)[number % 3]
            due_in = 0.0 if status == Status.QUEUED else None
            ended = Update(Fence(1, status), "text", "text", "", "text", due_in=due_in, expires_in=SOON)
            assert self.store.compare_and_swap(f"ended{number}", None, ended)
        assert self.entries(self.store) > before

        def are_removed() -> bool:
            self.store.renew("w", 1000)
            self.store.scan("w")
            return self.entries(self.store) <= before

        self._await(are_removed, "expired records are removed")
        assert self._records() == {"stays": Record(RUNNING, "text")}

    def test_a_rule_for_prefixes_separates_namespaces(self) -> None:
        """Every key begins with a prefix of its namespace, whatever the ids, and with none of another namespace."""
        known: set[str] = set()
        for suffix in ("", "a", ":", "*", "/..", "x" * 100):
            store = self._store_of(suffix)
            for task_id in ("id", ":id", "a*b", "../id", "leases", "ü"):
                store.compare_and_swap(task_id, None, Update(RUNNING, "text", "text", "text", "text", due_in=0))
            store.renew("worker", 1000)
            prefixes, keys = self.keys(store)
            new = [key for key in keys if key not in known]
            assert new
            assert all(key.startswith(tuple(prefixes)) for key in new)
            assert not [key for key in known if key.startswith(tuple(prefixes))]
            known.update(keys)
