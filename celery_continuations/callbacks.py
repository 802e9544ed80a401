"""Callbacks over HTTP: an external service posts to an address, and a waiting task receives the payload.

The address ends in a token: a signed text with one wait of one task, its expiry, and where its record is.
The holder of a token may deliver to that wait, and do nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import re
from datetime import timedelta
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from celery import Celery
from kombu.exceptions import OperationalError

from celery_continuations import conf
from celery_continuations.callback_bodies import body_of, decode, read
from celery_continuations.control import deliver
from celery_continuations.exceptions import (
    CallbackError,
    DeliveryError,
    InvalidStepError,
    StoreError,
    TooLateError,
    UnserializableValueError,
)
from celery_continuations.stores.factory import settings_of

try:
    from itsdangerous import BadData, URLSafeSerializer
except ImportError as exc:  # pragma: no cover - tested in a subprocess without itsdangerous
    raise ImportError("itsdangerous is missing; run: pip install 'celery-continuations[callbacks]'") from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Late", "Reply", "accept", "callback_url", "decode", "receive", "wsgi"]

logger = logging.getLogger("celery_continuations")

# Base64 has several spellings of one signature: foreign characters are skipped when it is read, and spare bits of the
# last character ignored. The characters are checked here, and 384 bits leave none to spare.
_TOKEN = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{64}")
_DIGEST = hashlib.sha384

_HEADERS = {405: {"Allow": "POST"}, 503: {"Retry-After": "30"}}

# Services label JSON in these ways; the token decides whether the body is trusted.
_JSON = re.compile(r"application/([a-z0-9!#$&^_.+-]+\+)?json|text/plain")

#: What happens to a payload that comes too late.
Late = Literal["refuse", "ignore"]


class Reply(NamedTuple):
    """How to answer a request.

    Attributes:
        status: the HTTP status.
        body: JSON, or empty.
        headers: by name.
    """

    status: int
    body: bytes
    headers: dict[str, str]


def callback_url(
    app: Celery,
    task_id: str,
    name: str,
    expires: float | timedelta | None = None,
    *,
    store: str | None = None,
    started: bool = False,
) -> str:
    """Return an address for one delivery to one wait of one task.

    Args:
        app: the app of the task.
        task_id: of the task.
        name: of what the task waits for.
        expires: seconds, or a timedelta, from now on; without it ``continuation_callback_expires``.
        store: the task's setting ``continuation_store``; by default the app's.
        started: whether the task has started; then nothing is kept for a task whose record is gone.

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
    fields = [task_id, name, math.ceil(time() + conf.seconds(expires))]
    place = "" if store in (None, conf.app_setting(app, "store")) else _digest(_secrets(app)[0], str(store))
    if place or started:  # release 0.1 reads addresses without these
        fields += [place, int(started)]
    return f"{base}/{_serializer(app).dumps(fields)}"


def receive(
    app: Celery,
    token: str,
    content_type: str | None,
    body: bytes | Callable[[], bytes],
    *,
    late: Late = "refuse",
) -> Reply:
    """Deliver the body of a POST to a callback's address; a view of your own makes this one call.

    The token is checked before the body is read, and both before the body is parsed.

    Args:
        app: the app of the task.
        token: the last part of the address.
        content_type: the header of that name.
        body: the body of the request, or a function that reads it.  The function may check the sender's signature, and
            raise CallbackError.
        late: what to do with a payload that comes too late, because another one was delivered before, the wait has
            timed out or the task is over: ``"refuse"`` it with 409, or ``"ignore"`` it and answer with 204.

    Returns:
        The answer.

    Raises:
        ImproperlyConfigured: when ``continuation_callback_secret`` is not set.

    >>> app = Celery(broker="memory://", set_as_current=False)
    >>> app.conf.continuation_callback_secret = "only an example, of 32 characters or more"
    >>> receive(app, "guessed", "application/json", b"[[[[").status
    404
    """
    try:
        callback = _verify(app, token)
        kind = (content_type or "").partition(";")[0].strip().lower()
        if not _JSON.fullmatch(kind):
            raise CallbackError(415, "only application/json is allowed")
        limit = conf.needed(app, "callback_max_body")
        found = body if isinstance(body, bytes) else read(body)
        if len(found) > limit:
            raise CallbackError(413, f"at most {limit} bytes are allowed")
        _deliver(app, callback, decode(found), late)
    except CallbackError as error:
        return _reply(error)
    return Reply(204, b"", {})


def accept(app: Celery, token: str, payload: Any, *, late: Late = "refuse") -> None:
    """Deliver a payload that a view has parsed, to a callback's address.

    An equal payload again is accepted and changes nothing.

    Args:
        app: the app of the task.
        token: the last part of the address.
        payload: the body of the request, decoded.
        late: see :func:`receive`.

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
    _deliver(app, _verify(app, token), payload, late)


def wsgi(app: Celery, *, late: Late = "refuse") -> WSGIApplication:
    """Return a WSGI application that receives callbacks, to be mounted at ``continuation_callback_url``.

    It reads only the last part of the path, so it can be mounted anywhere.

    Args:
        app: the app of the tasks.
        late: see :func:`receive`.

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
    _check_late(late)
    conf.needed(app, "callback_secret")  # raise for a wrong one when the server starts, not at the first callback

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            reply = _take(app, environ, late)
        except Exception:
            logger.exception("Unexpected error in a callback", extra={"action": "callback_failed"})
            reply = _reply(CallbackError(500, "internal error"))
        start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", list(reply.headers.items()))
        return [] if environ.get("REQUEST_METHOD") == "HEAD" or not reply.body else [reply.body]

    return application


# -- the token


class _Callback(NamedTuple):
    """What a token says: the task, the name of the wait, the digest of the task's store, whether it has started."""

    task_id: str
    name: str
    place: str = ""
    started: bool = False


def _secrets(app: Celery) -> list[str]:
    secrets = conf.needed(app, "callback_secret")
    return [secrets] if isinstance(secrets, str) else list(secrets)


def _serializer(app: Celery) -> URLSafeSerializer:
    return URLSafeSerializer(
        _secrets(app)[::-1],  # itsdangerous signs with the last
        salt=f"celery_continuations.callbacks:{conf.namespace(app)}",
        signer_kwargs={"digest_method": _DIGEST, "key_derivation": "hmac"},
    )


def _verify(app: Celery, token: str) -> _Callback:
    serializer = _serializer(app)
    try:
        if not _TOKEN.fullmatch(token):
            raise BadData("not the characters of a token")
        fields = serializer.loads(token)
        if not _are_fields(fields):
            raise BadData("signed, but not by this release")
    except BadData:
        raise CallbackError(404, "there is nothing at this address") from None
    task_id, name, expires, *more = fields
    if time() >= expires:
        raise CallbackError(410, "this address has expired")
    return _Callback(task_id, name, *more[:2])


def _are_fields(fields: Any) -> bool:
    kinds = (str, str, int, str, int)
    return isinstance(fields, list) and len(fields) >= 3 and all(map(isinstance, fields, kinds))


def _digest(secret: str, store: str) -> str:
    """Name a store in a token: with the secret, as the URL of the store may have a password that can be guessed."""
    return hmac.new(secret.encode(), f"celery_continuations.store:{store}".encode(), _DIGEST).hexdigest()[:16]


def _store_at(app: Celery, place: str) -> str | None:
    """Return the setting of the store that a token names; None for the app's."""
    if not place:
        return None
    # The tasks of a web server may not be imported before they are needed.
    for make_known in (lambda: None, app.loader.import_default_modules):
        make_known()
        for store in settings_of(app):
            if any(_digest(secret, store) == place for secret in _secrets(app)):
                return store
    raise StoreError(
        "of a callback's task",
        "no task that this process knows has the continuation_store that the address names; import the task's module "
        "here, with the same settings as on its workers",
    )


def _check_late(late: str) -> None:
    if late not in get_args(Late):
        raise ValueError(f"late must be 'refuse' or 'ignore', not {late!r}")


def _deliver(app: Celery, callback: _Callback, payload: Any, late: Late) -> None:
    _check_late(late)
    task_id, name, place, started = callback
    try:
        deliver(task_id, name, payload, app=app, store=_store_at(app, place), started=bool(started))
    except UnserializableValueError as exc:
        raise CallbackError(400, "the payload cannot be saved") from exc
    except TooLateError as exc:
        if late == "refuse":
            raise CallbackError(409, "the task is not waiting for this") from exc
        extra = {"action": "callback_ignored", "task_id": task_id}
        logger.info("A callback for task %s came too late, and was ignored: %s", task_id, exc, extra=extra)
    except DeliveryError as exc:
        raise CallbackError(409, "the task does not accept this") from exc
    except StoreError as exc:
        extra = {"action": "callback_delayed", "task_id": task_id}
        logger.warning("A callback for task %s could not be delivered: %s", task_id, exc, extra=extra)
        raise CallbackError(503, "temporarily unavailable, please try again") from exc
    except OperationalError as exc:
        # The payload is saved, and a sweep will wake the task. The sender need not send it again.
        extra = {"action": "callback_unannounced", "task_id": task_id}
        logger.warning("A callback for task %s was saved, but the broker is unavailable: %s", task_id, exc, extra=extra)


# -- the request


def _take(app: Celery, environ: WSGIEnvironment, late: Late) -> Reply:
    if environ.get("REQUEST_METHOD") != "POST":
        return _reply(CallbackError(405, "only POST is allowed"))
    token = environ.get("PATH_INFO", "").rpartition("/")[2]
    limit = conf.needed(app, "callback_max_body")
    return receive(app, token, environ.get("CONTENT_TYPE"), lambda: body_of(environ, limit), late=late)


def _reply(error: CallbackError) -> Reply:
    body = json.dumps({"error": error.problem}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    return Reply(error.status, body, {**headers, **_HEADERS.get(error.status, {})})
