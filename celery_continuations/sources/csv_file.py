"""Read the rows of a CSV file, whose quoted fields may have line feeds in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import chain, compress, repeat
from typing import Any, Literal, TypedDict

from celery_continuations.core.reader import Pairs, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.sources.file_chunks import Chunk
from celery_continuations.sources.file_source import ADVICE, FileSource

__all__ = ["CsvOptions", "CsvRows"]


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

    def __init__(self, file: Any, encoding: str, header: bool, options: CsvOptions) -> None:
        super().__init__(file, encoding)
        self._header = header
        self._options = options
        dialect = self._reader(()).dialect
        # In a chunk without these each line is a row.
        self._joining = [mark for mark in (dialect.quotechar, dialect.escapechar) if mark]

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        if not self._header:
            return super()._read(cursor, mark)
        # The names of the columns are read in each execution.
        first = next(super()._read(None, None), None)
        if first is None:
            if cursor is not None and mark != ACCEPTED:
                raise SourceChanged(f"{self.path} was truncated: it is empty", ADVICE)
            return iter(())
        names, after = first
        return self._rows(self._chunks(after if cursor is None else cursor, mark), names)

    def _rows(self, chunks: Iterator[Chunk], names: list[str] | None = None) -> Pairs:
        return chain.from_iterable(self._rows_of(chunk, chunks, names) for chunk in chunks)

    def _rows_of(self, chunk: Chunk, chunks: Iterator[Chunk], names: list[str] | None) -> Pairs:
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
            return self._rows_across(chunk, chunks, names)  # raises it at its row, after the rows before
        if len(rows) != len(texts):
            return self._rows_across(chunk, chunks, names)
        if names is None:
            return zip(rows, places, strict=True)
        if set(map(len, rows)) <= {len(names)}:
            return zip(map(dict, map(zip, repeat(names), rows)), places, strict=True)
        return zip(map(_named, repeat(names), rows), places, strict=False)

    def _rows_across(self, chunk: Chunk, chunks: Iterator[Chunk], names: list[str] | None) -> Pairs:
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
        end: the place after the last line of its chunk.
    """

    def __init__(self, chunk: Chunk, following: Iterator[Chunk]) -> None:
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
    """Return a row as csv.DictReader does: missing fields are None, and surplus ones are a list under None."""
    named: dict[str | None, Any] = dict(zip(names, row, strict=False))
    if len(row) != len(names):
        if len(row) > len(names):
            named[None] = row[len(names) :]
        for name in names[len(row) :]:
            named[name] = None
    return named
