"""Read the lines of a file in chunks, each with the place after each of its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, repeat
from pathlib import Path
from typing import IO, Any, NamedTuple

from celery_continuations.sources.file_marks import Mark, mark_before

__all__ = ["Chunk", "chunks", "offset_of"]

# Bytes that are read at a time.  A chunk has the lines that begin in them.  Its limits are multiples of this, wherever
# reading has begun: a row must have the same cursor each time.
CHUNK = 1 << 14

# Bytes before a chunk that are marked.
_NEAR = 256

# Encodings whose line feed is one byte that is not part of another character: their bytes can be split into lines.
_PLAIN = frozenset(("utf-8", "ascii", "iso8859-1", "iso8859-15", "koi8-r", "cp1250", "cp1251", "cp1252"))

_OFFSET = (1 << 64) - 1


def offset_of(place: int) -> int:
    """Return the byte of a place: for a slower encoding its upper bits hold the decoder's state.

    >>> offset_of(7), offset_of((1 << 64) + 7)
    (7, 7)
    """
    return place & _OFFSET


class Chunk(NamedTuple):
    """Some lines of a file, processed together: one call of Python for each line would take longer than its row.

    Attributes:
        text: the lines, with their ends.
        ends: the place after each.
        marks: of the file's beginning, and of the bytes before the chunk.
    """

    text: str
    ends: list[int]
    marks: tuple[Mark, Mark]

    @property
    def places(self) -> Iterator[tuple[Any, int]]:
        """Iterate over the cursor after each line; a list would have to be read by the garbage collector."""
        return zip(repeat(self.marks), self.ends, strict=False)

    def lines(self) -> list[str]:
        """Return the lines, without their ends."""
        found = self.text.removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in found] if "\r" in self.text else found


def chunks(file: IO[bytes], path: Path, place: int, encoding: str, head: Mark) -> Iterator[Chunk]:
    """Yield the chunks of a file from a place on.

    Args:
        file: the open file.
        path: its path.
        place: the beginning of the first line.
        encoding: of its text, by the name that :mod:`codecs` gives it.
        head: the mark of the file's beginning.
    """
    if encoding in _PLAIN:
        return _plain_chunks(file, path, place, encoding, head)
    return _decoded_chunks(file, path, place, encoding, head)


def _near(file: IO[bytes], offset: int) -> Mark:
    """Mark the bytes before the chunk of a line that begins at ``offset``, and seek to that line."""
    mark = mark_before(file, offset - offset % CHUNK, _NEAR)
    file.seek(offset)
    return mark


def _plain_chunks(file: IO[bytes], path: Path, offset: int, encoding: str, head: Mark) -> Iterator[Chunk]:
    near = _near(file, offset)
    while raw := _lines_up_to(file, CHUNK - offset % CHUNK):
        ends = list(accumulate(map(len, raw), initial=offset))
        offset = ends[-1]
        yield Chunk(_decoded(raw, encoding, path, ends), ends[1:], (head, near))
        if not raw[-1].endswith(b"\n"):
            return  # the end of the file: bytes that are written there meanwhile continue this line
        near = _near(file, offset)


def _lines_up_to(file: IO[bytes], size: int) -> list[bytes]:
    """Return the lines that begin in the next ``size`` bytes."""
    if size == 1:
        return list(filter(None, [file.readline()]))
    return file.readlines(size - 1)  # the lines that end within this size, and one more


def _decoded(raw: list[bytes], encoding: str, path: Path, ends: list[int]) -> str:
    try:
        return b"".join(raw).decode(encoding)
    except UnicodeDecodeError as exc:
        bad = next(place for line, place in zip(raw, ends, strict=False) if not _can(line.decode, encoding))
        raise ValueError(
            f"{path}: the line that begins at byte {bad:,} is not {encoding}: {exc}; "
            "pass the file's encoding, as in lines(path, encoding)"
        ) from exc


def _can(decode: Callable[[str], str], encoding: str) -> bool:
    try:
        decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _decoded_chunks(raw: IO[bytes], path: Path, place: int, encoding: str, head: Mark) -> Iterator[Chunk]:
    """Yield chunks of one line each, with the place that Python gives for its end, which holds the decoder's state."""
    with open(path, encoding=encoding, newline="\n") as file:
        file.seek(place)
        near = _near(raw, offset_of(place))
        while text := file.readline():
            place = file.tell()
            yield Chunk(text, [place], (head, near))
            if offset_of(place) - near[1] >= CHUNK:
                near = _near(raw, offset_of(place))
