"""What was delivered to a task: one outcome for each wait, by name."""

from __future__ import annotations

import json
from typing import Any

from celery_continuations.core.outcome import Outcome
from celery_continuations.exceptions import UnserializableValueError

__all__ = ["TIMED_OUT", "Inbox"]

#: The outcome of a wait that timed out.
TIMED_OUT = Outcome("timeout")


class Inbox(dict[str, Outcome]):
    """Outcomes by name.

    >>> inbox = Inbox.loads(None)
    >>> inbox["approval"] = Outcome.of_value("yes", "a payload")
    >>> Inbox.loads(inbox.dumps())["approval"].replay("approval")
    'yes'
    """

    def dumps(self) -> str:
        """Return the inbox as JSON text."""
        return json.dumps({name: [one.kind, one.data] for name, one in self.items()}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str | None) -> Inbox:
        """Read what :meth:`dumps` wrote; None and ``""`` are an empty inbox.

        Raises:
            UnserializableValueError: when ``text`` is not an inbox.
        """
        if not text:
            return cls()
        try:
            data: dict[str, Any] = json.loads(text)
            return cls({name: Outcome(kind, value) for name, (kind, value) in data.items()})
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as exc:
            raise UnserializableValueError("the inbox", f"cannot be read: {type(exc).__name__}: {exc}") from exc
