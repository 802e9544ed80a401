"""Failures around an interruption: unavailable stores, backends and brokers, errors, late executions."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import Reject, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from celery_continuations import AppTask, ContinuableTask, InvalidStepError, StoreError, UnserializableValueError, conf
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.execution import (
    claiming,
    message,
)
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Status, Update, open_store
from tests.support.worker import take_over


def test_a_result_backend_that_cannot_store_retry_does_not_keep_the_message_back(
    worker: Any, task: Any, app: Celery, monkeypatch: Any
) -> None:
    """Celery then never calls on_retry, but the message is published."""

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(6)):
            seen.append(item)
            if item == 3:
                worker.stop()

    seen: list[int] = []
    made = task(run)
    made.delay()

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("backend is away")

    monkeypatch.setattr(type(app.backend), "store_result", away)
    with pytest.warns(RuntimeWarning, match="backend is away"):
        worker.deliver()
    monkeypatch.undo()
    assert worker.queued() == 1
    worker.drain()
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["finally", "except"])
def test_a_checkpoint_while_an_error_is_on_its_way_does_not_complete_the_step(worker: Any, task: Any, how: str) -> None:
    def run(self: Any) -> None:
        try:
            for item in self.iterate("loop", range(6)):
                if item == 3 and not failed:
                    failed.append(item)
                    raise KeyError(item)
                seen.append(item)
        except KeyError:
            if how == "except":
                self.checkpoint()
            raise
        finally:
            self.checkpoint()

    seen: list[int] = []
    failed: list[int] = []
    result = task(run).delay()
    worker.drain()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert result.state == states.SUCCESS


def test_a_step_after_a_loop_that_an_error_has_left_is_refused(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        try:
            for _ in self.iterate("loop", range(6)):
                raise KeyError
        finally:
            self.step("tidy", int)

    result = task(run).delay()
    worker.drain()
    assert isinstance(result.result, InvalidStepError)
    assert "step 'tidy' was started while the error that left step 'loop' is being handled" in str(result.result)


def test_a_step_in_the_except_block_of_a_call_step(worker: Any, task: Any) -> None:
    def run(self: Any) -> str:
        try:
            self.step("pay", pay)
        except KeyError:
            self.step("refund", calls.append, "refund")
            for _ in self.iterate("loop", range(2)):
                worker.stop()
        return "end"

    def pay() -> None:
        calls.append("pay")
        raise KeyError("declined")

    calls: list[str] = []
    result = task(run).delay()
    assert worker.drain() == 3
    assert (calls, result.get()) == (["pay", "refund"], "end")


def test_a_step_in_a_finally_does_not_make_an_error_a_remembered_one(worker: Any, task: Any) -> None:
    def run(self: Any) -> str:
        try:
            return self.step("pay", pay)  # type: ignore[no-any-return]
        finally:
            self.step("tidy", calls.append, "tidy")

    def pay() -> str:
        calls.append("pay")
        if len(calls) == 1:
            raise KeyError("not now")
        return "paid"

    calls: list[str] = []
    result = task(run, autoretry_for=(KeyError,), default_retry_delay=0).delay()
    worker.drain()
    assert (calls, result.get()) == (["pay", "tidy", "pay", "tidy"], "paid")


def test_the_newer_snapshot_wins_when_the_store_was_away_at_the_interruption(
    worker: Any, task: Any, monkeypatch: Any
) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(6)):
            seen.append(item)
            if item == 3:
                monkeypatch.setattr(OwnedRecord, "queue", away)
                worker.stop()

    def away(*args: Any, **kwargs: Any) -> bool:
        raise StoreError("memory", "away")

    worker.app.conf.continuation_grace_period = 0.01  # the stopping worker would wait for the store
    seen: list[int] = []
    task(run, continuation_checkpoint_interval=0).delay()
    worker.deliver()
    monkeypatch.undo()
    worker.drain()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_task_that_gives_its_message_back_keeps_its_progress(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", steps.append, 1)
        for item in self.iterate("loop", range(6)):
            seen.append(item)
            if item == 1:
                worker.stop()
            if item == 3 and 4 not in seen and not rejected:
                rejected.append(1)
                raise Reject("later", requeue=True)

    steps: list[int] = []
    seen: list[int] = []
    rejected: list[int] = []
    result = task(run).delay()
    worker.drain()
    assert steps == [1]
    assert seen == [0, 1, 2, 3, 3, 4, 5], "only the current item is done again"
    assert result.state == states.SUCCESS


def test_a_message_is_given_back_when_the_broker_is_there_again(worker: Any, task: Any, monkeypatch: Any) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("loop", range(2)):
            seen.append(1)

    republish = message.republish
    attempts: list[int] = []

    def away(*args: Any, **kwargs: Any) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise OperationalError("away")
        republish(*args, **kwargs)

    def no_store(*args: Any, **kwargs: Any) -> None:
        raise StoreError("memory", "away")

    seen: list[int] = []
    result = task(run).delay()
    monkeypatch.setattr(claiming, "claim", no_store)
    monkeypatch.setattr(message, "republish", away)
    monkeypatch.setattr(message, "_PAUSE", 0.001)
    assert worker.deliver().end == "acked"
    monkeypatch.undo()
    assert (seen, len(attempts), result.state) == ([], 3, states.PENDING)
    worker.drain()
    assert (len(seen), result.state) == (2, states.SUCCESS)


def test_a_worker_that_is_to_stop_at_once_leaves_the_message_to_the_broker(
    worker: Any, task: Any, monkeypatch: Any
) -> None:
    from celery_continuations.process.stop_flag import COLD

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(4)):
            seen.append(item)
            if item == 1 and len(seen) == 2:
                worker.stop()
                worker.flag.raise_to(COLD)

    def away(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("away")

    seen: list[int] = []
    task(run).delay()
    monkeypatch.setattr(message, "republish", away)
    with pytest.raises(TypeError):  # the solo pool's reaction to a SystemExit; a prefork child exits
        worker.deliver()
    monkeypatch.undo()
    (delivery,) = worker.deliveries
    assert delivery.end is None, "neither acknowledged nor rejected"
    worker.execute(delivery)  # the broker delivers it again
    worker.drain()
    assert seen == [0, 1, 2, 3]


def test_while_its_message_goes_out_a_task_is_neither_running_nor_gone(
    worker: Any, task: Any, monkeypatch: Any
) -> None:
    from celery_continuations.execution.triggers import watcher

    republish = message.republish
    seen: list[Any] = []

    def watched(*args: Any, **kwargs: Any) -> None:
        seen.append((bool(watcher.running), watcher.leaving))
        republish(*args, **kwargs)

    def run(self: Any) -> None:
        for _ in self.iterate("loop", range(2)):
            worker.stop()

    monkeypatch.setattr(message, "republish", watched)
    task(run).delay()
    worker.drain()
    assert seen == [(False, True)] * 2


def test_a_task_that_exits_by_itself_is_not_an_interruption(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        sys.exit(3)

    task(run).delay()
    with pytest.raises(TypeError):  # the solo pool's reaction to a SystemExit
        worker.deliver()
    assert worker.queued() == 0


def test_without_a_result_backend_a_continuation_whose_record_is_gone_resumes(worker: Any, app: Celery) -> None:
    from tests.support.worker import Worker

    lone = Celery("lone", broker="memory://", set_as_current=False)
    lone.conf.update(task_default_queue=app.conf.task_default_queue, continuation_store="memory")
    other = Worker(lone)

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(4)):
            seen.append(item)
            if item == 1:
                other.stop()

    seen: list[int] = []
    lone.task(base=ContinuableTask, bind=True, name="lone", shared=False)(run).delay()
    other.deliver()
    open_store(lone, "memory")._records.clear()  # type: ignore[attr-defined]
    other.drain()
    assert seen == [0, 1, 2, 3]


class Odd(tzinfo):
    """A zone that has no name to save it by."""

    def utcoffset(self, when: Any) -> timedelta:
        return timedelta(hours=1)

    def dst(self, when: Any) -> timedelta:
        return timedelta()


def test_a_cursor_whose_part_cannot_be_saved_is_refused_at_the_set(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        for step in self.step("one", start=0):
            step.set((1, datetime(2026, 1, 1, tzinfo=Odd())))

    result = task(run).delay()
    worker.drain()
    assert isinstance(result.result, UnserializableValueError)
    assert "the cursor of step 'one' cannot be saved: a time zone of type" in str(result.result)


def test_a_source_whose_cursors_cannot_be_saved_is_refused_at_its_first(worker: Any, task: Any) -> None:
    class Source:
        def read(self, cursor: Any) -> Any:
            yield "item", object()

    def run(self: Any) -> None:
        for item in self.iterate("loop", Source()):
            seen.append(item)

    seen: list[str] = []
    result = task(run).delay()
    worker.drain()
    assert (seen, type(result.result)) == ([], UnserializableValueError)


@pytest.mark.parametrize("answer", ["superseded", "stopping", "isolated", "max_runtime", 5])
def test_a_predicate_may_answer_what_it_likes(worker: Any, task: Any, answer: Any) -> None:
    def run(self: Any) -> int:
        for item in self.iterate("loop", range(3)):
            seen.append(item)
        return self.continuation.resumptions  # type: ignore[no-any-return]

    seen: list[int] = []
    asked: list[int] = []
    made = task(
        run, continuation_max_resumptions=1, continuation_should_interrupt=lambda task: asked.append(1) or answer
    )
    result = made.delay()
    worker.deliver()
    assert str(result.info) == f"Interrupted at loop:1, 33 % ({answer})"
    worker.drain()
    assert type(result.result).__name__ == "ResumeLimitError", "it counts, whatever it says"


def test_an_answer_that_comes_too_early_to_leave_is_acted_on_later(worker: Any, task: Any) -> None:
    """The predicate says so once; the next checkpoint with progress leaves."""
    answers = ["first", "once"]

    def run(self: Any) -> None:
        self.checkpoint()
        for item in self.iterate("loop", range(3)):
            seen.append((self.continuation.resumptions, item))

    seen: list[Any] = []
    result = task(run, continuation_should_interrupt=lambda task: answers.pop(0) if answers else None).delay()
    worker.deliver()
    assert str(result.info) == "Interrupted between steps (first)"
    worker.deliver()
    assert str(result.info) == "Interrupted at loop:1, 33 % (once)"
    worker.drain()
    assert seen == [(1, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("problem", ["too large", "unreadable"])
def test_a_record_of_a_failed_task_does_not_stay_running(
    worker: Any, task: Any, app: Celery, record: Any, problem: str
) -> None:
    def run(self: Any) -> None:
        self.saved["x"] = "x" * 2000
        self.step("one", int)

    made = task(run, continuation_max_snapshot=1000)
    task_id = os.urandom(8).hex()
    if problem == "unreadable":
        open_store(app, "memory").compare_and_swap(task_id, None, Update(Fence(0, Status.QUEUED), "nonsense"))
    result = made.apply_async(task_id=task_id)
    worker.drain()
    assert result.state == states.FAILURE
    assert record(task_id).fence.status == Status.FAILED


@pytest.mark.parametrize("end", ["error", "reject", "replace"])
def test_an_execution_that_was_succeeded_stores_no_failure_and_no_replacement(
    worker: Any, app: Celery, task: Any, record: Any, end: str
) -> None:
    def run(self: Any) -> None:
        take_over(app, self.request.id)
        if end == "error":
            raise ValueError
        if end == "reject":
            raise Reject("no")
        self.replace(made.s())

    made = task(run)
    result = made.delay()
    assert worker.drain() == 1
    assert result.state == states.PENDING
    assert record(result.id).fence.owner == "another/1.1/a"


def test_throws_may_be_a_single_class(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise KeyError("mine")

    result = task(run, throws=KeyError).delay()
    assert worker.drain() == 1
    assert isinstance(result.result, KeyError)


def test_a_callers_header_of_any_name_is_kept(worker: Any, task: Any) -> None:
    def run(self: Any) -> Any:
        for _ in self.iterate("loop", range(2)):
            worker.stop()
        return self.request.headers["continuation-token"]

    result = task(run).apply_async(headers={"continuation-token": "mine"})
    worker.drain()
    assert result.get() == "mine"


def test_a_task_that_calls_itself(worker: Any, task: Any) -> None:
    def run(self: Any, depth: int) -> Any:
        value = self.step("one", lambda: depth)
        for _ in self.iterate("loop", range(2)):
            worker.stop()
        return [value, *(self(depth - 1) if depth else [])]

    result = task(run).delay(2)
    worker.drain()
    assert result.get() == [2, 1, 0]


def test_a_failed_save_is_tried_again_after_the_interval(worker: Any, task: Any, monkeypatch: Any, caplog: Any) -> None:
    def away(*args: Any, **kwargs: Any) -> bool:
        tried.append(1)
        raise StoreError("memory", "away")

    def run(self: Any) -> None:
        from celery_continuations.execution.triggers import watcher

        (watch,) = watcher.running
        watch._save_at = 0.0
        for _ in self.iterate("loop", range(100)):
            watch.check()

    tried: list[int] = []
    monkeypatch.setattr(OwnedRecord, "save", away)
    result = task(run, continuation_checkpoint_interval=60).delay()
    worker.drain()
    assert result.state == states.SUCCESS, "the task works on"
    assert len(tried) == 2, "once in the loop, and once at its end"
    assert "could not save its progress: store memory: away" in caplog.text


def test_an_interrupted_record_becomes_due_and_a_finished_one_expires(
    worker: Any, task: Any, record: Any, app: Celery
) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("loop", range(2)):
            worker.stop()

    result = task(run, continuation_resume_options={"countdown": 0}).delay()
    worker.deliver()
    queued = record(result.id)
    assert (queued.fence.status, queued.fence.owner) == (Status.QUEUED, "")
    assert queued.due is not None
    worker.drain()
    _, until = open_store(app, "memory")._records[result.id]  # type: ignore[attr-defined]
    assert until is not None


@pytest.mark.parametrize(("size", "kept"), [(10, True), (2000, False)])
def test_a_return_value_is_kept_only_until_its_result_is_stored(
    worker: Any, task: Any, record: Any, monkeypatch: Any, size: int, kept: bool
) -> None:
    def run(self: Any) -> str:
        return "x" * size

    returned: list[Any] = []
    finish = OwnedRecord.finish

    def watched(owned: OwnedRecord, *args: Any) -> None:
        finish(owned, *args)
        returned.append(record(result.id).value)

    monkeypatch.setattr(OwnedRecord, "finish", watched)
    result = task(run, continuation_max_snapshot=1000).delay()
    worker.drain()
    assert result.get() == "x" * size
    assert returned == [json.dumps("x" * size) if kept else None]
    assert not record(result.id).value


def test_a_wait_that_exceeds_the_slice_is_warned_of(worker: Any, task: Any, monkeypatch: Any, caplog: Any) -> None:
    def run(self: Any) -> None:
        from celery_continuations.execution.triggers import watcher

        for _ in self.iterate("loop", range(2)):
            for watch in watcher.running:
                watch.check()

    task(run, continuation_max_runtime=0.000001).delay()
    worker.deliver()
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    worker.deliver()
    assert "waited 100 s in the queue after a slice of 0 s; continuation_resume_options can name" in caplog.text
    monkeypatch.undo()
    worker.drain()


def test_on_amqp_the_publish_is_confirmed(monkeypatch: Any) -> None:
    from celery_continuations.messages import publishing

    app = Celery("confirmed", broker="pyamqp://localhost//", set_as_current=False)
    acquired: list[Any] = []

    class Pool:
        def acquire(self, block: bool) -> str:
            return "producer"

    class Producers(dict):  # type: ignore[type-arg]
        def __missing__(self, connection: Any) -> Pool:
            acquired.append(connection)
            return Pool()

    monkeypatch.setattr(publishing, "producers", Producers())
    assert publishing.pooled_producer(app) == "producer"
    assert acquired[0].transport_options["confirm_publish"] is True


def test_urls_of_the_environment_are_seen() -> None:
    code = """
from celery import Celery
from celery_continuations.stores import open_store
print(type(open_store(Celery("env"), "auto")).__name__)
"""
    env = {**os.environ, "CELERY_BROKER_URL": "redis://localhost/0", "CELERY_RESULT_BACKEND": "redis://localhost/1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "RedisStore"


@pytest.mark.parametrize("base", [AppTask, ContinuableTask])
def test_arguments_do_not_outlive_their_execution(worker: Any, task: Any, base: Any) -> None:
    class Big:
        pass

    def run(self: Any) -> None:
        big = self.request.big = Big()
        alive.append(weakref.ref(big))
        if base is ContinuableTask:
            self.step("one", int)

    alive: list[Any] = []
    made = task(run, base=base)
    gc.collect()
    gc.disable()
    try:
        made.delay()
        worker.drain()
        worker.deliveries.clear()
        assert alive[0]() is None
    finally:
        gc.enable()


def test_sources_that_are_views_of_a_mapping(worker: Any, task: Any) -> None:
    def run(self: Any) -> Any:
        return [list(self.iterate("keys", {"a": 1}.keys())), list(self.iterate("items", {"a": 1}.items()))]

    result = task(run).delay()
    worker.drain()
    assert result.get() == [["a"], [["a", 1]]]


@pytest.mark.parametrize(
    "url",
    ["rediss://localhost/0?ssl_cert_reqs=CERT_NONE", "rediss://localhost/0?ssl_cert_reqs=required",
     "redis://localhost/0?virtual_host=1", "redis+socket:///tmp/no.sock?virtual_host=1",
     "sentinel://localhost:26379/0"],
)  # fmt: skip
def test_redis_urls_are_read_as_celery_reads_them(url: str) -> None:
    app = Celery("urls", broker="memory://", backend=url, set_as_current=False)
    app.conf.result_backend_transport_options = {"master_name": "mymaster"}
    assert type(open_store(app, "auto")).__name__ == "RedisStore"
    assert conf.driver_type(app) == "memory"


def test_what_the_log_says_of_an_execution_that_was_lost(worker: Any, task: Any, app: Celery, caplog: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)

    made = task(run)
    open_store(app, "memory").compare_and_swap(
        "lost-id", None, Update(Fence(1, Status.RUNNING, "/1.1/killed"), Snapshot().dumps())
    )
    made.apply_async(task_id="lost-id")
    caplog.set_level("INFO", "celery_continuations")
    worker.drain()
    assert "resumed (lost), completed: nothing" in caplog.text


def test_the_log_has_the_traceback_of_an_error_that_is_resumed_from(worker: Any, task: Any, caplog: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise KeyError("with a traceback")

    task(run).delay()
    worker.deliver()
    (told,) = [record for record in caplog.records if getattr(record, "action", "") == "interrupted"]
    assert told.levelname == "WARNING"
    assert told.exc_info[0] is KeyError
    worker.drain()


@pytest.mark.parametrize("when", ["countdown", "eta"])
def test_a_retry_is_due_when_it_is_to_be_run(worker: Any, task: Any, record: Any, when: str) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        if self.request.retries == 0:
            later = (
                {"countdown": 1000} if when == "countdown" else {"eta": datetime.now(timezone.utc) + timedelta(0, 1000)}
            )
            self.retry(**later)

    result = task(run).delay()
    worker.deliver()
    assert record(result.id).due > time.time() + 990
    worker.drain()


@pytest.mark.parametrize("when", ["before the write", "after the write"])
@pytest.mark.parametrize("caught", [False, True])
def test_a_soft_time_limit_hits_in_the_middle_of_a_save(
    worker: Any, task: Any, app: Celery, record: Any, monkeypatch: Any, when: str, caught: bool
) -> None:
    store = open_store(app, "memory")
    swap = store.compare_and_swap

    def interrupted_swap(task_id: str, expected: Any, new: Any) -> bool:
        hit = not hits and new.snapshot is not None and Snapshot.loads(new.snapshot).current == ("loop", 2)
        if hit:
            hits.append(1)
            if when == "before the write":
                raise SoftTimeLimitExceeded
        written = swap(task_id, expected, new)
        if hit:
            raise SoftTimeLimitExceeded
        return written

    def run(self: Any) -> str:
        try:
            for item in self.iterate("loop", range(4)):
                seen.append(item)
        except SoftTimeLimitExceeded:
            if not caught:
                raise
        self.step("after", seen.append, "after")
        return "end"

    hits: list[int] = []
    seen: list[Any] = []
    monkeypatch.setattr(store, "compare_and_swap", interrupted_swap)
    result = task(run, continuation_checkpoint_interval=0).delay()
    worker.drain()
    if caught:
        assert (result.get(), seen) == ("end", [0, 1, "after"])
    else:
        assert (result.state, seen) == (states.FAILURE, [0, 1])
        assert record(result.id).fence.status == Status.FAILED
        assert Snapshot.loads(record(result.id).snapshot).current == ("loop", 2)


def test_what_is_asked_of_an_unknown_id_and_of_a_broken_snapshot(task: Any, app: Celery) -> None:
    def run(self: Any) -> None: ...

    made = task(run)
    unknown = made.AsyncResult("unknown")
    assert (unknown.progress, unknown.steps, unknown.resumptions, unknown.snapshot()) == (None, (), 0, None)
    open_store(app, "memory").compare_and_swap("broken", None, Update(Fence(1, Status.RUNNING, "x"), '{"version":1,'))
    for name in ("progress", "steps", "resumptions"):
        with pytest.raises(UnserializableValueError, match="the snapshot.*cannot be read"):
            getattr(made.AsyncResult("broken"), name)
    found = open_store(app, "memory").read("broken")
    assert found is not None and found.snapshot == '{"version":1,', "the record is kept"


def test_kombus_own_error_on_a_lost_connection_does_not_fail_the_task(worker: Any, task: Any, monkeypatch: Any) -> None:
    """Its Redis transport raises AttributeError where a channel has no connection any more."""

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(2)):
            if item == 0 and not attempts:
                worker.stop()

    republish = message.republish
    attempts: list[int] = []

    def cut(*args: Any, **kwargs: Any) -> None:
        attempts.append(1)
        if len(attempts) <= 3:
            raise AttributeError("'NoneType' object has no attribute 'client'")
        republish(*args, **kwargs)

    monkeypatch.setattr(message, "republish", cut)
    monkeypatch.setattr(message, "_PAUSE", 0.001)
    result = task(run).delay()
    worker.drain()
    assert (len(attempts), result.state) == (4, states.SUCCESS)
