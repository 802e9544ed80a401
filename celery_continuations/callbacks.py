"""Callbacks over HTTP: an external service posts to an address, and a waiting task receives the payload.

The address ends in a token: a signed text with one wait of one task, and its expiry.
The holder of a token may deliver to that wait, and do nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from datetime import timedelta
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError

from celery_continuations import conf
from celery_continuations.control import deliver
from celery_continuations.exceptions import (
    CallbackError,
    DeliveryError,
    InvalidStepError,
    StoreError,
    UnserializableValueError,
)

try:
    from itsdangerous import BadData, URLSafeSerializer
except ImportError as exc:  # pragma: no cover - tested in a subprocess without itsdangerous
    raise ImportError("itsdangerous is missing; run: pip install 'celery-continuations[callbacks]'") from exc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["accept", "callback_url", "wsgi"]

logger = logging.getLogger("celery_continuations")

# Base64 has several spellings of one signature: foreign characters are skipped when it is read, and spare bits of the
# last character ignored. The characters are checked here, and 384 bits leave none to spare.
_TOKEN = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{64}")
_DIGEST = hashlib.sha384

_HEADERS = {405: ("Allow", "POST"), 503: ("Retry-After", "30")}


def callback_url(app: Celery, task_id: str, name: str, expires: float | timedelta | None = None) -> str:
    """Return an address for one delivery to one wait of one task.

    Args:
        app: the app of the task.
        task_id: of the task.
        name: of what the task waits for.
        expires: seconds, or a timedelta, from now on; without it ``continuation_callback_expires``.

    Raises:
        ImproperlyConfigured: when ``continuation_callback_url`` or ``continuation_callback_secret`` is not set.
        InvalidStepError: when ``name`` is not a valid name.
        ValueError: when ``expires`` is not a time above 0.

    >>> app = Celery(broker="memory://", set_as_current=False)
    >>> app.conf.continuation_callback_url = "https://example.com/callbacks"
    >>> app.conf.continuation_callback_secret = "only an example, of 32 characters or more"
    >>> url = callback_url(app, "7f3c", "payment", expires=3600)
    >>> url.startswith("https://example.com/callbacks/")
    True
    """
    if type(name) is not str or not name:
        raise InvalidStepError(f"a callback's name must be a non-empty str, not {name!r}", found=name)
    if expires is None:
        expires = conf.needed(app, "callback_expires")
    elif not conf.SETTINGS["callback_expires"].accepts(expires):
        raise ValueError(f"a callback's expires must be {conf.SETTINGS['callback_expires'].allowed}, not {expires!r}")
    base = conf.needed(app, "callback_url").rstrip("/")
    token = _serializer(app).dumps([task_id, name, math.ceil(time() + conf.seconds(expires))])
    return f"{base}/{token}"


def accept(app: Celery, token: str, payload: Any) -> None:
    """Deliver the payload of a request to a callback's address; a custom view makes this one call.

    The same payload again is accepted and changes nothing.

    Args:
        app: the app of the task.
        token: the last part of the address.
        payload: the body of the request, decoded.

    Raises:
        CallbackError: when it is not delivered; its ``status`` is the one to answer with.
        ImproperlyConfigured: when ``continuation_callback_secret`` is not set.

    >>> app = Celery(broker="memory://", set_as_current=False)
    >>> app.conf.continuation_callback_secret = "only an example, of 32 characters or more"
    >>> accept(app, "guessed", {"paid": True})
    Traceback (most recent call last):
        ...
    celery_continuations.exceptions.CallbackError: 404: there is nothing at this address
    """
    task_id, name = _verify(app, token)
    _deliver(app, task_id, name, payload)


def wsgi(app: Celery) -> WSGIApplication:
    """Return a WSGI application that receives callbacks, to be mounted at ``continuation_callback_url``.

    It reads only the last part of the path, so it can be mounted anywhere.

    Args:
        app: the app of the tasks.

    Raises:
        ImproperlyConfigured: when ``continuation_callback_secret`` is not set.

    >>> app = Celery(broker="memory://", set_as_current=False)
    >>> app.conf.continuation_callback_secret = "only an example, of 32 characters or more"
    >>> application = wsgi(app)
    >>> request = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a-token"}
    >>> application(request, lambda status, headers: print(status))
    405 Method Not Allowed
    [b'{"error": "only POST is allowed"}']
    """
    conf.needed(app, "callback_secret")  # raise for a wrong one when the server starts, not at the first callback

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        error = _take(app, environ)
        if error is None:
            start_response("204 No Content", [])
            return []
        body = json.dumps({"error": error.problem}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        headers.append(("Cache-Control", "no-store"))
        if error.status in _HEADERS:
            headers.append(_HEADERS[error.status])
        start_response(f"{error.status} {HTTPStatus(error.status).phrase}", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]

    return application


# -- the token


def _serializer(app: Celery) -> URLSafeSerializer:
    secrets = conf.needed(app, "callback_secret")
    keys = [secrets] if isinstance(secrets, str) else list(secrets)
    return URLSafeSerializer(
        keys[::-1],  # itsdangerous signs with the last
        salt=f"celery_continuations.callbacks:{conf.namespace(app)}",
        signer_kwargs={"digest_method": _DIGEST, "key_derivation": "hmac"},
    )


def _verify(app: Celery, token: str) -> tuple[str, str]:
    """Return the task's id and the name of the wait."""
    serializer = _serializer(app)
    try:
        if not _TOKEN.fullmatch(token):
            raise BadData("not the characters of a token")
        task_id, name, expires = serializer.loads(token)
    except BadData:
        raise CallbackError(404, "there is nothing at this address") from None
    if time() >= expires:
        raise CallbackError(410, "this address has expired")
    return task_id, name


def _deliver(app: Celery, task_id: str, name: str, payload: Any) -> None:
    try:
        deliver(task_id, name, payload, app=app)
    except UnserializableValueError as exc:
        raise CallbackError(400, "the payload cannot be saved") from exc
    except DeliveryError as exc:
        raise CallbackError(409, "the task is not waiting for this") from exc
    except StoreError as exc:
        extra = {"action": "callback_delayed", "task_id": task_id}
        logger.warning("A callback for task %s could not be delivered: %s", task_id, exc, extra=extra)
        raise CallbackError(503, "temporarily unavailable, please try again") from exc
    except OperationalError as exc:
        # The payload is saved, and a sweep will wake the task. The sender need not send it again.
        extra = {"action": "callback_unannounced", "task_id": task_id}
        logger.warning("A callback for task %s was saved, but the broker is unavailable: %s", task_id, exc, extra=extra)


# -- the request


def _take(app: Celery, environ: WSGIEnvironment) -> CallbackError | None:
    """Deliver the payload of a request; return the error, or None."""
    try:
        if environ.get("REQUEST_METHOD") != "POST":
            raise CallbackError(405, "only POST is allowed")
        # Before the body, so that an unauthenticated one is never read.
        task_id, name = _verify(app, environ.get("PATH_INFO", "").rpartition("/")[2])
        body = _body(environ, conf.needed(app, "callback_max_body"))
        _deliver(app, task_id, name, _decode(body))
    except CallbackError as error:
        return error
    except Exception:
        logger.exception("Unexpected error in a callback", extra={"action": "callback_failed"})
        return CallbackError(500, "internal error")
    return None


def _body(environ: WSGIEnvironment, limit: int) -> bytes:
    """Return the body of a request, if its headers say that it is JSON, of at most ``limit`` bytes."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise CallbackError(415, "only application/json is allowed")
    length = environ.get("CONTENT_LENGTH", "")
    if not length:
        raise CallbackError(411, "Content-Length is missing")
    if not re.fullmatch("[0-9]{1,1000}", length):
        raise CallbackError(400, "Content-Length is not a number")
    if int(length) > limit:
        raise CallbackError(413, f"at most {limit} bytes are allowed")
    return _exactly(environ["wsgi.input"], int(length))


def _exactly(stream: Any, size: int) -> bytes:
    body = b""
    while len(body) < size:
        try:
            part = stream.read(size - len(body))
        except OSError:
            part = b""
        if not part:
            raise CallbackError(400, "the body is shorter than Content-Length")
        body += part
    return body


# -- JSON, without the extensions that only some readers accept


def _decode(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError):
        raise CallbackError(400, "the body is not valid JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not a number, or too large")
    return number
