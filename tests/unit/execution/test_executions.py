"""What one execution does, and the message that it publishes."""

from __future__ import annotations

import json
import logging
import pickle
import uuid
from datetime import timedelta
from typing import Any

import pytest
from celery import VERSION as celery_version
from celery import Celery, states
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from celery_continuations import (
    AppTask,
    ContinuationError,
    Interrupted,
    InvalidStepError,
    ResumeLimitError,
    SnapshotTooLargeError,
    UnserializableValueError,
    conf,
)
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.protocol.owned import OwnedRecord
from celery_continuations.stores import Fence, Status, Update, open_store
from celery_continuations.worker.sweeper import Sweeper
from tests.support.worker import make_app, take_over


def loop(worker: Any, seen: list[int], stop_after: set[int] = frozenset(), total: int = 10) -> Any:  # type: ignore[assignment]
    """Return a task's function: a loop whose worker is stopped after some of its items."""

    def run(self: Any) -> int:
        for item in self.iterate("loop", range(total)):
            seen.append(item)
            if item in stop_after:
                worker.stop()
        return total

    return run


def test_a_task_that_is_not_stopped_runs_in_one_execution(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(loop(worker, seen)).delay()
    assert worker.drain() == 1
    assert (seen, result.state, result.get()) == (list(range(10)), states.SUCCESS, 10)
    assert worker.deliveries[0].end == "acked"


def test_an_interrupted_task_leaves_one_message_and_the_next_worker_finishes(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(loop(worker, seen, {4})).delay()
    worker.deliver()
    assert seen == [0, 1, 2, 3, 4]
    assert worker.queued() == 1
    assert (result.state, repr(result.info)) == (states.RETRY, repr(Interrupted("loop", 5, "stopping", 50)))
    assert worker.drain() == 1
    assert (seen, result.get()) == (list(range(10)), 10)
    first, second = worker.deliveries
    assert first.headers["id"] == second.headers["id"]
    assert second.headers["continuation_generation"] == 1


def test_an_error_without_progress_is_raised(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.checkpoint()
        raise ValueError("no")

    result = task(run).delay()
    assert worker.drain() == 1
    assert result.state == states.FAILURE


def test_an_error_after_progress_resumes_and_the_second_at_the_same_cursor_is_raised(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        resumptions.append((self.continuation.resumptions, self.continuation.errors))
        for item in self.iterate("loop", range(5)):
            if item == 3:
                raise ValueError(f"item {item}")

    resumptions: list[Any] = []
    result = task(run).delay()
    worker.deliver()
    assert result.state == states.RETRY
    assert str(result.info) == "Interrupted at loop:3, 60 % (ValueError: item 3)"
    assert worker.drain() == 1
    assert (result.state, str(result.result)) == (states.FAILURE, "item 3")
    assert resumptions[0] == (0, [])
    assert resumptions[1] == (1, [{"type": "ValueError", "message": "item 3", "step": "loop", "cursor": 3}])


def test_an_error_after_a_completed_step_resumes(worker: Any, task: Any) -> None:
    def run(self: Any) -> str:
        self.step("one", int)
        return self.step("two", fail.pop)  # type: ignore[no-any-return]

    fail: list[str] = []
    result = task(run).delay()
    worker.deliver()
    assert result.state == states.RETRY
    fail.append("later")
    worker.drain()
    assert result.get() == "later"


def test_errors_resume_after_the_countdown(worker: Any, app: Celery, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise ValueError

    app.conf.continuation_resume_error_countdown = 60
    task(run).delay()
    worker.deliver()
    assert worker.queued() == 1
    delivery = worker.deliver()
    assert delivery.headers["eta"] is not None


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), ContinuationError("x"), KeyError("in throws")])
def test_errors_that_are_not_resumed(worker: Any, task: Any, error: Exception) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise error

    result = task(run, throws=(KeyError,)).delay()
    assert worker.drain() == 1
    assert result.state == states.FAILURE


def test_being_out_of_memory_is_not_resumed(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise MemoryError

    task(run).delay()
    with pytest.raises(MemoryError):  # Celery lets it end the process
        worker.deliver()
    assert worker.queued() == 0


def test_resume_errors_after_advancing_off(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        raise ValueError

    result = task(run, continuation_resume_errors_after_advancing=False).delay()
    assert worker.drain() == 1
    assert result.state == states.FAILURE


def test_autoretry_is_asked_only_when_the_task_did_not_get_on(worker: Any, task: Any) -> None:
    def run(self: Any) -> int:
        retries.append((self.request.retries, self.continuation.resumptions))
        for item in self.iterate("loop", range(3)):
            if item == 1 and len(retries) < 4:
                raise ValueError
        return self.request.retries  # type: ignore[no-any-return]

    retries: list[Any] = []
    result = task(run, autoretry_for=(ValueError,), max_retries=5, default_retry_delay=0).delay()
    worker.drain()
    # the first made progress and resumed; the second and third made none, and were retried with their progress kept
    assert retries == [(0, 0), (0, 1), (1, 2), (2, 3)]
    assert result.get() == 0, "progress sets it back"


def test_retries_are_unchanged_by_ten_interruptions(worker: Any, task: Any) -> None:
    def run(self: Any) -> tuple[int, int]:
        for _ in self.iterate("loop", range(10)):
            worker.stop()
        return self.request.retries, self.continuation.resumptions

    result = task(run).delay()
    assert worker.drain() == 11
    assert result.get() == [0, 10]


def test_a_predicate_is_called_with_the_task_and_its_answer_is_the_reason(worker: Any, task: Any, app: Celery) -> None:
    asked: list[Any] = []

    def full(the_task: Any) -> str | None:
        asked.append(the_task.request.id)
        return "disk is full" if len(asked) == 1 else None

    seen: list[int] = []
    app.conf.continuation_should_interrupt = full
    result = task(loop(worker, seen)).delay()
    worker.deliver()
    assert str(result.info) == "Interrupted at loop:1, 10 % (disk is full)"
    worker.drain()
    assert result.get() == 10
    assert set(asked) == {result.id}


def test_a_predicate_may_be_a_dotted_path_or_a_method(worker: Any, task: Any) -> None:
    by_path = task(loop(worker, []), continuation_should_interrupt="tests.support.predicates.always").delay()
    worker.deliver()
    assert str(by_path.info) == "Interrupted at loop:1, 10 % (always)"
    worker.drain()


def test_the_log_of_an_interruption_after_a_step(worker: Any, task: Any, caplog: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", worker.stop)
        self.step("two", int)

    caplog.set_level(logging.DEBUG, "celery_continuations")
    task(run).delay()
    worker.drain()
    assert [record.action for record in caplog.records] == [
        "step_started",
        "step_completed",
        "interrupted",
        "resumed",
        "step_skipped",
        "step_started",
        "step_completed",
    ]
    text = caplog.text
    assert "Interrupted between steps (stopping)" in text
    assert "resumed (stopping), completed: one" in text
    assert "step one skipped" in text


@pytest.mark.parametrize(
    ("total", "start", "shown"),
    [
        (3, None, "Interrupted('loop', 1, 'stopping', percent=33)"),
        (1, None, "Interrupted('loop', 1, 'stopping', percent=100)"),
        (1000, None, "Interrupted('loop', 1, 'stopping', percent=0)"),
        (None, None, "Interrupted('loop', 1, 'stopping')"),
        (0, None, "Interrupted('loop', 1, 'stopping')"),
        (3, 7, "Interrupted('loop', 8, 'stopping')"),
    ],
)
def test_an_interruption_shows_the_percentage_where_it_is_known(
    worker: Any, task: Any, total: int | None, start: int | None, shown: str
) -> None:
    def run(self: Any) -> None:
        for _ in self.iterate("loop", lambda: map(str, range(9)), total=total, start=start):
            worker.stop()

    result = task(run).delay()
    worker.deliver()
    assert repr(result.info) == shown


def test_an_interruption_outside_a_loop_shows_no_percentage(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        for step in self.step("pages", start=0):
            worker.stop()
            step.advance()

    result = task(run).delay()
    worker.deliver()
    assert str(result.info) == "Interrupted at pages:1 (stopping)"


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("args", [("loop", 5, "stopping", 50), ("loop", 5, "stopping"), (None, None, "stopping"), ()])
def test_celery_rebuilds_an_interruption_of_its_arguments(app: Celery, serializer: str, args: tuple[Any, ...]) -> None:
    shown = Interrupted(*args)
    kept = app.backend.prepare_exception(shown, serializer)
    if serializer == "json":
        kept = json.loads(json.dumps(kept))
    for found in (app.backend.exception_to_python(kept), pickle.loads(pickle.dumps(shown))):
        assert type(found) is Interrupted
        assert vars(found) == vars(shown)
        assert (repr(found), str(found)) == (repr(shown), str(shown))


def test_the_log_of_an_interruption_during_a_step(worker: Any, task: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "celery_continuations")
    task(loop(worker, [], {4})).delay()
    worker.drain()
    assert "Interrupted at loop:5, 50 % (stopping)" in caplog.text
    assert "step loop resumed from 5" in caplog.text
    interrupted = next(record for record in caplog.records if record.action == "interrupted")
    found = {name: interrupted.data[name] for name in ("step", "cursor", "reason")}
    assert found == {"step": "loop", "cursor": 5, "reason": "stopping"}


def test_a_message_without_continuation_data_runs(worker: Any, app: Celery, task: Any) -> None:
    seen: list[int] = []
    made = task(loop(worker, seen))
    Celery(broker="memory://", set_as_current=False).send_task(made.name, queue=app.conf.task_default_queue)
    worker.drain()
    assert seen == list(range(10))


@pytest.mark.parametrize("by_errors", [False, True])
def test_the_third_resumption_is_one_too_many(worker: Any, task: Any, by_errors: bool) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(10)):
            seen.append(item)
            if by_errors and self.continuation.current.advanced:
                raise ValueError("on")

    seen: list[int] = []
    options = {} if by_errors else {"continuation_should_interrupt": lambda task: "enough"}
    result = task(run, continuation_max_resumptions=2, **options).delay()
    worker.deliver()
    assert str(result.info) == f"Interrupted at loop:1, 10 % ({'enough' if not by_errors else 'ValueError: on'})"
    worker.drain()
    assert isinstance(result.result, ResumeLimitError)
    assert "resumed 2 times already (continuation_max_resumptions=2)" in str(result.result)


def test_stops_and_slices_do_not_count(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(loop(worker, seen, set(range(9))), continuation_max_resumptions=0).delay()
    worker.drain()
    assert result.get() == 10


def test_resume_options(worker: Any, task: Any, app: Celery) -> None:
    seen: list[int] = []
    result = task(
        loop(worker, seen, {4}), continuation_resume_options={"queue": "first", "countdown": 30, "priority": 3}
    ).delay()
    worker.deliver()
    assert worker.queued() == 0
    delivery = worker.deliver("first")
    assert delivery.headers["eta"] is not None
    assert delivery.message.properties["priority"] == 3
    assert result.get() == 10


def test_isolated_steps_in_executions_of_their_own(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        here: list[int] = []
        executed.append(here)
        for number in (1, 2, 3, 4):
            for _ in self.step(f"step {number}", isolated=number == 3):
                here.append(number)

    executed: list[list[int]] = []
    task(run).delay()
    worker.drain()
    assert executed == [[1, 2], [3], [4]]


def test_saved_and_remembered_values_survive(worker: Any, task: Any) -> None:
    def run(self: Any) -> Any:
        value = self.step("value", lambda: (1, {2: 3}))
        self.saved.setdefault("since", timedelta(days=2))
        for _ in self.iterate("loop", range(2)):
            worker.stop()
        return repr((value, self.saved))

    result = task(run).delay()
    worker.drain()
    assert result.get() == repr(((1, {2: 3}), {"since": timedelta(days=2)}))


def test_arguments_reach_every_execution(worker: Any, task: Any) -> None:
    def run(self: Any, one: Any, *, two: Any) -> None:
        for _ in self.iterate("loop", range(3)):
            seen.append((one, two))
            worker.stop()

    seen: list[Any] = []
    task(run).delay({"s10": {"of": "type dict"}}, two=[1, None])
    worker.drain()
    assert seen == [({"s10": {"of": "type dict"}}, [1, None])] * 3


def test_executions_cursor_and_run_time(worker: Any, task: Any, monkeypatch: Any) -> None:
    from celery_continuations.execution import (
        checkpoints,
        triggers,
    )

    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

        time = monotonic

    clock = Clock()
    for module in (checkpoints, triggers):
        monkeypatch.setattr(module, "time", clock)

    def run(self: Any) -> None:
        facts.append((self.continuation.executions, self.continuation.run_time))
        for item in self.iterate("loop", range(3)):
            clock.now += 10
            if item == 0:
                worker.stop()
            if item == 1 and not failed:
                failed.append(item)
                self.step_done = True
                raise KeyError
        del self

    facts: list[Any] = []
    failed: list[int] = []
    result = task(run, autoretry_for=(KeyError,), default_retry_delay=0).delay()
    worker.drain()
    assert facts == [(1, 0.0), (2, 10.0), (3, 20.0)]
    assert result.state == states.SUCCESS


def test_a_failure_keeps_the_cursor_of_the_failing_item(worker: Any, task: Any, record: Any) -> None:
    def run(self: Any) -> None:
        for item in self.iterate("loop", range(5)):
            if item == 3:
                raise ContinuationError("final")

    result = task(run).delay()
    worker.drain()
    assert result.state == states.FAILURE
    found = record(result.id)
    assert found.fence.status == Status.FAILED
    assert json.loads(found.snapshot)["current"] == ["loop", 3]
    assert result.progress == ("loop", 3, 5)


def test_max_runtime_of_the_app_of_the_task_and_changed_at_run_time(worker: Any, task: Any, app: Celery) -> None:
    seen: list[int] = []

    def run(self: Any) -> None:
        for item in self.iterate("loop", range(3)):
            seen.append(item)
            from celery_continuations.execution.triggers import watcher

            for watch in watcher.running:
                watch.check()

    whole, sliced = task(run), task(run, continuation_max_runtime=timedelta(microseconds=1))
    whole.delay()
    assert worker.drain() == 1
    sliced.delay()
    assert worker.drain() == 3 + 1
    app.conf.continuation_max_runtime = 0.000001
    result = whole.delay()
    worker.deliver()
    assert str(result.info) == "Interrupted at loop:1, 33 % (max_runtime)"
    app.conf.continuation_max_runtime = None
    assert worker.drain() == 1


@pytest.mark.parametrize(
    ("settings", "keeps", "seconds"),
    [
        ({"broker_url": "amqp://", "worker_prefetch_multiplier": 4}, True, 300),
        ({"broker_url": "amqp://", "worker_prefetch_multiplier": 1}, True, 600),
        ({"broker_url": "memory://"}, True, None),
        ({"broker_url": "memory://", "broker_transport_options": {"visibility_timeout": 90}}, False, 45),
        ({"broker_url": "redis://", "broker_transport_options": {"visibility_timeout": 90}}, True, None),
        ({"broker_url": "redis://"}, False, 1800),
    ],
)
def test_max_runtime_auto(settings: dict[str, Any], keeps: bool, seconds: float | None) -> None:
    assert conf.auto_max_runtime(make_app(**settings), keeps) == seconds


def test_a_hook_that_publishes_does_not_double_the_message(worker: Any, task: Any) -> None:
    called: list[Any] = []

    def on_retry(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        called.append((str(exc), worker.queued()))

    seen: list[int] = []
    task(loop(worker, seen, {4}), on_retry=on_retry).delay()
    worker.drain()
    assert seen == list(range(10))
    assert called == [("Interrupted at loop:5, 50 % (stopping)", 1)]


def test_the_state_is_stored_before_the_message_is_out(worker: Any, task: Any, monkeypatch: Any) -> None:
    from celery_continuations.execution import (
        message,
    )

    states_at_publish: list[str] = []
    republish = message.republish

    def watched(task: Any, request: Any, **kwargs: Any) -> None:
        states_at_publish.append(task.AsyncResult(request.id).state)
        republish(task, request, **kwargs)

    monkeypatch.setattr(message, "republish", watched)
    task(loop(worker, [], {4})).delay()
    worker.drain()
    assert states_at_publish == [states.RETRY]


def test_except_exception_around_a_checkpoint(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        for step in self.step("loop", start=0):
            while step.cursor < 5:
                seen.append(step.cursor)
                if step.cursor == 2:
                    worker.stop()
                try:
                    step.advance()
                except Exception:
                    caught.append(1)

    seen: list[int] = []
    caught: list[int] = []
    task(run, autoretry_for=(Exception,)).delay()
    assert worker.drain() == 2
    assert (seen, caught) == ([0, 1, 2, 3, 4], [])


def test_a_bare_except_around_a_checkpoint(worker: Any, task: Any) -> None:
    def run(self: Any) -> str:
        for step in self.step("loop", start=0):
            while step.cursor < 5:
                seen.append(step.cursor)
                if step.cursor == 2:
                    worker.stop()
                try:
                    step.advance()
                except:  # noqa: E722
                    pass
        return "end"

    seen: list[int] = []
    result = task(run).delay()
    worker.deliver()
    assert result.state == states.RETRY
    worker.drain()
    assert (seen, result.get()) == ([0, 1, 2, 3, 4], "end")


def test_a_finally_that_raises(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        try:
            for item in self.iterate("loop", range(5)):
                seen.append(item)
                if item == 2:
                    worker.stop()
        finally:
            if len(seen) < 5:
                raise RuntimeError("from finally")

    seen: list[int] = []
    result = task(run, autoretry_for=(RuntimeError,)).delay()
    worker.deliver()
    assert str(result.info) == "Interrupted at loop:3, 60 % (stopping)"
    worker.drain()
    assert (seen, result.state) == ([0, 1, 2, 3, 4], states.SUCCESS)


def test_task_track_started(worker: Any, app: Celery, task: Any) -> None:
    seen_states: list[str] = []

    def run(self: Any) -> None:
        for _ in self.iterate("loop", range(2)):
            seen_states.append(self.AsyncResult(self.request.id).state)
            worker.stop()

    task(run, track_started=True).delay()
    worker.drain()
    assert seen_states == [states.STARTED, states.STARTED]


def test_ignore_result(worker: Any, task: Any) -> None:
    seen: list[int] = []
    by_task = task(loop(worker, seen, {4}), ignore_result=True).delay()
    worker.drain()
    by_call = task(loop(worker, seen, {4})).apply_async(ignore_result=True)
    worker.drain()
    assert seen == [*range(10), *range(10)]
    assert by_task.state == states.PENDING
    if celery_version >= (5, 6):  # 5.5 stores every RETRY of a task whose result only the caller ignores
        assert by_call.state == states.PENDING


def test_a_task_is_revoked_between_two_executions(worker: Any, task: Any, record: Any) -> None:
    from celery.worker.state import revoked

    seen: list[int] = []
    result = task(loop(worker, seen, {4})).delay()
    worker.deliver()
    revoked.add(result.id)
    try:
        worker.drain()
    finally:
        revoked.discard(result.id)
    assert (seen, result.state) == ([0, 1, 2, 3, 4], states.REVOKED)


def test_a_stopping_worker_does_not_run_a_continuation(worker: Any, task: Any) -> None:
    seen: list[int] = []
    result = task(loop(worker, seen, {4})).delay()
    worker.deliver()
    handed_over = result.info
    worker.deliver(stopping=True)
    assert (seen, worker.queued()) == ([0, 1, 2, 3, 4], 1)
    assert (result.state, str(result.info)) == (states.RETRY, str(handed_over))
    worker.drain()
    assert (seen, result.get()) == (list(range(10)), 10)


def test_the_main_process_of_a_stopping_worker_gives_a_continuation_back(worker: Any, app: Celery, task: Any) -> None:
    from celery_continuations.process.stop_flag import STOPPING, new_flag
    from celery_continuations.worker.requests import strategy

    class Consumer:
        hostname = "stopping@test"
        cancelled = 0

        class task_consumer:
            @staticmethod
            def cancel() -> None:
                Consumer.cancelled += 1

        class controller:
            class state:
                revoked: set[str] = set()

        event_dispatcher = timer = pool = qos = None
        disable_rate_limits = True
        task_buckets: dict[str, Any] = {}
        connection_errors = ()

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: given.append(name)

    class Timer:
        call_at = None

    class Message:
        def __init__(self, headers: Any) -> None:
            self.headers = headers

        def requeue(self) -> None:
            given.append("requeued")

    given: list[str] = []
    Consumer.timer = Timer()  # type: ignore[assignment]
    flag = new_flag("stopping@test")
    made = task(loop(worker, []))
    made._get_current_object()
    Consumer.pool = type("Pool", (), {"apply_async": None})()  # type: ignore[assignment]
    on_message = strategy(made, app, Consumer())
    flag.raise_to(STOPPING)
    on_message(Message({"id": "x", "continuation_generation": 1}), None, None, None, [])
    assert (given, Consumer.cancelled) == (["requeued"], 1)
    flag.remove()


@pytest.mark.parametrize("throw", [True, False])
def test_retry_keeps_the_progress_and_takes_its_arguments(worker: Any, task: Any, throw: bool) -> None:
    def run(self: Any, word: str) -> Any:
        for item in self.iterate("loop", range(4)):
            seen.append((word, item))
            if item == 1 and self.request.retries == 0:
                self.retry(args=("again",), countdown=0, throw=throw, headers={"own": "header"})
                if not throw:
                    return "not the end"
        return self.request.retries

    seen: list[Any] = []
    result = task(run).delay("first")
    worker.deliver()
    assert result.state == states.RETRY
    worker.drain()
    assert seen == [("first", 0), ("first", 1), ("again", 1), ("again", 2), ("again", 3)]
    assert result.get() == 0, "progress sets it back"
    assert worker.deliveries[1].headers["own"] == "header"


def test_retries_run_out(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        self.retry(countdown=0, max_retries=2)

    result = task(run).delay()
    assert worker.drain() == 3
    assert result.state == states.FAILURE


def test_replace_starts_the_other_task_afresh(worker: Any, app: Celery, task: Any, record: Any) -> None:
    def other(self: Any) -> Any:
        return (self.continuation.executions, self.step("one", lambda: "of the other"))

    def run(self: Any) -> Any:
        self.step("one", int)
        return self.replace(replacement.s())

    replacement = task(other)
    result = task(run).delay()
    worker.drain()
    assert result.get() == [1, "of the other"]
    assert record(result.id).fence.status == Status.DONE


def test_a_user_who_ignores_or_rejects(worker: Any, task: Any, record: Any) -> None:
    def run(self: Any, error: Any) -> Any:
        for item in self.iterate("loop", range(3)):
            seen.append(item)
            if item == 1 and error is not None and len(seen) < 3:
                raise errors[error]
        return "end"

    seen: list[int] = []
    errors = {"ignore": Ignore(), "requeue": Reject("x", requeue=True)}
    made = task(run)
    ignored = made.delay("ignore")
    worker.drain()
    assert record(ignored.id).fence.status == Status.DONE
    seen.clear()
    made.delay("requeue")
    assert worker.deliver().end == "requeued"
    assert seen == [0, 1]
    assert worker.drain() == 1


def test_a_stale_message_ends_without_touching_anything(worker: Any, task: Any, record: Any) -> None:
    seen: list[int] = []
    result = task(loop(worker, seen, {4})).delay()
    first = worker.deliver()
    worker.drain()
    before = record(result.id)
    assert before.fence.status == Status.DONE
    for delivery in (first, worker.deliveries[1]):
        worker.execute(delivery)
    assert seen == list(range(10))
    assert record(result.id) == before
    assert result.get() == 10


def test_an_execution_that_was_succeeded_ends_at_its_next_save(
    worker: Any, app: Celery, task: Any, record: Any
) -> None:
    app.conf.continuation_checkpoint_interval = 0

    def run(self: Any) -> str:
        for item in self.iterate("loop", range(5)):
            seen.append(item)
            if item == 2:
                take_over(app, self.request.id)
        return "end"

    seen: list[int] = []
    result = task(run).delay()
    worker.drain()
    assert seen == [0, 1, 2]
    found = record(result.id)
    assert (found.fence.owner, found.fence.generation) == ("another/1.1/a", 2)
    assert result.state == states.PENDING


def test_an_execution_that_was_succeeded_is_refused_at_its_end(
    worker: Any, app: Celery, task: Any, record: Any
) -> None:
    def run(self: Any) -> str:
        take_over(app, self.request.id)
        return "end"

    result = task(run).delay()
    worker.drain()
    assert record(result.id).fence.owner == "another/1.1/a"
    assert result.state == states.PENDING


def test_the_message_goes_out_only_after_the_progress_is_saved_and_waits_for_the_broker(
    worker: Any, task: Any, record: Any, monkeypatch: Any
) -> None:
    from celery_continuations.execution import (
        message,
    )

    republish = message.republish
    attempts: list[Any] = []

    def away(the_task: Any, request: Any, **kwargs: Any) -> None:
        attempts.append(json.loads(record(request.id).snapshot)["current"])
        if len(attempts) < 3:
            raise (OperationalError("away"), ConnectionRefusedError("away"))[len(attempts) - 1]
        republish(the_task, request, **kwargs)

    seen: list[int] = []
    monkeypatch.setattr(message, "republish", away)
    monkeypatch.setattr(message, "_PAUSE", 0.001)
    result = task(loop(worker, seen, {4})).delay()
    worker.drain()
    assert attempts == [["loop", 5]] * 3
    assert (seen, result.get()) == (list(range(10)), 10)


def test_a_message_that_no_broker_would_take_fails_the_task_and_keeps_its_record(
    worker: Any, task: Any, record: Any, monkeypatch: Any
) -> None:
    from celery_continuations.execution import (
        message,
    )

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise LookupError("no such exchange")

    monkeypatch.setattr(message, "republish", refuse)
    result = task(loop(worker, [], {4})).delay()
    with pytest.warns(RuntimeWarning, match="no such exchange"):
        worker.deliver()
    assert (result.state, str(result.result)) == (states.FAILURE, "no such exchange")
    found = record(result.id)
    assert found.fence.status == Status.FAILED
    assert json.loads(found.snapshot)["current"] == ["loop", 5]


def test_a_value_lost_between_finishing_and_the_result_is_returned_without_running_the_task_again(
    worker: Any, app: Celery, task: Any
) -> None:
    some_id = uuid.uuid4().hex
    seen: list[int] = []
    made = task(loop(worker, seen))
    store = open_store(app, "memory")
    lost = Fence(1, "running", "/1.1/lost")
    assert store.compare_and_swap(some_id, None, Update(lost))
    OwnedRecord(store, some_id, lost).finish(Snapshot().dumps(), '"kept"')
    result = made.apply_async(task_id=some_id)
    worker.drain()
    assert (seen, result.get()) == ([], "kept")


@pytest.mark.parametrize("error", [SystemExit, KeyError])
def test_a_result_that_was_not_stored_after_all_is_not_taken_for_stored(
    worker: Any, app: Celery, task: Any, record: Any, monkeypatch: Any, error: type[BaseException]
) -> None:
    """A cold stop between the end of the body and the result; a result backend that fails."""

    def cut(*args: Any, **kwargs: Any) -> None:
        raise error

    some_id = uuid.uuid4().hex
    seen: list[int] = []
    made = task(loop(worker, seen))
    monkeypatch.setattr(app.backend, "mark_as_done", cut)
    monkeypatch.setattr(app.backend, "mark_as_failure", cut)
    result = made.apply_async(task_id=some_id)
    with pytest.raises((error, TypeError)) if error is SystemExit else pytest.warns(RuntimeWarning):
        worker.deliver()
    monkeypatch.undo()
    assert record(some_id).fence.status == Status.RETURNED
    store = open_store(app, "memory")
    Sweeper(app, store, "another", lambda task_id: False).sweep(lambda: True)
    worker.drain()
    assert (result.get(), seen) == (10, list(range(10)))


def test_a_snapshot_over_the_limit_is_refused_by_name(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.saved["rows"] = "x" * 2000
        self.step("one", int)

    result = task(run, continuation_max_snapshot=1000).delay()
    worker.drain()
    assert isinstance(result.result, SnapshotTooLargeError)
    assert "continuation_max_snapshot allows 1,000; its largest part is saved['rows']" in str(result.result)


def test_a_snapshot_that_cannot_be_read_fails_the_task(worker: Any, app: Celery, task: Any, record: Any) -> None:
    from celery_continuations.stores import Fence, open_store

    some_id = uuid.uuid4().hex
    seen: list[int] = []
    made = task(loop(worker, seen))
    open_store(app, "memory").compare_and_swap(some_id, None, Update(Fence(0, Status.QUEUED), "nonsense"))
    result = made.apply_async(task_id=some_id)
    worker.drain()
    assert seen == []
    assert isinstance(result.result, UnserializableValueError)
    assert result.error.type == "UnserializableValueError"


def test_store_message_carries_everything_in_the_message(worker: Any, app: Celery, task: Any) -> None:
    app.conf.continuation_store = "message"
    seen: list[int] = []
    result = task(loop(worker, seen, {4, 7})).delay()
    worker.deliver()
    second = worker.deliver()
    assert json.loads(second.body[2]["continuation"])["current"] == ["loop", 5]
    worker.drain()
    assert (seen, result.get()) == (list(range(10)), 10)
    assert second.headers["continuation_generation"] == 1


def test_progress_is_saved_at_most_once_an_interval(worker: Any, app: Celery, task: Any, monkeypatch: Any) -> None:
    saved: list[Any] = []
    save = OwnedRecord.save

    def watched(owned: OwnedRecord, snapshot: str) -> None:
        saved.append(json.loads(snapshot).get("current"))
        save(owned, snapshot)

    monkeypatch.setattr(OwnedRecord, "save", watched)
    task(loop(worker, []), continuation_checkpoint_interval=0).delay()
    worker.drain()
    assert saved == [["loop", place] for place in range(1, 11)] + [None]
    saved.clear()
    task(loop(worker, []), continuation_checkpoint_interval=60).delay()
    worker.drain()
    assert saved == [None]


def test_app_task_claims_at_its_first_step_only(worker: Any, app: Celery, record: Any) -> None:
    @app.task(base=AppTask, bind=True, name="plain")
    def plain(self: Any) -> str:
        return "no step"

    @app.task(base=AppTask, bind=True, name="stepped")
    def stepped(self: Any) -> list[int]:
        for item in self.iterate("loop", range(5)):
            seen.append(item)
            if item == 2:
                worker.stop()
        return seen

    seen: list[int] = []
    no_steps, steps = plain.delay(), stepped.delay()
    worker.drain()
    assert no_steps.get() == "no step"
    assert record(no_steps.id) is None
    assert steps.get() == [0, 1, 2, 3, 4]
    assert record(steps.id).fence.status == Status.DONE
    assert (plain.acks_late, plain.reject_on_worker_lost) == (False, None)


def test_app_task_that_eats_the_refusal_of_its_claim_ends_all_the_same(worker: Any, app: Celery, record: Any) -> None:
    from celery_continuations.stores import Fence, open_store

    some_id = uuid.uuid4().hex

    @app.task(base=AppTask, bind=True, name="greedy")
    def greedy(self: Any) -> str:
        for _ in range(2):
            try:
                self.step("one", ran.append, 1)
            except:  # noqa: E722
                pass
        return "end"

    ran: list[int] = []
    open_store(app, "memory").compare_and_swap(some_id, None, Update(Fence(3, Status.DONE)))
    result = greedy.apply_async(task_id=some_id)
    worker.drain()
    assert (ran, result.state) == ([], states.PENDING)


def test_misuse_fails_the_task_and_is_not_resumed(worker: Any, task: Any) -> None:
    def run(self: Any) -> None:
        self.step("one", int)
        self.step("one", int)

    result = task(run).delay()
    assert worker.drain() == 1
    assert isinstance(result.result, InvalidStepError)
    assert "step 'one' was started twice" in str(result.result)
