"""The saved message: a task's message as its record keeps it, to be published again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.utils import json

from celery_continuations.exceptions import StoreError
from celery_continuations.messages.body import Body, carried

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["SavedMessage"]


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
            return cls(
                message["task"],
                message["route"],
                message["headers"],
                message["properties"],
                message["sending"],
                message["content"],
                message["body"],
                bool(message.get("chord")),
                message.get("began"),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
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
        """Return the request context that is needed to report the task's end to its chord.

        Raises:
            kombu.exceptions.ContentDisallowed: when the app does not accept the body's serializer.
            kombu.exceptions.DecodeError: when the body cannot be read.
        """
        _, _, embedded = self.body(app).decode()
        return {**self.headers, **embedded}
