"""The base of the library's own sources."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from celery_continuations.core import codec
from celery_continuations.core.reader import NOTHING, Keep, NoItem, OtherKind, Pairs, close
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.fingerprint import NONE

__all__ = ["BaseReader", "Repeat", "checked", "items_only", "repeated", "step_error"]

# How many items, inserted before the one that is repeated, are skipped to find it.
_LOOKED_AHEAD = 1000


class Repeat(NamedTuple):
    """Items that an earlier execution has read, and that are read again to continue within the last of them.

    Attributes:
        until: the cursor after the last of them.
        most: how many they are at most.
    """

    until: Any
    most: int = 1


class _Resumable(Protocol):
    @property
    def checks(self) -> bool: ...

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs: ...


class BaseReader:
    """Base of the library's own sources; see :class:`celery_continuations.core.iteration.Reader`.

    Attributes:
        step: name of the loop, for messages.
    """

    kind: str | None = None
    checks = False
    uses = 1
    is_batched = False
    step: str | None = None
    _reading: Any = None  # an iterator to be closed

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the cursor after each; see :class:`Source`."""
        raise NotImplementedError

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a cursor on, which identifies its place.

        Raises:
            OtherKind: for the cursor of another kind of source.
        """
        self.refuse_other(kind)
        self._reading = self.read(cursor)
        return checked(self._reading, self.step)

    def close(self) -> None:
        """Close the iterator that reads."""
        reading, self._reading = self._reading, None
        close(reading)

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Read from a cursor on, as :meth:`resume`, where the first items are read again."""
        return repeated(self, cursor, kind, mark, repeat)

    def refuse_other(self, kind: str | None) -> None:
        """Refuse the cursor of another kind of source."""
        if kind not in (None, self.kind):
            raise OtherKind(str(kind), str(self.kind))

    def identify(self, identity: Any) -> None:
        """Refuse a function for identities: cursors identify their place, so items are not compared."""
        if identity is not None:
            raise step_error(
                self.step,
                f"was given identity=, which is for loops by position; this loop is by {self.kind}",
            )

    def keep_of(self, item: Any) -> Keep:
        """Keep nothing."""
        return NOTHING

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return no fingerprint."""
        return NONE

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save nothing beside a cursor."""
        return None

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return nothing: the loop counts the items."""
        return None, None

    def count(self) -> int:
        """Refuse to count the items.

        Raises:
            InvalidStepError: always; countable sources override it.
        """
        raise step_error(
            self.step,
            f"was given total='count', and a source by {self.kind} cannot be counted; write total= with the number of "
            "items, if you know it",
        )


def repeated(reader: _Resumable, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
    """Read from a cursor on; skip items that were inserted before the one to repeat, if that is found."""
    pairs = iter(reader.resume(cursor, kind, mark))
    if reader.checks or repeat.most > 1:
        return pairs
    passed: list[Any] = []
    for pair in islice(pairs, _LOOKED_AHEAD):
        if not isinstance(pair, NoItem) and pair[1] == repeat.until:
            return chain((pair,), pairs)
        passed.append(pair)
    return chain(passed, pairs)


def items_only(pairs: Pairs) -> Iterator[Any]:
    """Leave out each :class:`NoItem`."""
    return (pair for pair in pairs if not isinstance(pair, NoItem))


def checked(pairs: Pairs, name: str | None) -> Pairs:
    """Check a source's first cursor: refuse one that cannot be saved now, not when the worker stops."""
    pairs = iter(pairs)
    for pair in islice(pairs, 1):
        if isinstance(pair, NoItem):
            return chain([pair], pairs)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise step_error(name, f"has a source that yields {pair!r:.80}, instead of (item, cursor after it)")
        codec.encode(pair[1], "a cursor" if name is None else f"the cursor of step {name!r}")
        return chain([pair], pairs)
    return pairs


def step_error(step: str | None, problem: str) -> InvalidStepError:
    """Return the error for the source of a loop."""
    return InvalidStepError(f"{'a source' if step is None else f'step {step!r}'} {problem}", found=step)
