"""A task waits for others: every way in which they can end, and any number of them."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import celery
import pytest
from celery import Celery, chain, chord, group, states
from celery.exceptions import Ignore, Reject, TaskRevokedError
from kombu.exceptions import OperationalError

from celery_continuations import ChildError, InvalidStepError, WaitTimeout, children, control, ends
from celery_continuations.core.snapshot import Snapshot, Waiting
from celery_continuations.messages.headers import AWAITED, PARENT
from celery_continuations.stores import Fence, Status, Update

IS_5_5 = celery.version_info[:2] < (5, 6)


@pytest.fixture
def calls(double: Any) -> list[Any]:
    found: list[Any] = double.calls
    return found


@pytest.fixture
def waits_for(task: Any) -> Callable[..., Any]:
    """Start a parent that waits for these signatures; return its result."""

    def start(signatures: Any, timeout: Any = None, **options: Any) -> Any:
        def body(self: Any) -> Any:
            return self.wait_for_results("children", signatures, timeout)

        return task(body, **options).apply_async()

    return start


@pytest.fixture
def child_id() -> str:
    """An id of its own for each test: they share the result backend."""
    return str(uuid.uuid4())


def begun_by(store: Any, task_id: str) -> Any:
    """What the parent has saved of its wait."""
    return children._Begun.of(Snapshot.loads(store.read(task_id).snapshot).current[1])


def actions(caplog: Any) -> list[str]:
    return [one.action for one in caplog.records if hasattr(one, "action")]


# -- every way in which a child can end


def returns(self: Any) -> str:
    return "fine"


def fails(self: Any) -> None:
    raise LookupError("gone")


def waits(self: Any) -> Any:
    return self.wait_for("never")


def makes_much(self: Any) -> str:
    return "x" * 1000


def echo(number: int) -> int:
    return number


def ignores(self: Any) -> None:
    raise Ignore


def rejects(self: Any) -> None:
    raise Reject("no", requeue=False)


def stores_its_state(self: Any) -> None:
    self.update_state(state="FAILURE", meta=KeyError("its own"))
    raise Ignore


def stores_a_state_of_its_own(self: Any) -> None:
    self.update_state(state="SKIPPED", meta="seen before")
    raise Ignore


ENDS = [
    (returns, "fine"),
    (fails, LookupError("gone")),
    (ignores, ChildError("ID", "raised Ignore, without a result")),
    (rejects, ChildError("ID", "raised Reject, without a result")),
    (stores_its_state, KeyError("its own")),
    (stores_a_state_of_its_own, ChildError("ID", "raised Ignore, without a result")),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("body", "expected"), ENDS, ids=[body.__name__ for body, _ in ENDS])
@pytest.mark.parametrize("kind", ["continuable", "plain"])
@pytest.mark.parametrize("ignore_result", [False, True, "by the app"])
def test_however_a_child_ends_its_parent_continues_at_once(
    worker: Any, app: Celery, task: Any, waits_for: Any, body: Any, expected: Any, kind: str, ignore_result: Any
) -> None:
    app.conf.task_ignore_result = ignore_result == "by the app"
    options = {"ignore_result": True} if ignore_result is True else {}
    child = task(body, **options) if kind == "continuable" else app.task(bind=True, name="child", **options)(body)
    result = waits_for(child.s(), ignore_result=False)
    worker.drain()  # no time passes
    check(result, expected)


def check(result: Any, expected: Any) -> None:
    """The wait has ended with this value or error."""
    assert result.ready()
    if not isinstance(expected, Exception):
        assert result.get() == expected
        return
    with pytest.raises(type(expected)) as caught:
        result.get()
    problem = getattr(expected, "problem", None)
    assert problem is None or str(caught.value).endswith(problem)


def test_a_state_of_its_own_stays_what_the_child_has_stored(
    worker: Any, child_id: str, app: Celery, task: Any, waits_for: Any
) -> None:
    child = task(stores_a_state_of_its_own)
    result = waits_for(child.s().set(task_id=child_id))
    worker.drain()
    check(result, ENDS[-1][1])
    assert (app.AsyncResult(child_id).state, app.AsyncResult(child_id).info) == ("SKIPPED", "seen before")


def test_a_signature_that_asks_to_ignore_its_result_keeps_it(worker: Any, double: Any, waits_for: Any) -> None:
    result = waits_for(double.s(2).set(ignore_result=True))
    worker.drain()
    assert result.get() == 4


def test_a_worker_that_ignores_the_header_has_the_result_stored_all_the_same(
    worker: Any, app: Celery, waits_for: Any, monkeypatch: Any
) -> None:
    """As with Celery 5.5, where what the task says counts."""
    child = app.task(bind=True, name="child", ignore_result=True)(returns)
    by_task = {"raising": False}  # 5.5 itself has no such function
    monkeypatch.setattr("celery.app.trace.get_actual_ignore_result", lambda task, _: task.ignore_result, **by_task)
    result = waits_for(child.s(), ignore_result=False)
    worker.drain()
    check(result, "fine")


@pytest.mark.parametrize("ignore_result", [False, True])
def test_a_child_that_is_revoked_before_it_runs(
    worker: Any, child_id: str, app: Celery, double: Any, waits_for: Any, later: Any, ignore_result: bool
) -> None:
    if ignore_result and IS_5_5:
        pytest.skip("ends by the timeout: docs/limits.md")
    double.ignore_result = ignore_result
    result = waits_for(double.s(2).set(task_id=child_id, expires=0.001))
    worker.deliver()
    time.sleep(0.002)
    worker.drain()
    assert app.AsyncResult(child_id).state == states.REVOKED, "stored by the main process"
    later(61)
    worker.drain()
    check(result, TaskRevokedError("expired"))


def test_a_child_that_is_cancelled(
    worker: Any, child_id: str, task: Any, waits_for: Any, later: Any, app: Celery
) -> None:
    child = task(waits)
    result = waits_for(child.s().set(task_id=child_id))
    worker.drain()
    control.cancel(child_id, app=app)
    later(61)
    worker.drain()
    check(result, TaskRevokedError("cancelled"))


def test_what_ends_an_execution_and_not_its_task_is_not_reported(
    worker: Any, task: Any, waits_for: Any, store: Any, app: Celery
) -> None:
    """A second delivery is refused, and a replaced task continues: both are Ignores to Celery."""
    replacement = app.task(bind=True, name="replacement")(returns)
    runs: list[Any] = []

    def body(self: Any) -> Any:
        runs.append(self.request.id)
        if len(runs) == 1:
            worker.execute(worker.deliveries[-1])  # a second delivery, while the first one runs
            assert not store.read(result.id).fence.status.startswith("queued")
            return self.replace(replacement.s())
        return None

    result = waits_for(task(body).s())
    worker.deliver()
    worker.deliver()
    assert store.read(result.id).fence.status == Status.WAITING
    assert worker.queued() == 1, "the replacement"


def test_a_lost_child_ends_the_wait_by_its_timeout(
    worker: Any, child_id: str, double: Any, waits_for: Any, later: Any
) -> None:
    result = waits_for([double.s(1), double.s(2).set(task_id=child_id)], timeout=timedelta(minutes=5))
    worker.deliver()
    worker.deliver()
    worker.deliver_nothing()  # its worker was killed, or its queue was purged
    for _ in range(4):
        later(70)
        worker.drain()
    assert result.state == states.RETRY
    later(30)
    worker.drain()
    assert result.ready()
    with pytest.raises(WaitTimeout, match=f"1 of 2 tasks of 'children' have not ended in time: double.{child_id}"):
        result.get()


def test_the_timeout_counts_from_the_first_call_and_is_never_late_by_a_check(
    worker: Any, double: Any, waits_for: Any, later: Any
) -> None:
    result = waits_for(double.s(1), timeout=90)
    begins = time.time()
    worker.deliver()
    worker.deliver_nothing()
    assert result.waiting.until == pytest.approx(begins + 60, abs=1)
    later(61)
    worker.drain()
    assert result.waiting.until == pytest.approx(begins + 90, abs=1)


def test_results_that_are_there_count_after_the_timeout_too(
    worker: Any, double: Any, waits_for: Any, later: Any, monkeypatch: Any
) -> None:
    result = waits_for(double.s(1), timeout=30)
    worker.deliver()
    monkeypatch.setattr(children.control, "wake", lambda *args, **kwargs: None)
    worker.drain()
    later(31)
    worker.drain()
    assert result.get() == 2


@pytest.mark.parametrize("timeout", [-1, float("nan"), "60"])
def test_what_is_not_a_time_is_refused(worker: Any, double: Any, waits_for: Any, timeout: Any, calls: Any) -> None:
    result = waits_for(double.s(1), timeout=timeout)
    worker.drain()
    with pytest.raises(InvalidStepError, match="timeout = .* is not allowed"):
        result.get()
    assert calls == []


def test_without_a_result_backend_no_child_is_started(
    worker: Any, double: Any, waits_for: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("celery_continuations.celery_internals.keeps_results", lambda backend: False)
    result = waits_for(double.s(1))
    worker.deliver()
    assert worker.queued() == 0
    assert "needs a result backend" in str(result.info)


# -- chains and chords


CANVASES: list[tuple[str, Any, Any]] = [
    ("chain", lambda a, f: chain(a.s(1), a.s()), 4),
    ("long chain", lambda a, f: chain(a.s(1), a.s(), a.s(), a.s()), 16),
    ("fails at the first", lambda a, f: chain(f.si(), a.s(), a.s()), LookupError("gone")),
    ("fails at the last", lambda a, f: chain(a.s(1), f.si()), LookupError("gone")),
    ("fails at -2", lambda a, f: chain(a.s(-2), a.s()), ValueError("-2 is negative")),
    ("map", lambda a, f: a.map([1, 2]), [2, 4]),
]


@pytest.mark.parametrize(("name", "make", "expected"), CANVASES, ids=[name for name, *_ in CANVASES])
@pytest.mark.parametrize("ignore_result", [False, True])
def test_a_chain_wakes_its_parent_by_its_own(
    worker: Any, app: Celery, double: Any, waits_for: Any, name: str, make: Any, expected: Any, ignore_result: bool
) -> None:
    if ignore_result and IS_5_5 and name in ("fails at the first", "fails at -2"):
        pytest.skip("ends by the timeout: docs/limits.md")
    double.ignore_result = ignore_result
    failing = app.task(bind=True, name="failing", ignore_result=ignore_result)(fails)
    signature = make(double, failing)
    before = json.dumps(signature, default=str)
    result = waits_for(signature)
    worker.deliver()
    assert result.waiting.until == pytest.approx(time.time() + 60, abs=1)
    worker.drain()  # no time passes
    check(result, expected)
    assert json.dumps(signature, default=str) == before, "the caller's signature is unchanged"


def test_a_part_that_ends_a_chain_without_a_result_is_named(
    worker: Any, app: Celery, double: Any, waits_for: Any
) -> None:
    skipping = app.task(bind=True, name="skipping")(ignores)
    result = waits_for(chain(skipping.si(), double.si(1)))
    worker.drain()
    with pytest.raises(ChildError, match=r"did not end: its part skipping\[.*\] raised Ignore"):
        result.get()


def test_a_part_wakes_nobody_while_its_chain_continues(worker: Any, double: Any, waits_for: Any, store: Any) -> None:
    result = waits_for(chain(double.s(1), double.s(), double.s()))
    worker.deliver()
    for _ in range(2):
        worker.deliver()
        assert store.read(result.id).fence.status == Status.WAITING
    worker.drain()
    assert result.get() == 8


def test_the_parts_of_a_chord_carry_what_tells_the_parent(worker: Any, double: Any, waits_for: Any) -> None:
    body = double.s()
    result = waits_for(chord(group(double.s(1), double.s(2)), body))
    worker.deliver()
    sent = [worker.deliver_nothing() for _ in range(2)]
    assert {tuple(one.headers[PARENT]) for one in sent} == {(result.id, worker.deliveries[0].headers["task"])}
    assert len({one.headers[AWAITED] for one in sent}) == 1
    assert "headers" not in body.options


# -- an unavailable result backend


class Away(Exception):
    """What a driver raises."""


def away(*args: Any, **kwargs: Any) -> Any:
    raise Away("connection refused")


@pytest.mark.parametrize("error", [OSError("refused"), OperationalError("gone"), Away(), ValueError("of a driver")])
def test_an_unavailable_result_backend_is_waited_for(
    worker: Any, app: Celery, double: Any, waits_for: Any, later: Any, monkeypatch: Any, caplog: Any, error: Any
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise error

    caplog.set_level("INFO")
    result = waits_for([double.s(1), double.s(2)])
    mget = type(app.backend).mget
    with monkeypatch.context() as patch:
        patch.setattr(type(app.backend), "mget", refused)
        worker.deliver()
        waiting = result.waiting
        assert (waiting.kind, waiting.until) == ("time", pytest.approx(time.time() + 5, abs=1))
        for _ in range(3):
            later(6)
            worker.deliver()
    assert type(app.backend).mget is mget
    assert actions(caplog).count("results_unavailable") == 1, "one line when it begins"
    worker.drain()
    later(70)
    worker.drain()
    assert result.get() == [2, 4]
    assert actions(caplog).count("results_available") == 1, "and one when it ends"


def test_a_backend_that_fails_while_the_parent_leaves_does_not_fail_it(
    worker: Any, app: Celery, double: Any, waits_for: Any, later: Any, monkeypatch: Any
) -> None:
    result = waits_for(double.s(1))
    real = ends.ends_of
    with monkeypatch.context() as patch:
        patch.setattr("celery_continuations.execution.leaving.ends_of", unavailable)
        worker.deliver()
    assert ends.ends_of is real
    assert result.waiting.kind == "result"
    worker.drain()
    assert result.get() == 2


def unavailable(*args: Any) -> Any:
    raise ends.BackendUnavailable("away")


def test_a_backend_that_fails_while_a_child_reports_is_asked_by_the_parent(
    worker: Any, app: Celery, waits_for: Any, later: Any, monkeypatch: Any, caplog: Any
) -> None:
    child = app.task(bind=True, name="child")(ignores)
    result = waits_for(child.s(), timeout=100)
    worker.deliver()
    with monkeypatch.context() as patch:
        patch.setattr("celery_continuations.children.ends_of", unavailable)
        worker.drain()
    assert "parent_not_told" in actions(caplog)
    later(61)
    worker.drain()
    later(61)
    worker.drain()
    check(result, WaitTimeout())


def test_a_result_that_cannot_be_read_is_an_error_of_its_child(
    worker: Any, child_id: str, app: Celery, double: Any, waits_for: Any, later: Any, store: Any
) -> None:
    result = waits_for([double.s(1), double.s(2).set(task_id=child_id)])
    worker.deliver()
    purge(app)
    app.backend.set(app.backend.get_key_for_task(child_id), b"{")
    end_all(app, begun_by(store, result.id), only=[0])
    later(61)
    worker.drain()
    with pytest.raises(ChildError, match=f"task {child_id} has a result that cannot be read"):
        result.get()


class Tables:
    """A backend without keys, such as a database: it decodes what it reads."""

    def __init__(self, meta: Any) -> None:
        self._meta = meta

    def get_task_meta(self, task_id: str, cache: bool) -> Any:
        if isinstance(self._meta, Exception):
            raise self._meta
        return {"status": states.SUCCESS, "result": task_id} if task_id == "known" else self._meta


def test_a_backend_without_keys_is_asked_for_each() -> None:
    pending = {"status": states.PENDING, "result": None}
    assert ends.ends_of(Tables(pending), ["known", "other"]) == {"known": ends.End("known")}
    with pytest.raises(ends.BackendUnavailable, match="connection refused"):
        ends.ends_of(Tables(Away("connection refused")), ["other"])
    found = ends.ends_of(Tables(ValueError("not JSON")), ["other"])
    assert "cannot be read: ValueError('not JSON')" in str(found["other"].error)


# -- any number of children


@pytest.fixture
def numbers_of(app: Celery, waits_for: Any, calls: list[Any]) -> Any:
    """Start a parent with that many children, and do not run them."""
    child = app.task(name="child")(echo)

    def start(count: int, **options: Any) -> Any:
        return waits_for([child.si(number) for number in range(count)], **options)

    return start


def end_all(app: Celery, begun: Any, value: Any = lambda number: number, only: Any = None) -> None:
    for number in range(begun.count) if only is None else only:
        app.backend.store_result(begun.id_of(number), value(number), states.SUCCESS)


def purge(app: Celery) -> None:
    with app.connection_for_read() as connection:
        app.amqp.queues[app.conf.task_default_queue](connection.default_channel).purge()


def test_the_record_does_not_grow_with_the_number_of_children(
    worker: Any, app: Celery, numbers_of: Any, store: Any
) -> None:
    sizes = []
    for count in (10, 1000):
        result = numbers_of(count)
        worker.deliver()
        sizes.append(len(store.read(result.id).snapshot))
        assert worker.queued() == count
        purge(app)
    assert sizes[1] - sizes[0] < 50


def test_results_that_are_large_together_stay_in_the_result_backend(
    worker: Any, app: Celery, task: Any, store: Any, later: Any
) -> None:
    child = app.task(name="child")(echo)
    seen: list[Any] = []

    def body(self: Any) -> Any:
        values = self.wait_for_results("children", [child.si(number) for number in range(40)])
        seen.append(values)
        self.wait_for("approval")
        return [len(one) for one in values]

    result = task(body, continuation_max_snapshot=20_000).apply_async()
    worker.deliver()
    purge(app)
    end_all(app, begun_by(store, result.id), lambda number: "x" * 1000)
    later(61)
    worker.drain()
    assert result.waiting.key == "approval"
    text = store.read(result.id).snapshot
    assert len(text) < 1000
    assert json.loads(text)["version"] == 2, "release 0.1 would not find the values"
    result.deliver("approval", None)
    worker.drain()
    assert result.get() == [1000] * 40
    assert seen[0] == seen[1] == ["x" * 1000] * 40, "each execution reads them"


def test_results_that_are_gone_when_they_are_read_again_fail_by_name(
    worker: Any, app: Celery, task: Any, store: Any, later: Any, monkeypatch: Any
) -> None:
    child = app.task(name="child")(echo)

    def body(self: Any) -> Any:
        self.wait_for_results("children", [child.si(number) for number in range(40)])
        return self.wait_for("approval")

    result = task(body, continuation_max_snapshot=20_000).apply_async()
    worker.deliver()
    purge(app)
    begun = begun_by(store, result.id)
    end_all(app, begun, lambda number: "x" * 1000)
    later(61)
    worker.drain()
    result.deliver("approval", "yes")
    with monkeypatch.context() as patch:
        patch.setattr("celery_continuations.children.ends_of", unavailable)
        worker.deliver()
    assert result.waiting.kind == "time", "an unavailable backend is waited for here, too"
    app.backend.delete(app.backend.get_key_for_task(begun.id_of(7)))
    later(6)
    worker.drain()
    with pytest.raises(ChildError, match=f"{begun.id_of(7)} has ended, and its result is gone"):
        result.get()


def test_small_results_are_remembered_and_need_no_backend_later(
    worker: Any, child_id: str, app: Celery, double: Any, task: Any
) -> None:
    def body(self: Any) -> Any:
        values = self.wait_for_results("doubles", [double.s(1), double.s(2).set(task_id=child_id)])
        return [values, self.wait_for("approval")]

    result = task(body).apply_async()
    worker.drain()
    app.backend.delete(app.backend.get_key_for_task(child_id))
    result.deliver("approval", "yes")
    worker.drain()
    assert result.get() == [[2, 4], "yes"]


@pytest.mark.parametrize("order", ["forwards", "backwards", "at random"])
def test_whatever_the_order_of_their_ends_the_parent_runs_a_few_times_only(
    worker: Any, app: Celery, numbers_of: Any, store: Any, monkeypatch: Any, order: str
) -> None:
    count = 400
    monkeypatch.setattr("celery_continuations.children._random", random.Random(7))
    asked: list[int] = []
    real = ends.ends_of
    monkeypatch.setattr(
        "celery_continuations.children.ends_of",
        lambda backend, ids: asked.append(len(ids)) or real(backend, ids),
    )
    result = numbers_of(count)
    worker.deliver()
    purge(app)
    begun = begun_by(store, result.id)
    numbers = list(range(count))
    if order == "backwards":
        numbers.reverse()
    elif order == "at random":
        random.Random(1).shuffle(numbers)
    for number in numbers:
        end_all(app, begun, only=[number])
        control.wake(result.id, begun.id_of(number), app=app)
        worker.drain()
    assert result.get() == list(range(count))
    assert len(asked) < 30, "each time it runs, about half of the rest has ended"
    assert sum(asked) < 15 * count


def test_children_are_asked_for_together(worker: Any, app: Celery, numbers_of: Any, monkeypatch: Any) -> None:
    asked: list[int] = []
    mget = type(app.backend).mget
    monkeypatch.setattr(type(app.backend), "mget", lambda self, keys: asked.append(len(keys)) or mget(self, keys))
    numbers_of(600)
    worker.deliver()
    assert len(asked) <= 8
    purge(app)


def test_a_stop_while_children_are_started_continues_with_the_next(
    worker: Any, app: Celery, task: Any, store: Any, monkeypatch: Any
) -> None:
    child = app.task(name="child")(echo)
    send = children._Children._start_child
    sent: list[str] = []

    def stopping(self: Any, one: Any, task_id: str, producer: Any) -> None:
        send(self, one, task_id, producer)
        sent.append(task_id)
        if len(sent) == 3:
            worker.stop()

    monkeypatch.setattr(children._Children, "_start_child", stopping)

    def body(self: Any) -> Any:
        return self.wait_for_results("children", [child.si(number) for number in range(6)])

    result = task(body).apply_async()
    worker.deliver()
    assert len(sent) == 3
    assert begun_by(store, result.id).started == 3
    worker.drain()
    assert result.get() == list(range(6))
    assert len(sent) == len(set(sent)) == 6, "none is started twice"


def test_a_step_that_is_retried_starts_new_children(worker: Any, app: Celery, task: Any) -> None:
    ids: list[str] = []

    def flaky(self: Any) -> str:
        ids.append(self.request.id)
        if len(ids) == 1:
            raise LookupError("gone")
        return "fine"

    child = task(flaky)

    def body(self: Any) -> Any:
        return self.wait_for_results("children", child.s())

    result = task(body).apply_async()
    worker.drain()
    assert result.state == states.FAILURE
    result.retry("children")
    worker.drain()
    assert result.get() == "fine"
    assert ids[0] != ids[1]


def test_ids_that_were_given_are_used(worker: Any, child_id: str, app: Celery, double: Any, waits_for: Any) -> None:
    result = waits_for([double.s(1), double.s(2).set(task_id=child_id)])
    worker.drain()
    assert (result.get(), app.AsyncResult(child_id).get()) == ([2, 4], 4)


@pytest.mark.parametrize("are_started", [False, True])
def test_what_release_0_1_has_stored_of_a_wait_is_read(
    worker: Any, app: Celery, double: Any, waits_for: Any, store: Any, later: Any, are_started: bool, calls: Any
) -> None:
    ids = [f"first {uuid.uuid4()}", f"second {uuid.uuid4()}"]
    if are_started:
        for number, task_id in enumerate(ids):
            double.apply_async((number,), task_id=task_id)
        worker.drain()
    result = waits_for([double.s(0), double.s(1)])
    worker.deliver()
    purge(app)
    record = store.read(result.id)
    snapshot = Snapshot.loads(record.snapshot)
    snapshot.current = ("children", [ids, are_started])
    snapshot.uses, snapshot.waiting = 1, Waiting("result", time.time(), ids[1])
    update = Update(Fence(record.fence.generation, Status.WAITING), snapshot.dumps(), due_in=0)
    assert store.compare_and_swap(result.id, record.fence, update)
    later(1)
    worker.drain()
    assert result.get() == [0, 2]
    assert [app.AsyncResult(one).get() for one in ids] == [0, 2]
    assert sorted(calls) == [0, 1]


def test_the_parent_does_not_keep_its_children_in_its_result(worker: Any, app: Celery, numbers_of: Any) -> None:
    result = numbers_of(3)
    worker.deliver()
    assert not result.children


def test_children_that_are_not_continuable_are_named_once(
    worker: Any, task: Any, double: Any, waits_for: Any, caplog: Any, later: Any
) -> None:
    caplog.set_level("INFO")
    result = waits_for([double.s(1), task(returns).s(), chain(double.s(1), double.s())])
    worker.deliver()
    later(61)
    (record,) = [one for one in caplog.records if getattr(one, "action", "") == "plain_children"]
    assert "not continuable: double. " in record.getMessage()
    assert record.levelname == "INFO"
    caplog.clear()
    result = waits_for(task(returns).s())
    worker.drain()
    assert result.get() == "fine"
    assert "plain_children" not in actions(caplog)


# -- without a worker


def test_a_direct_call_names_a_child_without_a_result(task: Any) -> None:
    child = task(ignores)

    def body(self: Any) -> Any:
        return self.wait_for_results("children", child.s(), timeout=1)

    with pytest.raises(ChildError, match="raised Ignore, without a result"):
        task(body)()


def test_a_direct_call_returns_results_that_a_snapshot_would_not_hold(task: Any) -> None:
    child = task(makes_much)

    def body(self: Any) -> Any:
        return self.wait_for_results("children", [child.s() for _ in range(20)])

    assert task(body, continuation_max_snapshot=20_000)() == ["x" * 1000] * 20
