"""The protocol of a source, and how a value given to ``iterate`` becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from celery_continuations.core.reader import NoItem, Opened, Pairs
from celery_continuations.core.typevars import Item_co
from celery_continuations.sources.batches import Batched, batches, check_size
from celery_continuations.sources.positions import AUTO, Positions
from celery_continuations.sources.reading import BaseReader, step_error
from celery_continuations.sources.refused import (
    Refusal,
    advice_for,
    is_async,
    is_source,
    named,
    problem_of_generator,
    problem_with,
    problem_with_pairs,
)

__all__ = [
    "AUTO",
    "BaseReader",
    "Batched",
    "HasAll",
    "Pairs",
    "Source",
    "Sources",
    "batches",
    "check_size",
    "opener",
    "opening",
    "recognise",
    "register",
    "step_error",
]


@runtime_checkable
class Source(Protocol[Item_co]):
    """An iterable that can be read from any of its cursors on.

    Progress comes from ``source.progress(cursor)``, if it has this method, which returns how much is done and how much
    there is, in one unit, each None if it is not cheap to know; else from ``len(source)``, with cursors that are ints;
    else the loop counts the items.  ``source.count()``, if it has this method, returns the number of items for
    ``iterate(..., total="count")``.  ``source.kind`` is a short text that says what its cursors mean, and is saved with
    them; the default is the name of its class.
    """

    def read(self, cursor: Any) -> Iterator[tuple[Item_co, Any] | NoItem]:
        """Yield ``(item, cursor after this item)`` from ``cursor`` on; None is the beginning.

        Where nothing is found for long, yield ``NoItem(cursor)``.
        """


class HasAll(Protocol[Item_co]):
    """A manager of Django's."""

    def all(self) -> Iterable[Item_co]:
        """Return its queryset."""


T = TypeVar("T")

#: What a loop over items of one type takes; see :meth:`AppTask.iterate`.
Sources: TypeAlias = Iterable[T] | Source[T] | HasAll[T] | Callable[[], Iterable[T]] | Callable[[], Source[T]]


class _Foreign(BaseReader):
    """A custom source."""

    def __init__(self, source: Any, step: str | None) -> None:
        self._source = source
        self.step = step
        self.kind = getattr(source, "kind", None) or f"source {type(source).__qualname__}"

    def read(self, cursor: Any) -> Pairs:
        pairs = self._source.read(cursor)
        problem = problem_with_pairs(pairs)
        if problem is not None:
            raise step_error(self.step, problem)
        return cast(Pairs, pairs)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        if hasattr(self._source, "progress"):
            return cast("tuple[int | None, int | None]", self._source.progress(cursor))
        if not hasattr(self._source, "__len__"):
            return None, None  # an int may be a key, not a count
        done = 0 if cursor is None else cursor
        return (done if type(done) is int else None), len(self._source)

    def count(self) -> int:
        return int(self._source.count()) if hasattr(self._source, "count") else super().count()


_makers: dict[type | str, Callable[[Any], Source]] = {}


def register(kind: type | str, make: Callable[[Any], Source]) -> None:
    """Have ``iterate`` accept values of a class, and of its subclasses.

    Args:
        kind: the class, or its dotted name, which does not import it: ``"shop.orders.Archive"``.
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


def opening(value: Any, step: str | None = None, identity: Any = AUTO) -> Callable[[], Any]:
    """Check a source, and return a function that makes a reader of it.

    Args:
        value: a source, something registered, a sequence or iterable, or a function that returns one of these,
            which is called at each opening.
        step: the name of the step, for messages.
        identity: a function from an item to its identity, for items that are read by position.

    Raises:
        InvalidStepError: for a value that cannot be iterated in a repeatable order.
    """
    is_function = callable(value) and not isinstance(value, Iterable)  # an Enum, for one, can be called and iterated
    if _maker_of(value) is None and is_function and not is_source(value) and not is_async(value):
        return lambda: _made(value(), step, identity)
    _refuse(value, step)
    return lambda: _made(value, step, identity)


def opener(
    name: str, source: Any, batch: int | None = None, total: int | str | None = None, identity: Any = AUTO
) -> Callable[[], Opened]:
    """Check ``source`` and return a function that opens it.

    Args:
        name: of the step, for messages.
        source: see :func:`opening`.
        batch: items to a list; None for single items.
        total: number of items, if the caller knows it and the source does not; ``"count"`` to count them.
        identity: see :func:`opening`.

    Returns:
        A function that opens the source for a run.

    Raises:
        InvalidStepError: for a source that cannot be iterated in a repeatable order, and for a bad ``batch``,
            ``total`` or ``identity``.
    """
    if batch is not None:
        check_size(batch, f"step {name!r}: batch", name)
    if total is not None and total != "count" and (type(total) is not int or total < 0):
        raise step_error(name, f"was given total={total!r}; it takes a number of items, 0 or more, or 'count'")
    if identity is not None and not callable(identity) and identity is not AUTO:
        raise step_error(name, f"was given identity={identity!r}; it takes a function of an item, or None")
    make = opening(source, name, identity)

    def open_source() -> Opened:
        reader = make()
        return Opened(reader if batch is None else Batched(reader, batch), total)

    return open_source


def _made(value: Any, step: str | None, identity: Any) -> Any:
    reader = _reader_of(value, step)
    reader.step = step
    if identity is not AUTO:
        reader.identify(identity)
    return reader


def _reader_of(value: Any, step: str | None) -> Any:
    _refuse(value, step)
    make = _maker_of(value)
    if make is None and not is_source(value):
        return _by_position(value, step)
    source = value if make is None else make(value)
    return source if isinstance(source, (BaseReader, Positions)) else _Foreign(source, step)


def _by_position(value: Any, step: str | None) -> Any:
    for recognise in _recognisers:
        reader = recognise(value)
        if reader is not None:
            return reader
    problem = problem_of_generator(value)
    if problem is not None:
        raise step_error(step, f"cannot iterate over {named(value)}: {problem}")
    return Positions(value, step)


_recognisers: list[Callable[[Any], Any]] = []


def recognise(recogniser: Callable[[Any], Any]) -> None:
    """Add a function that is called with each iterable before it is read by position; it returns a reader, or None."""
    _recognisers.append(recogniser)


def _maker_of(value: Any) -> Callable[[Any], Any] | None:
    """Return the function registered for the nearest class of ``value``."""
    for kind in type(value).__mro__:
        make = _makers.get(kind) or _makers.get(f"{kind.__module__}.{kind.__qualname__}")
        make = make or advice_for(kind)
        if make is not None:
            return make
    return None


def _refuse(value: Any, step: str | None) -> None:
    """Refuse a value that is not a source, if it is not of a registered class."""
    make = _maker_of(value)
    problem = problem_with(value) if make is None else make.advice if isinstance(make, Refusal) else None
    if problem is not None:
        raise step_error(step, f"cannot iterate over {named(value)}: {problem}")
