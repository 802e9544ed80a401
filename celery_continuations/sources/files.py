"""Lines, CSV rows and JSON lines of a file, by byte offset: row 10,000,000 is as near as row 1.

A cursor is ``(what the file began with, offset)``, so that a file which was replaced or cut off since is
an error, and not wrong rows.  A file that has grown since is read to its new end.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

from celery_continuations.core.step import Pairs
from celery_continuations.exceptions import InvalidStepError

__all__ = ["csv_rows", "json_lines", "lines"]

# Bytes that are read at a time.
_CHUNK = 1 << 16

# Bytes at the beginning of a file that tell it from another one.
_HEAD = 4096


class FileSource:
    """What the three have in common: opening, and finding the place.

    Args:
        file: a path, or anything with a ``name`` that is one, e.g. an open file or Django's FieldFile.
        encoding: of its text.  Encodings whose line feed is more than one byte, or that keep a state, are read
            more slowly.
    """

    def __init__(self, file: Any, encoding: str) -> None:
        self.path = _path_of(file)
        self.encoding = encoding
        # Where a line feed is a byte of its own, and can be no part of another character, bytes can be cut into lines.
        self._is_plain = encoding.lower().replace("_", "-") in _PLAIN

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        with open(self.path, "rb") as file:
            head = _head_of(file)
            offset = 0 if cursor is None else self._checked(file, cursor)
        head = head if cursor is None else cursor[0]
        if self._is_plain:
            return self._rows(_Fed(_chunks(self.path, offset, self.encoding), head))
        return self._rows(_Fed(_any_chunks(self.path, offset, self.encoding), head))

    def _rows(self, fed: _Fed) -> Pairs:
        raise NotImplementedError

    def _checked(self, file: IO[bytes], cursor: Any) -> int:
        try:
            (length, digest), offset = cursor
            file.seek(0)
            if _digest(file.read(length)) != digest:
                raise InvalidStepError(f"{self.path} was replaced since: it no longer begins as it did")
            # An offset of a slower encoding has the decoder's state in its upper bits.
            if offset & _OFFSET > os.fstat(file.fileno()).st_size:
                raise InvalidStepError(f"{self.path} was cut off since: it ends before byte {offset & _OFFSET:,}")
        except (TypeError, ValueError) as exc:
            raise InvalidStepError(f"a file cannot be read from {cursor!r}: that is no place in one") from exc
        return int(offset)


_OFFSET = (1 << 64) - 1

_PLAIN = frozenset((
    "utf-8", "utf8", "ascii", "us-ascii", "latin-1", "latin1", "iso-8859-1", "iso-8859-15", "koi8-r",
    "cp1250", "cp1251", "cp1252", "windows-1250", "windows-1251", "windows-1252",
))  # fmt: skip


class _Lines(FileSource):
    def _rows(self, fed: _Fed) -> Pairs:
        # A chunk at a time, and so without Python's own code for each line.
        return chain.from_iterable(map(fed.lines_of, fed.chunks))


class _JsonLines(FileSource):
    def _rows(self, fed: _Fed) -> Pairs:
        return zip(map(self._parsed, filter(str.strip, fed.lines())), fed.places(), strict=False)

    def _parsed(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as exc:
            raise ValueError(f"{self.path} has a line that is no JSON: {line[:80]!r}: {exc}") from exc


class _CsvRows(FileSource):
    def __init__(self, file: Any, encoding: str, header: bool, options: dict[str, Any]) -> None:
        super().__init__(file, encoding)
        self._header = header
        self._options = options

    def read(self, cursor: Any) -> Pairs:
        """As of Source."""
        if not self._header:
            return super().read(cursor)
        # The names are read anew each time: they are where the file begins.
        first = next(super().read(None), None)
        if first is None:
            return iter(())
        names, after = first
        rows = super().read(after if cursor is None else cursor)
        return ((_named(names, row), place) for row, place in rows)

    def _rows(self, fed: _Fed) -> Pairs:
        return zip(filter(None, csv.reader(fed.lines(), **self._options)), fed.places(), strict=False)


def _named(names: list[str], row: list[str]) -> dict[str | None, Any]:
    """Return a row as csv.DictReader does: what it lacks is None, and what it has too much is a list under None."""
    named: dict[str | None, Any] = dict(zip(names, row, strict=False))
    if len(row) > len(names):
        named[None] = row[len(names) :]
    for name in names[len(row) :]:
        named[name] = None
    return named


class _Fed:
    """Lines, and where the last one that was taken ends."""

    def __init__(self, chunks: Iterable[tuple[list[str], list[int]]], head: tuple[int, str]) -> None:
        self.chunks = chunks
        self._head = head
        self.at = 0

    def lines(self) -> Iterator[str]:
        """Yield the lines, their ends included."""
        for texts, ends in self.chunks:
            for text, end in zip(texts, ends, strict=True):
                self.at = end
                yield text

    def lines_of(self, chunk: tuple[list[str], list[int]]) -> Pairs:
        """Return the lines of a chunk, without their ends, with the cursor after each."""
        texts, ends = chunk
        whole = "".join(texts)
        found = whole.removesuffix("\n").split("\n")
        if "\r" in whole:
            found = [line.removesuffix("\r") for line in found]
        return zip(found, zip(repeat(self._head), ends, strict=False), strict=False)

    def places(self) -> Iterator[tuple[Any, int]]:
        """Yield the cursor after what was read last, for ever."""
        return zip(repeat(self._head), map(attrgetter("at"), repeat(self)), strict=False)


def lines(file: Any, encoding: str = "utf-8") -> FileSource:
    r"""Return the lines of a text file, without their ends, which are ``\n`` or ``\r\n``.

    Args:
        file: a path, an open file, or Django's FieldFile; it is opened by its path, anew in each execution.
        encoding: of the text.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"one\ntwo\n")
    ...     file.flush()
    ...     [line for line, _ in lines(file).read(None)]
    ['one', 'two']
    """
    return _Lines(file, encoding)


def csv_rows(file: Any, encoding: str = "utf-8", *, header: bool = True, **options: Any) -> FileSource:
    r"""Return the rows of a CSV file; quoted fields may have line feeds in them, and empty lines are left out.

    Args:
        file: as of :func:`lines`.
        encoding: of the text; ``"utf-8-sig"`` where the file begins with a byte order mark.
        header: whether the first row has the names of the columns; then rows are dicts, as of
            :class:`csv.DictReader`, else lists.
        options: as of :func:`csv.reader`: ``dialect``, ``delimiter``, ``quotechar`` and so on.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'name,note\nann,"two\nlines"\n')
    ...     file.flush()
    ...     [row for row, _ in csv_rows(file).read(None)]
    [{'name': 'ann', 'note': 'two\nlines'}]
    """
    return _CsvRows(file, encoding, header, options)


def json_lines(file: Any, encoding: str = "utf-8") -> FileSource:
    r"""Return the values of a file that has one as JSON in each line; empty lines are left out.

    Args:
        file: as of :func:`lines`.
        encoding: of the text.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"id": 1}\n\n[2]\n')
    ...     file.flush()
    ...     [value for value, _ in json_lines(file).read(None)]
    [{'id': 1}, [2]]
    """
    return _JsonLines(file, encoding)


def _path_of(file: Any) -> Path:
    path = file
    if not isinstance(file, (str, os.PathLike)):
        path = getattr(file, "path", None) or getattr(file, "name", None)
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidStepError(f"{file!r} has no path that it could be opened by again; pass one")
    return Path(path)


def _head_of(file: IO[bytes]) -> tuple[int, str]:
    head = file.read(_HEAD)
    return len(head), _digest(head)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _chunks(path: Path, offset: int, encoding: str) -> Iterator[tuple[list[str], list[int]]]:
    with open(path, "rb") as file:
        file.seek(offset)
        while raw := file.readlines(_CHUNK):
            ends = list(accumulate(map(len, raw), initial=offset))
            offset = ends[-1]
            yield _decoded(raw, encoding, path, ends), ends[1:]


def _decoded(raw: list[bytes], encoding: str, path: Path, ends: list[int]) -> list[str]:
    try:
        return list(map(bytes.decode, raw, repeat(encoding)))
    except UnicodeDecodeError as exc:
        bad = next(place for line, place in zip(raw, ends, strict=False) if not _can(line.decode, encoding))
        raise ValueError(f"{path}: the line from byte {bad:,} on is not {encoding}: {exc}") from exc


def _can(decode: Callable[[str], str], encoding: str) -> bool:
    try:
        decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _any_chunks(path: Path, offset: int, encoding: str) -> Iterator[tuple[list[str], list[int]]]:
    """One line at a time, with Python's own note of where it ends, which holds the decoder's state."""
    with open(path, encoding=encoding, newline="") as file:
        file.seek(offset)
        while text := file.readline():
            yield [text], [file.tell()]
