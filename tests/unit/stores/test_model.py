"""For any sequence of calls, every store gives the same answers as the memory store."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from celery_continuations.stores.base import Due, Fence, Record, Status, Store, Update
from celery_continuations.stores.database import DatabaseStore
from celery_continuations.stores.filesystem import FilesystemStore
from celery_continuations.stores.memory import MemoryStore
from tests.support.redis_server import redis_store

pytestmark = pytest.mark.exhaustive

IDS = ("a", "A", "a:b")
WORKERS = ("w", "v")
FENCES = tuple(
    Fence(generation, status, owner)
    for generation in (1, 2)
    for status in (Status.RUNNING, Status.RETURNED, Status.QUEUED, Status.DONE)
    for owner in ("", "w/1/a", "v/1/b")
)

ids = st.sampled_from(IDS)
workers = st.sampled_from(WORKERS)
fences = st.sampled_from(FENCES)
texts = st.none() | st.sampled_from(["", "text", "ü🗝"])
# What has expired is none; neither is anything that expires while the test runs.
times = st.sampled_from([None, None, -5.0, 1000.0, Due.UNCHANGED])


class StoreMachine(RuleBasedStateMachine):
    """Makes the same calls to a store and to the model, and compares the answers."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.model = MemoryStore()

    def expected(self, task_id: str, fence: Fence | None, right: bool) -> Fence | None:
        found = self.model.read(task_id)
        return (found.fence if found else None) if right else fence

    def inbox(self, task_id: str) -> str:
        found = self.model.read(task_id)
        return (found and found.inbox) or ""

    @rule(
        task_id=ids, right=st.booleans(), other=st.none() | fences, fence=fences, snapshot=texts, message=texts,
        value=texts, inbox=texts, due_in=times, expires_in=st.sampled_from([None, None, 1000.0, 0.0]),
        knows_inbox=st.booleans(), other_inbox=texts,
    )  # fmt: skip
    def compare_and_swap(
        self,
        task_id: str,
        right: bool,
        other: Fence | None,
        fence: Fence,
        snapshot: str | None,
        message: str | None,
        value: str | None,
        inbox: str | None,
        due_in: float | Due | None,
        expires_in: float | None,
        knows_inbox: bool,
        other_inbox: str | None,
    ) -> None:
        expected = self.expected(task_id, other, right)
        update = Update(
            fence,
            snapshot,
            message,
            value,
            inbox,
            due_in,
            expires_in,
            self.inbox(task_id) if knows_inbox else other_inbox,
        )
        answers = [one.compare_and_swap(task_id, expected, update) for one in (self.model, self.store)]
        assert answers[0] == answers[1]

    @rule(task_id=ids, right=st.booleans(), other=fences, fence=fences)
    def take(self, task_id: str, right: bool, other: Fence, fence: Fence) -> None:
        expected = self.expected(task_id, other, right) or other
        model, store = (one.take(task_id, expected, fence) for one in (self.model, self.store))
        assert (model is None) == (store is None)
        if model is not None and store is not None:
            assert (store.fence, store.snapshot, store.value) == (model.fence, model.snapshot, model.value)

    @rule(task_id=ids, right=st.booleans(), other=fences)
    def delete(self, task_id: str, right: bool, other: Fence) -> None:
        expected = self.expected(task_id, other, right) or other
        assert self.model.compare_and_swap(
            task_id, expected, Update(expected, expires_in=0)
        ) == self.store.compare_and_swap(task_id, expected, Update(expected, expires_in=0))

    @rule(worker=workers, seconds=st.sampled_from([-5.0, 1000.0]), note=st.sampled_from(["", "stopping"]))
    def renew(self, worker: str, seconds: float, note: str) -> None:
        for one in (self.model, self.store):
            one.renew(worker, seconds, note)

    @rule(worker=workers)
    def retire(self, worker: str) -> None:
        for one in (self.model, self.store):
            one.retire(worker)

    @invariant()
    def agrees(self) -> None:
        for task_id in IDS:
            model, store = self.model.read(task_id), self.store.read(task_id)
            assert _plain(model) == _plain(store)
            if model is not None and store is not None and model.due is not None:
                assert abs(model.due - (store.due or 0.0)) < 2
        assert _all(self.model) == _all(self.store)
        for worker in WORKERS:
            assert self.model.scan(worker).owned == self.store.scan(worker).owned
        model_looked, looked = self.model.scan(), self.store.scan()
        assert sorted(looked.due) == sorted(model_looked.due)
        found = {lease.worker: (lease.left > 0, lease.note) for lease in looked.leases}
        # A store may list a worker that owned something once and has not been retired since.
        wanted = {lease.worker: (lease.left > 0, lease.note) for lease in model_looked.leases}
        assert wanted.items() <= found.items()
        assert not any(alive for name, (alive, _) in found.items() if name not in wanted)

    def teardown(self) -> None:
        self.store.close()


def _plain(record: Record | None) -> Any:
    return record and (
        record.fence, record.snapshot, record.message, record.value, record.inbox or "", record.due is None
    )  # fmt: skip


def _all(store: Store) -> dict[str, Any]:
    return {task_id: _plain(record) for task_id, record in store.records() if isinstance(record, Record)}


@pytest.mark.parametrize("kind", ["memory", "filesystem", "redis", "sqlite"])
def test_a_store_does_what_the_model_does(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue("redis_url") if kind == "redis" else ""

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp(dir=tmp_path))
            if kind == "redis":
                self.store = redis_store(url, os.urandom(8).hex())
            elif kind == "filesystem":
                self.store = FilesystemStore(self.folder, "n")
            elif kind == "sqlite":
                self.store = DatabaseStore(f"sqlite:///{self.folder}/x.db", "n")
            else:
                self.store = MemoryStore()

        def teardown(self) -> None:
            super().teardown()
            shutil.rmtree(self.folder)

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )
