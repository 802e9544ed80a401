"""The saved message: a task's message as its record keeps it, to be published again."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.utils import json

from celery_continuations.exceptions import StoreError
from celery_continuations.messages.body import Body, carried

if TYPE_CHECKING:
    from celery import Celery

    from celery_continuations.stores import Record

__all__ = ["SavedMessage", "began"]

T = TypeVar("T")


@dataclass(frozen=True)
class SavedMessage:
    """A message as a record keeps it.

    Attributes:
        task: the name of its task.
        route: see :func:`celery_continuations.messages.routing.route`.
        headers: the headers of Celery's protocol 2, and the caller's own.
        properties: the properties of Celery's message.
        sending: the other properties to publish it with.
        content: content type and encoding of its body.
        text: the text of its body.
        in_chord: whether its task is a member of a chord.
        began: when it was saved, which is when the task began, in seconds since the epoch; None if unknown.
    """

    task: str
    route: dict[str, Any]
    headers: dict[str, Any]
    properties: dict[str, Any]
    sending: dict[str, Any]
    content: list[str | None]
    text: str
    in_chord: bool
    began: float | None

    @classmethod
    def loads(cls, text: str) -> SavedMessage:
        """Read the text from a record.

        Raises:
            StoreError: when the text is not a message.
        """
        try:
            message = json.loads(text)
            began = message.get("began")
            return cls(
                _part(message, "task", str),
                _part(message, "route", dict),
                _part(message, "headers", dict),
                _part(message, "properties", dict),
                _part(message, "sending", dict),
                _part(message, "content", list),
                _part(message, "body", str),
                bool(message.get("chord")),
                None if began is None else float(began),
            )
        except Exception as exc:  # kombu's JSON calls the decoders of any registered type
            raise StoreError("record", f"its saved message cannot be read: {exc!r}") from exc

    def dumps(self) -> str:
        """Return the text for a record."""
        whole = {
            "task": self.task,
            "route": self.route,
            "headers": self.headers,
            "properties": self.properties,
            "sending": self.sending,
            "content": self.content,
            "body": self.text,
            "chord": self.in_chord,
            "began": self.began,
        }
        return str(json.dumps(whole))

    def body(self, app: Celery) -> Body:
        """Return its body."""
        return carried(self.content, self.text, app)

    def context(self, app: Celery) -> dict[str, Any]:
        """Return the request context that is needed to report the task's end, to its chord for instance.

        Raises:
            kombu.exceptions.ContentDisallowed: when the app does not accept the body's serializer.
            kombu.exceptions.DecodeError: when the body cannot be read.
        """
        args, kwargs, embedded = self.body(app).decode()
        return {**self.headers, **embedded, "args": args, "kwargs": kwargs}


def _part(message: dict[str, Any], name: str, kind: type[T]) -> T:
    part = message[name]
    if not isinstance(part, kind):
        raise TypeError(f"{name} is a {type(part).__name__}, expected a {kind.__name__}")
    return part


def began(record: Record | None) -> float | None:
    """Return when the task of a record began, in seconds since the epoch; None if its saved message does not say."""
    if record is None or record.message is None:
        return None
    with suppress(StoreError):  # who needs the message itself reports it
        return SavedMessage.loads(record.message).began
    return None
