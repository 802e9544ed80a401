"""The main process ends a task in its record before it stores a state, or stores nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from billiard.pool import MaybeEncodingError
from celery import Celery, states
from celery.exceptions import TimeLimitExceeded
from celery.signals import task_revoked
from celery.worker import state as celery_state

from celery_continuations.exceptions import StoreError
from celery_continuations.process.identity import new_owner
from celery_continuations.process.stop_flag import new_flag
from celery_continuations.stores import Fence, Status, Update
from celery_continuations.worker.bootstep import Hearing
from celery_continuations.worker.maintenance import Maintenance
from celery_continuations.worker.requests import Request
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import Worker

RECORDS = [
    "none", "not claimed", "claimed", "given back", "handed over", "waiting", "paused", "returned",
    "returned, and recovered", "another's", "another process's", "done", "failed", "cancelled",
]  # fmt: skip


class Main:
    """A main process with the request of one fresh message."""

    def __init__(self, app: Celery, worker: Worker, store: Any, made: Any, monkeypatch: Any) -> None:
        self.app, self.store, self.made = app, store, made
        self.flag = new_flag("main@test")
        self.maintenance = Maintenance(app, self.flag, list)
        self.ends: list[str] = []
        self.stored: list[str] = []
        stored = app.backend.store_result

        def store_result(task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
            self.stored.append(state)
            if len(self.stored) == 1:
                self.was_ours = self.is_ours
            return stored(task_id, result, state, *args, **kwargs)

        monkeypatch.setattr(app.backend, "store_result", store_result)
        self._worker = worker

    def receive(self, **options: Any) -> Request:
        """Receive a fresh message, and start its task in this process."""
        self.id = self.made.apply_async(**options).id
        request = Request(
            self._worker.deliver_nothing().message,
            on_ack=lambda *args: self.ends.append("acked"),
            on_reject=lambda logger, errors, requeue=False: self.ends.append(f"rejected {requeue}"),
            hostname="main@test",
            app=self.app,
            task=self.made,
        )
        request.worker_pid, request.time_start = os.getpid(), 1.0
        celery_state.task_reserved(request)
        return request

    def has(self, record: str) -> None:
        """Write a record."""
        mine = new_owner(self.flag.worker)
        fence, value = {
            "not claimed": (Fence(0, Status.QUEUED), None),
            "claimed": (Fence(1, Status.RUNNING, mine), None),
            "given back": (Fence(1, Status.RUNNING), None),
            "handed over": (Fence(1, Status.QUEUED), None),
            "waiting": (Fence(1, Status.WAITING), None),
            "paused": (Fence(1, Status.PAUSED), None),
            "returned": (Fence(1, Status.RETURNED, mine), "7"),
            "returned, and recovered": (Fence(1, Status.QUEUED), "7"),
            "another's": (Fence(1, Status.RUNNING, "another/1.1/a"), None),
            "another process's": (Fence(1, Status.RUNNING, f"{self.flag.worker}/1.1/a"), None),
            "done": (Fence(1, Status.DONE), None),
            "failed": (Fence(1, Status.FAILED), None),
            "cancelled": (Fence(1, Status.CANCELLED), None),
        }[record]
        self.store.compare_and_swap(
            self.id, None, Update(fence, value=value, message="{}" if fence.generation else None)
        )

    @property
    def is_ours(self) -> bool:
        """Whether this process owns the record."""
        found = self.store.read(self.id)
        known = found.fence if found else Fence(0, Status.QUEUED)
        return known.status == Status.RUNNING and known.owner.startswith(f"{self.flag.worker}/{os.getpid()}.")

    @property
    def status(self) -> str | None:
        found = self.store.read(self.id)
        return found and found.fence.status

    @property
    def sweeper(self) -> Sweeper:
        sweeper = self.maintenance.sweeper_of(self.store)
        assert sweeper is not None
        return sweeper


@pytest.fixture
def main(app: Celery, worker: Worker, store: Any, task: Any, monkeypatch: Any) -> Iterator[Main]:
    made = Main(app, worker, store, task(nothing), monkeypatch)

    def on_revoked(sender: Any, request: Any, **kwargs: Any) -> None:
        Hearing._on_revoked(made, sender=sender, request=request)  # type: ignore[arg-type]

    task_revoked.connect(on_revoked)
    yield made
    task_revoked.disconnect(on_revoked)
    made.maintenance.stop()
    made.flag.remove()
    celery_state.revoked.discard(made.id)
    assert not any(one.id == made.id for one in celery_state.reserved_requests)


def nothing(self: Any) -> None:
    """Do nothing."""


def info(error: BaseException) -> Any:
    try:
        raise error
    except type(error):
        return ExceptionInfo()


class Pool:
    """A pool whose processes die when they are told to."""

    def terminate_job(self, pid: int, signal: int) -> None:
        """Do nothing."""


def limited(request: Request) -> None:
    """Tell the request of a hard time limit as billiard does: of a failure first."""
    request.on_failure(info(TimeLimitExceeded(1)))
    request.on_timeout(False, 1)


def not_sent(request: Request) -> None:
    """Report that the process could not send how the task ended."""
    request.on_failure(info(MaybeEncodingError("value", "reason")))


def terminated(request: Request) -> None:
    """Revoke with terminate=True; the death of the process is reported later."""
    request.terminate(Pool(), "TERM")
    for error in (Terminated("15"), SystemExit(-241), WorkerLostError("late")):
        request.on_failure(info(error))


FAILING = {"none", "not claimed", "claimed", "given back"}


@pytest.mark.parametrize("end", [limited, not_sent])
@pytest.mark.parametrize("record", RECORDS)
def test_a_failure_is_stored_only_by_the_process_that_has_ended_the_record(
    main: Main, end: Callable[[Request], None], record: str
) -> None:
    request = main.receive()
    if record != "none":
        main.has(record)
    before = main.status
    end(request)
    assert set(main.ends) == {"acked"}
    if record in (FAILING if end is limited else {"none", "claimed"}):
        assert set(main.stored) == {states.FAILURE}
        assert main.status == (None if record == "none" else Status.FAILED)
        assert main.was_ours == (record != "none")
    else:
        assert (main.stored, main.status) == ([], before)


@pytest.mark.parametrize("how", ["terminated", "revoked", "expired"])
@pytest.mark.parametrize("record", RECORDS)
def test_a_revocation_is_stored_only_by_the_process_that_has_ended_the_record(
    main: Main, how: str, record: str
) -> None:
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    request = main.receive(expires=past) if how == "expired" else main.receive()
    if record != "none":
        main.has(record)
    before = main.status
    if how == "terminated":
        terminated(request)
    else:
        if how == "revoked":
            celery_state.revoked.add(main.id)
        assert request.revoked() is (how == "expired" or not record.startswith("returned"))
    revoking = {"none", "not claimed", "given back"}
    if how != "expired":
        revoking |= {"claimed", "handed over", "waiting", "paused"}
    if record in revoking:
        assert main.stored == [states.REVOKED]
        assert main.status == (None if record == "none" else Status.CANCELLED)
        assert main.was_ours == (record != "none")
    else:
        assert (main.stored, main.status) == ([], before)
    assert main.sweeper._decided == {}, "what was not ended here is recovered"
    if how != "revoked" or not record.startswith("returned"):
        assert set(main.ends) == {"acked"}
    celery_state.task_ready(request)


@pytest.mark.parametrize("record", RECORDS)
def test_a_lost_connection_stores_retry_only_for_the_task_at_hand(main: Main, record: str) -> None:
    request = main.receive()
    if record != "none":
        main.has(record)
    before = main.status
    request.cancel(Pool(), "TERM")
    request.on_failure(info(SystemExit(-241)))
    request.on_failure(info(WorkerLostError("late")))
    assert main.stored == ([states.RETRY] if record in FAILING else [])
    assert (main.ends, main.status) == ([], before), "the message comes again"


@pytest.mark.parametrize("record", ["none", "claimed", "handed over"])
def test_a_message_that_goes_back_after_a_time_limit_leaves_no_failure(main: Main, record: str) -> None:
    main.made.acks_on_failure_or_timeout = main.made.acks_on_timeout = False
    request = main.receive()
    if record != "none":
        main.has(record)
    limited(request)
    if record == "claimed":
        assert (main.stored, main.status) == ([], Status.RUNNING)
        assert main.store.read(main.id).fence == Fence(1, Status.RUNNING)
    assert (main.ends[0] == "acked") == (record == "handed over")


@pytest.mark.parametrize("record", ["none", "not claimed"])
def test_a_message_whose_process_was_lost_before_the_claim_comes_again(main: Main, record: str) -> None:
    request = main.receive()
    if record != "none":
        main.has(record)
    before = main.status
    request.on_failure(info(WorkerLostError("lost")))
    assert (main.ends, main.stored) == (["rejected True"], [])
    assert record == "none" or main.status == before


def test_while_the_store_is_unavailable_the_record_follows_later(main: Main, monkeypatch: Any) -> None:
    def away(*args: Any) -> None:
        raise StoreError("memory", "away")

    request = main.receive()
    main.has("claimed")
    with monkeypatch.context() as patches:
        patches.setattr(main.store, "read", away)
        patches.setattr(Main, "is_ours", None)
        limited(request)
    assert main.stored and main.status == Status.RUNNING
    main.sweeper.sweep(lambda: False)
    assert main.status == Status.FAILED
