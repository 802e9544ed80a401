"""The body of a task's message: its arguments, callbacks and chain, exactly as they were sent.

A task may change the objects it receives.  The received bytes never change, and each decoding makes new objects, so
every later execution starts from the same arguments.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads, prepare_accept_content

from celery_continuations import celery_internals, conf

if TYPE_CHECKING:
    from celery import Celery, Task

__all__ = ["BODY", "Body", "carried", "received", "written"]

#: The key of a request's properties that holds the received body.  Celery copies any other unknown part of a request
#: to ``request.headers``, which `self.retry()` and user code send on as headers of other messages.
BODY = "continuation_body"


class Body:
    """A serialized body.

    Args:
        data: its bytes or text.
        content_type: the content type, which identifies the serializer.
        encoding: the message's content encoding.
        app: the app whose `accept_content` limits what :meth:`decode` reads; None for a body written by this process.
        in_chord: whether its task is a member of a chord.

    Attributes:
        in_chord: as above.
    """

    def __init__(
        self, data: Any, content_type: str | None, encoding: str | None, app: Celery | None, *, in_chord: bool = False
    ) -> None:
        self._data = data
        self._content_type = content_type
        self._encoding = encoding
        self._app = app
        self.in_chord = in_chord

    @property
    def data(self) -> Any:
        """Return its bytes or text.

        Raises:
            kombu.exceptions.EncodeError: when it could not be serialized.
        """
        if isinstance(self._data, EncodeError):
            raise self._data
        return self._data

    @property
    def serializer(self) -> str | None:
        """Return the name of its serializer, or None if kombu has none for its content type."""
        return celery_internals.serializer_of(self._content_type)

    @property
    def size(self) -> int:
        """Return the number of its bytes."""
        return len(self._bytes())

    @property
    def is_accepted(self) -> bool:
        """Whether the app accepts its serializer."""
        return self._app is None or self._content_type in _accepted(self._app)

    def decode(self) -> tuple[Any, Any, dict[str, Any]]:
        """Return args, kwargs and the dict of the other parts, as new objects.

        Raises:
            kombu.exceptions.ContentDisallowed: when the app does not accept its serializer.
            kombu.exceptions.DecodeError: when it cannot be read.
            kombu.exceptions.EncodeError: when it could not be serialized.
        """
        data = self.data
        accept: Any = {self._content_type} if self._app is None else _accepted(self._app)
        args, kwargs, embed = loads(data, self._content_type, self._encoding, accept=accept)  # type: ignore[arg-type]
        return args, kwargs, dict(embed or {})

    def changed(self, changes: Mapping[str, Any], serializer: str | None = None) -> Body:
        """Return a body with changed parts: ``args``, ``kwargs``, or entries of its dict, which None removes.

        Args:
            changes: the new parts.
            serializer: the name of another serializer.

        Raises:
            kombu.exceptions.EncodeError: when the parts cannot be serialized; else as :meth:`decode`.
        """
        args, kwargs, embed = self.decode()
        parts = {**embed, "args": args, "kwargs": kwargs, **changes}
        args, kwargs = parts.pop("args"), parts.pop("kwargs")
        embed = {name: value for name, value in parts.items() if name not in changes or value is not None}
        return written(args, kwargs, embed, serializer or self.serializer or self._default_serializer())

    def as_text(self) -> tuple[list[str | None], str]:
        """Return content type and encoding, and a text from which :func:`carried` restores the same bytes."""
        data, encoding = self._bytes(), self._encoding
        if encoding == "utf-8":
            try:
                return [self._content_type, encoding], data.decode()
            except UnicodeDecodeError:
                encoding = "binary"  # kombu registers serializers as utf-8 by default
        return [self._content_type, encoding], base64.b64encode(data).decode()

    def _default_serializer(self) -> str:
        assert self._app is not None, "a body written by this process has a serializer"
        return str(conf.celery_setting(self._app, "task_serializer"))

    def _bytes(self) -> bytes:
        data = self.data
        return data.encode() if isinstance(data, str) else bytes(data)


def _accepted(app: Celery) -> Any:
    return prepare_accept_content(conf.celery_setting(app, "accept_content"))


def written(args: Any, kwargs: Any, embed: dict[str, Any], serializer: str) -> Body:
    """Serialize a body.

    Raises:
        kombu.exceptions.EncodeError: when it cannot be serialized.
    """
    content_type, encoding, data = dumps((args, kwargs, embed), serializer=serializer)
    return Body(data, content_type, encoding, None, in_chord=bool(embed.get("chord")))


def carried(content: list[str | None], text: str, app: Celery) -> Body:
    """Return the body from the text that :meth:`Body.as_text` returned."""
    content_type, encoding = content
    return Body(text if encoding == "utf-8" else base64.b64decode(text), content_type, encoding, app)


def received(task: Task[..., object], request: Any, content_type: str | None) -> Body:
    """Return the body of a request's message.

    If the request does not carry the received body, serialize one now, before the task's own code runs: Celery decodes
    messages of protocol 1 itself, and a task may have its own ``Request`` or ``Strategy``.

    Args:
        task: the task.
        request: its request.
        content_type: the content type of the message, or None if unknown.
    """
    found = (request.properties or {}).get(BODY)
    if found is not None:
        data, received_type, encoding = found
        return Body(data, received_type, encoding, task.app, in_chord=bool(request.chord))
    parts = {name: getattr(request, name) for name in ("callbacks", "errbacks", "chain", "chord")}
    chosen = (
        celery_internals.serializer_of(content_type)
        or task.serializer
        or conf.celery_setting(task.app, "task_serializer")
    )
    try:
        return written(request.args or (), request.kwargs or {}, parts, chosen)
    except EncodeError as exc:  # raised only if the task is published again
        return Body(exc, None, None, None, in_chord=bool(request.chord))
