"""What is posted to an address reaches its task and nothing else, in whichever store and state the task is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.utils import uuid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_continuations import (
    AppTask,
    CallbackError,
    ContinuableTask,
    StoreError,
    UnserializableValueError,
    callbacks,
)
from celery_continuations.stores import Store, Update, open_store
from tests.support.worker import Worker, make_app

SECRET = "a secret of a test, 32 characters or more"

fuzz = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def addressed(**more: Any) -> Celery:
    return make_app(
        **{
            "continuation_callback_url": "https://example.com/callbacks",
            "continuation_callback_secret": SECRET,
            "continuation_namespace": "one service",
            **more,
        }
    )


@pytest.fixture
def app() -> Celery:
    return addressed()


class Asking:
    """A task that waits for a photo, then for a payment, and the addresses that it has made."""

    def __init__(self, app: Celery, **options: Any) -> None:
        self.tokens: dict[str, str] = {}

        def ask(task: Any) -> Any:
            for name in ("photo", "payment"):
                self.tokens[name] = task.callback_url(name).rpartition("/")[2]
            return [task.wait_for("photo"), task.wait_for("payment")]

        self.task = app.task(**{"base": ContinuableTask, "bind": True, "name": "ask", **options})(ask)

    def started(self, worker: Worker) -> Any:
        result = self.task.apply_async()
        worker.deliver()
        return result


def post(app: Celery, token: str, payload: Any, **options: Any) -> int:
    return callbacks.receive(app, token, "application/json", json.dumps(payload).encode(), **options).status


def records(store: Store) -> dict[str, Any]:
    return dict(store.records())


# -- the store of the task


def own_stores(folder: Path) -> dict[str, str]:
    return {
        "app": "memory",
        "files": f"file://{folder}/files",
        "sql": f"db+sqlite:///{folder}/records.sqlite3",
    }


@pytest.mark.parametrize("kind", ["app", "files", "sql"])
@pytest.mark.parametrize("base", [ContinuableTask, AppTask])
def test_a_callback_reaches_its_task_in_whichever_store_it_is(
    app: Celery, worker: Worker, tmp_path: Path, kind: str, base: Any
) -> None:
    asking = Asking(app, continuation_store=own_stores(tmp_path)[kind], base=base)
    result = asking.started(worker)
    assert result.status_of_record == "waiting"
    assert post(app, asking.tokens["photo"], 1) == 204
    worker.drain()
    assert post(app, asking.tokens["payment"], 2) == 204
    worker.drain()
    assert result.get() == [1, 2]


def test_a_token_tells_nothing_of_a_store(app: Celery, worker: Worker, tmp_path: Path) -> None:
    asking = Asking(app, continuation_store=f"db+sqlite:///{tmp_path}/records.sqlite3")
    asking.started(worker)
    place = callbacks._verify(app, asking.tokens["photo"]).place
    assert len(place) == 16
    other = addressed(continuation_callback_secret="another " * 4)
    url = callbacks.callback_url(other, "id", "photo", store=asking.task.continuation_store)
    assert place != callbacks._verify(other, url.rpartition("/")[2]).place, "guessing needs the secret"


def test_the_store_is_found_after_the_secret_has_changed(app: Celery, worker: Worker, tmp_path: Path) -> None:
    asking = Asking(app, continuation_store=f"file://{tmp_path}/files")
    asking.started(worker)
    app.conf.continuation_callback_secret = ["the new secret, of 32 characters or more", SECRET]
    assert post(app, asking.tokens["photo"], 1) == 204


def test_a_web_server_without_the_task_keeps_nothing_in_the_wrong_store(
    app: Celery, worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking(app, continuation_store=f"file://{tmp_path}/files")
    asking.started(worker)
    web = addressed()
    assert post(web, asking.tokens["photo"], 1) == 503
    assert records(open_store(web, "memory")) == {}
    assert "no task that this process knows has the continuation_store that the address names" in caplog.text


def test_tasks_that_are_imported_late_are_found(
    app: Celery, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(app, continuation_store=f"file://{tmp_path}/files")
    result = asking.started(worker)
    web = addressed()
    loads = lambda: Asking(web, continuation_store=f"file://{tmp_path}/files")  # noqa: E731
    monkeypatch.setattr(web.loader, "import_default_modules", loads)
    assert post(web, asking.tokens["photo"], 1) == 204
    assert result.status_of_record == "queued"


# -- addresses of release 0.1


def test_addresses_of_release_0_1_stay_valid(app: Celery, worker: Worker) -> None:
    result = Asking(app).started(worker)
    old = callbacks._serializer(app).dumps([result.id, "photo", int(time.time()) + 60])
    assert post(app, old, 1) == 204
    assert result.status_of_record == "queued"


def test_an_address_that_needs_nothing_new_can_be_read_by_release_0_1(app: Celery) -> None:
    token = callbacks.callback_url(app, "id", "photo", 60).rpartition("/")[2]
    assert len(callbacks._serializer(app).loads(token)) == 3


# -- tasks that are over, or that were never there


def ended(app: Celery, worker: Worker, asking: Asking) -> Any:
    result = asking.started(worker)
    for name in ("photo", "payment"):
        result.deliver(name, 1)
        worker.drain()
    assert result.state == "SUCCESS"
    return result


@pytest.mark.parametrize("payload", [1, 2], ids=["the same", "another"])
@pytest.mark.parametrize("after", [timedelta(0), timedelta(days=2)])
@pytest.mark.parametrize("late", ["refuse", "ignore"])
def test_a_used_address_makes_no_record_once_its_task_is_forgotten(
    app: Celery, worker: Worker, store: Any, later: Callable[[float], None], payload: int, after: timedelta, late: Any
) -> None:
    asking = Asking(app)
    result = ended(app, worker, asking)
    if after:
        later(after.total_seconds())
        app.backend.forget(result.id)
    before = records(store)
    assert post(app, asking.tokens["payment"], payload, late=late) == (409 if late == "refuse" else 204)
    assert records(store) == before
    assert len(before) == (0 if after else 1)


def test_an_address_made_before_its_task_has_started_is_accepted_before(app: Celery, worker: Worker) -> None:
    asking = Asking(app)
    chosen = uuid()
    token = callbacks.callback_url(app, chosen, "photo", 60).rpartition("/")[2]
    assert post(app, token, 1) == 204
    result = asking.task.apply_async(task_id=chosen)
    worker.deliver()
    assert post(app, asking.tokens["payment"], 2) == 204
    worker.drain()
    assert result.get() == [1, 2]


@pytest.mark.parametrize(
    "decide",
    [
        lambda result, worker: result.deliver("photo", "first"),
        lambda result, worker: result.cancel(),
        lambda result, worker: [result.deliver(name, 1) or worker.drain() for name in ("photo", "payment")],
    ],
    ids=["another payload", "cancelled", "ended"],
)
def test_what_is_decided_is_refused_or_ignored_as_the_application_says(
    app: Celery, worker: Worker, store: Any, decide: Any
) -> None:
    asking = Asking(app)
    result = asking.started(worker)
    decide(result, worker)
    before = records(store)
    for late, status in (("refuse", "409"), ("ignore", "204")):
        answers: list[str] = []
        environ: Any = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/" + asking.tokens["photo"], "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": "8", "wsgi.input": BytesIO(b'"second"'),
        }  # fmt: skip
        application: Any = callbacks.wsgi(app, late=late)  # type: ignore[arg-type]
        list(application(environ, lambda status, headers, into=answers: into.append(status)))
        assert answers[0].startswith(status)
        assert records(store) == before
    callbacks.accept(app, asking.tokens["photo"], "second", late="ignore")
    with pytest.raises(CallbackError, match="409"):
        callbacks.accept(app, asking.tokens["photo"], "second")


def test_another_word_than_refuse_or_ignore_is_an_error(app: Celery, worker: Worker) -> None:
    asking = Asking(app)
    result = asking.started(worker)
    wrong: Any = "Ignore"
    for call in (
        lambda: callbacks.wsgi(app, late=wrong),
        lambda: callbacks.accept(app, asking.tokens["photo"], 1, late=wrong),
        lambda: post(app, asking.tokens["photo"], 1, late=wrong),
    ):
        with pytest.raises(ValueError, match="late must be 'refuse' or 'ignore', not 'Ignore'"):
            call()
    assert result.status_of_record == "waiting"


def test_a_late_payload_that_is_ignored_is_logged(app: Celery, worker: Worker, caplog: Any) -> None:
    asking = Asking(app)
    asking.started(worker).deliver("photo", "first")
    caplog.set_level("INFO")
    caplog.clear()
    assert post(app, asking.tokens["photo"], "second", late="ignore") == 204
    assert [(one.levelname, one.action) for one in caplog.records] == [("INFO", "callback_ignored")]


# -- only a valid delivery changes anything


def in_each_state(app: Celery, worker: Worker) -> dict[str, str]:
    """Put a task into each state; return the tokens for its wait."""
    tokens: dict[str, str] = {}

    def ask(task: Any, state: str) -> Any:
        tokens[state] = task.callback_url("photo").rpartition("/")[2]
        if state == "failed":
            raise ValueError("no")
        return task.wait_for("photo")

    made = app.task(base=ContinuableTask, bind=True, name="in_each_state")(ask)
    for state in ("waiting", "delivered", "ended", "failed", "cancelled", "paused", "gone"):
        result = made.delay(state)
        worker.drain()
        if state in ("delivered", "ended"):
            result.deliver("photo", "first")
        if state == "ended":
            worker.drain()
        if state in ("cancelled", "paused"):
            getattr(result, {"cancelled": "cancel", "paused": "pause"}[state])()
        if state == "gone":
            store = open_store(app, "memory")
            found = store.read(result.id)
            assert found is not None
            assert store.compare_and_swap(result.id, found.fence, Update(found.fence, expires_in=0))
    return tokens


depths = st.sampled_from([1, 21, 22, 63, 64, 65, 66, 140, 325, 401, 491, 983, 3000])
wraps = st.sampled_from([("[", "]"), ('{"a":', "}"), ('{"~":', "}"), ('{"~t":[', "]}"), ('[{"~m":', "}]")])
deep = st.tuples(depths, wraps).map(lambda pair: pair[1][0] * pair[0] + "1" + pair[1][1] * pair[0])
signed = st.recursive(
    st.none() | st.booleans() | st.integers(max_value=10**6) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
edits = st.tuples(st.integers(0, 300), st.integers(0, 5), st.text(max_size=5))


@pytest.fixture
def states(app: Celery, worker: Worker) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the tokens of tasks in each state, and what their store has."""
    tokens = in_each_state(app, worker)
    store: Any = open_store(app, "memory")
    return tokens, dict(store._records)


@settings(fuzz, max_examples=60)
@given(data=st.data())
def test_only_a_valid_delivery_changes_anything(
    app: Celery, states: tuple[dict[str, str], dict[str, Any]], data: st.DataObject
) -> None:
    tokens, kept = states
    store: Any = open_store(app, "memory")
    store._records = dict(kept)
    web, other = callbacks.wsgi(app), addressed(continuation_callback_secret=f"another {SECRET}")
    for _ in range(5):
        state = data.draw(st.sampled_from(sorted(tokens)))
        token, is_valid = tokens[state], True
        kind = data.draw(st.sampled_from(["valid", "valid", "edited", "signed", "of another environment"]))
        if kind == "edited":
            start, length, text = data.draw(edits)
            edited = token[:start] + text + token[start + length :]
            is_valid, token = edited == token, edited
        elif kind == "signed":
            fields = data.draw(signed | st.tuples(*[signed] * 5) | st.tuples(st.just("id"), st.just("photo"), signed))
            is_valid, token = False, str(callbacks._serializer(app).dumps(fields))
        elif kind == "of another environment":
            is_valid, token = False, callbacks.callback_url(other, "id", "photo").rpartition("/")[2]
        body = data.draw(deep | st.text(max_size=20) | st.just('"first"')).encode("utf-8", "surrogatepass")
        content = data.draw(st.sampled_from(["application/json", "application/json", "text/plain", "text/html"]))
        environ = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/" + token.encode("utf-8", "surrogatepass").decode("latin-1"),
            "CONTENT_TYPE": content, "CONTENT_LENGTH": str(len(body)), "wsgi.input": BytesIO(body),
        }  # fmt: skip
        before, statuses = records(store), []
        b"".join(web(environ, lambda status, headers, into=statuses: into.append(int(status[:3]))))
        (status,) = statuses
        after = records(store)
        changed = [task_id for task_id in {*before, *after} if before.get(task_id) != after.get(task_id)]
        assert status in (204, 400, 404, 409, 410, 415)
        assert is_valid or status == 404 or (kind == "signed" and status == 410)
        if changed:
            assert is_valid
            assert (status, state in ("waiting", "paused"), len(changed)) == (204, True, 1)
        else:
            assert status != 204 or state in ("waiting", "paused", "delivered")


# -- nothing of one wait harms another


@fuzz
@given(
    deep | st.text(max_size=20), st.sampled_from(["text/plain", "application/json", "application/a+json", "a/b", ""])
)
def test_whatever_is_posted_to_one_wait_the_other_and_the_task_work(body: str, kind: str) -> None:
    app = addressed()
    worker, asking, store = Worker(app), Asking(app), open_store(app, "memory")
    result = asking.started(worker)
    before = store.read(result.id)
    reply = callbacks.receive(app, asking.tokens["photo"], kind, body.encode("utf-8", "surrogatepass"))
    assert reply.status in (204, 400, 415)
    if reply.status != 204:
        assert store.read(result.id) == before
        result.deliver("photo", 1)
    assert post(app, asking.tokens["payment"], 2) == 204
    worker.drain()
    assert result.get()[1] == 2


def test_a_poisoned_record_of_release_0_1_fails_the_wait_that_reads_it_and_no_other(
    app: Celery, worker: Worker, store: Any
) -> None:
    caught: list[str] = []

    def patient(task: Any) -> Any:
        try:
            task.wait_for("photo")
        except UnserializableValueError as exc:
            caught.append(str(exc))
        return task.wait_for("payment")

    made = app.task(base=ContinuableTask, bind=True, name="patient")(patient)
    result = made.apply_async()
    worker.deliver()
    deepest = '{"~m":[["~",' * 325 + "1" + "]]}" * 325
    fence = store.read(result.id).fence
    poisoned = f'{{"photo":["value",{deepest}]}}'
    assert store.compare_and_swap(result.id, fence, Update(fence, inbox=poisoned))
    token = callbacks.callback_url(app, result.id, "payment").rpartition("/")[2]
    assert post(app, token, 2) == 204
    result.pause()
    result.resume()
    worker.drain()
    assert result.get() == 2
    assert "cannot be read" in caught[0]


# -- strangers


class Unread:
    def __call__(self) -> bytes:
        raise AssertionError("was read")


@fuzz
@given(st.text(), st.text() | st.none())
def test_a_stranger_gets_a_404_whatever_is_posted(any_token: str, kind: str | None) -> None:
    app = addressed()
    reply = callbacks.receive(app, any_token, kind, Unread())
    assert (reply.status, json.loads(reply.body)) == (404, {"error": "there is nothing at this address"})
    assert callbacks.receive(app, any_token, kind, b"[" * 200_000).status == 404
    assert records(open_store(app, "memory")) == {}


@pytest.mark.parametrize(
    ("raises", "status"),
    [(ConnectionResetError(), 400), (TimeoutError(), 400), (CallbackError(401, "the signature is wrong"), 401)],
)
def test_a_body_that_cannot_be_read_or_is_not_signed(app: Celery, worker: Worker, raises: Any, status: int) -> None:
    asking = Asking(app)
    result = asking.started(worker)

    def read() -> bytes:
        raise raises

    assert callbacks.receive(app, asking.tokens["photo"], "application/json", read).status == status
    assert result.status_of_record == "waiting"


def test_a_body_above_the_limit_is_not_parsed(app: Celery, worker: Worker) -> None:
    asking = Asking(app)
    asking.started(worker)
    app.conf.continuation_callback_max_body = 10
    assert post(app, asking.tokens["photo"], "x" * 9) == 413
    assert post(app, asking.tokens["photo"], "x" * 8) == 204


def test_an_error_of_the_store_is_not_hidden(app: Celery, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(app)
    asking.started(worker)

    def deliver(*args: Any, **kwargs: Any) -> None:
        raise StoreError("memory", "is gone")

    monkeypatch.setattr(callbacks, "deliver", deliver)
    reply = callbacks.receive(app, asking.tokens["photo"], "application/json", b"1")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "30")
