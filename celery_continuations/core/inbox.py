"""What was delivered to a task: one outcome for each wait, by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from celery_continuations.core import codec
from celery_continuations.core.outcome import Outcome
from celery_continuations.exceptions import UnserializableValueError

__all__ = ["TIMED_OUT", "Inbox"]

#: The outcome of a wait that timed out.
TIMED_OUT = Outcome("timeout")

# Deeper ones, which release 0.1 stored, can be read in some processes and not in others: it depends on the calls that
# they are in.
_DEEPEST_READABLE = 400

_KINDS = ("done", "value", "error", "lost", "timeout")

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]')


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

        An outcome that cannot be read counts as lost: it is an error of its own wait, and of no other.

        Raises:
            UnserializableValueError: when ``text`` is not an inbox.

        >>> list(Inbox.loads('{"a":["value",1],"b":' + "[" * 10_000 + "]" * 10_000 + "}"))
        ['a', 'b']
        """
        if not text:
            return cls()
        try:
            try:
                data: dict[str, Any] = json.loads(text)
            except RecursionError:
                data = dict(_each(text))
            return cls({name: _outcome(entry) for name, entry in data.items()})
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as exc:
            raise UnserializableValueError("the inbox", f"cannot be read: {type(exc).__name__}: {exc}") from exc


def _outcome(entry: Any) -> Outcome:
    match entry:
        case [str(kind), data] if kind in _KINDS:
            if codec.depth(data) <= _DEEPEST_READABLE:
                return Outcome(kind, data)
    return Outcome("lost", "what was delivered cannot be read: it is damaged, or nested too deeply")


def _each(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the names and entries of an inbox of which some are nested too deeply to be read: those as None."""
    level, begin = 0, 1
    for token in _TOKENS.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if (level == 1 and token[0] == ",") or level == 0:
            yield from _member(text[begin : token.start()])
            begin = token.end()
    if level:
        raise ValueError("it is cut off")


def _member(text: str) -> Iterator[tuple[str, Any]]:
    name, end = json.JSONDecoder().raw_decode(text)
    try:
        yield name, json.loads(text[end + 1 :])
    except RecursionError:
        yield name, None
