"""Lines, CSV rows and JSON lines of a file, by place: row 10,000,000 is found as fast as row 1."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from itertools import chain, compress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

from celery_continuations.core.reader import Pairs
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import Source, register
from celery_continuations.sources.csv_file import CsvOptions, CsvRows
from celery_continuations.sources.file_chunks import Chunk
from celery_continuations.sources.file_source import FileSource, path_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["csv_rows", "json_lines", "lines"]


class _Lines(FileSource):
    kind = "bytes of lines"

    def _rows(self, chunks: Iterator[Chunk]) -> Pairs:
        return chain.from_iterable(zip(chunk.lines(), chunk.places, strict=True) for chunk in chunks)


class _JsonLines(FileSource):
    kind = "bytes of JSON lines"

    def _rows(self, chunks: Iterator[Chunk]) -> Pairs:
        return chain.from_iterable(map(self._values_of, chunks))

    def _values_of(self, chunk: Chunk) -> Pairs:
        texts = chunk.lines()
        places = compress(chunk.places, map(str.strip, texts))
        return zip(map(self._parsed, filter(str.strip, texts)), places, strict=True)

    def _parsed(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as exc:
            raise ValueError(f"{self.path} has a line that is not JSON: {line[:80]!r}: {exc}") from exc


class _Named(Protocol):
    @property
    def name(self) -> Any: ...


#: A path, or an open file, which is opened again by its name.
File: TypeAlias = str | os.PathLike[str] | _Named


def lines(file: File, encoding: str = "utf-8") -> Source[str]:
    r"""Return the lines of a text file, without their ends, which are ``\n`` or ``\r\n``.

    Args:
        file: a path, an open file, or Django's FieldFile; each execution opens it by its path.
        encoding: of the text.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"one\ntwo\n")
    ...     file.flush()
    ...     [line for line, _ in lines(file).read(None)]
    ['one', 'two']
    """
    return _Lines(file, encoding)


@overload
def csv_rows(
    file: File, encoding: str = "utf-8", *, header: Literal[True] = True, **options: Unpack[CsvOptions]
) -> Source[dict[str | Any, str | Any]]: ...
@overload
def csv_rows(
    file: File, encoding: str = "utf-8", *, header: Literal[False], **options: Unpack[CsvOptions]
) -> Source[list[str]]: ...
@overload
def csv_rows(file: File, encoding: str = "utf-8", *, header: bool, **options: Unpack[CsvOptions]) -> Source[Any]: ...
def csv_rows(file: File, encoding: str = "utf-8", *, header: bool = True, **options: Unpack[CsvOptions]) -> Source[Any]:
    r"""Return the rows of a CSV file; quoted fields may have line feeds in them, and empty lines are skipped.

    Args:
        file: see :func:`lines`.
        encoding: of the text; ``"utf-8-sig"`` if the file begins with a byte order mark.
        header: whether the first row has the names of the columns; then rows are dicts, like those
            of :class:`csv.DictReader`, else lists.
        options: see :func:`csv.reader`: ``dialect``, ``delimiter``, ``quotechar`` and so on.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'name,note\nann,"two\nlines"\n')
    ...     file.flush()
    ...     [row for row, _ in csv_rows(file).read(None)]
    [{'name': 'ann', 'note': 'two\nlines'}]
    """
    return CsvRows(file, encoding, header, options)


def json_lines(file: File, encoding: str = "utf-8") -> Source[Any]:
    r"""Return the values of a file that has one as JSON in each line; empty lines are skipped.

    Args:
        file: see :func:`lines`.
        encoding: of the text.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"id": 1}\n\n[2]\n')
    ...     file.flush()
    ...     [value for value, _ in json_lines(file).read(None)]
    [{'id': 1}, [2]]
    """
    return _JsonLines(file, encoding)


def _of_path(path: Any) -> Source[Any]:
    suffix = path_of(path).suffix.lower()
    if suffix == ".csv":
        return csv_rows(path)
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(path)
    return lines(path)


def _of_open_file(file: io.TextIOWrapper) -> Source[str]:
    path = path_of(file)
    problem, remedy = None, "pass lines(path), csv_rows(path) or json_lines(path)"
    if not isinstance(getattr(file.buffer, "raw", None), io.FileIO):
        problem = "is read through another file, such as a gzip.GzipFile"
        remedy = "iterate over a generator function that reads it"
    elif not file.readable():
        problem = "is not open for reading"
    elif file.errors != "strict":
        problem = f"was opened with errors={file.errors!r}, with which places in it cannot be found"
    elif not _is_at_beginning(file):
        problem = "has been read from, and would be read from its beginning"
    if problem is not None:
        raise InvalidStepError(f"{path} {problem}; {remedy}")
    return lines(path, file.encoding)


def _is_at_beginning(file: io.TextIOWrapper) -> bool:
    try:
        return file.tell() == 0
    except OSError:  # next() was called
        return False


def _of_temporary_file(file: Any) -> Source[str]:
    return _of_open_file(file.file) if isinstance(file.file, io.TextIOWrapper) else _of_other_file(file.file)


def _of_other_file(file: Any) -> Source[Any]:
    raise InvalidStepError(
        f"a {type(file).__name__} is not a text file with a path; pass lines(path), csv_rows(path) or "
        "json_lines(path), or a list of its lines"
    )


# Files have a method read, but are not sources.
register(PurePath, _of_path)
register(io.TextIOWrapper, _of_open_file)
register("_io._IOBase", _of_other_file)  # the base of all of them; few are subclasses of io.IOBase
register("tempfile._TemporaryFileWrapper", _of_temporary_file)
register("django.core.files.base.File", _of_other_file)
register("django.db.models.fields.files.FieldFile", _of_path)
