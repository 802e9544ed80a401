"""Read the rows of a CSV file, whose quoted fields may have line ends in them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress, repeat
from typing import Any, Literal, TypedDict

from celery_continuations.core.reader import Pairs, SourceChanged, Unreadable
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.file_chunks import Chunk, normalized
from celery_continuations.sources.file_source import ADVICE, FileSource

__all__ = ["CsvOptions", "CsvRows"]

_BYTE_ORDER_MARK = "\ufeff"


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


class CsvRows(FileSource):
    """The rows of a CSV file; see :func:`celery_continuations.sources.csv_rows`."""

    kind = "bytes of CSV rows"

    def __init__(
        self, file: Any, encoding: str | None, header: bool, fieldnames: Iterable[str] | None, options: CsvOptions
    ) -> None:
        super().__init__(file, encoding)
        self._header = header
        self._names = None if fieldnames is None else _given_names(fieldnames)
        self._options = options
        self._translates: bool | None = None  # known once a carriage return was seen
        dialect = self._reader(()).dialect
        # In a chunk without these each line is a row, and can be read.
        self._special = [mark for mark in (dialect.quotechar, dialect.escapechar, "\0") if mark]
        self._converts = dialect.quoting not in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE)

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        if self._names is not None or not self._header:
            return self._rows_of_all(self._chunks(cursor, mark), self._names)
        # The names of the columns are read in each execution.
        try:
            first = next(self._rows_of_all(self._chunks(None, None), None), None)
        except Unreadable as unreadable:  # without the names no row can be read
            raise unreadable.error from unreadable.error.__cause__
        if first is None:
            if cursor is not None and mark != ACCEPTED:
                raise SourceChanged(f"{self.path} was truncated: it is empty", ADVICE)
            return iter(())
        names, after = first
        where = f"the header of {self.path}"
        _refuse_doubled(names, where, "pass header=False, which gives lists")
        if str(names[0]).startswith(_BYTE_ORDER_MARK):
            raise InvalidStepError(
                f"{where} begins with a byte order mark, which would be part of the name {names[0]!r}; leave "
                "encoding= out, or write encoding='utf-8-sig' (or 'utf-16'); open a file with it likewise"
            )
        return self._rows_of_all(self._chunks(after if cursor is None else cursor, mark), names)

    def _rows_of_all(self, chunks: Iterator[Chunk], names: list[str] | None) -> Pairs:
        return chain.from_iterable(self._rows_of(chunk, chunks, names) for chunk in chunks)

    def _rows_of(self, chunk: Chunk, chunks: Iterator[Chunk], names: list[str] | None) -> Pairs:
        """Return the rows that begin in a chunk; the last one may end in one of the next."""
        if chunk.wrong:
            return self._rows_across(chunk, chunks, names)
        texts, places = chunk.lines, chunk.places
        if not all(texts):
            places = compress(places, texts)
            texts = list(filter(None, texts))
        if names is None and self._is_simple(chunk.text):
            return zip(self._reader(texts), places, strict=True)
        try:
            # The empty line at the end is a row of its own, unless a quoted field is open there.
            rows = list(self._reader([*texts, ""]))
            rows.pop()
        except (csv.Error, ValueError):
            return self._rows_across(chunk, chunks, names)  # raises it at its row, after the rows before
        if len(rows) != len(texts):
            return self._rows_across(chunk, chunks, names)
        if names is None:
            return zip(rows, places, strict=True)
        if set(map(len, rows)) <= {len(names)}:
            return zip(map(dict, map(zip, repeat(names), rows)), places, strict=True)
        return zip(map(_named, repeat(names), rows), places, strict=False)

    def _is_simple(self, text: str) -> bool:
        """Whether each line is a row that can be read."""
        if self._converts or len(text) > csv.field_size_limit():
            return False
        return not any(mark in text for mark in self._special)

    def _rows_across(self, chunk: Chunk, chunks: Iterator[Chunk], names: list[str] | None) -> Pairs:
        fed = _Fed(chunk, chunks, self._ends_as_read)
        reader = self._reader(fed.lines())
        while True:
            begin, fed.texts = fed.place[1], []
            try:
                row = next(reader, None)
            except (csv.Error, ValueError) as exc:
                raise Unreadable(self._not_csv(begin, exc), fed.place) from exc
            if row is None:
                return
            if any(map(self.is_wrong, fed.texts)):
                raise Unreadable(self.wrong(begin, "".join(fed.texts)), fed.place)
            if row:
                yield (row if names is None else _named(names, row)), fed.place
            if fed.place[1] == fed.end:
                return

    def _not_csv(self, begin: int, exc: Exception) -> Exception:
        kind = csv.Error if isinstance(exc, csv.Error) else ValueError
        error = kind(f"{self.path}: the row that begins at byte {self.byte(begin):,} cannot be read: {exc}")
        error.__cause__ = exc
        return error

    def _ends_as_read(self, text: str) -> str:
        """Return a text with the line ends that an open file gives it."""
        if "\r" not in text:
            return text
        if self._translates is None:
            self._translates = self.given.translates()
        return normalized(text) if self._translates else text

    def _reader(self, texts: Iterable[str]) -> Any:
        return csv.reader(texts, **self._options)


class _Fed:
    """Lines with their ends, as a reader asks for them.

    Attributes:
        place: the cursor after the last line that was taken.
        texts: the lines that were taken since the last row.
        end: the place after the last line of its chunk.
    """

    def __init__(self, chunk: Chunk, following: Iterator[Chunk], ends_as_read: Callable[[str], str]) -> None:
        self._chunks = chain([chunk], following)
        self._ends_as_read = ends_as_read
        self.place: tuple[Any, int] = (chunk.marks, chunk.begin)
        self.texts: list[str] = []
        self.end = 0

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        for chunk in self._chunks:
            self.end = chunk.ends[-1]
            texts = io.StringIO(self._ends_as_read(chunk.text), newline="")
            for text, self.place in zip(texts, chunk.places, strict=True):
                self.texts.append(text)
                yield text


def _given_names(fieldnames: Any) -> list[str]:
    names = [] if isinstance(fieldnames, str) or not isinstance(fieldnames, Iterable) else list(fieldnames)
    if not names:
        raise InvalidStepError(f"fieldnames= takes a list of names of columns, not {fieldnames!r}")
    _refuse_doubled(names, "fieldnames=", "give each column its own name")
    return names


def _refuse_doubled(names: list[str], where: str, remedy: str) -> None:
    """Refuse names of columns that occur more than once."""
    for name, count in Counter(names).items():
        if count > 1:
            columns = ", ".join(str(number) for number, other in enumerate(names, 1) if other == name)
            raise InvalidStepError(
                f"{where} has the name {name!r} {count} times (columns {columns}), so that a dict would lose a "
                f"column; {remedy}"
            )


def _named(names: list[str], row: list[str]) -> dict[str | None, Any]:
    """Return a row as csv.DictReader does: missing fields are None, and surplus ones are a list under None."""
    named: dict[str | None, Any] = dict(zip(names, row, strict=False))
    if len(row) != len(names):
        if len(row) > len(names):
            named[None] = row[len(names) :]
        for name in names[len(row) :]:
            named[name] = None
    return named
