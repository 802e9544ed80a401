"""Callbacks over HTTP: only a valid one delivers, and each invalid one gets its status."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from kombu.exceptions import OperationalError

from celery_continuations import CallbackError, ContinuableTask, callbacks, conf
from celery_continuations.exceptions import DeliveryError, InvalidStepError, StoreError, UnserializableValueError
from tests.support.worker import make_app

OLD, NEW = "the old secret, of 32 characters or more", "the new secret, of 32 characters or more"
BASE = "https://example.com/callbacks"

# Of the state in the fixtures, an example changes only the deliveries, which each example checks.
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def app() -> Celery:
    return web()


def web(**conf: Any) -> Celery:
    return make_app(
        **{
            "continuation_callback_url": BASE,
            "continuation_callback_secret": NEW,
            "continuation_namespace": "one service",
            "continuation_callback_max_body": 1000,
            **conf,
        }
    )


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The deliveries so far; clear the list between requests."""
    found: list[Any] = []
    monkeypatch.setattr(
        callbacks, "deliver", lambda task_id, name, payload, **_: found.append((task_id, name, payload))
    )
    return found


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Make the delivery raise."""

    def fail(error: Exception) -> None:
        def deliver(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(callbacks, "deliver", deliver)

    return fail


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr(callbacks, "time", lambda: now[0])
    return now


def token(app: Celery, expires: Any = None) -> str:
    return callbacks.callback_url(app, "task id", "payment", expires).rpartition("/")[2]


class Answer:
    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = int(status[:3])
        self.headers = dict(headers)
        self.body = body


def call(application: Any, path: str, body: bytes = b"{}", method: str = "POST", **environ: Any) -> Answer:
    """One request; a header given as None is not sent."""
    request: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
        **environ,
    }
    request = {key: value for key, value in request.items() if value is not None}
    setup_testing_defaults(request)
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        started.extend((status, headers))
        return lambda data: None

    found = application(request, start_response)
    try:
        return Answer(*started, b"".join(found))
    finally:
        if hasattr(found, "close"):
            found.close()


def post(app: Celery, token: str, body: bytes = b"{}", **environ: Any) -> Answer:
    return call(validator(callbacks.wsgi(app)), f"/{token}", body, **environ)


def refused(answer: Answer, *secrets: str) -> int:
    """Return the status of an answer that is short JSON, and tells nothing."""
    error = json.loads(answer.body)
    assert list(error) == ["error"]
    assert len(answer.body) < 100
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.headers["Cache-Control"] == "no-store"
    for secret in ("task id", "payment", OLD, NEW, *secrets):
        assert secret not in answer.body.decode() + str(answer.headers)
    return answer.status


# -- a valid one


@pytest.mark.parametrize("payload", [{"paid": True, "rows": [1, 2.5, None]}, None, 0, "ü", [], {"": {}}])
def test_a_valid_one_is_delivered(app: Celery, delivered: list[Any], payload: Any) -> None:
    answer = post(app, token(app), json.dumps(payload).encode())
    assert (answer.status, answer.body, answer.headers) == (204, b"", {})
    assert delivered == [("task id", "payment", payload)]


def test_the_app_is_handed_on(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(callbacks, "deliver", lambda *args, app, **_: seen.append(app))
    callbacks.accept(app, token(app), None)
    assert seen == [app]


def test_the_address(app: Celery) -> None:
    url = callbacks.callback_url(app, "an id/with ?odd#characters", "ein Name, ü", 60)
    base, _, last = url.rpartition("/")
    assert base == BASE
    assert callbacks._verify(app, last)[:2] == ("an id/with ?odd#characters", "ein Name, ü")
    app.conf.continuation_callback_url = BASE + "/"
    assert callbacks.callback_url(app, "id", "name", 60).rpartition("/")[0] == BASE


def test_a_long_name_is_compressed_and_comes_back(app: Celery) -> None:
    last = callbacks.callback_url(app, "id", "n" * 500).rpartition("/")[2]
    assert last.startswith(".")
    assert callbacks._verify(app, last)[:2] == ("id", "n" * 500)


@pytest.mark.parametrize("path", ["/{}", "{}", "/mounted/anywhere/{}"])
def test_it_can_be_mounted_anywhere(app: Celery, delivered: list[Any], path: str) -> None:
    assert call(callbacks.wsgi(app), path.format(token(app))).status == 204
    assert len(delivered) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "application/json", "Application/JSON", "application/json; charset=utf-8", "text/plain; charset=UTF-8",
        "application/cloudevents+json", "application/vnd.api+json;ext=bulk", "application/problem+JSON",
    ],
)  # fmt: skip
def test_content_types_that_are_json(app: Celery, delivered: list[Any], kind: str) -> None:
    assert post(app, token(app), CONTENT_TYPE=kind).status == 204


def test_a_body_that_comes_in_pieces(app: Celery, delivered: list[Any]) -> None:
    class Slow(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    body = json.dumps({"key": "value"}).encode()
    assert post(app, token(app), body, **{"wsgi.input": Slow(body)}).status == 204
    assert delivered == [("task id", "payment", {"key": "value"})]


def test_no_more_is_read_than_content_length_says(app: Celery, delivered: list[Any]) -> None:
    stream = BytesIO(b"12POST /next")
    assert post(app, token(app), CONTENT_LENGTH="2", **{"wsgi.input": stream}).status == 204
    assert (delivered[0][2], stream.read()) == (12, b"POST /next")


# -- refused requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_post(app: Celery, delivered: list[Any], method: str) -> None:
    answer = post(app, token(app), method=method)
    assert (answer.status, answer.headers["Allow"], delivered) == (405, "POST", [])
    assert bool(answer.body) == (method != "HEAD")


@pytest.mark.parametrize(
    "kind",
    [
        None, "", "text/html", "text/json5", "application/jsonp", "application/+json", "application/a+jsonx", "json",
        "application/x-www-form-urlencoded", "multipart/form-data; boundary=application/json", "image/svg+json",
    ],
)  # fmt: skip
def test_only_json(app: Celery, delivered: list[Any], kind: str | None) -> None:
    assert refused(post(app, token(app), CONTENT_TYPE=kind)) == 415
    assert not delivered


@pytest.mark.parametrize("length", [None, ""])
def test_a_length_is_needed(app: Celery, delivered: list[Any], length: str | None) -> None:
    assert refused(post(app, token(app), CONTENT_LENGTH=length)) == 411
    assert not delivered


@pytest.mark.parametrize("length", ["-1", "+2", " 2", "2 ", "2.0", "1_0", "0x2", "two", "²", "٢", "9" * 5000, "2\n"])
def test_a_length_is_a_number(app: Celery, delivered: list[Any], length: str) -> None:
    assert refused(call(callbacks.wsgi(app), "/" + token(app), CONTENT_LENGTH=length)) == 400
    assert not delivered


class Unread(BytesIO):
    def read(self, *args: Any) -> bytes:
        raise AssertionError("was read")


def test_the_limit(app: Celery, delivered: list[Any]) -> None:
    assert post(app, token(app), b'"' + b"x" * 998 + b'"').status == 204
    delivered.clear()
    assert refused(post(app, token(app), b'"' + b"x" * 999 + b'"', **{"wsgi.input": Unread()}), "xxx") == 413
    assert refused(post(app, token(app), CONTENT_LENGTH="9" * 100)) == 413
    assert not delivered


def test_a_stranger_s_body_is_not_read(app: Celery, clock: list[float]) -> None:
    good = token(app, 10)
    assert refused(post(app, "guessed", **{"wsgi.input": Unread()})) == 404
    clock[0] += 10
    assert refused(post(app, good, **{"wsgi.input": Unread()})) == 410


class Broken(BytesIO):
    def read(self, *args: Any) -> bytes:
        raise ConnectionResetError("the sender went away")


@pytest.mark.parametrize("stream", [BytesIO(b"12"), BytesIO(), Broken()])
def test_a_body_that_ends_early(app: Celery, delivered: list[Any], stream: BytesIO) -> None:
    assert refused(post(app, token(app), CONTENT_LENGTH="3", **{"wsgi.input": stream})) == 400
    assert not delivered


NOT_JSON = [
    b"",
    b"{",
    b"{} {}",
    b"{'a': 1}",
    b"NaN",
    b"[Infinity]",
    b'{"a": -Infinity}',
    b"1e999",
    b"-1e999",
    b'{"a": 1, "a": 2}',
    b'[{"b": {"a": 1, "\\u0061": 1}}]',
    b"\xff",
    b'"\xed\xa0\x80"',
    "\ufeff{}".encode(),
    '{"a": 1}'.encode("utf-16"),
    b"9" * 5000,
    b"[" * 200_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json(app: Celery, delivered: list[Any], body: bytes) -> None:
    app.conf.continuation_callback_max_body = 10**6
    assert refused(post(app, token(app), body)) == 400
    assert not delivered


# -- refused tokens


def test_it_expires(app: Celery, delivered: list[Any], clock: list[float]) -> None:
    short, default = token(app, timedelta(seconds=10)), token(app)
    clock[0] += 9.9
    assert post(app, short).status == 204
    clock[0] += 0.1
    assert refused(post(app, short), short) == 410
    assert post(app, default).status == 204
    clock[0] += 7 * 86400
    assert refused(post(app, default)) == 410
    assert len(delivered) == 2


def test_the_setting_says_for_how_long(clock: list[float], delivered: list[Any]) -> None:
    app = web(continuation_callback_expires=5)
    good = token(app)
    clock[0] += 5
    assert refused(post(app, good)) == 410


@pytest.mark.parametrize(
    "other",
    [
        {"continuation_namespace": "another service"},
        {"continuation_callback_secret": OLD},
        {"continuation_callback_secret": NEW + "."},
    ],
)
def test_a_token_of_another_service(app: Celery, delivered: list[Any], other: dict[str, Any]) -> None:
    assert refused(post(app, token(web(**other)))) == 404
    assert not delivered


def test_a_token_of_another_purpose(app: Celery, delivered: list[Any]) -> None:
    ours = callbacks._serializer(app)
    for salt in (b"itsdangerous", b"", b"celery_continuations.callbacks:", b"one service", ours.salt + b"."):
        other = URLSafeSerializer(NEW, salt=salt, signer_kwargs=ours.signer_kwargs)
        assert refused(post(app, other.dumps(["task id", "payment", 2**40]))) == 404
    assert not delivered


def test_an_invalid_token_is_not_reported_as_expired(app: Celery, clock: list[float]) -> None:
    expired = token(web(continuation_callback_secret=OLD), 1)
    clock[0] += 1
    assert refused(post(app, expired)) == 404


def spellings(good: str) -> Iterator[str]:
    """Tokens that a lenient reader of base64 takes for ``good``."""
    payload, _, signature = good.rpartition(".")
    yield from (
        good + "=",
        good + "====",
        good + "!",
        good + "\n",
        good + "\xff",
        " " + good,
        good + "?",
        good + "\x00",
    )
    yield f"{payload}=.{signature}"
    yield f"{payload}.{signature[:5]}!!!!{signature[5:]}"
    yield f"{payload}.{signature}".replace("-", "+").replace("_", "/") + "~"
    yield f"{payload}..{signature}"
    yield f"{good}.{signature}"
    yield f"{payload}.{base64.b16encode(base64.urlsafe_b64decode(signature)).decode()}"


def test_a_token_has_one_spelling(app: Celery, delivered: list[Any]) -> None:
    for other in spellings(token(app)):
        assert refused(call(callbacks.wsgi(app), "/" + other)) == 404, other
        with pytest.raises(CallbackError, match="^404: "):
            callbacks.accept(app, other, None)
    assert not delivered


def test_each_character_and_each_bit_counts(app: Celery, delivered: list[Any]) -> None:
    good = token(app)
    application = callbacks.wsgi(app)
    for place in range(len(good)):
        for bit in range(8):
            other = good[:place] + chr(ord(good[place]) ^ 1 << bit) + good[place + 1 :]
            assert call(application, "/" + other).status == 404, other
        assert call(application, "/" + good[:place]).status == 404
        assert call(application, "/" + good[place + 1 :]).status == 404
    assert not delivered


# -- secrets


def test_rotation(delivered: list[Any]) -> None:
    before, during, after = (
        web(continuation_callback_secret=OLD),
        web(continuation_callback_secret=[NEW, OLD]),
        web(continuation_callback_secret=(NEW,)),
    )
    assert post(during, token(before)).status == 204
    assert post(during, token(during)).status == 204
    assert post(after, token(during)).status == 204  # the first signs
    assert len(delivered) == 3
    assert refused(post(after, token(before))) == 404
    assert refused(post(before, token(during))) == 404
    assert len(delivered) == 3


@pytest.mark.parametrize("name", ["callback_url", "callback_secret"])
def test_a_setting_that_is_missing_is_named(name: str) -> None:
    app = web(**{f"continuation_{name}": None})
    with pytest.raises(ImproperlyConfigured, match=f"^continuation_{name} is not set; it takes "):
        callbacks.callback_url(app, "id", "name")


def test_an_application_without_a_secret_is_not_made() -> None:
    for secret in (None, "short"):
        app = web(continuation_callback_secret=secret)
        with pytest.raises(ImproperlyConfigured, match="^continuation_callback_secret"):
            callbacks.wsgi(app)
        with pytest.raises(ImproperlyConfigured, match="^continuation_callback_secret"):
            callbacks.accept(app, "token", None)


# -- the outcome of a delivery


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DeliveryError("task id", "payment was delivered"), 409),
        (UnserializableValueError("payment", "cannot be saved"), 400),
        (StoreError("redis", "payment"), 503),
        (CallbackError(409, "of its own"), 409),
        (ValueError("payment"), 500),
        (KeyError("task id"), 500),
        (RecursionError("payment"), 500),
        (ImproperlyConfigured("payment"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_delivery_that_fails(app: Celery, failing: Any, error: Exception, status: int) -> None:
    failing(error)
    answer = post(app, token(app))
    assert refused(answer) == status
    assert answer.headers.get("Retry-After") == ("30" if status == 503 else None)
    with pytest.raises(CallbackError if status < 500 or status == 503 else type(error)) as caught:
        callbacks.accept(app, token(app), {})
    if isinstance(caught.value, CallbackError) and caught.value is not error:
        assert (caught.value.status, caught.value.__cause__) == (status, error)


def test_what_was_not_foreseen_is_logged(app: Celery, failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    failing(ValueError("why"))
    good = token(app)
    post(app, good, b'"a payload"')
    (record,) = caplog.records
    assert (record.levelname, record.action) == ("ERROR", "callback_failed")  # type: ignore[attr-defined]
    assert "ValueError: why" in caplog.text
    assert good not in caplog.text
    assert "a payload" not in caplog.text


def test_the_store_is_away(app: Celery, failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    failing(StoreError("redis", "refused"))
    assert post(app, token(app)).status == 503
    (record,) = caplog.records
    assert (record.levelname, record.action) == ("WARNING", "callback_delayed")  # type: ignore[attr-defined]
    assert record.task_id == "task id"  # type: ignore[attr-defined]


def test_what_was_kept_while_the_broker_is_away_counts(
    app: Celery, failing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    failing(OperationalError("refused"))
    callbacks.accept(app, token(app), {})
    assert post(app, token(app)).status == 204
    assert [record.action for record in caplog.records] == ["callback_unannounced"] * 2  # type: ignore[attr-defined]


def test_a_setting_that_turns_bad_later_is_a_500(app: Celery, delivered: list[Any]) -> None:
    application, good = callbacks.wsgi(app), token(app)
    app.conf.continuation_callback_max_body = 0
    assert refused(call(application, "/" + good)) == 500
    app.conf.continuation_callback_secret = None
    assert refused(call(application, "/" + good)) == 500
    assert not delivered


# -- in a task


def test_a_task_makes_the_address(delivered: list[Any]) -> None:
    app = web()
    urls: list[str] = []

    @app.task(base=ContinuableTask, bind=True, name="asks")
    def asks(self: Any) -> None:
        urls.append(self.callback_url("payment", expires=60))

    asks.apply(task_id="an id")
    callbacks.accept(app, urls[0].rpartition("/")[2], 1)
    assert delivered == [("an id", "payment", 1)]


def test_a_direct_call_has_no_address() -> None:
    app = web()

    @app.task(base=ContinuableTask, bind=True, name="asks")
    def asks(self: Any) -> None:
        self.callback_url("payment")

    for call_it in (asks, asks.run, lambda: asks.callback_url("payment")):
        with pytest.raises(InvalidStepError, match=r"callback_url\('payment'\) of task asks .* no id"):
            call_it()


@pytest.mark.parametrize("name", ["", None, 5, b"payment"])
def test_a_name_is_a_name(app: Celery, name: Any) -> None:
    with pytest.raises(InvalidStepError, match="a callback's name must be a non-empty str, not "):
        callbacks.callback_url(app, "id", name)


@pytest.mark.parametrize("expires", [0, -1, timedelta(0), float("inf"), float("nan"), "1", True])
def test_expires_is_a_time(app: Celery, expires: Any) -> None:
    with pytest.raises(ValueError, match="a callback's expires must be a number of seconds above 0, or a timedelta"):
        callbacks.callback_url(app, "id", "name", expires)


# -- anything at all


@fuzz
@given(st.one_of(st.text(), st.from_regex(callbacks._TOKEN, fullmatch=True)))
def test_any_token(app: Celery, delivered: list[Any], any_token: str) -> None:
    with pytest.raises(CallbackError, match="^404: "):
        callbacks.accept(app, any_token, None)
    path = "/" + any_token.encode().decode("latin-1")
    assert refused(call(callbacks.wsgi(app), path)) == 404
    assert not delivered


@fuzz
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.text(max_size=5)), min_size=1, max_size=4))
def test_any_change_of_a_token(app: Celery, delivered: list[Any], edits: list[tuple[int, int, str]]) -> None:
    good = other = token(app, 10**6)
    for start, length, text in edits:
        other = other[:start] + text + other[start + length :]
    if other != good:
        with pytest.raises(CallbackError, match="^404: "):
            callbacks.accept(app, other, None)
        assert not delivered


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@fuzz
@given(st.binary(max_size=50) | trees.map(lambda tree: json.dumps(tree).encode()))
def test_any_body(app: Celery, delivered: list[Any], body: bytes) -> None:
    app.conf.continuation_callback_max_body = 10**6
    answer = post(app, token(app), body)
    if answer.status == 204:
        assert delivered == [("task id", "payment", json.loads(body.decode()))]
        json.dumps(delivered, allow_nan=False)
        delivered.clear()
    else:
        assert refused(answer) == 400
        assert not delivered


anything = st.text(alphabet=st.characters(max_codepoint=255), max_size=20)


@fuzz
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "REQUEST_METHOD": anything | st.sampled_from(["GET", "HEAD", "post", None]),
            "CONTENT_TYPE": anything | st.none(),
            "CONTENT_LENGTH": anything | st.integers().map(str) | st.none(),
            "HTTP_TRANSFER_ENCODING": anything | st.just("chunked"),
            "HTTP_X_HTTP_METHOD_OVERRIDE": st.just("POST"),
            "QUERY_STRING": anything,
            "SCRIPT_NAME": anything,
        },
    )
)
def test_any_headers(app: Celery, delivered: list[Any], headers: dict[str, Any]) -> None:
    body = b'{"a": 12345}'
    answer = call(callbacks.wsgi(app), "/" + token(app), body, **headers)
    sound = (
        headers.get("REQUEST_METHOD", "POST") == "POST"
        and headers.get("CONTENT_TYPE", "application/json") == "application/json"
        and headers.get("CONTENT_LENGTH", "12") == "12"
    )
    assert (answer.status == 204) == sound == bool(delivered)
    assert answer.status < 500
    delivered.clear()


# -- in real servers


def test_behind_a_server(app: Celery, delivered: list[Any]) -> None:
    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with make_server("127.0.0.1", 0, validator(callbacks.wsgi(app)), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            app.conf.continuation_callback_url = f"http://127.0.0.1:{server.server_port}"
            url = callbacks.callback_url(app, "id", "payment")
            assert send(url, b'{"paid": true}') == 204
            assert delivered == [("id", "payment", {"paid": True})]
            assert send(url, b"{") == 400
            assert send(url[:-1], b"{}") == 404
            assert send(url, None) == 405
            assert len(delivered) == 1
        finally:
            server.shutdown()
            thread.join()


def send(url: str, body: bytes | None) -> int:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_mounted_in_flask(app: Celery, delivered: list[Any]) -> None:
    from flask import Flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    flask = Flask("web")
    flask.wsgi_app = DispatcherMiddleware(flask.wsgi_app, {"/callbacks": callbacks.wsgi(app)})  # type: ignore[method-assign]
    client = flask.test_client()
    path = callbacks.callback_url(app, "id", "payment").removeprefix("https://example.com")
    assert client.post(path, json={"paid": True}).status_code == 204
    assert delivered == [("id", "payment", {"paid": True})]
    assert client.get(path).status_code == 405
    assert client.post("/callbacks", json={}).status_code == 404
    assert client.post("/callbacks/", json={}).status_code == 404
    assert len(delivered) == 1


def test_a_view_of_one_s_own_in_flask(app: Celery, delivered: list[Any]) -> None:
    from flask import Flask, request

    flask = Flask("web")

    @flask.post("/callbacks/<token>")
    def take(token: str) -> Any:
        try:
            callbacks.accept(app, token, request.get_json())
        except CallbackError as error:
            return {"error": error.problem}, error.status
        return "", 204

    client = flask.test_client()
    path = callbacks.callback_url(app, "id", "payment").removeprefix("https://example.com")
    assert client.post(path, json=[1]).status_code == 204
    assert client.post(path + "x", json=[1]).status_code == 404
    assert delivered == [("id", "payment", [1])]


# -- imports


def test_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['itsdangerous'] = None; "
    code += "import celery_continuations.task, celery_continuations.callbacks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: itsdangerous is missing; run: pip install 'celery-continuations[callbacks]'"
    )


def test_a_web_server_imports_no_worker() -> None:
    workers = ("celery.worker", "celery.apps.worker", "celery_continuations.worker")
    code = f"import sys, celery_continuations.callbacks; print([m for m in sys.modules if m.startswith({workers})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_settings_are_not_of_a_task() -> None:
    assert not [name for name in conf._of_tasks() if name.startswith("callback")]
