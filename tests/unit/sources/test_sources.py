"""The inputs of iterate, in tasks run by a worker: recognised types, pages, combinators, failed items."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tempfile
from collections import OrderedDict
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import states
from celery.exceptions import SoftTimeLimitExceeded

from celery_continuations import CrashLoopError, ErrorBudgetError, InvalidStepError, StoreError
from celery_continuations.core.snapshot import Snapshot
from celery_continuations.sources import (
    base,
    batched,
    csv_rows,
    json_lines,
    keys,
    lines,
    nested,
    opening,
    pages,
    register,
    throttled,
)
from tests.support.worker import Killed


def loop(source: Any, seen: list[Any], stop_after: Any = (), worker: Any = None, **options: Any) -> Any:
    """A task's body that records its items and is interrupted after given numbers of them."""

    def body(self: Any) -> None:
        for item in self.iterate("loop", source, **options):
            seen.append(item)
            if len(seen) in stop_after:
                worker.stop()

    return body


def run_interrupted(worker: Any, task: Any, source: Any, **options: Any) -> list[Any]:
    """Return what the loop gets when the worker is stopped after each of its items."""
    seen: list[Any] = []
    result = task(loop(source, seen, range(100), worker, **options)).apply_async()
    worker.drain()
    assert result.get() is None
    # the last checkpoint comes after the last item
    assert len(worker.deliveries) == len(seen) + 1 or not seen
    return seen


# -- the cases of others


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (list("abc"), {}, list("abc")),
        (lambda: [{"id": 3}, {"id": 1}, {"id": 2}], {}, [{"id": 3}, {"id": 1}, {"id": 2}]),
        (range(10), {"batch": 3}, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
        (lambda: batched(range(10), 3), {}, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]),
    ],
)
def test_arrays_records_and_batches(worker: Any, task: Any, source: Any, options: Any, expected: Any) -> None:
    assert run_interrupted(worker, task, source, **options) == expected


def test_csv_rows_and_batches(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name\n" + "".join(f"{number},name {number}\n" for number in range(11)))
    rows = [{"id": str(number), "name": f"name {number}"} for number in range(11)]
    assert run_interrupted(worker, task, path) == rows
    worker.deliveries.clear()
    found = run_interrupted(worker, task, path, batch=3)
    assert [len(batch) for batch in found] == [3, 3, 3, 2]
    assert [row for batch in found for row in batch] == rows


def test_an_interrupted_batch_restarts(worker: Any, task: Any) -> None:
    seen: list[Any] = []

    def body(self: Any) -> None:
        rows = self.iterate("loop", range(5), batch=2)
        for batch in rows:
            seen.append(batch)
            if len(seen) == 2:
                worker.stop()
                rows.checkpoint()  # within the batch

    result = task(body).apply_async()
    worker.drain()
    assert result.state == states.SUCCESS
    assert seen == [[0, 1], [2, 3], [2, 3], [4]]


def test_size_and_position_of_a_csv_file_after_a_resumption(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id\n" + "12\n" * 9)  # 30 bytes
    places: list[Any] = []

    def body(self: Any) -> None:
        rows = self.iterate("loop", path)
        for _ in rows:
            places.append((rows.resumed, rows.progress(), rows.total))
            if len(places) == 4:
                worker.stop()

    result = task(body).apply_async()
    worker.deliver()
    assert (result.progress.done, result.progress.total, result.progress.percent) == (15, 30, 50)
    assert "50 %" in str(result.info)
    worker.drain()
    assert places[3:6] == [(False, (12, 30), 30), (True, (15, 30), 30), (True, (18, 30), 30)]
    assert len(places) == 9


def test_a_failing_element_is_tried_again_from_its_own_cursor(worker: Any, task: Any) -> None:
    done: list[int] = []
    failing = {3, 7}

    def body(self: Any) -> None:
        for number in self.iterate("loop", keys(dict.fromkeys(range(10)))):
            if number in failing:
                failing.discard(number)
                raise ConnectionError(f"at {number}")
            done.append(number)
            if number in (1, 5):
                worker.stop()

    result = task(body, continuation_resume_error_countdown=0).apply_async()
    worker.drain()
    assert result.get() is None
    assert done == list(range(10))
    assert len(worker.deliveries) == 5


def test_nested_sources_resume_also_where_an_inner_one_is_empty(worker: Any, task: Any) -> None:
    books = {"ann": ["a1", "a2"], "bob": [], "eve": ["e1"], "max": []}
    source = nested(list(books), lambda author: books[author], lambda author, book: range(2 if book == "a2" else 1))
    expected = [("ann", "a1", 0), ("ann", "a2", 0), ("ann", "a2", 1), ("eve", "e1", 0)]
    assert run_interrupted(worker, task, source) == expected


def test_nested_sources_that_are_all_empty(worker: Any, task: Any) -> None:
    assert run_interrupted(worker, task, nested([1, 2], lambda number: [])) == []


def test_a_throttled_source_backs_off_and_is_not_read_meanwhile(worker: Any, task: Any, later: Any) -> None:
    holds, asked, read = [False], [], []

    def numbers() -> Any:
        for number in range(4):
            read.append(number)
            yield number

    def body(self: Any) -> int:
        for number in self.iterate("loop", throttled(numbers, condition, timedelta(seconds=30))):
            done.append(number)
            if number == 1:
                holds[0] = True
        return int(self.request.retries)

    def condition() -> bool:
        asked.append(len(read))
        return holds[0]

    done: list[int] = []
    result = task(body).apply_async()
    worker.deliver()
    assert str(result.info) == "Interrupted at loop:2 (throttled for 30 s)"
    assert (done, read) == ([0, 1], [0, 1])
    assert worker.queued() == 0, "no message is held"
    later(29)
    assert worker.queued() == 0
    later(2)
    worker.drain()
    assert (result.state, done, read) == (states.RETRY, [0, 1], [0, 1]), "neither complete nor read"
    holds[0] = False
    later(31)
    worker.drain()
    assert (result.get(), done) == (0, [0, 1, 2, 3])
    assert asked == [0, 1, 2, 2, 2, 5, 6]


def test_a_source_that_is_throttled_from_the_beginning(worker: Any, task: Any, later: Any) -> None:
    holds = [True]
    seen: list[Any] = []
    result = task(loop(throttled(refuse_reading, lambda: holds[0], 5), seen)).apply_async()
    worker.deliver()
    assert (result.state, seen) == (states.RETRY, [])
    holds[0] = False
    later(6)
    with pytest.raises(LookupError, match="was read"):
        worker.drain()
        result.get()


def refuse_reading() -> Any:
    raise LookupError("was read")


@pytest.mark.parametrize(
    "around", [lambda source: source, lambda source: batched(source, 3), lambda source: nested([0], lambda _: source)]
)
def test_a_batch_that_is_throttled_is_passed_on_as_far_as_it_has_come(
    worker: Any, task: Any, later: Any, around: Any
) -> None:
    asked: list[int] = []

    def every_second() -> bool:
        asked.append(1)
        return len(asked) % 3 == 0

    seen: list[Any] = []
    result = task(loop(around(throttled(range(5), every_second, 5)), seen, batch=4)).apply_async()
    worker.deliver()
    for _ in range(3):
        later(6)
        worker.drain()
    assert result.state == states.SUCCESS
    assert flat(seen) == [0, 1, 2, 3, 4]
    assert len(seen) == 3


def flat(items: Any) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, list):
            found += flat(item)
        else:
            found.append(item[1] if isinstance(item, tuple) else item)
    return found


def test_a_throttled_source_in_a_direct_call(task: Any) -> None:
    seen: list[Any] = []
    task(loop(throttled(["ab"], lambda: False, 5), seen))()
    assert seen == ["ab"]
    with pytest.raises(InvalidStepError, match="throttled for 5 s: not possible in a task called directly"):
        task(loop(throttled(["ab"], lambda: True, 5), seen))()


def test_a_throttled_source_where_no_store_could_keep_the_wait(app: Any, worker: Any, task: Any) -> None:
    app.conf.continuation_store = "message"
    result = task(loop(throttled(["ab"], lambda: True, 5), [])).apply_async()
    worker.deliver()
    with pytest.raises(StoreError, match="throttled for 5 s"):
        result.get()


# -- what is recognised


def read(value: Any) -> list[Any]:
    return [item for item, _ in opening(value)().read(None)]


@pytest.mark.parametrize(
    ("name", "text", "items"),
    [
        ("rows.csv", "id\n1\n", [{"id": "1"}]),
        ("ROWS.CSV", "id\n1\n", [{"id": "1"}]),
        ("rows.jsonl", '{"id": 1}\n', [{"id": 1}]),
        ("rows.ndjson", "[1]\n2\n", [[1], 2]),
        ("rows.json", "[1]\n2\n", ["[1]", "2"]),
        ("rows", "a,b\n", ["a,b"]),
    ],
)
def test_a_path_is_read_as_its_suffix_says(tmp_path: Path, name: str, text: str, items: list[Any]) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read(path) == items


def test_a_path_in_a_task(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("one\ntwo\nthree\n")
    assert run_interrupted(worker, task, path) == ["one", "two", "three"]


def test_an_open_file_in_a_task(worker: Any, task: Any, tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_text("eins\nzwölf\n", encoding="latin-1")
    seen: list[Any] = []

    def body(self: Any) -> None:
        with path.open(encoding="latin-1") as file:
            for line in self.iterate("loop", file):
                seen.append(line)
                worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert (result.get(), seen) == (None, ["eins", "zwölf"])
    assert len(worker.deliveries) == 3


def test_a_temporary_file() -> None:
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("one\ntwo\n")
        file.seek(0)
        assert read(file) == ["one", "two"]
    with tempfile.NamedTemporaryFile() as file, pytest.raises(InvalidStepError, match="is not a text file"):
        read(file)


def test_files_that_could_not_be_read_again_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("one\ntwo\n")
    with (
        path.open("rb") as file,
        pytest.raises(InvalidStepError, match="BufferedReader '.*' is not a text file on disk"),
    ):
        read(file)
    with pytest.raises(InvalidStepError, match="StringIO is not a text file on disk"):
        read(io.StringIO("one\n"))
    with tempfile.TemporaryFile("w+") as file, pytest.raises(InvalidStepError, match="has no path"):
        read(file)
    for name in ("rows", "rows.gz"):
        with gzip.open(tmp_path / name, "wt") as file:
            file.write("one\ntwo\n")
        with gzip.open(tmp_path / name, "rt", encoding="latin-1") as file:
            with pytest.raises(InvalidStepError, match="is read through another file, such as an archive's; it"):
                read(file)
            assert read(line.strip() for line in file) == ["one", "two"]
    path.write_text("one\ntwo\n")
    with path.open("r+") as file:
        assert read(file) == ["one", "two"]
    with path.open("a") as file, pytest.raises(InvalidStepError, match="is not open for reading"):
        read(file)


def test_a_field_of_django(tmp_path: Path) -> None:
    from django.core.files.base import ContentFile
    from django.core.files.storage import FileSystemStorage, Storage
    from django.db.models.fields.files import FieldFile, FileField

    path = tmp_path / "rows.csv"
    path.write_text("id\n1\n")
    field = FileField()
    field.storage = FileSystemStorage(location=tmp_path)
    assert read(FieldFile(None, field, "rows.csv")) == [{"id": "1"}]
    with pytest.raises(InvalidStepError, match="has no local path"):
        read(FieldFile(None, field, None))
    field.storage = Storage()
    with pytest.raises(InvalidStepError, match="has no local path"):
        lines(FieldFile(None, field, "rows.csv"))
    with pytest.raises(InvalidStepError, match="ContentFile .rows. is not a text file"):
        read(ContentFile("one\n", name="rows"))


@pytest.fixture
def registry(monkeypatch: Any) -> None:
    monkeypatch.setattr(base, "_makers", dict(base._makers))


@pytest.mark.usefixtures("registry")
def test_a_class_is_recognised_by_itself_and_by_its_name() -> None:
    class Archive:
        def __init__(self, names: list[str]) -> None:
            self.names = names

    class Zip(Archive):
        pass

    with pytest.raises(InvalidStepError, match="cannot iterate over an Archive: it is not iterable"):
        opening(Archive([]))
    register(f"{__name__}.{Archive.__qualname__}", lambda archive: opening(archive.names)())
    assert read(Archive(["a"])) == read(Zip(["a"])) == read(lambda: Zip(["a"])) == ["a"]
    register(Zip, lambda archive: opening([name.upper() for name in archive.names])())
    assert (read(Archive(["a"])), read(Zip(["a"]))) == (["a"], ["A"])


@pytest.mark.usefixtures("registry")
def test_what_is_registered_comes_before_all_else() -> None:
    class Callable(OrderedDict):  # iterable, callable, and with a method read
        def __call__(self) -> Any:
            raise AssertionError

        def read(self, cursor: Any) -> Any:
            raise AssertionError

    register(OrderedDict, lambda mapping: keys(mapping))
    assert read(Callable(b=1, a=2)) == ["a", "b"]
    assert read(OrderedDict(b=1, a=2)) == ["a", "b"]


def test_queries_are_recognised_by_name(monkeypatch: Any) -> None:
    from django.db.models.query import QuerySet
    from sqlalchemy import Integer, column, select

    rows = opening(["row"])()
    django, sqlalchemy = ModuleType("django"), ModuleType("sqlalchemy")
    django.query_rows = sqlalchemy.from_select = lambda query: rows
    monkeypatch.setitem(sys.modules, "celery_continuations.sources.django", django)
    monkeypatch.setitem(sys.modules, "celery_continuations.sources.sqlalchemy", sqlalchemy)
    assert read(QuerySet()) == read(select(column("id", Integer))) == ["row"]


@pytest.mark.parametrize(
    ("items", "shown"), [(["one"], "'one'"), ([["a", 1]], r"\['a', 1\]"), ([("a", 1, 2)], r"\('a', 1")]
)
def test_what_has_a_method_read_and_yields_no_pairs(task: Any, items: Any, shown: str) -> None:
    with pytest.raises(
        InvalidStepError, match=rf"step 'loop' has a source that yields {shown}.*, instead of \(item, cur"
    ):
        task(loop(Yields(items), []))()


class Yields:
    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def read(self, cursor: Any) -> Any:
        return self.pairs


def test_generators(worker: Any, task: Any) -> None:
    def squares() -> Any:
        for number in range(4):
            yield number * number

    assert run_interrupted(worker, task, squares) == [0, 1, 4, 9]
    worker.deliveries.clear()
    seen: list[Any] = []

    def body(self: Any) -> None:
        for number in self.iterate("loop", squares()):  # made again in each execution
            seen.append(number)
            worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert (result.get(), seen) == (None, [0, 1, 4, 9])


# -- pages, keys


def test_pages_are_asked_once_more_only_where_items_are_left(worker: Any, task: Any) -> None:
    asked: list[Any] = []

    def page(token: Any) -> Any:
        asked.append(token)
        return {None: ("ab", "p2"), "p2": ("", "p3"), "p3": ("cd", None)}[token]

    assert run_interrupted(worker, task, pages(page)) == ["a", "b", "c", "d"]
    assert asked == [None, None, "p2", "p3", "p3", "p3"]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (lambda token: ["a", "b", "c"], r"is list \['a', 'b', 'c'\]; return a tuple"),
        (lambda token: (["a"], None, 1), "return a tuple of its items and the next token"),
        (lambda token: (["a"], "p"), "the page of token 'p' is followed by itself"),
        (lambda token: (["a"], object()), "the token after page None cannot be saved"),
    ],
)
def test_pages_that_cannot_be_gone_on_with(page: Any, problem: str) -> None:
    with pytest.raises(Exception, match=problem) as error:
        read(pages(page))
    assert type(error.value).__name__ in ("InvalidStepError", "UnserializableValueError")


@pytest.mark.parametrize("cursor", [5, (1,), (None, "a"), (None, -1), (None, True), [None, 1]])
def test_a_cursor_that_is_none_of_pages_or_nested_sources(cursor: Any) -> None:
    """The cursor of a loop over something else, before the task was changed."""
    with pytest.raises(InvalidStepError, match="pages cannot be read from"):
        pages(lambda token: (["a"], None)).read(cursor)
    with pytest.raises(InvalidStepError, match="nested sources cannot be read from"):
        next(iter(nested([1], lambda one: [2]).read(cursor)))


def test_keys_that_come_and_go(worker: Any, task: Any) -> None:
    mapping = dict.fromkeys("bdfh")
    seen: list[str] = []

    def body(self: Any) -> None:
        for key in self.iterate("loop", keys(mapping)):
            seen.append(key)
            if key == "d":
                del mapping["b"], mapping["d"], mapping["f"]
                mapping.update(dict.fromkeys("aeg"))
                worker.stop()

    result = task(body).apply_async()
    worker.deliver()
    assert (result.progress.done, result.progress.total) == (2, 4)
    worker.drain()
    assert seen == ["b", "d", "e", "g", "h"]


def test_keys_without_an_order() -> None:
    with pytest.raises(InvalidStepError, match="have no order to resume in: '<' not supported"):
        keys({1: "a", "b": 2})
    with pytest.raises(InvalidStepError, match="have no order with 'a'"):
        keys({1: "a"}).read("a")
    with pytest.raises(InvalidStepError, match="has the key None"):
        keys({None: 1})


# -- combinators


def test_dict_views_are_not_taken_for_sets() -> None:
    """Its keys and items are in the order in which they came."""
    both = {"b": 1, "a": 2}
    assert [item for item, _ in opening(both.keys())().read(1)] == ["a"]
    assert [item for item, _ in opening(both.items())().read(None)] == [("b", 1), ("a", 2)]


def test_an_outer_item_that_is_gone(worker: Any, task: Any) -> None:
    users = {"ann": 3, "bob": 2, "eve": 4}
    seen: list[Any] = []

    def body(self: Any) -> None:
        for pair in self.iterate("loop", nested(keys(users), lambda user: range(users[user]))):
            seen.append(pair)
            if pair == ("bob", 0):
                del users["bob"]
                worker.stop()

    result = task(body).apply_async()
    worker.drain()
    assert result.state == states.SUCCESS
    assert seen[3:] == [("bob", 0), ("eve", 0), ("eve", 1), ("eve", 2), ("eve", 3)]


def test_progress_of_combined_sources() -> None:
    def progress(source: Any) -> list[Any]:
        reader = base.opener("loop", source)().reader
        return [reader.progress(cursor) for _, cursor in reader.read(None)]

    assert progress(batched(range(5), 2)) == [(2, 5), (4, 5), (5, 5)]
    assert progress(nested(["ab", "cd"], lambda text: list(text))) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert progress(throttled(keys({"a": 1, "b": 2}), lambda: False, 1)) == [(1, 2), (2, 2)]
    assert progress(batched(lambda: iter("ab"), 1)) == [(1, None), (2, None)]
    assert progress(pages(lambda token: ("a", None))) == [(None, None)]


def test_a_total_that_is_given_counts(worker: Any, task: Any) -> None:
    result = task(loop(iter("abcd"), [], [2], worker, total=4)).apply_async()
    worker.deliver()
    assert result.progress.percent == 50


class ByKey:
    """Rows by their keys, which are ints and count nothing."""

    def read(self, cursor: Any) -> Any:
        return ((key, key) for key in (1001, 1002, 1007) if cursor is None or key > cursor)


def test_keys_that_are_ints_are_no_progress_and_items_are(worker: Any, task: Any) -> None:
    result = task(loop(ByKey(), [], [2], worker, total=4)).apply_async()
    worker.deliver()
    assert (result.progress.done, result.progress.percent) == (2, 50)


def test_a_total_in_other_units_than_the_source_counts_in_is_not_taken(worker: Any, task: Any, tmp_path: Any) -> None:
    (tmp_path / "rows.txt").write_text("a\nb\nc\nd\n")
    result = task(loop(tmp_path / "rows.txt", [], [2], worker, total=100)).apply_async()
    worker.deliver()
    assert (result.progress.done, result.progress.total, result.progress.percent) == (4, 8, 50)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: batched(["ab"], 0), "the size of a batch must be an int of 1 or more, not 0"),
        (lambda: batched({1, 2}, 2), "a source cannot iterate over a set"),
        (lambda: nested([1]), "nested takes a source, and one or more functions"),
        (lambda: nested([1], [2]), r"nested was given \[2\] as an inner source"),
        (lambda: read(nested([1], lambda one: {2})), "a source cannot iterate over a set"),
        (lambda: throttled([1], True, 5), "the condition True, which is not callable"),
        (lambda: throttled([1], lambda: True, -1), "backoff = -1 is not allowed"),
        (lambda: throttled([1], lambda: True, "5"), "backoff = '5' is not allowed"),
        (lambda: pages("page"), "pages takes a function"),
    ],
)
def test_values_that_are_not_sources_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(InvalidStepError, match=problem):
        make()


# -- failed items


def attempts(rows: Any, done: list[Any], load: Any = int) -> None:
    for text in rows:
        with rows.attempt():
            done.append(load(text))


def test_items_that_fail_are_put_aside_across_executions(worker: Any, task: Any, record: Any, caplog: Any) -> None:
    texts = ["1", "two", "3", "four", "5"]
    done: list[int] = []
    failed: list[Any] = []

    def body(self: Any) -> list[Any]:
        rows = self.iterate("loop", texts, on_error=2)
        for text in rows:
            with rows.attempt():
                done.append(int(text))
            if text in ("two", "3"):
                worker.stop()
        failed.append(rows.failed)
        self.step("after", worker.stop)
        self.step("end", lambda: None)
        return rows.failed  # of a step that was complete before this execution

    result = task(body).apply_async()
    worker.deliver()
    assert Snapshot.loads(record(result.id).snapshot).failed_items == [[1, ERROR.format("two")]]
    worker.drain()
    expected = [(1, ERROR.format("two")), (3, ERROR.format("four"))]
    assert done == [1, 3, 5]
    assert failed[0] == failed[-1] == expected
    assert [tuple(item) for item in result.get()] == expected
    assert len(worker.deliveries) == 4
    told = [entry for entry in caplog.records if getattr(entry, "action", None) == "item_failed"]
    assert len(told) == 2
    assert "step loop: the item at 1 failed: ValueError" in told[0].getMessage()


ERROR = "ValueError: invalid literal for int() with base 10: {!r}"


def test_past_its_budget_the_task_fails_and_can_be_taken_up_again(worker: Any, task: Any) -> None:
    texts = ["1", "two", "three", "4"]
    done: list[int] = []

    def body(self: Any) -> Any:
        rows = self.iterate("loop", texts, on_error=1)
        attempts(rows, done)
        return rows.failed

    result = task(body).apply_async()
    worker.drain()
    with pytest.raises(
        ErrorBudgetError, match="step 'loop': more items failed than on_error=1 allows; the last one"
    ) as e:
        result.get()
    assert len(e.value.failed) == 2
    assert (e.value.step, e.value.budget, done) == ("loop", 1, [1])
    texts[2] = "3"
    result.retry()
    worker.drain()
    assert [tuple(item) for item in result.get()] == [(1, ERROR.format("two"))]
    assert done == [1, 3, 4]


def test_each_loop_has_a_budget_of_its_own(worker: Any, task: Any) -> None:
    def body(self: Any) -> Any:
        found = []
        for name in ("one", "two"):
            rows = self.iterate(name, [name, "2"], on_error=1)
            attempts(rows, [])
            found.append(rows)
        worker.stop()
        self.step("end", lambda: None)
        return [rows.failed for rows in found]

    result = task(body).apply_async()
    worker.drain()
    one, two = result.get()
    assert [text for _, text in one] == [ERROR.format("one")]
    assert [text for _, text in two] == [ERROR.format("two")]
    assert len(worker.deliveries) == 2


def test_an_item_that_is_repeated_counts_once(worker: Any, task: Any) -> None:
    tries: list[str] = []

    def body(self: Any) -> Any:
        rows = self.iterate("loop", ["1", "two"], on_error=1)
        for text in rows:
            with rows.attempt():
                int(text)
            with rows.attempt():
                int(text)
            tries.append(text)
            if tries.count("two") == 1:
                worker.stop()
                rows.checkpoint()
        return rows.failed

    result = task(body).apply_async()
    worker.drain()
    assert [tuple(item) for item in result.get()] == [(1, ERROR.format("two"))]
    assert tries == ["1", "two", "two"]


def test_an_item_that_is_repeated_and_does_not_fail_then(worker: Any, task: Any) -> None:
    tries: list[str] = []

    def body(self: Any) -> Any:
        rows = self.iterate("loop", ["1"], on_error=1)
        for text in rows:
            tries.append(text)
            with rows.attempt():
                if len(tries) == 1:
                    raise ConnectionError
            if len(tries) == 1:
                worker.stop()
                rows.checkpoint()
        return rows.failed

    result = task(body).apply_async()
    worker.drain()
    assert (result.get(), len(tries)) == ([], 2)


def test_an_item_that_was_interrupted_is_not_put_aside(worker: Any, task: Any) -> None:
    tries: list[int] = []

    def body(self: Any) -> Any:
        rows = self.iterate("loop", range(2), on_error=5)
        for number in rows:
            tries.append(number)
            with rows.attempt():
                try:
                    if len(tries) == 1:
                        worker.stop()
                    rows.checkpoint()
                finally:
                    if len(tries) == 1:
                        raise KeyError("on the way out")
        return rows.failed

    result = task(body).apply_async()
    worker.drain()
    assert result.state == states.SUCCESS
    assert (result.get(), tries) == ([], [0, 0, 1])


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), InvalidStepError("misuse"), CrashLoopError(1, None, None)])
def test_what_is_not_of_the_item_is_raised(worker: Any, task: Any, error: Exception) -> None:
    made = task(raising(error))
    result = made.apply_async()
    worker.drain()
    with pytest.raises(type(error)):
        result.get()
    with pytest.raises(type(error)):
        made()


def test_when_memory_runs_out(task: Any) -> None:
    with pytest.raises(MemoryError):
        task(raising(MemoryError()))()


def raising(error: Exception) -> Any:
    def body(self: Any) -> None:
        rows = self.iterate("loop", [1], on_error=5)
        for _ in rows:
            with rows.attempt():
                raise error

    return body


def test_a_retry_within_an_attempt(worker: Any, task: Any) -> None:
    tries: list[int] = []

    def body(self: Any) -> Any:
        rows = self.iterate("loop", [1, 2], on_error=5)
        for number in rows:
            with rows.attempt():
                tries.append(number)
                if len(tries) == 2:
                    self.retry(countdown=0)
        return rows.failed

    result = task(body).apply_async()
    worker.drain()
    assert (result.get(), tries) == ([], [1, 2, 2])


def test_a_kill_in_an_attempt(worker: Any, task: Any) -> None:
    def body(self: Any) -> None:
        rows = self.iterate("loop", [1], on_error=5)
        for _ in rows:
            with rows.attempt():
                raise Killed

    task(body).apply_async()
    worker.deliver_killed()


def test_nothing_is_written_where_nothing_has_failed(worker: Any, task: Any, record: Any) -> None:
    def body(self: Any) -> None:
        rows = self.iterate("loop", [1, 2], on_error=5)
        for _ in rows:
            with rows.attempt():
                worker.stop()

    result = task(body).apply_async()
    worker.deliver()
    assert "aside" not in record(result.id).snapshot
    worker.drain()
    assert json.loads(record(result.id).snapshot)["completed"] == [["loop", "done", None]]


def test_directly(task: Any) -> None:
    done: list[int] = []

    def body(self: Any, **options: Any) -> Any:
        rows = self.iterate("loop", csv_rows(path, header=False), **options)
        attempts(rows, done, lambda row: int(row[0]))
        return [text for _, text in rows.failed]

    with tempfile.NamedTemporaryFile("w+") as file:
        path = file.name
        file.write("1\ntwo\n3\n")
        file.flush()
        assert task(body)(on_error=1) == [ERROR.format("two")]
        assert done == [1, 3]
        with pytest.raises(ErrorBudgetError) as error:
            task(body)(on_error=0)
        assert isinstance(error.value.__cause__, ValueError)
        with pytest.raises(InvalidStepError, match=r"attempt\(\) needs the number of items that may fail"):
            task(body)()
        for wrong in (-1, True, "5", 0.5):
            with pytest.raises(InvalidStepError, match="on_error must be the number of items that may fail"):
                task(body)(on_error=wrong)


def test_an_attempt_after_the_loop(task: Any) -> None:
    def body(self: Any) -> None:
        rows = self.iterate("loop", [1], on_error=5)
        for _ in rows:
            pass
        with rows.attempt():
            raise KeyError("late")

    with pytest.raises(KeyError, match="late"):
        task(body)()


def test_json_values_put_aside_are_found_at_their_cursors(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{}\n{"id": 3}\n')

    def body(self: Any) -> Any:
        rows = self.iterate("loop", path, on_error=1)
        attempts(rows, [], lambda value: value["id"])
        return rows.failed

    ((cursor, text),) = task(body)()
    assert text == "KeyError: 'id'"
    assert next(json_lines(path).read(cursor))[0] == {}
