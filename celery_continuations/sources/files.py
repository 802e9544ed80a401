"""Lines, CSV rows and JSON lines of a file, by place: row 10,000,000 is found as fast as row 1."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain, compress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

from celery_continuations.core.reader import Pairs, Unreadable
from celery_continuations.sources.base import Source, register
from celery_continuations.sources.csv_file import CsvOptions, CsvRows
from celery_continuations.sources.file_chunks import Chunk
from celery_continuations.sources.file_objects import DJANGO_FIELD, DJANGO_FILE, refusal
from celery_continuations.sources.file_source import FileSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["csv_rows", "json_lines", "lines"]


class _Lines(FileSource):
    kind = "bytes of lines"

    def _rows(self, chunks: Iterator[Chunk]) -> Pairs:
        return chain.from_iterable(self._lines_of(chunk) for chunk in chunks)

    def _lines_of(self, chunk: Chunk) -> Pairs:
        return self._readable(chunk) if chunk.wrong else zip(chunk.lines, chunk.places, strict=True)

    def _readable(self, chunk: Chunk) -> Pairs:
        """Yield the lines of a chunk up to one that cannot be read."""
        begin = chunk.begin
        for line, place in zip(chunk.lines, chunk.places, strict=True):
            if self.is_wrong(line):
                raise Unreadable(self.wrong(begin, line), place)
            yield line, place
            begin = place[1]


class _JsonLines(_Lines):
    kind = "bytes of JSON lines"

    def _lines_of(self, chunk: Chunk) -> Pairs:
        if chunk.wrong:
            return self._values_up_to_error(chunk)
        texts = chunk.lines
        has_value = list(map(str.strip, texts))
        try:
            values = list(map(json.loads, compress(texts, has_value)))
        except (ValueError, RecursionError):
            return self._values_up_to_error(chunk)
        return zip(values, compress(chunk.places, has_value), strict=True)

    def _values_up_to_error(self, chunk: Chunk) -> Pairs:
        begin = chunk.begin
        for line, place in self._readable(chunk):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as exc:
                    raise Unreadable(self._not_json(begin, line, exc), place) from exc
                yield value, place
            begin = place[1]

    def _not_json(self, begin: int, line: str, exc: Exception) -> ValueError:
        error = ValueError(
            f"{self.path}: the line that begins at byte {self.byte(begin):,} is not JSON: {line[:80]!r}: {exc}"
        )
        error.__cause__ = exc
        return error


class _Named(Protocol):
    @property
    def name(self) -> Any: ...


#: A path, or an open file.
File: TypeAlias = str | os.PathLike[str] | _Named


def lines(file: File, encoding: str | None = None) -> Source[str]:
    r"""Return the lines of a text file, without their ends: ``\n``, ``\r\n`` or ``\r``, as :func:`open` reads them.

    A line with bytes that are not of the encoding is a ``ValueError``, or a failed item of a loop with ``on_error``.

    Args:
        file: a path; a file on disk that is open for reading, which is read from where it stands, with its own
            encoding, errors and line ends; or Django's FieldFile.  Files in memory, in archives, compressed or remote
            are refused.
        encoding: of the text; the default is that of an open text file, or else UTF-8, with or without a byte order
            mark.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"one\ntwo\n")
    ...     file.flush()
    ...     [line for line, _ in lines(file.name).read(None)]
    ['one', 'two']
    """
    return _Lines(file, encoding)


@overload
def csv_rows(
    file: File,
    encoding: str | None = None,
    *,
    header: Literal[True] = True,
    fieldnames: Iterable[str] | None = None,
    **options: Unpack[CsvOptions],
) -> Source[dict[str | Any, str | Any]]: ...
@overload
def csv_rows(
    file: File, encoding: str | None = None, *, header: Literal[False], **options: Unpack[CsvOptions]
) -> Source[list[str]]: ...
@overload
def csv_rows(
    file: File,
    encoding: str | None = None,
    *,
    header: bool,
    fieldnames: Iterable[str] | None = None,
    **options: Unpack[CsvOptions],
) -> Source[Any]: ...
def csv_rows(
    file: File,
    encoding: str | None = None,
    *,
    header: bool = True,
    fieldnames: Iterable[str] | None = None,
    **options: Unpack[CsvOptions],
) -> Source[Any]:
    r"""Return the rows of a CSV file, as Python's :mod:`csv` reads them; empty lines are skipped.

    A row with fewer fields than there are names has None for the last names; a row with more has the rest as a list
    under the key None.  A row that :mod:`csv` cannot read is a :class:`csv.Error`, or a failed item where the loop has
    ``on_error``.

    Args:
        file: see :func:`lines`.
        encoding: see :func:`lines`.
        header: whether the first row has the names of the columns; then rows are dicts, like those
            of :class:`csv.DictReader`, else lists.
        fieldnames: the names of the columns, for a file without a header: the first row is data, too.
        options: see :func:`csv.reader`: ``dialect``, ``delimiter``, ``quotechar`` and so on.

    Raises:
        InvalidStepError: for names that are not unique; for those of a header, when the loop begins.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'name,note\nann,"two\nlines"\n')
    ...     file.flush()
    ...     [row for row, _ in csv_rows(file.name).read(None)]
    [{'name': 'ann', 'note': 'two\nlines'}]
    """
    return CsvRows(file, encoding, header, fieldnames, options)


def json_lines(file: File, encoding: str | None = None) -> Source[Any]:
    r"""Return the values of a file that has one as JSON in each line; empty lines are skipped.

    A line that is not JSON is a ``ValueError``, or a failed item where the loop has ``on_error``.

    Args:
        file: see :func:`lines`.
        encoding: see :func:`lines`.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"id": 1}\n\n[2]\n')
    ...     file.flush()
    ...     [value for value, _ in json_lines(file.name).read(None)]
    [{'id': 1}, [2]]
    """
    return _JsonLines(file, encoding)


def _by_suffix(file: Any) -> Source[Any]:
    suffix = _Lines(file, None).path.suffix.lower()
    if suffix == ".csv":
        return csv_rows(file)
    return json_lines(file) if suffix in (".jsonl", ".ndjson") else lines(file)


def _of_other_file(file: Any) -> Source[Any]:
    raise refusal(
        file,
        "is not a text file on disk",
        "pass lines(path), csv_rows(path) or json_lines(path), or a list of its lines",
    )


def _of_temporary_file(file: Any) -> Source[str]:
    return lines(file) if isinstance(file.file, io.TextIOWrapper) else _of_other_file(file)


# Files have a method read, but are not sources.
register(PurePath, _by_suffix)
register(io.TextIOWrapper, lines)
register("_io._IOBase", _of_other_file)  # the base of all of them; few are subclasses of io.IOBase
register("tempfile._TemporaryFileWrapper", _of_temporary_file)
register("tempfile.SpooledTemporaryFile", _of_other_file)
register("codecs.StreamReaderWriter", _of_other_file)
register(DJANGO_FILE, _of_other_file)
register(DJANGO_FIELD, _by_suffix)
