"""Files, read from any place on."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_continuations import InvalidStepError
from celery_continuations.core import codec
from celery_continuations.sources import csv_rows, file_chunks, json_lines, lines

ENCODINGS = ["utf-8", "latin-1", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "shift_jis", "cp037"]
TEXT = st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=12)


def file_of(content: bytes) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - for the caller to close
    file.write(content)
    file.flush()
    return file


def read(source: Any, cursor: Any = None) -> list[Any]:
    return [item for item, _ in source.read(cursor)]


def resumes_everywhere(source: Any, expected: list[Any]) -> None:
    """From the cursor after each item the rest is read, and nothing else; also when it was saved meanwhile."""
    pairs = list(source.read(None))
    assert [item for item, _ in pairs] == expected
    for place, (_, cursor) in enumerate(pairs, 1):
        assert list(source.read(codec.loads(codec.dumps(cursor)))) == pairs[place:]


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from(ENCODINGS))
def test_lines_resume_at_every_position(texts: list[str], end: str, ends: bool, encoding: str) -> None:
    content = end.join(texts) + (end if ends and texts else "")
    expected = content.replace("\r\n", "\n").split("\n")
    if expected[-1] == "":
        expected.pop()
    with file_of(content.encode(encoding)) as file:
        resumes_everywhere(lines(file, encoding), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6), min_size=2, max_size=2),
        max_size=8,
    ),
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_csv_rows_resume_at_every_position(rows: list[list[str]], encoding: str) -> None:
    """Without NUL, which Python's csv takes from 3.11 on."""
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["one", "two"], *rows])
    with file_of(written.getvalue().encode(encoding)) as file:
        resumes_everywhere(csv_rows(file, encoding, header=False), [["one", "two"], *rows])
        resumes_everywhere(csv_rows(file, encoding), [{"one": one, "two": two} for one, two in rows])


@settings(max_examples=400, deadline=None)
@given(
    st.text(st.sampled_from('ab,"\n\\ ö'), max_size=60),
    st.integers(1, 30),
    st.sampled_from(["utf-8", "utf-16"]),
    st.sampled_from([{}, {"escapechar": "\\"}, {"strict": True}, {"quoting": csv.QUOTE_NONE}, {"delimiter": " "}]),
)
def test_csv_rows_are_those_of_the_standard_library(text: str, chunk: int, encoding: str, options: Any) -> None:
    def outcome(rows: Any) -> Any:
        found: list[Any] = []
        try:
            found.extend(rows)
        except csv.Error as exc:
            return found, str(exc)
        return found, None

    def reading() -> Any:
        return io.StringIO(text, newline="\n")

    rows, problem = outcome(csv.reader(reading(), **options))
    rows = [row for row in rows if row]
    named = outcome(csv.DictReader(io.StringIO(text.lstrip("\n"), newline="\n"), **options))  # names come first
    with file_of(text.encode(encoding)) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_chunks, "CHUNK", chunk)
        plain, dicts = (csv_rows(file, encoding, header=header, **options) for header in (False, True))
        assert outcome(row for row, _ in plain.read(None)) == (rows, problem)
        if problem is None:
            resumes_everywhere(plain, rows)
            resumes_everywhere(dicts, named[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(), TEXT, st.dictionaries(TEXT, st.integers(), max_size=2)), max_size=8))
def test_json_lines_resume_at_every_position(values: list[Any]) -> None:
    content = "".join(json.dumps(value) + "\n\n" for value in values)
    with file_of(content.encode()) as file:
        resumes_everywhere(json_lines(file), values)


@pytest.mark.parametrize("order", ["le", "be"])
def test_either_order_of_bytes_with_a_mark(tmp_path: Path, order: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes("\ufeffone\ntwo\n\nthree\nfo".encode(f"utf-16-{order}"))
    resumes_everywhere(lines(path, "utf-16"), ["one", "two", "", "three", "fo"])


def test_a_quoted_carriage_return(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b'1,"a\rb\nc\r\nd"\n2,"\r"\n')
    resumes_everywhere(csv_rows(path, header=False), [["1", "a\rb\nc\r\nd"], ["2", "\r"]])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso2022_jp"])
def test_progress_is_in_bytes(tmp_path: Path, encoding: str) -> None:
    """Also where a cursor has more in it than an offset, and where the file has grown since it was opened."""
    path = tmp_path / "rows"
    text = "あ\n" if encoding == "iso2022_jp" else "one\n"
    path.write_text(f"{text}two\n", encoding=encoding)
    size, source = path.stat().st_size, lines(path, encoding)
    pairs = source.read(None)
    cursors = [next(pairs)[1] for _ in range(2)]
    assert source.progress(None) == (0, size)
    assert source.progress(cursors[0]) == (len(text.encode(encoding)), size)
    assert source.progress(cursors[1]) == (size, size)
    with path.open("ab") as file:
        file.write(b"\n\0" if encoding == "utf-16" else b"\n")
    grown = path.stat().st_size
    assert source.progress(next(pairs)[1]) == (grown, grown)


def test_a_file_larger_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_text("".join(f"{number},{'x' * 50}\n" for number in range(5000)))
    pairs = list(csv_rows(path, header=False).read(None))
    assert [int(row[0]) for row, _ in pairs] == list(range(5000))
    for place in (1, 1234, 4998):
        assert read(lines(path), pairs[place][1])[0].startswith(f"{place + 1},")


def test_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    first, second = lines(path).read(None)
    with path.open("a") as file:
        file.write("three\n")
    assert read(lines(path), second[1]) == ["three"]
    assert next(lines(path).read(first[1])) == second  # with the same cursor, of which keys of idempotency are made


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "shift_jis", "cp037"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_that_was_still_being_written(tmp_path: Path, encoding: str, end: str) -> None:
    """What was half of a line is not taken for a line, when the other half is there."""
    path = tmp_path / "log"
    before, after = f"a\nb\ntw{end}", f"{end}o\nthree\n"
    path.write_bytes(before.encode(encoding))
    pairs = lines(path, encoding).read(None)
    assert [next(pairs)[0] for _ in "ab"] == ["a", "b"]
    item, cursor = next(pairs)
    assert item == "tw"
    path.write_bytes((before + after).encode(encoding))
    if end:
        assert read(lines(path, encoding), cursor) == ["", "o", "three"]
    else:
        with pytest.raises(InvalidStepError, match=r"the line that ended at byte [\d,]+ has grown since it was read"):
            read(lines(path, encoding), cursor)


def test_a_line_that_is_ended_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntw")
    pairs = lines(path).read(None)
    found = [next(pairs)[0], next(pairs)[0]]
    with path.open("a") as file:
        file.write("o\n")
    assert [*found, *(line for line, _ in pairs)] == ["one", "tw"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_costs_no_time(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(file_chunks, "_decoded_chunks")
    path = tmp_path / "rows.csv"
    path.write_text("id\n1\n2\n", encoding=encoding)
    resumes_everywhere(csv_rows(path, "UTF_8-SIG"), [{"id": "1"}, {"id": "2"}])
    assert "\ufeff" not in read(lines(path, "utf-8-sig"))[0]


@pytest.mark.parametrize("encoding", ["utf-9", "rot13", "", None, 8])
def test_an_encoding_that_is_none(tmp_path: Path, encoding: Any) -> None:
    with pytest.raises(InvalidStepError, match=r"rows cannot be read: unknown encoding"):
        lines(tmp_path / "rows", encoding)


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.BZ2", "rows.jsonl.xz", "rows.zip"])
def test_a_compressed_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidStepError, match="is compressed, and cannot be read from a place within: decompress"):
        csv_rows(tmp_path / name)


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\n")
    ((_, cursor),) = islice(lines(path).read(None), 1)
    path.write_text("uno\ndos\ntres\n")
    with pytest.raises(InvalidStepError, match="was replaced: its beginning differs"):
        lines(path).read(cursor)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_that_was_replaced_by_one_with_the_same_beginning(tmp_path: Path, encoding: str) -> None:
    """As a table that is exported again each night: rows of one length, one of which is gone."""
    path = tmp_path / "rows.csv"
    rows = [f"{number:05},some text that makes it longer" for number in range(3000)]
    path.write_text("\n".join(rows), encoding=encoding)
    pairs = list(lines(path, encoding).read(None))
    cursors = [cursor for _, cursor in pairs]
    path.write_text("\n".join(rows[:200] + rows[201:]), encoding=encoding)
    assert read(lines(path, encoding), cursors[99])[0] == rows[100]
    for place in (1500, 2900):
        with pytest.raises(InvalidStepError, match=r"was replaced: the bytes before byte [\d,]+ differ"):
            lines(path, encoding).read(cursors[place])


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("x" * 5000 + "\nthe end\n")
    *_, (_, cursor) = lines(path).read(None)
    path.write_text("x" * 5000 + "\n")
    with pytest.raises(InvalidStepError, match="was truncated: it ends before byte 5,009"):
        lines(path).read(cursor)


@pytest.mark.parametrize("cursor", [7, "x", (1, 2), ((1, "a"), "b"), []])
def test_invalid_positions_in_a_file_are_refused(tmp_path: Path, cursor: Any) -> None:
    path = tmp_path / "rows"
    path.write_text("one\n")
    with pytest.raises(InvalidStepError):
        lines(path).read(cursor)


def test_a_line_that_is_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"the line that begins at byte 4 is not utf-8: .* as in lines\(path, enc"):
        read(lines(path))


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("1\n{\n")
    with pytest.raises(ValueError, match="has a line that is not JSON: '{"):
        read(json_lines(path))


def test_what_has_no_path() -> None:
    with pytest.raises(InvalidStepError, match="has no path"):
        lines(io.StringIO("text"))


def test_an_open_file_and_one_with_a_path(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("one\n")

    class FieldFile:
        def __init__(self) -> None:
            self.path, self.name = str(path), "rows"

    with path.open() as file:
        assert read(lines(file)) == read(lines(FieldFile())) == ["one"]


def test_a_task_resumes_in_a_file(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id\n" + "".join(f"{number}\n" for number in range(6)))
    done: list[str] = []

    def body(self: Any) -> None:
        for rows in self.iterate("import", csv_rows(path), batch=2):
            done.extend(row["id"] for row in rows)
            if len(done) == 4:
                worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert (result.state, done) == ("SUCCESS", [str(number) for number in range(6)])
    assert len(worker.deliveries) == 2
