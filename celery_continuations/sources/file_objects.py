"""What a given file is: a path, or an open file with its place, encoding and line ends.  Any other is refused."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.file_chunks import byte_of, characters_of, is_plain
from celery_continuations.sources.file_places import Place

__all__ = ["DJANGO_FIELD", "DJANGO_FILE", "Given", "given", "refusal"]

DJANGO_FILE = "django.core.files.base.File"
DJANGO_FIELD = "django.db.models.fields.files.FieldFile"
_TEMPORARY = "tempfile._TemporaryFileWrapper"

# Error handlers that decode a line alone as they do within its file.
_HANDLERS = frozenset(("strict", "ignore", "replace", "backslashreplace", "surrogateescape", "surrogatepass"))

# Characters that are read at a time in search of a line end.
_READ = 1 << 13

_BY_PATH = "pass the path of a file on disk"
_BY_FUNCTION = (
    "iterate over a generator function that opens and reads it, which is read from the beginning in each execution, "
    f"or {_BY_PATH}"
)


class Given(NamedTuple):
    """A file that can be opened again by its path.

    Attributes:
        path: its path.
        start: the packed place that an open file stands at.
        encoding: that of an open text file, or None.
        errors: how an open text file treats bytes that are not of its encoding.
        file: the open text file, whose line ends count; or None.
        told: the place where it stands, as the file tells it.
    """

    path: Path
    start: int = 0
    encoding: str | None = None
    errors: str = "strict"
    file: io.TextIOWrapper | None = None
    told: int = 0

    def translates(self) -> bool:
        r"""Whether the file object reads ``\r`` and ``\r\n`` as ``\n``, which shows at the first of them."""
        if self.file is None:
            return False
        if self.file.closed:
            raise refusal(self.file, "was closed before it was read", "read it while it is open, or pass its path")
        return _translates(self.file, self.told)


def given(file: Any) -> Given:
    """Return what a file is.

    Raises:
        InvalidStepError: for what cannot be opened again by a path, or is not at a place that can be found again.
    """
    if isinstance(file, (str, bytes, os.PathLike)):
        return Given(Path(os.fsdecode(file)))
    inner = _inner(file)
    if isinstance(inner, Given):
        return inner
    if getattr(inner, "closed", False):
        raise refusal(file, "is closed", _BY_PATH)
    if isinstance(inner, io.TextIOWrapper):
        return _of_text(file, inner)
    if isinstance(inner, (io.BufferedReader, io.BufferedRandom, io.FileIO)):
        path = _path_of(file, inner, inner)
        return Given(path, _place_of_bytes(inner))
    raise _unknown(file, inner)


def refusal(file: Any, problem: str, remedy: str) -> InvalidStepError:
    """Return the error for a file object."""
    name = getattr(file, "name", None)
    shown = f" {name!r}" if isinstance(name, str) and name else ""
    return InvalidStepError(f"the {type(file).__name__}{shown} {problem}; {remedy}")


def _names(kind: type) -> set[str]:
    return {f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__}


def _inner(file: Any) -> Any:
    """Return the file that wrappers of tempfile and Django are around; or what is given, for one that is not open."""
    while True:
        names = _names(type(file))
        if DJANGO_FIELD in names and file.closed:
            return _stored(file)
        if not names & {DJANGO_FIELD, DJANGO_FILE, _TEMPORARY}:
            return file
        file = file.file


def _stored(file: Any) -> Given:
    """Return the path of Django's FieldFile."""
    try:
        path = Path(file.path)
    except (NotImplementedError, ValueError) as exc:  # of a remote storage, or without a file
        raise refusal(file, f"has no local path ({exc})", _BY_FUNCTION) from exc
    if path.exists():  # some storages in memory have a path, too
        with file.storage.open(file.name) as stored:
            given(stored)
    return Given(path)


def _unknown(file: Any, inner: Any) -> InvalidStepError:
    if isinstance(inner, (io.StringIO, io.BytesIO)) or "tempfile.SpooledTemporaryFile" in _names(type(inner)):
        return refusal(file, "is in memory", "pass a list of its rows, such as file.read().splitlines()")
    if isinstance(inner, (codecs.StreamReaderWriter, codecs.StreamRecoder)):
        return refusal(file, "decodes by itself", "write open(path, encoding=...), or pass the path and encoding=")
    if isinstance(inner, io.BufferedWriter):
        return refusal(file, "is not open for reading", _BY_PATH)
    if hasattr(inner, "read"):
        return refusal(file, "is not a file on disk that can be read from a place within", _BY_FUNCTION)
    return refusal(file, "is neither a path nor an open file", _BY_PATH)


def _path_of(file: Any, inner: Any, binary: Any) -> Path:
    """Return the path of a binary file, which must lead to it."""
    raw = getattr(binary, "raw", binary)
    if not isinstance(raw, io.FileIO):
        raise refusal(file, "is read through another file, such as an archive's", _BY_FUNCTION)
    if not inner.readable():
        raise refusal(file, "is not open for reading", _BY_PATH)
    name: Any = raw.name
    if not isinstance(name, (str, bytes, os.PathLike)):
        raise refusal(file, "has no path to open it by again", f"{_BY_PATH}, or a tempfile.NamedTemporaryFile")
    if inner.writable():
        inner.flush()
    try:
        is_there = os.path.samestat(os.stat(name), os.fstat(raw.fileno()))
    except FileNotFoundError:
        is_there = False
    if not is_there:
        raise refusal(file, "was removed, or replaced by another file", _BY_PATH)
    if not raw.seekable():
        raise refusal(file, "cannot be read from a place within: it is not a regular file", _BY_FUNCTION)
    return Path(os.fsdecode(name))


def _place_of_bytes(file: Any) -> int:
    return _unless_written(file, file.tell())


def _unless_written(file: Any, place: int) -> int:
    """Return 0 for a file that was written up to its end, so that nothing would be read from there."""
    return 0 if file.writable() and place == os.fstat(file.fileno()).st_size else place


def _of_text(file: Any, text: io.TextIOWrapper) -> Given:
    path = _path_of(file, text, text.buffer)
    if text.errors not in _HANDLERS:
        raise refusal(file, f"was opened with errors={text.errors!r}, with which its places cannot be found", _BY_PATH)
    told = _unless_written(text, _told(file, path, text))
    if not _is_universal(text, told):
        raise refusal(
            file,
            "was opened with a newline= of its own",
            "open it with newline='', which ends lines as csv_rows and lines do",
        )
    return Given(path, _start(path, text, told), text.encoding, text.errors, text, told)


def _told(file: Any, path: Path, text: io.TextIOWrapper) -> int:
    """Return the place that an open file tells; after next() it tells none before it was sought."""
    try:
        return text.tell()
    except OSError:
        place = _after_next(path, text)
    if place is None:
        raise refusal(
            file, "was advanced by next(), after which its place is unknown", "advance it by readline() instead"
        )
    text.seek(place)
    return text.tell()


def _after_next(path: Path, file: io.TextIOWrapper) -> int | None:
    """Find the line before which a file stands, by the number of characters that it has read ahead."""
    encoding, errors = codecs.lookup(file.encoding).name.removesuffix("-sig"), file.errors or "strict"
    buffer: Any = file.buffer
    end: int = buffer.tell()
    ahead = 0
    with suppress(UnicodeDecodeError):  # in what comes after
        while file.read(1) and buffer.tell() == end:
            ahead += 1
    file.seek(0)
    if not is_plain(encoding):
        return None
    with open(path, "rb") as raw:
        begin = max(end - 2 * _READ, 0)
        raw.seek(begin)
        data, is_end = raw.read(end - begin), not raw.read(1)
    translates = b"\r" in data and _translates(file, 0)
    starts = accumulate(map(len, data.splitlines(keepends=True)), initial=0)
    for start in list(starts)[begin > 0 :]:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translates)
        if len(decoder.decode(data[start:], is_end)) == ahead:
            return begin + start
    return None


def _start(path: Path, file: io.TextIOWrapper, told: int) -> int:
    """Return the place that an open file tells, whose state has a bit for a carriage return that is pending."""
    at, encoding, errors = Place.of(told), codecs.lookup(file.encoding).name, file.errors or "strict"
    pending, at = at.state & 1, at._replace(state=at.state >> 1)
    with open(path, "rb") as raw:
        if not at.skip:
            return at._replace(start=at.start - (_width_before(raw, at.start, encoding) if pending else 0)).packed()
        text = "\r" * pending + characters_of(raw, at, encoding, errors)
        passed = at.skip
        if "\r" in text and _translates(file, 0):
            ends = [match.end() for match in re.finditer("\r\n|.", text, re.DOTALL)]
            passed = ends[at.skip - 1]
        at = at._replace(skip=passed - pending)
        return byte_of(raw, at.packed(), encoding, errors) if is_plain(encoding) else at.packed()


def _width_before(raw: IO[bytes], end: int, encoding: str) -> int:
    """Return how many bytes the carriage return has that was read, but comes after the place."""
    width = len("\r\r".encode(encoding)) - len("\r".encode(encoding))
    raw.seek(end - width)
    if raw.read(width).strip(b"\0") != "\r".encode(encoding)[-width:].strip(b"\0"):
        raise InvalidStepError(
            f"the file {raw.name!r} is at a place that cannot be found again; pass it as it was opened, or its path"
        )
    return width


def _is_universal(file: io.TextIOWrapper, told: int) -> bool:
    """Whether any line end ends a line, as far as the file's first line end shows."""
    with _looked_into(file, told) as texts:
        for text in texts:
            if file.newlines is not None:
                return True
            if "\n" in text or "\r" in text:
                return False
    return True


def _translates(file: io.TextIOWrapper, told: int) -> bool:
    """Whether a file reads all line ends as line feeds, as far as the first other one from a place on shows."""
    with _looked_into(file, told) as texts:
        for text in texts:
            if "\r" in text:
                return False
            if "\r" in "".join(file.newlines or ()):
                return True
    return False


@contextmanager
def _looked_into(file: io.TextIOWrapper, told: int) -> Iterator[Iterator[str]]:
    """Yield an iterator over the file's texts from a place on; the file stands where it stood after the block."""
    place, errors = file.tell(), file.errors
    file.seek(0)  # reconfigure() refuses a file of which characters are pending
    file.reconfigure(errors="replace")  # wrong bytes are found when their line is read
    try:
        file.seek(told)
        yield iter(lambda: file.read(_READ), "")
    finally:
        file.seek(0)
        file.reconfigure(errors=errors)
        file.seek(place)
