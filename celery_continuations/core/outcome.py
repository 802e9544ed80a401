"""The outcomes of completed steps."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from celery_continuations.core import codec
from celery_continuations.core.errors import LONGEST_TEXT, cut_values, text_of
from celery_continuations.exceptions import RememberedError, UnserializableValueError

__all__ = ["DEEPEST_PAYLOAD", "ELSEWHERE", "Outcome"]

#: The kind of an outcome whose value is not in the snapshot: its data say where it is.
ELSEWHERE = f"{codec.NEWER}elsewhere"

#: Containers within each other in a payload, as it is stored.  Every process that reads it must be able to, however
#: deep in calls it is then.
DEEPEST_PAYLOAD = 64


@dataclass(frozen=True)
class Outcome:
    """The outcome of a completed step: failed items, a value, an error, or a value that cannot be saved.

    Attributes:
        kind: ``"done"``, ``"value"``, ``"error"``, ``"lost"``, ``"timeout"`` or :data:`ELSEWHERE`.
        data: as ``Snapshot.failed_items``, or None; the encoded value; ``[type, args or None, text]``; the problem
            with the value; or what only the step can read.
    """

    kind: str = "done"
    data: Any = None

    @classmethod
    def of_value(cls, value: Any, what: str) -> Outcome:
        """Remember ``value``.  Raises UnserializableValueError when it cannot be saved."""
        return cls("value", codec.encode(value, what))

    @classmethod
    def of_payload(cls, value: Any, what: str, largest: int) -> Outcome:
        """Remember ``value``, which comes from outside.

        Raises:
            UnserializableValueError: when it cannot be saved, is nested too deeply, or has more than ``largest`` bytes.

        >>> Outcome.of_payload([[1]], "a payload", 5).data
        [[1]]
        """
        outcome = cls.of_value(value, what)
        levels = codec.depth(outcome.data)
        if levels > DEEPEST_PAYLOAD:
            raise UnserializableValueError(
                what,
                f"cannot be saved: it is nested {levels} levels deep, at most {DEEPEST_PAYLOAD} are allowed; "
                "a dict with a key that begins with ~, or that is not a str, counts as three",
            )
        size = outcome.size
        if size > largest:
            problem = f"it is {size:,} bytes, continuation_max_snapshot allows {largest:,}; deliver a reference instead"
            raise UnserializableValueError(what, f"is too large: {problem}")
        return outcome

    @property
    def size(self) -> int:
        """The number of characters of its data in a snapshot."""
        return len(json.dumps(self.data, separators=(",", ":")))

    def equals(self, other: Outcome) -> bool:
        """Whether the other one has an equal value; 1 equals 1.0, but not True."""
        return self.kind == other.kind and codec.equal(self.data, other.data)

    @classmethod
    def of_error(cls, error: Exception) -> Outcome:
        """Remember ``error`` by type and arguments, with long texts cut."""
        kind = type(error)
        try:
            args = cut_values(codec.encode(list(error.args)))
        except UnserializableValueError:
            args = None
        return cls("error", [f"{kind.__module__}:{kind.__qualname__}", args, text_of(error)])

    def replay(self, name: str) -> Any:
        """Return the remembered value, or raise the remembered error."""
        if self.kind == "value":
            return codec.decode(self.data, f"the value of step {name!r}")
        if self.kind == "error":
            raise _rebuild_error(*self.data)
        if self.kind == "lost":
            raise UnserializableValueError(f"the value of step {name!r}", self.data)
        return None


def _rebuild_error(name: str, args: Any, text: str) -> Exception:
    """Rebuild the error.  Only imported classes are considered: data never causes an import."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if args is not None and isinstance(found, type) and issubclass(found, Exception):
        try:
            error: Exception = found(*codec.decode(args))
            if text_of(error) == text or len(text) > LONGEST_TEXT:
                return error
        except Exception:  # a constructor that does not accept its own args may raise anything
            pass
    return RememberedError(name, text)
