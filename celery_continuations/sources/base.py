"""The protocol of a source, and how a value given to ``iterate`` becomes one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, Set
from itertools import chain, count, islice
from typing import Any, Protocol, runtime_checkable

from celery_continuations.core import codec
from celery_continuations.core.step import Opened, Throttled
from celery_continuations.exceptions import InvalidStepError

__all__ = ["Pairs", "Source", "batches", "opener", "opening", "progress_of", "register"]

Pairs = Iterator[tuple[Any, Any]]


@runtime_checkable
class Source(Protocol):
    """Something that can be read from any of its cursors on.

    Progress comes of ``source.progress(cursor)``, where there is such a method, which returns what is done and what
    there is in all, in the same unit, each None where it is not cheap to know; else of ``len(source)``, with cursors
    that are ints.
    """

    def read(self, cursor: Any) -> Pairs:
        """Yield ``(item, cursor after this item)`` from ``cursor`` on; None is the beginning."""


class Positions:
    """A sequence, range or iterable, by position.

    >>> list(Positions("a b c".split(), "letters").read(1))
    [('b', 2), ('c', 3)]
    """

    def __init__(self, items: Any, step: str | None) -> None:
        self._items = items
        self._step = step
        self._total = len(items) if hasattr(items, "__len__") else None

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the position after each."""
        start = 0 if cursor is None else cursor
        if type(start) is not int or start < 0:
            raise _error(self._step, f"iterates by position and cannot start at {cursor!r}")
        items = self._items
        if isinstance(items, (list, tuple)) or not isinstance(items, Sequence):
            rest: Any = islice(items, start, None)
        elif isinstance(items, range):
            rest = items[start:]
        else:
            rest = map(items.__getitem__, range(start, len(items)))
        return zip(rest, count(start + 1))  # pairs made in C: the loop over them stays cheap

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Items done, and in all where they can be counted."""
        return _counted(cursor), self._total


_makers: dict[type | str, Callable[[Any], Source]] = {}


def register(kind: type | str, make: Callable[[Any], Source]) -> None:
    """Have ``iterate`` take values of a class of yours, and of those below it.

    Args:
        kind: the class, or its dotted name, so that it need not be imported: ``"shop.orders.Archive"``.
        make: a function from such a value to a source.

    >>> class Countdown:
    ...     def __init__(self, start):
    ...         self.start = start
    >>> register(Countdown, lambda countdown: Positions(range(countdown.start, 0, -1), None))
    >>> source = opening(Countdown(3))()
    >>> list(source.read(1))
    [(2, 2), (1, 3)]
    """
    _makers[kind] = make


def opening(value: Any, step: str | None = None) -> Callable[[], Source]:
    """Check what was given as a source, and return a function that makes it one.

    Args:
        value: a source, something registered, a sequence or iterable, or a function that returns one of these,
            which is called at each opening.
        step: the name of the step, for messages.

    Raises:
        InvalidStepError: for what cannot be iterated in a repeatable order.
    """
    if _maker_of(value) is None and callable(value) and not _is_source(value):
        return lambda: _made(value(), step)
    _refuse(value, step)
    return lambda: _made(value, step)


def opener(name: str, source: Any, batch: int | None = None, total: int | None = None) -> Callable[[], Opened]:
    """Check ``source`` and return a function that opens it.

    Args:
        name: of the step, for messages.
        source: as of :func:`opening`.
        batch: items to a list; None for single items.
        total: number of items, where the caller knows and the source does not.

    Returns:
        A function that gives the source as a run uses it.

    Raises:
        InvalidStepError: for what cannot be iterated in a repeatable order, and for a bad ``batch``.
    """
    if batch is not None:
        check_size(batch, f"step {name!r}: batch", name)
    make = opening(source, name)

    def open_source() -> Opened:
        found = make()
        read = found.read if isinstance(found, Positions) else _checked(found.read, name)
        if batch is None:
            return Opened(read, progress_of(found), total)
        return Opened(lambda cursor: batches(read(cursor), batch), progress_of(found), total)

    return open_source


def progress_of(source: Source) -> Callable[[Any], tuple[int | None, int | None]]:
    """Return the function that tells how much of a source is done at a cursor, and how much there is."""
    known: Any = source
    if hasattr(known, "progress"):
        progress: Callable[[Any], tuple[int | None, int | None]] = known.progress
        return progress
    if not hasattr(known, "__len__"):
        return lambda _: (None, None)  # an int may be a key, which counts nothing
    total = len(known)
    return lambda cursor: (_counted(cursor), total)


def batches(pairs: Pairs, size: int) -> Pairs:
    """Yield lists of up to ``size`` items, each with the cursor after its last."""
    while True:
        chunk: list[tuple[Any, Any]] = []
        try:
            chunk.extend(islice(pairs, size))
        except Throttled:
            # What was read is passed on first: else a batch could never come to its end.
            if chunk:
                yield [item for item, _ in chunk], chunk[-1][1]
            raise
        if not chunk:
            return
        yield [item for item, _ in chunk], chunk[-1][1]


def check_size(size: Any, what: str, step: str | None = None) -> None:
    """Refuse what is no number of items in a batch."""
    if type(size) is not int or size < 1:
        raise InvalidStepError(f"{what} must be an int of 1 or more, not {size!r}", found=step)


def _counted(cursor: Any) -> int | None:
    done = 0 if cursor is None else cursor
    return done if type(done) is int else None


def _checked(read: Callable[[Any], Pairs], name: str) -> Callable[[Any], Pairs]:
    """Look at a source's first cursor: one that cannot be saved is refused now, and not when the worker stops."""

    def checked(cursor: Any) -> Pairs:
        pairs = iter(read(cursor))
        for pair in islice(pairs, 1):
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise _error(name, f"has a source that yields {pair!r:.80}, and not (item, cursor after it)")
            codec.encode(pair[1], f"the cursor of step {name!r}")
            return chain([pair], pairs)
        return pairs

    return checked


def _made(value: Any, step: str | None) -> Source:
    make = _maker_of(value)
    if make is not None:
        return make(value)
    _refuse(value, step)
    source: Source = value if _is_source(value) else Positions(value, step)
    return source


def _maker_of(value: Any) -> Callable[[Any], Source] | None:
    """Return what is registered for the class nearest to that of ``value``."""
    for kind in type(value).__mro__:
        make = _makers.get(kind) or _makers.get(f"{kind.__module__}.{kind.__qualname__}")
        if make is not None:
            return make
    return None


def _is_source(value: Any) -> bool:
    return isinstance(value, Source) and not isinstance(value, type)  # a source's class is a function that makes one


def _refuse(source: Any, step: str | None) -> None:
    problem = None
    if _maker_of(source) is not None:
        return
    if isinstance(source, (str, bytes, bytearray)):
        problem = "a string is iterated character by character, which is rarely meant; pass a list of them if it is"
    elif isinstance(source, Set) and not isinstance(source, (KeysView, ItemsView)):
        problem = "a set has no order to resume in; pass sorted(...) of it"
    elif not _is_source(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        problem = "it is not iterable"
    if problem is not None:
        raise _error(step, f"cannot iterate over a {type(source).__name__}: {problem}")


def _error(step: str | None, problem: str) -> InvalidStepError:
    return InvalidStepError(f"{'a source' if step is None else f'step {step!r}'} {problem}", found=step)
