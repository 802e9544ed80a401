"""Rows that a file's source cannot read: failed items within the error budget, else an error at their place."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import states
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_continuations import ErrorBudgetError
from celery_continuations.core.iteration import Iteration
from celery_continuations.core.run import Run
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.exceptions import Interrupt
from celery_continuations.sources import csv_rows, file_chunks, json_lines, lines, nested, opener, throttled
from tests.support.changing import Executions, Host


class Counting(Host):
    """A host for which each error affects an item alone."""

    def is_of_item(self, run: Run, step: Any, error: Exception) -> bool:
        return True


def run_all(make: Callable[[], Any], every: int, batch: int | None = None, budget: int = 10_000) -> tuple[Any, Any]:
    """Run a loop that is stopped after every few items; return what was done, and the failed items."""
    text, done = Snapshot().dumps(), []
    for _ in range(1000):
        host = Counting()
        run = Run("some-id", Snapshot.loads(text), host)
        loop = run.declare(Iteration(run, "rows", opener("rows", make(), batch), on_error=budget))
        try:
            for number, item in enumerate(loop, 1):
                done += item if batch else [item]
                if number % every == 0:
                    host.wish, run.attention = "stop", True
            run.finish()
            return done, loop.failed
        except Interrupt:
            run.snapshot.resumptions += 1
        text = run.take_snapshot().dumps()
    raise AssertionError("the loop does not end")


# -- the property: what a reader of each line finds


def lines_of(content: bytes, encoding: str) -> Iterator[tuple[str, bool]]:
    """Yield each line, with its end, and whether it has wrong bytes."""
    for line in content.splitlines(keepends=True):
        text = line.decode(encoding, "replace")
        yield text, "\N{REPLACEMENT CHARACTER}" in text


def expected_lines(content: bytes, encoding: str) -> list[Any]:
    return [None if wrong else line.rstrip("\r\n") for line, wrong in lines_of(content, encoding)]


def expected_values(content: bytes, encoding: str) -> list[Any]:
    found: list[Any] = []
    for line, wrong in lines_of(content, encoding):
        if line.strip():
            try:
                found.append(None if wrong else json.loads(line))
            except ValueError:
                found.append(None)
    return found


def expected_rows(content: bytes, encoding: str) -> list[Any]:
    """With csv's own reader, which begins a row again at the line after an error."""
    found, taken = [], []

    def fed() -> Iterator[str]:
        for line, wrong in lines_of(content, encoding):
            taken.append(wrong)
            yield line

    reader = csv.reader(fed(), strict=True)
    while True:
        taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return found
        except csv.Error:
            found.append(None)
        else:
            if any(taken):
                found.append(None)
            elif row:
                found.append(row)


KINDS: dict[str, tuple[Any, Any]] = {
    "lines": (lines, expected_lines),
    "CSV": (lambda *args: csv_rows(*args, header=False, strict=True), expected_rows),
    "JSON": (json_lines, expected_values),
}
ALPHABET = [b"a", b"1", b",", b'"', b"\r", b"\n", b"\r\n", b"\n", b"\xff", b"\xc3", b"\xc3\xb6", b"\x81", b"{", b" "]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(
    content=st.lists(st.sampled_from(ALPHABET), max_size=40).map(b"".join),
    encoding=st.sampled_from(["utf-8", "ascii", "cp1252", "shift_jis", "gb18030"]),
    chunk=st.sampled_from([1, 3, 8, 1 << 14]),
    every=st.integers(1, 5),
    batch=st.sampled_from([None, None, 1, 3]),
)
def test_each_row_is_done_or_failed(
    kind: str, content: bytes, encoding: str, chunk: int, every: int, batch: int | None
) -> None:
    make, expect = KINDS[kind]
    if encoding in ("shift_jis", "gb18030"):
        content = content.replace(b"\x81\n", b"\n").replace(b"\xff", b"").replace(b"\xc3", b"")
        content = content.replace(b"\x81", b"\x80\x81")  # which is wrong wherever it is
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(content)
        file.flush()
        patch.setattr(file_chunks, "CHUNK", chunk)
        expected = expect(content, encoding)
        done, failed = run_all(lambda: make(file.name, encoding), every, batch)
        assert done == [item for item in expected if item is not None]
        assert len(failed) == expected.count(None)
        before = expected[: expected.index(None)] if None in expected else expected
        assert up_to_error(make(file.name, encoding)) == (before, None in expected)


def up_to_error(source: Any) -> tuple[list[Any], bool]:
    """The items before the first that cannot be read, and whether there is one."""
    found: list[Any] = []
    try:
        found.extend(item for item, _ in source.read(None))
    except (csv.Error, ValueError):
        return found, True
    return found, False


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("chunk", [4, 1 << 14])
def test_wrong_bytes_where_characters_have_more_than_one(
    tmp_path: Path, encoding: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_chunks, "CHUNK", chunk)
    path = tmp_path / "rows"
    good = "eins\nzwei\n".encode(encoding)
    after = "drei\nvier\n".encode(encoding)[len("".encode(encoding)) :]
    wrong = (
        b"\xff" * 4
        if "32" in encoding
        else "\ud800".encode("utf-16-le" if encoding == "utf-16" else encoding, "surrogatepass")
    )
    end = "\n\n".encode(encoding)[len("\n".encode(encoding)) :]
    path.write_bytes(good + wrong + end + after)
    for batch in (None, 3):
        done, failed = run_all(lambda: lines(path, encoding), 1, batch)
        assert done == ["eins", "zwei", "drei", "vier"]
        assert [text[:40] for _, text in failed] == [f"ValueError: {path}"[:40]]


def test_the_places_of_failed_items(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n1\n{\n2\n{\n")
    _, failed = run_all(lambda: json_lines(path), 1)
    assert [0 if place is None else place[1] for place, _ in failed] == [0, 4, 8]
    assert f"ValueError: {path}: the line that begins at byte 4 is not JSON: '{{': Expecting property" in failed[1][1]


def test_the_field_limit_and_conversions(tmp_path: Path) -> None:
    """What csv refuses without a quote in sight."""
    path = tmp_path / "rows.csv"
    path.write_text("1\n" + "x" * csv.field_size_limit() + "x\n2\n")
    done, failed = run_all(lambda: csv_rows(path, header=False), 1)
    assert (done, len(failed)) == ([["1"], ["2"]], 1)
    path.write_text("1\nx\n2\n")
    done, failed = run_all(lambda: csv_rows(path, header=False, quoting=csv.QUOTE_NONNUMERIC), 1)
    assert (done, len(failed)) == ([[1.0], [2.0]], 1)
    assert "Error: " in failed[0][1]


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="from Python 3.11 on, csv reads NUL")
def test_a_null_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("1\na\0b\n2\n")
    done, failed = run_all(lambda: csv_rows(path, header=False), 1)
    assert (done, len(failed)) == ([["1"], ["2"]], 1)


def test_a_header_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a\xff\n1\n")
    with pytest.raises(ValueError, match="begins at byte 0 is not utf-8"):
        run_all(lambda: csv_rows(path), 1)


def test_a_json_line_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n" + "[" * 200_000 + "\n2\n")
    done, failed = run_all(lambda: json_lines(path), 1)
    assert (done, len(failed)) == ([1, 2], 1)


# -- within other sources


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("batch", [None, 2])
def test_within_other_sources(tmp_path: Path, every: int, batch: int | None) -> None:
    for name, content in (("outer", "1\n{\n2\n{\n{\n"), ("1", '"a"\n{\n"b"\n'), ("2", '{\n"c"\n{\n')):
        (tmp_path / name).write_text(content)

    def outer() -> Any:
        return json_lines(tmp_path / "outer")

    done, failed = run_all(lambda: throttled(outer(), lambda: False, 1), every, batch)
    assert (done, len(failed)) == ([1, 2], 3)
    done, failed = run_all(lambda: nested(outer(), lambda number: json_lines(tmp_path / str(number))), every, batch)
    assert done == [(1, "a"), (1, "b"), (2, "c")]
    assert len(failed) == 3 + 1 + 2
    done, failed = run_all(lambda: nested([1, 2], lambda number: json_lines(tmp_path / str(number))), every, batch)
    assert done == [(1, "a"), (1, "b"), (2, "c")]
    assert len(failed) == 1 + 2


# -- in a task


BAD = {"lines": b"\xff\n", "CSV": b'"bad"x\n', "JSON": b"{bad\n"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mended", [b'"m"\n', b'"' + b"m" * 9000 + b'"\n'])
@pytest.mark.parametrize("place", [0, 1, 3, 300, 2000, 3999])
def test_a_row_that_was_mended_can_be_tried_again(tmp_path: Path, kind: str, mended: bytes, place: int) -> None:
    """In place, also where the file's beginning changes; each row is done once."""
    path, make = tmp_path / "rows", KINDS[kind][0]
    rows = [f'"{number}"\n'.encode() for number in range(4000)]
    path.write_bytes(b"".join([*rows[:place], BAD[kind], *rows[place + 1 :]]))
    executions = Executions()
    done: list[Any] = []

    def body(task: Any) -> None:
        for item in task.iterate(make(path, "utf-8")):
            done.append(item)

    assert isinstance(executions.run(body), (csv.Error, ValueError))
    assert len(done) == place
    path.write_bytes(b"".join([*rows[:place], mended, *rows[place + 1 :]]))
    assert executions.run(body) is None
    assert len(done) == 4000


def test_an_error_budget_in_a_task(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id\n1\n\xff\n2\n\xff\n3\n\xff\n4\n")
    done: list[str] = []

    def body(self: Any) -> Any:
        rows = self.iterate("import", csv_rows(path), on_error=2)
        for row in rows:
            done.append(row["id"])
            if row["id"] == "2":
                worker.stop()
        return [text for _, text in rows.failed]

    result = task(body).apply_async()
    worker.drain()
    assert (result.state, done) == (states.FAILURE, ["1", "2", "3"])
    assert isinstance(result.result, ErrorBudgetError)
    assert "on_error=2 allows; the last one" in str(result.result)
    path.write_bytes(b"id\n1\n\xff\n2\n\xff\n3\n3.5\n4\n")
    result.retry()
    worker.drain()
    assert (result.state, done) == (states.SUCCESS, ["1", "2", "3", "3.5", "4"])
    assert len(result.get()) == 2


def test_without_a_budget_the_error_is_that_of_the_parser(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('1\n"2"x\n')

    def body(self: Any) -> Any:
        try:
            for _ in self.iterate("import", csv_rows(path, header=False, strict=True)):
                pass
        except csv.Error as exc:
            return str(exc)

    result = task(body).apply_async()
    worker.drain()
    assert result.get() == f"""{path}: the row that begins at byte 2 cannot be read: ',' expected after '"'"""
