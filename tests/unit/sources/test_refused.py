"""What is not a source is refused where the loop is declared, with what to write instead."""

from __future__ import annotations

import asyncio
import codecs
import configparser
import http.client
import io
import mmap
import queue
import re
import sqlite3
import tempfile
import zipfile
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from celery_continuations import InvalidStepError
from celery_continuations.sources import base, keyed, nested, opener, opening, register


def of_class(module: str, name: str, **members: Any) -> Any:
    """Return an object of a class like another package's, which is iterable, and whose iterator is empty."""
    members = {"__iter__": lambda self: iter(()), "__len__": lambda self: 0, **members}
    return type(name, (), {"__module__": module, "__qualname__": name, **members})()


def refused(value: Any, problem: str) -> None:
    """It is refused itself, by subclasses' names, and as the result of a function, alone and within others."""
    with pytest.raises(InvalidStepError, match=rf"step 'loop' cannot iterate over an? .*{problem}") as error:
        opener("loop", value)
    assert ";" in str(error.value), "it says what to write"
    with pytest.raises(InvalidStepError, match=problem):
        opener("loop", lambda: value)()
    with pytest.raises(InvalidStepError, match=problem):
        list(opener("loop", nested([1], lambda one: value))().reader.read(None))


FOREIGN = [
    ("pandas.core.frame", "DataFrame", r"frame\.itertuples\(\)"),
    ("pandas", "DataFrame", r"frame\.itertuples\(\)"),
    ("pandas.core.series", "Series", r"tolist\(\)"),
    ("pandas", "Series", r"tolist\(\)"),
    ("pandas.core.indexes.base", "Index", r"tolist\(\)"),
    ("pandas.io.parsers.readers", "TextFileReader", r"csv_rows\(path\) with batch="),
    ("modin.pandas.dataframe", "DataFrame", r"frame\.itertuples\(\)"),
    ("polars.dataframe.frame", "DataFrame", r"frame\.rows\(named=True\)"),
    ("polars.lazyframe.frame", "LazyFrame", r"frame\.collect\(\)"),
    ("polars.series.series", "Series", r"to_list\(\)"),
    ("pyarrow.lib", "Table", r"to_pylist\(\)"),
    ("pyarrow.lib", "ChunkedArray", r"to_pylist\(\)"),
    ("pyarrow.lib", "RecordBatchReader", r"batch\.to_pylist\(\)"),
    ("pyarrow.parquet.core", "ParquetFile", r"batch\.to_pylist\(\)"),
    ("dask.dataframe.core", "DataFrame", r"csv_rows\(path\)"),
    ("dask.dataframe.dask_expr._collection", "DataFrame", r"csv_rows\(path\)"),
    ("dask.bag.core", "Bag", r"csv_rows\(path\)"),
    ("pyspark.sql.dataframe", "DataFrame", r"csv_rows\(path\)"),
    ("requests.models", "Response", r"requests\.get\(url\)\.json\(\)"),
    ("httpx", "Response", r"pages\(function\)"),
    ("httpx._models", "Response", r"pages\(function\)"),
    ("aiohttp.client_reqrep", "ClientResponse", r"pages\(function\)"),
    ("botocore.response", "StreamingBody", r"download it, and iterate over csv_rows\(path\)"),
    ("sqlalchemy.ext.asyncio.session", "AsyncSession", r"select_rows\(session, select\)"),
    ("sqlalchemy.ext.asyncio.scoping", "async_scoped_session", r"select_rows\(session, select\)"),
]


@pytest.mark.parametrize("has_read", [False, True])
@pytest.mark.parametrize(("module", "name", "advice"), FOREIGN)
def test_classes_of_other_packages(module: str, name: str, advice: str, has_read: bool) -> None:
    value = of_class(module, name, **({"read": lambda self, size=None: []} if has_read else {}))
    refused(value, advice)
    refused(type("Own", (type(value),), {})(), advice)
    with pytest.raises(InvalidStepError, match=advice):
        keyed(value, key="id")


def test_a_class_of_that_name_of_ones_own() -> None:
    assert list(opening(of_class("shop.models", "DataFrame"))().read(None)) == []


def test_one_that_is_registered_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_makers", dict(base._makers))
    frame = of_class("pandas.core.frame", "DataFrame")
    register("pandas.core.frame.DataFrame", lambda frame: opening([1, 2])())
    assert [item for item, _ in opening(frame)().read(None)] == [1, 2]


def test_real_ones(tmp_path: Path) -> None:
    refused(requests.Response(), r"requests\.get\(url\)")
    refused(urllib3.HTTPResponse(io.BytesIO(b"a")), r"requests\.get\(url\)")
    refused(AsyncSession(), r"select_rows\(session, select\)")
    refused(http.client.HTTPResponse.__new__(http.client.HTTPResponse), r"requests\.get\(url\)")
    path = tmp_path / "file"
    path.write_text("a\nb\n")
    with path.open("rb") as raw:
        refused(codecs.getreader("utf-8")(raw), r"lines\(path, encoding\)")
    with codecs.open(str(path), encoding="utf-8") as file, pytest.raises(InvalidStepError, match="StreamReaderWriter"):
        opener("loop", file)()
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        refused(mapped, r"lines\(path, encoding\)")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one", "a")
    with sqlite3.connect(tmp_path / "db") as connection:
        refused(connection.execute("SELECT 1"), r"keyed_pages\(fetch, key=...\) with the SQL in fetch")
    connection.close()
    engine = sa.create_engine("sqlite://")
    raw_connection = engine.raw_connection()
    refused(raw_connection.cursor(), r"keyed_pages\(fetch, key=...\)")
    raw_connection.close()
    refused(queue.Queue(), "send a task for each item")
    refused(asyncio.Queue(), "send a task for each item")


async def coroutine() -> list[int]:
    return [1]


async def numbers() -> Any:
    yield 1


class Async:
    """An asynchronous iterable, also with the methods of a source."""

    def __aiter__(self) -> Any:
        return self

    def read(self, cursor: Any) -> Any:
        return iter(())


class AsyncRead:
    async def read(self, cursor: Any) -> Any:
        return iter(())


def test_asynchronous_ones() -> None:
    made = coroutine()
    for value in (made, coroutine, numbers, numbers(), Async()):
        with pytest.raises(InvalidStepError, match="it is asynchronous; pass a synchronous iterable"):
            opener("loop", value)
    made.close()
    with pytest.raises(InvalidStepError, match=r"its read\(\) does not take a cursor"):
        opener("loop", AsyncRead())


# -- what has a method read


class Stream:
    """Like a file, in what it has."""

    def __init__(self, *has: str) -> None:
        for name in has:
            setattr(self, name, lambda *args: self)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def read(self, cursor: Any) -> Any:
        return ""


class Sized:
    """Like a file that has nothing else."""

    def read(self, size: int = -1) -> str:
        return ""


class WithoutArgument:
    def read(self) -> str:
        return ""


@given(st.sets(st.sampled_from(["readline", "readlines", "readinto", "readable", "seek", "tell"]), min_size=1))
def test_streams_are_not_sources(has: set[str]) -> None:
    refused(Stream(*has), "or over a generator function that opens and reads it")


class Topic:
    """A source, with methods that streams, cursors and queues have as well."""

    def __getattr__(self, name: str) -> Any:
        if name in ("seek", "tell", "fetchone", "fetchmany", "get", "put", "__next__"):
            return lambda *args: None
        raise AttributeError(name)

    def read(self, cursor: Any) -> Iterator[Any]:
        yield "a", 1


def test_a_generator_function_is_a_sources_whatever_else_its_object_has() -> None:
    assert [item for item, _ in opener("loop", Topic())().reader.resume(None, None, None)] == ["a"]


class Cache(list):  # type: ignore[type-arg]
    """An iterable with two methods of a queue."""

    def get(self) -> None: ...
    def put(self) -> None: ...


def test_an_iterable_with_methods_of_a_queue() -> None:
    assert [item for item, _ in opener("loop", Cache([1, 2]))().reader.read(None)] == [1, 2]


def test_other_methods_of_that_name() -> None:
    for value in (Sized(), WithoutArgument()):
        with pytest.raises(InvalidStepError, match=r"its read\(\) does not take a cursor; a source has a method read"):
            opener("loop", value)


def test_mappings_with_a_method_read_are_read_by_position() -> None:
    config = configparser.ConfigParser()
    config.read_string("[a]\n[b]\n")
    assert [item for item, _ in opening(config)().read(None)] == ["DEFAULT", "a", "b"]


class Any1:
    def __init__(self, found: Any) -> None:
        self.found = found

    def read(self, cursor: Any = None) -> Any:
        return self.found


@pytest.mark.parametrize(
    "found",
    ["", b"", bytearray(), None, 5, {}, set(), numbers, of_class("pandas", "DataFrame"), Async()],
    ids=lambda found: type(found).__name__,
)
def test_a_read_that_returns_no_pairs(found: Any) -> None:
    make = opener("loop", Any1(found))
    with pytest.raises(InvalidStepError, match=r"whose read\(cursor\) has returned an? .*; write it as a generator"):
        make().reader.resume(None, None, None)


@pytest.mark.parametrize("found", [[], (), iter(()), map(int, ()), [("a", 1)]], ids=lambda found: type(found).__name__)
def test_a_read_that_returns_pairs(found: Any) -> None:
    expected = ["a"] if found else []
    if isinstance(found, (list, tuple)):
        assert [item for item, _ in opener("loop", Any1(found))().reader.resume(None, None, None)] == expected
    else:
        assert list(opener("loop", Any1(found))().reader.resume(None, None, None)) == []


def test_a_source_whose_cursor_has_a_default_or_another_name() -> None:
    class Named:
        def read(self, after: Any = None, *, chunk: int = 5) -> Any:
            yield "a", 1

    class Any2:
        def read(self, *args: Any, **options: Any) -> Any:
            yield "b", 1

    assert [item for item, _ in opener("loop", Named())().reader.resume(None, None, None)] == ["a"]
    assert [item for item, _ in opener("loop", Any2())().reader.resume(None, None, None)] == ["b"]


def test_files_without_a_path() -> None:
    with tempfile.SpooledTemporaryFile() as spooled:
        for file in (spooled, io.StringIO("a"), io.BytesIO(b"a")):
            with pytest.raises(InvalidStepError, match=r"lines\(path"):
                opener("loop", file)()


# -- iterables


def rows() -> Iterator[int]:
    yield from range(3)


def test_generators_that_have_been_read_from() -> None:
    begun, over = rows(), rows()
    next(begun)
    list(over)
    for generator in (begun, over):
        with pytest.raises(InvalidStepError, match=r"cannot iterate over a generator: it has been read from.*islice"):
            opener("loop", generator)()
    assert [item for item, _ in opening(lambda: islice(rows(), 1, None))().read(None)] == [1, 2]


class Array:
    """Like an array of numpy."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return Array(*self.shape[1:])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def test_arrays() -> None:
    with pytest.raises(InvalidStepError, match="an array without a dimension has no items"):
        opener("loop", Array())
    for shape in ((3,), (3, 2)):
        assert len(list(opener("loop", Array(*shape))().reader.read(None))) == 3


@pytest.mark.parametrize(
    "text", ["abc", b"abc", bytearray(b"abc"), memoryview(b"abc")], ids=lambda text: type(text).__name__
)
def test_strings_and_bytes(text: Any) -> None:
    refused(text, "a string is iterated character by character")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": 2}, ["b", "a"]),
        (OrderedDict(b=1), ["b"]),
        ({"a": 1}.items(), [("a", 1)]),
        (array("i", [1, 2]), [1, 2]),
        (deque([1, 2]), [1, 2]),
        (map(str, [1]), ["1"]),
        (re.finditer("a", "a"), None),
        (lambda: rows(), [0, 1, 2]),
        (rows, [0, 1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_read_by_position(value: Any, expected: list[Any] | None) -> None:
    found = [item for item, _ in opener("loop", value)().reader.read(None)]
    assert expected is None or found == expected
