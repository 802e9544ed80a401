"""File objects: read as what they are, or refused with what to write."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from celery_continuations import InvalidStepError
from celery_continuations.sources import csv_rows, json_lines, lines, opener

ROWS = [{"name": "ann"}, {"name": "bob"}]
MAKERS = [csv_rows, lines, json_lines, lambda file: opener("rows", file)().reader]


def read(source: Any) -> list[Any]:
    return [item for item, _ in source.read(None)]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local file of the name that other files have, too: it must never be read in their place."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("name\nlocal\n")
    return Path("rows.csv")


class Body:
    """What is downloaded: read once, without a place."""

    name = "rows.csv"

    def __init__(self) -> None:
        self.inner = io.BytesIO(b"name\nann\n")

    def read(self, size: int | None = -1) -> bytes:
        return self.inner.read(size)

    def __iter__(self) -> Any:
        return iter(self.inner)


class InBucket(io.RawIOBase):
    """As the files of fsspec: with a path, which is not that of a local file."""

    path = name = "rows.csv"

    def readable(self) -> bool:
        return True


def opened(stack: ExitStack, *args: Any, **options: Any) -> Any:
    return stack.enter_context(open(*args, **options))


def archived(stack: ExitStack) -> Any:
    with zipfile.ZipFile("rows.zip", "w") as archive:
        archive.writestr("rows.csv", "name\nann\n")
    return stack.enter_context(stack.enter_context(zipfile.ZipFile("rows.zip")).open("rows.csv"))


def taped(stack: ExitStack) -> Any:
    with tarfile.open("rows.tar", "w") as archive:
        archive.add("rows.csv")
    return stack.enter_context(stack.enter_context(tarfile.open("rows.tar")).extractfile("rows.csv"))  # type: ignore[type-var]


def packed(module: Any, mode: str) -> Callable[[ExitStack], Any]:
    def make(stack: ExitStack) -> Any:
        with module.open("rows.packed", "wb") as file:
            file.write(b"name\nann\n")
        return stack.enter_context(module.open("rows.packed", mode))

    return make


def without_name(stack: ExitStack) -> Any:
    return stack.enter_context(tempfile.TemporaryFile("w+"))


def decoding(stack: ExitStack) -> Any:
    return stack.enter_context(codecs.open("rows.csv", encoding="utf-8"))


def spooled(stack: ExitStack, size: int) -> Any:
    file = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=size))  # noqa: SIM115
    file.write(b"name\nann\n")
    file.seek(0)
    return file


def after(file: Any, done: Callable[[Any], Any]) -> Any:
    done(file)
    return file


def removed(stack: ExitStack) -> Any:
    file = opened(stack, "rows.csv")
    os.replace("rows.csv", "others.csv")
    Path("rows.csv").write_text("name\nlocal\n")
    return file


def named(file: Any, name: str) -> Any:
    file.name = name
    return file


REFUSED: dict[str, tuple[Callable[[ExitStack], Any], str]] = {
    "text in memory": (lambda stack: named(io.StringIO("name\nann\n"), "rows.csv"), "pass a list of its rows"),
    "bytes in memory": (lambda stack: named(io.BytesIO(b"name\nann\n"), "rows.csv"), "pass a list of its rows"),
    "spooled, in memory": (lambda stack: spooled(stack, 1000), "pass a list of its rows"),
    "spooled, on disk": (lambda stack: spooled(stack, 1), "pass a list of its rows"),
    "without a name": (without_name, "NamedTemporaryFile"),
    "member of a ZIP archive": (archived, "generator function"),
    "text of a member": (lambda stack: io.TextIOWrapper(archived(stack)), "generator function"),
    "member of a tar archive": (taped, "generator function"),
    "gzip": (packed(gzip, "rb"), "generator function"),
    "gzip, as text": (packed(gzip, "rt"), "generator function"),
    "bz2": (packed(bz2, "rb"), "generator function"),
    "lzma, as text": (packed(lzma, "rt"), "generator function"),
    "codecs": (decoding, "open\\(path, encoding"),
    "a download": (lambda stack: Body(), "generator function"),
    "in a bucket": (lambda stack: InBucket(), "generator function"),
    "a member's description": (lambda stack: tarfile.TarInfo("rows.csv"), "pass the path"),
    "closed": (lambda stack: after(opened(stack, "rows.csv"), lambda file: file.close()), "is closed; pass the path"),
    "closed, of bytes": (lambda stack: after(opened(stack, "rows.csv", "rb"), lambda file: file.close()), "is closed"),
    "being written": (lambda stack: opened(stack, "rows.csv", "a"), "is not open for reading"),
    "being written, of bytes": (lambda stack: opened(stack, "rows.csv", "ab"), "is not open for reading"),
    "advanced by next(), and to be decoded": (
        lambda stack: after(opened(stack, "rows.csv", encoding="utf-16-le", errors="replace"), next),
        "by readline\\(\\) instead",
    ),
    "with line ends of its own": (lambda stack: opened(stack, "rows.csv", newline="\r"), "newline=''"),
    "with unknown errors": (
        lambda stack: opened(stack, "rows.csv", errors="xmlcharrefreplace"),
        "errors='xmlcharrefreplace'",
    ),
    "replaced": (removed, "was removed, or replaced by another file"),
    "by descriptor": (lambda stack: opened(stack, os.open("rows.csv", os.O_RDONLY)), "has no path"),
    "a number": (lambda stack: 7, "neither a path nor an open file"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("make", [csv_rows, lines, json_lines])
def test_what_is_refused(name: str, make: Any, path: Path) -> None:
    open_file, remedy = REFUSED[name]
    with ExitStack() as stack:
        file = open_file(stack)
        with pytest.raises(InvalidStepError, match=remedy):
            make(file)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"a download", "a number", "a member's description"}))
def test_what_is_refused_as_a_source(name: str, path: Path) -> None:
    open_file, _ = REFUSED[name]
    with ExitStack() as stack:
        file = open_file(stack)
        with pytest.raises(InvalidStepError):
            read(opener("rows", file)().reader)


def test_a_title_that_was_read(path: Path) -> None:
    path.write_text("Report of May\nname\nann\nbob\n")
    for mode in ("r", "rb", "r+", "rb+"):
        with path.open(mode) as file:
            assert "May" in str(file.readline())
            source = csv_rows(file)
            assert read(source) == read(source) == ROWS
            assert file.readline() in ("name\n", b"name\n")
    with path.open() as file:
        file.readline()
        assert read(opener("rows", file)().reader) == ["name", "ann", "bob"]
        file.read()
        assert read(lines(file)) == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("newline", [None, ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_title_that_was_read_by_next(path: Path, end: str, newline: str | None, encoding: str) -> None:
    """Python tells no place then, and has read ahead."""
    rows = [f"{number} größer" for number in range(3000)]
    for count in (0, 1, 2, 3, 500, 3000):
        path.write_bytes((end.join(rows[:count]) + end * bool(count % 2)).encode(encoding))
        for skipped in {0, min(1, count), min(2, count), min(400, count), max(count - 1, 0), count}:
            with path.open(encoding=encoding, newline=newline) as file:
                for _ in range(skipped):
                    next(file)
                assert read(lines(file)) == rows[skipped:count]
                assert file.readline().rstrip() == "".join(rows[skipped:count][:1])


def test_a_title_that_was_read_from_a_file_that_needs_a_decoder(path: Path) -> None:
    for encoding in ("utf-16", "shift_jis", "utf-8-sig"):
        path.write_text("日本\nname\nann\nbob\n", encoding=encoding)
        with path.open(encoding=encoding) as file:
            file.readline()
            assert read(csv_rows(file)) == ROWS


@pytest.mark.parametrize("mode", ["w+", "wb+"])
@pytest.mark.parametrize("then", ["nothing", "flushed", "rewound"])
def test_a_temporary_file_that_was_written(mode: str, then: str) -> None:
    """It is read from its beginning; what Python has not yet written to it, too."""
    with tempfile.NamedTemporaryFile(mode, suffix=".csv") as file:
        for number in range(1000):
            line = f"{number or 'name'}\n"
            file.write(line.encode() if "b" in mode else line)
        if then != "nothing":
            file.flush()
        if then == "rewound":
            file.seek(0)
        assert len(read(csv_rows(file))) == 999
        assert len(read(lines(file))) == 1000


def test_the_encoding_of_an_open_file(path: Path) -> None:
    path.write_bytes("name\nJosé\n".encode("latin-1"))
    with path.open(encoding="latin-1") as file:
        assert read(csv_rows(file)) == read(csv_rows(file, "iso-8859-1")) == [{"name": "José"}]
        with pytest.raises(InvalidStepError, match="with the encoding latin-1, and encoding='utf-8' was given; leave"):
            csv_rows(file, "utf-8")
    with path.open("rb") as file:
        assert read(csv_rows(file, "latin-1")) == [{"name": "José"}]
    with open(path, "rb", buffering=0) as file:
        assert read(csv_rows(file, "latin-1")) == [{"name": "José"}]


@pytest.mark.parametrize("errors", ["ignore", "replace", "backslashreplace", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "shift_jis", "utf-16-le"])
def test_the_errors_of_an_open_file(path: Path, errors: str, encoding: str) -> None:
    path.write_bytes("name\n".encode(encoding) * 9 + b"\xff\xd8\n\x00a\n\x00\xfe" + "b\n".encode(encoding) * 9)
    with path.open(encoding=encoding, errors=errors) as file:
        if encoding == "utf-16-le" and errors == "surrogateescape":
            return  # it has no substitute for bytes of ASCII
        expected = [line.removesuffix("\n") for line in file]
    with path.open(encoding=encoding, errors=errors) as file:
        pairs = list(lines(file).read(None))
        assert [line for line, _ in pairs] == expected
        for done, (_, cursor) in enumerate(pairs, 1):
            assert [line for line, _ in lines(file).read(cursor)] == expected[done:]


def test_wrong_bytes_at_the_beginning_of_an_open_file(path: Path) -> None:
    path.write_bytes(b"name\n\xff\n")
    with path.open(encoding="utf-8") as file:
        pairs = lines(file).read(None)
        assert next(pairs)[0] == "name"
        with pytest.raises(ValueError, match="begins at byte 5 is not utf-8"):
            next(pairs)


def test_line_ends_within_quotes(path: Path) -> None:
    """As csv reads them from the same file: translated, or as they are."""
    path.write_bytes(b'1\n"a\r\nb\rc\nd"\n')
    with path.open() as file:
        assert read(csv_rows(file, header=False)) == [["1"], ["a\nb\nc\nd"]]
    with path.open(newline="") as file:
        assert read(csv_rows(file, header=False)) == read(csv_rows(path, header=False)) == [["1"], ["a\r\nb\rc\nd"]]
        source = csv_rows(file, header=False)
    with pytest.raises(InvalidStepError, match="was closed before it was read"):
        read(source)


def test_paths(path: Path) -> None:
    class PathLike:
        def __init__(self, path: Any) -> None:
            self.inner = path

        def __fspath__(self) -> Any:
            return self.inner

    found = [read(csv_rows(one)) for one in (path, str(path), bytes(path), PathLike("rows.csv"), PathLike(b"rows.csv"))]
    assert found == [[{"name": "local"}]] * 5


def test_a_bare_file_of_bytes(path: Path) -> None:
    with path.open("rb") as file, pytest.raises(InvalidStepError, match=r"'rows.csv' is not a text file on disk; pass"):
        read(opener("rows", file)().reader)


# -- Django's


def field_file(name: str | None, storage: Any) -> Any:
    from django.db.models.fields.files import FieldFile, FileField

    field = FileField(storage=storage)
    return FieldFile(None, field, name)  # type: ignore[arg-type]


def test_files_of_django_on_disk(path: Path) -> None:
    from django.core.files.storage import FileSystemStorage
    from django.core.files.uploadedfile import TemporaryUploadedFile

    storage = FileSystemStorage(location=".")
    file = field_file("rows.csv", storage)
    assert read(csv_rows(file)) == read(opener("rows", file)().reader) == [{"name": "local"}]
    with file.open():
        file.readline()
        assert read(lines(file)) == ["local"]
    with storage.open("rows.csv") as file:
        assert read(csv_rows(file)) == [{"name": "local"}]
    with TemporaryUploadedFile("rows.csv", "text/csv", 9, "utf-8") as upload:
        upload.write(b"name\nann\nbob\n")
        assert read(csv_rows(upload)) == ROWS


def test_files_of_django_that_are_not_on_disk(path: Path) -> None:
    from django.core.files.base import ContentFile, File
    from django.core.files.storage import InMemoryStorage, Storage
    from django.core.files.uploadedfile import SimpleUploadedFile

    class Remote(Storage):
        def _open(self, name: str, mode: str = "rb") -> Any:
            return File(io.BytesIO(b"name\nann\n"), name=name)

    memory = InMemoryStorage()
    memory.save("rows.csv", ContentFile("name\nann\n"))
    with Remote().open("rows.csv") as opened, memory.open("rows.csv") as kept:
        unsaved = field_file("rows.csv", None)
        unsaved.file = SimpleUploadedFile("rows.csv", b"name\nann\n")  # its path would be that of the saved one
        for file in (
            opened,
            kept,
            unsaved,
            SimpleUploadedFile("rows.csv", b"name\nann\n"),
            ContentFile("name\nann\n", name="rows.csv"),
        ):
            for make in (csv_rows, lines, json_lines):
                with pytest.raises(InvalidStepError, match="is in memory; pass a list"):
                    make(file)
    for file in (field_file("rows.csv", Remote()), field_file("rows.csv", memory), field_file(None, None)):
        for make in (csv_rows, lines, json_lines):
            with pytest.raises(InvalidStepError, match=r"has no local path .* generator function|is in memory; pass a"):
                make(file)
