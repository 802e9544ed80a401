"""Marks: digests of a few bytes of a file, which show whether a file is still the one that was read."""

from __future__ import annotations

import hashlib
from typing import IO

__all__ = ["BEFORE", "Mark", "is_there", "mark_before", "mark_of"]

#: The first byte, the byte after the last, and a digest of the bytes between.
Mark = tuple[int, int, str]

# Bytes right before a cursor that are compared when a loop resumes there: rows may have long parts in common.
BEFORE = 1 << 14


def mark_of(data: bytes, end: int) -> Mark:
    """Mark ``data``, which ends at byte ``end``.

    >>> mark_of(b"two", 7)
    (4, 7, '3fc4ccfe745870e2')
    """
    return end - len(data), end, hashlib.sha256(data).hexdigest()[:16]


def mark_before(file: IO[bytes], end: int, size: int = BEFORE) -> Mark:
    """Mark the last ``size`` bytes before byte ``end``."""
    file.seek(max(end - size, 0))
    return mark_of(file.read(min(end, size)), end)


def is_there(file: IO[bytes], mark: Mark) -> bool:
    """Whether the marked bytes are where they were.

    Raises:
        TypeError, ValueError: for what is not a mark.
    """
    start, end, _ = mark
    file.seek(start)
    return mark_of(file.read(end - start), end) == tuple(mark)
