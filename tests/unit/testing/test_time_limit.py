"""assert_resumable ends in time, tries the most telling places first, and says what it left out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from celery import Celery

from celery_continuations.testing import UntriedWarning, assert_resumable, resumable
from celery_continuations.testing.plans import Place, named, parse, plans


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that stands still until a task moves it."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(resumable, "_now", lambda: Clock.now)
    return Clock


@pytest.fixture
def slow(task: Any, app: Celery, clock: Any) -> Any:
    """A task whose children take their time."""

    @app.task(name="child")
    def child(seconds: float) -> None:
        clock.now += seconds

    def parent(self: Any, seconds: float, count: int) -> int:
        self.wait_for_results("children", [child.s(seconds)])
        for _ in self.iterate("rows", range(count)):
            pass
        return count

    return task(parent, name="parent")


def test_all_is_tried_while_there_is_time(slow: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = assert_resumable(slow, 0.0, 5)
    assert report.left_out == ()
    singles = {one for one in report.tried if "," not in one}
    # places: 1 the children are named, 2 the step is saved, 3 the checkpoint after it, 4 to 8 rows, 9 the step is
    # saved, 10 the end
    assert singles == {f"interrupt@{place}" for place in range(3, 9)} | {f"kill@{place}" for place in range(1, 11)}
    assert len(report.tried) - len(singles) > 50


def test_what_is_left_out_is_said(slow: Any, clock: Any) -> None:
    with pytest.warns(UntriedWarning) as caught:
        report = assert_resumable(slow, 0.3, 40)
    assert clock.now <= 10
    # a killed child is applied again
    assert 20 < len(report.tried) < 33
    assert len(report.tried) + len(report.left_out) > 170
    text = str(caught[0].message)
    assert text.startswith("parent: tried within 10 s: interrupt@3-4+6+8+")
    assert "left out: interrupt@5" in text
    assert text.endswith("pass fewer items, or seconds=None to try everything")
    assert caught[0].filename == __file__


def test_a_longer_time_tries_more_in_the_same_order(slow: Any) -> None:
    with pytest.warns(UntriedWarning):
        short = assert_resumable(slow, 0.3, 40, seconds=5)
    with pytest.warns(UntriedWarning):
        longer = assert_resumable(slow, 0.3, 40, seconds=20)
    assert short.tried == longer.tried[: len(short.tried)]
    assert len(short.tried) < len(longer.tried)
    assert (*short.tried, *short.left_out) == (*longer.tried, *longer.left_out)


def test_no_limit(slow: Any, clock: Any) -> None:
    assert assert_resumable(slow, 0.3, 5, seconds=None).left_out == ()
    assert clock.now > 10


def test_a_task_for_which_there_is_no_time_is_not_proved(slow: Any) -> None:
    with pytest.raises(AssertionError, match="nothing could be tried within 10 s; pass fewer items, or seconds=None"):
        assert_resumable(slow, 6.0, 2)


def test_a_single_run_has_no_limit(slow: Any) -> None:
    assert assert_resumable(slow, 6.0, 2, only="kill@4") == (("kill@4",), ())


def test_a_fault_is_found_before_the_time_ends(task: Any, clock: Any) -> None:
    """The mistake shows only in the last of many steps of a kind."""
    rows: list[int] = []

    def run(self: Any) -> None:
        clock.now += 0.3
        for number in self.iterate("rows", range(1000)):
            if number == 999 or number not in rows:
                rows.append(number)

    with pytest.raises(AssertionError, match="killed at place 1000 of 1002"):
        assert_resumable(task(run), setup=rows.clear, check=lambda: len(rows))


# -- the order


def places(*kinds: tuple[str, int]) -> list[Place]:
    return [Place(what, what.startswith("checkpoint")) for what, count in kinds for _ in range(count)]


def test_the_first_and_the_last_place_of_each_kind_come_first() -> None:
    found = [str(one) for (one,) in plans(places(("checkpoint a", 5), ("save a", 1), ("checkpoint b", 1)), True, 0)]
    assert found == [
        *("interrupt@1", "interrupt@7", "kill@1", "kill@6", "kill@7"),
        *("interrupt@5", "kill@5", "interrupt@3", "kill@3", "interrupt@2", "kill@2", "interrupt@4", "kill@4"),
    ]


def test_steps_that_differ_by_a_number_are_of_one_kind() -> None:
    kinds = [(f"checkpoint page {number}", 1) for number in range(1, 6)]
    assert [str(one) for (one,) in plans(places(*kinds), False, 0)] == [f"interrupt@{n}" for n in (1, 5, 3, 2, 4)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1001])
def test_each_place_comes_once(count: int) -> None:
    found = [str(one) for (one,) in plans(places(("checkpoint", count), ("save", 1)), True, 0)]
    expected = {f"interrupt@{n}" for n in range(1, count + 1)} | {f"kill@{n}" for n in range(1, count + 2)}
    assert len(found) == len(expected)
    assert set(found) == expected


def test_long_lists_of_places_are_short() -> None:
    chosen = [parse(f"kill@{number}") for number in range(1, 400, 2)]
    assert named(chosen) == "kill@1+3+5+7+9+11+13+15+17+…"
    assert named([]) == ""
