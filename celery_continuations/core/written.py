"""The JSON text of a dict that grows: each entry is written once, whatever the number of saves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

__all__ = ["Written"]


class Written:
    """The text of a dict's entries, separated by commas.

    Args:
        write: returns the text of an entry.

    >>> written, entries = Written(lambda name, value: f"{name}{value}"), {"a": 1}
    >>> written.of(entries)
    'a1'
    >>> entries["b"] = 2
    >>> written.of(entries)
    'a1,b2'
    """

    __slots__ = ("_count", "_last", "_write", "text")

    def __init__(self, write: Callable[[str, Any], str]) -> None:
        self._write = write
        self.clear()

    def clear(self) -> None:
        """Forget the text: an entry was changed or removed."""
        self.text = ""
        self._count = 0
        self._last: Any = None

    def of(self, entries: dict[str, Any]) -> str:
        """Return the text of a dict to which nothing but entries at its end was done since the last call."""
        new = list(islice(reversed(entries.items()), max(len(entries) - self._count, 0) + 1))
        is_same = self._count == 0 or (len(entries) >= self._count and new.pop()[1] is self._last)
        if not is_same:
            self.clear()
            new = list(reversed(entries.items()))
        for name, value in reversed(new):
            self.text += f",{self._write(name, value)}" if self._count else self._write(name, value)
            self._count += 1
            self._last = value
        return self.text
