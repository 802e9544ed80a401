"""Lists of items of another source."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

from celery_continuations.core.reader import NOTHING, STOPS, Counted, Keep, NoItem, Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.reading import BaseReader, Repeat, items_only

__all__ = ["Batched", "batches", "check_size"]

_NEVER: Any = object()


class Batched(BaseReader):
    """Lists of items of another reader."""

    is_batched = True

    def __init__(self, reader: Any, size: int) -> None:
        self._reader = reader
        self._size = size

    def read(self, cursor: Any) -> Pairs:
        """Yield lists, each with the cursor after its last item."""
        return items_only(batches(iter(self._reader.read(cursor)), self._size))

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read lists from a cursor of the other reader on."""
        pairs = self._reader.resume(cursor, kind, mark)
        return batches(pairs.zipped() if isinstance(pairs, Counted) else pairs, self._size)

    def repeat(self, cursor: Any, kind: str | None, mark: Any, repeat: Repeat) -> Pairs:
        """Read lists again: the last of them ends where it ended."""
        pairs = self._reader.repeat(cursor, kind, mark, Repeat(repeat.until, repeat.most * self._size))
        return batches(pairs, self._size, repeat.until)

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


def batches(pairs: Pairs, size: int, until: Any = _NEVER) -> Pairs:
    """Yield lists of up to ``size`` items, each with the cursor after its last.

    A list is cut short after the item with the cursor ``until``; where the source is throttled; and where it finds
    nothing for so long that a save or a stop is due: otherwise a list might never be complete.
    """
    if until is not _NEVER:
        yield from batches(_up_to(until, pairs), size)
    items: list[Any] = []
    after: Any = None
    while True:
        passed: NoItem | None = None
        try:
            for pair in islice(pairs, size - len(items)):
                if isinstance(pair, NoItem):
                    passed = pair
                    break
                item, after = pair
                items.append(item)
        except STOPS:
            if items:
                yield items, after
            raise
        if passed is None:
            if not items:
                return
            yield items, after
            items = []
        elif not items:
            yield passed
        else:
            offer = NoItem()
            yield offer
            if offer.was_due:
                yield items, after
                items = []
                yield passed


def _up_to(until: Any, pairs: Pairs) -> Pairs:
    """Yield the pairs up to the item with the cursor ``until``."""
    for pair in pairs:
        yield pair
        if not isinstance(pair, NoItem) and pair[1] == until:
            return


def check_size(size: Any, what: str, step: str | None = None) -> None:
    """Refuse a size that is not an int of 1 or more."""
    if type(size) is not int or size < 1:
        raise InvalidStepError(f"{what} must be an int of 1 or more, not {size!r}", found=step)
