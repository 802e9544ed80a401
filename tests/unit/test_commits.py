"""In a transaction of Django's, commands wait for its commit, and a rollback leaves nothing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from django.db import connections, transaction
from django.test import RequestFactory, TestCase

from celery_continuations import DeliveryError, StoreError, TooLateError, callbacks, commits
from celery_continuations.stores import open_store
from tests.support.worker import Worker, make_app

pytestmark = pytest.mark.usefixtures("django_database")


class Rollback(Exception):
    pass


@pytest.fixture
def app() -> Celery:
    return make_app(
        continuation_callback_url="https://example.com/callbacks",
        continuation_callback_secret="only a test, of 32 characters or more",
    )


@pytest.fixture
def begun(worker: Worker, task: Any) -> Callable[[str], Any]:
    """Bring a task into a state."""

    def body(self: Any) -> Any:
        answer = self.wait_for("approval")
        if answer == "fail":
            raise ValueError(answer)
        return answer

    made = task(body)

    def begin(state: str) -> Any:
        result = made.apply_async()
        worker.deliver()
        if state == "paused":
            result.pause()
        if state in ("failed", "done"):
            result.deliver("approval", "fail" if state == "failed" else "yes")
            worker.drain()
        return result

    return begin


COMMANDS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "deliver": ("waiting", lambda result: result.deliver("approval", "yes")),
    "pause": ("waiting", lambda result: result.pause()),
    "resume": ("paused", lambda result: result.resume()),
    "cancel": ("waiting", lambda result: result.cancel()),
    "retry": ("failed", lambda result: result.retry()),
}

every_command = pytest.mark.parametrize("command", COMMANDS)


def everything(app: Celery, worker: Worker, result: Any) -> Any:
    return open_store(app, "memory").read(result.id), app.backend.get_state(result.id), worker.queued()


@every_command
@pytest.mark.parametrize("depth", [1, 2])
def test_a_command_takes_effect_with_the_commit(
    app: Celery, worker: Worker, begun: Any, command: str, depth: int
) -> None:
    state, act = COMMANDS[command]
    result = begun(state)
    before = everything(app, worker, result)
    with transaction.atomic():
        if depth == 2:
            with transaction.atomic():
                act(result)
        else:
            act(result)
        assert everything(app, worker, result) == before
    after = everything(app, worker, result)
    assert after != before
    worker.drain()
    other = begun(state)
    act(other)
    assert after[0].fence == everything(app, worker, other)[0].fence, "as outside of a transaction"


@every_command
@pytest.mark.parametrize("where", ["the transaction", "its savepoint"])
def test_a_rollback_leaves_nothing(app: Celery, worker: Worker, begun: Any, command: str, where: str) -> None:
    state, act = COMMANDS[command]
    result = begun(state)
    before = everything(app, worker, result)
    if where == "the transaction":
        with pytest.raises(Rollback), transaction.atomic():
            act(result)
            raise Rollback
    else:
        with transaction.atomic(), pytest.raises(Rollback), transaction.atomic():
            act(result)
            raise Rollback
    assert everything(app, worker, result) == before


@every_command
def test_what_would_be_refused_is_refused_in_the_transaction(
    app: Celery, worker: Worker, begun: Any, command: str
) -> None:
    result = begun("done")
    before = everything(app, worker, result)
    with transaction.atomic(), pytest.raises(DeliveryError):
        COMMANDS[command][1](result)
    assert everything(app, worker, result) == before


def test_another_payload_is_refused_in_the_transaction(begun: Any) -> None:
    result = begun("waiting")
    result.deliver("approval", "yes")
    with transaction.atomic(), pytest.raises(TooLateError, match="something else was delivered"):
        result.deliver("approval", "no")


def test_cancelling_twice_is_accepted_in_a_transaction_too(begun: Any) -> None:
    result = begun("waiting")
    for _ in range(2):
        with transaction.atomic():
            result.cancel()
    assert result.state == "REVOKED"


def test_an_error_at_the_commit_is_raised_by_it(app: Celery, begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result, store = begun("waiting"), open_store(app, "memory")

    def unavailable(*args: Any) -> Any:
        raise StoreError("memory", "unavailable")

    with pytest.raises(StoreError), transaction.atomic():
        result.deliver("approval", "yes")
        monkeypatch.setattr(store, "compare_and_swap", unavailable)


@pytest.fixture
def another(tmp_path: Any) -> Iterator[str]:
    """The alias of a second database."""
    connections.settings["another"] = {**connections.settings["default"], "NAME": str(tmp_path / "another.db")}
    yield "another"
    connections["another"].close()
    delattr(connections._connections, "another")  # type: ignore[attr-defined]
    del connections.settings["another"]


@pytest.mark.parametrize("outer", ["default", "another"])
def test_all_open_transactions_must_be_committed(another: str, outer: str) -> None:
    inner = "another" if outer == "default" else "default"
    done: list[str] = []
    with transaction.atomic(using=outer):
        with transaction.atomic(using=inner):
            commits.after_commit(lambda: done.append("both"))
        assert done == []
    assert done == ["both"]
    with pytest.raises(Rollback), transaction.atomic(using=outer):
        with transaction.atomic(using=inner):
            commits.after_commit(lambda: done.append("never"))
        raise Rollback
    assert done == ["both"]


def test_a_callback_is_delivered_with_the_commit_of_its_request(
    app: Celery, worker: Worker, begun: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.core.handlers.base import BaseHandler
    from django.http import HttpResponse

    result = begun("waiting")
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)

    def view(request: Any, token: str) -> HttpResponse:
        reply = callbacks.receive(app, token, request.content_type, lambda: request.body)
        assert result.status_of_record == "waiting"
        return HttpResponse(reply.body, status=reply.status, headers=reply.headers)

    token = callbacks.callback_url(app, result.id, "approval").rpartition("/")[2]
    atomic: Any = BaseHandler().make_view_atomic(view)
    request = RequestFactory().post("/", b'"yes"', content_type="application/json")
    assert atomic(request, token).status_code == 204
    worker.drain()
    assert result.get() == "yes"


def test_the_transaction_of_a_test_case_does_not_count() -> None:
    done: list[str] = []

    class Case(TestCase):
        def runTest(self) -> None:
            commits.after_commit(lambda: done.append("at once"))
            assert done == ["at once"]
            with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
                commits.after_commit(lambda: done.append("captured"))
                assert done == ["at once"]

    Case().debug()
    assert done == ["at once", "captured"]


def test_in_a_unit_of_work_nothing_waits(worker: Worker, task: Any, begun: Any) -> None:
    """A worker killed between the commit and what waits for it would lose the delivery: the item is not repeated."""
    result = begun("waiting")

    def body(self: Any) -> None:
        for _ in self.iterate("items", range(1), transaction="default"):
            result.deliver("approval", "yes")
            seen.append(result.status_of_record)
            with transaction.atomic():
                result.deliver("another", "yes")

    seen: list[str | None] = []
    task(body, continuation_store="django").apply_async()
    worker.drain()
    assert seen == ["queued"]
    assert result.get() == "yes"
