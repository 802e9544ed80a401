"""What is not a source, and what to write instead.

Classes are recognised by their packages and names, or by their methods: none of these packages is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, ItemsView, KeysView, Mapping, Set
from functools import lru_cache
from types import GeneratorType
from typing import Any, NoReturn

from celery_continuations.exceptions import InvalidStepError
from celery_continuations.sources.positions import Positions
from celery_continuations.sources.reading import BaseReader

__all__ = [
    "Refusal",
    "advice_for",
    "is_async",
    "is_source",
    "named",
    "problem_of_generator",
    "problem_with",
    "problem_with_pairs",
    "refusal_of",
]

_FRAME = (
    "a DataFrame yields the names of its columns; iterate over frame.itertuples(), or over "
    "keyed(frame.to_dict('records'), key=...)"
)
_SERIES = "its values are not plain ones; iterate over the list that its tolist() returns"
_ARROW = "it yields columns, or values of its own class; iterate over the list that its to_pylist() returns"
_BATCHES = (
    "it hands out each batch of rows once; iterate over a generator function that opens it and yields "
    "from batch.to_pylist() of each batch"
)
_LAZY = (
    "it is computed when it is read, and may have other rows in another order then; write it to a file, and iterate "
    "over csv_rows(path) or json_lines(path)"
)
_RESPONSE = (
    "a response can be read once; iterate over a function that sends the request and returns the rows, such as "
    "lambda: requests.get(url).json(), or over pages(function)"
)
_BODY = (
    "it can be read once, and in chunks of bytes; download it, and iterate over csv_rows(path), json_lines(path) or "
    "lines(path), or over a generator function that requests and reads it"
)
_DECODED = (
    "places in it cannot be found; iterate over lines(path, encoding), csv_rows(path, encoding) or json_lines(path)"
)
_ASYNC = "it is asynchronous; pass a synchronous iterable, for instance the queryset itself"
_ASYNC_SESSION = "it is asynchronous; iterate over select_rows(session, select) with a Session, which reads by key"

#: By the package and the name of a class: its advice.
_ADVICE: dict[str, dict[str, str]] = {
    "pandas": {
        "DataFrame": _FRAME,
        "Series": _SERIES,
        "Index": _SERIES,
        "TextFileReader": (
            "it hands out each chunk of the file once; iterate over csv_rows(path) with batch=, or over a generator "
            "function that opens it and yields from chunk.itertuples() of each chunk"
        ),
    },
    "modin": {"DataFrame": _FRAME, "Series": _SERIES},
    "cudf": {"DataFrame": _FRAME, "Series": _ARROW},
    "polars": {
        "DataFrame": "a DataFrame yields its columns; iterate over frame.rows(named=True)",
        "LazyFrame": "a LazyFrame has no rows before it is collected; iterate over frame.collect().rows(named=True)",
        "Series": "it is a column of a DataFrame; iterate over the list that its to_list() returns",
    },
    "pyarrow": {
        **dict.fromkeys(("Table", "RecordBatch", "Array", "ChunkedArray"), _ARROW),
        **dict.fromkeys(("RecordBatchReader", "ParquetFile", "Dataset", "Scanner"), _BATCHES),
    },
    "dask": dict.fromkeys(("DataFrame", "Series", "Index", "FrameBase", "Bag", "Array", "Delayed"), _LAZY),
    "dask_expr": dict.fromkeys(("DataFrame", "Series", "Index", "FrameBase"), _LAZY),
    "pyspark": {"DataFrame": _LAZY, "RDD": _LAZY},
    "requests": {"Response": _RESPONSE},
    "httpx": {"Response": _RESPONSE},
    "aiohttp": {"ClientResponse": _RESPONSE, "StreamReader": _RESPONSE},
    "urllib3": {"HTTPResponse": _RESPONSE, "BaseHTTPResponse": _RESPONSE},
    "http": {"HTTPResponse": _RESPONSE},
    "botocore": {"StreamingBody": _BODY},
    "codecs": dict.fromkeys(("StreamReader", "StreamRecoder"), _DECODED),
    "sqlalchemy": {"AsyncSession": _ASYNC_SESSION, "async_scoped_session": _ASYNC_SESSION},
}


class Refusal:
    """Registered for a class whose objects are not sources; see :func:`celery_continuations.sources.register`.

    Args:
        advice: what to write instead.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __call__(self, value: Any) -> NoReturn:
        """Refuse a value."""
        raise InvalidStepError(f"cannot iterate over {named(value)}: {self.advice}")


def named(value: Any) -> str:
    """Return the name of an object's class with its article.

    >>> named(3), named(object())
    ('an int', 'an object')
    """
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def advice_for(kind: type) -> Refusal | None:
    """Return the refusal of a class of another package."""
    advice = _ADVICE.get(str(kind.__module__).partition(".")[0], {}).get(kind.__qualname__)
    return None if advice is None else Refusal(advice)


def refusal_of(value: Any) -> Refusal | None:
    """Return the refusal of an object of a class of another package, or of a subclass of one."""
    return next(filter(None, map(advice_for, type(value).__mro__)), None)


def problem_with(value: Any) -> str | None:
    """Return why a value cannot be iterated, and what to write instead; None if it can."""
    problem = _of_strings(value) or _of_async(value)
    if problem is not None or is_source(value):
        return problem
    return _of_methods(value) or _of_iterables(value)


def problem_with_pairs(value: Any) -> str | None:
    """Return why the value of a source's ``read`` is not an iterable of pairs, or None."""
    is_wrong = isinstance(value, (str, bytes, bytearray, Mapping, Set)) or not hasattr(value, "__iter__")
    if not (is_wrong or refusal_of(value) or hasattr(value, "__aiter__")):
        return None
    return (
        f"has a source whose read(cursor) has returned {named(value)}, {value!r:.80}; write it as a generator that "
        "yields (item, cursor after it)"
    )


def problem_of_generator(value: Any) -> str | None:
    """Return what is wrong with a generator that has been read from, or None."""
    if not isinstance(value, GeneratorType) or inspect.getgeneratorstate(value) == inspect.GEN_CREATED:
        return None
    return (
        "it has been read from before this loop, and would be read from another place in another execution; pass a "
        "function that makes it, such as lambda: islice(rows(), 1, None)"
    )


def is_async(value: Any) -> bool:
    """Return whether a value is an asynchronous iterable, a coroutine, or a function that makes one."""
    is_function = inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value)
    return is_function or hasattr(value, "__aiter__") or hasattr(value, "__await__")


def is_source(value: Any) -> bool:
    """Return whether an object has the method ``read(cursor)`` of a source.

    Files and streams have a method of this name, whose argument is a size; iterators have their own place.  A generator
    function of one argument is always taken for a source's.
    """
    if isinstance(value, (BaseReader, Positions)):
        return True
    read = getattr(value, "read", None)
    if not callable(read) or isinstance(value, type):
        return False
    if not inspect.isgeneratorfunction(read) and (isinstance(value, Mapping) or _is_stream(value)):
        return False
    function = getattr(read, "__func__", None)
    return _takes_cursor(read) if function is None else _takes_cursor_after_self(function)


def _is_stream(value: Any) -> bool:
    return hasattr(value, "__next__") or any(hasattr(value, name) for name in _OF_STREAMS)


_OF_STREAMS = ("readline", "readlines", "readinto", "readable", "seek", "tell")


@lru_cache(maxsize=1024)
def _takes_cursor_after_self(function: Callable[..., Any]) -> bool:
    return _takes_cursor(function, None)


def _takes_cursor(read: Callable[..., Any], *bound: None) -> bool:
    if inspect.iscoroutinefunction(read) or inspect.isasyncgenfunction(read):
        return False
    try:
        signature = inspect.signature(read)
    except ValueError:
        return True  # of a compiled class: it has no signature
    try:
        signature.bind(*bound, None)
    except TypeError:
        return False
    cursor = list(signature.parameters.values())[len(bound) :][:1]
    return not any(isinstance(one.default, int) for one in cursor)  # a size, with a number as its default


def _of_strings(value: Any) -> str | None:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return "a string is iterated character by character, which is rarely intended; pass list(...) of it if it is"
    return None


def _of_async(value: Any) -> str | None:
    return _ASYNC if is_async(value) else None


def _of_methods(value: Any) -> str | None:
    if hasattr(value, "fetchone") and hasattr(value, "fetchmany"):
        return (
            "a cursor has the result of a query, which may differ each time it runs; iterate over "
            "keyed_pages(fetch, key=...) with the SQL in fetch, or over cursor.fetchall(), whose last row done is "
            "compared"
        )
    if hasattr(value, "get") and hasattr(value, "put") and not hasattr(value, "__iter__"):
        return "a queue hands out each item once; send a task for each item instead, or iterate over a list of them"
    if callable(getattr(value, "read", None)) and _is_stream(value):
        return f"{_DECODED}; or over a generator function that opens and reads it, from its beginning in each execution"
    return None


def _of_iterables(value: Any) -> str | None:
    if isinstance(value, Set) and not isinstance(value, (KeysView, ItemsView)):
        return "a set has no order to resume in; pass sorted(...) of it"
    if getattr(value, "shape", None) == ():
        return "an array without a dimension has no items"
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        if hasattr(value, "read"):
            return "it is not iterable, and its read() does not take a cursor; a source has a method read(cursor)"
        return "it is not iterable"
    return None
