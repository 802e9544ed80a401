"""The protocol of a source, and how a value given to ``iterate`` becomes one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Set
from itertools import chain, islice
from typing import Any, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

from celery_continuations.core import codec
from celery_continuations.core.reader import NOTHING, STOPS, Counted, Keep, Opened, OtherKind, Pairs, close
from celery_continuations.core.typevars import Item_co
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.fingerprint import NONE
from celery_continuations.sources.positions import AUTO, Positions

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

    def read(self, cursor: Any) -> Iterator[tuple[Item_co, Any]]:
        """Yield ``(item, cursor after this item)`` from ``cursor`` on; None is the beginning."""


class HasAll(Protocol[Item_co]):
    """A manager of Django's."""

    def all(self) -> Iterable[Item_co]:
        """Return its queryset."""


T = TypeVar("T")

#: What a loop over items of one type takes; see :meth:`AppTask.iterate`.
Sources: TypeAlias = Iterable[T] | Source[T] | HasAll[T] | Callable[[], Iterable[T]] | Callable[[], Source[T]]


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
        return _checked(self._reading, self.step)

    def close(self) -> None:
        """Close the iterator that reads."""
        reading, self._reading = self._reading, None
        close(reading)

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


class _Foreign(BaseReader):
    """A custom source."""

    def __init__(self, source: Any, step: str | None) -> None:
        self._source = source
        self.step = step
        self.kind = getattr(source, "kind", None) or f"source {type(source).__qualname__}"

    def read(self, cursor: Any) -> Pairs:
        return cast(Pairs, self._source.read(cursor))

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
    if _maker_of(value) is None and callable(value) and not _is_source(value):
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


class Batched(BaseReader):
    """Lists of items of another reader."""

    is_batched = True

    def __init__(self, reader: Any, size: int) -> None:
        self._reader = reader
        self._size = size

    def read(self, cursor: Any) -> Pairs:
        """Yield lists, each with the cursor after its last item."""
        return batches(iter(self._reader.read(cursor)), self._size)

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read lists from a cursor of the other reader on."""
        pairs = self._reader.resume(cursor, kind, mark)
        return batches(pairs.zipped() if isinstance(pairs, Counted) else pairs, self._size)

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        """The kind of the other reader: the size of batches may change between executions."""
        return cast("str | None", self._reader.kind)

    @property
    def checks(self) -> bool:  # type: ignore[override]
        """Whether the other reader compares items."""
        return bool(self._reader.checks)

    @property
    def uses(self) -> int:  # type: ignore[override]
        """The format version that the other reader needs."""
        return int(self._reader.uses)

    def identify(self, identity: Any) -> None:
        """Pass it to the other reader."""
        self._reader.identify(identity)

    def keep_of(self, item: Any) -> Keep:
        """Keep of a batch what the other reader keeps of its last item."""
        if not self.checks:
            return NOTHING
        keep: Keep = self._reader.keep_of(item[-1])
        return Keep(make=lambda batch: keep.of(batch[-1]))

    def taken(self, cursor: Any, kept: Any) -> Any:
        """Return the fingerprint of the last item of a batch."""
        return self._reader.taken(cursor, kept)

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the mark of the other reader."""
        return self._reader.mark(cursor, kept)

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Count items, not batches."""
        return cast("tuple[int | None, int | None]", self._reader.progress(cursor))

    def count(self) -> int:
        """Count items, not batches."""
        return int(self._reader.count())

    def close(self) -> None:
        """Close the other reader."""
        self._reader.close()


def batches(pairs: Pairs, size: int) -> Pairs:
    """Yield lists of up to ``size`` items, each with the cursor after its last."""
    while True:
        chunk: list[tuple[Any, Any]] = []
        try:
            chunk.extend(islice(pairs, size))
        except STOPS:
            # Yield the items that were read first: otherwise a batch might never be complete.
            if chunk:
                yield [item for item, _ in chunk], chunk[-1][1]
            raise
        if not chunk:
            return
        yield [item for item, _ in chunk], chunk[-1][1]


def check_size(size: Any, what: str, step: str | None = None) -> None:
    """Refuse a size that is not an int of 1 or more."""
    if type(size) is not int or size < 1:
        raise InvalidStepError(f"{what} must be an int of 1 or more, not {size!r}", found=step)


def _checked(pairs: Pairs, name: str | None) -> Pairs:
    """Check a source's first cursor: refuse one that cannot be saved now, not when the worker stops."""
    pairs = iter(pairs)
    for pair in islice(pairs, 1):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise step_error(name, f"has a source that yields {pair!r:.80}, instead of (item, cursor after it)")
        codec.encode(pair[1], "a cursor" if name is None else f"the cursor of step {name!r}")
        return chain([pair], pairs)
    return pairs


def _made(value: Any, step: str | None, identity: Any) -> Any:
    reader = _reader_of(value, step)
    reader.step = step
    if identity is not AUTO:
        reader.identify(identity)
    return reader


def _reader_of(value: Any, step: str | None) -> Any:
    make = _maker_of(value)
    if make is None:
        _refuse(value, step)
        if not _is_source(value):
            return _by_position(value, step)
    source = value if make is None else make(value)
    return source if isinstance(source, (BaseReader, Positions)) else _Foreign(source, step)


def _by_position(value: Any, step: str | None) -> Any:
    for recognise in _recognisers:
        reader = recognise(value)
        if reader is not None:
            return reader
    return Positions(value, step)


_recognisers: list[Callable[[Any], Any]] = []


def recognise(recogniser: Callable[[Any], Any]) -> None:
    """Add a function that is called with each iterable before it is read by position; it returns a reader, or None."""
    _recognisers.append(recogniser)


def _maker_of(value: Any) -> Callable[[Any], Any] | None:
    """Return the function registered for the nearest class of ``value``."""
    for kind in type(value).__mro__:
        make = _makers.get(kind) or _makers.get(f"{kind.__module__}.{kind.__qualname__}")
        if make is not None:
            return make
    return None


def _is_source(value: Any) -> bool:
    return isinstance(value, Source) and not isinstance(
        value, type
    )  # a source's class is a function that makes a source


def _refuse(source: Any, step: str | None) -> None:
    problem = None
    if _maker_of(source) is not None:
        return
    if isinstance(source, (str, bytes, bytearray)):
        problem = "a string is iterated character by character, which is rarely intended; pass list(...) of it if it is"
    elif isinstance(source, Set) and not isinstance(source, (KeysView, ItemsView)):
        problem = "a set has no order to resume in; pass sorted(...) of it"
    elif hasattr(source, "__aiter__"):
        problem = "it is asynchronous; pass a synchronous iterable, for instance the queryset itself"
    elif not _is_source(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        problem = "it is not iterable"
    if problem is not None:
        raise step_error(step, f"cannot iterate over a {type(source).__name__}: {problem}")


def step_error(step: str | None, problem: str) -> InvalidStepError:
    """Return the error for the source of a loop."""
    return InvalidStepError(f"{'a source' if step is None else f'step {step!r}'} {problem}", found=step)
