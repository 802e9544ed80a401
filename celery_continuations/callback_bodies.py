"""The bodies of callbacks: read up to a limit, and parsed as strict JSON."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from celery_continuations.exceptions import CallbackError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["body_of", "decode", "read"]


def read(body: Callable[[], bytes]) -> bytes:
    """Return what ``body()`` returns.  Raises CallbackError if the sender has not sent all of it."""
    try:
        return body()
    except OSError:
        raise CallbackError(400, "the body cannot be read") from None


def body_of(environ: WSGIEnvironment, limit: int) -> bytes:
    """Return the body of a request, if its headers say that it has at most ``limit`` bytes."""
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


def decode(body: bytes) -> Any:
    """Parse JSON as the callbacks do: without NaN, Infinity, numbers that are too large, and names that occur twice.

    Args:
        body: the JSON, in UTF-8.

    Raises:
        CallbackError: with the status 400, for what is not such JSON or is nested too deeply.

    >>> decode(b'{"paid": true}')
    {'paid': True}
    """
    try:
        text = body.decode("utf-8")
        return json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
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
