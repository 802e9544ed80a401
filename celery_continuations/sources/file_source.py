"""Open a file, and find a row's place in it."""

from __future__ import annotations

import codecs
import os
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from celery_continuations.core.reader import COUNTS, Keep, Pairs, SourceChanged, Unreadable
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.base import BaseReader
from celery_continuations.sources.file_chunks import WRONG, Chunk, byte_of, characters_of, chunks
from celery_continuations.sources.file_marks import Mark, is_there, mark_before
from celery_continuations.sources.file_objects import given, refusal
from celery_continuations.sources.file_places import ONE_CHARACTER, Place

__all__ = ["ADVICE", "FileSource"]

#: What to do about a file that has changed.
ADVICE = "Do not change the part of a file that has been read: append to it, or write a new file beside it instead."

_LINE_ENDS = ("\r", "\n")

# Bytes that are read ahead: marking what lies before a chunk then needs no second read.
_BUFFER = 1 << 16

# Bytes that a character takes at most, with what changes a decoder's state before it.
_CHARACTER = 16

_COMPRESSED = frozenset((".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip"))


class Taken(NamedTuple):
    """The bytes before a cursor: their digest, and the whole mark as it is saved."""

    digest: str
    mark: list[Any] | None


def _no_file() -> None:
    return None


class FileSource(BaseReader):
    """A text file that is read by place.

    A cursor is ``((mark, mark), place)``.  The marks are of the beginning of the file and of bytes shortly before the
    row.  With the mark that is saved beside the cursor they make a file that was replaced, changed or truncated an
    error, instead of wrong rows.  A file that has grown is read to its new end.

    Args:
        file: a path or an open file; see :func:`celery_continuations.sources.lines`.
        encoding: of its text; None for that of an open text file, or else UTF-8 with or without a byte order mark.

    Raises:
        InvalidStepError: for an object that is not a file with a path, a compressed file, or an unknown encoding.
    """

    kind = "bytes"
    checks = True

    def __init__(self, file: Any, encoding: str | None) -> None:
        self.given = given(file)
        self.path = self.given.path
        if self.path.suffix.lower() in _COMPRESSED:
            raise InvalidStepError(
                f"{self.path} is compressed, and cannot be read from a place within: decompress it first, or iterate "
                "over a generator function, which is read from the beginning each time"
            )
        name = encoding if encoding is not None else self.given.encoding or "utf-8-sig"
        try:
            self.encoding = codecs.lookup(name).name
            # The second of two, for a byte order mark may come before the first.
            self._ends = {end: (end + end).encode(name)[len(end.encode(name)) :] for end in "\r\n"}
            b"a".decode(name, "backslashreplace")
        except (LookupError, TypeError) as exc:
            raise InvalidStepError(f"{self.path} cannot be read: unknown encoding {name!r}") from exc
        except UnicodeError as exc:  # of punycode and idna
            raise InvalidStepError(f"{self.path} cannot be read: {name!r} encodes names, not files") from exc
        own = self.given.encoding
        if own is not None and codecs.lookup(own).name != self.encoding:
            raise refusal(
                file, f"was opened with the encoding {own}, and encoding={encoding!r} was given", "leave encoding= out"
            )
        self._size: int | None = None
        self._file: Callable[[], IO[bytes] | None] = _no_file  # the one that is being read

    def read(self, cursor: Any) -> Pairs:
        """Yield items with the place after each.

        Raises:
            InvalidStepError: when the file is not the one that the cursor was made in.
            ValueError, csv.Error: while it is read, for a row that cannot be read.
        """
        try:
            return _raising(self._read(cursor, None))
        except SourceChanged as changed:
            raise InvalidStepError(f"{changed.problem}. {changed.advice}") from None

    def resume(self, cursor: Any, kind: str | None, mark: Any) -> Pairs:
        """Read from a place on, if the bytes before it are those that were read."""
        self.refuse_other(kind)
        return self._read(cursor, mark)

    def keep_of(self, item: Any) -> Keep:
        """Keep nothing: the bytes that were read are in the file."""
        return COUNTS

    def taken(self, cursor: Any, kept: Any) -> Taken:
        """Mark the bytes before a cursor, in the file that is being read: its path may lead to another now."""
        if isinstance(kept, Taken):
            return kept
        try:
            with self._at_hand() as file:
                mark = mark_before(file, self._byte(file, cursor[1]))
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
        try:
            done = 0 if cursor is None else self.byte(cursor[1])
        except FileNotFoundError:  # read to its end, and removed
            done = self._size
        return done, max(done, self._size)  # a file may grow while it is read

    def byte(self, place: int) -> int:
        """Return the byte of a place."""
        if not Place.of(place).skip:
            return Place.of(place).start
        with self._at_hand() as file:
            return self._byte(file, place)

    def is_wrong(self, text: str) -> bool:
        """Whether a text has bytes that are not of the file's encoding."""
        return self.given.errors == "strict" and WRONG in text

    def wrong(self, begin: int, text: str) -> ValueError:
        """Return the error for a row that has bytes that are not of the file's encoding."""
        encoding = self.encoding.removesuffix("-sig")
        shown = text.rstrip("\r\n").replace(WRONG, "\N{REPLACEMENT CHARACTER}")
        return ValueError(
            f"{self.path}: the line that begins at byte {self.byte(begin):,} is not {encoding}: {shown:.80}; "
            "pass the file's encoding, as in lines(path, encoding)"
        )

    def _read(self, cursor: Any, mark: Any) -> Pairs:
        return self._rows(self._chunks(cursor, mark))

    def _rows(self, chunks: Iterator[Chunk]) -> Pairs:
        raise NotImplementedError

    def _chunks(self, cursor: Any, mark: Any) -> Iterator[Chunk]:
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise InvalidStepError(f"{self.path} is not a regular file, and cannot be read from a place within")
        with open(self.path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            place, head = (self.given.start, None) if cursor is None else self._checked(file, cursor, mark)
            encoding = self.encoding
            if encoding == "utf-8-sig":
                encoding = "utf-8"
                file.seek(0)
                if not place and file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                    place = len(codecs.BOM_UTF8)
        reading = self._reading = self._chunks_from(place, encoding, head)
        return reading

    def _chunks_from(self, place: int, encoding: str, head: Mark | None) -> Iterator[Chunk]:
        with open(self.path, "rb", buffering=_BUFFER) as file:
            self._file = weakref.ref(file)
            yield from chunks(file, place, encoding, self.given.errors, head)

    @contextmanager
    def _at_hand(self) -> Iterator[IO[bytes]]:
        """Give the file that is being read, or open it."""
        file = self._file()
        if file is not None and not file.closed:
            yield file
        else:
            with open(self.path, "rb") as file:
                yield file

    def _byte(self, file: IO[bytes], place: int) -> int:
        return byte_of(file, place, self.encoding, self.given.errors)

    def _checked(self, file: IO[bytes], cursor: Any, mark: Any) -> tuple[int, Mark | None]:
        """Return the place of a cursor, and its mark of the file's beginning."""
        try:
            (head, near), place = cursor
            size = os.fstat(file.fileno()).st_size
            end = self._byte(file, place)
            if end > size:
                raise SourceChanged(f"{self.path} was truncated: it ends before byte {end:,}", ADVICE)
            if head[1] > end and mark is not None:
                head = None  # release 0.1 marked bytes after the cursor, too
            if mark != ACCEPTED:
                self._compare(file, head, near, mark)
            before, after = self._around(file, place)
            if after and before not in _LINE_ENDS:
                raise SourceChanged(
                    f"{self.path} has changed: the line that ended at byte {end:,} has grown since it was read, or "
                    "bytes before it were changed",
                    ADVICE,
                )
        except (TypeError, ValueError) as exc:
            raise InvalidStepError(f"a file cannot be read from {cursor!r}: that is not a place in a file") from exc
        if (before, after) == ("\r", "\n"):  # written since: the other half of a line end
            place += ONE_CHARACTER if Place.of(place).skip else len(self._ends["\n"])
        return int(place), head

    def _compare(self, file: IO[bytes], head: Mark | None, near: Mark, mark: Any) -> None:
        if head is not None and not is_there(file, head):
            raise SourceChanged(f"{self.path} was replaced: its beginning differs", ADVICE)
        for one in (near, mark):
            if one is not None and not is_there(file, one):
                raise SourceChanged(f"{self.path} was replaced: the bytes before byte {one[1]:,} differ", ADVICE)

    def _around(self, file: IO[bytes], place: int) -> tuple[str, str]:
        """Return the characters right before and after a place; at a byte those that end no line are not decoded."""
        at = Place.of(place)
        if at.skip:
            more = at._replace(feed=at.feed + _CHARACTER)
            text = characters_of(file, more, self.encoding, self.given.errors)
            return text[at.skip - 1 : at.skip], text[at.skip : at.skip + 1]
        width = len(self._ends["\n"])
        file.seek(max(at.start - width, 0))
        around = file.read(min(at.start, width)), file.read(width)
        before, after = (
            # In either byte order.
            next((end for end, encoded in self._ends.items() if found in (encoded, encoded[::-1])), found.hex())
            for found in around
        )
        return before, after


def _raising(pairs: Pairs) -> Pairs:
    """Yield pairs; raise the error of a row that cannot be read as it is."""
    try:
        yield from pairs
        return
    except Unreadable as unreadable:
        error = unreadable.error
    try:
        raise error  # here, so that it does not refer to what refers to it, which would keep the file open
    finally:
        del error
