"""Files, read from any place on."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_continuations import InvalidStepError
from celery_continuations.core import codec
from celery_continuations.core.reader import SourceChanged
from celery_continuations.sources import csv_rows, file_chunks, json_lines, lines
from celery_continuations.sources.file_marks import mark_of
from tests.support.changing import Executions

TEXT = st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=12)
ENCODINGS = [
    *("utf-8", "utf-8-sig", "latin-1", "cp1252", "cp437", "ascii", "cp037"),
    *("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"),
    *("shift_jis", "cp932", "euc_jp", "iso2022_jp", "gb18030", "hz", "big5"),
]
CHUNKS = st.sampled_from([1, 2, 3, 5, 7, 16, 33, 1 << 14])
CSV_OPTIONS: list[Any] = [
    *({}, {"escapechar": "\\"}, {"strict": True}, {"quoting": csv.QUOTE_NONE}, {"delimiter": " "}),
    *({"quotechar": "'"}, {"quoting": csv.QUOTE_NONNUMERIC}, {"doublequote": False, "escapechar": "\\"}),
]


@st.composite
def texts(draw: Any, alphabet: str = "ab ,\"\n\r\x0b\x85\u2028\0öß日語😀\ufeff\\'") -> tuple[str, str]:
    """A text with line ends, quotes and more, and an encoding that has its characters."""
    encoding = draw(st.sampled_from(ENCODINGS))
    able = [letter for letter in alphabet if _has(encoding, letter) and (letter != "\0" or sys.version_info >= (3, 11))]
    ends = st.sampled_from(["\r\n", "\r", "\n", '"', "\n"])
    return draw(st.lists(st.one_of(st.sampled_from(able), ends), max_size=60).map("".join)), encoding


def _has(encoding: str, letter: str) -> bool:
    try:
        return letter.encode(encoding).decode(encoding) == letter
    except UnicodeError:
        return False


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_chunks, "CHUNK", size)
        yield


def opened(path: Any, encoding: str, newline: str | None = None) -> Any:
    return open(path, encoding=encoding, newline=newline)


def outcome(rows: Any) -> tuple[list[Any], str | None]:
    """The rows, and the class of the error that comes after them."""
    found: list[Any] = []
    try:
        found.extend(row for row in rows if row)
    except (csv.Error, ValueError) as exc:
        return found, "csv" if isinstance(exc, csv.Error) else "value"
    return found, None


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
    done = 0
    for place, (_, cursor) in enumerate(pairs, 1):
        assert list(source.read(codec.loads(codec.dumps(cursor)))) == pairs[place:]
        before, (done, size) = done, source.progress(cursor)
        assert before <= done <= size
    if pairs and source.kind == "bytes of lines":
        assert size - done <= 3  # bytes that change a decoder's state follow the last line


@settings(max_examples=500, deadline=None)
@given(texts(), CHUNKS)
def test_lines_are_those_of_text_mode(text: tuple[str, str], chunk: int) -> None:
    content, encoding = text
    with file_of(content.encode(encoding)) as file, chunks_of(chunk):
        with opened(file.name, encoding) as plain:
            expected = [line.removesuffix("\n") for line in plain]
        resumes_everywhere(lines(file.name, encoding), expected)


@settings(max_examples=700, deadline=None)
@given(texts(), CHUNKS, st.sampled_from(CSV_OPTIONS))
def test_csv_rows_are_those_of_the_standard_library(text: tuple[str, str], chunk: int, options: Any) -> None:
    content, encoding = text
    with file_of(content.encode(encoding)) as file, chunks_of(chunk):
        with opened(file.name, encoding, "") as plain:
            rows, problem = outcome(csv.reader(plain, **options))
        source = csv_rows(file.name, encoding, header=False, **options)
        assert outcome(read_one_by_one(source)) == (rows, problem)
        if problem is None:
            resumes_everywhere(source, rows)
            names = [f"column {number}" for number in range(2)]
            with opened(file.name, encoding, "") as plain:
                expected = list(csv.DictReader(plain, names, **options))
            resumes_everywhere(csv_rows(file.name, encoding, fieldnames=names, **options), expected)


def read_one_by_one(source: Any) -> Iterator[Any]:
    return (item for item, _ in source.read(None))


@settings(max_examples=400, deadline=None)
@given(texts('ab,"\n\r ö'), CHUNKS)
def test_csv_rows_with_a_header_are_those_of_the_standard_library(text: tuple[str, str], chunk: int) -> None:
    content, encoding = text
    content = content.lstrip("\r\n")  # where the names are, a DictReader takes an empty line for them
    with file_of(content.encode(encoding)) as file, chunks_of(chunk):
        with opened(file.name, encoding, "") as plain:
            reader = csv.DictReader(plain)
            names, rows = reader.fieldnames or [], list(reader)
        source = csv_rows(file.name, encoding)
        if len(set(names)) == len(names):
            resumes_everywhere(source, rows)
        else:
            with pytest.raises(InvalidStepError, match=r"has the name .* \d+ times \(columns \d+, \d"):
                read(source)


@settings(max_examples=400, deadline=None)
@given(texts(), CHUNKS, st.sampled_from([None, ""]), st.integers(0, 4))
def test_an_open_text_file_is_read_as_it_was_opened(
    text: tuple[str, str], chunk: int, newline: str | None, skipped: int
) -> None:
    """From the line where it stands, with its own encoding and line ends, which quoted fields have too."""
    content, encoding = text
    with file_of(content.encode(encoding)) as file, chunks_of(chunk):

        def at_line(use: Any) -> Any:
            with opened(file.name, encoding, newline) as plain:
                for _ in range(skipped):
                    plain.readline()
                return use(plain)

        try:
            at_line(lines)
        except InvalidStepError:  # the decoder has a state there that cannot be found again
            assume(encoding not in ("iso2022_jp", "utf-7", "hz"))
            raise
        for make, plain_rows in (
            (lines, lambda plain: [re.sub("\r\n?$|\n$", "", line) for line in plain]),
            (lambda plain: csv_rows(plain, header=False), lambda plain: [row for row in csv.reader(plain) if row]),
        ):
            expected = at_line(plain_rows)
            at_line(lambda plain, make=make, expected=expected: resumes_everywhere(make(plain), expected))


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


@pytest.mark.parametrize("encoding", ["utf-9", "rot13", "", 8])
def test_an_encoding_that_is_none(tmp_path: Path, encoding: Any) -> None:
    with pytest.raises(InvalidStepError, match=r"rows cannot be read: unknown encoding"):
        lines(tmp_path / "rows", encoding)


@pytest.mark.parametrize("encoding", ["idna", "punycode"])
def test_an_encoding_of_names(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InvalidStepError, match=f"rows cannot be read: '{encoding}' encodes names, not files"):
        lines(tmp_path / "rows", encoding)


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.BZ2", "rows.jsonl.xz", "rows.zip"])
def test_a_compressed_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidStepError, match="is compressed, and cannot be read from a place within: decompress"):
        csv_rows(tmp_path / name)


def marked(source: Any, count: int) -> tuple[Any, Any]:
    """The cursor after an item, and its mark."""
    pairs = source.read(None)
    *_, (_, cursor) = (next(pairs) for _ in range(count))
    return cursor, source.mark(cursor, None)


def rest(source: Any, cursor: Any, mark: Any) -> list[Any]:
    return [item for item, _ in source.resume(cursor, None, mark)]


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\n")
    cursor, mark = marked(lines(path), 1)
    assert rest(lines(path), cursor, mark) == ["two"]
    path.write_text("uno\ndos\ntres\n")
    with pytest.raises(SourceChanged, match="was replaced: the bytes before byte 4 differ"):
        rest(lines(path), cursor, mark)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_that_was_replaced_by_one_with_the_same_beginning(tmp_path: Path, encoding: str) -> None:
    """As a table that is exported again each night: rows of one length, one of which is gone."""
    path = tmp_path / "rows.csv"
    rows = [f"{number:05},some text that makes it longer" for number in range(3000)]
    path.write_text("\n".join(rows), encoding=encoding)
    pairs = list(lines(path, encoding).read(None))
    cursors = [cursor for _, cursor in pairs]
    path.write_text("\n".join(rows[:800] + rows[801:]), encoding=encoding)
    assert read(lines(path, encoding), cursors[99])[0] == rows[100]
    for place in (1500, 2900):
        with pytest.raises(InvalidStepError, match=r"was replaced: the bytes before byte [\d,]+ differ"):
            lines(path, encoding).read(cursors[place])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "shift_jis"])
@pytest.mark.parametrize("longer", [False, True])
def test_what_comes_after_a_place_may_be_changed(tmp_path: Path, encoding: str, longer: bool) -> None:
    """And each change before it is noticed, up to 16 KiB; and in the first 16 KiB."""
    path = tmp_path / "rows"
    rows = [f"{number:04}," + "x" * 30 for number in range(1500)]
    path.write_text("\n".join(rows), encoding=encoding)
    for done in (1, 2, 50, 400, 1000):
        path.write_text("\n".join(rows), encoding=encoding)
        cursor, mark = marked(lines(path, encoding), done)
        for place in {0, done // 2, done - 1, done, done + 1, 1400}:
            now = [*rows[:place], "y" * (50 if longer else 35), *rows[place + 1 :]]
            path.write_text("\n".join(now), encoding=encoding)
            if place >= done:
                assert rest(lines(path, encoding), cursor, mark) == now[done:]
            elif place == 0 or done - place < 200:
                with pytest.raises(SourceChanged):
                    rest(lines(path, encoding), cursor, mark)


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
    with pytest.raises(ValueError, match=r"line that begins at byte 4 is not utf-8: sch.n; .* as in lines\(path, enc"):
        read(lines(path))


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("1\n{\n")
    with pytest.raises(ValueError, match="rows: the line that begins at byte 2 is not JSON: '{"):
        read(json_lines(path))


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


# -- what release 0.1 saved


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_places_that_were_told_by_text_files(tmp_path: Path, encoding: str) -> None:
    """Release 0.1 saved them, with marks of the first 4 KiB and of the bytes before a chunk."""
    path = tmp_path / "rows"
    texts = [f"{number} " + ("日本" if _has(encoding, "日") else "xy") * (number % 9) for number in range(900)]
    path.write_bytes("".join(f"{text}\n" for text in texts).encode(encoding))
    content = path.read_bytes()
    head = mark_of(content[:4096], min(len(content), 4096))
    with open(path, encoding=encoding, newline="\n") as plain:
        for number, text in enumerate(texts, 1):
            assert plain.readline() == text + "\n"
            place = plain.tell()
            if number % 50 == 0:
                near = mark_of(content[: place & 0xFFFF], place & 0xFFFF)
                assert read(lines(path, encoding), ((head, near), place)) == texts[number:]


def test_a_mark_of_bytes_after_the_place(tmp_path: Path) -> None:
    """That of release 0.1; it counts where no later release has saved a mark of its own."""
    path = tmp_path / "rows"
    path.write_text("1\nx\n3\n")
    cursor = ((mark_of(b"1\nx\n3\n", 6), mark_of(b"", 0)), 2)
    path.write_text("1\n2\n3\n")
    assert rest(lines(path), cursor, list(mark_of(b"1\n", 2))) == ["2", "3"]
    with pytest.raises(SourceChanged, match="was replaced: its beginning differs"):
        rest(lines(path), cursor, None)


# -- names of columns, and byte order marks


@pytest.mark.parametrize("encoding", [None, "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_at_the_beginning_is_not_part_of_the_text(tmp_path: Path, encoding: str | None) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("name\n\ufeffann\n\ufeff\n".encode(encoding or "utf-8-sig"))
    resumes_everywhere(csv_rows(path, encoding), [{"name": "\ufeffann"}, {"name": "\ufeff"}])
    resumes_everywhere(csv_rows(path, encoding, header=False), [["name"], ["\ufeffann"], ["\ufeff"]])
    resumes_everywhere(lines(path, encoding), ["name", "\ufeffann", "\ufeff"])
    path.write_bytes("1\n2".encode(encoding or "utf-8-sig"))
    resumes_everywhere(json_lines(path, encoding), [1, 2])


def test_a_byte_order_mark_in_the_name_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("name\nann\n", encoding="utf-8-sig")
    with pytest.raises(InvalidStepError, match=r"begins with a byte order mark, .* leave encoding= out"):
        read(csv_rows(path, "utf-8"))
    assert read(csv_rows(path, "utf-8", header=False)) == [["\ufeffname"], ["ann"]]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a", "b", "a"], r"fieldnames= has the name 'a' 2 times \(columns 1, 3\)"),
        ("ab", "fieldnames= takes a list of names of columns, not 'ab'"),
        ([], r"fieldnames= takes a list of names of columns, not \[\]"),
    ],
)
def test_names_that_would_lose_a_column(tmp_path: Path, names: Any, problem: str) -> None:
    with pytest.raises(InvalidStepError, match=problem):
        csv_rows(tmp_path / "rows.csv", fieldnames=names)


def test_a_header_that_would_lose_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(InvalidStepError, match=r"rows.csv has the name 'a' 2 times \(columns 1, 3\).*header=False"):
        read(csv_rows(path))
    assert read(csv_rows(path, header=False)) == [["a", "b", "a"], ["1", "2", "3"]]


def test_rows_of_another_length_than_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1\n1,2,3,4\n1,2\n")
    expected = [{"a": "1", "b": None}, {"a": "1", "b": "2", None: ["3", "4"]}, {"a": "1", "b": "2"}]
    resumes_everywhere(csv_rows(path), expected)


def test_a_line_end_of_which_the_second_half_was_written_later(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-16", "shift_jis"):
        path = tmp_path / encoding
        path.write_bytes("a\nb\r".encode(encoding))
        *_, (item, cursor) = lines(path, encoding).read(None)
        assert item == "b"
        path.write_bytes("a\nb\r\nc\n".encode(encoding))
        assert read(lines(path, encoding), cursor) == ["c"]


def test_a_line_end_of_which_the_second_half_is_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\nb\r")
    pairs = lines(path).read(None)
    found = [next(pairs)[0], next(pairs)[0]]
    with path.open("ab") as file:
        file.write(b"\nc\n")
    assert [*found, *(line for line, _ in pairs)] == ["a", "b", "c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "shift_jis"])
def test_progress_in_a_file_that_was_removed_once_it_was_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\n", encoding=encoding)
    size, source = path.stat().st_size, lines(path, encoding)
    *_, (_, cursor) = source.read(None)
    path.unlink()
    assert source.progress(cursor) == (size, size)


@pytest.mark.parametrize("make", [lines, csv_rows, json_lines])
def test_what_is_not_a_regular_file(tmp_path: Path, make: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidStepError, match="is not a regular file"):
            read(make(path))


@pytest.mark.parametrize("ends", ["whole", "by break", "by an error", "by a bad row"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_loop_closes_its_file(tmp_path: Path, encoding: str, ends: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id\n1\n2\n"bad"x\n' if ends == "by a bad row" else "id\n1\n2\n", encoding=encoding)
    source = csv_rows(path, encoding, strict=True)  # which is referred to until the end

    def body(task: Any) -> None:
        for _ in task.iterate(source):
            if ends == "by break":
                break
            if ends == "by an error":
                raise ConnectionError

    error = Executions().run(body)
    assert (error is None) == (ends in ("whole", "by break"))
    assert str(path) not in [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
