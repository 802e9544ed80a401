"""Every source passes the public conformance suite, and incorrect sources fail it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celery_continuations.sources import batched, csv_rows, json_lines, keys, lines, nested, opening, pages, throttled
from celery_continuations.testing.sources import SourceConformance

pytestmark = pytest.mark.exhaustive

# -- each source


class InFolder(SourceConformance):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "file"
        self.write()

    def write(self) -> None:
        self.path.write_text("".join(f"line {number}\n" for number in range(7)))


class TestLines(InFolder):
    def make(self) -> Any:
        return lines(self.path)


class TestLinesOfASlowEncoding(InFolder):
    def write(self) -> None:
        self.path.write_text("eins\nzwei\ndrei", encoding="utf-16")

    def make(self) -> Any:
        return lines(self.path, "utf-16")


class TestCsvRows(InFolder):
    def write(self) -> None:
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "note"], *([number, "a\nb"] for number in range(5)), ["short"]])

    def make(self) -> Any:
        return csv_rows(self.path)


class TestJsonLines(InFolder):
    def write(self) -> None:
        self.path.write_text("".join(json.dumps({"id": number}) + "\n\n" for number in range(5)))

    def make(self) -> Any:
        return json_lines(self.path)


class TestPositions(SourceConformance):
    def make(self) -> Any:
        return opening(["a", None, "c", "c"])()


class TestGeneratorFunction(SourceConformance):
    def make(self) -> Any:
        return Reopened(lambda: (number * number for number in range(5)))


class TestPages(SourceConformance):
    def make(self) -> Any:
        return pages({None: ([1, 2], 7), 7: ([], 8), 8: ([3], 9), 9: ([4, 5], "x"), "x": ([], None)}.__getitem__)


class TestKeys(SourceConformance):
    def make(self) -> Any:
        return keys({(2, "b"): 1, (1, "z"): 2, (2, "a"): 3})


class TestBatched(SourceConformance):
    def make(self) -> Any:
        return batched(batched(range(11), 2), 2)


class TestNested(SourceConformance):
    def make(self) -> Any:
        return nested(range(4), lambda one: "ab"[: one % 3].split() * one, lambda one, two: keys({one: 0, 9: 0}))


class TestThrottled(SourceConformance):
    def make(self) -> Any:
        return throttled(keys({"a": 1, "b": 2, "c": 3}), lambda: False, backoff=1)


class TestAllTogether(SourceConformance):
    def make(self) -> Any:
        users = pages({None: (["ann", "bob"], 2), 2: (["eve"], None)}.__getitem__)
        return batched(nested(throttled(users, lambda: False, 1), lambda user: batched(range(len(user) + 2), 2)), 2)


class Reopened:
    """A function of the user's, opened at each reading."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def read(self, cursor: Any) -> Any:
        return opening(self.function)().read(cursor)


# -- random ones


@st.composite
def sources(draw: Any, depth: int = 2) -> Any:
    """Return a function that makes a source, and how many throttlings it has met."""
    kind = draw(st.sampled_from(["list", "keys", "pages", "batched", "nested", "throttled"] if depth else ["list"]))
    if kind == "list":
        items = draw(st.lists(st.integers(0, 3), max_size=5))
        return lambda: items
    if kind == "keys":
        mapping = draw(st.dictionaries(st.text(max_size=2), st.none(), max_size=5))
        return lambda: keys(mapping)
    if kind == "pages":
        chapters = draw(st.lists(st.lists(st.integers(), max_size=3), min_size=1, max_size=4))
        following = [*range(1, len(chapters)), None]
        return lambda: pages(lambda token: (chapters[token or 0], following[token or 0]))
    inner = draw(sources(depth=depth - 1))
    if kind == "batched":
        size = draw(st.integers(1, 4))
        return lambda: batched(inner(), size)
    if kind == "throttled":
        return lambda: throttled(inner, lambda: False, 1)
    levels = draw(st.lists(sources(depth=depth - 1), min_size=1, max_size=2))
    return lambda: nested(inner(), *(lambda *above, level=level: level() for level in levels))


@settings(max_examples=150, deadline=None)
@given(sources())
def test_every_source_resumes_at_every_position(make: Any) -> None:
    class Random(SourceConformance):
        def make(self) -> Any:
            return opening(make())()

    suite = Random()
    assume(len(suite._all()) < 200)  # each place is resumed from, which takes time
    suite.test_it_yields_the_same_again()
    suite.test_it_goes_on_after_every_item()
    suite.test_its_cursors_stay_as_they_are()
    suite.test_its_progress_goes_forward()
    if len(suite._pairs()) < 9:
        suite.test_it_goes_on_in_a_task()


# -- wrong ones


class Wrong:
    def __init__(self, mistake: str) -> None:
        self.mistake = mistake
        self.cursors = {"mutated": [0]}
        self.running: Any = None

    def read(self, cursor: Any) -> Any:
        if self.mistake == "shared":
            self.running = self.running or self._all(0)
            return self.running
        start = 0 if cursor is None else cursor[0] if isinstance(cursor, list) else cursor
        return self._all(start)

    def _all(self, start: int) -> Any:
        for number in range(start, 4):
            after: Any = number + 1
            if self.mistake == "repeats":
                after = number
            elif self.mistake == "skips" and number == 1:
                after = number + 2
            elif self.mistake == "mutated":
                after = self.cursors["mutated"]
                after[0] = number + 1
            elif self.mistake == "none" and number == 3:
                after = None
            yield number, after

    def progress(self, cursor: Any) -> Any:
        if self.mistake == "beyond" and cursor:
            return cursor + 1, 4
        return None, None


def verdicts(mistake: str) -> set[str]:
    class Suite(SourceConformance):
        def make(self) -> Any:
            return Wrong(mistake)

    suite = Suite()
    failed = set()
    for name in dir(suite):
        if name.startswith("test_"):
            try:
                getattr(suite, name)()
            except AssertionError:
                failed.add(name)
    return failed


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("skips", "test_it_goes_on_after_every_item"),
        ("none", "test_its_cursors_stay_as_they_are"),
        ("none", "test_it_goes_on_in_a_task"),
        ("mutated", "test_its_cursors_stay_as_they_are"),
        ("shared", "test_two_can_be_read_at_once"),
        ("shared", "test_it_yields_the_same_again"),
        ("beyond", "test_its_progress_goes_forward"),
    ],
)
def test_a_source_that_is_wrong_is_found_out(mistake: str, found: str) -> None:
    assert found in verdicts(mistake)


def test_a_source_that_repeats_is_found_out() -> None:
    class Repeats(SourceConformance):
        def make(self) -> Any:
            return Wrong("repeats")

    with pytest.raises(AssertionError, match="after item 1, 0, from cursor 0 on: 4 items"):
        Repeats().test_it_goes_on_after_every_item()


def test_a_source_that_is_right_passes() -> None:
    assert verdicts("") == set()


def test_a_source_of_one_item_is_not_enough() -> None:
    class One(SourceConformance):
        def make(self) -> Any:
            return opening(["a"])()

    with pytest.raises(AssertionError, match="two items or more"):
        One().test_it_has_items_enough()
