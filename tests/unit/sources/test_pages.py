"""Pages: tokens that go in a circle, tokens that have expired, and pages without items."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from celery import states
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_continuations import InvalidStepError, UnserializableValueError
from celery_continuations.core.reader import SourceChanged
from celery_continuations.core.snapshot import ACCEPTED
from celery_continuations.sources import NoItem, StartAgain, nested, opener, pages
from celery_continuations.sources.paged import _REMEMBERED
from tests.support.changing import Executions

# -- circles


def circle(before: int, length: int, make: Any) -> Any:
    """Return a function whose pages go in a circle after some that do not, and the tokens that it was asked for."""
    asked: list[Any] = []

    def page(token: Any) -> Any:
        asked.append(token)
        number = 0 if token is None else int(str(token).strip("t[]'"))
        following = number + 1 if number + 1 < before + length else before
        return [number], make(max(following, 1))

    return page, asked


TOKENS = {"numbers": int, "texts": lambda number: f"t{number}", "lists": lambda number: [f"t{number}"]}


@pytest.mark.parametrize("kind", TOKENS)
@given(st.integers(1, 20), st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_a_circle_is_noticed_before_a_page_is_read_twice(kind: str, before: int, length: int) -> None:
    page, asked = circle(before, length, TOKENS[kind])
    with pytest.raises(
        InvalidStepError, match=r"go in a circle: page .* is followed by page .*, which was read before"
    ):
        list(islice(pages(page).read(None), 1000))
    assert len(asked) == len({str(token) for token in asked})


@pytest.mark.parametrize("length", [_REMEMBERED - 1, _REMEMBERED + 1, 3 * _REMEMBERED])
def test_a_circle_of_any_length_is_noticed_in_bounded_memory(length: int) -> None:
    page, asked = circle(5, length, int)
    source: Any = pages(page)
    with pytest.raises(InvalidStepError, match="go in a circle"):
        for _ in islice(source.read(None), 10 * length):
            assert len(source._reached) <= _REMEMBERED
    assert len(asked) < 4 * length


@pytest.mark.parametrize(("before", "length"), [(1, 2), (3, 3), (2, 12), (9, 25)])
@pytest.mark.parametrize("is_numbered", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_a_circle_is_noticed_across_executions(before: int, length: int, is_numbered: bool, within: bool) -> None:
    """Also if each of them reads a page or two."""
    page, asked = circle(before, length, TOKENS["numbers" if is_numbered else "texts"])
    executions = Executions()
    for _ in range(6 * (before + length)):
        found = executions.loop(nested(["a"], lambda one: pages(page)) if within else pages(page), 2)
        if isinstance(found, InvalidStepError):
            break
    else:
        raise AssertionError(f"not noticed after {len(asked)} pages")
    assert "go in a circle" in str(found)


def test_long_lists_of_pages_are_no_circle() -> None:
    found = list(pages(lambda token: ([token], None if token == 5000 else (token or 0) + 1)).read(None))
    assert len(found) == 5001


def test_a_source_can_be_read_twice() -> None:
    source = pages({None: ([1], 2), 2: ([2], None)}.__getitem__)
    assert list(source.read(None)) == list(source.read(None))


# -- tokens that have expired


class Api:
    """Pages of a letter each; its tokens hold a session, and expire with it."""

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.session = 0
        self.asked: list[Any] = []

    def page(self, token: Any) -> Any:
        self.asked.append(token)
        session, place = (self.session, 0) if token is None else map(int, token.split("/"))
        if session != self.session:
            raise StartAgain(self.instead(place))
        last = place == len(self.letters) - 1
        return [self.letters[place]], None if last else f"{session}/{place + 1}"

    def instead(self, place: int) -> Any:
        return f"{self.session}/{place}"


class ApiFromTheBeginning(Api):
    def instead(self, place: int) -> Any:
        return None


@pytest.mark.parametrize("kind", [Api, ApiFromTheBeginning])
@pytest.mark.parametrize("batch", [None, 2])
def test_an_expired_token_is_replaced_and_not_read_again(
    worker: Any, task: Any, kind: type[Api], batch: int | None
) -> None:
    api = kind("abcdef")
    seen: list[Any] = []
    failing = [False]

    def page(token: Any) -> Any:
        found = api.page(token)
        if failing[0]:
            raise ConnectionError
        return found

    def body(self: Any) -> None:
        for one in self.iterate("loop", pages(page), batch=batch):
            seen.extend([one] if batch is None else one)
            if len(seen) == 2:
                worker.stop()

    result = task(body, continuation_resume_errors_after_advancing=False).apply_async()
    worker.deliver()
    assert (result.state, seen) == (states.RETRY, ["a", "b"])
    api.session, failing[0] = 1, True
    worker.drain()
    assert result.state == states.FAILURE
    assert api.asked[-2:] == ["0/2", api.instead(2)]
    failing[0] = False
    api.asked.clear()
    result.retry()
    worker.drain()
    assert result.state == states.SUCCESS
    assert "0/2" not in api.asked
    assert seen[2:] == (["c", "d", "e", "f"] if kind is Api else list("abcdef"))


@pytest.mark.parametrize("token", [None, "dead", "t1"])
def test_one_that_leads_back_to_itself(token: Any) -> None:
    def page(asked: Any) -> Any:
        if asked in (None, "t1"):
            return ["a"], "dead"
        raise StartAgain(token)

    with pytest.raises(InvalidStepError, match=r"token 'dead' asked to start again at .*, which leads back to it"):
        list(islice(pages(page).read(None), 100))


def test_one_that_cannot_be_saved() -> None:
    def page(asked: Any) -> Any:
        raise StartAgain(object())

    with pytest.raises(UnserializableValueError, match="the token of StartAgain cannot be saved"):
        list(pages(page).read(None))


def test_an_expired_token_of_the_previous_page() -> None:
    """A token that counts pages is compared with the page before it, which has expired."""
    answers = {None: (["a"], 2), 2: (["b"], 3), 3: (["c"], None)}
    expired: set[int] = set()

    def page(token: Any) -> Any:
        if token in expired:
            expired.clear()
            raise StartAgain
        return answers[token]

    executions = Executions()
    assert executions.loop(pages(page), 2) == ["a", "b"]
    expired.add(2)
    assert executions.loop(pages(page)) == ["a", "b", "c"]


# -- pages without items


@st.composite
def sizes(draw: Any) -> list[int]:
    return draw(st.lists(st.integers(0, 2), min_size=1, max_size=8))


@given(sizes(), st.sampled_from([lambda number: f"token-{'abcdefgh'[number]}", int]))
@settings(max_examples=150, deadline=None)
def test_from_each_place_the_rest_is_read_and_compared(numbers: list[int], make: Any) -> None:
    tokens = [None, *map(make, range(1, len(numbers))), None]

    def page(token: Any) -> Any:
        place = tokens.index(token)
        return [(place, number) for number in range(numbers[place])], tokens[place + 1]

    reader: Any = opener("loop", pages(page))().reader
    pairs = reader.resume(None, None, ACCEPTED)
    keep, done = None, 0
    expected = [item for item, _ in pages(page).read(None)]
    for pair in pairs:
        if isinstance(pair, NoItem):
            cursor, kept = pair.cursor, pair.kept
        else:
            (item, cursor), done = pair, done + 1
            keep = keep or reader.keep_of(item)
            kept = keep.of(item)
        mark = json.loads(json.dumps(reader.mark(cursor, kept)))
        rest = opener("loop", pages(page))().reader.resume(cursor, "page", mark)
        assert [one[0] for one in rest if not isinstance(one, NoItem)] == expected[done:]


def test_a_mark_without_a_trail_is_read() -> None:
    """As this release has saved it before it kept one."""
    answers = {None: (["a", "b"], 2), 2: (["c"], None)}
    reader: Any = opener("loop", pages(answers.__getitem__))().reader
    digest, shown = reader._prints.of("b")
    assert list(reader.resume((2, 0), "page", [None, 2, digest, shown])) == [("c", (2, 1))]
    with pytest.raises(SourceChanged, match="item 2 of page None was done and has changed"):
        list(reader.resume((2, 0), "page", [None, 2, "0" * 12, None]))
