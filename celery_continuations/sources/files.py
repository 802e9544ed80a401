"""Lines, CSV rows and JSON lines of a file, by byte offset: row 10,000,000 is as near as row 1.

A cursor is ``((mark, mark), offset)``: the marks tell what stands at the beginning of the file and not far before the
row, so that a file which was replaced, changed or cut off since is an error, and not wrong rows.  A file that has grown
since is read to its new end.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, compress, repeat
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, overload

from celery_continuations.core.iteration import NOTHING, Keep, Pairs, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader, Source, register

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["csv_rows", "json_lines", "lines"]

# Bytes of a chunk, which has the lines that begin in it, and is read at a time.  Chunks lie where they lie wherever
# reading has begun, for a row has to have the same cursor each time.
_CHUNK = 1 << 14

# Bytes at the beginning of a file, and before a chunk, that tell it from another one.
_HEAD = 4096
_NEAR = 256

# Bytes right before a cursor that are compared when a loop resumes there: rows may have long parts in common.
_BEFORE = 4096

# From which byte to which, and a digest of what stands there.
Mark = tuple[int, int, str]


class Taken(NamedTuple):
    """What stands before a cursor: its digest, and the whole mark as it is saved."""

    digest: str
    mark: list[Any] | None


def _no_file() -> None:
    return None


class FileSource(BaseReader):
    """What the three have in common: opening, and finding the place.

    Args:
        file: a path, or anything with a ``name`` that is one, e.g. an open file or Django's FieldFile.
        encoding: of its text.  Encodings whose line feed is more than one byte, or that keep a state, are read
            more slowly.

    Raises:
        InvalidStepError: for what has no path, a compressed file, and an encoding that is unknown.
    """

    def __init__(self, file: Any, encoding: str) -> None:
        self.path = _path_of(file)
        if self.path.suffix.lower() in _COMPRESSED:
            raise InvalidStepError(
                f"{self.path} is compressed, and no place in it can be gone to: unpack it first, or iterate over a "
                "generator function that reads it, from its beginning each time"
            )
        try:
            self.encoding = codecs.lookup(encoding).name
            # The second of two, for a byte order mark may come before the first.
            self._line_feed = "\n\n".encode(encoding)[len("\n".encode(encoding)) :]
        except (LookupError, TypeError) as exc:
            raise InvalidStepError(f"{self.path} cannot be read: its encoding {encoding!r} is unknown") from exc
        self._size: int | None = None
        self._file: Callable[[], IO[bytes] | None] = _no_file  # the one that is being read

    kind = "bytes"
    checks = True

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the place after each.

        Raises:
            InvalidStepError: when the file is not the one that the cursor was made in.
        """
        try:
            return self._read(cursor, None)
        except SourceChanged as changed:
            raise InvalidStepError(f"{changed.problem}. {changed.advice}") from None

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a place on, if what comes before it is what was read."""
        self.refuse_other(kind)
        return self._read(cursor, mark)

    def keep_of(self, item: Any) -> Keep:
        """Keep nothing: what was read is found again in the file."""
        return NOTHING

    def taken(self, cursor: Any, kept: Any) -> Taken:
        """Mark what comes right before a cursor, in the file that is being read: its path may lead to another now."""
        if isinstance(kept, Taken):
            return kept
        end = cursor[1] & _OFFSET
        open_file = self._file()
        if open_file is not None and not open_file.closed:
            mark = _mark_before(open_file, end)
        else:
            try:
                with open(self.path, "rb") as file:
                    mark = _mark_before(file, end)
            except FileNotFoundError:  # read to its end, and removed: the cursor has marks of its own
                return Taken("", None)
        return Taken(mark[2], list(mark))

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the mark of what comes right before a cursor."""
        return self.taken(cursor, kept).mark

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        return self._rows(self._chunks(cursor, mark))

    def _chunks(self, cursor: Any, mark: Any) -> Iterator[_Chunk]:
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            begin = file.read(_HEAD)
            offset = 0 if cursor is None else self._checked(file, cursor, mark)
        head = _mark(begin, len(begin)) if cursor is None else cursor[0][0]
        encoding = self.encoding
        if encoding == "utf-8-sig":
            encoding = "utf-8"
            offset = offset or (len(codecs.BOM_UTF8) if begin.startswith(codecs.BOM_UTF8) else 0)
        return self._chunks_of(head, offset, encoding)

    def _chunks_of(self, head: Mark, offset: int, encoding: str) -> Iterator[_Chunk]:
        chunks = _plain_chunks if encoding in _PLAIN else _any_chunks
        with open(self.path, "rb") as file:
            self._file = weakref.ref(file)
            for text, ends, near in chunks(self.path, offset, encoding):
                yield _Chunk(text, ends, (head, near))

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Bytes done, and in all."""
        if self._size is None:
            self._size = self.path.stat().st_size
        # An offset of a slower encoding has the decoder's state in its upper bits.
        done = 0 if cursor is None else cursor[1] & _OFFSET
        return done, max(done, self._size)  # a file may grow while it is read

    def _rows(self, chunks: Iterator[_Chunk]) -> Pairs:
        raise NotImplementedError

    def _checked(self, file: IO[bytes], cursor: Any, mark: Any) -> int:
        try:
            (head, near), offset = cursor
            end, size = offset & _OFFSET, os.fstat(file.fileno()).st_size
            if end > size:
                raise SourceChanged(f"{self.path} was cut off since: it ends before byte {end:,}", _ADVICE)
            if mark != ACCEPTED:
                self._compare(file, head, near, mark)
            if end < size and not self._ends_line(file, end):
                raise SourceChanged(
                    f"{self.path} has changed since: the line that ended at byte {end:,} does not end there now; it "
                    "was still being written, or something before it was changed",
                    _ADVICE,
                )
        except (TypeError, ValueError) as exc:
            raise InvalidStepError(f"a file cannot be read from {cursor!r}: that is not a place in one") from exc
        return int(offset)

    def _compare(self, file: IO[bytes], head: Mark, near: Mark, mark: Any) -> None:
        if not _is_there(file, head):
            raise SourceChanged(f"{self.path} was replaced since: it no longer begins as it did", _ADVICE)
        for one in (near, mark):
            if one is not None and not _is_there(file, one):
                raise SourceChanged(
                    f"{self.path} was replaced since: before byte {one[1]:,} stands something else", _ADVICE
                )

    def _ends_line(self, file: IO[bytes], end: int) -> bool:
        width = len(self._line_feed)
        file.seek(max(end - width, 0))
        return file.read(width) in (self._line_feed, self._line_feed[::-1])  # in either byte order


_OFFSET = (1 << 64) - 1

_ADVICE = "A file needs to stay as it is while it is read, but may grow: write a new one beside it instead."

# Where a line feed is a byte of its own, and can be no part of another character, bytes can be cut into lines.
_PLAIN = frozenset(("utf-8", "ascii", "iso8859-1", "iso8859-15", "koi8-r", "cp1250", "cp1251", "cp1252"))

_COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip"))


class _Chunk(NamedTuple):
    """Some lines of a file, worked on together: for each of them alone Python would take longer than for a row.

    Attributes:
        text: the lines, with their ends.
        ends: the offset after each.
        marks: of the file's beginning, and of what comes before the chunk.
    """

    text: str
    ends: list[int]
    marks: tuple[Mark, Mark]

    @property
    def places(self) -> Iterator[tuple[Any, int]]:
        """The cursor after each line: not kept, for the garbage collector would have to look at all of them."""
        return zip(repeat(self.marks), self.ends, strict=False)

    def lines(self) -> list[str]:
        """Return the lines, without their ends."""
        found = self.text.removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in found] if "\r" in self.text else found


class _Lines(FileSource):
    kind = "bytes of lines"

    def _rows(self, chunks: Iterator[_Chunk]) -> Pairs:
        return chain.from_iterable(zip(chunk.lines(), chunk.places, strict=True) for chunk in chunks)


class _JsonLines(FileSource):
    kind = "bytes of JSON lines"

    def _rows(self, chunks: Iterator[_Chunk]) -> Pairs:
        return chain.from_iterable(map(self._values_of, chunks))

    def _values_of(self, chunk: _Chunk) -> Pairs:
        texts = chunk.lines()
        places = compress(chunk.places, map(str.strip, texts))
        return zip(map(self._parsed, filter(str.strip, texts)), places, strict=True)

    def _parsed(self, line: str) -> Any:
        try:
            return json.loads(line)
        except ValueError as exc:
            raise ValueError(f"{self.path} has a line that is no JSON: {line[:80]!r}: {exc}") from exc


class _CsvRows(FileSource):
    kind = "bytes of CSV rows"

    def __init__(self, file: Any, encoding: str, header: bool, options: CsvOptions) -> None:
        super().__init__(file, encoding)
        self._header = header
        self._options = options
        dialect = self._reader(()).dialect
        # Without these in a chunk each line is a row.
        self._joining = [mark for mark in (dialect.quotechar, dialect.escapechar) if mark]

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        if not self._header:
            return super()._read(cursor, mark)
        # The names are read each time: they are where the file begins.
        first = next(super()._read(None, None), None)
        if first is None:
            if cursor is not None and mark != ACCEPTED:
                raise SourceChanged(f"{self.path} was cut off since: it is empty", _ADVICE)
            return iter(())
        names, after = first
        return self._rows(self._chunks(after if cursor is None else cursor, mark), names)

    def _rows(self, chunks: Iterator[_Chunk], names: list[str] | None = None) -> Pairs:
        return chain.from_iterable(self._rows_of(chunk, chunks, names) for chunk in chunks)

    def _rows_of(self, chunk: _Chunk, chunks: Iterator[_Chunk], names: list[str] | None) -> Pairs:
        """Return the rows that begin in a chunk; the last one may end in one of the next."""
        texts, places = chunk.lines(), chunk.places
        if "" in texts:
            places = compress(places, texts)
            texts = [text for text in texts if text]
        if names is None and not any(mark in chunk.text for mark in self._joining):
            return zip(self._reader(texts), places, strict=True)
        try:
            # The empty line at the end is a row of its own, unless a quoted field is open there.
            *rows, _ = self._reader([*texts, ""])
        except (csv.Error, ValueError):
            return self._rows_across(chunk, chunks, names)  # raises it at its row, after those before
        if len(rows) != len(texts):
            return self._rows_across(chunk, chunks, names)
        if names is None:
            return zip(rows, places, strict=True)
        if set(map(len, rows)) <= {len(names)}:
            return zip(map(dict, map(zip, repeat(names), rows)), places, strict=True)
        return zip(map(_named, repeat(names), rows), places, strict=False)

    def _rows_across(self, chunk: _Chunk, chunks: Iterator[_Chunk], names: list[str] | None) -> Pairs:
        fed = _Fed(chunk, chunks)
        for row in self._reader(fed.lines()):
            if row:
                yield (row if names is None else _named(names, row)), fed.place
            if fed.place[1] == fed.end:
                return

    def _reader(self, texts: Iterable[str]) -> Any:
        return csv.reader(texts, **self._options)


class _Fed:
    """Lines with their ends, as a reader asks for them.

    Attributes:
        place: the cursor after the last line that was taken.
        end: the offset after the last one of its chunk.
    """

    def __init__(self, chunk: _Chunk, following: Iterator[_Chunk]) -> None:
        self._chunks = chain([chunk], following)
        self.place: tuple[Any, int] = (None, 0)
        self.end = 0

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        for chunk in self._chunks:
            self.end = chunk.ends[-1]
            for text, self.place in zip(io.StringIO(chunk.text, newline="\n"), chunk.places, strict=True):
                yield text


def _named(names: list[str], row: list[str]) -> dict[str | None, Any]:
    """Return a row as csv.DictReader does: what it lacks is None, and what it has too much is a list under None."""
    named: dict[str | None, Any] = dict(zip(names, row, strict=False))
    if len(row) != len(names):
        if len(row) > len(names):
            named[None] = row[len(names) :]
        for name in names[len(row) :]:
            named[name] = None
    return named


class _Named(Protocol):
    @property
    def name(self) -> Any: ...


#: A path, or an open file, which is opened again by its name.
File: TypeAlias = str | os.PathLike[str] | _Named


class CsvOptions(TypedDict, total=False):
    """See :func:`csv.reader`."""

    dialect: str | csv.Dialect | type[csv.Dialect]
    delimiter: str
    quotechar: str | None
    escapechar: str | None
    doublequote: bool
    skipinitialspace: bool
    lineterminator: str
    quoting: Literal[0, 1, 2, 3]
    strict: bool


def lines(file: File, encoding: str = "utf-8") -> Source[str]:
    r"""Return the lines of a text file, without their ends, which are ``\n`` or ``\r\n``.

    Args:
        file: a path, an open file, or Django's FieldFile; it is opened by its path, again in each execution.
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
    r"""Return the rows of a CSV file; quoted fields may have line feeds in them, and empty lines are left out.

    Args:
        file: see :func:`lines`.
        encoding: of the text; ``"utf-8-sig"`` where the file begins with a byte order mark.
        header: whether the first row has the names of the columns; then rows are dicts, as of
            :class:`csv.DictReader`, else lists.
        options: see :func:`csv.reader`: ``dialect``, ``delimiter``, ``quotechar`` and so on.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'name,note\nann,"two\nlines"\n')
    ...     file.flush()
    ...     [row for row, _ in csv_rows(file).read(None)]
    [{'name': 'ann', 'note': 'two\nlines'}]
    """
    return _CsvRows(file, encoding, header, options)


def json_lines(file: File, encoding: str = "utf-8") -> Source[Any]:
    r"""Return the values of a file that has one as JSON in each line; empty lines are left out.

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


def _path_of(file: Any) -> Path:
    path, why = file, None
    if not isinstance(file, (str, os.PathLike)):
        try:
            path = getattr(file, "path", None) or getattr(file, "name", None)
        except (NotImplementedError, ValueError) as exc:  # Django's, of a storage that is no disk, or with no file
            path, why = None, exc
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidStepError(f"{file!r} has no path that it could be opened by again; pass one") from why
    return Path(path)


def _of_path(path: Any) -> Source[Any]:
    suffix = _path_of(path).suffix.lower()
    if suffix == ".csv":
        return csv_rows(path)
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(path)
    return lines(path)


def _of_open_file(file: io.TextIOWrapper) -> Source[str]:
    path = _path_of(file)
    problem, mend = None, "pass lines(path), csv_rows(path) or json_lines(path)"
    if not isinstance(getattr(file.buffer, "raw", None), io.FileIO):
        problem, mend = "is read through another file, as of gzip", "iterate over a generator function that reads it"
    elif not file.readable():
        problem = "is not open for reading"
    elif file.errors != "strict":
        problem = f"was opened with errors={file.errors!r}, with which places in it cannot be told"
    elif not _is_at_beginning(file):
        problem = "has been read from already, and would be read from its beginning"
    if problem is not None:
        raise InvalidStepError(f"{path} {problem}; {mend}")
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
        "json_lines(path), or a list of what is in it"
    )


# Files have a method read, but are no sources.
register(PurePath, _of_path)
register(io.TextIOWrapper, _of_open_file)
register("_io._IOBase", _of_other_file)  # under all of them; few are under io.IOBase
register("tempfile._TemporaryFileWrapper", _of_temporary_file)
register("django.core.files.base.File", _of_other_file)
register("django.db.models.fields.files.FieldFile", _of_path)


def _mark(data: bytes, end: int) -> Mark:
    """Mark ``data``, which ends at byte ``end``."""
    return end - len(data), end, hashlib.sha256(data).hexdigest()[:16]


def _mark_before(file: IO[bytes], end: int) -> Mark:
    file.seek(max(end - _BEFORE, 0))
    return _mark(file.read(min(end, _BEFORE)), end)


def _is_there(file: IO[bytes], mark: Mark) -> bool:
    start, end, _ = mark
    file.seek(start)
    return _mark(file.read(end - start), end) == tuple(mark)


def _near(file: IO[bytes], offset: int) -> Mark:
    """Mark what comes before the chunk of a line that begins at ``offset``, and leave the file there."""
    end = offset - offset % _CHUNK
    file.seek(max(end - _NEAR, 0))
    mark = _mark(file.read(min(end, _NEAR)), end)
    file.seek(offset)
    return mark


def _plain_chunks(path: Path, offset: int, encoding: str) -> Iterator[tuple[str, list[int], Mark]]:
    with open(path, "rb") as file:
        near = _near(file, offset)
        while raw := _lines_up_to(file, _CHUNK - offset % _CHUNK):
            ends = list(accumulate(map(len, raw), initial=offset))
            offset = ends[-1]
            yield _decoded(raw, encoding, path, ends), ends[1:], near
            if not raw[-1].endswith(b"\n"):
                return  # it was the end: what is written there meanwhile is the rest of this line
            near = _near(file, offset)


def _lines_up_to(file: IO[bytes], size: int) -> list[bytes]:
    """Return the lines that begin in the next so many bytes."""
    if size == 1:
        return list(filter(None, [file.readline()]))
    return file.readlines(size - 1)  # those whose sizes do not exceed this, and one more


def _decoded(raw: list[bytes], encoding: str, path: Path, ends: list[int]) -> str:
    try:
        return b"".join(raw).decode(encoding)
    except UnicodeDecodeError as exc:
        bad = next(place for line, place in zip(raw, ends, strict=False) if not _can(line.decode, encoding))
        raise ValueError(
            f"{path}: the line from byte {bad:,} on is not {encoding}: {exc}; "
            "say which encoding it has, as in lines(path, encoding)"
        ) from exc


def _can(decode: Callable[[str], str], encoding: str) -> bool:
    try:
        decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _any_chunks(path: Path, offset: int, encoding: str) -> Iterator[tuple[str, list[int], Mark]]:
    """One line at a time, with Python's own note of where it ends, which holds the decoder's state."""
    with open(path, encoding=encoding, newline="\n") as file, open(path, "rb") as raw:
        file.seek(offset)
        near = _near(raw, offset & _OFFSET)
        while text := file.readline():
            offset = file.tell()
            yield text, [offset], near
            if (offset & _OFFSET) - near[1] >= _CHUNK:
                near = _near(raw, offset & _OFFSET)
