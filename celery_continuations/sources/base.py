"""The protocol of a source, and how a value given to ``iterate`` becomes one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, Set
from itertools import chain, count, islice
from typing import Any, Protocol, runtime_checkable

from celery_continuations.core import codec
from celery_continuations.exceptions import InvalidStepError

__all__ = ["Pairs", "Source", "opener"]

Pairs = Iterator[tuple[Any, Any]]


@runtime_checkable
class Source(Protocol):
    """Something that can be read from any of its cursors on.

    ``len(source)``, where it is cheap, gives progress.
    """

    def read(self, cursor: Any) -> Pairs:
        """Yield ``(item, cursor after this item)`` from ``cursor`` on; None is the beginning."""


class Positions:
    """A sequence, range or iterable, by position.

    >>> list(Positions("a b c".split(), "letters").read(1))
    [('b', 2), ('c', 3)]
    """

    def __init__(self, items: Any, step: str) -> None:
        self._items = items
        self._step = step

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the position after each."""
        start = 0 if cursor is None else cursor
        if type(start) is not int or start < 0:
            raise InvalidStepError(
                f"step {self._step!r} iterates by position and cannot start at {cursor!r}", found=self._step
            )
        items = self._items
        if isinstance(items, (list, tuple)) or not isinstance(items, Sequence):
            rest: Any = islice(items, start, None)
        elif isinstance(items, range):
            rest = items[start:]
        else:
            rest = map(items.__getitem__, range(start, len(items)))
        return zip(rest, count(start + 1))  # pairs made in C: the loop over them stays cheap


def _batches(pairs: Pairs, size: int) -> Pairs:
    """Yield lists of up to ``size`` items, each with the cursor after its last."""
    while chunk := list(islice(pairs, size)):
        yield [item for item, _ in chunk], chunk[-1][1]


def _checked(read: Callable[[Any], Pairs], name: str) -> Callable[[Any], Pairs]:
    """Look at a source's first cursor: one that cannot be saved is refused now, and not when the worker stops."""

    def checked(cursor: Any) -> Pairs:
        pairs = iter(read(cursor))
        for pair in islice(pairs, 1):
            codec.encode(pair[1], f"the cursor of step {name!r}")
            return chain([pair], pairs)
        return pairs

    return checked


def opener(
    name: str, source: Any, batch: int | None = None, total: int | None = None
) -> Callable[[], tuple[Callable[[Any], Pairs], int | None]]:
    """Check ``source`` and return a function that opens it.

    Args:
        name: of the step, for messages.
        source: a source, a sequence, range or iterable, or a function that returns one.
        batch: items to a list; None for single items.
        total: number of items, where the caller knows better than ``len``.

    Returns:
        A function that gives the source's ``read`` and the total, or None where that is unknown.

    Raises:
        InvalidStepError: for what cannot be iterated in a repeatable order, and for a bad ``batch``.
    """
    if batch is not None and (type(batch) is not int or batch < 1):
        raise InvalidStepError(f"step {name!r}: batch must be an int of 1 or more, not {batch!r}", found=name)
    is_function = callable(source) and not _is_source(source)
    if not is_function:
        _refuse(name, source)

    def open_source() -> tuple[Callable[[Any], Pairs], int | None]:
        opened = source
        if is_function:
            opened = source()
            _refuse(name, opened)
        found = opened if _is_source(opened) else Positions(opened, name)
        length = total
        if length is None and hasattr(opened, "__len__"):
            length = len(opened)
        read = found.read if isinstance(found, Positions) else _checked(found.read, name)
        if batch is None:
            return read, length
        return lambda cursor: _batches(read(cursor), batch), length

    return open_source


def _is_source(value: Any) -> bool:
    return isinstance(value, Source) and not isinstance(value, type)  # a source's class is a function that makes one


def _refuse(name: str, source: Any) -> None:
    problem = None
    if isinstance(source, (str, bytes, bytearray)):
        problem = "a string is iterated character by character, which is rarely meant; pass a list of them if it is"
    elif isinstance(source, Set) and not isinstance(source, (KeysView, ItemsView)):
        problem = "a set has no order to resume in; pass sorted(...) of it"
    elif not _is_source(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        problem = "it is not iterable"
    if problem is not None:
        raise InvalidStepError(f"step {name!r} cannot iterate over a {type(source).__name__}: {problem}", found=name)
