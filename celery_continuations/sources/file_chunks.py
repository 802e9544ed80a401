"""Read the lines of a file in chunks, each with the place after each of its lines."""

from __future__ import annotations

import codecs
import io
import os
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, repeat
from operator import add, mul
from typing import IO, Any, NamedTuple

from celery_continuations.sources.file_marks import Mark, mark_before
from celery_continuations.sources.file_places import ONE_CHARACTER, Place

__all__ = ["WRONG", "Chunk", "byte_of", "characters_of", "chunks", "is_plain", "normalized"]

# Bytes that are read at a time.  A chunk has the lines that begin in them.  Its limits are multiples of this, wherever
# reading has begun: a row must have the same cursor each time.
CHUNK = 1 << 14

# Bytes before a chunk that are marked.
_NEAR = 256

# Encodings in which the bytes of line feed and carriage return are not part of another character: their bytes can be
# split into lines.
_PLAIN = frozenset(
    (
        *("utf-8", "ascii", "koi8-r", "koi8-u", "mac-roman", "cp437", "cp850"),
        *(f"iso8859-{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)),
        *(f"cp125{number}" for number in range(9)),
    )
)

#: Stands in a line for bytes that are not of its encoding; no encoding has it as a character.
WRONG = "\udcff"
_MARKING = "celery_continuations.wrong"


def _mark_wrong(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return WRONG, error.end


codecs.register_error(_MARKING, _mark_wrong)

_ENDS = (b"\r", b"\n")


class Chunk(NamedTuple):
    """Some lines of a file, processed together: one call of Python for each line would take longer than its row.

    Attributes:
        text: the lines, with their ends.
        lines: the lines, without their ends.
        begin: the place before the first.
        ends: the place after each.
        marks: of the file's beginning, and of the bytes before the chunk.
        wrong: whether a line has bytes that are not of the file's encoding; they are ``WRONG`` in the text.
    """

    text: str
    lines: list[str]
    begin: int
    ends: list[int]
    marks: tuple[Mark, Mark]
    wrong: bool

    @property
    def places(self) -> Iterator[tuple[Any, int]]:
        """Iterate over the cursor after each line; a list would have to be read by the garbage collector."""
        return zip(repeat(self.marks), self.ends, strict=False)


def _lines_of(text: str) -> list[str]:
    found = normalized(text).split("\n")
    if not found[-1]:
        found.pop()
    return found


def normalized(text: str) -> str:
    r"""Return a text whose line ends are ``\n``.

    >>> normalized("a\r\nb\rc\n")
    'a\nb\nc\n'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def chunks(file: IO[bytes], place: int, encoding: str, errors: str, head: Mark | None) -> Iterator[Chunk]:
    """Yield the chunks of a file from a place on.

    Args:
        file: the open file.
        place: the beginning of the first line; packed, for encodings that are not plain.
        encoding: of its text, by the name that :mod:`codecs` gives it.
        errors: see :func:`open`; with ``"strict"`` wrong bytes are marked in the chunk.
        head: the mark of the file's beginning, if an earlier execution made it.
    """
    begin = Place.of(place)
    if is_plain(encoding) and begin == Place(begin.start):
        return _plain_chunks(file, place, encoding, _handler(errors), head)
    return _decoded_chunks(file, begin, encoding, _handler(errors), head)


def _handler(errors: str) -> str:
    return _MARKING if errors == "strict" else errors


def is_plain(encoding: str) -> bool:
    """Whether the places of an encoding are bytes."""
    return encoding in _PLAIN


def _marks(file: IO[bytes], offset: int, head: Mark | None) -> tuple[Mark, Mark]:
    """Mark the beginning of the file, and the bytes before the chunk that byte ``offset`` is in."""
    begin = offset - offset % CHUNK
    if head is None or not head[1]:
        head = mark_before(file, min(begin, CHUNK), CHUNK)
    return head, mark_before(file, begin, _NEAR)


def _plain_chunks(file: IO[bytes], offset: int, encoding: str, errors: str, head: Mark | None) -> Iterator[Chunk]:
    last = b""
    while True:
        marks = head, _ = _marks(file, offset, head)
        file.seek(offset)
        data = _lines_up_to(file, CHUNK - offset % CHUNK)
        if last == b"\r" and data.startswith(b"\n"):  # written since: the other half of a line end
            data, offset = data[1:], offset + 1
        if not data:
            return
        text = data.decode(encoding, errors)
        lines, begin = _lines_of(text), offset
        yield Chunk(text, lines, begin, _ends(data, text, lines, begin), marks, errors == _MARKING and WRONG in text)
        offset, last = begin + len(data), data[-1:]
        if last not in _ENDS:
            return  # the end of the file: bytes that are written there meanwhile continue this line


def _ends(data: bytes, text: str, lines: list[str], offset: int) -> list[int]:
    """Return the byte after each line; that of the first begins at ``offset``."""
    end = offset + len(data)
    returns = text.count("\r")
    if len(text) == len(data) and (not returns or returns == text.count("\r\n") == text.count("\n")):
        # Each character is a byte, and each line has the same end: the lines need not be split once more.
        width = 2 if returns else 1
        ends = [offset := offset + len(line) + width for line in lines]
        ends[-1] = end  # the last line may have no end
        return ends
    return [offset := offset + len(line) for line in data.splitlines(keepends=True)]


def _lines_up_to(file: IO[bytes], size: int) -> bytes:
    """Return the lines that begin in the next ``size`` bytes."""
    data = file.read(size)
    parts = [data]
    while data and data[-1:] not in _ENDS:
        data = file.readline(CHUNK)
        first, end, second = data.partition(b"\r")
        if end:
            data = first + (b"\r\n" if second.startswith(b"\n") else b"\r")
            file.seek(len(data) - len(first + end + second), os.SEEK_CUR)
        parts.append(data)
    if data.endswith(b"\r") and file.read(1) == b"\n":
        parts.append(b"\n")
    return b"".join(parts)


def _decoder(at: Place, encoding: str, errors: str) -> codecs.IncrementalDecoder:
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    if at.start or at.state:
        decoder.setstate((b"", at.state))
    return decoder


def _decoded_chunks(file: IO[bytes], at: Place, encoding: str, errors: str, head: Mark | None) -> Iterator[Chunk]:
    """Decode in blocks: the place after a line counts the characters of its block."""
    decoder, position, skip = _decoder(at, encoding, errors), at.start, at.skip
    at = Place(at.start, at.state, at.feed or CHUNK - at.start % CHUNK)
    begin = block_end = at._replace(skip=skip).packed()
    passed, carried = 0, ""
    while True:
        marks = head, _ = _marks(file, at.start, head)
        file.seek(position)
        data = file.read(at.start + at.feed - position)
        position += len(data)
        text = decoder.decode(data, not data)
        left_out = min(skip - passed, len(text)) if passed < skip else 0
        line_begin = passed + left_out - len(carried)  # the first line may have begun in an earlier block
        passed += len(text)
        text = carried + text[left_out:]
        # A carriage return at the end of a block is carried too: a line feed may follow.
        cut = max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1 if data else len(text)
        complete, carried = text[:cut], text[cut:]
        if complete:
            lengths = map(len, io.StringIO(complete, newline=""))
            characters = list(accumulate(lengths, initial=line_begin))[1:]
            ends = list(map(add, repeat(at.packed()), map(mul, characters, repeat(ONE_CHARACTER))))
            if not characters[0]:
                ends[0] = block_end  # so that the line's last character is before its place
            yield Chunk(complete, _lines_of(complete), begin, ends, marks, errors == _MARKING and WRONG in complete)
            begin = ends[-1]
        if not data:
            return
        if position == at.start + at.feed:
            block_end = at.packed() + passed * ONE_CHARACTER if passed else block_end
            undecoded, state = decoder.getstate()
            start = position - len(undecoded)
            at, passed, skip = Place(start, state, position - position % CHUNK + CHUNK - start), 0, 0


def characters_of(file: IO[bytes], at: Place, encoding: str, errors: str) -> str:
    """Return the characters that are decoded from the beginning of a place."""
    file.seek(at.start)
    return _decoder(at, encoding, _handler(errors)).decode(file.read(at.feed))


def byte_of(file: IO[bytes], packed: int, encoding: str, errors: str) -> int:
    """Return the byte of a place.

    Raises:
        EOFError: when the file has fewer characters.
    """
    at = Place.of(packed)
    if not at.skip:
        return at.start
    file.seek(at.start)
    data = file.read(at.feed)

    def characters(size: int) -> int:
        return len(_decoder(at, encoding, _handler(errors)).decode(data[:size], size == len(data) < at.feed))

    if characters(len(data)) == at.skip and not file.read(1):
        return at.start + len(data)  # with what follows the last character
    size = bisect_left(range(len(data) + 1), at.skip, key=characters)
    if size > len(data):
        raise EOFError
    return at.start + size
