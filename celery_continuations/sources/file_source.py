"""Open a file, and find a row's place in it."""

from __future__ import annotations

import codecs
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from celery_continuations.core.reader import NOTHING, Keep, Pairs, SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader
from celery_continuations.sources.file_chunks import Chunk, chunks, offset_of
from celery_continuations.sources.file_marks import Mark, is_there, mark_before, mark_of

__all__ = ["ADVICE", "FileSource", "path_of"]

#: What to do about a file that has changed.
ADVICE = "Do not change a file while it is read, except to append to it: write a new file beside it instead."

# Bytes at the beginning of a file that distinguish it from another one.
_HEAD = 4096

_COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip"))


class Taken(NamedTuple):
    """The bytes before a cursor: their digest, and the whole mark as it is saved."""

    digest: str
    mark: list[Any] | None


def _no_file() -> None:
    return None


class FileSource(BaseReader):
    """A text file that is read by place.

    A cursor is ``((mark, mark), offset)``.  The marks are of the beginning of the file and of bytes shortly before the
    row.  They make a file that was replaced, changed or truncated an error, instead of wrong rows.  A file that has
    grown is read to its new end.

    Args:
        file: a path, or an object whose ``name`` is one, e.g. an open file or Django's FieldFile.
        encoding: of its text.  Encodings whose line feed is more than one byte, or that keep a state, are read
            more slowly.

    Raises:
        InvalidStepError: for an object without a path, a compressed file, or an unknown encoding.
    """

    kind = "bytes"
    checks = True

    def __init__(self, file: Any, encoding: str) -> None:
        self.path = path_of(file)
        if self.path.suffix.lower() in _COMPRESSED:
            raise InvalidStepError(
                f"{self.path} is compressed, and cannot be read from a place within: decompress it first, or iterate "
                "over a generator function, which is read from the beginning each time"
            )
        try:
            self.encoding = codecs.lookup(encoding).name
            # The second of two, for a byte order mark may come before the first.
            self._line_feed = "\n\n".encode(encoding)[len("\n".encode(encoding)) :]
        except (LookupError, TypeError) as exc:
            raise InvalidStepError(f"{self.path} cannot be read: unknown encoding {encoding!r}") from exc
        self._size: int | None = None
        self._file: Callable[[], IO[bytes] | None] = _no_file  # the one that is being read

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
        """Read from a place on, if the bytes before it are those that were read."""
        self.refuse_other(kind)
        return self._read(cursor, mark)

    def keep_of(self, item: Any) -> Keep:
        """Keep nothing: the bytes that were read are in the file."""
        return NOTHING

    def taken(self, cursor: Any, kept: Any) -> Taken:
        """Mark the bytes before a cursor, in the file that is being read: its path may lead to another now."""
        if isinstance(kept, Taken):
            return kept
        end = offset_of(cursor[1])
        open_file = self._file()
        if open_file is not None and not open_file.closed:
            mark = mark_before(open_file, end)
        else:
            try:
                with open(self.path, "rb") as file:
                    mark = mark_before(file, end)
            except FileNotFoundError:  # read to its end, and removed: the cursor has marks of its own
                return Taken("", None)
        return Taken(mark[2], list(mark))

    def mark(self, cursor: Any, kept: Any) -> Any:
        """Save the mark of the bytes before a cursor."""
        return self.taken(cursor, kept).mark

    def progress(self, cursor: Any) -> tuple[int | None, int | None]:
        """Return the number of bytes done, and of all."""
        if self._size is None:
            self._size = self.path.stat().st_size
        done = 0 if cursor is None else offset_of(cursor[1])
        return done, max(done, self._size)  # a file may grow while it is read

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        return self._rows(self._chunks(cursor, mark))

    def _rows(self, chunks: Iterator[Chunk]) -> Pairs:
        raise NotImplementedError

    def _chunks(self, cursor: Any, mark: Any) -> Iterator[Chunk]:
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            begin = file.read(_HEAD)
            offset = 0 if cursor is None else self._checked(file, cursor, mark)
        head = mark_of(begin, len(begin)) if cursor is None else cursor[0][0]
        encoding = self.encoding
        if encoding == "utf-8-sig":
            encoding = "utf-8"
            offset = offset or (len(codecs.BOM_UTF8) if begin.startswith(codecs.BOM_UTF8) else 0)
        return self._chunks_from(offset, encoding, head)

    def _chunks_from(self, offset: int, encoding: str, head: Mark) -> Iterator[Chunk]:
        with open(self.path, "rb") as file:
            self._file = weakref.ref(file)
            yield from chunks(file, self.path, offset, encoding, head)

    def _checked(self, file: IO[bytes], cursor: Any, mark: Any) -> int:
        try:
            (head, near), offset = cursor
            end, size = offset_of(offset), os.fstat(file.fileno()).st_size
            if end > size:
                raise SourceChanged(f"{self.path} was truncated: it ends before byte {end:,}", ADVICE)
            if mark != ACCEPTED:
                self._compare(file, head, near, mark)
            if end < size and not self._ends_line(file, end):
                raise SourceChanged(
                    f"{self.path} has changed: the line that ended at byte {end:,} has grown since it was read, or "
                    "bytes before it were changed",
                    ADVICE,
                )
        except (TypeError, ValueError) as exc:
            raise InvalidStepError(f"a file cannot be read from {cursor!r}: that is not a place in a file") from exc
        return int(offset)

    def _compare(self, file: IO[bytes], head: Mark, near: Mark, mark: Any) -> None:
        if not is_there(file, head):
            raise SourceChanged(f"{self.path} was replaced: its beginning differs", ADVICE)
        for one in (near, mark):
            if one is not None and not is_there(file, one):
                raise SourceChanged(f"{self.path} was replaced: the bytes before byte {one[1]:,} differ", ADVICE)

    def _ends_line(self, file: IO[bytes], end: int) -> bool:
        width = len(self._line_feed)
        file.seek(max(end - width, 0))
        return file.read(width) in (self._line_feed, self._line_feed[::-1])  # in either byte order


def path_of(file: Any) -> Path:
    """Return the path that a file can be opened by again.

    Raises:
        InvalidStepError: for an object without one.
    """
    path, why = file, None
    if not isinstance(file, (str, os.PathLike)):
        try:
            path = getattr(file, "path", None) or getattr(file, "name", None)
        except (NotImplementedError, ValueError) as exc:  # Django's, of a remote storage, or without a file
            path, why = None, exc
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidStepError(f"{file!r} has no path to open it by again; pass the path") from why
    return Path(path)
